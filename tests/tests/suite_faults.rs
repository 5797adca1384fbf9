//! The function suite when things go wrong, on both hosts. Each cell ends with an equal copy, nothing twice, no slice and no
//! run without an end. Programs are the shipped ones: workers are held in their database (`points`) or at their queue, and
//! killed there.
//!
//! | fault | where |
//! |---|---|
//! | kill -9 before and after take, write, checkpoint, enqueue, acknowledge | `killed_at` |
//! | frozen longer than the lease, then thawed | `frozen` |
//! | time-out in the middle of a page | `timed_out` |
//! | messages doubled, reordered, delayed, lost, malformed, of an unknown version, base64 by chance | `messages` |
//! | queue down, store down | `down` |
//! | planner twice at once, again, late, not for a day | `planner` |
//! | answers that nobody heard | `answers` |
//! | a clock that is wrong by an hour | `clock` |
//! | 429 storms, and both hosts at one source | `slots` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use atlas_sample_cdr::{Fault, Handle, On, Running, Template};
use atlas_scenarios::assert_copy;
use atlas_scenarios::hosted::{
    Cloud, Ended, Hosted, Point, Queues, Signal, Trouble, Wanted, signal,
};
use atlas_scenarios::points::{Hold, Step};
use atlas_scenarios::source::{of_sample, sample};
use atlas_scenarios::store::Store;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than the leases of these tests.
const LEASE_OVER: Duration = Duration::from_millis(4_500);

/// Makes a test of each sentence on each host.
macro_rules! on_both_hosts {
    ($($sentence:ident),+ $(,)?) => {
        mod on_azure {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $sentence() {
                super::$sentence(super::Cloud::Azure).await;
            })+
        }
        mod on_lambda {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $sentence() {
                super::$sentence(super::Cloud::Lambda).await;
            })+
        }
    };
}

struct Suite {
    _server: Running,
    cdr: Handle,
    hosted: Hosted,
}

impl Suite {
    /// A suite that has copied everything there is, and has 150 more compositions to copy.
    async fn with_news(cloud: Cloud, adjust: impl FnOnce(Wanted) -> Wanted) -> Self {
        let server = sample(30).start().await.unwrap();
        let cdr = server.handle();
        let wanted = Wanted::new(cloud, Queues::InProcess, &server.base_url())
            .await
            .with("ATLAS_OPENEHR_QUERY_BATCH_SIZE", "20")
            .with("ATLAS_FUNCTIONS_ORPHAN_SECONDS", "6")
            .with("ATLAS_FUNCTIONS_REVIVE_SECONDS", "6");
        let hosted = adjust(wanted).start().await;
        hosted.tick_and_work().await;
        let suite = Self {
            _server: server,
            cdr,
            hosted,
        };
        suite.news();
        suite
    }

    fn news(&self) {
        for number in 0..150 {
            self.cdr.commit(match number % 3 {
                0 => Template::VitalSigns,
                1 => Template::MedicationOrder,
                _ => Template::LaboratoryReport,
            });
            self.cdr.advance(SECOND);
        }
        self.cdr.advance(10 * SECOND);
    }

    /// Pages that take so long.
    fn slow_pages(&self, time: Duration) {
        let latency = Fault::Latency {
            millis: u64::try_from(time.as_millis()).unwrap(),
        };
        self.cdr.inject(latency.always().on(On::AqlPages));
    }

    /// What an operator waits for: leases end, a tick sweeps, and everything is there.
    async fn assert_repaired(&self) {
        self.cdr.clear_faults();
        self.hosted.quiet().await;
        sleep(LEASE_OVER).await;
        self.hosted.tick_and_work().await;
        self.assert_whole().await;
    }

    async fn assert_whole(&self) {
        assert_copy(self.hosted.store(), &of_sample(&self.cdr)).await;
        self.hosted.assert_settled().await;
    }
}

on_both_hosts!(
    killed_before_the_take,
    killed_after_the_take,
    killed_before_the_write,
    killed_after_the_write,
    killed_before_the_checkpoint,
    killed_after_the_checkpoint,
    killed_before_the_continuation_is_enqueued,
    killed_after_the_continuation_is_enqueued,
    killed_before_the_message_is_acknowledged,
    killed_after_the_message_is_acknowledged,
    frozen_longer_than_the_lease_and_thawed_a_worker_commits_nothing,
    a_time_out_in_the_middle_of_a_page_costs_only_that_page,
    doubled_messages_change_nothing,
    reordered_messages_change_nothing,
    delayed_messages_arrive_late_and_change_nothing,
    lost_messages_are_sent_again,
    unreadable_messages_are_counted_and_stop_nothing,
    messages_that_are_not_deleted_come_again_and_change_nothing,
    answers_that_nobody_heard_are_given_again,
    a_queue_that_is_down_costs_time_only,
    a_store_that_is_down_costs_time_only,
    planners_at_once_again_and_after_a_day_plan_what_is_new_once,
    a_worker_whose_clock_is_an_hour_wrong_takes_nothing_from_others,
    a_storm_of_429_lowers_the_slots_and_quiet_raises_them_again,
);

