//! `atlas export --json` into the split store: a process that a test can kill, also between the two phases of a commit.
//!
//! The configuration is that of `atlas export`; `sqlite.path` names the folder of the store.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::export::Report;
use atlas_engine::model::Outcome;
use atlas_engine::ports::{Event, Observer};
use atlas_engine::work::Budget;
use atlas_runtime::settings::{Override, Settings, Store};
use atlas_runtime::{Environment, telemetry, wiring};
use atlas_split_store::split_store;
use clap::Parser;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Export into rows in one SQLite file and a ledger in another
#[derive(Parser)]
struct Arguments {
    /// Configuration file; sqlite.path names the folder of the store
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// incremental or full
    #[arg(long)]
    mode: Option<String>,
    /// Try everything again that is in quarantine
    #[arg(long)]
    retry: bool,
}

/// Nobody watches.
struct Unwatched;

impl Observer for Unwatched {
    fn event(&self, _event: &Event<'_>) {}
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            let causes = std::iter::successors(Some(error.as_ref()), |error| error.source());
            let line: Vec<String> = causes.map(ToString::to_string).collect();
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(std::io::stderr(), "{}", line.join(": "));
            ExitCode::from(4)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Outcome> {
    let settings = settings(arguments)?;
    let Store::Sqlite { path } = &settings.store else {
        return Err("database_target must be sqlite, and sqlite.path a folder".into());
    };
    std::fs::create_dir_all(path)?;
    let source = Arc::new(wiring::source(&settings)?);
    let store = wiring::retrying(&settings, Arc::new(split_store(path)?));
    let mut engine = wiring::engine(&settings, source, store, Arc::new(Unwatched));
    if arguments.retry {
        engine.retry_after = Duration::ZERO;
    }
    let request = wiring::request(&settings);
    let report = engine.export(&request, &Budget::default()).await?;
    if let Some(error) = &report.stopped_by {
        writeln!(std::io::stderr(), "{}", error.chain())?;
    }
    writeln!(std::io::stdout(), "{}", document(&report))?;
    Ok(report.outcome)
}

fn settings(arguments: &Arguments) -> Result<Settings> {
    let folder = arguments.config.parent().unwrap_or(Path::new(""));
    let environment = Environment::of_process().with_dotenv(folder)?;
    let mode = arguments.mode.clone().map(|value| Override {
        key: "export.mode",
        flag: "--mode",
        value,
    });
    let settings = Settings::load(&arguments.config, &environment, mode.as_slice())?;
    telemetry::init(
        settings.log_level,
        settings.log_file.as_ref(),
        std::io::stderr,
    )?;
    Ok(settings)
}

/// The members of `atlas export --json` that the sweeps look at.
fn document(report: &Report) -> serde_json::Value {
    let counts = &report.counts;
    serde_json::json!({
        "run": report.run,
        "outcome": report.outcome.name(),
        "read": counts.read,
        "written": counts.written,
        "unchanged": counts.unchanged,
        "filtered": counts.filtered,
        "quarantined": counts.quarantined,
        "deleted": counts.deleted,
    })
}
