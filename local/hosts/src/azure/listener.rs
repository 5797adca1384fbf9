//! The queue trigger: takes messages, gives them to the handler of its instance, and deletes, shows or sets aside each.
//!
//! ```text
//! get ── taken too often? ── not base64? ──► <queue>-poison, never invoked
//!  └───► invoke, visibility renewed at half ──► outputs sent ──► delete
//!                     └── failed ──► shown again after visibilityTimeout, or the last time: <queue>-poison
//! ```

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::app::{Function, MessageEncoding, OutputKind, Trigger};
use super::faults::{Fault, Point};
use super::history::{Outcome, Reason};
use super::instance::Instance;
use super::queue::{QueueError, Received};
use super::wire::Answer;
use super::{Inner, lock, wire};

/// What [`Fault::Malformed`] puts beside a real message.
const MALFORMED: &str = "{\"m\":";

/// Empties one queue into one instance until nothing more is given to it.
pub(super) async fn listen(inner: Arc<Inner>, instance: Arc<Instance>, place: usize) {
    let stop = instance.dispatch.clone();
    let function = &inner.app.functions[place];
    let Trigger::Queue { queue, .. } = &function.trigger else {
        return;
    };
    let batch = inner.app.queues.batch_size;
    let most = batch.saturating_add(inner.app.queues.threshold());
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    let mut pause = inner.pace.poll_min;
    while !instance.is_down() {
        // As many as a batch needs are free only when at most the threshold is in work.
        let free = Arc::clone(&slots).acquire_many_owned(batch);
        let Some(Ok(mut slots)) = stop.run_until_cancelled(free).await else {
            return;
        };
        // `stop` does not interrupt this: messages that the service has handed out would stay hidden, and no handler would have them.
        let taken = inner.queue.get(queue, batch, inner.pace.visibility);
        let Some(taken) = instance.unless_killed(taken).await else {
            return;
        };
        let messages = taken.unwrap_or_else(|error| {
            inner.history.note(error.to_string());
            Vec::new()
        });
        if messages.is_empty() {
            drop(slots);
            let spread = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            if stop.run_until_cancelled(sleep(spread)).await.is_none() {
                return;
            }
            pause = pause.saturating_mul(2).min(inner.poll_max());
            continue;
        }
        pause = inner.pace.poll_min;
        for message in messages {
            let slot = slots.split(1);
            let (inner, instance) = (Arc::clone(&inner), Arc::clone(&instance));
            instance.tasks.clone().spawn(async move {
                let _slot = slot;
                let function = &inner.app.functions[place];
                if let Trigger::Queue { name, queue } = &function.trigger {
                    let delivery = Delivery {
                        inner: &inner,
                        instance: &instance,
                        function,
                        binding: name,
                        queue,
                    };
                    let _work = inner.history.work();
                    delivery.handle(message).await;
                }
            });
        }
    }
}

/// One message on its way.
struct Delivery<'a> {
    inner: &'a Arc<Inner>,
    instance: &'a Instance,
    function: &'a Function,
    binding: &'a str,
    queue: &'a str,
}

