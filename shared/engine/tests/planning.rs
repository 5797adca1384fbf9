//! Planning is kept as it is made: whoever plans a run goes on where the last one stopped, up to the same cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::engine::Engine;
use atlas_engine::error::ErrorKind;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::model::{Mode, Outcome, RunPhase};
use atlas_engine::plan::PlanTerms;
use atlas_engine::ports::{Queue, Store};
use atlas_engine::slots::SlotTerms;
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::planner::PlannerTick;
use atlas_engine::work::Budget;
use atlas_openehr::time::Instant;
use tokio::time::sleep;

use support::cloud::{Cloud, LEASE};
use support::freezer::{Freezer, Frozen};
use support::{BEGIN, copy, engine_over, request};

const OBJECTS: u64 = 360;
const SLICE_SIZE: u64 = 2;

fn cloud(seed: u64) -> Cloud {
    let cloud = Cloud::new(seed, OBJECTS, MemoryStore::new(Commits::InOneTransaction));
    cloud.world.slow(seconds(2));
    cloud
}

fn fine(engine: Engine) -> Engine {
    Engine {
        slots: SlotTerms::new(4, LEASE),
        plan: PlanTerms {
            slice_size: SLICE_SIZE,
            ..engine.plan
        },
        ..engine
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn for_seconds(count: u64) -> Budget {
    Budget {
        until: Some(tokio::time::Instant::now() + seconds(count)),
        ..Budget::default()
    }
}

fn minute(minute: u64) -> Instant {
    let begin = Instant::parse(BEGIN).unwrap();
    begin.saturating_add(seconds(minute * 60))
}

async fn call_planner(engine: &Engine, at: u64, budget: &Budget) -> PlannerTick {
    let asked = request(Mode::Incremental);
    let planned = engine.plan_and_repair(minute(at), &asked, budget).await;
    planned.unwrap()
}

/// Windows without a gap, in which nothing is read twice.
async fn assert_windows_fit(cloud: &Cloud) {
    let slices = cloud.slices().await;
    for pair in slices.windows(2) {
        if pair[0].template == pair[1].template {
            assert_eq!(pair[0].window.to, pair[1].window.from);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_planner_whose_time_is_over_goes_on_where_it_stopped_and_workers_begin_meanwhile() {
    let whole = cloud(1);
    call_planner(&fine(whole.process()), 0, &Budget::default()).await;
    let in_one_go = whole.world.requests();
    let expected = whole.slices().await.len();

    for allowed in [60, 90, 120] {
        let cloud = cloud(1);
        let mut cuts = BTreeSet::new();
        let mut ticks = 0;
        loop {
            ticks += 1;
            assert!(ticks < 60, "it never came to an end");
            let before = cloud.slices().await.len();
            let planned = call_planner(&fine(cloud.process()), 0, &for_seconds(allowed)).await;
            let run = cloud.store.ledger().run(&planned.run).await.unwrap();
            let run = run.unwrap();
            cuts.extend(run.cut);
            assert_eq!(run.planned, planned.cut.is_some());
            if planned.cut.is_some() {
                break;
            }
            let slices = cloud.slices().await.len();
            assert!(before == 0 || slices > before, "{slices} after {before}");
            assert!(slices == 0 || cloud.queue.waiting() > 0, "work has begun");
        }
        assert!(ticks > 1, "{allowed} s were enough");
        assert_eq!(cuts.len(), 1, "one occurrence, one cut");
        assert_windows_fit(&cloud).await;
        let slices = cloud.slices().await.len();
        assert!(slices * 10 < expected * 11, "{slices} of {expected}");
        // Each tick asks for a census, and counts the piece again in which it was stopped.
        let requests = cloud.world.requests();
        assert!(
            requests < in_one_go + ticks * 30,
            "{requests}, {in_one_go} in one go, {ticks} ticks"
        );
        cloud.drain().await;
        cloud.assert_done().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_occurrence_goes_on_with_what_the_last_one_left_unplanned() {
    let cloud = cloud(2);
    let mut at = 0;
    while call_planner(&fine(cloud.process()), at, &for_seconds(60))
        .await
        .cut
        .is_none()
    {
        at += 15;
        assert!(at < 900, "it never came to an end");
        sleep(seconds(60)).await;
    }
    assert!(at > 15, "one tick was enough");
    assert_windows_fit(&cloud).await;
    cloud.drain().await;
    cloud.assert_done().await;
    let runs = cloud.store.ledger().runs(100).await.unwrap();
    let complete = runs
        .iter()
        .filter(|run| run.outcome == Some(Outcome::Complete));
    assert_eq!(
        complete.count(),
        1,
        "only the last one was planned to its end"
    );
}

#[tokio::test(start_paused = true)]
async fn an_occurrence_that_is_called_four_times_on_two_instances_is_planned_once() {
    // As the real host did: twice on each of two instances, the first ones perhaps still at work.
    for delays in [
        [0, 0, 0, 0],
        [0, 3, 30, 300],
        [0, 20, 20, 500],
        [0, 95, 190, 285],
    ] {
        let cloud = cloud(3);
        let calls = delays.map(|delay| {
            let engine = fine(cloud.process());
            async move {
                sleep(seconds(delay)).await;
                call_planner(&engine, 0, &for_seconds(600)).await
            }
        });
        let ticks = futures::future::join_all(calls).await;
        let cuts: BTreeSet<Instant> = ticks.iter().filter_map(|tick| tick.cut).collect();
        assert_eq!(cuts.len(), 1, "{delays:?}");
        assert_windows_fit(&cloud).await;
        assert!(cloud.world.most_at_once() <= 2, "half of the slots plan");
        cloud.drain().await;
        cloud.assert_done().await;
        assert_eq!(cloud.store.ledger().runs(10).await.unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_planner_keeps_its_lease_however_long_it_plans() {
    let cloud = cloud(4);
    cloud.world.slow(seconds(10));
    let (first, second) = (fine(cloud.process()), fine(cloud.process()));
    let budget = Budget::default();
    let late = async {
        // Long after a lease without a heartbeat would have ended.
        sleep(LEASE * 3).await;
        let run = cloud.store.ledger().runs(1).await.unwrap().remove(0);
        assert!(!run.planned, "the first one is still at work");
        call_planner(&second, 15, &budget).await
    };
    let (first, second) = tokio::join!(call_planner(&first, 0, &budget), late);
    assert!(first.cut.is_some());
    assert_eq!((second.cut, second.sent), (None, 0));
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_planner_that_was_frozen_adds_what_it_had_counted_last_at_most() {
    let cloud = cloud(5);
    let freezer = Freezer::default();
    let store: Arc<dyn Store> = Arc::new(Frozen::wrap(
        Arc::new(cloud.store.clone()) as Arc<dyn Store>,
        freezer.clone(),
    ));
    let frozen = fine(Engine {
        queue: Arc::clone(&cloud.queue) as Arc<dyn Queue>,
        ..engine_over(&cloud.world, store)
    });
    let first = tokio::spawn(async move {
        let asked = request(Mode::Incremental);
        frozen
            .plan_and_repair(minute(0), &asked, &Budget::default())
            .await
    });
    while cloud.slices().await.is_empty() {
        sleep(seconds(1)).await;
    }
    freezer.freeze();
    sleep(LEASE * 2).await;
    let second = call_planner(&fine(cloud.process()), 0, &Budget::default()).await;
    assert!(second.cut.is_some());
    freezer.thaw();
    let late = first.await.unwrap();
    if let Ok(late) = late {
        assert!(late.cut.is_none() || late.cut == second.cut);
    }
    cloud.drain().await;
    cloud.assert_done().await;
    let read: u64 = cloud.store.ledger().runs(1).await.unwrap()[0].counts.read;
    // Read twice, and found unchanged: what it was about to add.
    assert!(
        (OBJECTS..OBJECTS + 20 * SLICE_SIZE).contains(&read),
        "{read}"
    );
}

#[tokio::test(start_paused = true)]
async fn planners_with_different_cuts_make_the_same_slices() {
    let cloud = cloud(6);
    let engine = fine(cloud.process());
    let asked = request(Mode::Incremental);
    let ids = |plan: atlas_engine::plan::Plan| -> BTreeSet<String> {
        plan.slices.into_iter().map(|slice| slice.id).collect()
    };
    let early = engine.dry_run(&asked).await.unwrap();
    sleep(seconds(3_600)).await;
    let late = engine.dry_run(&asked).await.unwrap();
    assert!(early.cut < late.cut);
    assert!(early.slices.len() > 100);
    assert_eq!(ids(early), ids(late));
    assert_eq!(cloud.slices().await, [], "a dry run keeps nothing");
}

#[tokio::test(start_paused = true)]
async fn a_full_run_that_is_planned_part_by_part_reads_everything_once_more() {
    let cloud = cloud(7);
    call_planner(&fine(cloud.process()), 0, &Budget::default()).await;
    cloud.drain().await;
    cloud.assert_done().await;
    let run = cloud.ask_for_full_run().await;
    let mut parts = 0;
    while let Some(message) = cloud.queue.take_plan() {
        parts += 1;
        assert!(parts < 60, "it never came to an end");
        // Delivered twice at once, as queues do.
        let (one, other) = (fine(cloud.process()), fine(cloud.process()));
        let budget = for_seconds(60);
        let (one, other) = tokio::join!(
            one.deliver(&message, &budget),
            other.deliver(&message, &budget)
        );
        for delivered in [one, other] {
            assert!(delivered.error().is_none(), "{delivered:?}");
        }
        let stands = cloud.store.ledger().run(&run.id).await.unwrap().unwrap();
        if stands.planned {
            break;
        }
        sleep(seconds(30)).await;
    }
    assert!(parts > 1, "one part was enough");
    cloud.drain().await;
    cloud.assert_done().await;
    let run = cloud.store.ledger().run(&run.id).await.unwrap().unwrap();
    assert_eq!((run.counts.read, run.counts.unchanged), (OBJECTS, OBJECTS));
    assert_eq!(run.outcome, Some(Outcome::Complete));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cancelled_while_it_is_planned_stays_cancelled() {
    let cloud = cloud(8);
    let run = cloud.ask_for_full_run().await;
    let message = cloud.queue.take_plan().unwrap();
    let planner = fine(cloud.process());
    let budget = Budget::default();
    let cancel = async {
        sleep(seconds(20)).await;
        let stands = cloud.process().cancel(&run.id).await.unwrap().unwrap();
        assert_eq!(stands.phase(), RunPhase::Cancelled);
        assert!(stands.cut.is_some() && !stands.planned);
    };
    let (delivered, ()) = tokio::join!(planner.deliver(&message, &budget), cancel);
    assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
    cloud.drain().await;
    let stands = cloud.store.ledger().run(&run.id).await.unwrap().unwrap();
    assert_eq!(stands.phase(), RunPhase::Cancelled);
    // What it left goes to the next run.
    call_planner(&fine(cloud.process()), 30, &budget).await;
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_at_the_command_line_that_is_stopped_while_it_plans_is_gone_on_with() {
    let cloud = cloud(9);
    let asked = request(Mode::Incremental);
    let budget = Budget::default();
    let stop = async {
        sleep(seconds(60)).await;
        budget.stop.cancel();
    };
    let engine = fine(cloud.process());
    let (stopped, ()) = tokio::join!(engine.export(&asked, &budget), stop);
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
    let kept = cloud.slices().await.len();
    assert!(kept > 0);
    let requests = cloud.world.requests();
    let report = fine(cloud.process())
        .export(&asked, &Budget::default())
        .await;
    assert_eq!(report.unwrap().outcome, Outcome::Complete);
    assert!(cloud.world.requests() > requests);
    assert_eq!(copy(&cloud.store), cloud.world.truth());
    let runs = cloud.store.ledger().runs(10).await.unwrap();
    let outcomes: Vec<_> = runs.iter().map(|run| run.outcome.unwrap()).collect();
    assert_eq!(outcomes, [Outcome::Complete, Outcome::Interrupted]);
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_finds_nothing_new_in_its_time_is_a_failure() {
    let cloud = cloud(10);
    cloud.world.slow(seconds(1_000));
    let asked = request(Mode::Incremental);
    for attempt in 0..3 {
        let planner = fine(cloud.process());
        let budget = for_seconds(60);
        let stop = budget.stop.clone();
        tokio::spawn(async move {
            sleep(seconds(80)).await;
            stop.cancel();
        });
        let planned = planner.plan_and_repair(minute(0), &asked, &budget).await;
        let error = planned.expect_err("it cannot have planned");
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable, "{attempt}");
    }
    cloud.world.slow(seconds(2));
    assert!(
        call_planner(&fine(cloud.process()), 0, &Budget::default())
            .await
            .cut
            .is_some()
    );
    cloud.drain().await;
    cloud.assert_done().await;
}
