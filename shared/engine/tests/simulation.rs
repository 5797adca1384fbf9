//! Random lives of a CDR and of its copy, in every mode of the twin, with and without tokens. `ATLAS_SIMULATION_SEEDS` widens
//! the search, `ATLAS_SIMULATION_SEED` replays one seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::model::Mode;
use atlas_engine::work::Budget;
use support::life::{Scene, survives};
use support::{World, engine, request};

#[test]
fn whatever_happens_the_copy_equals_the_source_in_the_end() {
    // One seed alone, to replay it.
    if let Ok(seed) = std::env::var("ATLAS_SIMULATION_SEED") {
        let seed = seed.parse().expect("ATLAS_SIMULATION_SEED is a number");
        for scene in Scene::all() {
            assert!(survives(seed, scene), "seed {seed}, {scene:?}");
        }
        return;
    }
    let seeds = std::env::var("ATLAS_SIMULATION_SEEDS").map_or(20, |seeds| {
        seeds.parse().expect("ATLAS_SIMULATION_SEEDS is a number")
    });
    for seed in 0..seeds {
        for scene in Scene::all() {
            assert!(survives(seed, scene), "seed {seed}, {scene:?}");
        }
    }
}

#[test]
fn the_same_seed_lives_the_same_life() {
    let commits = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::with_some_life(seed);
            let store = MemoryStore::new(Commits::InOneTransaction);
            engine(&world, &store)
                .export(&request(Mode::Incremental), &Budget::default())
                .await
                .unwrap();
            (store.commits(), world.requests(), world.now())
        })
    };
    assert_eq!(commits(77), commits(77));
}
