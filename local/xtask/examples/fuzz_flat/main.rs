//! `cargo xtask fuzz flat`: compositions made at random, FLAT of a live EHRbase beside ours.
//!
//! It is an example so that `cargo xtask` itself builds without any part of Atlas.
#![allow(clippy::print_stdout)]

mod campaign;

use std::process::ExitCode;

use campaign::{Campaign, Outcome};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<u64>());
    let (seeds, first) = match (numbers.next(), numbers.next()) {
        (Some(seeds), Some(first)) => (seeds?, first?),
        _ => return Err("usage: fuzz_flat SEEDS FIRST_SEED".into()),
    };
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
