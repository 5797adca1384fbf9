//! Programs from npm and PyPI, installed once for this machine by the first test that needs them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Context, Error, Result};

/// The folder of a tool: `tools/NAME` in the cache. `install` fills a new one if there is none; others wait meanwhile.
///
/// # Errors
/// What went wrong on the way.
pub fn folder(name: &str, install: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let action = format!("install {name}");
    let tools = atlas_machine::cache_folder()
        .context(&action)?
        .join("tools");
    let folder = tools.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&tools).context(&action)?;
    let lock = File::create(tools.join(format!("{name}.lock"))).context(&action)?;
    lock.lock().context(&action)?;
    if !folder.is_dir() {
        // Renamed when it is complete: an installation that was interrupted is never taken for one.
        let unfinished = tempfile::tempdir_in(&tools).context(&action)?;
        install(unfinished.path())?;
        std::fs::rename(unfinished.keep(), &folder).context(&action)?;
    }
    Ok(folder)
}

/// Runs a step of an installation to its end.
///
/// # Errors
/// What it printed, if it failed.
pub fn run(program: impl AsRef<Path>, arguments: &[&str], folder: &Path) -> Result<()> {
    let program = program.as_ref();
    let action = format!("run {} {}", program.display(), arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .context(&action)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::new(
        action,
        format!("it ended with {}: {said}", output.status),
    ))
}
