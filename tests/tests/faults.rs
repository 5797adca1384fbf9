//! A server that misbehaves, changes while it is read, or is large: the copy is complete all the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::BTreeMap;
use std::time::Duration;

use atlas_sample_cdr::{Commit, Fault, Handle, On, Profile, Rule, Template};
use atlas_scenarios::source::{Expected, composition, object_id, of_sample, sample};
use atlas_scenarios::{Atlas, Kind, Run, assert_copy, assert_row};
use serde_json::{Value, json};

atlas_scenarios::into_both_stores!(
    unreadable_compositions_are_quarantined_and_all_others_arrive,
    what_becomes_visible_late_is_found_by_the_next_run,
    updates_and_commits_during_an_export_arrive_with_the_next_run,
    a_hundred_thousand_compositions_fit_into_a_hundred_mebibytes,
);

/// A server, 60 pages of 20, and a configuration for it.
async fn small(kind: Kind) -> (atlas_sample_cdr::Running, Handle, Atlas) {
    let server = sample(1_200).start().await.unwrap();
    let atlas = Atlas::new(kind, &server.base_url())
        .await
        .with("openehr.query.batch_size", json!(20));
    let cdr = server.handle();
    (server, cdr, atlas)
}

fn conserves(report: &Value) {
    let counter = |name: &str| report[name].as_u64().unwrap();
    let ways = ["written", "unchanged", "filtered", "quarantined", "deleted"];
    let became = ways.map(counter);
    assert_eq!(counter("read"), became.iter().sum::<u64>(), "{report:#}");
}

