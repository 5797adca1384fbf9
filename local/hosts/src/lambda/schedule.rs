//! EventBridge Scheduler: fires by the clock, replaces what the input asks for, delivers again after a failure.
//!
//! The scheduler hands its event to Lambda's own queue, so it always succeeds at its first attempt; it is Lambda that
//! delivers an event again, unchanged and with the same request id, when the function failed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::faults::{Fault, Faults};
use super::function::Function;
use super::history::{History, Invocation, Outcome};
use super::options::{ACCOUNT, REGION};

/// A schedule of a function.
#[derive(Clone)]
pub(super) struct Schedule {
    pub(super) function: Arc<Function>,
    pub(super) every: Duration,
    pub(super) input: String,
    pub(super) faults: Faults,
    pub(super) history: Arc<History>,
}

impl Schedule {
    /// Fires until the host stops.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            let (at, wait) = self.next(Timestamp::now());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let event = self.event(at);
            for _ in 0..self.copies() {
                tokio::spawn(self.clone().deliver(event.clone(), stop.clone()));
            }
        }
    }

    /// Fires once, now, without delivering again after a failure. A duplicate ends before this does.
    pub(super) async fn fire(&self, at: Timestamp) -> Invocation {
        let event = self.event(at);
        let once = || {
            self.function
                .invoke(Uuid::new_v4().to_string(), event.clone())
        };
        if self.copies() == 2 {
            futures::join!(once(), once()).0.invocation
        } else {
            once().await.invocation
        }
    }

    fn copies(&self) -> usize {
        if self.faults.hit(Fault::FireTwice) {
            2
        } else {
            1
        }
    }

    async fn deliver(self, event: Bytes, stop: CancellationToken) {
        // An event that waits for its next delivery is not over.
        let _running = self.history.run();
        let id = Uuid::new_v4().to_string();
        let pace = &self.function.pace;
        for retry in 0..=pace.schedule_retries {
            let done = self.function.invoke(id.clone(), event.clone()).await;
            if done.invocation.outcome == Outcome::Succeeded || retry == pace.schedule_retries {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pace.schedule_retry_wait * (retry + 1)) => {}
            }
        }
    }

    /// The next time that is a multiple of the period, and how long until then.
    pub(super) fn next(&self, now: Timestamp) -> (Timestamp, Duration) {
        let every = i64::try_from(self.every.as_secs().max(1)).unwrap_or(i64::MAX);
        let at = (now.as_second() / every + 1) * every;
        let at = Timestamp::from_second(at).unwrap_or(now);
        // The clock can be set back, but not in between these two lines.
        (
            at,
            Duration::try_from(at.duration_since(now)).unwrap_or_default(),
        )
    }

    fn event(&self, at: Timestamp) -> Bytes {
        let execution = Uuid::new_v4().simple().to_string();
        let name = &self.function.spec.name;
        self.input
            .replace("<aws.scheduler.scheduled-time>", &time(at))
            .replace("<aws.scheduler.execution-id>", &execution[..16])
            .replace("<aws.scheduler.attempt-number>", "1")
            .replace(
                "<aws.scheduler.schedule-arn>",
                &format!("arn:aws:scheduler:{REGION}:{ACCOUNT}:schedule/default/{name}"),
            )
            .into()
    }
}

/// As the scheduler writes a time: whole seconds, UTC.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
