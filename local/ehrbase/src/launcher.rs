//! EHRbase's program: its published packages and a main class of ours
//! (`launcher/`), built once with Maven and kept in the cache folder.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, ErrorKind, Result};

const POM: &str = include_str!("../launcher/pom.xml");
const MAIN: &str = include_str!("../launcher/src/main/java/atlas/Launcher.java");
const MAIN_PATH: &str = "src/main/java/atlas/Launcher.java";
const JAVA_MIN: u32 = 21;
const INSTALL_JAVA: &str = "install a JDK, 21 or newer (Debian 13: apt-get install openjdk-21-jdk-headless), or set JAVA_HOME to one";

/// Where things live that are made once: `$ATLAS_CACHE`, else `atlas` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name: &str| -> Option<OsString> {
        std::env::var_os(name).filter(|value| !value.is_empty())
    };
    variable("ATLAS_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("atlas")))
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache/atlas")))
        .ok_or_else(|| {
            Error::new(ErrorKind::Missing, "find a cache folder").fix("set ATLAS_CACHE to one")
        })
}

/// Whether a JDK is installed on which EHRbase can be built and run.
pub fn has_java() -> bool {
    Jdk::find().is_ok()
}

/// A development kit: its folder and feature version.
#[derive(Debug)]
pub(crate) struct Jdk {
    home: PathBuf,
    version: u32,
}

impl Jdk {
    /// The newest of `JAVA_HOME`, the `java` on the path and those in `/usr/lib/jvm`.
    pub(crate) fn find() -> Result<Self> {
        let named = std::env::var_os("JAVA_HOME").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).find_map(|folder| {
            let java = folder.join("java").canonicalize().ok()?;
            Some(java.parent()?.parent()?.to_owned())
        });
        let installed = std::fs::read_dir("/usr/lib/jvm")
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_else(|_| Vec::new());
        named
            .into_iter()
            .chain(on_path)
            .chain(installed)
            .filter(|home| home.join("bin/javac").is_file())
            .filter_map(|home| {
                let version = version(&home)?;
                Some(Self { home, version })
            })
            .max_by_key(|jdk| jdk.version)
            .filter(|jdk| jdk.version >= JAVA_MIN)
            .ok_or_else(|| {
                Error::new(ErrorKind::Missing, format!("find Java {JAVA_MIN}")).fix(INSTALL_JAVA)
            })
    }

    pub(crate) fn java(&self) -> PathBuf {
        self.home.join("bin/java")
    }
}

/// The feature version that the file `release` of a Java home names.
fn version(home: &Path) -> Option<u32> {
    let release = std::fs::read_to_string(home.join("release")).ok()?;
    let version = release
        .lines()
        .find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
    let digits = version
        .trim_matches('"')
        .split(['.', '-', '+', '_'])
        .next()?;
    digits.parse().ok()
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_feature_version_of_a_java_home_is_read_from_its_release_file() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(version(home.path()), None);
        for (release, feature) in [("25.0.1", 25), ("21", 21), ("17.0.15+6", 17)] {
            let text = format!("IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"{release}\"\n");
            std::fs::write(home.path().join("release"), text).unwrap();
            assert_eq!(version(home.path()), Some(feature));
        }
    }
}
