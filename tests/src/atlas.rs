//! The `atlas` program, run as users run it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use atlas_ehrbase::{EhrBase, shared_postgres};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::store::{Kind, Store};

/// No run of a test takes this long, unless it hangs.
const LIMIT: Duration = Duration::from_secs(180);
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// A configuration and a store of a test's own.
pub struct Atlas {
    folder: TempDir,
    program: PathBuf,
    /// What `program` needs to be told to export.
    export: &'static [&'static str],
    store: Store,
    settings: BTreeMap<String, Value>,
}

impl Atlas {
    /// Canonical JSON from a server that asks for no password, into an empty store.
    pub async fn new(kind: Kind, base_url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, settings) = match kind {
            Kind::Sqlite => {
                let path = folder.path().join("copy.db");
                let settings = vec![
                    ("sqlite.path", json!(path)),
                    ("database_target", json!("sqlite")),
                ];
                (Store::Sqlite(path), settings)
            }
            Kind::Postgres => {
                let postgres = shared_postgres().await.unwrap();
                let prepared = postgres.prepared_database(&program()).await.unwrap();
                let settings = vec![
                    ("database_target", json!("postgresql")),
                    ("postgresql.connection_string", json!(prepared.exporter)),
                    ("postgresql.ssl_mode", json!("disable")),
                ];
                (Store::Postgres(prepared.owner), settings)
            }
        };
        let atlas = Self {
            folder,
            program: program(),
            export: &["export", "--json"],
            store,
            settings: BTreeMap::new(),
        };
        atlas.with_all(settings).with_server(base_url)
    }

    /// Another program that exports by the same configuration, and needs no word for it. Of its store, in the folder that
    /// `sqlite.path` names, `rows` is the file of the rows.
    pub fn of_program(program: PathBuf, rows: &str, base_url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        let settings = vec![
            ("sqlite.path", json!(copy)),
            ("database_target", json!("sqlite")),
        ];
        let atlas = Self {
            folder,
            program,
            export: &[],
            store: Store::Sqlite(copy.join(rows)),
            settings: BTreeMap::new(),
        };
        atlas.with_all(settings).with_server(base_url)
    }

    fn with_server(self, base_url: &str) -> Self {
        self.with_all(vec![
            ("openehr.base_url", json!(base_url)),
            ("openehr.retry.initial_delay_ms", json!(10)),
            ("openehr.retry.max_delay_ms", json!(2_000)),
            ("export.export_composition_format", json!("canonical")),
            // The clocks of these servers are waited for, or stand still.
            ("export.safety_lag_seconds", json!(0)),
        ])
    }

    fn with_all(self, settings: Vec<(&str, Value)>) -> Self {
        settings
            .into_iter()
            .fold(self, |atlas, (key, value)| atlas.with(key, value))
    }

    /// The same from EHRbase, for some EHRs only: others use the server at the same time.
    pub async fn of_ehrbase(kind: Kind, ehrbase: &EhrBase, ehrs: &[&str]) -> Self {
        Self::new(kind, ehrbase.base_url())
            .await
            .with("openehr.username", json!(ehrbase.user()))
            .with("openehr.password", json!(ehrbase.password()))
            .with("openehr.query.ehr_ids", json!(ehrs))
    }

    /// Sets a key of the configuration, such as `export.mode`.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.set(key, value);
        self
    }

    /// Changes a key between two runs.
    pub fn set(&mut self, key: &str, value: Value) {
        self.settings.insert(key.to_owned(), value);
    }

    /// Where the copy is.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where the configuration is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A full or an incremental export, until its end.
    pub async fn export(&self, arguments: &[&str]) -> Run {
        self.start_export(arguments).wait().await
    }

    /// Begins an export.
    pub fn start_export(&self, arguments: &[&str]) -> Running {
        self.start(&[self.export, arguments].concat())
    }

    /// Any command, until its end.
    pub async fn run(&self, arguments: &[&str]) -> Run {
        self.start(arguments).wait().await
    }

    /// Begins any command.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("-c").arg(self.configuration());
        Running::start(command)
    }

    /// Writes the configuration; answers where it is.
    pub fn configuration(&self) -> PathBuf {
        let path = self.folder.path().join("atlas.toml");
        // Strings, numbers and lists look the same in JSON and TOML.
        let lines = self
            .settings
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        path
    }
}

/// The program that was built beside the tests, or that `ATLAS_BIN` names.
pub fn program() -> PathBuf {
    let path = std::env::var_os("ATLAS_BIN").map_or_else(
        || {
            let test = std::env::current_exe().unwrap();
            let profile = test.parent().and_then(Path::parent).unwrap();
            profile
                .join("atlas")
                .with_extension(std::env::consts::EXE_EXTENSION)
        },
        PathBuf::from,
    );
    assert!(
        path.is_file(),
        "no {}: build it with `cargo build -p atlas`",
        path.display()
    );
    path
}

