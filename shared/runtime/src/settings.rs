//! `atlas.toml` as typed values: read loosely, checked once, then trusted.
//!
//! ```text
//! file, variables, flags ──► Settings::load ─────────────────────────────► Settings
//!                        └─► Settings::references ─► vaults ─► the same ─┘   (`crate::load`)
//! ```
//! [`Settings::load`] does no I/O but reading files; [`crate::load`] asks vaults for secrets first. It reports all problems at once ([`ConfigError`]), each with
//! its key, rule, line and fix. The reference of all keys is `docs/configuration.md`.

mod functions;
mod mask;
mod problem;
mod read;
mod reader;
mod reference;
mod safety;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atlas_engine::model::{Format, Mode};
use atlas_openehr::flat::Ids;
use atlas_openehr::time::Instant;

use atlas_store_postgres::{Config, ConnectionError, SslMode};
use croner::Cron;
use secrecy::SecretString;

pub use mask::Mask;
pub use problem::{ConfigError, Invalid, Place, Problem, near_matches, nearest};
pub use reader::Override;
pub(crate) use reference::Reference;

use crate::Environment;
use reader::Reader;

/// A checked configuration.
#[derive(Debug)]
pub struct Settings {
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Where compositions come from: `[openehr]` and `[openehr.retry]`.
    pub openehr: atlas_cdr::Config,
    /// Which compositions, and how many at once.
    pub query: Query,
    /// What is exported, and how.
    pub export: Export,
    /// Where compositions go to.
    pub store: Store,
    /// The queue of work between functions; none for a program that does all the work itself.
    pub queue: Option<QueueAccess>,
    /// How long functions work, and when work is taken for lost.
    pub functions: Functions,
    /// When the planner and the reporter run.
    pub schedule: Schedule,
    /// What `serve` offers.
    pub serve: Serve,
    /// How a run is held.
    pub state: State,
    /// Log lines in a file, if wanted.
    pub log_file: Option<LogFile>,
    /// Keeps the secrets of this configuration out of what is printed about it.
    pub mask: Mask,
    /// What the user should be told once: keys without effect, defaults that will change.
    pub notices: Vec<String>,
}

/// The `application.log_level` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// And what needs attention.
    Warn,
    /// And what happened.
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// All of them, from the fewest lines to the most.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// The name in configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// No level has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be error, warn, info, debug or trace")]
pub struct UnknownLogLevel;

impl std::str::FromStr for LogLevel {
    type Err = UnknownLogLevel;

    /// Case does not count.
    fn from_str(name: &str) -> Result<Self, UnknownLogLevel> {
        let mut levels = Self::ALL.into_iter();
        levels
            .find(|level| level.name().eq_ignore_ascii_case(name.trim()))
            .ok_or(UnknownLogLevel)
    }
}

/// The `[openehr.query]` section.
#[derive(Debug, Clone)]
pub struct Query {
    /// Templates to export; empty means all of the server.
    pub template_ids: Vec<String>,
    /// EHRs to export; empty means all. Never to be logged.
    pub ehr_ids: Vec<String>,
    /// Earliest commit time, inclusive.
    pub from: Option<Instant>,
    /// Latest commit time, exclusive.
    pub to: Option<Instant>,
    /// Most compositions in one page, 1 to 5000.
    pub batch_size: usize,
    /// Queries that run on the source at the same time, of all processes together (source slots), 1 to 100.
    pub parallel: usize,
}

/// The `[export]` section.
#[derive(Debug, Clone)]
pub struct Export {
    /// Everything, or what is new.
    pub mode: Mode,
    /// What the store gets.
    pub format: Format,
    /// How FLAT names nodes that a template has twice.
    pub ids: Ids,
    /// Compositions per template that every run compares with the server's own FLAT.
    pub verify_flat_sample: usize,
    /// Tries of a store write after the first one.
    pub max_retries: u32,
    /// Waits between those tries; the last one repeats.
    pub retry_backoff: Vec<Duration>,
    /// Time to reach a page boundary after a signal.
    pub shutdown_timeout: Duration,
    /// Plan and count, but write nothing.
    pub dry_run: bool,
    /// How far the cut stays behind the clock of the source.
    pub safety_lag: Duration,
    /// How far back each run looks for rows that became visible late.
    pub overlap: Duration,
    /// Most compositions in one slice.
    pub slice_size: u64,
    /// Pages that one process holds at a time, in bytes of memory.
    pub memory: usize,
}

