//! The engine alone: the example `engine` of this package, its output kept.

use super::report;
use crate::Result;
use crate::command::{cargo, stream};

pub(crate) async fn run() -> Result<()> {
    let mut section = String::new();
    let example = cargo(&[
        "run",
        "--release",
        "--quiet",
        "--package=xtask",
        "--example=engine",
    ]);
    let status = stream(example, |line| {
        section.push_str(line);
        section.push('\n');
    })
    .await?;
    if !status.success() {
        return Err(format!("the benchmark ended with {status}").into());
    }
    report::write("engine", "The engine alone", &section)
}
