//! `cargo xtask bench`: measurements against something in the same run. Each
//! one writes its section of `docs/benchmarks.md`, with the date and the machine.
//!
//! - [`export`]: a real EHRbase into each store, beside a bare download of the same pages.
//! - [`engine`]: the engine alone, between the sample CDR and a store that forgets.
//! - [`memory`]: peak memory of an export, whatever the size of the source.
//! - [`flat`]: conversion alone.
//! - [`suite`]: the functions in a host, a million compositions by continuations.
//! - [`program`]: the release programs, their wall time and peak memory.
//! - [`download`]: the bare HTTP client.
//! - [`report`]: the page of results.

mod download;
mod engine;
mod export;
mod flat;
mod memory;
mod program;
mod report;
mod suite;

use clap::Subcommand;
use tokio::process::Command;

use crate::Result;
use crate::command::stream;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Exports a real EHRbase into each store, beside a bare download of the same pages
    Export(export::Options),
    /// The engine alone: sample CDR in one process with a store that keeps nothing
    Engine,
    /// Peak memory of an export from the sample CDR, small and large
    Memory(memory::Options),
    /// Conversion from canonical JSON to FLAT
    Flat,
    /// The function suite: a million compositions by continuations, memory, start to ready
    Suite,
}

pub(crate) async fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Export(options) => export::run(&options).await,
        Bench::Engine => engine::run().await,
        Bench::Memory(options) => memory::run(&options).await,
        Bench::Flat => flat::run().await,
        Bench::Suite => suite::run().await,
    }
}

/// Runs an example and keeps what it prints: its section.
async fn kept(example: Command) -> Result<String> {
    let mut section = String::new();
    let status = stream(example, |line| {
        section.push_str(line);
        section.push('\n');
    })
    .await?;
    if !status.success() {
        return Err(format!("the benchmark ended with {status}").into());
    }
    Ok(section)
}
