//! The slice protocol with many workers over one store: messages that are doubled, lost, late, out of order; workers that die
//! between any two steps, freeze, or run out of time; planners that fire twice, late or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use atlas_engine::engine::Engine;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::message::{Message, Task};
use atlas_engine::model::{Mode, Outcome, Record, Request, Selection, Slice};
use atlas_engine::ports::{Clock, Queue, Store};
use atlas_engine::slots::SlotTerms;
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::runs::MarkedFailed;
use atlas_engine::suite::runs::RunRequested;
use atlas_engine::work::Budget;
use atlas_engine::wrapped::{Around, WrappedStore};
use atlas_engine::{ErrorKind, Result};
use atlas_openehr::id::EhrId;
use atlas_openehr::time::Instant;
use tokio_util::sync::CancellationToken;

use support::cloud::{Cloud, LEASE};
use support::{BEGIN, World, copy, engine_over, request};

#[tokio::test(start_paused = true)]
async fn ticks_and_deliveries_copy_what_an_export_copies() {
    for commits in Commits::ALL {
        let cloud = Cloud::new(1, 300, MemoryStore::new(commits));
        cloud.plan_and_repair(0).await;
        assert!(cloud.slices().await.len() > 3);
        assert_eq!(cloud.queue.waiting(), 3, "one for each slot");
        cloud.drain().await;
        cloud.assert_done().await;
        let runs = cloud.store.ledger().runs(1).await.unwrap();
        assert_eq!(runs[0].outcome, Some(Outcome::Complete));
        assert_eq!((runs[0].counts.read, runs[0].counts.written), (300, 300));
    }
}

