//! A standard queue of SQS in memory, and in a file as well if a host that is started later is to go on with it.
//!
//! ```text
//!            delay over                   received
//! delayed ──────────────► visible ─────────────────────► in flight ──► deleted
//!                            ▲   visibility over, or 0       │
//!                            └───────────────────────────────┘
//!                            │ received too often
//!                            └──► visible in the dead-letter queue
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use md5::{Digest, Md5};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::faults::{Fault, Faults};
use crate::journal::{Journal, Message as Left};

/// Bytes of the longest message.
pub(super) const MAX_BYTES: usize = 1_048_576;

/// A message that was received so often does not count for the age of its queue.
const POISONED: u32 = 3;

/// Sender of what the last host left: its processes are gone.
const LEFT: &str = "LEFT";

/// What an injected message says.
const MALFORMED: &str = "{\"m\":{\"v\":1,\"kind\":";

/// Why the queue refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    NoQueue,
    Exists,
    Receipt,
    NotInFlight,
    Empty,
    TooMany,
    NotDistinct,
    TooLong,
    Invalid(&'static str),
    Unsupported,
}

/// Attributes of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) visibility: Duration,
    pub(super) delay: Duration,
    pub(super) wait: Duration,
    /// Name of the dead-letter queue, and after how many receives.
    pub(super) redrive: Option<(String, u32)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            visibility: Duration::from_secs(30),
            delay: Duration::ZERO,
            wait: Duration::ZERO,
            redrive: None,
        }
    }
}

/// Messages of a queue by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Can be received.
    pub visible: u64,
    /// Received and not deleted.
    pub in_flight: u64,
    /// Sent with a delay.
    pub delayed: u64,
}

impl Counts {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u64 {
        self.visible + self.in_flight + self.delayed
    }
}

/// What CloudWatch shows of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watched {
    /// How long the oldest message has been here. SQS leaves out those that were received three times or more.
    pub oldest: Duration,
    /// Messages received, again and again those that come back, since the queue was made.
    pub received: u64,
}

/// A message as it is received, and as it lies in the queue.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) body: String,
    pub(super) md5: String,
    /// `MessageAttributes` as they were sent.
    pub(super) attributes: Option<Value>,
    pub(super) sender: String,
    pub(super) sent: Timestamp,
    pub(super) first_received: Option<Timestamp>,
    pub(super) receives: u32,
    /// The last one only: what an older one asks for has no effect.
    pub(super) receipt: String,
    /// The queue that it was moved out of, if this is its dead-letter queue.
    pub(super) moved_from: Option<String>,
    visible_at: Instant,
    /// Since when it is in this queue.
    here: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    settings: Settings,
    messages: Vec<Message>,
    received: u64,
}

/// All queues.
#[derive(Debug)]
pub(super) struct Store {
    queues: Mutex<BTreeMap<String, Queue>>,
    /// What the last host left for queues that are not made yet.
    left: Mutex<Vec<Left>>,
    journal: Option<Journal>,
    faults: Faults,
    /// How long a second lasts that somebody asks for.
    second: Duration,
    /// Told whenever a message may have become visible.
    pub(super) changed: Notify,
}

impl Store {
    pub(super) fn new(
        faults: Faults,
        journal: Option<Journal>,
        left: Vec<Left>,
        second: Duration,
    ) -> Self {
        Self {
            queues: Mutex::default(),
            left: Mutex::new(left),
            journal,
            faults,
            second,
            changed: Notify::new(),
        }
    }

    pub(super) fn create(&self, name: &str, settings: Settings) -> Result<(), Refusal> {
        let mut queues = self.lock();
        match queues.get(name) {
            Some(queue) if queue.settings == settings => Ok(()),
            Some(_) => Err(Refusal::Exists),
            None => {
                let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
                let messages = left
                    .extract_if(.., |message| message.queue == name)
                    .map(|left| Message {
                        id: left.id,
                        ..message(LEFT, &left.text, None, Instant::now())
                    })
                    .collect();
                let queue = Queue {
                    settings,
                    messages,
                    received: 0,
                };
                queues.insert(name.to_owned(), queue);
                Ok(())
            }
        }
    }

    pub(super) fn settings(&self, name: &str) -> Result<Settings, Refusal> {
        let queues = self.lock();
        Ok(queues.get(name).ok_or(Refusal::NoQueue)?.settings.clone())
    }

    pub(super) fn counts(&self, name: &str) -> Result<Counts, Refusal> {
        let now = Instant::now();
        let queues = self.lock();
        let mut counts = Counts::default();
        for message in &queues.get(name).ok_or(Refusal::NoQueue)?.messages {
            if message.visible_at <= now {
                counts.visible += 1;
            } else if message.receipt.is_empty() {
                counts.delayed += 1;
            } else {
                counts.in_flight += 1;
            }
        }
        Ok(counts)
    }

    pub(super) fn watched(&self, name: &str) -> Result<Watched, Refusal> {
        let queues = self.lock();
        let queue = queues.get(name).ok_or(Refusal::NoQueue)?;
        let of_age = queue
            .messages
            .iter()
            .filter(|message| message.receives < POISONED);
        let ages = of_age.map(|message| message.here.elapsed());
        Ok(Watched {
            oldest: ages.max().unwrap_or_default(),
            received: queue.received,
        })
    }