impl Delivery<'_> {
    async fn handle(&self, message: Received) {
        let Some(receipt) = self.before(&message).await else {
            return;
        };
        let text = self.inner.decode(&message.text);
        // The real host has no bound for the poison queue.
        let is_tired = message.dequeue_count > self.most() && !self.is_poison();
        let (Some(text), false) = (text, is_tired) else {
            self.set_aside(&message, &receipt).await;
            return;
        };
        let receipt = Arc::new(Mutex::new(receipt));
        let outcome = {
            let done = CancellationToken::new();
            let renewing = tokio::spawn(renew(
                Arc::clone(self.inner),
                self.queue.to_owned(),
                message.id.clone(),
                Arc::clone(&receipt),
                done.clone(),
            ));
            let outcome = self.invoke(&message, &text).await;
            done.cancel();
            let _ = renewing.await;
            outcome
        };
        let receipt = lock(&receipt).clone();
        if outcome == Outcome::Succeeded {
            self.delete(&message, &receipt).await;
        } else if self.instance.is_leaving()
            || self.inner.switches.take(Fault::SkipRelease).is_some()
        {
            // The fault stands for a lost machine, which cannot show the message again.
        } else if self.is_poison() {
            // Stays hidden for as long as it was taken for, and is taken again then, without end.
        } else if message.dequeue_count >= self.most() {
            self.set_aside(&message, &receipt).await;
        } else {
            let shown = self.inner.queue.update(
                self.queue,
                &message.id,
                &receipt,
                self.inner.retry_visibility(),
            );
            self.noted(shown.await.map(drop));
        }
    }

    /// Faults of the delivery; `None` if there is nothing more to do, else the receipt to go on with.
    async fn before(&self, message: &Received) -> Option<String> {
        let switches = &self.inner.switches;
        let queue = &self.inner.queue;
        if switches.take(Fault::Malformed).is_some() {
            let text = self.inner.encode(MALFORMED.as_bytes());
            self.noted(queue.put(self.queue, &text, Duration::ZERO).await);
        }
        if switches.take(Fault::Lose).is_some() {
            let lost = queue.delete(self.queue, &message.id, &message.receipt);
            self.noted(lost.await);
            return None;
        }
        if switches.take(Fault::Duplicate).is_some() {
            let shown = queue.update(self.queue, &message.id, &message.receipt, Duration::ZERO);
            self.noted(shown.await.map(drop));
        }
        Some(message.receipt.clone())
    }

    async fn invoke(&self, message: &Received, text: &str) -> Outcome {
        let inner = self.inner;
        let begun = inner
            .history
            .begin(&self.function.name, self.instance.index);
        let body = wire::queue(
            self.function,
            self.binding,
            Some(message),
            text,
            inner.encoding,
        );
        let answer = self
            .instance
            .invoke(inner, &self.function.name, begun.id, &body)
            .await;
        let outcome = match answer {
            Ok(answer) => send_outputs(inner, self.instance, self.function, &answer).await,
            Err(outcome) => outcome,
        };
        inner.history.end(begun, outcome).outcome
    }

    async fn delete(&self, message: &Received, receipt: &str) {
        let switches = &self.inner.switches;
        let queue = &self.inner.queue;
        let held = self
            .instance
            .unless_killed(switches.pass(Point::BeforeDelete));
        if held.await.is_none() {
            return;
        }
        if let Some(Fault::DelayDelete(by)) = switches.take(Fault::DelayDelete(Duration::ZERO))
            && self.instance.unless_killed(sleep(by)).await.is_none()
        {
            return;
        }
        if switches.take(Fault::SkipDelete).is_some() {
            return;
        }
        if switches.take(Fault::StaleReceipt).is_some() {
            let hidden = self.inner.pace.visibility;
            let moved = queue.update(self.queue, &message.id, receipt, hidden);
            self.noted(moved.await.map(drop));
        }
        let deleted = queue.delete(self.queue, &message.id, receipt).await;
        let gone = deleted.is_ok();
        self.noted(deleted);
        if gone {
            let held = self
                .instance
                .unless_killed(switches.pass(Point::AfterDelete));
            let _ = held.await;
        }
    }

    /// Moves a message to the poison queue: copied first, so that a crash in between doubles it and never loses it.
    async fn set_aside(&self, message: &Received, receipt: &str) {
        if self.is_poison() {
            return;
        }
        let queue = &self.inner.queue;
        let poison = format!("{}-poison", self.queue);
        let moved = async {
            queue.put(&poison, &message.text, Duration::ZERO).await?;
            queue.delete(self.queue, &message.id, receipt).await
        };
        self.noted(moved.await);
    }

    fn is_poison(&self) -> bool {
        self.queue.ends_with("-poison")
    }

    fn most(&self) -> u32 {
        self.inner.app.queues.max_dequeue_count
    }

    /// Notes a failure of the queue service. The message comes back when its visibility ends.
    fn noted(&self, done: Result<(), QueueError>) {
        if let Err(error) = done {
            self.inner.history.note(error.to_string());
        }
    }
}

/// Keeps a message hidden until `done`. A renewal that is under way then is finished: its receipt is the current one.
async fn renew(
    inner: Arc<Inner>,
    queue: String,
    id: String,
    receipt: Arc<Mutex<String>>,
    done: CancellationToken,
) {
    let visibility = inner.pace.visibility;
    let every = (visibility / 2).max(inner.pace.renewal_min);
    while done.run_until_cancelled(sleep(every)).await.is_some() {
        let current = lock(&receipt).clone();
        match inner.queue.update(&queue, &id, &current, visibility).await {
            Ok(moved) => *lock(&receipt) = moved,
            Err(error) => {
                inner.history.note(error.to_string());
                return;
            }
        }
    }
}

/// Sends what the handler put into `queue` outputs. The invocation has failed if one of them cannot be sent.
pub(super) async fn send_outputs(
    inner: &Inner,
    instance: &Instance,
    function: &Function,
    answer: &Answer,
) -> Outcome {
    inner.log(instance.index, &answer.logs);
    for output in &function.outputs {
        let OutputKind::Queue(queue) = &output.kind else {
            continue;
        };
        let Some(value) = answer.output(&output.name) else {
            continue;
        };
        for message in wire::messages(value, output.binary) {
            let text = inner.encode(&message);
            if let Err(error) = inner.queue.put(queue, &text, Duration::ZERO).await {
                inner.history.note(error.to_string());
                return Outcome::Failed(Reason::Output);
            }
        }
    }
    Outcome::Succeeded
}

impl Inner {
    /// As a message lies in the queue.
    pub(super) fn encode(&self, message: &[u8]) -> String {
        match self.app.queues.message_encoding {
            MessageEncoding::Base64 => BASE64_STANDARD.encode(message),
            MessageEncoding::None => String::from_utf8_lossy(message).into_owned(),
        }
    }

    /// The text of a message; `None` if it should be base64 and is not.
    pub(super) fn decode(&self, text: &str) -> Option<String> {
        match self.app.queues.message_encoding {
            MessageEncoding::Base64 => {
                let bytes = BASE64_STANDARD.decode(text).ok()?;
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            MessageEncoding::None => Some(text.to_owned()),
        }
    }
}
