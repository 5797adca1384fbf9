//! What a cloud would record of a suite, minute by minute, for the rules in [`alarms`](crate::infra::alarms). All times are scaled
//! alike: a minute lasts as long as [`Wanted::minute`](super::Wanted::minute) said, numbers of seconds are multiplied by as much.
//!
//! ```text
//! schedules (here) ─► functions ─► lines ──────────► the report, as metric filters and log queries read it
//!                          └─────► invocations ────► AppRequests, AWS/Lambda
//!                     queues of the Lambda host ───► AWS/SQS
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use local_hosts::{azure, lambda};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Ended, Host, Hosted, MINUTE, WORK};
use crate::infra::alarms::{REPORT, Row};

/// Minutes between two occurrences of the planner's schedule.
const PLAN: u64 = 15;
/// The same of the report's.
const REPORTS: u64 = 5;
/// Further tries of a schedule that failed, and minutes before the first of them; the second waits twice as long.
const RETRIES: u64 = 2;
/// What is logged once a report is made.
const LINE: &str = "watermark report";
/// Members of a report that are times.
const TIMES: [&str; 2] = ["lag_seconds", "stalled_slice_seconds"];

/// A suite whose schedules run, and what is recorded of it.
pub struct Recorder {
    hosted: Arc<Hosted>,
    minute: Duration,
    /// Minutes since the start.
    now: u64,
    rows: Vec<Row>,
    from: From,
    ticks: JoinSet<()>,
    /// Schedules that were given up.
    missed: Arc<AtomicU64>,
    /// Messages that the queue of dead letters handed out.
    received: u64,
}

enum From {
    Azure(Receiver<azure::Event>),
    Lambda(Receiver<lambda::Line>, Receiver<lambda::Invocation>),
}

impl Recorder {
    /// Begins with the first occurrence of both schedules.
    pub fn start(hosted: Hosted, minute: Duration) -> Self {
        let from = match &hosted.host {
            Host::Azure(host) => From::Azure(host.events()),
            Host::Lambda(host) => From::Lambda(host.lines(), host.watch()),
        };
        Self {
            hosted: Arc::new(hosted),
            minute,
            now: 0,
            rows: Vec::new(),
            from,
            ticks: JoinSet::new(),
            missed: Arc::default(),
            received: 0,
        }
    }

    /// What is recorded.
    pub fn hosted(&self) -> &Hosted {
        &self.hosted
    }

    /// Minutes since the start.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// What was recorded so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Lets so many minutes pass.
    pub async fn pass(&mut self, minutes: u64) {
        for _ in 0..minutes {
            // A minute in which this machine was busy with something else lasts longer: then a number of seconds is too large for
            // the minute it stands in, and an alarm can ring too early, never too late.
            let end = Instant::now() + self.minute;
            self.fire();
            sleep_until(end).await;
            self.record();
            self.now += 1;
        }
    }

    /// Lets minutes pass until nothing is left to do, and answers whether that was so within a limit.
    pub async fn pass_until_done(&mut self, limit: u64) -> bool {
        let end = self.now + limit;
        let left = "SELECT count(*) FROM atlas_slices WHERE state <> 'done'";
        let running = "SELECT count(*) FROM atlas_runs WHERE ended IS NULL";
        while self.now < end {
            // A tick has passed in which everything new was planned.
            self.pass(PLAN).await;
            let store = self.hosted.store();
            if store.number(left).await == 0 && store.number(running).await == 0 {
                return true;
            }
        }
        false
    }

    fn fire(&mut self) {
        if self.now.is_multiple_of(PLAN) {
            self.schedule(true);
        }
        if self.now.is_multiple_of(REPORTS) {
            self.schedule(false);
        }
        while self.ticks.try_join_next().is_some() {}
    }

