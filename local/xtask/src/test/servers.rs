//! The servers of one test run, and the environment by which its tests find them.

use atlas_ehrbase::{ENV_EHRBASE, ENV_POSTGRES, EhrBase, Postgres, SharedEhrBase, corpus};
use tempfile::TempDir;

use super::needs;
use crate::{Result, say};

pub(crate) struct Servers {
    environment: [(&'static str, String); 2],
    /// Held to be dropped, in this order.
    _ehrbase: EhrBase,
    _postgres: Postgres,
    _loaded: TempDir,
}

impl Servers {
    /// Starts PostgreSQL and EHRbase, and loads the corpus.
    pub(crate) async fn start() -> Result<Self> {
        needs::packages().await?;
        let corpus = corpus::folder()?;
        let postgres = Postgres::start().await?;
        let ehrbase = EhrBase::start(&postgres).await?;
        let loaded = corpus::load(&ehrbase, &corpus).await?;
        say(&format!(
            "servers are ready: {} templates, {} compositions, {} of them unreadable",
            loaded.templates.len(),
            loaded.compositions.len(),
            loaded.unreadable().count()
        ));
        let folder = tempfile::tempdir()?;
        let shared = SharedEhrBase {
            access: ehrbase.access().clone(),
            loaded: folder.path().join("loaded.json"),
        };
        std::fs::write(&shared.loaded, serde_json::to_vec(&loaded)?)?;
        Ok(Self {
            environment: [
                (ENV_POSTGRES, postgres.connection_string("postgres")),
                (ENV_EHRBASE, serde_json::to_string(&shared)?),
            ],
            _ehrbase: ehrbase,
            _postgres: postgres,
            _loaded: folder,
        })
    }

    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        self.environment.clone()
    }
}
