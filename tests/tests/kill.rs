//! Runs that are killed or told to stop, at many moments: the next one completes the copy, and nothing is there twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;

use atlas_ehrbase::shared;
use atlas_sample_cdr::{Fault, On};
use atlas_scenarios::atlas::Running;
use atlas_scenarios::source::{next_second, of_ehrbase, of_sample, sample};
use atlas_scenarios::sweep::{
    COMPOSITIONS, PAGE, READERS, Swept, assert_conserved, assert_nothing_left, in_small_pages,
    kill_until_complete,
};
use atlas_scenarios::{Atlas, Kind, Store, assert_copy};
use serde_json::json;
use tokio_postgres::{Client, NoTls};

atlas_scenarios::into_both_stores!(
    killed_at_many_moments_the_copy_is_complete_and_nothing_is_there_twice,
    killed_in_the_middle_of_the_corpus_the_copy_is_complete,
    sigterm_stops_at_a_page_boundary_and_the_next_run_goes_on,
);

async fn paged(kind: Kind, base_url: &str) -> Atlas {
    in_small_pages(Atlas::new(kind, base_url).await)
}

async fn killed_at_many_moments_the_copy_is_complete_and_nothing_is_there_twice(kind: Kind) {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    let atlas = paged(kind, &server.base_url()).await;
    let Swept { kills, last } = kill_until_complete(&atlas, &cdr, async || ()).await;
    let report = last.exits(0);
    assert!(kills >= 5, "killed only {kills} times");

    assert_copy(atlas.store(), &of_sample(&cdr)).await;
    assert_conserved(&report, atlas.store(), COMPOSITIONS).await;
    let rows = atlas.store().rows().await;
    let run = report["run"].as_str().unwrap();
    let written = rows.values().filter(|row| row.run_id == run).count();
    assert_eq!(report["written"], json!(written));
    // What was durable is not read again: at most the pages on their way are, for each reader.
    let most = COMPOSITIONS + (kills + 1) * READERS * 3 * PAGE;
    assert!(
        cdr.counters().compositions <= most,
        "{:?} after {kills} kills",
        cdr.counters()
    );
    assert_nothing_left(&atlas, COMPOSITIONS).await;
}

async fn killed_in_the_middle_of_the_corpus_the_copy_is_complete(kind: Kind) {
    let shared = shared().await.unwrap();
    let (ehrbase, loaded) = (&shared.ehrbase, &shared.loaded);
    let ehrs: BTreeSet<&str> = loaded
        .compositions
        .iter()
        .map(|one| one.ehr_id.as_str())
        .collect();
    let ehrs: Vec<&str> = ehrs.into_iter().collect();
    let atlas = Atlas::of_ehrbase(kind, ehrbase, &ehrs)
        .await
        .with("openehr.query.batch_size", json!(5));
    next_second(ehrbase).await;
    // The tables, and no more: the source was not reached.
    atlas.run(&["export", "--to", "2000-01-01"]).await;

    let total = loaded.compositions.len() as u64;
    for part in 1..4 {
        let mut running = atlas.start_export(&[]);
        let store = atlas.store();
        assert!(
            running
                .until(async || store.count().await >= part * total / 5)
                .await
        );
        assert!(running.signal("KILL").await);
        running.wait().await;
    }
    let last = atlas.export(&[]).await;
    assert!(matches!(last.code(), Some(0 | 1)), "{}", last.stderr);
    assert_copy(atlas.store(), &of_ehrbase(ehrbase, loaded.readable()).await).await;
    assert_eq!(
        atlas.store().quarantined().await.len(),
        loaded.unreadable().count()
    );
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 0);
}

