//! Faults that tests switch on, and points at which they hold an event.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

/// Something that goes wrong. Those of the queue need [`QueueService::InProcess`](super::QueueService::InProcess).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Queue: a received message stays in the queue a second time, under the same id.
    Duplicate,
    /// Queue: a sent message is answered for and not stored.
    Lose,
    /// Queue: a sent message is stored, and the connection breaks before the answer.
    LoseAnswer,
    /// Queue: a sent message becomes visible this much later.
    DelayDelivery(Duration),
    /// Queue: the newest messages are received first.
    Reverse,
    /// Queue: a message that is no JSON arrives along with a sent one.
    Malformed,
    /// Queue: the connection of any request breaks.
    QueueRefused,
    /// Queue: any request is answered with 503.
    QueueUnavailable,
    /// The function answered and got its 202; the service never heard it.
    DropResponse,
    /// A message is deleted this much later than its success.
    DelayDelete(Duration),
    /// A message is not deleted after its success.
    SkipDelete,
    /// The scheduler fires twice, at once.
    FireTwice,
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// The next events that match.
    Next(u32),
    /// Every event, until it is cleared.
    Always,
}

/// The switches. Clones are the same switches.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<(Fault, Times)>>>);

impl Faults {
    /// Switches a fault on, in place of what was set for the same kind.
    pub fn set(&self, fault: Fault, times: Times) {
        let mut set = self.lock();
        set.retain(|(other, _)| std::mem::discriminant(other) != std::mem::discriminant(&fault));
        if times != Times::Next(0) {
            set.push((fault, times));
        }
    }

    /// Switches all off.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The faults that are still switched on. A fault for the next events ends with the last of them.
    #[must_use]
    pub fn pending(&self) -> Vec<Fault> {
        self.lock().iter().map(|(fault, _)| *fault).collect()
    }

    /// Whether this event is hit, and uses up one of the times.
    pub(super) fn hit(&self, fault: Fault) -> bool {
        self.take(|set| (set == fault).then_some(())).is_some()
    }

    /// [`hit`](Self::hit) for the faults that carry a value.
    pub(super) fn take<T>(&self, pick: impl Fn(Fault) -> Option<T>) -> Option<T> {
        let mut set = self.lock();
        let (at, value) = set
            .iter()
            .enumerate()
            .find_map(|(at, (fault, _))| Some((at, pick(*fault)?)))?;
        match &mut set[at].1 {
            Times::Always => {}
            Times::Next(1) => {
                set.remove(at);
            }
            Times::Next(left) => *left -= 1,
        }
        Some(value)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Fault, Times)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an event can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A function's message has arrived at the in-process queue and is not stored.
    BeforeSend,
    /// A function's message is stored and not answered for.
    AfterSend,
    /// The host is about to delete a message after a success.
    BeforeDelete,
    /// The host has deleted a message after a success.
    AfterDelete,
}

/// One event that is, or will be, held. Dropped, it lets the event go on.
#[derive(Debug)]
pub struct Gate {
    reached: watch::Receiver<Option<i32>>,
    release: oneshot::Sender<()>,
}

impl Gate {
    /// Waits for the event. Answers the id of the function's process (0 if it is not known); wrap it in a time limit.
    pub async fn reached(&self) -> i32 {
        let mut reached = self.reached.clone();
        match reached.wait_for(Option::is_some).await {
            Ok(process) => process.unwrap_or_default(),
            // The host is gone: nothing will ever reach this gate.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets the event go on.
    pub fn release(self) {
        // The receiver is gone if the sender of the message was killed.
        let _ = self.release.send(());
    }
}

#[derive(Debug)]
struct Held {
    point: Point,
    reached: watch::Sender<Option<i32>>,
    released: oneshot::Receiver<()>,
}

/// The gates that wait for their event. Clones are the same gates.
#[derive(Debug, Clone, Default)]
pub(super) struct Gates(Arc<Mutex<Vec<Held>>>);

impl Gates {
    /// Holds the next event at a point. Several gates take one event each, in order.
    pub(super) fn hold(&self, point: Point) -> Gate {
        let (tell, reached) = watch::channel(None);
        let (release, released) = oneshot::channel();
        self.lock().push(Held {
            point,
            reached: tell,
            released,
        });
        Gate { reached, release }
    }

    /// An event passes: it waits here if a gate holds it.
    pub(super) async fn pass(&self, point: Point, process: Option<i32>) {
        let held = {
            let mut gates = self.lock();
            // A gate that was dropped before its event holds nothing.
            gates.retain_mut(|held| {
                held.released.try_recv() == Err(oneshot::error::TryRecvError::Empty)
            });
            let at = gates.iter().position(|held| held.point == point);
            at.map(|at| gates.remove(at))
        };
        if let Some(held) = held {
            held.reached.send_replace(Some(process.unwrap_or_default()));
            let _ = held.released.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
