//! When the planner runs, and when the report is stored: by `[schedule]`, in UTC. The next occurrence is looked up after a
//! run has ended, so runs never overlap, and those that were missed are made up for by one.

use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::time::Instant;
use atlas_runtime::function::Suite;
use atlas_runtime::wiring::machine_time;
use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::sleep;

use super::pause;

/// The clock of the machine is looked at this often: it can be set, and a machine can sleep.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Somebody else was planning, or had all slots of the source: planning takes seconds.
const BUSY_AGAIN: Duration = Duration::from_secs(5);

/// Plans at once, since a process that starts anew must not wait for an occurrence, and then by the schedule. What could not
/// be planned is tried again before that.
pub(super) async fn plan(suite: Arc<Suite>) {
    let cron = &suite.settings.schedule.plan;
    let (mut occurrence, mut tries) = (machine_time(), 0);
    while !suite.stop.is_cancelled() {
        let budget = suite.planning_budget(suite.settings.functions.timeout);
        let again = match atlas_planner::handle(&suite, occurrence, &budget).await {
            Ok(tick) if tick.cut.is_some() => None,
            Ok(_) => Some(BUSY_AGAIN),
            Err(error) => {
                tracing::error!("what is new was not planned: {}", error.chain());
                tries += 1;
                Some(pause(tries))
            }
        };
        let next = next(cron);
        let again = again.and_then(|again| Timestamp::now().checked_add(again).ok());
        match again {
            Some(again) if again < next => wait(&suite, again).await,
            _ => {
                wait(&suite, next).await;
                tries = 0;
                occurrence =
                    Instant::from_micros(next.as_microsecond()).unwrap_or_else(machine_time);
            }
        }
    }
}

/// Stores the watermark report by the schedule.
pub(super) async fn report(suite: Arc<Suite>) {
    loop {
        wait(&suite, next(&suite.settings.schedule.report)).await;
        if suite.stop.is_cancelled() {
            return;
        }
        if let Err(error) = atlas_watermark::save_report(&suite).await {
            tracing::error!("the watermark report was not stored: {}", error.chain());
        }
    }
}

/// The next occurrence; one that never comes (the settings refuse it) lies at the end of time.
pub(super) fn next(cron: &Cron) -> Timestamp {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    cron.find_next_occurrence(&now, false)
        .map_or(Timestamp::MAX, |next| next.timestamp())
}

/// Waits until then, or until the suite is stopped.
async fn wait(suite: &Suite, until: Timestamp) {
    loop {
        let left = until.duration_since(Timestamp::now());
        if !left.is_positive() {
            return;
        }
        let nap = sleep(left.unsigned_abs().min(LOOK_AGAIN));
        if suite.stop.run_until_cancelled(nap).await.is_none() {
            return;
        }
    }
}
