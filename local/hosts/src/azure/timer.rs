//! The timer trigger: one run at a time over all instances, its status in a file where one is wanted.
//!
//! ```text
//! file of the last host ─► missed: run at once, past due
//! tick ─► run, with retries ─► Last = when it began, Next = the occurrence after that ─► file
//! by hand ─► run with the status as it lies there: Next is still to come, and comes
//! ```

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::sleep;
use uuid::Uuid;

use super::app::{Function, Trigger};
use super::error::HostError;
use super::history::{Invocation, Outcome, Reason};
use super::listener::send_outputs;
use super::wire::{self, Status, Try};
use super::{Inner, lock};

/// The machine's clock is looked at again at least this often, because it can be set.
const NAP: Duration = Duration::from_secs(30);

/// A schedule with two occurrences that are closer than this has no status.
const OFTEN: SignedDuration = SignedDuration::from_mins(1);

/// So many occurrences are looked at for that.
const LOOKED_AT: usize = 10;

/// The state of one timer function.
#[derive(Debug)]
pub(super) struct Timer {
    /// Of the runs by schedule. Locked during one, so that two never overlap.
    status: Mutex<Status>,
    /// As it was written last, which a person's call is told.
    stored: std::sync::Mutex<Status>,
    file: Option<PathBuf>,
}

impl Timer {
    /// Reads the status that the last host left, and goes on from there. One of another schedule says nothing about this one.
    pub(super) fn new(
        state: Option<&Path>,
        function: &str,
        schedule: &Cron,
    ) -> Result<Self, HostError> {
        let file = state.map(|state| state.join("timers").join(function).join("status"));
        let now = Timestamp::now();
        let found = match &file {
            None => None,
            Some(path) => match std::fs::read(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                read => {
                    let text = read.map_err(|source| HostError::Read {
                        path: path.clone(),
                        source,
                    })?;
                    let status = read_status(&text).ok_or_else(|| HostError::App {
                        path: path.clone(),
                        problem: "is not the status of a timer; remove it, and a missed run is not made up for".to_owned(),
                    })?;
                    Some(status)
                }
            },
        };
        let anew = Status {
            last: None,
            next: occurrence(schedule, now),
            updated: Some(now),
        };
        let (status, stored) = match found {
            // The first runs know less than what is written: so it is in the real host.
            None => {
                let status = Status {
                    updated: None,
                    ..anew
                };
                (status, anew)
            }
            Some(found) if is_of(schedule, &found) => (found, found),
            Some(_) => (anew, anew),
        };
        let timer = Self {
            status: Mutex::new(status),
            stored: std::sync::Mutex::new(stored),
            file,
        };
        timer
            .save(&stored)
            .map_err(|error| HostError::system("write the status of a timer", error))?;
        Ok(timer)
    }

    fn save(&self, status: &Status) -> std::io::Result<()> {
        *lock(&self.stored) = *status;
        let Some(file) = &self.file else {
            return Ok(());
        };
        if let Some(folder) = file.parent() {
            atlas_files::create_folders(folder)?;
        }
        atlas_files::write(file, status.json().to_string())
    }
}

/// Whether a status was written under this schedule: the occurrence that it waits for is the one that this schedule has.
fn is_of(schedule: &Cron, status: &Status) -> bool {
    let Some(next) = status.next else {
        return false;
    };
    let before = next.checked_sub(SignedDuration::from_secs(1)).ok();
    let known = status.last.or(status.updated).filter(|last| *last < next);
    known
        .or(before)
        .and_then(|after| occurrence(schedule, after))
        == Some(next)
}

/// Whether a schedule fires more often than once a minute at some time; the real host then keeps no status of it.
pub(super) fn is_often(schedule: &Cron) -> bool {
    let next = |after: &Timestamp| occurrence(schedule, *after);
    let times: Vec<Timestamp> = std::iter::successors(next(&Timestamp::now()), next)
        .take(LOOKED_AT)
        .collect();
    times
        .windows(2)
        .any(|pair| pair[1].duration_since(pair[0]) < OFTEN)
}

fn read_status(text: &[u8]) -> Option<Status> {
    let stored: Value = serde_json::from_slice(text).ok()?;
    let time = |name: &str| {
        let time: Timestamp = stored.get(name)?.as_str()?.parse().ok()?;
        // The year 1 stands for never.
        Some((time.as_second() > 0).then_some(time))
    };
    Some(Status {
        last: time("Last")?,
        next: time("Next")?,
        updated: time("LastUpdated")?,
    })
}

