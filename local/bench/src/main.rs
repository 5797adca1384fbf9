//! `cargo xtask bench`: measurements against something in the same run. Each
//! one writes its section of `docs/benchmarks.md`, with the date and the machine.
//!
//! - [`export`]: a real EHRbase into each store, beside a bare download of the same pages.
//! - [`engine`]: the engine alone, between the sample CDR and a store that forgets.
//! - [`memory`]: peak memory of an export, whatever the size of the source.
//! - [`flat`]: conversion alone.
//! - [`slices`]: ten thousand slices, two and forty workers, two slots.
//! - [`templates`]: a real EHRbase with hundreds of templates, beside a bare client that reads in commit order.
//! - [`plan`]: a plan of a hundred million compositions.
//! - [`suite`]: the functions in a host, a million compositions by continuations.
//! - [`program`]: the release programs, their wall time and peak memory.
//! - [`download`]: the bare HTTP client.
//! - [`relay`]: counts requests.
//! - [`report`]: the page of results.

mod download;
mod engine;
mod export;
mod flat;
mod memory;
mod plan;
mod program;
mod relay;
mod report;
mod slices;
mod suite;
mod templates;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use xtask::command::{cargo, stream};
use xtask::{Result, print, say};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    about = "Measures, and writes the result into docs/benchmarks.md"
)]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Exports a real EHRbase into each store, beside a bare download of the same pages
    Export(export::Options),
    /// The engine alone: sample CDR in one process with a store that keeps nothing
    Engine,
    /// Peak memory of an export from the sample CDR, small and large
    Memory(memory::Options),
    /// Conversion from canonical JSON to FLAT
    Flat,
    /// Ten thousand slices with two and with forty workers on two slots: deliveries, store calls, time
    Slices,
    /// Exports a real EHRbase with hundreds of templates, beside a bare client that reads all of them in commit order
    Templates(templates::Options),
    /// A plan of a hundred million compositions: memory, requests, time
    Plan,
    /// The function suite: a million compositions by continuations, memory, start to ready
    Suite,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().measurement {
        Measurement::Export(options) => export::run(&options).await,
        Measurement::Engine => engine::run(),
        Measurement::Memory(options) => memory::run(&options).await,
        Measurement::Flat => flat::run(),
        Measurement::Slices => slices::run(),
        Measurement::Templates(options) => templates::run(&options).await,
        Measurement::Plan => plan::run().await,
        Measurement::Suite => suite::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", atlas_ehrbase::chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

/// An example with optimisation, which `cargo xtask bench` itself lacks.
fn example(package: &str, name: &str) -> Command {
    cargo(&[
        "run",
        "--release",
        "--quiet",
        "--package",
        package,
        "--example",
        name,
    ])
}

/// Runs an example and keeps what it prints: its section.
fn kept(example: Command) -> Result<String> {
    let mut section = String::new();
    let status = stream(example, None, |line| {
        print(line);
        section.push_str(line);
        section.push('\n');
    })?;
    if !status.success() {
        return Err(format!("the benchmark ended with {status}").into());
    }
    Ok(section)
}
