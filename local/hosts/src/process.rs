//! A child process: started with an environment, its lines handed on, its end seen, signals sent by its id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::watch;

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Is handed each line of a child. Called from any task.
pub type Lines = Arc<dyn Fn(Stream, &str) + Send + Sync>;

/// A program with its arguments and environment.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it runs.
    pub folder: PathBuf,
    /// Added to this process' own variables.
    pub environment: BTreeMap<String, String>,
}

impl Program {
    /// A program without arguments, in a folder.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, folder: impl AsRef<Path>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
            folder: folder.as_ref().to_owned(),
            environment: BTreeMap::new(),
        }
    }
}

/// A running child. It is killed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Process {
    pid: Pid,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// Dropping it kills the child, unless it says that the child may live on.
    lives_on: Arc<watch::Sender<bool>>,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn start(program: &Program, lines: Lines) -> std::io::Result<Self> {
        let mut child = Command::new(&program.path)
            .args(&program.arguments)
            .current_dir(&program.folder)
            .envs(&program.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the host, which ends its children in their turn. One that is stopped when the host dies is ended by
            // the system, because nobody is left in its group's session to let it go on.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            .ok_or_else(|| std::io::Error::other("the child has no process id"))?;
        if let Some(out) = child.stdout.take() {
            forward(out, Stream::Out, Arc::clone(&lines));
        }
        if let Some(err) = child.stderr.take() {
            forward(err, Stream::Err, lines);
        }
        let (lives_on, mut handles) = watch::channel(false);
        let (tell, ended) = watch::channel(None);
        tokio::spawn(async move {
            let is_left_alone = tokio::select! {
                status = child.wait() => {
                    tell.send_replace(status.ok());
                    return;
                }
                // Without a change, the last handle is gone.
                changed = handles.changed() => changed.is_ok(),
            };
            if is_left_alone {
                // Its drop would kill the child.
                std::mem::forget(child);
            } else {
                let _ = child.start_kill();
                tell.send_replace(child.wait().await.ok());
            }
        });
        Ok(Self {
            pid,
            ended,
            lives_on: Arc::new(lives_on),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal; `false` if the process is gone or left alone.
    #[must_use]
    pub fn signal(&self, signal: Signal) -> bool {
        let is_ours = !*self.lives_on.borrow() && self.ended.borrow().is_none();
        is_ours && kill_process(self.pid, signal).is_ok()
    }

    /// Lets the child live on when this process has ended: from now on it gets no signal from here, and its end is not seen.
    pub fn leave_alone(&self) {
        self.lives_on.send_replace(true);
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Waits for its end; `None` if its status could not be learnt.
    pub async fn ended(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => *status,
            // The watching task is gone, and the child with it.
            Err(_) => *self.ended.borrow(),
        }
    }
}

/// Sends a signal to a process that was started here; `false` if it is gone.
#[must_use]
pub fn signal(id: i32, signal: Signal) -> bool {
    Pid::from_raw(id).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

fn forward(from: impl AsyncRead + Send + Unpin + 'static, stream: Stream, lines: Lines) {
    tokio::spawn(async move {
        let mut reader = BufReader::new(from).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            lines(stream, &line);
        }
    });
}
