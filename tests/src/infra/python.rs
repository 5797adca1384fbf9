//! Scripts beside this file, in an environment with the packages they need.

use std::process::Command;

use atlas_emulators::tool;

use super::{output, root};

const PACKAGES: [&str; 2] = ["boto3==1.44.8", "pycep-parser==0.5.1"];

/// Runs a script and reads the document it prints.
///
/// # Errors
/// What it printed, if it failed.
pub fn script(name: &str, arguments: &[&str]) -> Result<serde_json::Value, String> {
    let environment = tool::folder(&format!("infra-{}", PACKAGES.join("-")), |folder| {
        tool::run("python3", &["-m", "venv", "."], folder)?;
        let install = ["-m", "pip", "install", "--quiet"];
        let python = folder.join("bin/python3");
        tool::run(python, &[&install[..], &PACKAGES].concat(), folder)
    });
    let mut command = Command::new(environment.unwrap().join("bin/python3"));
    command
        .arg(root().join("tests/src/infra").join(name))
        .args(arguments);
    output(&mut command)
        .map(|text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}")))
}
