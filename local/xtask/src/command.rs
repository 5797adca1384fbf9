//! Other programs: cargo above all.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::{Result, print};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cargo that runs us, in the root of the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    command(cargo, arguments)
}

/// A program, in the root of the workspace, which ends when we do.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a program, passing its output on, and shows each line of it to `look`.
pub(crate) async fn stream(mut command: Command, mut look: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    if let Some(output) = child.stdout.take() {
        let mut lines = BufReader::new(output).split(b'\n');
        while let Some(line) = lines.next_segment().await? {
            let line = String::from_utf8_lossy(&line);
            print(&line);
            look(&line);
        }
    }
    Ok(child.wait().await?)
}

/// Runs a program that has nothing to tell when it succeeds.
pub(crate) async fn must(mut command: Command, action: &str) -> Result<()> {
    let status = command
        .status()
        .await
        .map_err(|error| format!("failed to {action}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("failed to {action}: the command ended with {status}").into()),
    }
}