/// The chosen store.
#[derive(Debug)]
pub enum Store {
    /// One file.
    Sqlite {
        /// The database file, without symbolic links, so that one file has one name; made when it is not there.
        path: PathBuf,
    },
    /// A PostgreSQL server.
    Postgresql(atlas_store_postgres::Config),
}

/// The `[queue]` section: where the queue of work is, and how it lets us in.
#[derive(Debug, Clone)]
pub enum QueueAccess {
    /// Amazon SQS, with the role or credentials of this program.
    Sqs {
        /// Address of the queue.
        url: String,
    },
    /// A queue of an Azure storage account.
    Azure {
        /// Address of the queue; it can hold a signature.
        url: SecretString,
        /// How it lets us in.
        access: AzureAccess,
    },
}

/// How a queue of an Azure storage account lets us in.
#[derive(Debug, Clone)]
pub enum AzureAccess {
    /// As the identity of this program.
    Identity,
    /// With the signature (SAS) in the address. An emulator that asks for nothing goes without.
    Signed,
    /// With the key of the account.
    Key {
        /// Name of the account.
        account: String,
        /// Base64, as Azure shows it.
        key: SecretString,
    },
}

/// The `[functions]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Functions {
    /// How long a worker goes on with one message.
    pub slice: Duration,
    /// After this long the platform ends an invocation, where it does not say so itself.
    pub timeout: Duration,
    /// A worker that has not been heard of for so long has lost its slice.
    pub lease: Duration,
    /// A message that was sent so long ago, and nothing happened since, is lost.
    pub orphan: Duration,
    /// A failed slice is tried again after this long.
    pub revive: Duration,
}

/// The `[state]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// A run that has not been heard of for so long can be taken over.
    pub lease: Duration,
    /// How often a run is heard of; at most a third of the lease.
    pub heartbeat: Duration,
    /// How long after its end the record of a run is kept.
    pub keep_runs: Duration,
}

/// The `[schedule]` section. Times are in UTC.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// When work is planned.
    pub plan: Cron,
    /// When the watermark report is stored.
    pub report: Cron,
}

/// The `[serve]` section.
#[derive(Debug, Clone)]
pub struct Serve {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What callers have to show; always there when others than this machine can call.
    pub token: Option<SecretString>,
    /// Most workers at the same time, 1 to 100.
    pub workers: usize,
}

/// The `[logging] local_…` keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The file that is written to; older ones lie beside it.
    pub path: PathBuf,
    /// When to start a new file.
    pub rotation: Rotation,
    /// Size at which a new file is started in any case, in bytes.
    pub max_size: usize,
    /// Closed files beside it at most; older ones are removed.
    pub keep: usize,
}

impl LogFile {
    /// The current file and the closed ones beside it, as far as they are there.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let folder = self.path.parent().filter(|p| *p != Path::new(""));
        let name = self.path.file_name().unwrap_or_default();
        let entries = std::fs::read_dir(folder.unwrap_or(Path::new(".")));
        let entries = entries.into_iter().flatten().flatten();
        let is_ours = |path: &PathBuf| {
            let file = path.file_name().unwrap_or_default();
            file.as_encoded_bytes().starts_with(name.as_encoded_bytes())
        };
        entries.map(|entry| entry.path()).filter(is_ours).collect()
    }
}

/// The `logging.local_rotation` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Every hour.
    Hourly,
    /// Every day, at midnight UTC.
    Daily,
    /// By size only.
    Never,
}

impl Settings {
    /// Reads and checks a file, with what variables and flags say on top.
    pub fn load(
        path: &Path,
        environment: &Environment,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        Ok(Self::parse(
            &read_file(path)?,
            path,
            environment,
            overrides,
        )?)
    }