/// Runs a function by its schedule until the host stops.
pub(super) async fn follow(inner: Arc<Inner>, place: usize) {
    let function = &inner.app.functions[place];
    let Trigger::Timer {
        schedule,
        monitor,
        at_start,
        ..
    } = &function.trigger
    else {
        return;
    };
    let Some(timer) = inner.timers.get(&function.name) else {
        return;
    };
    let known = timer.status.lock().await.next;
    match known.filter(|next| *monitor && *next <= Timestamp::now()) {
        // However many occurrences were missed, one run makes up for them.
        Some(missed) => drop(run(&inner, function, Some(missed), true).await),
        None if *at_start => drop(run(&inner, function, None, false).await),
        None => {}
    }
    loop {
        // An occurrence that came due during a run follows at once; without a status it is left out.
        let known = timer.status.lock().await.next.filter(|_| *monitor);
        let Some(next) = known.or_else(|| occurrence(schedule, Timestamp::now())) else {
            return;
        };
        while let Some(left) = left(next) {
            sleep(left.min(NAP)).await;
        }
        run(&inner, function, Some(next), false).await;
    }
}

fn left(until: Timestamp) -> Option<Duration> {
    let left = until.duration_since(Timestamp::now());
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

pub(super) fn occurrence(schedule: &Cron, after: Timestamp) -> Option<Timestamp> {
    schedule
        .find_next_occurrence(&after.to_zoned(TimeZone::UTC), false)
        .ok()
        .map(|next| next.timestamp())
}

/// Runs a timer's function once, with the retries that it has. `next` is the occurrence that is run; without one it is
/// now, in whole seconds, and later than any before.
pub(super) async fn run(
    inner: &Arc<Inner>,
    function: &Function,
    next: Option<Timestamp>,
    past_due: bool,
) -> Option<Invocation> {
    let Trigger::Timer { schedule, .. } = &function.trigger else {
        return None;
    };
    let timer = inner.timers.get(&function.name)?;
    let mut status = timer.status.lock().await;
    let now = Timestamp::now();
    let next = next.unwrap_or_else(|| {
        let second = now.as_second();
        let later = status.last.map_or(second, |last| last.as_second() + 1);
        Timestamp::from_second(later.max(second)).unwrap_or(now)
    });
    status.next = Some(next);
    let invocation = tries(inner, function, &status, past_due).await?;
    // A tick can come a little early: its own occurrence must not be the next one again.
    let began = now.max(next);
    *status = Status {
        last: Some(began),
        next: occurrence(schedule, began),
        updated: Some(began),
    };
    if let Err(error) = timer.save(&status) {
        inner.history.note(format!(
            "failed to write the status of a timer ({}); is the state folder writable?",
            error.kind()
        ));
    }
    Some(invocation)
}

/// Runs a timer's function as the admin interface does: the schedule does not notice.
pub(super) async fn by_hand(inner: &Arc<Inner>, function: &Function) -> Option<Invocation> {
    let status = *lock(&inner.timers.get(&function.name)?.stored);
    tries(inner, function, &status, false).await
}

/// The first try and, by the policy of `function.json`, further ones, under one id; answers the last one.
async fn tries(
    inner: &Arc<Inner>,
    function: &Function,
    status: &Status,
    past_due: bool,
) -> Option<Invocation> {
    let Trigger::Timer { name, monitor, .. } = &function.trigger else {
        return None;
    };
    let _work = inner.history.work();
    let sent = monitor.then_some(status);
    let id = Uuid::new_v4();
    let mut count = 0;
    let mut failure: Option<Outcome> = None;
    loop {
        let attempt = function.retry.as_ref().map(|retry| Try {
            id,
            count,
            most: retry.most(),
            failure: failure.as_ref(),
            timeout: inner.timeout(),
        });
        let body = wire::timer(
            function,
            name,
            sent,
            past_due,
            attempt.as_ref(),
            inner.encoding,
        );
        let invocation = once(inner, function, id, &body).await;
        let again = function
            .retry
            .as_ref()
            .filter(|retry| invocation.outcome != Outcome::Succeeded && count < retry.most());
        let Some(retry) = again else {
            return Some(invocation);
        };
        count += 1;
        failure = Some(invocation.outcome);
        sleep(retry.delay(count)).await;
    }
}

async fn once(inner: &Arc<Inner>, function: &Function, id: Uuid, body: &Value) -> Invocation {
    let Some(instance) = inner.first() else {
        let begun = inner.history.begin_try(id, &function.name, 0);
        return inner.history.end(begun, Outcome::Failed(Reason::Stopped));
    };
    let begun = inner.history.begin_try(id, &function.name, instance.index);
    let answer = instance.invoke(inner, &function.name, begun.id, body).await;
    let outcome = match answer {
        Ok(answer) => send_outputs(inner, &instance, function, &answer).await,
        Err(outcome) => outcome,
    };
    inner.history.end(begun, outcome)
}
