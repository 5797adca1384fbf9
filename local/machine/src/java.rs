//! Java development kits.

use std::path::{Path, PathBuf};

use crate::Missing;

const INSTALL: &str = "install a JDK, 21 or newer (Debian 13: apt-get install openjdk-21-jdk-headless), or set JAVA_HOME to one";

/// A development kit on which EHRbase can be built and run.
#[derive(Debug, Clone)]
pub struct Jdk {
    /// The folder that `JAVA_HOME` names.
    pub home: PathBuf,
    /// The feature version, such as 21.
    pub version: u32,
}

impl Jdk {
    /// The oldest feature version that EHRbase runs on.
    pub const MIN: u32 = 21;

    /// The newest of `JAVA_HOME`, the `java` on the path and those in `/usr/lib/jvm`.
    ///
    /// # Errors
    /// None of them is new enough.
    pub fn find() -> Result<Self, Missing> {
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
            .filter(|jdk| jdk.version >= Self::MIN)
            .ok_or_else(|| Missing {
                action: format!("find Java {}", Self::MIN),
                fix: INSTALL,
            })
    }

    /// The program that runs Java.
    pub fn java(&self) -> PathBuf {
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
