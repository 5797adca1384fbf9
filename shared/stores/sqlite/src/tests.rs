//! What only the owner of the connection can bring about.
#![allow(clippy::unwrap_used)]

use atlas_engine::ErrorKind;
use atlas_engine::model::{Scan, SliceFilter, SlicesOf};
use atlas_engine::ports::{Ledger, Rows, Store};
use atlas_store_suite::fixture::{Draft, at, begin, meta, selection, slice, template};

use crate::{SqliteStore, slices};

#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_nothing_of_the_page_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::new(folder.path().join("atlas.db")).unwrap();
    let slice = begin(&store).await;
    let limit = |pages: u32| {
        store.worker.call("limit the file", move |connection| {
            connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
        })
    };
    // SQLite answers the same when the disk has no room.
    limit(1).await.unwrap();
    let mut page = Draft::plain();
    for number in 0..50 {
        page = page.row(
            meta(number, 1),
            &format!("\"{}\"", "blood pressure ".repeat(1000)),
        );
    }
    let error = page.try_commit(&store, &slice).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreFull, "{}", error.chain());
    assert!(error.help().is_some());
    assert_eq!(store.slice(&slice.id).await.unwrap().as_ref(), Some(&slice));
    let everything = Scan {
        limit: 10,
        ..Scan::default()
    };
    assert!(store.scan(&everything).await.unwrap().is_empty());

    limit(u32::MAX - 1).await.unwrap();
    let after = page.commit(&store, &slice).await;
    assert_eq!(after.counts.written, 50);
}

#[tokio::test]
async fn commits_are_durable_and_readers_do_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::new(folder.path().join("atlas.db")).unwrap();
    Store::prepare(&store).await.unwrap();
    let (mode, synchronous): (String, u32) = store
        .worker
        .call("read the settings", |connection| {
            let mode = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
            let synchronous =
                connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
            Ok((mode, synchronous))
        })
        .await
        .unwrap();
    const FULL: u32 = 2;
    assert_eq!((mode.as_str(), synchronous), ("wal", FULL));
}

/// Steps of the plan that SQLite makes of a statement.
async fn plan(store: &SqliteStore, sql: &str) -> String {
    let explain = format!("EXPLAIN QUERY PLAN {sql}");
    store
        .worker
        .call("explain a statement", move |connection| {
            let mut statement = connection.prepare(&explain)?;
            // Whatever parameters it has.
            let steps = statement
                .raw_query()
                .mapped(|row| row.get::<_, String>("detail"));
            steps.collect::<rusqlite::Result<Vec<_>>>()
        })
        .await
        .unwrap()
        .join("; ")
}

#[tokio::test]
async fn what_must_cost_the_same_at_any_size_is_found_by_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::new(folder.path().join("atlas.db")).unwrap();
    Store::prepare(&store).await.unwrap();
    for (sql, index) in [
        (
            "SELECT max(time_committed) FROM compositions WHERE template_id = 'a' AND deleted_at IS NULL",
            "SEARCH compositions USING COVERING INDEX compositions_by_template_time (template_id=? AND deleted_at=?)",
        ),
        (
            "SELECT * FROM compositions WHERE +template_id = 'a' AND id > 'b' ORDER BY id LIMIT 10",
            "SEARCH compositions USING INDEX sqlite_autoindex_compositions_1 (id>?)",
        ),
        (
            "SELECT * FROM atlas_quarantine WHERE (tried, id) > ('a', 'b') ORDER BY tried, id LIMIT 10",
            "SEARCH atlas_quarantine USING INDEX atlas_quarantine_by_tried ((tried,id)>(?,?))",
        ),
        (
            "SELECT * FROM atlas_quarantine WHERE template_id = 'a' AND tried < 'c' AND (tried, id) > ('a', 'b')
             ORDER BY tried, id LIMIT 10",
            "SEARCH atlas_quarantine USING INDEX atlas_quarantine_by_template_tried (template_id=? AND (tried,id)>(?,?) AND tried<?)",
        ),
        (
            "SELECT template_id, reason, count(*), min(since) FROM atlas_quarantine
             WHERE NULL IS NULL OR tried < NULL GROUP BY template_id, reason",
            "SCAN atlas_quarantine USING COVERING INDEX atlas_quarantine_by_reason",
        ),
    ] {
        assert_eq!(plan(&store, sql).await, index);
    }
    let (selection, template, now) = (selection(), template(), at(0));
    let (selection, template) = (&selection, &template);
    let run = "run";
    let beyond = now;
    for (filter, index) in [
        (
            SliceFilter::Waiting { run, now },
            "SEARCH atlas_slices USING INDEX atlas_slices_waiting (run_id=?)",
        ),
        (
            SliceFilter::UnderWay { now },
            "SCAN atlas_slices USING INDEX atlas_slices_under_way",
        ),
        (
            SliceFilter::Failed { selection },
            "SEARCH atlas_slices USING INDEX atlas_slices_failed (selection=?)",
        ),
        (
            SliceFilter::Read {
                selection,
                template,
                beyond,
            },
            "SEARCH atlas_slices USING INDEX atlas_slices_read (selection=? AND template_id=?)",
        ),
    ] {
        let question = slices::find(&filter, 10);
        assert_eq!(plan(&store, &question.sql).await, index, "{filter:?}");
    }
    let question = slices::count(SlicesOf::Run(run), now);
    let counted = plan(&store, &question.sql).await;
    assert!(
        counted.contains("atlas_slices_by_run (run_id=?)"),
        "{counted}"
    );
}

#[tokio::test]
async fn a_store_that_closes_while_another_program_writes_does_not_wait_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = SqliteStore::new(&path).unwrap();
    begin(&store).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let begun = std::time::Instant::now();
    {
        let slices = [slice("slice 9")];
        let mut call = std::pin::pin!(store.add_slices(&slices));
        let waits = std::future::poll_fn(|context| {
            std::task::Poll::Ready(call.as_mut().poll(context).is_pending())
        });
        assert!(waits.await);
    }
    drop(store);
    assert!(begun.elapsed() < crate::worker::BUSY_TIMEOUT / 2);
    other.execute_batch("COMMIT").unwrap();
}