async fn killed_at(cloud: Cloud, step: Step) {
    let suite = Suite::with_news(cloud, |wanted| wanted.workers(1)).await;
    let hold = Hold::at(step, suite.hosted.store()).await;
    suite.hosted.plan_and_repair().await;
    hold.reached().await;
    suite.hosted.kill_workers();
    hold.release().await;
    suite.assert_repaired().await;
    assert!(suite.hosted.worked().contains(&Ended::Lost));
}

async fn killed_before_the_take(cloud: Cloud) {
    killed_at(cloud, Step::BeforeTake).await;
}

async fn killed_after_the_take(cloud: Cloud) {
    killed_at(cloud, Step::AfterTake).await;
}

async fn killed_before_the_write(cloud: Cloud) {
    killed_at(cloud, Step::BeforeWrite).await;
}

async fn killed_after_the_write(cloud: Cloud) {
    killed_at(cloud, Step::AfterWrite).await;
}

async fn killed_before_the_checkpoint(cloud: Cloud) {
    killed_at(cloud, Step::BeforeCheckpoint).await;
}

async fn killed_after_the_checkpoint(cloud: Cloud) {
    killed_at(cloud, Step::AfterCheckpoint).await;
}

async fn killed_before_the_message_is_acknowledged(cloud: Cloud) {
    killed_at(cloud, Step::BeforeAcknowledge).await;
}

/// A slice of three pages takes two messages or more: the first one after the planner's is a continuation.
async fn killed_at_the_queue(cloud: Cloud, point: Point) {
    let suite = Suite::with_news(cloud, |wanted| {
        wanted.workers(1).with("ATLAS_FUNCTIONS_SLICE_SECONDS", "1")
    })
    .await;
    suite.slow_pages(Duration::from_millis(700));
    suite.hosted.plan_and_repair().await;
    let gate = suite.hosted.hold(point);
    gate.reached().await;
    suite.hosted.kill_workers();
    gate.release();
    suite.assert_repaired().await;
}

async fn killed_before_the_continuation_is_enqueued(cloud: Cloud) {
    killed_at_the_queue(cloud, Point::BeforeSend).await;
}

async fn killed_after_the_continuation_is_enqueued(cloud: Cloud) {
    killed_at_the_queue(cloud, Point::AfterSend).await;
}

async fn killed_after_the_message_is_acknowledged(cloud: Cloud) {
    killed_at_the_queue(cloud, Point::AfterDelete).await;
}

async fn frozen_longer_than_the_lease_and_thawed_a_worker_commits_nothing(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| wanted.workers(2)).await;
    suite.slow_pages(Duration::from_millis(600));
    suite.hosted.plan_and_repair().await;
    let store = suite.hosted.store();
    let working = "SELECT count(*) FROM atlas_slices
                   WHERE owner IS NOT NULL AND cursor_object IS NOT NULL AND state = 'open'";
    while store.number(working).await == 0 {
        sleep(Duration::from_millis(20)).await;
    }
    // Frozen while it waits for a page, not in a transaction: its row lock would keep this test out, too.
    let stopped = suite.hosted.workers();
    let busy = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    loop {
        for process in &stopped {
            assert!(signal(*process, Signal::STOP));
        }
        if store.number(busy).await == 0 {
            break;
        }
        for process in &stopped {
            assert!(signal(*process, Signal::CONT));
        }
        sleep(Duration::from_millis(50)).await;
    }
    sleep(LEASE_OVER).await;
    // Somebody else takes everything over: its fence is higher from now on.
    let taken =
        "UPDATE atlas_slices SET fence = fence + 1, step = step + 1, owner = 'worker/other',
                 lease_until = now() + interval '12 seconds' WHERE state = 'open'";
    store.execute(taken).await;
    let copied = store.count().await;
    for process in &stopped {
        let _ = signal(*process, Signal::CONT);
    }
    sleep(3 * SECOND).await;
    assert_eq!(
        store.count().await,
        copied,
        "rows of a worker that lost its lease"
    );
    let left =
        "UPDATE atlas_slices SET owner = NULL, lease_until = NULL, sent_part = 0, step = step + 1
                WHERE owner = 'worker/other'";
    store.execute(left).await;
    suite.cdr.clear_faults();
    suite.hosted.tick_and_work().await;
    suite.assert_whole().await;
}

