//! EHRbase's program: its published packages and a main class of ours
//! (`launcher/`), built once with Maven and kept in the cache folder.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use atlas_machine::{Jdk, cache_folder};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, ErrorKind, Result};

const POM: &str = include_str!("../launcher/pom.xml");
const MAIN: &str = include_str!("../launcher/src/main/java/atlas/Launcher.java");
const MAIN_PATH: &str = "src/main/java/atlas/Launcher.java";

/// The key under which everything is kept that depends on the program.
pub(crate) fn key() -> String {
    let mut hash = Sha256::new();
    hash.update(POM);
    hash.update(MAIN);
    hex(&hash.finalize()[..8])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The program as one jar; builds it if the cache has none. Blocks for a minute then.
pub(crate) fn jar(jdk: &Jdk) -> Result<PathBuf> {
    let cache = cache_folder()?;
    std::fs::create_dir_all(&cache).context(ErrorKind::System, "make the cache folder")?;
    let jar = cache.join(format!("ehrbase-{}.jar", key()));
    if jar.is_file() {
        return Ok(jar);
    }
    let lock = File::create(cache.join("ehrbase.lock"))
        .context(ErrorKind::System, "make a lock file in the cache")?;
    lock.lock()
        .context(ErrorKind::System, "wait for another build of EHRbase")?;
    if !jar.is_file() {
        build(jdk, &cache, &jar)?;
    }
    Ok(jar)
}

fn build(jdk: &Jdk, cache: &Path, jar: &Path) -> Result<()> {
    let action = "build EHRbase from its published packages";
    // Beside the jar, so that the last step is a rename within one file system.
    let folder = tempfile::tempdir_in(cache).context(ErrorKind::System, action)?;
    let main = folder.path().join(MAIN_PATH);
    let sources = main.parent().unwrap_or(folder.path());
    std::fs::create_dir_all(sources).context(ErrorKind::System, action)?;
    std::fs::write(&main, MAIN).context(ErrorKind::System, action)?;
    std::fs::write(folder.path().join("pom.xml"), POM).context(ErrorKind::System, action)?;
    let output = Command::new("mvn")
        .args(["--quiet", "--batch-mode", "package"])
        .current_dir(folder.path())
        .env("JAVA_HOME", &jdk.home)
        .output()
        .map_err(|error| {
            Error::new(ErrorKind::Missing, "run Maven (mvn)")
                .fix("install it (Debian: apt-get install maven)")
                .because(error)
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = said.lines().filter(|line| line.contains("ERROR")).take(12);
        let said = errors.collect::<Vec<_>>().join("\n");
        return Err(Error::new(ErrorKind::Start, action)
            .fix("Maven needs to reach its central repository, once")
            .because(said));
    }
    std::fs::rename(folder.path().join("target/ehrbase.jar"), jar)
        .context(ErrorKind::System, action)
}
