//! Conversion alone: the benchmark of the crate itself, its table kept.

use super::report;
use crate::Result;
use crate::command::{cargo, stream};

pub(crate) async fn run() -> Result<()> {
    let mut table = String::new();
    let bench = cargo(&["bench", "--package=atlas-openehr", "--bench=flat"]);
    let status = stream(bench, |line| {
        table.push_str(line.trim_end());
        table.push('\n');
    })
    .await?;
    if !status.success() {
        return Err(format!("the benchmark ended with {status}").into());
    }
    report::write(
        "flat",
        "Canonical JSON to FLAT",
        &format!("```text\n{}\n```", table.trim()),
    )
}
