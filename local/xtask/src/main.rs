//! `cargo xtask`: the work on this workspace that is more than one cargo command.
//!
//! - [`test`]: everything that must hold, on real servers, with one answer.
//! - [`soak`]: the tests again and again on a machine that has too much to do.
//! - [`package`]: what is uploaded to a cloud.
//! - [`sbom`]: what it consists of.
//!
//! The benchmarks and the fuzzing are programs of their own, `local/bench` and `local/fuzz`: they need parts of Atlas, and this
//! program is built before all of them.

mod package;
mod sbom;
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
    /// Compares what is made at random with a real server
    #[command(disable_help_flag = true)]
    Fuzz {
        /// What to make, with its options; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds, checks and packs the functions for a cloud, into target/package
    Package(package::Options),
    /// Writes what the shipped programs consist of (CycloneDX), into target/package
    Sbom,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Measure { arguments } => of_its_own("atlas-bench", &arguments),
        Task::Fuzz { arguments } => of_its_own("atlas-fuzz", &arguments),
        Task::Sbom => sbom::run().map(|()| ExitCode::SUCCESS),
        Task::Package(options) => package::run(&options).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("error: {error}"));
        ExitCode::FAILURE
    })
}

/// Runs a program that needs parts of Atlas.
fn of_its_own(package: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut program = cargo(&["run", "--quiet", "--package", package, "--"]);
    program.args(arguments);
    must(program, "run it").map(|()| ExitCode::SUCCESS)
}
