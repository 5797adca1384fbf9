//! Random histories of a CDR, random faults, runs that are killed at random instants: in the end the copy equals the
//! source. Single-threaded, under a simulated clock, the same for the same seed. `ATLAS_SIMULATION_SEEDS` widens the search.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::ErrorKind;
use atlas_engine::export::Report;
use atlas_engine::memory::{Commits, Fault, MemoryStore};
use atlas_engine::model::{Mode, QuarantineFilter};
use atlas_engine::ports::Store;
use atlas_engine::work::Budget;
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use support::{BEGIN, World, copy, engine, request, template_id};

/// That of [`atlas_engine::plan::PlanTerms`] by default.
const SAFETY_LAG: Duration = Duration::from_secs(60);

/// That of [`atlas_engine::plan::PlanTerms`] by default.
const OVERLAP: Duration = Duration::from_secs(900);

struct History {
    rng: fastrand::Rng,
    world: Arc<World>,
    objects: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = World::new(rng.u64(..), 4);
        let mut history = Self {
            rng,
            world,
            objects: 0,
        };
        let begin = Instant::parse(BEGIN)
            .unwrap()
            .saturating_sub(Duration::from_secs(500_000));
        let mut at = begin;
        for _ in 0..history.rng.u64(20..250) {
            if history.rng.u8(0..10) > 0 {
                at = at.saturating_add(Duration::from_micros(history.rng.u64(1..2_000_000_000)));
            }
            history.create(at, Duration::ZERO);
        }
        history
    }

    fn create(&mut self, at: Instant, late: Duration) {
        let template = self.rng.usize(0..3);
        let unreadable = self.rng.u8(0..40) == 0;
        self.world.put(self.objects, template, at, late, unreadable);
        self.objects += 1;
    }

    fn live_on(&mut self) {
        let now = self.world.now();
        for _ in 0..self.rng.u64(0..12) {
            let late = Duration::from_secs(self.rng.u64(0..400));
            if self.rng.bool() {
                self.create(now, late);
            } else {
                let object = self.rng.u64(0..self.objects);
                self.world.commit(object, (object % 3) as usize, now, late);
            }
        }
    }

    fn faults(&mut self, store: &MemoryStore) {
        self.world
            .flaky(*[0, 0, 3, 20].get(self.rng.usize(0..4)).unwrap());
        let script: Vec<Option<Fault>> = (0..self.rng.usize(0..8))
            .map(|_| {
                let kind = if self.rng.u8(0..4) == 0 {
                    ErrorKind::StoreFull
                } else {
                    ErrorKind::StoreUnreachable
                };
                match self.rng.u8(0..6) {
                    0 => Some(Fault::Refuse(kind)),
                    1 => Some(Fault::LoseAnswer(kind)),
                    2 => Some(Fault::DieBetween(kind)),
                    _ => None,
                }
            })
            .collect();
        store.script(script);
    }
}

async fn quarantined(store: &MemoryStore) -> BTreeSet<ObjectId> {
    store
        .ledger()
        .quarantined(&QuarantineFilter::default(), usize::MAX)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.meta.uid.object_id().clone())
        .collect()
}

/// Promise P7: whatever the source showed in time when the run began, and lies before a watermark, is in the store or in
/// quarantine. What became visible later than the safety lag is found by the overlap, possibly by the next run.
async fn watermarks_hold(
    store: &MemoryStore,
    shown: &[support::Version],
    seen: &mut BTreeMap<String, Instant>,
) {
    let key = request(Mode::Incremental).selection.key();
    let held: BTreeMap<ObjectId, u32> = store
        .compositions()
        .into_iter()
        .map(|row| (row.meta.uid.object_id().clone(), row.meta.uid.version()))
        .collect();
    let waiting = quarantined(store).await;
    for watermark in store.ledger().watermarks(&key).await.unwrap() {
        let before = seen.insert(watermark.template.to_string(), watermark.until);
        assert!(before <= Some(watermark.until), "a watermark went back");
        for version in shown {
            let in_time = version.visible.duration_since(version.committed) <= SAFETY_LAG;
            if template_id(version.template) == watermark.template
                && version.committed < watermark.until
                && in_time
            {
                let object = support::object_id(version.object);
                let there = held
                    .get(&object)
                    .is_some_and(|held| *held >= version.version);
                assert!(
                    there || waiting.contains(&object),
                    "the watermark passed {version:?}"
                );
            }
        }
    }
}

