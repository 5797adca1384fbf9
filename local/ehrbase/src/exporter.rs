//! A database as careful operators make it: one role owns the tables, another one exports.

use std::path::Path;

use tokio::process::Command;

use crate::Postgres;
use crate::error::{Context, Error, ErrorKind, Result};

/// The role that exports, of all tests of a cluster: it may log in, and has what `atlas grants` gives it.
pub const EXPORTER: &str = "atlas_exporter";
/// Its password.
pub const EXPORTER_PASSWORD: &str = "exporter-of-tests";

/// Connection strings of a database with tables and no rows.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Of the superuser, who owns the tables.
    pub owner: String,
    /// Of [`EXPORTER`].
    pub exporter: String,
}

impl Postgres {
    /// Makes a database that no other test has, with the tables of the program `atlas` in it, and gives [`EXPORTER`] the rights that
    /// the program says it needs.
    ///
    /// # Errors
    /// A statement or a run of the program that failed.
    pub async fn prepared_database(&self, atlas: &Path) -> Result<Prepared> {
        let owner = self.fresh_database().await?;
        let name = owner.rsplit('/').next().unwrap_or_default();
        run(atlas, &owner, &["prepare"]).await?;
        let grants = run(atlas, &owner, &["grants", "--role", EXPORTER]).await?;
        // Tests that begin at once make the role at once.
        let role = format!(
            "DO $$ BEGIN CREATE ROLE {EXPORTER} LOGIN PASSWORD '{EXPORTER_PASSWORD}';
             EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
             REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
        );
        self.execute(name, &role).await?;
        self.execute(name, &grants).await?;
        let exporter = self.connection_string_as(EXPORTER, EXPORTER_PASSWORD, name);
        Ok(Prepared { owner, exporter })
    }
}

/// What the program prints. Its configuration is in variables alone.
async fn run(atlas: &Path, connection: &str, arguments: &[&str]) -> Result<String> {
    let action = || format!("run `atlas {}`", arguments.join(" "));
    let empty = tempfile::NamedTempFile::new().context(ErrorKind::System, action())?;
    let output = Command::new(atlas)
        .args(arguments)
        .arg("-c")
        .arg(empty.path())
        .env_clear()
        .env("ATLAS_DATABASE_TARGET", "postgresql")
        .env("ATLAS_POSTGRESQL_CONNECTION_STRING", connection)
        .env("ATLAS_POSTGRESQL_SSL_MODE", "disable")
        .env("ATLAS_OPENEHR_BASE_URL", "http://127.0.0.1:1")
        .output()
        .await
        .context(ErrorKind::System, action())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::new(ErrorKind::System, action()).because(said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
