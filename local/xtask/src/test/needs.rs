//! What the servers and emulators of a test run need from Debian.

use std::path::PathBuf;
use std::process::Stdio;

use atlas_machine::{Jdk, cache_folder, postgres_programs};
use xtask::command::{command, must};
use xtask::{Result, say};

use super::tools::runs;

/// Whether this machine has what is in a package already.
type Here = fn() -> bool;

const PACKAGES: [(&str, Here); 6] = [
    ("postgresql", || {
        postgres_programs().is_ok() && runs("id", &["postgres"])
    }),
    ("pgbouncer", || runs("pgbouncer", &["--version"])),
    ("maven", || runs("mvn", &["--version"])),
    // For the emulators of the clouds.
    ("npm", || runs("npm", &["--version"])),
    ("python3-venv", || runs("python3", &["--version"])),
    ("faketime", has_faketime),
];

/// Installs what is missing, as root. What is still missing then is named by what needs it.
pub(crate) fn packages() -> Result<()> {
    let mut missing: Vec<String> = PACKAGES
        .iter()
        .filter(|(_, here)| !here())
        .map(|(package, _)| (*package).to_owned())
        .collect();
    let java = Jdk::find().is_err();
    let root = command("id", &["-u"]).output()?.stdout == b"0\n";
    if (missing.is_empty() && !java) || !root || !runs("apt-get", &["--version"]) {
        return Ok(());
    }
    must(
        command("apt-get", &["update", "-qq"]),
        "update the list of packages",
    )?;
    if java {
        missing.extend(newest_jdk()?);
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn install(missing: &[String]) -> Result<()> {
    let names = missing.join(", ");
    say(&format!("packages: installing {names}"));
    let mut install = command(
        "apt-get",
        &["install", "-y", "-qq", "--no-install-recommends"],
    );
    install
        .args(missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null());
    must(install, &format!("install {names}"))
}

/// A PgBouncer that keeps prepared statements in transaction mode, which Debian 12's does not: the tests of the pooler
/// run with both. It is compiled once into the cache folder.
pub(crate) fn newer_pgbouncer() -> Result<PathBuf> {
    let folder = cache_folder()?.join("tools/pgbouncer-1.24");
    if !folder.is_dir() {
        let build = [
            "dpkg-dev",
            "gcc",
            "make",
            "pkg-config",
            "libevent-dev",
            "libssl-dev",
        ];
        let missing: Vec<String> = build
            .iter()
            .filter(|package| !runs("dpkg", &["--status", package]))
            .map(|package| (*package).to_owned())
            .collect();
        if !missing.is_empty() {
            install(&missing)?;
        }
        say("packages: a newer PgBouncer is compiled into the cache, once");
        // Renamed when it is complete: a build that was interrupted is never taken for one.
        let unfinished = folder.with_extension("unfinished");
        let mut build = command("nice", &["-n", "19", "sh", "-c"]);
        build
            .args([include_str!("pgbouncer.sh"), "pgbouncer.sh"])
            .arg(&unfinished)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        must(build, "compile PgBouncer 1.24")?;
        std::fs::rename(&unfinished, &folder)?;
    }
    Ok(folder.join("pgbouncer"))
}

/// The newest development kit that this Debian has, if it is new enough.
fn newest_jdk() -> Result<Option<String>> {
    let list = command("apt-cache", &["pkgnames", "openjdk-"]).output()?;
    let newest = String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter_map(|package| {
            let version = package
                .strip_prefix("openjdk-")?
                .strip_suffix("-jdk-headless")?;
            version.parse::<u32>().ok()
        })
        .max()
        .filter(|version| *version >= Jdk::MIN);
    Ok(newest.map(|version| format!("openjdk-{version}-jdk-headless")))
}

/// Whether there is the library that shows workers a wrong clock.
fn has_faketime() -> bool {
    let folders = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .any(|path| path.is_file())
}
