//! The functions of a cloud, one process for each call, with a queue that a test delivers from as it likes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::engine::Engine;
use atlas_engine::memory::MemoryStore;
use atlas_engine::message::{Message, Task};
use atlas_engine::model::{Mode, Run, Slice, SliceState};
use atlas_engine::ports::{Queue, Store};
use atlas_engine::suite::deliver::Delivered;
use atlas_engine::suite::runs::RunRequested;
use atlas_engine::work::Budget;
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::time::Instant;

use super::{BEGIN, World, copy, engine, request};

pub const LEASE: Duration = Duration::from_secs(90);

/// A queue that keeps everything it was ever sent, for the test to deliver as it likes.
#[derive(Default)]
pub struct Held {
    sent: Mutex<Vec<Message>>,
    down: Mutex<bool>,
}

impl Held {
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    pub fn put(&self, messages: Vec<Message>) {
        self.sent.lock().unwrap().extend(messages);
    }

    /// The one that was sent first.
    pub fn take_one(&self) -> Option<Message> {
        let mut sent = self.sent.lock().unwrap();
        (!sent.is_empty()).then(|| sent.remove(0))
    }

    pub fn take_plan(&self) -> Option<Message> {
        let mut sent = self.sent.lock().unwrap();
        let place = sent.iter().position(|one| one.task == Task::Plan)?;
        Some(sent.remove(place))
    }

    /// Whether every run in a store has its end.
    pub async fn is_over(&self, store: &MemoryStore) -> bool {
        let runs = store.ledger().runs(100).await.unwrap();
        runs.iter().all(|run| run.ended.is_some())
    }

    pub fn waiting(&self) -> usize {
        self.sent.lock().unwrap().len()
    }

    pub fn set_down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
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

/// Processes that come and go over one world, one store and one queue.
pub struct Cloud {
    pub world: Arc<World>,
    pub store: MemoryStore,
    pub queue: Arc<Held>,
}

impl Cloud {
    pub fn new(seed: u64, objects: u64, store: MemoryStore) -> Self {
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
    pub fn process(&self) -> Engine {
        Engine {
            queue: Arc::clone(&self.queue) as Arc<dyn Queue>,
            ..engine(&self.world, &self.store)
        }
    }

    pub async fn ask_for_full_run(&self) -> Run {
        let asked = self.process().request_run(None, request(Mode::Full)).await;
        match asked.unwrap() {
            RunRequested::New(run) => run,
            other => panic!("nobody asked for it before: {other:?}"),
        }
    }

    pub async fn plan_and_repair(&self, minute: u64) {
        let occurrence = Instant::parse(BEGIN)
            .unwrap()
            .saturating_add(Duration::from_secs(minute * 60));
        let asked = request(Mode::Incremental);
        self.process()
            .plan_and_repair(occurrence, &asked, &Budget::default())
            .await
            .unwrap();
    }

    /// Delivers until nothing is left; messages that ask to come again do.
    pub async fn drain(&self) {
        for _ in 0..10_000 {
            let messages = self.queue.take();
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let delivered = self.process().deliver(&message, &Budget::default()).await;
                if let Delivered::Again(_) = delivered {
                    self.queue.put(vec![message]);
                }
            }
        }
        panic!("the queue never became empty");
    }

    pub async fn slices(&self) -> Vec<Slice> {
        let key = request(Mode::Incremental).selection.key();
        self.store.ledger().slices(&key).await.unwrap()
    }

    pub async fn assert_done(&self) {
        assert_eq!(copy(&self.store), self.world.truth());
        assert!(
            self.slices()
                .await
                .iter()
                .all(|slice| slice.state == SliceState::Done)
        );
        for run in self.store.ledger().runs(100).await.unwrap() {
            assert!(run.ended.is_some(), "{} has an end", run.id);
            assert!(run.counts.conserved());
        }
    }
}
