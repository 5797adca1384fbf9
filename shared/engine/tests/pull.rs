//! Work is pulled: few messages, few deliveries, however many slices and workers; what makes no progress fails; planners get a slot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::time::Duration;

use atlas_engine::ErrorKind;
use atlas_engine::engine::Engine;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::message::Message;
use atlas_engine::model::{Mode, Outcome, Record, Request, SliceState};
use atlas_engine::plan::PlanTerms;
use atlas_engine::ports::Store;
use atlas_engine::slots::SlotTerms;
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::runs::MarkedFailed;
use atlas_engine::suite::unplanned::WhyUnplanned;
use atlas_engine::work::Budget;
use atlas_openehr::time::Instant;
use futures::future::join_all;
use tokio::time::sleep;

use support::cloud::{Cloud, LEASE};
use support::{BEGIN, copy, request};

fn cloud(seed: u64, objects: u64) -> Cloud {
    Cloud::new(seed, objects, MemoryStore::new(Commits::InOneTransaction))
}

fn with_slots(cloud: &Cloud, slots: usize) -> Engine {
    Engine {
        slots: SlotTerms::new(slots, LEASE),
        plan: PlanTerms {
            slice_size: 10,
            ..cloud.process().plan
        },
        ..cloud.process()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A time that is over before another slice is begun.
fn for_one_slice() -> Budget {
    for_seconds(5)
}

fn for_seconds(count: u64) -> Budget {
    Budget {
        until: Some(tokio::time::Instant::now() + seconds(count)),
        ..Budget::default()
    }
}

async fn plan(cloud: &Cloud, engine: &Engine, minute: u64) {
    let occurrence = Instant::parse(BEGIN)
        .unwrap()
        .saturating_add(seconds(minute * 60));
    engine
        .plan_and_repair(occurrence, &request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert!(cloud.store.ledger().runs(1).await.unwrap()[0].planned);
}

#[tokio::test(start_paused = true)]
async fn forty_workers_on_two_slots_need_few_deliveries_and_keep_both_slots_busy() {
    for (slots, budget) in [(1, 20), (2, 20), (2, 60), (5, 20)] {
        let cloud = cloud(1, 1_200);
        plan(&cloud, &with_slots(&cloud, slots), 0).await;
        let slices = cloud.slices().await.len();
        assert!(slices > 100, "{slices}");
        assert_eq!(cloud.queue.waiting(), slots);
        cloud.world.slow(seconds(2));
        let begun = tokio::time::Instant::now();
        let workers = (0..40).map(|_| async {
            let mut delivered = 0;
            let engine = with_slots(&cloud, slots);
            // Until the run has an end.
            while !cloud.queue.is_over(&cloud.store).await {
                let Some(message) = cloud.queue.take_one() else {
                    sleep(Duration::from_millis(500)).await;
                    continue;
                };
                delivered += 1;
                match engine.deliver(&message, &for_seconds(budget)).await {
                    Delivered::Again(error) => panic!("{error:?}"),
                    Delivered::PutBack => sleep(seconds(10)).await,
                    _ => {}
                }
            }
            delivered
        });
        let delivered: usize = join_all(workers).await.into_iter().sum();
        cloud.assert_done().await;
        assert!(delivered * 5 <= slices * 6, "{delivered} for {slices}");
        assert!(cloud.world.most_at_once() <= slots as u64);
        // A page takes a second on average, and each slice asks once more at its end.
        let alone = seconds(2 * slices as u64) / slots as u32;
        assert!(begun.elapsed() < alone * 3 / 2, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_run_does_not_wait_for_the_end_of_a_large_one() {
    let cloud = cloud(2, 900);
    let engine = with_slots(&cloud, 1);
    plan(&cloud, &engine, 0).await;
    let large = cloud.slices().await.len();
    let message = cloud.queue.take().remove(0);
    cloud.world.slow(seconds(1));
    let ehrs = vec![atlas_openehr::id::EhrId::new("ehr-3")];
    let mut small = request(Mode::Full);
    small.selection.ehrs = ehrs;
    let budget = Budget::default();
    let ask = async {
        sleep(seconds(10)).await;
        let planner = with_slots(&cloud, 1);
        planner.request_run(Some("small"), small).await.unwrap();
        let mut plan = cloud.queue.take().remove(0);
        // The worker gives its slot to the plan, and its slice waits with a message of its own.
        while !matches!(planner.deliver(&plan, &budget).await, Delivered::Planned) {
            sleep(seconds(10)).await;
            plan = cloud.queue.take_plan().unwrap();
        }
    };
    let (first, ()) = tokio::join!(engine.deliver(&message, &budget), ask);
    // It gave way in the middle of a slice, or between two.
    let gave_way = matches!(first, Delivered::Continued | Delivered::Done);
    assert!(gave_way, "{first:?}");
    let mut done = 0;
    for _ in 0..1_000 {
        let Some(message) = cloud.queue.take_one() else {
            break;
        };
        engine.deliver(&message, &for_one_slice()).await;
        let runs = cloud.store.ledger().runs(2).await.unwrap();
        let small = runs.iter().find(|run| !run.id.starts_with("timer/"));
        if small.unwrap().ended.is_some() {
            let slices = cloud.slices().await;
            done = slices
                .iter()
                .filter(|slice| slice.state == SliceState::Done)
                .count();
            break;
        }
    }
    assert!(done > 0 && done < large / 2 + 30, "{done} of {large}");
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_part_without_a_page_is_a_failure_that_ends_and_is_tried_again_later() {
    let cloud = cloud(3, 20);
    cloud.plan_and_repair(0).await;
    let message = cloud.queue.take().remove(0);
    // A source that hangs: the platform ends the part.
    cloud.world.slow(seconds(1_000_000));
    for _ in 0..5 {
        let budget = for_seconds(60);
        let stop = budget.stop.clone();
        tokio::spawn(async move {
            sleep(seconds(80)).await;
            stop.cancel();
        });
        let delivered = cloud.process().deliver(&message, &budget).await;
        let Delivered::Again(error) = delivered else {
            panic!("{delivered:?}")
        };
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
        assert_eq!(
            cloud.queue.waiting(),
            0,
            "no message beside the one that failed"
        );
    }
    let slice = cloud.slices().await.remove(0);
    assert_eq!((slice.part, slice.page), (1, 0));
    assert!(slice.failure.unwrap().contains("before the first page"));
    let report = cloud.process().report(&slice.selection).await.unwrap();
    assert!(
        report.stalled_slice_seconds >= 5.0 * 80.0,
        "{}",
        report.stalled_slice_seconds
    );
    // Nothing was ever read: the lag counts from the plan.
    assert!(report.lag_seconds.unwrap() >= 5.0 * 80.0);
    let marked = cloud.process().mark_failed(&message).await.unwrap();
    // Three templates shared it.
    assert_eq!(marked, MarkedFailed::Divided);
    // After the cure it goes on by itself.
    cloud.world.slow(Duration::from_millis(20));
    sleep(seconds(3_700)).await;
    cloud.plan_and_repair(62).await;
    cloud.drain().await;
    cloud.assert_done().await;
    let report = cloud.process().report(&slice.selection).await.unwrap();
    assert_eq!(report.stalled_slice_seconds, 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_by_signal_is_no_failure_and_the_slice_goes_on() {
    let cloud = cloud(4, 20);
    cloud.plan_and_repair(0).await;
    let messages = cloud.queue.take();
    cloud.world.slow(seconds(1_000));
    let budget = for_seconds(3_600);
    let stop = budget.stop.clone();
    let stopped = async {
        sleep(Duration::from_millis(500)).await;
        stop.cancel();
    };
    let engine = cloud.process();
    let (delivered, ()) = tokio::join!(engine.deliver(&messages[0], &budget), stopped);
    assert!(matches!(delivered, Delivered::Continued), "{delivered:?}");
    cloud.world.slow(Duration::from_millis(20));
    cloud.queue.put(messages);
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_with_compositions_that_cannot_be_read_comes_to_its_end_part_by_part() {
    for culprits in [vec![7], vec![0, 59], vec![20, 21, 22]] {
        let cloud = cloud(5, 0);
        let begin = Instant::parse(BEGIN).unwrap();
        for object in 0..60 {
            let committed = begin.saturating_sub(seconds(86_400 - object * 60));
            let is_unreadable = culprits.contains(&object);
            cloud
                .world
                .put(object, 0, committed, Duration::ZERO, is_unreadable);
        }
        cloud.plan_and_repair(0).await;
        cloud.world.slow(seconds(10));
        let mut deliveries = 0;
        while let Some(message) = cloud.queue.take_one() {
            deliveries += 1;
            assert!(deliveries < 60, "it starts from zero each time");
            // Time for a few questions, and never for finding a culprit in a whole page.
            let delivered = cloud.process().deliver(&message, &for_seconds(25)).await;
            if let Delivered::Again(_) = delivered {
                cloud.queue.put(vec![message]);
            }
        }
        let slices = cloud.slices().await;
        assert!(slices.iter().all(|slice| slice.state == SliceState::Done));
        assert_eq!(copy(&cloud.store), cloud.world.truth());
        let quarantined = cloud.store.ledger().quarantine_counts(None).await.unwrap();
        assert_eq!(quarantined[0].entries, culprits.len() as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn ticks_that_planned_nothing_are_reported_with_their_reason_until_one_plans() {
    let cloud = cloud(9, 30);
    let engine = with_slots(&cloud, 1);
    let key = request(Mode::Incremental).selection.key();
    let tick = async |minute: u64| {
        let occurrence = Instant::parse(BEGIN).unwrap();
        let occurrence = occurrence.saturating_add(seconds(minute * 60));
        let request = request(Mode::Incremental);
        let budget = Budget::default();
        engine.plan_and_repair(occurrence, &request, &budget).await
    };
    let reported = async || {
        let unplanned = engine.report(&key).await.unwrap().unplanned;
        unplanned.map(|unplanned| (unplanned.ticks, unplanned.reason, unplanned.since))
    };
    let hold = async |name: &str, time: Duration| {
        let there = cloud.store.ledger().records(name).await.unwrap();
        let there = there.into_iter().find(|record| record.name == name);
        let free = there.unwrap_or_else(|| Record::new(name));
        let held = Record {
            owner: Some("somebody else".to_owned()),
            until: Some(cloud.world.now().saturating_add(time)),
            ..free.clone()
        };
        let ledger = cloud.store.ledger();
        assert!(ledger.swap_record(&free, &held).await.unwrap().is_some());
    };

    assert_eq!(tick(0).await.unwrap().unplanned, None);
    assert_eq!(reported().await, None);
    cloud.drain().await;
    for round in 0..2 {
        let minute = 15 + 100 * round;
        hold("slot/000", seconds(600)).await;
        let since = cloud.world.now();
        let (no_slot, other) = (Some(WhyUnplanned::NoSlot), Some(WhyUnplanned::OtherPlanner));
        assert_eq!(tick(minute).await.unwrap().unplanned, no_slot);
        let (ticks, reason, first) = reported().await.unwrap();
        assert_eq!((ticks, Some(reason)), (1, no_slot));
        assert!(first >= since && first <= cloud.world.now());
        // The same occurrence counts once, the next one anew.
        tick(minute).await.unwrap();
        assert_eq!(reported().await, Some((1, reason, first)));
        tick(minute + 15).await.unwrap();
        assert_eq!(reported().await, Some((2, reason, first)));
        hold("planner", seconds(60)).await;
        assert_eq!(tick(minute + 30).await.unwrap().unplanned, other);
        assert_eq!(
            reported().await,
            Some((3, WhyUnplanned::OtherPlanner, first))
        );
        sleep(seconds(600)).await;
        cloud.world.flaky(100);
        tick(minute + 45).await.unwrap_err();
        assert_eq!(reported().await, Some((4, WhyUnplanned::Failed, first)));
        cloud.world.flaky(0);
        assert_eq!(tick(minute + 45).await.unwrap().unplanned, None);
        assert_eq!(reported().await, None);
        cloud.drain().await;
    }
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_tick_gets_a_slot_while_all_of_them_are_busy() {
    let cloud = cloud(6, 900);
    let planner = with_slots(&cloud, 2);
    plan(&cloud, &planner, 0).await;
    let messages = cloud.queue.take();
    cloud.world.slow(seconds(4));
    let workers = [with_slots(&cloud, 2), with_slots(&cloud, 2)];
    let budget = Budget::default();
    let tick = async {
        for minute in [15, 30, 45] {
            sleep(seconds(30)).await;
            cloud
                .world
                .commit(10_000 + minute, 1, cloud.world.now(), Duration::ZERO);
            let begun = tokio::time::Instant::now();
            plan(&cloud, &planner, minute).await;
            assert!(begun.elapsed() < seconds(60), "{:?}", begun.elapsed());
            let run = &cloud.store.ledger().runs(1).await.unwrap()[0];
            assert!(run.id.contains(&format!("T08:{minute}")), "{}", run.id);
            assert!(run.planned);
        }
    };
    let work = workers
        .iter()
        .zip(&messages)
        .map(|(worker, message)| async {
            let mut delivered = worker.deliver(message, &budget).await;
            // What was given way comes back after a while, until the ticks are over.
            for _ in 0..1_000 {
                match cloud.queue.take_one() {
                    Some(message) => delivered = worker.deliver(&message, &budget).await,
                    None => sleep(seconds(5)).await,
                }
                if cloud.queue.is_over(&cloud.store).await {
                    break;
                }
            }
            delivered
        });
    tokio::join!(join_all(work), tick);
    sleep(seconds(100)).await;
    plan(&cloud, &planner, 59).await;
    cloud.drain().await;
    cloud.assert_done().await;
    assert!(cloud.world.most_at_once() <= 2);
}

#[tokio::test(start_paused = true)]
async fn work_that_is_dropped_in_the_middle_leaves_no_permit_behind() {
    let cloud = cloud(7, 120);
    let engine = with_slots(&cloud, 1);
    plan(&cloud, &engine, 0).await;
    cloud.world.slow(seconds(3));
    for dropped in 1..30 {
        let messages = cloud.queue.take();
        let Some(message) = messages.first() else {
            break;
        };
        let budget = for_one_slice();
        let delivery = engine.deliver(message, &budget);
        // At every moment between two steps, sooner or later.
        let _ = tokio::time::timeout(Duration::from_millis(dropped * 700), delivery).await;
        sleep(LEASE + seconds(1)).await;
        plan(&cloud, &engine, dropped).await;
        assert!(cloud.world.most_at_once() <= 1, "dropped {dropped} times");
    }
    cloud.drain().await;
    cloud.assert_done().await;
    assert!(cloud.world.most_at_once() <= 1);
}

#[tokio::test(start_paused = true)]
async fn the_message_of_a_worker_that_died_with_a_slice_it_pulled_brings_its_successor_to_it() {
    let cloud = cloud(11, 120);
    let engine = with_slots(&cloud, 1);
    plan(&cloud, &engine, 0).await;
    let message = cloud.queue.take().remove(0);
    cloud.world.slow(seconds(3));
    {
        let budget = Budget::default();
        let mut delivery = std::pin::pin!(engine.deliver(&message, &budget));
        let is_at_the_second = async {
            loop {
                sleep(Duration::from_millis(100)).await;
                let slices = cloud.slices().await;
                let has = |state| slices.iter().any(|slice| slice.state == state);
                if has(SliceState::Done) && slices.iter().any(|slice| slice.owner.is_some()) {
                    break;
                }
            }
        };
        tokio::select! {
            delivered = &mut delivery => panic!("it was to die: {delivered:?}"),
            () = is_at_the_second => {}
        }
    }
    assert_eq!(cloud.queue.waiting(), 0);
    // The queue shows the message again, long after slot and slice are free.
    sleep(LEASE * 2).await;
    let successor = with_slots(&cloud, 1);
    let delivered = successor.deliver(&message, &Budget::default()).await;
    assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
    assert_eq!(cloud.queue.waiting(), 1);
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn slots_that_the_command_line_holds_keep_a_message_that_comes_again() {
    let cloud = cloud(8, 60);
    cloud.plan_and_repair(0).await;
    let message = cloud.queue.take().remove(0);
    cloud.world.slow(seconds(2));
    let export = with_slots(&cloud, 1);
    let worker = with_slots(&cloud, 1);
    let (full, budget) = (request(Mode::Full), Budget::default());
    let (report, ()) = tokio::join!(export.export(&full, &budget), async {
        sleep(seconds(3)).await;
        let delivered = worker.deliver(&message, &budget).await;
        assert!(
            matches!(delivered, Delivered::PutBack | Delivered::Stale),
            "{delivered:?}"
        );
    });
    assert_eq!(report.unwrap().outcome, Outcome::Complete);
    cloud.drain().await;
    cloud.plan_and_repair(15).await;
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn an_export_at_the_command_line_gets_a_slot_from_busy_workers_within_seconds() {
    let cloud = cloud(12, 900);
    let engine = with_slots(&cloud, 1);
    plan(&cloud, &engine, 0).await;
    let message = cloud.queue.take().remove(0);
    cloud.world.slow(seconds(1));
    let person = with_slots(&cloud, 1);
    let (budget, asked) = (Budget::default(), request(Mode::Incremental));
    let (delivered, waited) = tokio::join!(engine.deliver(&message, &budget), async {
        sleep(seconds(20)).await;
        let begun = tokio::time::Instant::now();
        person.dry_run(&asked).await.unwrap();
        begun.elapsed()
    });
    // It gave way in the middle of a slice, or between two.
    let gave_way = matches!(delivered, Delivered::Continued | Delivered::Done);
    assert!(gave_way, "{delivered:?}");
    assert!(waited < seconds(60), "{waited:?}");
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_plan_whose_worker_died_is_planned_by_the_next_delivery() {
    let cloud = cloud(13, 60);
    cloud.ask_for_full_run().await;
    let message = cloud.queue.take().remove(0);
    cloud.world.slow(seconds(10));
    for _ in 0..3 {
        let engine = with_slots(&cloud, 1);
        let budget = Budget::default();
        let delivery = engine.deliver(&message, &budget);
        let died = tokio::time::timeout(seconds(8), delivery).await;
        assert!(died.is_err(), "it was to die: {died:?}");
        sleep(LEASE * 2).await;
    }
    cloud.world.slow(Duration::from_millis(20));
    let engine = with_slots(&cloud, 1);
    let delivered = engine.deliver(&message, &Budget::default()).await;
    assert!(matches!(delivered, Delivered::Planned), "{delivered:?}");
    cloud.drain().await;
    assert_eq!(copy(&cloud.store), cloud.world.truth());
}

#[tokio::test(start_paused = true)]
async fn what_an_export_left_behind_is_taken_over_by_the_next_plan() {
    let cloud = cloud(9, 300);
    cloud.world.slow(seconds(2));
    let budget = Budget::default();
    let export = with_slots(&cloud, 1);
    let asked: Request = request(Mode::Incremental);
    let has_begun = async {
        while cloud.slices().await.is_empty() {
            sleep(seconds(1)).await;
        }
        sleep(seconds(10)).await;
    };
    tokio::select! {
        report = export.export(&asked, &budget) => panic!("it was to be killed: {report:?}"),
        () = has_begun => {}
    }
    let open = |slices: Vec<atlas_engine::model::Slice>| {
        let open = slices.into_iter();
        open.filter(|slice| slice.state == SliceState::Open).count()
    };
    assert!(open(cloud.slices().await) > 3);
    sleep(LEASE * 2).await;
    cloud.plan_and_repair(15).await;
    assert_eq!(cloud.queue.waiting(), 3);
    cloud.drain().await;
    assert_eq!(open(cloud.slices().await), 0);
    assert_eq!(copy(&cloud.store), cloud.world.truth());
}

#[tokio::test(start_paused = true)]
async fn a_message_of_an_older_version_of_a_slice_changes_nothing() {
    let cloud = cloud(10, 200);
    cloud.plan_and_repair(0).await;
    let messages: Vec<Message> = cloud.queue.take();
    cloud.queue.put(messages.clone());
    cloud.drain().await;
    let before = cloud.world.requests();
    for message in messages {
        let delivered = cloud.process().deliver(&message, &Budget::default()).await;
        assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
    }
    assert_eq!(cloud.world.requests(), before);
    cloud.assert_done().await;
}
