//! A queue inside one process: what the command line and `serve` use where the clouds have theirs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Result;
use crate::message::Message;
use crate::ports::Queue;

/// Messages by when they are due; those of the same instant in the order they were sent. Gone with the process, which is
/// harmless: the store knows what is left ([`Engine::take_over`](crate::engine::Engine::take_over)).
#[derive(Debug, Default)]
pub struct LocalQueue {
    waiting: Mutex<BTreeMap<(Instant, u64), Delivery>>,
    sent: std::sync::atomic::AtomicU64,
    arrived: Notify,
}

/// A message that was taken from the queue, which has forgotten it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How often it was delivered, this time included.
    pub count: u32,
}

impl LocalQueue {
    /// The next message that is due, if there is one.
    pub fn next(&self) -> Option<Delivery> {
        let mut waiting = self.waiting();
        let (due, _) = waiting.first_key_value()?.0;
        (*due <= Instant::now())
            .then(|| waiting.pop_first())?
            .map(|(_, delivery)| delivery)
    }

    /// Waits for the next message. Nothing is lost when the wait is given up.
    pub async fn recv(&self) -> Delivery {
        loop {
            let arrived = self.arrived.notified();
            if let Some(delivery) = self.next() {
                return delivery;
            }
            let due = self.waiting().first_key_value().map(|((due, _), _)| *due);
            match due {
                Some(due) => {
                    tokio::select! {
                        () = arrived => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                None => arrived.await,
            }
        }
    }

    /// Delivers a message once more, `delay` from now.
    pub fn again(&self, delivery: Delivery, delay: Duration) {
        let again = Delivery {
            count: delivery.count + 1,
            ..delivery
        };
        self.put(again, delay);
    }

    fn put(&self, delivery: Delivery, delay: Duration) {
        let number = self.sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.waiting()
            .insert((Instant::now() + delay, number), delivery);
        // Everybody looks: the one who is woken may be about to leave.
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    /// How many messages wait, those that are not due yet included.
    pub fn len(&self) -> usize {
        self.waiting().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Delivery>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for LocalQueue {
    async fn send(&self, message: &Message, delay: Duration) -> Result<()> {
        let delivery = Delivery {
            message: message.clone(),
            count: 1,
        };
        self.put(delivery, delay);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn messages_come_when_they_are_due_and_in_the_order_they_were_sent() {
        let queue = LocalQueue::default();
        for (run, seconds) in [("late", 60), ("first", 0), ("second", 0)] {
            let delay = Duration::from_secs(seconds);
            queue.send(&Message::plan(run), delay).await.unwrap();
        }
        assert_eq!(queue.recv().await.message.run, "first");
        assert_eq!(queue.recv().await.message.run, "second");
        assert_eq!(queue.next(), None);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.recv().await.message.run, "late");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_delivered_again_says_how_often() {
        let queue = LocalQueue::default();
        let message = Message::plan("run");
        queue.send(&message, Duration::ZERO).await.unwrap();
        for count in 1..=3 {
            let delivery = queue.recv().await;
            assert_eq!((&delivery.message, delivery.count), (&message, count));
            queue.again(delivery, Duration::from_secs(60));
            assert_eq!(queue.next(), None);
        }
    }
}
