//! What only the owner of the connection can bring about.
#![allow(clippy::unwrap_used)]

use atlas_engine::ErrorKind;
use atlas_engine::ports::Store;
use atlas_store_suite::fixture::{Draft, begin, meta};

use crate::SqliteStore;

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
    let mut page = Draft::new();
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
    assert!(store.holdings().await.unwrap().is_empty());

    limit(u32::MAX - 1).await.unwrap();
    let after = page.commit(&store, &slice).await;
    assert_eq!(after.counts.written, 50);
}

#[tokio::test]
async fn commits_are_durable_and_readers_do_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::new(folder.path().join("atlas.db")).unwrap();
    store.prepare().await.unwrap();
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
