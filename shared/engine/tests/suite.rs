//! The slice protocol with many workers over one store: messages that are doubled, lost, late, out of order; workers that die
//! between any two steps, freeze, or run out of time; planners that fire twice, late or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::deliver::{Buried, Delivered};
use atlas_engine::export::Engine;
use atlas_engine::memory::MemoryStore;
use atlas_engine::message::{Message, Task};
use atlas_engine::model::{Mode, Outcome, Record, Request, Selection, Slice, SliceState};
use atlas_engine::ports::{Clock, Queue, Store};
use atlas_engine::seat::SeatTerms;
use atlas_engine::tick::Asked;
use atlas_engine::work::Budget;
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::EhrId;
use atlas_openehr::time::Instant;

use support::{BEGIN, BOTH, World, copy, engine, request};

const LEASE: Duration = Duration::from_secs(90);

/// A queue that keeps everything it was ever sent, for the test to deliver as it likes.
#[derive(Default)]
struct Held {
    sent: Mutex<Vec<Message>>,
    down: Mutex<bool>,
}

impl Held {
    fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

#[async_trait]
impl Queue for Held {
    async fn send(&self, message: &Message, _delay: Duration) -> Result<()> {
        if *self.down.lock().unwrap() {
            return Err(Error::new(ErrorKind::QueueUnreachable, "send: it is down"));
        }
        self.sent.lock().unwrap().push(message.clone());
        Ok(())
    }
}

struct Suite {
    world: Arc<World>,
    store: MemoryStore,
    queue: Arc<Held>,
}

impl Suite {
    fn new(seed: u64, objects: u64, store: MemoryStore) -> Self {
        let world = World::new(seed, 3);
        let begin = Instant::parse(BEGIN).unwrap();
        for object in 0..objects {
            let committed = begin.saturating_sub(Duration::from_secs(86_400 - object * 60));
            world.commit(object, (object % 3) as usize, committed, Duration::ZERO);
        }
        Self {
            world,
            store,
            queue: Arc::default(),
        }
    }

    /// A process of its own.
    fn process(&self) -> Engine {
        Engine {
            queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
            ..engine(&self.world, &self.store)
        }
    }

    async fn tick(&self, minute: u64) {
        let occurrence = Instant::parse(BEGIN)
            .unwrap()
            .saturating_add(Duration::from_secs(minute * 60));
        let asked = request(Mode::Incremental);
        self.process()
            .tick(occurrence, &asked, &Budget::default())
            .await
            .unwrap();
    }

    /// Delivers until nothing is left; messages that ask to come again do.
    async fn drain(&self) {
        for _ in 0..10_000 {
            let messages = self.queue.take();
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let delivered = self.process().deliver(&message, &Budget::default()).await;
                if let Delivered::Again(_) = delivered {
                    self.queue.sent.lock().unwrap().push(message);
                }
            }
        }
        panic!("the queue never became empty");
    }

    async fn slices(&self) -> Vec<Slice> {
        let key = request(Mode::Incremental).selection.key();
        self.store.slices(&key).await.unwrap()
    }