    /// The Functions host tries again by itself; Lambda's event queue does so here.
    fn schedule(&mut self, is_plan: bool) {
        let (hosted, missed) = (Arc::clone(&self.hosted), Arc::clone(&self.missed));
        let minute = self.minute;
        let retries = match hosted.host {
            Host::Azure(_) => 0,
            Host::Lambda(_) => RETRIES,
        };
        self.ticks.spawn(async move {
            for retry in 0..=retries {
                let ended = match (is_plan, retry) {
                    (true, 0) => hosted.plan_and_repair().await,
                    (true, _) => hosted.tick_again().await,
                    (false, _) => hosted.report().await,
                };
                if ended == Ended::Succeeded {
                    return;
                }
                if retry < retries {
                    let wait = u32::try_from(retry + 1).unwrap();
                    sleep(minute * wait).await;
                }
            }
            missed.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn record(&mut self) {
        let (mut lines, mut rows) = (Vec::new(), Vec::new());
        let at = self.now * 60;
        match &mut self.from {
            From::Azure(events) => {
                for event in drain(events) {
                    match event {
                        azure::Event::Line { text, .. } => lines.push(text),
                        azure::Event::Ended(of) => {
                            let success = of.outcome == azure::Outcome::Succeeded;
                            let columns = json!({"OperationName": of.function, "Success": success});
                            rows.push(Row::new(at, "AppRequests", columns));
                        }
                        _ => {}
                    }
                }
            }
            From::Lambda(from, ended) => {
                lines.extend(drain(from).into_iter().map(|line| line.text));
                for of in drain(ended) {
                    let is_error = !matches!(
                        of.outcome,
                        lambda::Outcome::Succeeded | lambda::Outcome::Returned(_)
                    );
                    let columns = json!({
                        "FunctionName": format!("atlas-{}", of.function),
                        "Errors": u64::from(is_error),
                        "Throttles": 0,
                    });
                    rows.push(Row::new(at, "AWS/Lambda", columns));
                }
            }
        }
        let reports = lines.iter().filter_map(|line| self.report(at, line));
        rows.extend(reports);
        rows.extend(self.queues(at));
        self.rows.extend(rows);
    }

    fn report(&self, at: u64, line: &str) -> Option<Row> {
        let mut report: Value = serde_json::from_str(line).ok()?;
        if report["message"] != LINE {
            return None;
        }
        let scale = MINUTE.as_secs_f64() / self.minute.as_secs_f64();
        for name in TIMES {
            if let Some(seconds) = report[name].as_f64() {
                report[name] = json!(seconds * scale);
            }
        }
        Some(Row::new(at, REPORT, report))
    }

    fn queues(&mut self, at: u64) -> Vec<Row> {
        let Host::Lambda(host) = &self.hosted.host else {
            return Vec::new();
        };
        let scale = MINUTE.as_secs_f64() / self.minute.as_secs_f64();
        let row = |queue: &str, columns: Value| {
            let mut row = Row::new(at, "AWS/SQS", columns);
            row.columns.insert("QueueName".to_owned(), json!(queue));
            row
        };
        let watched = |queue: &str| host.queue(queue).unwrap().watched().unwrap();
        let dead_name = format!("{WORK}-poison");
        let (work, dead) = (watched(WORK), watched(&dead_name));
        let age = |of: lambda::Watched| of.oldest.as_secs_f64() * scale;
        let received = dead.received - std::mem::replace(&mut self.received, dead.received);
        vec![
            row(WORK, json!({"ApproximateAgeOfOldestMessage": age(work)})),
            row(
                &dead_name,
                json!({
                    "ApproximateAgeOfOldestMessage": age(dead),
                    "NumberOfMessagesReceived": received,
                }),
            ),
            row(
                "atlas-missed",
                json!({"ApproximateNumberOfMessagesVisible": self.missed.load(Ordering::Relaxed)}),
            ),
        ]
    }
}

/// What has come since the last time.
fn drain<T: Clone>(receiver: &mut Receiver<T>) -> Vec<T> {
    let mut all = Vec::new();
    loop {
        match receiver.try_recv() {
            Ok(one) => all.push(one),
            Err(TryRecvError::Lagged(lost)) => panic!("{lost} events were not recorded"),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return all,
        }
    }
}
