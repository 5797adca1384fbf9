//! `cargo xtask`: the work on this workspace that is more than one cargo command.
//!
//! - [`test`]: everything that must hold, on real servers, with one answer.
//! - [`bench`]: measurements against something in the same run, kept in `docs/benchmarks.md`.
//! - [`fuzz`]: what is made at random, compared with a real server.
//! - [`package`]: what is uploaded to a cloud.
//! - [`command`]: how they run other programs.

mod bench;
mod command;
mod fuzz;
mod package;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Tests, benchmarks and packages of Atlas"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs every check and test; the last line says how many passed and failed
    Test(test::Options),
    /// Measures, and writes the result into docs/benchmarks.md
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Compares what is made at random with a real server
    #[command(subcommand)]
    Fuzz(fuzz::Fuzz),
    /// Builds, checks and packs the functions for a cloud, into target/package
    Package(package::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Test(options) => test::run(&options).await,
        Task::Bench(bench) => bench::run(bench).await.map(|()| ExitCode::SUCCESS),
        Task::Fuzz(fuzz) => fuzz::run(fuzz).await,
        Task::Package(options) => package::run(&options).await.map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {}", atlas_ehrbase::chain(error.as_ref())));
        ExitCode::FAILURE
    })
}

/// The answer of a task; its error is for the person at the terminal.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Tells the person at the terminal something; standard output is for results.
#[expect(clippy::print_stderr, reason = "this is where messages go")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints a line of the result.
#[expect(clippy::print_stdout, reason = "this is where results go")]
fn print(line: &str) {
    println!("{line}");
}
