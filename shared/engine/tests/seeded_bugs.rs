//! The test of the tests: each planted bug is caught by the simulation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs
)]

mod support;

use std::sync::Mutex;

use atlas_engine::seeded::{Bug, plant};
use support::life::{Scene, survives};

/// Each bug shows within so many seeds.
const SEEDS: u64 = 100;

#[test]
fn every_planted_bug_is_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let waiting = Mutex::new(Bug::ALL.into_iter());
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(bug) = next else { break };
                    plant(Some(bug));
                    match (0..SEEDS).find(|seed| Scene::all().any(|scene| !survives(*seed, scene)))
                    {
                        Some(seed) => eprintln!("{bug:?} shows with seed {seed}"),
                        None => missed.lock().unwrap().push(bug),
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not caught: {missed:?}");
    assert!(
        survives(0, Scene::all().next().unwrap()),
        "without a bug it survives"
    );
}
