//! The test of the tests: each planted bug is caught by the simulation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs
)]

mod support;

use atlas_engine::seeded::{Bug, plant};
use support::life::{Scene, survives};

/// Each bug shows within so many seeds.
const SEEDS: u64 = 40;

#[test]
fn every_planted_bug_is_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        plant(Some(bug));
        let caught = (0..SEEDS).find(|seed| Scene::all().any(|scene| !survives(*seed, scene)));
        match caught {
            Some(seed) => eprintln!("{bug:?} shows with seed {seed}"),
            None => missed.push(bug),
        }
    }
    plant(None);
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not caught: {missed:?}");
    assert!(
        survives(0, Scene::all().next().unwrap()),
        "without a bug it survives"
    );
}