async fn sigterm_stops_at_a_page_boundary_and_the_next_run_goes_on(kind: Kind) {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    cdr.inject(Fault::Latency { millis: 50 }.always().on(On::AqlPages));
    let atlas = paged(kind, &server.base_url()).await;
    let mut running = atlas.start_export(&[]);
    assert!(running.until(async || cdr.counters().aql_pages >= 6).await);
    assert!(running.signal("TERM").await);
    let report = running.wait().await.exits(143);
    assert_eq!(report["outcome"], "interrupted");
    let written = report["written"].as_u64().unwrap();
    assert_eq!(atlas.store().count().await, written);
    assert!(written < COMPOSITIONS, "it was never stopped");

    cdr.clear_faults();
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(
        report["written"],
        json!(COMPOSITIONS - written),
        "it did not go on"
    );
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_exits_with_130() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    cdr.inject(Fault::Latency { millis: 50 }.always().on(On::AqlPages));
    let atlas = paged(Kind::Sqlite, &server.base_url()).await;
    let mut running = atlas.start_export(&[]);
    assert!(running.until(async || cdr.counters().aql_pages >= 4).await);
    assert!(running.signal("INT").await);
    assert_eq!(running.wait().await.exits(130)["outcome"], "interrupted");
}

/// An answer that takes hours.
const DRIPS: Fault = Fault::SlowBody {
    bytes: 1,
    pause_millis: 100,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_on_its_way_is_not_waited_for_after_a_signal() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    cdr.inject(DRIPS.always().on(On::AqlPages));
    let atlas = paged(Kind::Sqlite, &server.base_url())
        .await
        .with("export.shutdown_timeout_secs", json!(3_600));
    let mut running = atlas.start_export(&[]);
    assert!(running.until(async || cdr.counters().aql_pages >= 1).await);
    assert!(running.signal("TERM").await);
    running.wait().await.exits(143);

    cdr.clear_faults();
    atlas.export(&[]).await.exits(0);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_planning_changes_nothing() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    cdr.inject(DRIPS.always().on(On::AqlAggregates));
    let atlas = paged(Kind::Sqlite, &server.base_url()).await;
    let mut running = atlas.start_export(&[]);
    assert!(
        running
            .until(async || cdr.counters().aql_aggregates > 0)
            .await
    );
    assert!(running.signal("TERM").await);
    let report = running.wait().await.exits(143);
    assert_eq!(report["outcome"], "interrupted");
    assert_eq!(atlas.store().count().await, 0);
}

/// A run into PostgreSQL that waits for a lock of somebody else's, and the connection that holds the lock.
async fn blocked(atlas: &Atlas) -> (Running, Client) {
    atlas.export(&["--to", "2000-01-01"]).await.exits(0);
    let Store::Postgres(url) = atlas.store() else {
        panic!("no PostgreSQL")
    };
    let (locker, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    locker
        .batch_execute("BEGIN; LOCK TABLE compositions IN EXCLUSIVE MODE")
        .await
        .unwrap();
    let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                   WHERE d.datname = current_database() AND NOT granted";
    let mut running = atlas.start_export(&[]);
    let is_waiting = async || atlas.store().number(waiting).await > 0;
    assert!(running.until(is_waiting).await, "it never waited");
    (running, locker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_left_when_the_patience_ends() {
    let server = sample(200).start().await.unwrap();
    let atlas = paged(Kind::Postgres, &server.base_url())
        .await
        .with("export.shutdown_timeout_secs", json!(1))
        .with("postgresql.statement_timeout_seconds", json!(3_600));
    let (mut running, locker) = blocked(&atlas).await;
    assert!(running.signal("TERM").await);
    let run = running.wait().await;
    assert_eq!(run.code(), Some(143), "{}", run.stderr);

    locker.batch_execute("ROLLBACK").await.unwrap();
    atlas.export(&[]).await.exits(0);
    assert_copy(atlas.store(), &of_sample(&server.handle())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_signal_stops_at_once() {
    let server = sample(200).start().await.unwrap();
    let atlas = paged(Kind::Postgres, &server.base_url())
        .await
        .with("export.shutdown_timeout_secs", json!(3_600))
        .with("postgresql.statement_timeout_seconds", json!(3_600));
    let (mut running, locker) = blocked(&atlas).await;
    assert!(running.signal("TERM").await);
    running.says("once more stops at once").await;
    assert!(running.signal("INT").await);
    let run = running.wait().await;
    assert_eq!(run.code(), Some(130), "{}", run.stderr);

    locker.batch_execute("ROLLBACK").await.unwrap();
    atlas.export(&[]).await.exits(0);
    assert_copy(atlas.store(), &of_sample(&server.handle())).await;
}
