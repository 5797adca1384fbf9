//! A private Azurite: installed once into the target folder, one process for each test that asks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use local_hosts::azure::QueueService;
use local_hosts::process::{Lines, Process, Program};
use tempfile::TempDir;
use tokio::time::timeout;

const PACKAGE: &str = "azurite@3.35.0";

/// Published by Microsoft for every emulator; it protects nothing.
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Ends with the value.
pub struct Azurite {
    endpoint: String,
    _process: Process,
    _folder: TempDir,
}

impl Azurite {
    pub async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let mut program = Program::new(installed(), folder.path());
        program.arguments = [
            "--queueHost",
            "127.0.0.1",
            "--queuePort",
            "0",
            "--skipApiVersionCheck",
            "--disableTelemetry",
            "--inMemoryPersistence",
            "--silent",
        ]
        .map(str::to_owned)
        .into();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let lines: Lines = Arc::new(move |_, line| {
            if let Some((_, url)) = line.split_once("successfully listens on ") {
                let _ = tell.send(url.trim().to_owned());
            }
        });
        let process = Process::start(&program, lines).unwrap();
        let url = timeout(Duration::from_secs(60), told.recv()).await;
        let url = url.unwrap().expect("Azurite ended before it listened");
        Self {
            endpoint: format!("{url}/devstoreaccount1"),
            _process: process,
            _folder: folder,
        }
    }

    pub fn service(&self) -> QueueService {
        QueueService::Account {
            endpoint: self.endpoint.clone(),
            account: "devstoreaccount1".to_owned(),
            key: KEY.to_owned(),
        }
    }
}

/// The queue service's program; npm brings it once.
fn installed() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one = INSTALLING.lock().unwrap();
    PROGRAM.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE);
        let program = folder.join("node_modules/.bin/azurite-queue");
        if !program.is_file() {
            std::fs::create_dir_all(&folder).unwrap();
            let install = Command::new("npm")
                .args(["install", PACKAGE, "--no-audit", "--no-fund", "--prefix"])
                .arg(&folder)
                .status();
            let done = install.expect("npm is needed for Azurite: install Node.js 20 or newer");
            assert!(done.success(), "npm could not install {PACKAGE}");
        }
        program
    })
}
