//! The servers that one test run shares: those that `cargo xtask test` brought
//! up, or else those that the first test of a process starts for the others.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::corpus::{self, Loaded};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::postgres::Postgres;
use crate::process::temporary_folder;
use crate::server::{Access, EhrBase};

/// Holds the connection URL of a superuser of the shared PostgreSQL.
pub const ENV_POSTGRES: &str = "ATLAS_TEST_POSTGRES";
/// Holds a [`SharedEhrBase`] as JSON.
pub const ENV_EHRBASE: &str = "ATLAS_TEST_EHRBASE";

/// How a test process finds the shared EHRbase.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharedEhrBase {
    /// Where it is.
    #[serde(flatten)]
    pub access: Access,
    /// A JSON file with what it holds, a [`Loaded`].
    pub loaded: PathBuf,
}

/// The file that tells tests what the shared EHRbase holds, and how they find both; removed when it is dropped.
pub struct SharedFile {
    shared: SharedEhrBase,
    _folder: tempfile::TempDir,
}

impl SharedEhrBase {
    /// Writes down what `ehrbase` holds, for the tests of other processes.
    pub fn write(ehrbase: &EhrBase, loaded: &Loaded) -> Result<SharedFile> {
        let action = "write down what EHRbase holds";
        let folder = temporary_folder()?;
        let shared = Self {
            access: ehrbase.access().clone(),
            loaded: folder.path().join("loaded.json"),
        };
        let json = serde_json::to_vec(loaded).context(ErrorKind::System, action)?;
        std::fs::write(&shared.loaded, json).context(ErrorKind::System, action)?;
        Ok(SharedFile {
            shared,
            _folder: folder,
        })
    }
}

impl SharedFile {
    /// The value of [`ENV_EHRBASE`] for the tests.
    pub fn variable(&self) -> Result<String> {
        serde_json::to_string(&self.shared).context(ErrorKind::System, "describe EHRbase")
    }
}

/// An EHRbase into which the corpus was loaded. Other tests use it at the same
/// time: ask for what you wrote, never for everything.
pub struct Shared {
    /// The server.
    pub ehrbase: EhrBase,
    /// What was loaded into it at the start.
    pub loaded: Loaded,
}

/// The shared PostgreSQL. Tests make databases of their own in it ([`Postgres::fresh_database`]).
pub async fn shared_postgres() -> Result<Postgres> {
    if let Some(url) = variable(ENV_POSTGRES)? {
        return Postgres::attach(&url);
    }
    // Never dropped; it ends with this process.
    static OWN: OnceCell<Postgres> = OnceCell::const_new();
    let own = OWN.get_or_try_init(Postgres::start).await?;
    Postgres::attach(&own.connection_string("postgres"))
}

/// The shared EHRbase with the corpus.
pub async fn shared() -> Result<Shared> {
    if let Some(json) = variable(ENV_EHRBASE)? {
        let action = format!("read {ENV_EHRBASE}");
        let shared: SharedEhrBase =
            serde_json::from_str(&json).context(ErrorKind::Input, action.clone())?;
        let loaded = std::fs::read(&shared.loaded).context(ErrorKind::Input, action.clone())?;
        return Ok(Shared {
            ehrbase: EhrBase::attach(shared.access)?,
            loaded: serde_json::from_slice(&loaded).context(ErrorKind::Input, action)?,
        });
    }
    static OWN: OnceCell<(EhrBase, Loaded)> = OnceCell::const_new();
    let (ehrbase, loaded) = OWN
        .get_or_try_init(async || {
            let corpus = corpus::folder()?;
            let ehrbase = EhrBase::start(&shared_postgres().await?).await?;
            let loaded = corpus::load(&ehrbase, &corpus).await?;
            Ok::<_, Error>((ehrbase, loaded))
        })
        .await?;
    // A client of its own: connections end with the runtime of the test that made them.
    Ok(Shared {
        ehrbase: EhrBase::attach(ehrbase.access().clone())?,
        loaded: loaded.clone(),
    })
}

fn variable(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(Error::new(ErrorKind::Input, format!("read {name}")).because(error)),
    }
}