    /// A message that is subject to the faults of sending.
    pub(super) fn send(
        &self,
        name: &str,
        sender: &str,
        body: &str,
        attributes: Option<Value>,
        delay: Option<Duration>,
    ) -> Result<Message, Refusal> {
        check(body)?;
        if !self.lock().contains_key(name) {
            return Err(Refusal::NoQueue);
        }
        let later = self.faults.take(|fault| match fault {
            Fault::DelayDelivery(later) => Some(later),
            _ => None,
        });
        if self.faults.hit(Fault::Malformed) {
            self.put(name, sender, MALFORMED, None, None)?;
        }
        if self.faults.hit(Fault::Lose) {
            return Ok(message(sender, body, attributes, Instant::now()));
        }
        let delay = match (delay, later) {
            (delay, Some(later)) => Some(delay.unwrap_or_default() + later),
            (delay, None) => delay,
        };
        self.put(name, sender, body, attributes, delay)
    }

    /// A message that nothing happens to.
    pub(super) fn put(
        &self,
        name: &str,
        sender: &str,
        body: &str,
        attributes: Option<Value>,
        delay: Option<Duration>,
    ) -> Result<Message, Refusal> {
        check(body)?;
        let mut queues = self.lock();
        let queue = queues.get_mut(name).ok_or(Refusal::NoQueue)?;
        let visible_at = Instant::now() + self.lasts(delay.unwrap_or(queue.settings.delay));
        let message = message(sender, body, attributes, visible_at);
        if let Some(journal) = &self.journal {
            journal.put(name, &message.id, body);
        }
        queue.messages.push(message.clone());
        drop(queues);
        self.changed.notify_waiters();
        Ok(message)
    }

    /// Messages that are visible now, and when the next one will be.
    pub(super) fn receive(
        &self,
        name: &str,
        most: usize,
        visibility: Option<Duration>,
    ) -> Result<(Vec<Message>, Option<Instant>), Refusal> {
        let now = Instant::now();
        let mut queues = self.lock();
        let queue = queues.get_mut(name).ok_or(Refusal::NoQueue)?;
        let visibility = self.lasts(visibility.unwrap_or(queue.settings.visibility));

        let mut dead = Vec::new();
        if let Some((to, after)) = queue.settings.redrive.clone() {
            let moved = queue.messages.extract_if(.., |message| {
                message.visible_at <= now && message.receives >= after
            });
            dead.extend(moved.map(|message| (to.clone(), message)));
        }

        let mut visible: Vec<usize> = (0..queue.messages.len())
            .filter(|at| queue.messages[*at].visible_at <= now)
            .collect();
        if !visible.is_empty() && self.faults.hit(Fault::Reverse) {
            visible.reverse();
        }
        visible.truncate(most);
        let mut received = Vec::with_capacity(visible.len());
        for at in visible {
            let twin = self
                .faults
                .hit(Fault::Duplicate)
                .then(|| queue.messages[at].clone());
            let message = &mut queue.messages[at];
            message.receives += 1;
            message.first_received.get_or_insert_with(Timestamp::now);
            message.receipt = Uuid::new_v4().to_string();
            message.visible_at = now + visibility;
            received.push(message.clone());
            queue.messages.extend(twin);
        }
        queue.received += received.len() as u64;
        let next = queue
            .messages
            .iter()
            .map(|message| message.visible_at)
            .min();

        let moved = !dead.is_empty();
        for (to, mut message) in dead {
            message.receipt.clear();
            message.here = now;
            message.moved_from = Some(name.to_owned());
            // It is there: a queue is only made after its dead-letter queue, and none is ever removed.
            if let Some(queue) = queues.get_mut(&to) {
                if let Some(journal) = &self.journal {
                    journal.put(&to, &message.id, &message.body);
                }
                queue.messages.push(message);
            }
        }
        drop(queues);
        if moved {
            self.changed.notify_waiters();
        }
        Ok((received, next))
    }

    pub(super) fn change_visibility(
        &self,
        name: &str,
        receipt: &str,
        visibility: Duration,
    ) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut queues = self.lock();
        let queue = queues.get_mut(name).ok_or(Refusal::NoQueue)?;
        let message = queue
            .messages
            .iter_mut()
            .find(|message| !receipt.is_empty() && message.receipt == receipt)
            .ok_or(Refusal::Receipt)?;
        if message.visible_at <= now {
            return Err(Refusal::NotInFlight);
        }
        message.visible_at = now + self.lasts(visibility);
        drop(queues);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Deleting what is already gone succeeds, as it does on SQS.
    pub(super) fn delete(&self, name: &str, receipt: &str) -> Result<(), Refusal> {
        if Uuid::try_parse(receipt).is_err() {
            return Err(Refusal::Receipt);
        }
        let mut queues = self.lock();
        let queue = queues.get_mut(name).ok_or(Refusal::NoQueue)?;
        let deleted = queue
            .messages
            .extract_if(.., |message| message.receipt == receipt);
        for message in deleted {
            if let Some(journal) = &self.journal {
                journal.gone(&message.id);
            }
        }
        Ok(())
    }

    /// How long a time that somebody asks for lasts here.
    fn lasts(&self, asked: Duration) -> Duration {
        asked.mul_f64(self.second.as_secs_f64())
    }

    /// Leaves the journal to another host.
    pub(super) fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(body: &str) -> Result<(), Refusal> {
    match body.len() {
        0 => Err(Refusal::Invalid("the message body is empty")),
        bytes if bytes > MAX_BYTES => {
            Err(Refusal::Invalid("the message is longer than 1048576 bytes"))
        }
        _ => Ok(()),
    }
}

fn message(sender: &str, body: &str, attributes: Option<Value>, visible_at: Instant) -> Message {
    let md5 = Md5::digest(body.as_bytes());
    Message {
        id: Uuid::new_v4().to_string(),
        body: body.to_owned(),
        md5: md5.iter().map(|byte| format!("{byte:02x}")).collect(),
        attributes,
        sender: sender.to_owned(),
        sent: Timestamp::now(),
        first_received: None,
        receives: 0,
        receipt: String::new(),
        moved_from: None,
        visible_at,
        here: Instant::now(),
    }
}
