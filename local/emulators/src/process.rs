//! A server as a child process that says on a pipe where it listens.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::{Context, Error, Result};

const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server; killed when dropped.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a server. Both of its outputs are read to their ends, so that it never waits for us.
    pub(crate) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(&format!("start {name}"))?;
        let (sender, lines) = channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for pipe in outputs.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    // There is no listener after the start.
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Self { name, child, lines })
    }

    /// The address that follows `marker` in a line of the server, once it says so.
    pub(crate) fn address(&self, marker: &str) -> Result<String> {
        let action = format!("start {}", self.name);
        let limit = Instant::now() + START_LIMIT;
        let mut said = String::new();
        loop {
            let line = match self
                .lines
                .recv_timeout(limit.saturating_duration_since(Instant::now()))
            {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(action, format!("it ended and said: {said}")));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let cause = format!("it was not ready in time and said: {said}");
                    return Err(Error::new(action, cause));
                }
            };
            if let Some((_, address)) = line.split_once(marker) {
                return Ok(address.trim().trim_end_matches('/').to_owned());
            }
            said.push_str(&line);
            said.push('\n');
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
