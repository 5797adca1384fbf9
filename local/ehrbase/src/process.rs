//! A server process that does not outlive this one, however this one ends.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::error::{Context, Error, ErrorKind, Result, log_tail};

/// Runs `"$@"` until it ends by itself, or is ended because standard input did;
/// in the second case the folder `$2` is removed too. Our end of that pipe is
/// closed by the kernel even when we are killed, so nothing ever stays behind.
const WATCHDOG: &str = r#"
signal=$1 folder=$2; shift 2
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ read -r _ <&3; trap '' TERM; kill -s "$signal" $server; exit 0; } & watch=$!
wait $server; status=$?
kill $watch
if wait $watch; then cd / && rm -rf "$folder"; fi
exit $status
"#;

/// The account a server runs under, when it refuses ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A server and the temporary folder it lives in; both end when this is dropped.
pub(crate) struct Guarded {
    watchdog: Child,
    folder: Option<TempDir>,
    log: PathBuf,
}

impl Guarded {
    /// Starts `program` with `arguments` in `folder`, its output going to
    /// `folder/log`. It is ended by `signal`, which must end it for sure.
    pub(crate) fn start(
        folder: TempDir,
        signal: &str,
        account: Option<Account>,
        program: &Path,
        arguments: &[String],
    ) -> Result<Self> {
        let action = || format!("start {}", program.display());
        let log = folder.path().join("log");
        let output = File::create(&log).context(ErrorKind::System, action())?;
        let errors = output.try_clone().context(ErrorKind::System, action())?;
        let mut command = Command::new("sh");
        command
            .args(["-c", WATCHDOG, "watchdog", signal])
            .arg(folder.path())
            .arg(program)
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C in a terminal reaches us; the closed pipe then ends the server.
            .process_group(0);
        if let Some(Account { uid, gid }) = account {
            command.uid(uid).gid(gid);
        }
        Ok(Self {
            watchdog: command.spawn().context(ErrorKind::System, action())?,
            folder: Some(folder),
            log,
        })
    }

    /// An error with the log's tail if the server has ended.
    pub(crate) fn check(&mut self, name: &str) -> Result<()> {
        match self.watchdog.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failure(&format!("{name} ended with {status}"))),
            Err(error) => {
                Err(Error::new(ErrorKind::System, format!("watch {name}")).because(error))
            }
        }
    }

    /// An error that ends with the last lines the server wrote.
    pub(crate) fn failure(&self, what: &str) -> Error {
        let tail = log_tail(&self.log);
        Error::new(ErrorKind::Start, "start a server for tests")
            .because(format!("{what}; the end of its log:\n{tail}"))
    }

    /// Waits until a server has ended that was told to by other means, and answers its folder.
    pub(crate) fn wait(mut self) -> Result<Option<TempDir>> {
        // Waiting closes it, and the watchdog would take that for our end and remove the folder.
        let _open = self.watchdog.stdin.take();
        self.watchdog
            .wait()
            .context(ErrorKind::System, "wait for a server to end")?;
        Ok(self.folder.take())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        // A failure here cannot be reported, and changes nothing.
        let _ = self.watchdog.wait();
    }
}

/// A folder for a server, removed with it.
pub(crate) fn temporary_folder() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("atlas-")
        .tempdir()
        .context(ErrorKind::System, "make a temporary folder")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_folder_of_a_server_that_ended_by_itself_stays() {
        for _ in 0..20 {
            let folder = temporary_folder().unwrap();
            let server = Guarded::start(
                folder,
                "KILL",
                None,
                Path::new("sleep"),
                &["0.01".to_owned()],
            );
            let folder = server.unwrap().wait().unwrap().unwrap();
            assert!(folder.path().join("log").is_file());
        }
    }
}