/// A run that goes on. Ends with the value.
pub struct Running {
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: watch::Receiver<Vec<u8>>,
    peak: JoinHandle<u64>,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Run {
    /// As the system tells it.
    pub status: ExitStatus,
    /// The result.
    pub stdout: String,
    /// Messages and log lines.
    pub stderr: String,
    /// Most memory that was resident at once, in KiB, as `/proc` counts it; looked at every 20 ms.
    pub peak_kib: u64,
}

impl Running {
    /// Starts a program, without what the environment says about Atlas and proxies.
    pub fn start(mut command: Command) -> Self {
        let foreign = |name: &str| {
            name.starts_with("ATLAS_") || name.to_ascii_lowercase().ends_with("_proxy")
        };
        for (name, _) in std::env::vars_os() {
            if foreign(&name.to_string_lossy()) {
                command.env_remove(name);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (sender, stderr) = watch::channel(Vec::new());
        tokio::spawn(forward(child.stderr.take().unwrap(), sender));
        let peak = tokio::spawn(watch_memory(child.id().unwrap()));
        let stdout = tokio::spawn(async move {
            let mut text = Vec::new();
            stdout.read_to_end(&mut text).await.unwrap();
            text
        });
        Self {
            child,
            stdout,
            stderr,
            peak,
        }
    }

    /// Waits until the program has said this on stderr.
    pub async fn says(&mut self, text: &str) {
        let said = self
            .stderr
            .wait_for(|said| String::from_utf8_lossy(said).contains(text));
        let said = timeout(LIMIT, said).await.map(|said| said.is_ok());
        assert_eq!(said, Ok(true), "the program never said {text:?}");
    }

    /// Sends a signal, such as `TERM`; answers whether the program was still there.
    pub async fn signal(&mut self, name: &str) -> bool {
        if !self.is_running() {
            return false;
        }
        // Until it is waited for, an ended program keeps its number.
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await;
        assert!(sent.unwrap().success());
        true
    }

    /// Waits until something holds that sends no signal, for three minutes at most; answers whether the program was there all the
    /// time.
    pub async fn until(&mut self, holds: impl AsyncFn() -> bool) -> bool {
        let begun = Instant::now();
        while self.is_running() {
            if holds().await {
                return true;
            }
            assert!(begun.elapsed() < LIMIT, "the program never came there");
            sleep(Duration::from_millis(1)).await;
        }
        false
    }

    /// Whether the program has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end, for three minutes at most.
    pub async fn wait(mut self) -> Run {
        let status = timeout(LIMIT, self.child.wait())
            .await
            .expect("the program hangs")
            .unwrap();
        // The channel closes with the pipe.
        while self.stderr.changed().await.is_ok() {}
        Run {
            status,
            stdout: String::from_utf8(self.stdout.await.unwrap()).unwrap(),
            stderr: String::from_utf8(self.stderr.borrow().clone()).unwrap(),
            peak_kib: self.peak.await.unwrap(),
        }
    }
}

impl Run {
    /// The exit code; a program that was killed has none.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Holds the exit code against what it has to be; answers the JSON document on stdout.
    pub fn exits(&self, code: i32) -> Value {
        assert_eq!(self.code(), Some(code), "{}\n{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The JSON document of a run that is complete but for what is in quarantine.
    pub fn report(&self) -> Value {
        self.exits(if self.code() == Some(1) { 1 } else { 0 })
    }

    /// Holds messages against words that have to be in them, as if lines were never broken.
    pub fn says(&self, words: &[&str]) {
        let mut said = String::new();
        for line in self.stderr.lines() {
            let line = line.trim_matches([' ', '│', '×', '╰', '├', '─', '▶']);
            // Lines are broken behind hyphens too.
            if !said.ends_with('-') {
                said.push(' ');
            }
            said.push_str(line);
        }
        for word in words {
            assert!(said.contains(word), "{word:?} is not in:\n{}", self.stderr);
        }
    }
}

async fn forward(mut pipe: impl AsyncRead + Unpin, to: watch::Sender<Vec<u8>>) {
    let mut piece = [0; 8 * 1024];
    loop {
        match pipe.read(&mut piece).await.unwrap() {
            0 => return,
            length => to.send_modify(|text| text.extend_from_slice(&piece[..length])),
        }
    }
}

/// The largest `VmHWM` that was seen until the process ended.
async fn watch_memory(pid: u32) -> u64 {
    let mut peak = 0;
    while let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        // A process that has ended, and that nobody has waited for yet, has no memory any more.
        let Some(line) = line else { return peak };
        let kib: u64 = line.trim_end_matches("kB").trim().parse().unwrap();
        peak = peak.max(kib);
        sleep(SAMPLE_EVERY).await;
    }
    peak
}
