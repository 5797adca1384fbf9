//! The built program, run in a folder of its own against a sample server in the test's process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use atlas_sample_cdr::{Handle, Running, SampleCdr};
use serde_json::Value;

/// A sample server that runs as long as this value lives.
pub struct Server {
    // Declared first: dropped before the runtime it needs.
    running: Running,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start(server: SampleCdr) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let running = runtime.block_on(server.start()).unwrap();
        Self {
            running,
            _runtime: runtime,
        }
    }

    pub fn with(compositions: u64) -> Self {
        Self::start(SampleCdr::builder().seed(3).compositions(compositions))
    }

    pub fn base_url(&self) -> String {
        self.running.base_url()
    }

    pub fn handle(&self) -> Handle {
        self.running.handle()
    }
}

/// A folder with a configuration, in which the program runs without variables of the outside.
pub struct Place {
    folder: tempfile::TempDir,
}

/// What the program answered.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Standard output as the one JSON document it must be.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Both outputs without the line breaks that make them fit a terminal.
    pub fn text(&self) -> String {
        let both = format!("{} {}", self.stdout, self.stderr);
        both.replace('│', " ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Place {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// With an `atlas.toml` for `server`; retries are short. `more` may begin with keys of `[openehr]`.
    pub fn for_server(server: &Server, more: &str) -> Self {
        Self::for_address(&server.base_url(), more)
    }

    pub fn for_address(base_url: &str, more: &str) -> Self {
        let place = Self::new();
        place.configure(&format!(
            "[openehr]\nbase_url = \"{base_url}\"\n{more}\n\
             [openehr.retry]\nmax_retries = 1\ninitial_delay_ms = 1\nmax_delay_ms = 1\n"
        ));
        place
    }

    pub fn configure(&self, text: &str) {
        std::fs::write(self.path("atlas.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atlas"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Answer {
        self.command(arguments).output().unwrap().into()
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub fn database(&self) -> rusqlite::Connection {
        open(&self.path("atlas.db"))
    }

    /// Compositions in the copy.
    pub fn held(&self) -> u64 {
        count(&self.database(), "SELECT count(*) FROM compositions")
    }
}

pub fn open(path: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(path).unwrap()
}

pub fn count(database: &rusqlite::Connection, query: &str) -> u64 {
    database.query_row(query, [], |row| row.get(0)).unwrap()
}

/// Waits until `condition` holds; fails loudly when it takes too long.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "still not: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
