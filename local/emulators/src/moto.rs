use std::process::Command;

use crate::Result;
use crate::process::Process;
use crate::tool::{self, run};

const VERSION: &str = "5.2.5";

/// A private AWS. It accepts any credentials and remembers nothing beyond its end.
pub struct Moto {
    endpoint: String,
    _process: Process,
}

impl Moto {
    /// Starts one. Blocks: 2 seconds, or a minute when it has to be installed first.
    ///
    /// # Errors
    /// What is missing, or what it said before it ended.
    pub fn start() -> Result<Self> {
        let folder = tool::folder(&format!("moto-{VERSION}"), |folder| {
            run("python3", &["-m", "venv", "."], folder)?;
            let package = format!("moto[server]=={VERSION}");
            run(
                folder.join("bin/python3"),
                &["-m", "pip", "install", "--quiet", &package],
                folder,
            )
        })?;
        let mut command = Command::new(folder.join("bin/python3"));
        // Not the script beside it, which knows the folder it was installed into under its old name.
        command.args(["-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
        let process = Process::start("moto", command)?;
        Ok(Self {
            endpoint: process.address(" * Running on ")?,
            _process: process,
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What a program needs in its environment to take this for AWS.
    pub fn environment(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
    }
}