    async fn assert_done(&self) {
        assert_eq!(copy(&self.store), self.world.truth());
        assert!(
            self.slices()
                .await
                .iter()
                .all(|slice| slice.state == SliceState::Done)
        );
        for run in self.store.runs(100).await.unwrap() {
            assert!(run.ended.is_some(), "{} has an end", run.id);
            assert!(run.counts.conserved());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ticks_and_deliveries_copy_what_an_export_copies() {
    for atomicity in BOTH {
        let suite = Suite::new(1, 300, MemoryStore::new(atomicity));
        suite.tick(0).await;
        assert!(suite.slices().await.len() > 3);
        suite.drain().await;
        suite.assert_done().await;
        let runs = suite.store.runs(1).await.unwrap();
        assert_eq!(runs[0].outcome, Some(Outcome::Complete));
        assert_eq!((runs[0].counts.read, runs[0].counts.written), (300, 300));
    }
}

#[tokio::test(start_paused = true)]
async fn doubled_and_reordered_messages_change_nothing() {
    let suite = Suite::new(2, 300, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    let mut messages = suite.queue.take();
    messages.reverse();
    for message in messages
        .iter()
        .chain(&messages)
        .chain(messages.iter().rev())
    {
        suite.process().deliver(message, &Budget::default()).await;
    }
    suite.drain().await;
    suite.assert_done().await;
    let requests = suite.world.requests();
    for message in &messages {
        let again = suite.process().deliver(message, &Budget::default()).await;
        assert!(matches!(again, Delivered::Stale), "{again:?}");
    }
    assert_eq!(suite.world.requests(), requests, "late doubles ask nothing");
}

#[tokio::test(start_paused = true)]
async fn lost_messages_are_sent_again_once_they_count_as_lost() {
    let suite = Suite::new(3, 200, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    let lost = suite.queue.take().len();
    assert!(lost > 0);
    suite.tick(15).await;
    assert_eq!(
        suite.queue.take().len(),
        0,
        "they may still be on their way"
    );
    tokio::time::sleep(Duration::from_secs(1801)).await;
    suite.tick(45).await;
    assert_eq!(suite.queue.sent.lock().unwrap().len(), lost);
    suite.drain().await;
    suite.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_between_two_steps_is_repaired_by_redelivery_or_sweep() {
    // What the record says when it dies: taken, released without a message, message sent and not noted.
    for step in 0..3 {
        let suite = Suite::new(4, 60, MemoryStore::new(BOTH[0]));
        suite.tick(0).await;
        let messages = suite.queue.take();
        let slice = suite.slices().await.remove(0);
        let now = suite.world.clock();
        let now = atlas_engine::ports::Clock::now(&now);
        let after = match step {
            0 => Slice {
                fence: slice.fence + 1,
                owner: Some("worker/dead".to_owned()),
                lease_until: Some(now.saturating_add(LEASE)),
                ..slice.clone()
            },
            _ => Slice {
                seq: slice.seq + 1,
                ..slice.clone()
            },
        };
        let left = suite
            .store
            .swap_slice(&slice, &after)
            .await
            .unwrap()
            .unwrap();
        if step == 2 {
            suite
                .queue
                .send(&Message::of(&left), Duration::ZERO)
                .await
                .unwrap();
        }
        let of_slice =
            |message: &&Message| matches!(&message.task, Task::Slice { id, .. } if *id == slice.id);
        let redelivered = messages.iter().find(of_slice).unwrap();
        let first = suite
            .process()
            .deliver(redelivered, &Budget::default())
            .await;
        match step {
            0 => assert!(matches!(first, Delivered::PutBack), "{first:?}"),
            _ => assert!(matches!(first, Delivered::Stale), "{first:?}"),
        }
        if step == 0 {
            suite.queue.take();
            tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
            suite.tick(15).await;
        }
        suite.queue.sent.lock().unwrap().extend(messages);
        suite.drain().await;
        suite.assert_done().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_ends_hands_the_rest_on_until_the_slice_is_done() {
    for atomicity in BOTH {
        let suite = Suite::new(5, 300, MemoryStore::new(atomicity));
        suite.world.slow(Duration::from_secs(3));
        suite.tick(0).await;
        let mut continued = 0;
        loop {
            let messages = suite.queue.take();
            if messages.is_empty() {
                break;
            }
            for message in messages {
                let budget = Budget {
                    until: Some(tokio::time::Instant::now() + Duration::from_secs(4)),
                    ..Budget::default()
                };
                let delivered = suite.process().deliver(&message, &budget).await;
                continued += usize::from(matches!(delivered, Delivered::Continued));
            }
        }
        assert!(continued > 2, "{continued} continuations");
        suite.assert_done().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_worker_that_thaws_late_commits_nothing_and_asks_nothing() {
    let suite = Suite::new(6, 60, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    let message = suite.queue.take().remove(0);
    suite.world.slow(Duration::from_secs(200));
    let frozen = suite.process();
    let thaw = async {
        // Its heartbeat is what freezing stops: another process takes slice and slot as if the lease had ended.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for record in suite.store.records("slot/").await.unwrap() {
            let stolen = Record {
                owner: Some("worker/other".to_owned()),
                ..record.clone()
            };
            suite
                .store
                .swap_record(&record, &stolen)
                .await
                .unwrap()
                .unwrap();
        }
        let Task::Slice { id, .. } = &message.task else {
            unreachable!()
        };
        let slice = suite.store.slice(id).await.unwrap().unwrap();
        let taken = Slice {
            fence: slice.fence + 1,
            owner: Some("worker/other".to_owned()),
            lease_until: Some(suite.world.now().saturating_add(Duration::from_secs(3_600))),
            ..slice.clone()
        };
        suite
            .store
            .swap_slice(&slice, &taken)
            .await
            .unwrap()
            .unwrap();
    };
    let budget = Budget::default();
    let (delivered, ()) = tokio::join!(frozen.deliver(&message, &budget), thaw);
    assert!(matches!(delivered, Delivered::Stale), "{delivered:?}");
    assert!(copy(&suite.store).is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_seats_are_taken_than_there_are_slots() {
    let suite = Suite::new(7, 300, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    let messages = suite.queue.take();
    suite.world.slow(Duration::from_secs(5));
    let processes: Vec<Engine> = (0..messages.len())
        .map(|_| Engine {
            seats: SeatTerms::new(2, LEASE),
            ..suite.process()
        })
        .collect();
    let budget = Budget::default();
    let work = processes
        .iter()
        .zip(&messages)
        .map(|(process, message)| process.deliver(message, &budget));
    let delivered = futures::future::join_all(work).await;
    let put_back = delivered
        .iter()
        .filter(|one| matches!(one, Delivered::PutBack))
        .count();
    assert_eq!(put_back, messages.len() - 2);
    assert!(suite.world.most_at_once() <= 2);
    suite.drain().await;
    suite.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn planners_that_fire_twice_at_once_or_again_plan_once() {
    let suite = Suite::new(8, 200, MemoryStore::new(BOTH[0]));
    tokio::join!(suite.tick(0), suite.tick(0), suite.tick(0));
    let sent = suite.queue.sent.lock().unwrap().len();
    assert_eq!(sent, suite.slices().await.len());
    suite.tick(0).await;
    assert_eq!(suite.queue.sent.lock().unwrap().len(), sent);
    suite.drain().await;
    suite.assert_done().await;
    assert_eq!(suite.store.runs(10).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_down_while_planning_costs_nothing_but_time() {
    let suite = Suite::new(9, 100, MemoryStore::new(BOTH[0]));
    *suite.queue.down.lock().unwrap() = true;
    let occurrence = Instant::parse(BEGIN).unwrap();
    let asked = request(Mode::Incremental);
    let failed = suite
        .process()
        .tick(occurrence, &asked, &Budget::default())
        .await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::QueueUnreachable);
    *suite.queue.down.lock().unwrap() = false;
    suite.tick(0).await;
    suite.drain().await;
    suite.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_delivered_too_often_fails_visibly_and_is_revived_later() {
    let suite = Suite::new(10, 60, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    let messages = suite.queue.take();
    for message in &messages {
        assert_eq!(suite.process().bury(message).await.unwrap(), Buried::Failed);
        assert_eq!(suite.process().bury(message).await.unwrap(), Buried::Stale);
    }
    let runs = suite.store.runs(1).await.unwrap();
    assert_eq!(runs[0].outcome, Some(Outcome::Partial));
    let report = suite.process().report(&asked_key()).await.unwrap();
    assert_eq!(report.slices.failed, messages.len() as u64);
    tokio::time::sleep(Duration::from_secs(3601)).await;
    suite.tick(60).await;
    suite.drain().await;
    suite.assert_done().await;
}

fn asked_key() -> atlas_engine::model::SelectionKey {
    request(Mode::Incremental).selection.key()
}

#[tokio::test(start_paused = true)]
async fn a_run_on_demand_is_planned_by_a_worker_once_for_each_key() {
    let suite = Suite::new(11, 200, MemoryStore::new(BOTH[0]));
    let full = request(Mode::Full);
    let first = suite
        .process()
        .ask(Some("key"), full.clone())
        .await
        .unwrap();
    let Asked::New(run) = first else {
        panic!("{first:?}")
    };
    let again = suite
        .process()
        .ask(Some("key"), full.clone())
        .await
        .unwrap();
    assert!(matches!(again, Asked::Same(same) if same.id == run.id));
    let other = Request {
        mode: Mode::Incremental,
        ..full
    };
    assert_eq!(
        suite.process().ask(Some("key"), other).await.unwrap(),
        Asked::Conflict
    );
    let early = suite.process().run_state(&run.id).await.unwrap().unwrap();
    assert_eq!((early.run.cut, early.open), (None, 0));
    suite.drain().await;
    let state = suite.process().run_state(&run.id).await.unwrap().unwrap();
    assert_eq!(state.run.outcome, Some(Outcome::Complete));
    assert_eq!(state.run.counts.read, 200);
    assert_eq!(copy(&suite.store), suite.world.truth());
    assert_eq!(suite.process().run_state("nobody").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_run_on_demand_beside_the_schedule_counts_what_it_read_itself() {
    let suite = Suite::new(12, 200, MemoryStore::new(BOTH[0]));
    let Asked::New(run) = suite
        .process()
        .ask(None, request(Mode::Full))
        .await
        .unwrap()
    else {
        unreachable!()
    };
    suite.tick(0).await;
    suite.drain().await;
    suite.tick(15).await;
    suite.drain().await;
    suite.assert_done().await;
    let state = suite.process().run_state(&run.id).await.unwrap().unwrap();
    assert_eq!(state.run.counts.read, 200);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_stops_its_workers_and_loses_nothing() {
    let suite = Suite::new(13, 300, MemoryStore::new(BOTH[0]));
    let Asked::New(run) = suite
        .process()
        .ask(None, request(Mode::Full))
        .await
        .unwrap()
    else {
        unreachable!()
    };
    let plan = suite.queue.take().remove(0);
    suite.process().deliver(&plan, &Budget::default()).await;
    let messages = suite.queue.take();
    suite.world.slow(Duration::from_secs(5));
    let (worker, canceller) = (suite.process(), suite.process());
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
        let late = suite.process().deliver(message, &budget).await;
        assert!(matches!(late, Delivered::Stale), "{late:?}");
    }
    assert!(
        suite
            .slices()
            .await
            .iter()
            .all(|slice| slice.owner.is_none())
    );
    assert!(copy(&suite.store).is_empty());
    assert_eq!(suite.process().cancel("nobody").await.unwrap(), None);
    // No watermark covers what it would have read: the next run takes that over.
    suite.tick(15).await;
    suite.drain().await;
    suite.assert_done().await;
    // Of a second one, only what ends behind the watermark is still wanted.
    let Asked::New(run) = suite
        .process()
        .ask(None, request(Mode::Full))
        .await
        .unwrap()
    else {
        unreachable!()
    };
    let plan = suite.queue.take().remove(0);
    suite.process().deliver(&plan, &budget).await;
    let planned = suite.slices().await.len();
    suite.process().cancel(&run.id).await.unwrap();
    assert!(suite.slices().await.len() < planned);
    suite.queue.take();
    suite.tick(30).await;
    suite.drain().await;
    suite.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn an_export_at_the_command_line_beside_workers_waits_for_a_seat_and_ends_complete() {
    let suite = Suite::new(14, 200, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    suite.drain().await;
    suite
        .world
        .commit(999, 0, Instant::parse(BEGIN).unwrap(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let report = suite
        .process()
        .export(&request(Mode::Incremental), &Budget::default())
        .await
        .unwrap();
    assert_eq!(
        (report.outcome, report.counts.written),
        (Outcome::Complete, 1)
    );
    suite.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_over_goes_on_at_once_with_what_a_dead_process_left() {
    let suite = Suite::new(14, 90, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    let schedule = request(Mode::Incremental).selection;
    let of_one_ehr = Request {
        selection: Selection {
            ehrs: vec![EhrId::new("e")],
            ..schedule.clone()
        },
        ..request(Mode::Full)
    };
    suite.process().ask(Some("key"), of_one_ehr).await.unwrap();
    // The process dies: its messages are gone, it holds a slice, every slot and the planner's lease.
    suite.queue.take();
    let until = Some(suite.world.clock().now().saturating_add(LEASE));
    let slice = suite.slices().await.remove(0);
    let held = Slice {
        fence: slice.fence + 1,
        owner: Some("worker/dead".to_owned()),
        lease_until: until,
        ..slice.clone()
    };
    suite
        .store
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
        let there = suite.store.records(name).await.unwrap();
        let before = there
            .into_iter()
            .next()
            .unwrap_or_else(|| Record::new(name));
        let dead = Record {
            owner: Some(owner.to_owned()),
            until,
            ..before.clone()
        };
        suite
            .store
            .swap_record(&before, &dead)
            .await
            .unwrap()
            .unwrap();
    }

    let begun = tokio::time::Instant::now();
    let process = suite.process();
    let taken = process.take_over(&schedule).await.unwrap();
    assert_eq!(taken.sent, suite.slices().await.len() + 1);
    let second = suite.process().take_over(&schedule).await;
    assert_eq!(second.err().unwrap().kind(), ErrorKind::Held);
    suite.drain().await;
    assert!(begun.elapsed() < LEASE, "it waited for a lease");
    suite.assert_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_tick_that_finds_all_seats_taken_leaves_no_run_behind() {
    let suite = Suite::new(15, 60, MemoryStore::new(BOTH[0]));
    suite.tick(0).await;
    suite.world.slow(Duration::from_secs(300));
    let messages = suite.queue.take();
    let (first, second, third) = (suite.process(), suite.process(), suite.process());
    let budget = Budget::default();
    tokio::join!(
        first.deliver(&messages[0], &budget),
        second.deliver(&messages[1], &budget),
        third.deliver(&messages[2], &budget),
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            suite.tick(15).await;
            assert_eq!(suite.store.runs(10).await.unwrap().len(), 1);
        }
    );
    suite.world.slow(Duration::from_millis(20));
    suite.tick(30).await;
    suite.drain().await;
    suite.assert_done().await;
}
