//! The release programs, run from outside as a user does.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use atlas_ehrbase::{Access, Postgres};
use clap::ValueEnum;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval};

use crate::download::FETCH;
use xtask::Result;
use xtask::command::{cargo, command, must, target};

/// Where an export writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    Sqlite,
    Postgresql,
}

impl Store {
    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgresql => "PostgreSQL",
        }
    }

    /// The first and the last lines of a configuration file for an empty store: in a folder, or in a database of its own.
    pub(crate) async fn settings(
        self,
        folder: &Path,
        server: &Postgres,
    ) -> Result<(&'static str, String)> {
        Ok(match self {
            Self::Sqlite => (
                "database_target = \"sqlite\"\n",
                format!("[sqlite]\npath = {:?}\n", folder.join("copy.db")),
            ),
            Self::Postgresql => (
                "database_target = \"postgresql\"\n",
                format!(
                    "[postgresql]\nconnection_string = {:?}\nssl_mode = \"disable\"\n",
                    server.fresh_database().await?
                ),
            ),
        })
    }
}

/// How an export is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Requests at once; the bare client makes one at a time.
    pub(crate) readers: usize,
    pub(crate) format: &'static str,
}

/// A configuration file for an export into an empty store.
pub(crate) async fn configure(
    folder: &Path,
    store: Store,
    Setting { readers, format }: Setting,
    source: &Access,
    target: &Postgres,
) -> Result<PathBuf> {
    let path = folder.join(format!("{store:?}.toml"));
    // What the export before left in a folder of its own.
    let data = folder.join("data");
    if data.exists() {
        std::fs::remove_dir_all(&data)?;
    }
    std::fs::create_dir(&data)?;
    let (target, into) = store.settings(&data, target).await?;
    let text = format!(
        "{target}\n[openehr]\nbase_url = {:?}\nvendor = \"ehrbase\"\n\
         auth_type = \"basic\"\nusername = {:?}\npassword = {:?}\n\n\
         [openehr.query]\nparallel = {readers}\nbatch_size = {FETCH}\n\n\
         [export]\nexport_composition_format = \"{format}\"\nsafety_lag_seconds = 0\n\n{into}",
        source.base_url, source.user, source.password,
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// One run of a program.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) time: Duration,
    /// The most memory it ever had resident.
    pub(crate) peak_bytes: u64,
    /// Its standard output.
    pub(crate) output: String,
}

/// What an export says of itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Summary {
    pub(crate) written: usize,
    pub(crate) unchanged: usize,
    pub(crate) source_requests: usize,
    pub(crate) source_bytes: u64,
}

impl Run {
    /// What the export says; an error if it is not about so many compositions.
    pub(crate) fn summary(&self, compositions: usize) -> Result<Summary> {
        let summary: Summary = serde_json::from_str(&self.output)?;
        match summary.written + summary.unchanged {
            all if all == compositions => Ok(summary),
            some => Err(format!("{some} of {compositions} compositions arrived").into()),
        }
    }
}

/// One of the release programs, which ends when we do.
pub(crate) fn program(name: &str, arguments: &[&str]) -> Command {
    let mut program = Command::from(command(path(name), arguments));
    program.kill_on_drop(true);
    program
}

/// Builds programs of the workspace for release.
pub(crate) fn build(packages: &[&str]) -> Result<()> {
    let mut build = cargo(&["build", "--release", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    must(build, "build the release programs")
}

/// Where [`build`] has put a program.
pub(crate) fn path(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Exports with the configuration `config`; anything but a complete run is an error.
pub(crate) async fn export(config: &Path) -> Result<Run> {
    export_with(config, &[]).await
}

/// The same with further arguments.
pub(crate) async fn export_with(config: &Path, arguments: &[&str]) -> Result<Run> {
    let mut export = program("atlas", &["export", "--json", "-y", "-c"]);
    export.arg(config).args(arguments);
    measured(export).await
}

/// Runs a program that must succeed.
pub(crate) async fn measured(mut command: Command) -> Result<Run> {
    let start = Instant::now();
    let child = command.stdout(Stdio::piped()).spawn()?;
    let status = child
        .id()
        .map(|id| PathBuf::from(format!("/proc/{id}/status")));
    let end = async {
        let output = child.wait_with_output().await;
        (output, start.elapsed())
    };
    tokio::pin!(end);
    let mut peak_bytes = 0;
    // The kernel keeps the peak; it only has to be read once, but late.
    let mut tick = interval(Duration::from_millis(5));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (output, time) = loop {
        tokio::select! {
            ended = &mut end => break ended,
            _ = tick.tick() => {
                // Gone once the program has ended.
                let peak = status.as_deref().and_then(peak_of);
                peak_bytes = peak.unwrap_or(peak_bytes);
            }
        }
    };
    let output = output?;
    if !output.status.success() {
        return Err(format!("the program ended with {}", output.status).into());
    }
    Ok(Run {
        time,
        peak_bytes,
        output: String::from_utf8(output.stdout)?,
    })
}

/// The field `VmHWM` of a process status, in bytes.
fn peak_of(status: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}
