//! `atlas demo`: the whole story in a minute, against a sample server in this process.
//!
//! The server's clock stands still and is moved by hand, so that nobody waits for the safety lag.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::engine::Engine;
use atlas_engine::export::Report;
use atlas_engine::model::{Mode, Outcome, Request, TemplateCounts};
use atlas_runtime::settings::Settings;
use atlas_runtime::{Environment, telemetry, wiring};
use atlas_sample_cdr::{Clock, Commit, Handle, Running, SampleCdr, Template};
use jiff::Timestamp;
use serde_json::json;

use crate::cli::Demo;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{export, output};

const UPDATED: u64 = 40;
const ADDED: u64 = 60;
const LATE: u64 = 25;
const DELETED: u64 = 10;

pub(crate) async fn run(arguments: &Demo) -> Result<Exit, Failure> {
    let here = |name: &str| match arguments.dir.as_path() {
        dir if dir == Path::new(".") => PathBuf::from(name),
        dir => dir.join(name),
    };
    let (database, config) = (here("atlas-demo.db"), here("atlas-demo.toml"));
    remove_old_copy(&database)?;
    let server = start(arguments.compositions).await?;
    let settings = configure(&server, &database, &config)?;
    let progress = Progress::new();
    telemetry::init(settings.log_level, None, progress.clone())?;
    let demo = Stage::new(&settings, &progress, !arguments.json).await?;

    let patients = output::count(arguments.compositions / 20);
    let compositions = output::count(arguments.compositions);
    demo.say(&format!(
        "1. A sample openEHR server in this process: {compositions} compositions of {patients} synthetic patients.\n   A full export into `{}`:",
        database.display()
    ))?;
    let full = demo.export(Mode::Full).await?;
    let changes = change(&server.handle());
    demo.say(&format!(
        "\n2. The clinic goes on for ten minutes: {UPDATED} compositions updated, {ADDED} new, {LATE} that were committed earlier\n   and became visible late, {DELETED} deleted. An incremental export:"
    ))?;
    let incremental = demo.export(Mode::Incremental).await?;
    demo.say("\n3. Nothing happened since. The same again:")?;
    let idle = demo.export(Mode::Incremental).await?;

    let held: u64 = demo
        .engine
        .store
        .ledger()
        .template_counts()
        .await?
        .iter()
        .map(TemplateCounts::compositions)
        .sum();
    let visible = changes.visible;
    demo.say(&format!(
        "\nThe server shows {} compositions, the copy holds {}. The difference of {DELETED} are the deleted ones: AQL never shows\na delete, and `reconcile`, which finds them, is not part of this version yet.",
        output::count(visible),
        output::count(held)
    ))?;
    demo.say(&format!(
        "\nTry next:\n  atlas status -c {config}\n  sqlite3 {database} \"SELECT template_id, count(*) FROM compositions GROUP BY 1\"\n  atlas init && atlas doctor          # your own server",
        config = config.display(),
        database = database.display()
    ))?;
    if arguments.json {
        output::print_json(&json!({
            "database": database.display().to_string(),
            "visible": visible,
            "held": held,
            "deleted_on_server": DELETED,
            "full": export::document(&full),
            "incremental": export::document(&incremental),
            "idle": export::document(&idle),
        }))?;
    }
    // The story has one ending; anything else is a defect of Atlas.
    if held != visible + DELETED {
        return Err(Failure::new(
            Exit::Internal,
            "the copy is not what the demo expects",
        ));
    }
    Ok(Exit::Complete)
}

/// The three exports of the story have the same parts.
struct Stage<'a> {
    engine: Engine,
    request: Request,
    patience: Duration,
    progress: &'a Progress,
    is_told: bool,
}

impl<'a> Stage<'a> {
    async fn new(
        settings: &Settings,
        progress: &'a Progress,
        is_told: bool,
    ) -> Result<Self, Failure> {
        let source = Arc::new(wiring::source(settings)?);
        let store = wiring::store(settings)?;
        Ok(Self {
            engine: wiring::engine(settings, source, store, Arc::new(progress.clone())),
            request: wiring::request(settings),
            patience: settings.export.shutdown_timeout,
            progress,
            is_told,
        })
    }

    fn say(&self, text: &str) -> Result<(), Failure> {
        if self.is_told {
            output::print(text)
        } else {
            Ok(())
        }
    }

    async fn export(&self, mode: Mode) -> Result<Report, Failure> {
        let request = Request {
            mode,
            ..self.request.clone()
        };
        let finished = export::work(&self.engine, &request, self.patience, self.progress).await?;
        let export::Finished { report, signal } = finished;
        if self.is_told {
            export::show(&report)?;
        }
        if report.outcome == Outcome::Complete {
            return Ok(report);
        }
        let exit = export::exit(report, signal);
        Err(Failure::new(exit, "the demo did not come to its end"))
    }
}

async fn start(compositions: u64) -> Result<Running, Failure> {
    let server = SampleCdr::builder().seed(7).compositions(compositions);
    // The story takes ten minutes, and ends now.
    let begin = Timestamp::now() - jiff::SignedDuration::from_mins(10);
    server
        .clock(Clock::Fixed(begin))
        .start()
        .await
        .map_err(|error| {
            Failure::new(Exit::Internal, "failed to start the sample server").because(error)
        })
}

fn configure(server: &Running, database: &Path, config: &Path) -> Result<Settings, Failure> {
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string());
    let text = format!(
        "# What `atlas demo` used. Its server is gone; `atlas status` only asks the copy.\n\
         [openehr]\nbase_url = \"{}\"\n\n\
         [sqlite]\npath = {}\n",
        server.base_url(),
        quoted(database)
    );
    atlas_files::write(config, &text).map_err(|error| cannot_write(config, error))?;
    // Variables of the person's own configuration have no part in the demo.
    Ok(Settings::parse(
        &text,
        config,
        &Environment::default(),
        &[],
    )?)
}

/// The demo starts from nothing, as often as it is run.
fn remove_old_copy(database: &Path) -> Result<(), Failure> {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let path = PathBuf::from(path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(cannot_write(&path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn cannot_write(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("failed to write `{}`", path.display()),
    )
    .because(error)
    .fix("choose a folder you may write to with `--dir DIR`")
}

struct Changes {
    /// Compositions that the server shows afterwards.
    visible: u64,
}

/// Ten minutes in the clinic.
fn change(server: &Handle) -> Changes {
    let before = server.numbers();
    let began = server.now();
    // Spread over the whole server; no composition is changed twice.
    let spread = |place: u64| place * before / (UPDATED + DELETED);
    let at = |instant: Option<Timestamp>| instant.unwrap_or(began);
    let late = Commit {
        committed: at(began.checked_sub(jiff::SignedDuration::from_mins(5)).ok()),
        visible: at(began.checked_add(jiff::SignedDuration::from_mins(1)).ok()),
    };
    for place in 0..LATE {
        server.commit_at(template(place), late);
    }
    server.advance(Duration::from_secs(5 * 60));
    for place in 0..UPDATED {
        server.update(spread(place));
    }
    for place in 0..ADDED {
        server.commit(template(place));
    }
    for place in UPDATED..UPDATED + DELETED {
        server.delete(spread(place));
    }
    server.advance(Duration::from_secs(5 * 60));
    Changes {
        visible: before + LATE + ADDED - DELETED,
    }
}

fn template(place: u64) -> Template {
    match place % 10 {
        0..5 => Template::VitalSigns,
        5..8 => Template::LaboratoryReport,
        _ => Template::MedicationOrder,
    }
}
