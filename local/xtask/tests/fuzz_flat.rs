//! A few seeds of `cargo xtask fuzz flat` in every test run.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../examples/fuzz_flat/campaign/mod.rs"]
mod campaign;

use atlas_ehrbase::ENV_EHRBASE;
use campaign::{Campaign, Outcome};

/// So many compositions take a few seconds.
const SEEDS: std::ops::Range<u64> = 1..61;

#[tokio::test(flavor = "multi_thread")]
async fn flat_of_compositions_made_at_random_equals_the_servers() {
    if std::env::var_os(ENV_EHRBASE).is_none() {
        println!("skipped: {ENV_EHRBASE} names no server; `cargo xtask test` does");
        return;
    }
    let campaign = Campaign::start().await.unwrap();
    assert!(campaign.bases() > 300);
    let (mut compared, mut different) = (0, Vec::new());
    for seed in SEEDS {
        match campaign.run(seed).await.unwrap() {
            Outcome::Equal => compared += 1,
            Outcome::Refused => {}
            Outcome::Different { template, keys } => different.push((seed, template, keys)),
        }
    }
    assert!(different.is_empty(), "{different:#?}");
    assert!(
        compared > 10,
        "the server refused nearly all: {compared} were compared"
    );
}
