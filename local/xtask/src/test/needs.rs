//! What a test run needs on this machine. Missing parts are installed where
//! that is possible: Debian packages as root, cargo's own into the cache folder.

use std::path::PathBuf;
use std::process::Stdio;

use crate::command::{cargo, command, must};
use crate::{Result, say};

const CARGO_DENY: &str = "0.20.2";
const JAVA_MIN: u32 = 21;

/// The program cargo-deny, from the path or from the cache, installed there if need be.
pub(crate) async fn cargo_deny() -> Result<PathBuf> {
    if runs("cargo-deny", "--version").await {
        return Ok("cargo-deny".into());
    }
    let tools = atlas_ehrbase::cache_folder()?.join("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.is_file() {
        say("installing cargo-deny into the cache folder, once");
        let version = format!("cargo-deny@{CARGO_DENY}");
        let mut install = cargo(&["install", "--locked", "--debug", "--quiet", &version]);
        install.arg("--root").arg(&tools);
        must(install, "install cargo-deny").await?;
    }
    Ok(program)
}

/// Installs what the servers need and what Debian has of it. What is still
/// missing then is named by the start of the servers.
pub(crate) async fn packages() -> Result<()> {
    let mut missing = Vec::new();
    if !atlas_ehrbase::has_postgres() {
        missing.push("postgresql".to_owned());
    }
    if !runs("mvn", "--version").await {
        missing.push("maven".to_owned());
    }
    // For the emulators of the clouds.
    if !runs("npm", "--version").await {
        missing.push("npm".to_owned());
    }
    if !runs("python3", "--version").await {
        missing.push("python3-venv".to_owned());
    }
    if !has_faketime() {
        missing.push("faketime".to_owned());
    }
    let java = !atlas_ehrbase::has_java();
    let root = command("id", &["-u"]).output().await?.stdout == b"0\n";
    if (missing.is_empty() && !java) || !root || !runs("apt-get", "--version").await {
        return Ok(());
    }
    must(
        command("apt-get", &["update", "-qq"]),
        "update the list of packages",
    )
    .await?;
    if java {
        missing.extend(newest_jdk().await?);
    }
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(", ")));
    let mut install = command(
        "apt-get",
        &["install", "-y", "-qq", "--no-install-recommends"],
    );
    install
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null());
    must(install, &format!("install {}", missing.join(", "))).await
}

/// The newest development kit that this Debian has, if it is new enough.
async fn newest_jdk() -> Result<Option<String>> {
    let list = command("apt-cache", &["pkgnames", "openjdk-"])
        .output()
        .await?;
    let newest = String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter_map(|package| {
            let version = package
                .strip_prefix("openjdk-")?
                .strip_suffix("-jdk-headless")?;
            version.parse::<u32>().ok()
        })
        .max()
        .filter(|version| *version >= JAVA_MIN);
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

async fn runs(program: &str, argument: &str) -> bool {
    let run = command(program, &[argument])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    run.is_ok_and(|status| status.success())
}
