//! `cargo xtask fuzz`: what is made at random, compared with a real server.

use std::process::ExitCode;

use atlas_ehrbase::ENV_EHRBASE;
use clap::{Args, Subcommand};

use crate::Result;
use crate::command::{cargo, stream};
use crate::test::servers::Servers;

#[derive(Subcommand)]
pub(crate) enum Fuzz {
    /// FLAT of compositions made at random, beside that of a real EHRbase; exit code 1 if any differs
    Flat(Options),
}

#[derive(Args)]
pub(crate) struct Options {
    /// How many compositions
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first seed; the others follow it. One seed is always the same composition
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Uses the server that the environment names, else starts one with the corpus in it.
pub(crate) async fn run(Fuzz::Flat(options): Fuzz) -> Result<ExitCode> {
    let own = match std::env::var_os(ENV_EHRBASE) {
        Some(_) => None,
        None => Some(Servers::start().await?),
    };
    let mut example = cargo(&[
        "run",
        "--quiet",
        "--package=xtask",
        "--example=fuzz_flat",
        "--",
    ]);
    example.args([options.seeds.to_string(), options.seed.to_string()]);
    if let Some(servers) = &own {
        example.envs(servers.environment());
    }
    let status = stream(example, |_| {}).await?;
    Ok(match status.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
