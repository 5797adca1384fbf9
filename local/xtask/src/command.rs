//! Other programs: cargo above all.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Result;

/// The root of the workspace; the current folder if that is none, which cargo then says.
pub fn root() -> PathBuf {
    atlas_machine::checkout().unwrap_or_else(|_| PathBuf::from("."))
}

/// The folder that cargo builds into.
pub fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| root().join("target"))
}

/// The cargo that runs us, in the root of the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    command(cargo, arguments)
}

/// A program, in the root of the workspace.
pub fn command(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null());
    command
}

/// Runs a program to its end and shows each line of its standard output to `look`. Bytes that are no UTF-8 are replaced.
/// A program that runs longer than `limit` is killed.
///
/// # Errors
/// The program could not be started, its output not be read, or it ran too long.
pub fn stream(
    mut command: Command,
    limit: Option<Duration>,
    look: impl FnMut(&str),
) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| {
        let program = Path::new(command.get_program()).display();
        format!("failed to start {program}: {error}")
    })?;
    let output = child.stdout.take();
    let child = Mutex::new(child);
    let kill = || {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended already.
        let _ = child.kill();
    };
    let (done, ended) = channel::<()>();
    let (read, late) = std::thread::scope(|scope| {
        let kill = &kill;
        let watch = scope.spawn(move || {
            let late = match limit {
                Some(limit) => ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout),
                None => false,
            };
            if late {
                kill();
            }
            late
        });
        let read = output.map_or(Ok(()), |output| lines(output, look));
        if read.is_err() {
            // Nobody reads its pipe any more: it would wait for ever.
            kill();
        }
        drop(done);
        (read, watch.join().unwrap_or(false))
    });
    let mut child = child.into_inner().unwrap_or_else(PoisonError::into_inner);
    let status = child.wait()?;
    read?;
    match (late, limit) {
        (true, Some(limit)) => {
            let seconds = limit.as_secs();
            Err(format!("it was killed because it ran longer than {seconds} seconds").into())
        }
        _ => Ok(status),
    }
}

fn lines(output: impl Read, mut look: impl FnMut(&str)) -> Result<()> {
    for line in BufReader::new(output).split(b'\n') {
        look(&String::from_utf8_lossy(&line?));
    }
    Ok(())
}

/// Runs a program that has nothing to tell when it succeeds.
///
/// # Errors
/// The program could not be started, or failed; `action` says what was tried.
pub fn must(mut command: Command, action: &str) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| format!("failed to {action}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("failed to {action}: the command ended with {status}").into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_are_shown_and_the_status_is_answered() {
        let mut seen = Vec::new();
        let program = command("sh", &["-c", "echo one; echo two; exit 3"]);
        let status = stream(program, None, |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_and_named_late() {
        let program = command("sleep", &["600"]);
        let error = stream(program, Some(Duration::from_millis(20)), |_| ()).unwrap_err();
        assert!(error.to_string().contains("ran longer"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = stream(command("no-such-program", &[]), None, |_| ()).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