#[tokio::test(start_paused = true)]
async fn doubled_and_reordered_messages_change_nothing() {
    let cloud = Cloud::new(2, 300, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    let mut messages = cloud.queue.take();
    messages.reverse();
    for message in messages
        .iter()
        .chain(&messages)
        .chain(messages.iter().rev())
    {
        cloud.process().deliver(message, &Budget::default()).await;
    }
    cloud.drain().await;
    cloud.assert_done().await;
    let requests = cloud.world.requests();
    for message in &messages {
        let again = cloud.process().deliver(message, &Budget::default()).await;
        assert!(matches!(again, Delivered::Stale), "{again:?}");
    }
    assert_eq!(cloud.world.requests(), requests, "late doubles ask nothing");
}

#[tokio::test(start_paused = true)]
async fn lost_messages_are_sent_again_once_they_count_as_lost() {
    let cloud = Cloud::new(3, 200, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    let lost = cloud.queue.take().len();
    assert!(lost > 0);
    cloud.plan_and_repair(15).await;
    assert_eq!(
        cloud.queue.take().len(),
        0,
        "they may still be on their way"
    );
    tokio::time::sleep(Duration::from_secs(1801)).await;
    cloud.plan_and_repair(45).await;
    assert_eq!(cloud.queue.waiting(), lost);
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_between_two_steps_is_repaired_by_redelivery_or_sweep() {
    // What the record says when it dies: taken, released without a message, message sent and not noted.
    for step in 0..3 {
        let cloud = Cloud::new(4, 60, MemoryStore::new(Commits::InOneTransaction));
        cloud.plan_and_repair(0).await;
        let messages = cloud.queue.take();
        let slice = cloud.slices().await.remove(0);
        let now = cloud.world.clock();
        let now = atlas_engine::ports::Clock::now(&now);
        let after = match step {
            0 => Slice {
                fence: slice.fence + 1,
                owner: Some("worker/dead".to_owned()),
                lease_until: Some(now.saturating_add(LEASE)),
                ..slice.clone()
            },
            _ => Slice {
                part: slice.part + 1,
                ..slice.clone()
            },
        };
        let left = cloud
            .store
            .ledger()
            .swap_slice(&slice, &after)
            .await
            .unwrap()
            .unwrap();
        if step == 2 {
            cloud
                .queue
                .send(&Message::of(&left), Duration::ZERO)
                .await
                .unwrap();
        }
        let of_slice =
            |message: &&Message| matches!(&message.task, Task::Slice { id, .. } if *id == slice.id);
        let redelivered = messages.iter().find(of_slice).unwrap();
        let first = cloud
            .process()
            .deliver(redelivered, &Budget::default())
            .await;
        match step {
            0 => assert!(matches!(first, Delivered::PutBack), "{first:?}"),
            _ => assert!(matches!(first, Delivered::Stale), "{first:?}"),
        }
        if step == 0 {
            cloud.queue.take();
            tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
            cloud.plan_and_repair(15).await;
        }
        cloud.queue.put(messages);
        cloud.drain().await;
        cloud.assert_done().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_ends_hands_the_rest_on_until_the_slice_is_done() {
    for commits in Commits::ALL {
        let cloud = Cloud::new(5, 300, MemoryStore::new(commits));
        cloud.world.slow(Duration::from_secs(3));
        cloud.plan_and_repair(0).await;
        let mut continued = 0;
        loop {
            let messages = cloud.queue.take();
            if messages.is_empty() {
                break;
            }
            for message in messages {
                let budget = Budget {
                    until: Some(tokio::time::Instant::now() + Duration::from_secs(4)),
                    ..Budget::default()
                };
                let delivered = cloud.process().deliver(&message, &budget).await;
                continued += usize::from(matches!(delivered, Delivered::Continued));
            }
        }
        assert!(continued > 2, "{continued} continuations");
        cloud.assert_done().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_worker_that_thaws_late_commits_nothing_and_asks_nothing() {
    let cloud = Cloud::new(6, 60, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    let message = cloud.queue.take().remove(0);
    cloud.world.slow(Duration::from_secs(200));
    let frozen = cloud.process();
    let thaw = async {
        // Its heartbeat is what freezing stops: another process takes slice and slot as if the lease had ended.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for record in cloud.store.ledger().records("slot/").await.unwrap() {
            let stolen = Record {
                owner: Some("worker/other".to_owned()),
                ..record.clone()
            };
            cloud
                .store
                .ledger()
                .swap_record(&record, &stolen)
                .await
                .unwrap()
                .unwrap();
        }
        let Task::Slice { id, .. } = &message.task else {
            unreachable!()
        };
        let slice = cloud.store.ledger().slice(id).await.unwrap().unwrap();
        let taken = Slice {
            fence: slice.fence + 1,
            owner: Some("worker/other".to_owned()),
            lease_until: Some(cloud.world.now().saturating_add(Duration::from_secs(3_600))),
            ..slice.clone()
        };
        cloud
            .store
            .ledger()
            .swap_slice(&slice, &taken)
            .await
            .unwrap()
            .unwrap();
    };
    let budget = Budget::default();
    let (delivered, ()) = tokio::join!(frozen.deliver(&message, &budget), thaw);
    assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
    assert!(copy(&cloud.store).is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_are_under_way_than_there_are_slots() {
    let cloud = Cloud::new(7, 300, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    let messages = cloud.queue.take();
    cloud.world.slow(Duration::from_secs(5));
    let processes: Vec<Engine> = (0..messages.len())
        .map(|_| Engine {
            slots: SlotTerms::new(2, LEASE),
            ..cloud.process()
        })
        .collect();
    let budget = Budget::default();
    let work = processes
        .iter()
        .zip(&messages)
        .map(|(process, message)| process.deliver(message, &budget));
    let delivered = futures::future::join_all(work).await;
    let left = delivered
        .iter()
        .filter(|one| matches!(one, Delivered::Left))
        .count();
    assert_eq!(left, messages.len() - 2);
    assert!(cloud.world.most_at_once() <= 2);
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn planners_that_fire_twice_at_once_or_again_plan_once() {
    let cloud = Cloud::new(8, 200, MemoryStore::new(Commits::InOneTransaction));
    tokio::join!(
        cloud.plan_and_repair(0),
        cloud.plan_and_repair(0),
        cloud.plan_and_repair(0)
    );
    assert_eq!(cloud.queue.waiting(), 3, "one for each slot");
    cloud.plan_and_repair(0).await;
    assert_eq!(cloud.queue.waiting(), 3);
    cloud.drain().await;
    cloud.assert_done().await;
    assert_eq!(cloud.store.ledger().runs(10).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_down_while_planning_costs_nothing_but_time() {
    let cloud = Cloud::new(9, 100, MemoryStore::new(Commits::InOneTransaction));
    cloud.queue.set_down(true);
    let occurrence = Instant::parse(BEGIN).unwrap();
    let asked = request(Mode::Incremental);
    let failed = cloud
        .process()
        .plan_and_repair(occurrence, &asked, &Budget::default())
        .await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::QueueUnreachable);
    cloud.queue.set_down(false);
    cloud.plan_and_repair(0).await;
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_delivered_too_often_fails_visibly_and_is_revived_later() {
    let cloud = Cloud::new(10, 60, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    let messages = cloud.queue.take();
    for message in &messages {
        assert_eq!(
            cloud.process().mark_failed(message).await.unwrap(),
            MarkedFailed::Untried
        );
        cloud.world.flaky(100);
        let delivered = cloud.process().deliver(message, &Budget::default()).await;
        assert!(matches!(delivered, Delivered::Again(_)), "{delivered:?}");
        cloud.world.flaky(0);
        assert_eq!(
            cloud.process().mark_failed(message).await.unwrap(),
            MarkedFailed::Failed
        );
        assert_eq!(
            cloud.process().mark_failed(message).await.unwrap(),
            MarkedFailed::Stale
        );
    }
    let runs = cloud.store.ledger().runs(1).await.unwrap();
    assert_eq!(runs[0].outcome, Some(Outcome::Partial));
    let report = cloud.process().report(&asked_key()).await.unwrap();
    assert_eq!(report.slices.failed, messages.len() as u64);
    tokio::time::sleep(Duration::from_secs(3601)).await;
    cloud.plan_and_repair(60).await;
    cloud.drain().await;
    cloud.assert_done().await;
}

fn asked_key() -> atlas_engine::model::SelectionKey {
    request(Mode::Incremental).selection.key()
}

#[tokio::test(start_paused = true)]
async fn a_run_on_demand_is_planned_by_a_worker_once_for_each_key() {
    let cloud = Cloud::new(11, 200, MemoryStore::new(Commits::InOneTransaction));
    let full = request(Mode::Full);
    let first = cloud
        .process()
        .request_run(Some("key"), full.clone())
        .await
        .unwrap();
    let RunRequested::New(run) = first else {
        panic!("{first:?}")
    };
    let again = cloud
        .process()
        .request_run(Some("key"), full.clone())
        .await
        .unwrap();
    assert!(matches!(again, RunRequested::Same(same) if same.id == run.id));
    let other = Request {
        mode: Mode::Incremental,
        ..full
    };
    assert_eq!(
        cloud
            .process()
            .request_run(Some("key"), other)
            .await
            .unwrap(),
        RunRequested::Conflict
    );
    let early = cloud.process().run_state(&run.id).await.unwrap().unwrap();
    assert_eq!((early.run.cut, early.open), (None, 0));
    cloud.drain().await;
    let state = cloud.process().run_state(&run.id).await.unwrap().unwrap();
    assert_eq!(state.run.outcome, Some(Outcome::Complete));
    assert_eq!(state.run.counts.read, 200);
    assert_eq!(copy(&cloud.store), cloud.world.truth());
    assert_eq!(cloud.process().run_state("nobody").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_run_on_demand_beside_the_schedule_counts_what_it_read_itself() {
    let cloud = Cloud::new(12, 200, MemoryStore::new(Commits::InOneTransaction));
    let run = cloud.ask_for_full_run().await;
    cloud.plan_and_repair(0).await;
    cloud.drain().await;
    cloud.plan_and_repair(15).await;
    cloud.drain().await;
    cloud.assert_done().await;
    let state = cloud.process().run_state(&run.id).await.unwrap().unwrap();
    assert_eq!(state.run.counts.read, 200);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_stops_its_workers_and_loses_nothing() {
    let cloud = Cloud::new(13, 300, MemoryStore::new(Commits::InOneTransaction));
    let run = cloud.ask_for_full_run().await;
    let plan = cloud.queue.take().remove(0);
    cloud.process().deliver(&plan, &Budget::default()).await;
    let messages = cloud.queue.take();
    cloud.world.slow(Duration::from_secs(5));
    let (worker, canceller) = (cloud.process(), cloud.process());
    let budget = Budget::default();
    let cancel = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        canceller.cancel(&run.id).await.unwrap().unwrap()
    };
    let (delivered, cancelled) = tokio::join!(worker.deliver(&messages[0], &budget), cancel);
    // Stopped at its commit; delivered again, the message finds the run cancelled.
    assert!(
        matches!(&delivered, Delivered::Again(error) if error.kind() == ErrorKind::LostLease),
        "{delivered:?}"
    );
    assert_eq!(cancelled.outcome, Some(Outcome::Cancelled));
    for message in &messages {
        let late = cloud.process().deliver(message, &budget).await;
        assert!(matches!(late, Delivered::Stale), "{late:?}");
    }
    assert!(
        cloud
            .slices()
            .await
            .iter()
            .all(|slice| slice.owner.is_none())
    );
    assert!(copy(&cloud.store).is_empty());
    assert_eq!(cloud.process().cancel("nobody").await.unwrap(), None);
    // No watermark covers what it would have read: the next run takes that over.
    cloud.plan_and_repair(15).await;
    cloud.drain().await;
    cloud.assert_done().await;
    // Of a second one, only what ends behind the watermark is still wanted.
    let run = cloud.ask_for_full_run().await;
    let plan = cloud.queue.take().remove(0);
    cloud.process().deliver(&plan, &budget).await;
    let planned = cloud.slices().await.len();
    cloud.process().cancel(&run.id).await.unwrap();
    assert!(cloud.slices().await.len() < planned);
    cloud.queue.take();
    cloud.plan_and_repair(30).await;
    cloud.drain().await;
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_a_run_is_planned_stays_one_and_loses_nothing() {
    let mut during = 0;
    for second in (1..200).step_by(5) {
        let cloud = Cloud::new(15, 300, MemoryStore::new(Commits::InOneTransaction));
        let run = cloud.ask_for_full_run().await;
        let plan = cloud.queue.take().remove(0);
        cloud.world.slow(Duration::from_secs(5));
        let (planner, canceller) = (cloud.process(), cloud.process());
        let budget = Budget::default();
        let (delivered, ()) = tokio::join!(planner.deliver(&plan, &budget), async {
            tokio::time::sleep(Duration::from_secs(second)).await;
            canceller.cancel(&run.id).await.unwrap().unwrap();
        });
        let stands = cloud.store.ledger().run(&run.id).await.unwrap().unwrap();
        assert_eq!(stands.outcome, Some(Outcome::Cancelled), "second {second}");
        if stands.planned {
            assert!(during > 0, "it was planned before anybody could cancel");
            break;
        }
        during += 1;
        assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
        // Workers begin with what is planned; from here on they find nothing to do for it.
        for message in cloud.queue.take() {
            let delivered = cloud.process().deliver(&message, &budget).await;
            assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
        }
        cloud.world.slow(Duration::from_millis(1));
        cloud.plan_and_repair(30).await;
        cloud.drain().await;
        cloud.assert_done().await;
    }
    assert!(during > 1, "cancelled while it was planned {during} times");
}

/// Lets others go first at each call.
struct Polite;

impl Around for Polite {
    async fn call<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        mut call: impl FnMut() -> F + Send,
    ) -> Result<T> {
        tokio::task::yield_now().await;
        call().await
    }
}

#[tokio::test(start_paused = true)]
async fn messages_that_nobody_can_read_are_counted_by_many_at_once() {
    let world = World::new(16, 3);
    let store = MemoryStore::new(Commits::InOneTransaction);
    let process = || {
        let polite = WrappedStore::wrap(Arc::new(store.clone()), Polite);
        engine_over(&world, Arc::new(polite))
    };
    let why = Message::parse("nonsense").unwrap_err();
    let all: Vec<Engine> = (0..5).map(|_| process()).collect();
    let counted = all.iter().map(|engine| engine.note_unreadable(&why));
    for counted in futures::future::join_all(counted).await {
        counted.unwrap();
    }
    let key = request(Mode::Incremental).selection.key();
    let report = process().report(&key).await.unwrap();
    assert_eq!(report.unreadable_messages, 5);
}

#[tokio::test(start_paused = true)]
async fn an_export_at_the_command_line_beside_workers_waits_for_a_slot_and_ends_complete() {
    let cloud = Cloud::new(14, 200, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    cloud.drain().await;
    cloud
        .world
        .commit(999, 0, Instant::parse(BEGIN).unwrap(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let report = cloud
        .process()
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Complete, 1)
    );
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_over_goes_on_at_once_with_what_a_dead_process_left() {
    let cloud = Cloud::new(14, 90, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    let of_one_ehr = Request {
        selection: Selection {
            ehrs: vec![EhrId::new("e")],
            ..request(Mode::Incremental).selection
        },
        ..request(Mode::Full)
    };
    cloud
        .process()
        .request_run(Some("key"), of_one_ehr)
        .await
        .unwrap();
    // The process dies: its messages are gone, it holds a slice, every slot and the planner's lease.
    cloud.queue.take();
    let until = Some(cloud.world.clock().now().saturating_add(LEASE));
    let slice = cloud.slices().await.remove(0);
    let held = Slice {
        fence: slice.fence + 1,
        owner: Some("worker/dead".to_owned()),
        lease_until: until,
        ..slice.clone()
    };
    cloud
        .store
        .ledger()
        .swap_slice(&slice, &held)
        .await
        .unwrap()
        .unwrap();
    for (name, owner) in [
        ("slot/000", "worker/dead"),
        ("slot/001", "worker/dead"),
        ("slot/002", "planner/dead"),
        ("planner", "planner/dead"),
    ] {
        let there = cloud.store.ledger().records(name).await.unwrap();
        let before = there
            .into_iter()
            .next()
            .unwrap_or_else(|| Record::new(name));
        let dead = Record {
            owner: Some(owner.to_owned()),
            until,
            ..before.clone()
        };
        cloud
            .store
            .ledger()
            .swap_record(&before, &dead)
            .await
            .unwrap()
            .unwrap();
    }

    let begun = tokio::time::Instant::now();
    let process = cloud.process();
    let taken = process.take_over(&CancellationToken::new()).await.unwrap();
    assert_eq!(taken.sent, 3 + 1, "one for each slot, and a plan");
    let second = cloud.process().take_over(&CancellationToken::new()).await;
    assert_eq!(second.err().unwrap().kind(), ErrorKind::Held);
    cloud.drain().await;
    assert!(begun.elapsed() < LEASE, "it waited for a lease");
    cloud.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_tick_that_finds_all_slots_taken_leaves_no_run_behind() {
    let cloud = Cloud::new(15, 60, MemoryStore::new(Commits::InOneTransaction));
    cloud.plan_and_repair(0).await;
    // No page ends while the tick waits, so nobody can give way.
    cloud.world.slow(Duration::from_secs(20_000));
    let messages = cloud.queue.take();
    let (first, second, third) = (cloud.process(), cloud.process(), cloud.process());
    let budget = Budget::default();
    tokio::join!(
        first.deliver(&messages[0], &budget),
        second.deliver(&messages[1], &budget),
        third.deliver(&messages[2], &budget),
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cloud.plan_and_repair(15).await;
            assert_eq!(cloud.store.ledger().runs(10).await.unwrap().len(), 1);
        }
    );
    cloud.world.slow(Duration::from_millis(20));
    cloud.plan_and_repair(30).await;
    cloud.drain().await;
    cloud.assert_done().await;
}
