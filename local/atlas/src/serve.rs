//! `atlas serve`: the whole suite in one process, for a server or a container, until a signal.
//!
//! ```text
//!  schedule ──► planner ──┐           ┌─► worker ─┐
//!          └──► report    ├─► queue ──┼─► worker ─┼─► store
//!  http ──► /api/exports ─┘           └─► worker ─┘
//! ```
//! | module | what |
//! |---|---|
//! | `schedule` | when the planner runs, and when the report is stored |
//! | `http` | the on-demand API, the watermark, whether the process is alive and ready; the token |
//! | `callers` | whom it answers: no page in a browser |
//! | `connections` | how many there may be, and how long each may take |
//!
//! The handlers are those of the functions. The queue is gone with the process, and so is whoever held a lease: at the start
//! [`Engine::take_over`](atlas_engine::engine::Engine::take_over) goes on with what the process before left.

mod callers;
mod connections;
mod http;
mod schedule;

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::local::{Delivery, LocalQueue};
use atlas_engine::ports::Queue;
use atlas_engine::suite::takeover::TakenOver;
use atlas_runtime::function::Suite;
use atlas_runtime::settings::Settings;
use atlas_runtime::suite;
use atlas_runtime::telemetry::{self, REPORT};
use atlas_worker::Verdict;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cli::Global;
use crate::failure::{Exit, Failure};
use crate::signals::{Ended, watched};
use crate::{output, session};

use connections::Limits;

/// A store that is away at the start is asked again after this long.
const STORE_AGAIN: Duration = Duration::from_secs(2);
/// Callers that were being answered when the work ended get this long: a connection that never ends must not hold the exit up.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// What failed once is tried again after this long, twice after twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(900);

pub(crate) async fn run(global: &Global) -> Result<Exit, Failure> {
    let settings = session::settings(global, Vec::new())?;
    start_logging(&settings)?;
    let queue = Arc::new(LocalQueue::default());
    let suite = Suite::new(settings, Arc::clone(&queue) as Arc<dyn Queue>)?;
    let listener = listen(suite.settings.serve.listen).await?;
    let (stop, patience) = (suite.stop.clone(), suite.settings.export.shutdown_timeout);
    let ended = watched(serve(Arc::new(suite), queue, listener), &stop, patience).await?;
    match ended {
        Ended::Done(result) | Ended::Stopped(_, result) => result.map(|()| Exit::Complete),
        Ended::AtOnce(exit) => {
            let failure = Failure::new(exit, "stopped in the middle of a page");
            Err(failure
                .fix("nothing is lost: the next `atlas serve` repeats that page and goes on"))
        }
    }
}

/// A person reads lines; everything else gets JSON on stdout.
fn start_logging(settings: &Settings) -> Result<(), Failure> {
    let (level, file) = (settings.log_level, settings.log_file.as_ref());
    if io::stdout().is_terminal() {
        telemetry::init(level, file, io::stderr)?;
    } else {
        telemetry::init_service(level, file)?;
    }
    for notice in &settings.notices {
        tracing::warn!("{notice}");
    }
    Ok(())
}

async fn listen(at: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(at).await.map_err(|error| {
        Failure::new(Exit::Usage, format!("failed to listen on {at}"))
            .because(error)
            .fix("`serve.listen` says where; take an address of this machine and a port that is free")
    })
}

/// Works and answers until the suite is stopped, or until a part cannot go on.
async fn serve(
    suite: Arc<Suite>,
    queue: Arc<LocalQueue>,
    listener: TcpListener,
) -> Result<(), Failure> {
    let address = listener
        .local_addr()
        .map_err(|error| Failure::new(Exit::Internal, "failed to listen").because(error))?;
    let router = http::router(&suite, address.port());
    let stop = suite.stop.clone();
    let http = connections::answer_all(listener, router, Limits::of_system(), stop);
    let http = tokio::spawn(http);
    announce(&suite.settings, suite.engine.store.kind(), address);
    let worked = work(&suite, &queue).await;
    suite.stop.cancel();
    if timeout(LAST_ANSWERS, http).await.is_err() {
        tracing::warn!("callers were left without an answer");
    }
    worked
}

async fn work(suite: &Arc<Suite>, queue: &Arc<LocalQueue>) -> Result<(), Failure> {
    let Some(taken) = suite.stop.run_until_cancelled(take_over(suite)).await else {
        return Ok(());
    };
    let lease = taken?.lease;
    let (stop, lost) = (suite.stop.clone(), lease.lost().clone());
    // A process that was stopped for longer than its lease begins nothing more: another one works with this store.
    let watching = tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = lost.cancelled() => stop.cancel(),
        }
    });
    let mut parts = JoinSet::new();
    for _ in 0..suite.settings.serve.workers {
        parts.spawn(deliver_all(Arc::clone(suite), Arc::clone(queue)));
    }
    parts.spawn(schedule::plan(Arc::clone(suite)));
    parts.spawn(schedule::report(Arc::clone(suite)));
    while let Some(ended) = parts.join_next().await {
        ended.map_err(|error| {
            Failure::new(Exit::Internal, "a part of `atlas serve` ended by itself").because(error)
        })?;
    }
    watching.abort();
    if lease.lost().is_cancelled() {
        return Err(Failure::new(
            Exit::Held,
            "this `atlas serve` was stopped for a while, and another one has taken over its store",
        ));
    }
    lease.release().await;
    Ok(())
}

