//! What the copy becomes when the server, the selection or the format changes between runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use atlas_sample_cdr::{Commit, Fault, Handle, On, Release, Running, Template};
use atlas_scenarios::source::{Expected, of_sample, sample};
use atlas_scenarios::{Atlas, Kind, assert_copy};
use serde_json::json;

const COMPOSITIONS: u64 = 200;
const SECOND: Duration = Duration::from_secs(1);

atlas_scenarios::into_both_stores!(
    small_slices_and_pages_through_ties_lose_nothing,
    a_template_whose_first_composition_becomes_visible_late_is_found,
    a_run_without_a_list_reads_what_a_run_with_a_list_left_out,
    a_run_for_some_ehrs_copies_those_and_a_later_one_the_rest,
    commit_times_select_from_the_first_until_before_the_second,
    a_deleted_composition_that_comes_back_is_updated,
    a_repaired_version_leaves_the_quarantine,
    another_format_rewrites_every_row,
);

async fn serve(kind: Kind) -> (Running, Handle, Atlas) {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let atlas = Atlas::new(kind, &server.base_url()).await;
    let cdr = server.handle();
    (server, cdr, atlas)
}

fn only(everything: &Expected, wanted: impl Fn(&str, &str) -> bool) -> Expected {
    let chosen = everything
        .iter()
        .filter(|(_, one)| wanted(&one.ehr_id, &one.template_id));
    chosen.map(|(id, one)| (id.clone(), one.clone())).collect()
}

async fn small_slices_and_pages_through_ties_lose_nothing(kind: Kind) {
    for (slice, page, readers) in [(1, 1, 4), (7, 3, 3), (50, 49, 1)] {
        let (_server, cdr, atlas) = serve(kind).await;
        let atlas = atlas
            .with("export.slice_size", json!(slice))
            .with("openehr.query.batch_size", json!(page))
            .with("openehr.query.parallel", json!(readers));
        let report = atlas.export(&[]).await.exits(0);
        assert_eq!(
            report["read"],
            json!(COMPOSITIONS),
            "slices of {slice}, pages of {page}"
        );
        assert_copy(atlas.store(), &of_sample(&cdr)).await;
        assert!(
            cdr.counters().most_at_once <= readers,
            "{:?}",
            cdr.counters()
        );
    }
}

async fn a_template_whose_first_composition_becomes_visible_late_is_found(kind: Kind) {
    // The first compositions of a sample CDR are all vital signs.
    let server = sample(2).start().await.unwrap();
    let cdr = server.handle();
    let atlas = Atlas::new(kind, &server.base_url()).await;
    atlas.export(&[]).await.exits(0);
    let committed = cdr.now();
    let late = Commit {
        committed,
        visible: committed + 30 * SECOND,
    };
    cdr.commit_at(Template::MedicationOrder, late);
    cdr.advance(10 * SECOND);
    cdr.commit(Template::VitalSigns);
    cdr.advance(SECOND);
    assert_eq!(atlas.export(&[]).await.exits(0)["written"], 1);
    cdr.advance(60 * SECOND);
    atlas.export(&[]).await.exits(0);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

async fn a_run_without_a_list_reads_what_a_run_with_a_list_left_out(kind: Kind) {
    let (_server, cdr, atlas) = serve(kind).await;
    let template = Template::MedicationOrder.id();
    atlas.export(&["--template-id", template]).await.exits(0);
    let everything = of_sample(&cdr);
    assert_copy(atlas.store(), &only(&everything, |_, id| id == template)).await;
    atlas.export(&[]).await.exits(0);
    assert_copy(atlas.store(), &everything).await;
}

async fn a_run_for_some_ehrs_copies_those_and_a_later_one_the_rest(kind: Kind) {
    let (_server, cdr, atlas) = serve(kind).await;
    let everything = of_sample(&cdr);
    let chosen = [cdr.ehr_id(1).unwrap(), cdr.ehr_id(77).unwrap()];
    atlas
        .export(&["--ehr-id", &chosen.join(",")])
        .await
        .exits(0);
    let some = only(&everything, |ehr, _| chosen.iter().any(|id| id == ehr));
    assert!((2..COMPOSITIONS as usize).contains(&some.len()));
    assert_copy(atlas.store(), &some).await;
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["unchanged"], json!(some.len()));
    assert_copy(atlas.store(), &everything).await;
}

async fn commit_times_select_from_the_first_until_before_the_second(kind: Kind) {
    let (_server, cdr, atlas) = serve(kind).await;
    let (from, to) = (cdr.committed(50).unwrap(), cdr.committed(150).unwrap());
    let report = atlas
        .export(&["--from", &from.to_string(), "--to", &to.to_string()])
        .await
        .exits(0);
    let inside = (0..COMPOSITIONS).filter(|number| {
        let committed = cdr.committed(*number).unwrap();
        from <= committed && committed < to
    });
    let uids: Vec<String> = inside
        .map(|number| cdr.version_uid(number).unwrap())
        .collect();
    assert_eq!(report["written"], json!(uids.len()));
    let mut wanted = of_sample(&cdr);
    wanted.retain(|_, one| uids.contains(&one.uid));
    assert_copy(atlas.store(), &wanted).await;
}

