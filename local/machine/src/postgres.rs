//! The programs of a PostgreSQL server.

use std::path::PathBuf;
use std::process::Command;

use crate::Missing;

/// The folder with `initdb` and `postgres`: where `pg_config` says, where Debian puts the newest, or on the path.
///
/// # Errors
/// No server is installed.
pub fn postgres_programs() -> Result<PathBuf, Missing> {
    let asked = Command::new("pg_config").arg("--bindir").output().ok();
    let asked = asked
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut debian: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    debian.sort_by_key(|path| {
        let version = path.file_name().and_then(|name| name.to_str());
        std::cmp::Reverse(version.and_then(|version| version.parse::<u32>().ok()))
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    asked
        .into_iter()
        .chain(debian.into_iter().map(|version| version.join("bin")))
        .chain(std::env::split_paths(&path))
        .find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
        .ok_or_else(|| Missing {
            action: "find PostgreSQL's initdb".to_owned(),
            fix: "install the PostgreSQL server, 15 or newer (Debian: apt-get install postgresql)",
        })
}
