//! The servers of one test run: a program of the workspace starts them and says how tests find them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use xtask::Result;
use xtask::command::command;

/// PostgreSQL and EHRbase with the corpus. They end when this is dropped, or when this process ends, however it ends:
/// their standard input does then.
pub(crate) struct Servers {
    program: Child,
    environment: BTreeMap<String, String>,
}

impl Servers {
    /// Starts them by `program` and waits until they are ready.
    pub(crate) fn start(program: &Path) -> Result<Self> {
        let mut servers = Self {
            program: command(program, &[])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?,
            environment: BTreeMap::new(),
        };
        let output = servers.program.stdout.take();
        let output = output.ok_or("the servers' program has no output")?;
        let mut ready = String::new();
        BufReader::new(output).read_line(&mut ready)?;
        if ready.is_empty() {
            return Err("the servers did not start; the reason is above".into());
        }
        servers.environment = serde_json::from_str(&ready)?;
        Ok(servers)
    }

    /// The variables by which tests find them.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.program.stdin.take());
        // A failure here cannot be reported, and changes nothing.
        let _ = self.program.wait();
    }
}
