//! What a cloud would record of a suite, minute by minute, for the rules in [`alarms`](crate::infra::alarms). All times are scaled
//! alike: a minute lasts as long as [`Wanted::minute`](super::Wanted::minute) said, numbers of seconds are multiplied by as much.
//!
//! A machine that has too much to do makes minutes longer and no number larger: the clock of the suite's database, by which leases,
//! lag and all that stands still are measured, stands at the end of a minute until the next one begins, and the source's with it.
//!
//! ```text
//! schedules (here) ─► functions ─► lines ──────────► the report, as metric filters and log queries read it
//!                          └─────► invocations ────► AppRequests, AWS/Lambda
//!                     queues of the Lambda host ───► AWS/SQS
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use local_hosts::{azure, lambda};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Ended, Host, Hosted, LIMIT, MINUTE, WORK};
use crate::infra::alarms::{REPORT, Row};

/// Minutes between two occurrences of the planner's schedule.
const PLAN: u64 = 15;
/// The same of the report's.
const REPORTS: u64 = 5;
/// Further tries of a schedule that failed, and minutes before the first of them; the second waits twice as long.
const RETRIES: u64 = 2;
/// Between two looks at the database.
const LOOK: Duration = Duration::from_millis(20);
/// What is logged once a report is made.
const LINE: &str = "watermark report";
/// Members of a report that are times.
const TIMES: [&str; 2] = ["lag_seconds", "stalled_slice_seconds"];
/// The clock of one database: functions of the catalog belong to each database by itself.
const CLOCK: &str = "
    CREATE TABLE minute (began timestamptz NOT NULL, was timestamptz NOT NULL, lasts interval NOT NULL);
    GRANT SELECT ON minute TO PUBLIC;
    ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO clock_of_this_machine;
    CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
        $$ SELECT was + least(clock_of_this_machine() - began, lasts) FROM public.minute $$;
    INSERT INTO minute SELECT clock_of_this_machine()";
/// A minute is over.
const NEXT: &str = "UPDATE minute SET was = was + lasts, began = clock_of_this_machine()";

/// A suite whose schedules run, and what is recorded of it.
pub struct Recorder {
    hosted: Arc<Hosted>,
    source: Box<dyn Fn(Duration) + Send + Sync>,
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
    /// Begins with an occurrence of both schedules. The database has a clock of its own from now on, which shows `now` and goes with
    /// the source's: `source` puts that one forward.
    pub async fn start(
        hosted: Hosted,
        minute: Duration,
        now: Timestamp,
        source: impl Fn(Duration) + Send + Sync + 'static,
    ) -> Self {
        let lasts = minute.as_micros();
        let clock = format!("{CLOCK}, '{now}', interval '{lasts} microseconds'");
        hosted.store.execute(&clock).await;
        let from = match &hosted.host {
            Host::Azure(host) => From::Azure(host.events()),
            Host::Lambda(host) => From::Lambda(host.lines(), host.watch()),
        };
        Self {
            hosted: Arc::new(hosted),
            source: Box::new(source),
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
            let end = Instant::now() + self.minute;
            self.begin().await;
            sleep_until(end).await;
            self.end().await;
        }
    }

    /// Lets a minute begin and its clock stand until the schedules that fired then have ended, and `done` answers a number above 0.
    pub async fn pass_when(&mut self, done: &str) {
        self.begin().await;
        let begun = Instant::now();
        while self.ticks.join_next().await.is_some() {}
        while self.hosted.store.number(done).await == 0 {
            assert!(begun.elapsed() < LIMIT, "nothing comes of the tick");
            sleep(LOOK).await;
        }
        self.end().await;
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

    fn scale(&self) -> f64 {
        MINUTE.as_secs_f64() / self.minute.as_secs_f64()
    }

    /// Fires schedules. A report is there before the minute ends: it asks no source, and in a real minute nothing keeps it longer.
    async fn begin(&mut self) {
        if self.now.is_multiple_of(PLAN) {
            self.schedule();
        }
        if self.now.is_multiple_of(REPORTS) {
            self.hosted.report().await;
        }
        while self.ticks.try_join_next().is_some() {}
    }

    /// Puts both clocks forward: a source tells the time in whole seconds, and what was committed in this one is not read yet.
    pub async fn skip_a_second(&self) {
        (self.source)(Duration::from_secs(1));
        let skip = "UPDATE minute SET was = was + interval '1 second'";
        self.hosted.store.execute(skip).await;
    }

    async fn end(&mut self) {
        self.record();
        self.now += 1;
        (self.source)(self.minute);
        self.hosted.store.execute(NEXT).await;
    }

    /// Fires the planner. The Functions host tries again by itself; Lambda's event queue does so here.
    fn schedule(&mut self) {
        let (hosted, missed) = (Arc::clone(&self.hosted), Arc::clone(&self.missed));
        let minute = self.minute;
        let retries = match hosted.host {
            Host::Azure(_) => 0,
            Host::Lambda(_) => RETRIES,
        };
        self.ticks.spawn(async move {
            for retry in 0..=retries {
                let ended = match retry {
                    0 => hosted.plan_and_repair().await,
                    _ => hosted.tick_again().await,
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
        let scale = self.scale();
        rows.extend(lines.iter().filter_map(|line| report(at, line, scale)));
        rows.extend(self.queues(at));
        self.rows.extend(rows);
    }

    fn queues(&mut self, at: u64) -> Vec<Row> {
        let Host::Lambda(host) = &self.hosted.host else {
            return Vec::new();
        };
        let scale = self.scale();
        // As the module names them in an installation called `atlas`.
        let row = |queue: &str, columns: Value| {
            let mut row = Row::new(at, "AWS/SQS", columns);
            row.columns
                .insert("QueueName".to_owned(), json!(format!("atlas-{queue}")));
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
                "missed",
                json!({"ApproximateNumberOfMessagesVisible": self.missed.load(Ordering::Relaxed)}),
            ),
        ]
    }
}

/// A line, if it is a report; its times are multiplied.
fn report(at: u64, line: &str, scale: f64) -> Option<Row> {
    let mut report: Value = serde_json::from_str(line).ok()?;
    if report["message"] != LINE {
        return None;
    }
    for name in TIMES {
        if let Some(seconds) = report[name].as_f64() {
            report[name] = json!(seconds * scale);
        }
    }
    Some(Row::new(at, REPORT, report))
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