    /// The same for a text; `path` is what errors call it.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: &Environment,
        overrides: &[Override],
    ) -> Result<Self, Invalid> {
        let mut reader = Reader::new(path, text, environment, overrides)?;
        let target = read::target(&mut reader);
        let settings = read::settings(&mut reader, target);
        let (settings, notices, mask) = reader.finish(settings, |key| is_unused(target, key))?;
        Ok(Self {
            notices,
            mask,
            ..settings
        })
    }

    /// The secrets in vaults that [`parse`](Self::parse) needs in its environment, each with the key that asks for it.
    pub(crate) fn references(
        text: &str,
        path: &Path,
        environment: &Environment,
        overrides: &[Override],
    ) -> Result<Vec<(String, Reference)>, Invalid> {
        let mut reader = Reader::new(path, text, environment, overrides)?;
        let target = read::target(&mut reader);
        read::settings(&mut reader, target);
        reader.references(|key| is_unused(target, key))
    }
}

/// The `ssl_mode` that a new configuration should have beside a PostgreSQL connection string: a server on this machine hardly ever
/// has TLS, any other one is checked. None if the string says one itself, or cannot be used.
#[must_use]
pub fn suggested_ssl_mode(connection_string: &str) -> Option<SslMode> {
    let config = |ssl_mode| Config {
        ssl_mode,
        ..Config::new(connection_string.into())
    };
    let is_local = config(None)
        .endpoints()
        .ok()?
        .iter()
        .all(|endpoint| endpoint.is_local);
    let mode = match is_local {
        true => SslMode::Disable,
        false => SslMode::VerifyFull,
    };
    config(Some(mode)).endpoints().ok().map(|_| mode)
}

/// Whether a PostgreSQL connection string that a person typed holds a secret, other than as `${NAME}`: it must not be written into
/// a configuration then.
///
/// # Errors
/// A connection string that cannot be read: what is secret in it is not known.
pub fn holds_secret(connection_string: &str) -> Result<bool, ConnectionError> {
    if reader::is_reference(connection_string) {
        return Ok(false);
    }
    let written = reader::written(connection_string);
    // Any text that a host, a port or a name can have.
    let readable = written.replace(reader::VARIABLE, "1");
    Config::new(readable.into()).endpoints()?;
    let secrets = Config::new(written.into()).secrets();
    Ok(secrets.iter().any(|part| reader::is_written(part)))
}

pub(crate) fn read_file(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// Whether a key belongs to a part that is not in use.
fn is_unused(target: Option<Target>, key: &str) -> bool {
    match key.split_once('.') {
        Some(("postgresql", _)) => target != Some(Target::Postgresql),
        Some(("sqlite", _)) => target != Some(Target::Sqlite),
        Some(("cosmosdb", _)) => true,
        Some(("logging", name)) => name.starts_with("azure_"),
        _ => false,
    }
}

/// The `environment` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Anything goes, and what production refuses is said.
    Development,
    /// Like development; for users to tell installations apart.
    Staging,
    /// Refuses unverified TLS, plain HTTP to other hosts, secrets that stand in the file and short tokens.
    Production,
}

/// The `database_target` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Sqlite,
    Postgresql,
    /// A store that does not exist yet.
    Later(&'static str),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_reference_names_every_key_and_no_other() {
        let environment = Environment::default();
        let mut reader = Reader::new(Path::new("atlas.toml"), "", &environment, &[]).unwrap();
        let target = read::target(&mut reader);
        read::settings(&mut reader, target);
        let sections = ["anonymization", "deid"];
        let known: BTreeSet<&str> = reader
            .known()
            .filter(|key| !sections.contains(key))
            .collect();

        let path = atlas_machine::checkout()
            .unwrap()
            .join("docs/configuration.md");
        let reference = std::fs::read_to_string(path).unwrap();
        let key = |line: &str| {
            line.strip_prefix("| `")?
                .split_once('`')
                .map(|(key, _)| key.to_owned())
        };
        let is_key = |word: &String| {
            word != ".env"
                && word
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '_'))
        };
        let documented: Vec<String> = reference.lines().filter_map(key).filter(is_key).collect();
        let documented: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
        assert_eq!(documented, known);
    }
}
