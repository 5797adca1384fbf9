//! The timer trigger: one run at a time over all instances, its status in a file where one is wanted.

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

use super::Inner;
use super::app::{Function, Trigger};
use super::error::HostError;
use super::history::{Invocation, Outcome, Reason};
use super::listener::send_outputs;
use super::wire::{self, Status};

/// The machine's clock is looked at again at least this often, because it can be set.
const NAP: Duration = Duration::from_secs(30);

/// The state of one timer function.
#[derive(Debug)]
pub(super) struct Timer {
    /// Locked during a run, so that two runs never overlap.
    status: Mutex<Status>,
    file: Option<PathBuf>,
}

impl Timer {
    /// Reads the status of the last run, if there is one.
    pub(super) fn new(state: Option<&Path>, function: &str) -> Result<Self, HostError> {
        let file = state.map(|state| state.join("timers").join(function).join("status"));
        let status = match file.as_deref().map(std::fs::read) {
            None => Status::default(),
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => Status::default(),
            Some(read) => {
                let path = file.clone().unwrap_or_default();
                let text = read.map_err(|source| HostError::Read {
                    path: path.clone(),
                    source,
                })?;
                read_status(&text).ok_or_else(|| HostError::App {
                    path,
                    problem: "is not the status of a timer; remove it, and a missed run is not made up for".to_owned(),
                })?
            }
        };
        Ok(Self {
            status: Mutex::new(status),
            file,
        })
    }

    fn save(&self, status: &Status) -> std::io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, status.json().to_string())
    }
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
    // The next occurrence is looked for when the run before it has ended: what fell into it is left out.
    while let Some(next) = occurrence(schedule, Timestamp::now()) {
        remember(&inner, timer, next).await;
        while let Some(left) = left(next) {
            sleep(left.min(NAP)).await;
        }
        run(&inner, function, Some(next), false).await;
    }
}

/// Notes the next occurrence, so that a host that is off at that time knows later.
async fn remember(inner: &Inner, timer: &Timer, next: Timestamp) {
    let mut status = timer.status.lock().await;
    status.next = Some(next);
    store(inner, timer, &status);
}

fn store(inner: &Inner, timer: &Timer, status: &Status) {
    if let Err(error) = timer.save(status) {
        inner.history.note(format!(
            "failed to write the status of a timer ({}); is the state folder writable?",
            error.kind()
        ));
    }
}

fn left(until: Timestamp) -> Option<Duration> {
    let left = until.duration_since(Timestamp::now());
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

fn occurrence(schedule: &Cron, after: Timestamp) -> Option<Timestamp> {
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
    let Trigger::Timer {
        name,
        schedule,
        monitor,
        ..
    } = &function.trigger
    else {
        return None;
    };
    let timer = inner.timers.get(&function.name)?;
    let mut status = timer.status.lock().await;
    let _work = inner.history.work();
    let now = Timestamp::now();
    let next = next.unwrap_or_else(|| {
        let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let later = status
            .last
            .and_then(|last| last.checked_add(SignedDuration::from_secs(1)).ok());
        later.map_or(second, |later| later.max(second))
    });
    status.next = Some(next);
    let sent = monitor.then_some(&*status);
    let most = function.retry.as_ref().map_or(0, |retry| retry.most());
    let mut count = 0;
    let invocation = loop {
        let retry = (count > 0).then_some((count, most));
        let body = wire::timer(function, name, sent, past_due, retry, inner.encoding);
        let invocation = once(inner, function, &body).await;
        if invocation.outcome == Outcome::Succeeded || count == most {
            break invocation;
        }
        count += 1;
        if let Some(retry) = &function.retry {
            sleep(retry.delay(count)).await;
        }
    };
    *status = Status {
        last: Some(next),
        next: occurrence(schedule, Timestamp::now()),
        updated: Some(now),
    };
    store(inner, timer, &status);
    Some(invocation)
}

async fn once(inner: &Arc<Inner>, function: &Function, body: &Value) -> Invocation {
    let Some(instance) = inner.first() else {
        let begun = inner.history.begin(&function.name, 0);
        return inner.history.end(begun, Outcome::Failed(Reason::Stopped));
    };
    let begun = inner.history.begin(&function.name, instance.index);
    let answer = instance.invoke(inner, &function.name, begun.id, body).await;
    let outcome = match answer {
        Ok(answer) => send_outputs(inner, &instance, function, &answer).await,
        Err(outcome) => outcome,
    };
    inner.history.end(begun, outcome)
}