async fn live_through(seed: u64, commits: Commits) {
    let mut history = History::new(seed);
    let store = MemoryStore::new(commits);
    let mut watermarks = BTreeMap::new();
    for _ in 0..history.rng.usize(2..9) {
        history.live_on();
        history.faults(&store);
        let pause = history.rng.u64(0..300);
        tokio::time::advance(Duration::from_secs(pause)).await;
        let shown = history.world.shown();
        let mode = if history.rng.u8(0..5) == 0 {
            Mode::Full
        } else {
            Mode::Incremental
        };
        let patience = Duration::from_millis(history.rng.u64(1..3000));
        // Dropping the run in the middle is what a kill leaves behind: only what was committed.
        let process = engine(&history.world, &store);
        let mut asked = request(mode);
        if history.rng.u8(0..3) == 0 {
            asked.templates = vec![template_id(history.rng.usize(0..3))];
        }
        let budget = Budget::default();
        if let Ok(Ok(report)) =
            tokio::time::timeout(patience, process.export(&asked, &budget)).await
        {
            assert!(report.counts.conserved(), "{:?}", report.counts);
        }
        drop(process);
        if history.rng.bool() {
            watermarks_hold(&store, &shown, &mut watermarks).await;
        }
    }

    history.world.flaky(0);
    store.script(std::iter::empty());
    tokio::time::advance(Duration::from_secs(700)).await;
    let mut last: Option<Report> = None;
    // The script may hold faults that no commit has met yet.
    for _ in 0..12 {
        let process = engine(&history.world, &store);
        last = process
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .ok();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let quiet = last.as_ref().expect("a quiet run ends well");
    assert!(
        quiet.usage.requests <= 4,
        "{} requests of an idle run",
        quiet.usage.requests
    );
    // Once more, so that what was committed last lies before what is compared.
    for _ in 0..2 {
        tokio::time::advance(OVERLAP).await;
        last = engine(&history.world, &store)
            .export(&request(Mode::Incremental), &Budget::default())
            .await
            .ok();
    }
    let last = last.expect("a quiet run ends well");
    assert_eq!(last.counts.written, 0);
    assert_eq!(last.usage.requests, 2, "an idle run asks twice");
    assert_eq!(
        copy_of_latest(&store, &history.world),
        history.world.truth()
    );
    assert!(
        history
            .world
            .unreadable()
            .is_subset(&quarantined(&store).await)
    );
}

/// An object whose newest version is unreadable keeps the older one that was readable: leave it out of the comparison.
fn copy_of_latest(store: &MemoryStore, world: &World) -> BTreeMap<(ObjectId, u32), String> {
    let unreadable = world.unreadable();
    copy(store)
        .into_iter()
        .filter(|((object, _), _)| !unreadable.contains(object))
        .collect()
}

#[test]
fn whatever_happens_the_copy_equals_the_source_in_the_end() {
    let seeds = std::env::var("ATLAS_SIMULATION_SEEDS").map_or(60, |seeds| {
        seeds.parse().expect("ATLAS_SIMULATION_SEEDS is a number")
    });
    for seed in 0..seeds {
        for commits in Commits::ALL {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                runtime.block_on(live_through(seed, commits));
            }));
            assert!(lived.is_ok(), "seed {seed}, {commits:?}");
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
            let history = History::new(seed);
            let store = MemoryStore::new(Commits::InOneTransaction);
            engine(&history.world, &store)
                .export(&request(Mode::Incremental), &Budget::default())
                .await
                .unwrap();
            let requests = history.world.requests();
            (store.commits(), requests, history.world.now())
        })
    };
    assert_eq!(commits(77), commits(77));
}