/// Waits for the store if it is away: a container can start before its database does.
async fn take_over(suite: &Suite) -> Result<TakenOver, Failure> {
    loop {
        match suite.engine.take_over(&suite.stop).await {
            Ok(taken) => {
                tracing::info!(
                    sent = taken.sent,
                    "the store is ready; {} messages sent for what was left open",
                    taken.sent
                );
                return Ok(taken);
            }
            Err(error) if error.kind().policy().passes => {
                tracing::warn!("waiting for the store: {}", error.chain());
            }
            Err(error) => return Err(error.into()),
        }
        sleep(STORE_AGAIN).await;
    }
}

async fn deliver_all(suite: Arc<Suite>, queue: Arc<LocalQueue>) {
    while let Some(delivery) = suite.stop.run_until_cancelled(queue.recv()).await {
        deliver(&suite, &queue, delivery).await;
    }
}

/// What the Functions host does with a message and with one that failed too often.
async fn deliver(suite: &Suite, queue: &LocalQueue, delivery: Delivery) {
    let text = delivery.message.to_json();
    let time = suite.settings.functions.timeout;
    let mut verdict = atlas_worker::handle(suite, &text, time).await;
    if verdict == Verdict::Again && delivery.count >= suite::MAX_RECEIVES {
        verdict = atlas_worker::mark_failed(suite, &text).await;
    }
    if verdict == Verdict::Again {
        let pause = pause(delivery.count);
        queue.again(delivery, pause);
    }
}

fn pause(tries: u32) -> Duration {
    AGAIN.saturating_mul(tries).min(LONGEST_PAUSE)
}

/// Tells where it listens and what it does: a line in the log, and a summary for a person.
fn announce(settings: &Settings, store: &str, address: SocketAddr) {
    let (serve, schedule) = (&settings.serve, &settings.schedule);
    tracing::info!(
        target: REPORT,
        address = %address,
        store,
        workers = serve.workers,
        plan = schedule.plan.as_str(),
        report = schedule.report.as_str(),
        "listening on http://{address}"
    );
    if !io::stdout().is_terminal() {
        return;
    }
    let caller = match serve.token {
        Some(_) => "callers show the token",
        None => "for this machine only",
    };
    let line = |cron| {
        let next = schedule::next(cron).strftime("%F %TZ");
        format!("{:<20}next {next}", cron.as_str())
    };
    output::tell(&format!(
        "listening  http://{address}, {caller}\n\
         store      {store}\n\
         workers    {}\n\
         plan       {}, and now\n\
         report     {}\n\
         Ctrl-C stops at the next page boundary",
        serve.workers,
        line(&schedule.plan),
        line(&schedule.report),
    ));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    use atlas_engine::message::Task;
    use atlas_engine::model::SliceState;
    use atlas_openehr::time::Instant;
    use atlas_runtime::Environment;
    use atlas_sample_cdr::{Fault, SampleCdr};

    #[tokio::test]
    async fn a_message_that_failed_too_often_is_set_aside() {
        let cdr = SampleCdr::builder().compositions(10).start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[openehr]\nbase_url = \"{}\"\n[openehr.retry]\nmax_retries = 0\n[sqlite]\npath = \"{}\"",
            cdr.base_url(),
            folder.path().join("copy.db").display()
        );
        let environment = Environment::default();
        let settings = Settings::parse(&text, Path::new("atlas.toml"), &environment, &[]).unwrap();
        let queue = Arc::new(LocalQueue::default());
        let suite = Suite::new(settings, Arc::clone(&queue) as Arc<dyn Queue>).unwrap();
        let time = suite.settings.functions.timeout;
        let occurrence = Instant::parse("2026-11-25T09:15:00Z").unwrap();
        let planned = atlas_planner::handle(&suite, occurrence, &suite.planning_budget(time)).await;
        assert!(planned.unwrap().cut.is_some());
        let away = Fault::Status {
            status: 500,
            retry_after_secs: None,
        };
        cdr.handle().inject(away.always());

        let Delivery { message, .. } = queue.next().unwrap();
        let Task::Slice { id, .. } = &message.task else {
            unreachable!("no run was asked for");
        };
        let left = queue.len();
        for count in 1..=suite::MAX_RECEIVES {
            let slice = suite
                .engine
                .store
                .ledger()
                .slice(id)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(slice.state, SliceState::Open, "delivery {count}");
            let message = message.clone();
            deliver(&suite, &queue, Delivery { message, count }).await;
        }
        let slice = suite
            .engine
            .store
            .ledger()
            .slice(id)
            .await
            .unwrap()
            .unwrap();
        // Small templates shared it: it was divided among them, and both slots have a slice of theirs.
        assert_eq!(slice.state, SliceState::Done);
        assert!(slice.members.iter().all(|member| member.taken_out));
        let again = suite::MAX_RECEIVES as usize - 1;
        assert_eq!(queue.len(), left + again + 2);
    }

    #[test]
    fn pauses_grow_up_to_a_quarter_of_an_hour() {
        let pauses = [1, 2, 5, 100].map(|tries| pause(tries).as_secs());
        assert_eq!(pauses, [60, 120, 300, 900]);
    }
}
