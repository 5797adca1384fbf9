//! `cargo xtask`: the work on this workspace that is more than one cargo command.
//!
//! - [`test`]: everything that must hold, on real servers, with one answer.
//! - [`soak`]: the tests again and again on a machine that has too much to do.
//! - [`package`]: what is uploaded to a cloud.
//!
//! The benchmarks are a program of their own, `local/bench`: they need parts of Atlas, and this program is built before
//! all of them.

mod package;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::command::{cargo, must};
use xtask::{Result, say};

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
    /// Runs the tests several times under load; the last line says how many passed and failed
    Soak(soak::Options),
    /// Measures, and writes the result into docs/benchmarks.md
    #[command(name = "bench", disable_help_flag = true)]
    Measure {
        /// What to measure, with its options; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds, checks and packs the functions for a cloud, into target/package
    Package(package::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Measure { arguments } => bench(&arguments),
        Task::Package(options) => package::run(&options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {error}"));
        ExitCode::FAILURE
    })
}

fn bench(arguments: &[String]) -> Result<ExitCode> {
    let mut bench = cargo(&["run", "--quiet", "--package=atlas-bench", "--"]);
    bench.args(arguments);
    must(bench, "measure").map(|()| ExitCode::SUCCESS)
}