async fn a_deleted_composition_that_comes_back_is_updated(kind: Kind) {
    let (_server, cdr, atlas) = serve(kind).await;
    atlas.export(&[]).await.exits(0);
    assert!(cdr.delete(9));
    cdr.advance(SECOND);
    // Queries never show deletes: only a reconciliation can find them.
    assert_eq!(atlas.export(&[]).await.exits(0)["written"], 0);
    assert!(cdr.update(9));
    assert!(cdr.version_uid(9).unwrap().ends_with("::3"));
    cdr.advance(SECOND);
    assert_eq!(atlas.export(&[]).await.exits(0)["written"], 1);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

async fn a_repaired_version_leaves_the_quarantine(kind: Kind) {
    let (_server, cdr, atlas) = serve(kind).await;
    cdr.set_unreadable(9, true);
    atlas.export(&[]).await.exits(1);
    assert_eq!(atlas.store().quarantined().await.len(), 1);
    cdr.set_unreadable(9, false);
    cdr.update(9);
    cdr.advance(SECOND);
    assert_eq!(atlas.export(&[]).await.exits(0)["written"], 1);
    assert!(atlas.store().quarantined().await.is_empty());
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

async fn another_format_rewrites_every_row(kind: Kind) {
    let (_server, cdr, mut atlas) = serve(kind).await;
    for format in ["canonical", "preserve", "flatten", "canonical"] {
        atlas.set("export.export_composition_format", json!(format));
        atlas.export(&[]).await.exits(0);
        let other = format!("SELECT count(*) FROM compositions WHERE export_mode <> '{format}'");
        assert_eq!(
            atlas.store().number(&other).await,
            0,
            "rows are not all `{format}`"
        );
    }
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_server_is_copied_and_what_comes_later_too() {
    let server = sample(0).start().await.unwrap();
    let cdr = server.handle();
    let atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["read"], 0);
    for template in Template::ALL {
        cdr.commit(template);
    }
    cdr.advance(SECOND);
    assert_eq!(atlas.export(&[]).await.exits(0)["written"], 3);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_answers_and_newer_servers_are_read_the_same_way() {
    for release in [Release::Ehrbase2_16, Release::Ehrbase2_31] {
        let server = sample(COMPOSITIONS)
            .gzip(true)
            .release(release)
            .start()
            .await
            .unwrap();
        let atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
        let report = atlas.export(&[]).await.exits(0);
        assert_eq!(report["written"], json!(COMPOSITIONS));
        assert_copy(atlas.store(), &of_sample(&server.handle())).await;
        let counters = server.handle().counters();
        assert!(
            counters.body_bytes < COMPOSITIONS * 1_500,
            "no gzip: {counters:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_postgresql_ends_are_made_again() {
    let (_server, cdr, atlas) = serve(Kind::Postgres).await;
    let atlas = atlas
        .with("openehr.query.batch_size", json!(5))
        .with("export.retry_backoff_ms", json!([50, 100, 200]));
    // Two looks into the store fit between two pages.
    cdr.inject(Fault::Latency { millis: 50 }.always().on(On::AqlPages));
    let mut running = atlas.start_export(&[]);
    for share in [1, 2] {
        let store = atlas.store();
        let most = share * COMPOSITIONS / 4;
        let written = async || {
            let there = "SELECT count(*) FROM pg_tables WHERE tablename = 'compositions'";
            store.number(there).await > 0 && store.count().await >= most
        };
        assert!(
            running.until(written).await,
            "it ended before it was disturbed"
        );
        let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
        assert!(!atlas.store().query(end_all).await.is_empty());
    }
    running.wait().await.exits(0);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_that_somebody_else_writes_to_is_waited_for() {
    let (_server, cdr, atlas) = serve(Kind::Sqlite).await;
    let atlas = atlas
        .with("openehr.query.batch_size", json!(5))
        .with("export.retry_backoff_ms", json!([50, 100, 200]));
    cdr.inject(Fault::Latency { millis: 20 }.always().on(On::AqlPages));
    let mut running = atlas.start_export(&[]);
    assert!(running.until(async || cdr.counters().aql_pages >= 10).await);
    let atlas_scenarios::Store::Sqlite(path) = atlas.store() else {
        panic!("no SQLite")
    };
    let other = rusqlite::Connection::open(path).unwrap();
    other.busy_timeout(Duration::from_secs(5)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    running.says("the store is away").await;
    other.execute_batch("COMMIT").unwrap();
    running.wait().await.exits(0);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
}