/// Exports with these faults, once; everything has to arrive.
async fn survives(rules: impl IntoIterator<Item = Rule>) {
    let (_server, cdr, atlas) = small(Kind::Sqlite).await;
    for rule in rules {
        cdr.inject(rule);
    }
    let report = atlas.export(&[]).await.exits(0);
    conserves(&report);
    assert!(cdr.counters().faults > 0, "nothing went wrong");
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_429_with_retry_after_is_waited_out() {
    let busy = |retry_after_secs| Fault::Status {
        status: 429,
        retry_after_secs,
    };
    survives([
        busy(Some(1)).next(2),
        busy(Some(0)).next(2).on(On::AqlPages).after(9),
        busy(None).next(2).on(On::AqlPages).after(30),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_briefly_away_is_asked_again() {
    let away = |status| Fault::Status {
        status,
        retry_after_secs: None,
    };
    survives([
        away(503).next(2),
        away(502).next(1).on(On::AqlPages).after(4),
        away(504).next(3).on(On::AqlPages).after(20),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_cut_short_are_read_again() {
    let cut = |after_bytes| Fault::CutBody { after_bytes };
    survives([
        cut(10).next(1).on(On::AqlAggregates),
        cut(0).next(1).on(On::AqlPages),
        cut(100).next(1).on(On::AqlPages).after(3),
        cut(20_000).next(2).on(On::AqlPages).after(7),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_read_to_its_end() {
    let drips = Fault::SlowBody {
        bytes: 500,
        pause_millis: 2,
    };
    survives([drips.next(5).on(On::AqlPages).after(2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_fails_once_without_a_culprit_puts_nothing_into_quarantine() {
    let failure = Fault::Status {
        status: 500,
        retry_after_secs: None,
    };
    survives([
        failure.clone().next(1).on(On::AqlPages).after(2),
        failure.next(1).on(On::AqlPages).after(12),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_takes_too_long_or_never_ends_is_given_up_and_the_page_read_again() {
    let (_server, cdr, mut atlas) = small(Kind::Sqlite).await;
    atlas.set("openehr.timeout_seconds", json!(2));
    let hours = Fault::SlowBody {
        bytes: 1,
        pause_millis: 100,
    };
    cdr.inject(hours.next(1).on(On::AqlPages).after(3));
    cdr.inject(Fault::EndlessBody.next(1).on(On::AqlPages).after(6));
    atlas.export(&[]).await.exits(0);
    assert_eq!(cdr.counters().faults, 2);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_busy_stops_the_run_and_the_next_one_goes_on() {
    let (_server, cdr, atlas) = small(Kind::Sqlite).await;
    let busy = Fault::Status {
        status: 503,
        retry_after_secs: Some(0),
    };
    cdr.inject(busy.always().on(On::AqlPages).after(20));
    let report = atlas.export(&[]).await.exits(4);
    assert_eq!(report["outcome"], "failed");
    let written = report["written"].as_u64().unwrap();
    assert!(written > 0);
    assert_eq!(atlas.store().count().await, written);

    cdr.clear_faults();
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], json!(1_200 - written));
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_at_every_page_is_ill_and_its_compositions_are_not_quarantined() {
    for healthy_pages in [0, 15] {
        let (_server, cdr, atlas) = small(Kind::Sqlite).await;
        let failure = Fault::Status {
            status: 500,
            retry_after_secs: None,
        };
        cdr.inject(failure.always().on(On::AqlPages).after(healthy_pages));
        let report = atlas.export(&[]).await.exits(4);
        assert_eq!(report["outcome"], "failed");
        assert!(atlas.store().quarantined().await.is_empty());
        let requests = cdr.counters().requests;
        assert!(
            requests < healthy_pages + 100,
            "an ill server was asked {requests} times"
        );

        cdr.clear_faults();
        atlas.export(&[]).await.exits(0);
        assert_copy(atlas.store(), &of_sample(&cdr)).await;
    }
}

async fn unreadable_compositions_are_quarantined_and_all_others_arrive(kind: Kind) {
    let (_server, cdr, atlas) = small(kind).await;
    // Alone, side by side, at both ends.
    let culprits = [0, 300, 301, 302, 777, 1_199];
    let everything = of_sample(&cdr);
    for number in culprits {
        cdr.set_unreadable(number, true);
    }
    let uids: Vec<String> = culprits
        .iter()
        .map(|number| cdr.version_uid(*number).unwrap())
        .collect();
    let report = atlas.export(&[]).await.exits(1);
    conserves(&report);
    assert_eq!(report["outcome"], "partial");
    assert_eq!(report["quarantined"], json!(culprits.len()));
    let mut quarantined = uids.clone();
    quarantined.sort_unstable();
    assert_eq!(atlas.store().quarantined().await, quarantined);
    let without: Expected = everything
        .iter()
        .filter(|(_, one)| !uids.contains(&one.uid))
        .map(|(id, one)| (id.clone(), one.clone()))
        .collect();
    assert_copy(atlas.store(), &without).await;

    // Told once; then a run is complete, and looks at them once a day.
    let report = atlas.export(&[]).await.exits(0);
    assert!(report["source_requests"].as_u64().unwrap() <= 2);
    for number in culprits {
        cdr.set_unreadable(number, false);
    }
    atlas.run(&["quarantine", "retry", "--json"]).await.exits(0);
    assert_copy(atlas.store(), &everything).await;
    assert!(atlas.store().quarantined().await.is_empty());
}

async fn what_becomes_visible_late_is_found_by_the_next_run(kind: Kind) {
    let (_server, cdr, atlas) = small(kind).await;
    atlas.export(&[]).await.exits(0);
    let second = Duration::from_secs(1);
    let late = |template, delay| {
        let committed = cdr.now();
        cdr.commit_at(
            template,
            Commit {
                committed,
                visible: committed + delay * second,
            },
        )
    };
    let numbers = [
        late(Template::VitalSigns, 20),
        late(Template::LaboratoryReport, 600),
    ];
    let update = Commit {
        committed: cdr.now(),
        visible: cdr.now() + 20 * second,
    };
    assert!(cdr.update_at(5, update));
    cdr.advance(10 * second);
    // Others are committed later, and are visible at once: the watermark passes the late ones.
    cdr.commit(Template::VitalSigns);
    cdr.commit(Template::LaboratoryReport);
    cdr.advance(second);
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 2);

    cdr.advance(30 * second);
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 2);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
    cdr.advance(600 * second);
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 1);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
    let uid = cdr.version_uid(numbers[1]).unwrap();
    assert!(atlas.store().rows().await.contains_key(object_id(&uid)));
}

async fn updates_and_commits_during_an_export_arrive_with_the_next_run(kind: Kind) {
    let (_server, cdr, atlas) = small(kind).await;
    cdr.inject(Fault::Latency { millis: 20 }.always().on(On::AqlPages));
    let mut running = atlas.start_export(&[]);
    for (pages, numbers) in [(5, [3, 1_000]), (15, [700, 701]), (25, [3, 1_190])] {
        assert!(
            running
                .until(async || cdr.counters().aql_pages >= pages)
                .await
        );
        for number in numbers {
            assert!(cdr.update(number));
        }
        cdr.commit(Template::MedicationOrder);
    }
    running.wait().await.exits(0);
    cdr.clear_faults();
    cdr.advance(Duration::from_secs(1));
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], json!(5 + 3));
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
    let versions: BTreeMap<i64, usize> =
        atlas
            .store()
            .rows()
            .await
            .values()
            .fold(BTreeMap::new(), |mut all, row| {
                *all.entry(row.version).or_default() += 1;
                all
            });
    assert_eq!(
        versions,
        BTreeMap::from([(1, 1_200 - 5 + 3), (2, 4), (3, 1)])
    );
}

/// A worker has to fit into a function of 128 MB.
fn fits(run: &Run) {
    let limit = 100 * 1024;
    println!("peak memory: {} KiB", run.peak_kib);
    assert!(
        (1..=limit).contains(&run.peak_kib),
        "{} KiB of {limit}",
        run.peak_kib
    );
}

async fn a_hundred_thousand_compositions_fit_into_a_hundred_mebibytes(kind: Kind) {
    const COMPOSITIONS: u64 = 100_000;
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    let atlas = Atlas::new(kind, &server.base_url()).await;
    let run = atlas.export(&[]).await;
    assert_eq!(run.exits(0)["written"], json!(COMPOSITIONS));
    assert_eq!(atlas.store().count().await, COMPOSITIONS);
    for number in (0..COMPOSITIONS).step_by(9_973) {
        let uid = cdr.version_uid(number).unwrap();
        let rows = atlas
            .store()
            .rows_where(&format!("composition_uid = '{uid}'"))
            .await;
        assert_row(
            kind,
            &rows[object_id(&uid)],
            &composition(&cdr, number).unwrap(),
        );
    }
    fits(&run);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_compositions_fit_into_a_hundred_mebibytes() {
    let server = sample(8_000).profile(Profile::Full).start().await.unwrap();
    let atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    let run = atlas.export(&[]).await;
    assert_eq!(run.exits(0)["written"], 8_000);
    fits(&run);
}

/// Fills the quarantine as runs of long ago would have: all of it is due.
async fn fill_quarantine(atlas: &Atlas, template: Template, entries: u64) {
    // A log of its own would be as large as the file.
    atlas
        .store()
        .execute(&format!(
            "PRAGMA journal_mode = OFF;
             PRAGMA synchronous = OFF;
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {entries})
             INSERT INTO atlas_quarantine
                 (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, reason, detail, run_id, since,
                  tried, tries, tried_by)
             SELECT printf('%08x-0000-4000-8000-000000000000', i), printf('%08x-0000-4000-8000-000000000000::sample::1', i), 1,
                 'an EHR', '{template}', '2026-01-01T00:00:00.000000Z', 'creation', 'unreadable', 'the server answered 500',
                 'a run', '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z', 1, 'a run'
             FROM n;
             PRAGMA journal_mode = WAL",
            template = template.id()
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_in_quarantine_fit_into_a_hundred_mebibytes() {
    const ENTRIES: u64 = 1_000_000;
    const LISTED: usize = 50_000;
    let (_server, cdr, atlas) = small(Kind::Sqlite).await;
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 1_200);
    fill_quarantine(&atlas, Template::VitalSigns, ENTRIES).await;

    let run = atlas.run(&["status", "--json"]).await;
    assert_eq!(run.exits(0)["quarantined"], json!(ENTRIES));
    fits(&run);

    let limit = LISTED.to_string();
    let list = ["quarantine", "list", "--json", "--limit", &limit];
    let run = atlas.run(&list).await;
    let listed = run.exits(0);
    assert_eq!(listed["total"], json!(ENTRIES));
    assert_eq!(listed["entries"].as_array().map(Vec::len), Some(LISTED));
    fits(&run);

    // All of it is due. What was tried again so far is durable, and the next run goes on with the rest.
    let mut tried = 0;
    for _ in 0..2 {
        let pages = cdr.counters().aql_pages;
        let mut running = atlas.start_export(&[]);
        let is_there = running
            .until(async || cdr.counters().aql_pages >= pages + 40)
            .await;
        assert!(is_there && running.signal("TERM").await);
        let run = running.wait().await;
        let report = run.exits(143);
        conserves(&report);
        fits(&run);
        let quarantined = report["quarantined"].as_u64().unwrap();
        assert!(quarantined > 0);
        tried += quarantined;
        let again = "SELECT count(*) FROM atlas_quarantine WHERE tries = 2";
        assert_eq!(atlas.store().number(again).await, tried);
    }
}