async fn a_time_out_in_the_middle_of_a_page_costs_only_that_page(cloud: Cloud) {
    // Azure tells no deadline: the suite believes in a longer one, and is killed. Lambda does: the suite stops in time.
    let limit = match cloud {
        Cloud::Azure => 4 * SECOND,
        Cloud::Lambda => 12 * SECOND,
    };
    let suite = Suite::with_news(cloud, |wanted| wanted.workers(1).timeout(limit)).await;
    suite
        .cdr
        .inject(Fault::Latency { millis: 20_000 }.next(1).on(On::AqlPages));
    suite.hosted.plan_and_repair().await;
    suite.hosted.quiet().await;
    suite.assert_repaired().await;
    let killed = suite.hosted.worked().contains(&Ended::TimedOut);
    assert_eq!(killed, cloud == Cloud::Azure);
}

async fn with_trouble(cloud: Cloud, trouble: Trouble, times: u32) -> Suite {
    let suite = Suite::with_news(cloud, |wanted| wanted).await;
    suite.hosted.trouble(trouble, times);
    suite.hosted.plan_and_repair().await;
    suite.hosted.quiet().await;
    suite
}

async fn doubled_messages_change_nothing(cloud: Cloud) {
    with_trouble(cloud, Trouble::Duplicate, 6)
        .await
        .assert_repaired()
        .await;
}

async fn reordered_messages_change_nothing(cloud: Cloud) {
    with_trouble(cloud, Trouble::Reverse, 10)
        .await
        .assert_repaired()
        .await;
}

async fn delayed_messages_arrive_late_and_change_nothing(cloud: Cloud) {
    with_trouble(cloud, Trouble::Delay, 3)
        .await
        .assert_repaired()
        .await;
}

async fn lost_messages_are_sent_again(cloud: Cloud) {
    let suite = with_trouble(cloud, Trouble::Lose, 2).await;
    let open = "SELECT count(*) FROM atlas_slices WHERE state = 'open'";
    assert!(
        suite.hosted.store().number(open).await > 0,
        "nothing was lost"
    );
    sleep(3 * SECOND).await;
    suite.assert_repaired().await;
}

async fn unreadable_messages_are_counted_and_stop_nothing(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| wanted).await;
    for text in [
        "nonsense",
        "abcd1234",
        "done",
        "{}",
        "[1]",
        r#"{"m":{"v":2,"kind":"slice","run":"r","slice":"s","part":1}}"#,
        r#"{"m":{"v":1,"kind":"erase","run":"r"}}"#,
    ] {
        suite.hosted.put(text).await;
    }
    suite.hosted.trouble(Trouble::Malformed, 1);
    suite.hosted.plan_and_repair().await;
    suite.assert_repaired().await;
    let report = suite.hosted.request(reqwest::Method::GET, "/api/watermark");
    let report = suite.hosted.answers(report, 200).await;
    assert!(
        report["unreadable_messages"].as_u64().unwrap() >= 7,
        "{report}"
    );
}

async fn messages_that_are_not_deleted_come_again_and_change_nothing(cloud: Cloud) {
    with_trouble(cloud, Trouble::SkipDelete, 3)
        .await
        .assert_repaired()
        .await;
}

async fn answers_that_nobody_heard_are_given_again(cloud: Cloud) {
    with_trouble(cloud, Trouble::DropResponse, 2)
        .await
        .assert_repaired()
        .await;
}

async fn a_queue_that_is_down_costs_time_only(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| wanted).await;
    suite.hosted.trouble(Trouble::QueueUnavailable, 12);
    suite.hosted.plan_and_repair().await;
    suite.assert_repaired().await;
}

async fn a_store_that_is_down_costs_time_only(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| {
        wanted
            .with("ATLAS_EXPORT_MAX_RETRIES", "1")
            .with("ATLAS_EXPORT_RETRY_BACKOFF_MS", "[100]")
    })
    .await;
    let Store::Postgres(url) = suite.hosted.store() else {
        unreachable!()
    };
    suite.slow_pages(Duration::from_millis(300));
    suite.hosted.plan_and_repair().await;
    sleep(Duration::from_millis(400)).await;
    let server = atlas_ehrbase::shared_postgres().await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let everything = Store::Postgres(server.connection_string("postgres"));
    everything
        .execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        .await;
    everything
        .execute(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        ))
        .await;
    sleep(3 * SECOND).await;
    everything
        .execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        .await;
    suite.assert_repaired().await;
}

async fn planners_at_once_again_and_after_a_day_plan_what_is_new_once(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| wanted).await;
    let ended = suite.hosted.tick_twice().await;
    assert_eq!(ended, [Ended::Succeeded; 2]);
    assert_eq!(suite.hosted.tick_again().await, Ended::Succeeded);
    suite.hosted.quiet().await;
    let written = "SELECT sum(count_written)::bigint FROM atlas_runs";
    assert_eq!(suite.hosted.store().number(written).await, 180);
    suite.cdr.advance(86_400 * SECOND);
    suite.news();
    suite.assert_repaired().await;
    assert_eq!(suite.hosted.store().number(written).await, 330);
    let read = "SELECT sum(count_read)::bigint FROM atlas_runs";
    assert_eq!(suite.hosted.store().number(read).await, 330, "read once");
}

