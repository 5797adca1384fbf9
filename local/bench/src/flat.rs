//! Conversion alone: the benchmark of the crate itself, its table kept.

use crate::report;
use xtask::command::{cargo, stream};
use xtask::{Result, print};

pub(crate) fn run() -> Result<()> {
    let mut table = String::new();
    let bench = cargo(&["bench", "--package=atlas-openehr", "--bench=flat"]);
    let status = stream(bench, None, |line| {
        print(line);
        table.push_str(line.trim_end());
        table.push('\n');
    })?;
    if !status.success() {
        return Err(format!("the benchmark ended with {status}").into());
    }
    report::write(
        "flat",
        "Canonical JSON to FLAT",
        &format!("```text\n{}\n```", table.trim()),
    )
}
