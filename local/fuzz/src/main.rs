//! `cargo xtask fuzz`: uses the EHRbase that the environment names, else starts one with the corpus in it.
#![allow(clippy::print_stdout, reason = "results go to standard output")]

use std::process::ExitCode;

use atlas_fuzz::Result;
use atlas_fuzz::campaign::{Campaign, Outcome};
use clap::{Args, Parser};

#[derive(Parser)]
#[command(name = "cargo xtask fuzz")]
enum Fuzz {
    /// FLAT of compositions made at random, beside that of a real EHRbase; exit code 1 if any differs
    Flat(Options),
}

#[derive(Args)]
struct Options {
    /// How many compositions
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first seed; the others follow it. One seed is always the same composition
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Fuzz::Flat(Options { seeds, seed: first }) = Fuzz::parse();
    let campaign = Campaign::start().await?;
    println!("{} compositions to start from", campaign.bases());
    let (mut equal, mut refused, mut different) = (0, 0, 0);
    for seed in first..first.saturating_add(seeds) {
        match campaign.run(seed).await? {
            Outcome::Equal => equal += 1,
            Outcome::Refused => refused += 1,
            Outcome::Different { template, keys } => {
                different += 1;
                println!("seed {seed}: `{template}` differs");
                for key in keys {
                    println!("  {key}");
                }
            }
        }
    }
    println!("{equal} equal, {different} different, {refused} refused by the server");
    Ok(match different {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