/// Two hosts share store, queue traffic of their own, and source; the clock of one shows an hour more.
async fn a_worker_whose_clock_is_an_hour_wrong_takes_nothing_from_others(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| wanted.workers(1)).await;
    let library = faketime();
    let wrong = Wanted::new(cloud, Queues::InProcess, suite._server.base_url().as_str())
        .await
        .store(suite.hosted.store())
        .workers(1)
        .with("ATLAS_OPENEHR_QUERY_BATCH_SIZE", "20")
        .with("LD_PRELOAD", &library)
        .with("FAKETIME", "+3600s")
        .with("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()
        .await;
    suite.slow_pages(Duration::from_millis(500));
    suite.hosted.plan_and_repair().await;
    sleep(SECOND).await;
    wrong.plan_and_repair().await;
    let fenced = async || {
        let sql = "SELECT coalesce(max(fence), 0) FROM atlas_slices WHERE state = 'open'";
        suite.hosted.store().number(sql).await
    };
    let highest = fenced().await;
    wrong.quiet().await;
    suite.hosted.quiet().await;
    assert!(highest <= 1, "a live lease was taken over");
    let late =
        "SELECT count(*) FROM atlas_records WHERE held_until > now() + interval '10 minutes'";
    assert_eq!(
        suite.hosted.store().number(late).await,
        0,
        "a lease by the wrong clock"
    );
    wrong.stop().await;
    suite.assert_repaired().await;
}

/// The library that shows programs another time.
fn faketime() -> String {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let found = folders
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|path| path.is_file());
    let found = found.expect("libfaketime is missing: install Debian's package faketime");
    found.to_str().unwrap().to_owned()
}

async fn a_storm_of_429_lowers_the_slots_and_quiet_raises_them_again(cloud: Cloud) {
    let suite = Suite::with_news(cloud, |wanted| {
        wanted.workers(4).with("ATLAS_OPENEHR_QUERY_PARALLEL", "4")
    })
    .await;
    let allowed = async || {
        let report = suite.hosted.request(reqwest::Method::GET, "/api/watermark");
        suite.hosted.answers(report, 200).await["slots"]["allowed"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(allowed().await, 4);
    let busy = Fault::Status {
        status: 429,
        retry_after_secs: None,
    };
    suite.cdr.inject(busy.next(12).on(On::AqlPages));
    suite.hosted.plan_and_repair().await;
    suite.hosted.quiet().await;
    assert!(allowed().await < 4);
    suite.assert_repaired().await;
    for _ in 0..3 {
        sleep(LEASE_OVER).await;
        suite.hosted.tick_and_work().await;
    }
    assert_eq!(allowed().await, 4);
    assert!(suite.cdr.counters().most_at_once <= 4);
}

/// N is for all workers of all hosts together.
#[tokio::test(flavor = "multi_thread")]
async fn workers_of_both_hosts_together_never_ask_more_than_n_at_once() {
    let server = sample(600).start().await.unwrap();
    let cdr = server.handle();
    let azure = Wanted::new(Cloud::Azure, Queues::InProcess, &server.base_url()).await;
    // One worker there leaves a slot to the other host.
    let azure = azure
        .workers(1)
        .with("ATLAS_OPENEHR_QUERY_BATCH_SIZE", "10")
        .start()
        .await;
    let lambda = Wanted::new(Cloud::Lambda, Queues::InProcess, &server.base_url())
        .await
        .store(azure.store())
        .with("ATLAS_OPENEHR_QUERY_BATCH_SIZE", "10")
        .start()
        .await;
    cdr.inject(Fault::Latency { millis: 100 }.always().on(On::Any));
    azure.plan_and_repair().await;
    // The second planner finds the slices of the first one, and both hosts have a message for one of them.
    azure.store().execute("UPDATE atlas_slices SET sent_part = 0, step = step + 1 WHERE state = 'open' AND owner IS NULL").await;
    lambda.plan_and_repair().await;
    azure.quiet().await;
    lambda.quiet().await;
    azure.tick_and_work().await;
    assert_copy(azure.store(), &of_sample(&cdr)).await;
    azure.assert_settled().await;
    let both = [azure.worked().len(), lambda.worked().len()];
    assert!(both.iter().all(|worked| *worked > 0), "{both:?}");
    assert!(cdr.counters().most_at_once <= 2, "{:?}", cdr.counters());
}
