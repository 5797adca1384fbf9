//! Faults that tests switch on, and points at which the host waits so that a test can act there.
//!
//! | where | faults |
//! | --- | --- |
//! | between queue and handler, on every queue service | `Duplicate`, `Lose`, `Malformed`, `DropResponse`, `DelayDelete`, `SkipDelete`, `StaleReceipt`, `SkipRelease` |
//! | in the in-process queue service | `Delay`, `Reverse`, `Unavailable`, `Refuse` |

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::lock;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A message that was taken becomes visible again at once: it is delivered twice, as when its visibility ended.
    Duplicate,
    /// A message that was taken is deleted and not delivered.
    Lose,
    /// A message that is put becomes visible so much later.
    Delay(Duration),
    /// The newest visible message is taken first.
    Reverse,
    /// The handler did its work and answered; the host takes the invocation for a failure.
    DropResponse,
    /// After a success the host waits before it deletes the message.
    DelayDelete(Duration),
    /// After a success the message is not deleted: it comes back when its visibility ends.
    SkipDelete,
    /// After a success the message's receipt is no longer the current one: the delete is refused.
    StaleReceipt,
    /// After a failure the message is not shown again before its visibility ends, as when the whole machine is gone.
    SkipRelease,
    /// With a message that is taken, another one comes into its queue that is not what it should be.
    Malformed,
    /// The queue service answers 503.
    Unavailable,
    /// The queue service takes no connections and drops the ones it has. Counts no events: it lasts until it is cleared.
    Refuse,
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// The next so many events that match.
    Next(u32),
    /// Until it is cleared.
    Always,
}

/// A moment in the life of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The handler puts a message into the in-process queue; it is not stored yet.
    BeforeSend,
    /// The handler's message is stored; the answer is not sent yet.
    AfterSend,
    /// The host is about to delete a message after a success.
    BeforeDelete,
    /// The host has deleted a message after a success.
    AfterDelete,
}

/// The switches and gates of one host.
#[derive(Debug, Default)]
pub(super) struct Switches {
    set: Mutex<HashMap<Discriminant<Fault>, (Fault, Times)>>,
    fired: Mutex<HashMap<Discriminant<Fault>, u64>>,
    gates: Mutex<Vec<(Point, watch::Sender<Stage>)>>,
    /// Whether the queue service refuses connections.
    refusing: watch::Sender<bool>,
}

impl Switches {
    pub(super) fn set(&self, fault: Fault, times: Times) {
        if fault == Fault::Refuse {
            self.count(&fault);
            self.refusing.send_replace(true);
        } else {
            lock(&self.set).insert(discriminant(&fault), (fault, times));
        }
    }

    /// Ends a fault, whatever its duration is.
    pub(super) fn clear(&self, fault: Fault) {
        if fault == Fault::Refuse {
            self.refusing.send_replace(false);
        }
        lock(&self.set).remove(&discriminant(&fault));
    }

    pub(super) fn clear_all(&self) {
        self.refusing.send_replace(false);
        lock(&self.set).clear();
    }

    pub(super) fn fired(&self, fault: Fault) -> u64 {
        lock(&self.fired)
            .get(&discriminant(&fault))
            .copied()
            .unwrap_or(0)
    }

    pub(super) fn refusing(&self) -> watch::Receiver<bool> {
        self.refusing.subscribe()
    }

    /// Takes one event of the fault that is like `like` (its duration is not looked at), if it is set.
    pub(super) fn take(&self, like: Fault) -> Option<Fault> {
        let key = discriminant(&like);
        let mut set = lock(&self.set);
        let (fault, times) = set.get_mut(&key)?;
        let fault = *fault;
        match times {
            Times::Always => {}
            Times::Next(0) => {
                set.remove(&key);
                return None;
            }
            Times::Next(left) => *left -= 1,
        }
        drop(set);
        self.count(&fault);
        Some(fault)
    }

    fn count(&self, fault: &Fault) {
        *lock(&self.fired).entry(discriminant(fault)).or_default() += 1;
    }

    pub(super) fn hold(&self, point: Point) -> Gate {
        let (stage, _) = watch::channel(Stage::Armed);
        lock(&self.gates).push((point, stage.clone()));
        Gate(stage)
    }

    /// Waits here if a gate of this point is armed.
    pub(super) async fn pass(&self, point: Point) {
        let armed = {
            let mut gates = lock(&self.gates);
            // A gate that was let go before anything came by holds nothing.
            gates.retain(|(_, stage)| *stage.borrow() == Stage::Armed);
            gates
                .iter()
                .position(|(of, _)| *of == point)
                .map(|place| gates.remove(place).1)
        };
        if let Some(stage) = armed {
            let held = Held(stage);
            held.0.send_if_modified(|stage| {
                let arrived = *stage == Stage::Armed;
                if arrived {
                    *stage = Stage::Reached;
                }
                arrived
            });
            let mut released = held.0.subscribe();
            // The sender lives in `held`, so this ends only with a release.
            let _ = released.wait_for(|stage| *stage == Stage::Released).await;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Armed,
    Reached,
    Released,
    Gone,
}

/// Ends with the event that it holds.
struct Held(watch::Sender<Stage>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send_replace(Stage::Gone);
    }
}

/// Holds the next event at a point until it is released or dropped.
#[derive(Debug)]
pub struct Gate(watch::Sender<Stage>);

impl Gate {
    /// Waits until an event has come to the gate.
    pub async fn reached(&self) {
        self.wait(Stage::Reached).await;
    }

    /// Waits until the event is over: it went on after a release, or whoever caused it is gone. A message of a process
    /// that was killed at [`Point::BeforeSend`] is never stored after this.
    pub async fn gone(&self) {
        self.wait(Stage::Gone).await;
    }

    /// Lets the event go on.
    pub fn release(&self) {
        self.0.send_if_modified(|stage| {
            let held = *stage < Stage::Released;
            if held {
                *stage = Stage::Released;
            }
            held
        });
    }

    async fn wait(&self, stage: Stage) {
        let mut stages = self.0.subscribe();
        // The sender is `self`, so this ends only with the stage.
        let _ = stages.wait_for(|now| *now >= stage).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

/// Shares the switches between the host and the queue service.
pub(super) type Shared = Arc<Switches>;
