//! Exports into the split store that are killed, by chance and between the two phases of a commit: the next one completes the copy,
//! and nothing is there twice.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use atlas_engine::ports::Store as _;
use atlas_sample_cdr::Handle;
use atlas_scenarios::source::{Expected, object_id, of_sample, sample};
use atlas_scenarios::sweep::{
    COMPOSITIONS, Swept, assert_conserved, assert_nothing_left, in_small_pages, kill_until_complete,
};
use atlas_scenarios::{Atlas, Store, assert_copy};
use atlas_split_store::{LEDGER, ROWS, split_store};
use rusqlite::Connection;
use serde_json::json;

/// Compositions that the server lists and cannot read back.
const UNREADABLE: [u64; 3] = [7, 1_234, 2_999];

/// A sample CDR with compositions that it cannot read back is exported into a split store.
struct Split {
    atlas: Atlas,
    ledger: Store,
}

impl Split {
    fn new(base_url: &str) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_split-export"));
        let atlas = in_small_pages(Atlas::of_program(program, ROWS, base_url));
        let Store::Sqlite(rows) = atlas.store() else {
            panic!("rows in SQLite")
        };
        let ledger = Store::Sqlite(rows.with_file_name(LEDGER));
        Self { atlas, ledger }
    }

    /// Makes the tables before there is anything in them.
    async fn prepare(&self) {
        let rows = self.path(self.atlas.store());
        let folder = rows.parent().unwrap();
        std::fs::create_dir(folder).unwrap();
        split_store(folder).unwrap().prepare().await.unwrap();
    }

    fn path(&self, store: &Store) -> PathBuf {
        match store {
            Store::Sqlite(path) => path.clone(),
            Store::Postgres(_) => panic!("no PostgreSQL here"),
        }
    }

    /// The only number that a query over both files answers; 0 before they have tables. `rows` and `ledger` name the files.
    fn number(&self, sql: &str) -> u64 {
        let connection = Connection::open_in_memory().unwrap();
        for (name, store) in [("rows", self.atlas.store()), ("ledger", &self.ledger)] {
            let path = self.path(store);
            if !path.exists() {
                return 0;
            }
            let attach = format!("ATTACH ?1 AS {name}");
            connection.execute(&attach, [path.to_str()]).unwrap();
            if !connection.table_exists(Some(name), "atlas_slices").unwrap() {
                return 0;
            }
        }
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Rows that were written by pages which their slices do not know of.
    fn written_and_not_noted(&self) -> u64 {
        self.written_of(NOT_NOTED)
    }

    /// Rows that were written by some of the pages that have landed.
    fn written_of(&self, pages: &str) -> u64 {
        self.number(&format!(
            "SELECT coalesce(sum(json_extract(l.counts, '$.written')), 0) {pages}"
        ))
    }

    /// Whoever comes to this change of the ledger stays in it until it is killed.
    async fn hold(&self, change: &str) {
        self.ledger
            .execute(&format!(
                "CREATE VIEW endless AS
                     WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS never FROM n;
                 CREATE TRIGGER hold BEFORE {change} BEGIN SELECT never FROM endless; END"
            ))
            .await;
    }

    async fn release(&self) {
        self.ledger
            .execute("DROP TRIGGER hold; DROP VIEW endless")
            .await;
    }

    /// An export that is killed as soon as some of the pages that have landed are like this.
    async fn kill_when(&self, pages: &str) {
        let any = format!("SELECT count(*) {pages}");
        let mut running = self.atlas.start_export(&[]);
        let there = running.until(async || self.number(&any) > 0).await;
        assert!(
            there,
            "it never came there: {}",
            running.wait().await.stderr
        );
        assert!(running.signal("KILL").await);
        running.wait().await;
    }
}

/// Pages that have landed, and whose slices do not know of it.
const NOT_NOTED: &str = "FROM rows.atlas_landed AS l JOIN ledger.atlas_slices AS s ON s.id = l.slice WHERE l.page > s.page";

/// What the server can read back.
fn readable(cdr: &Handle) -> Expected {
    let mut expected = of_sample(cdr);
    for number in UNREADABLE {
        expected.remove(object_id(&cdr.version_uid(number).unwrap()));
    }
    expected
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_many_moments_the_copy_is_complete_and_nothing_is_there_twice() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    for number in UNREADABLE {
        cdr.set_unreadable(number, true);
    }
    let split = Split::new(&server.base_url());
    let (mut not_noted, mut between) = (0, 0);
    let Swept { kills, last } = kill_until_complete(&split.atlas, &cdr, async || {
        not_noted = split.written_and_not_noted();
        between += u64::from(not_noted > 0);
    })
    .await;
    println!("killed {kills} times, {between} of them between the two phases");
    let report = last.report();
    assert!(kills >= 5, "killed only {kills} times");

    let copied = COMPOSITIONS - UNREADABLE.len() as u64;
    assert_copy(split.atlas.store(), &readable(&cdr)).await;
    let mut unreadable = UNREADABLE.map(|number| cdr.version_uid(number).unwrap());
    unreadable.sort();
    assert_eq!(split.ledger.quarantined().await, unreadable);
    assert_conserved(&report, &split.ledger, COMPOSITIONS).await;
    let run = report["run"].as_str().unwrap();
    let rows = split.atlas.store().rows().await;
    let own = rows.values().filter(|row| row.run_id == run).count() as u64;
    // What the run before had landed is counted by the run that took it over.
    assert_eq!(report["written"], json!(own + not_noted));
    assert_nothing_left(&split.atlas, copied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_the_two_phases_the_next_run_takes_over_what_landed() {
    const FEW: u64 = 900;
    let server = sample(FEW).start().await.unwrap();
    let cdr = server.handle();
    let split = Split::new(&server.base_url());
    split.prepare().await;
    for page in [1, 2, 3] {
        split
            .hold(&format!(
                "UPDATE ON atlas_slices WHEN new.page = {page} AND old.page < {page} AND new.state = 'open'"
            ))
            .await;
        // The other slice may have died at an earlier page, which nobody holds.
        let this_page = format!("{NOT_NOTED} AND l.page = {page}");
        split.kill_when(&this_page).await;
        let landed = split.written_of(&this_page);
        assert!(landed > 0);
        // Whoever takes the slice over is killed in the same place: it has shut out older fences, and noted nothing.
        split
            .kill_when(&format!(
                "{this_page} AND l.fence = s.fence AND l.landed_fence < s.fence"
            ))
            .await;
        assert!(split.written_of(&this_page) >= landed);
        split.release().await;
    }
    let asked = cdr.counters().compositions;
    let before = split.atlas.store().count().await;
    let not_noted = split.written_and_not_noted();
    let report = split.atlas.export(&[]).await.exits(0);
    assert_copy(split.atlas.store(), &of_sample(&cdr)).await;
    assert_conserved(&report, &split.ledger, FEW).await;
    // Nothing that has landed is read again.
    assert_eq!(report["written"], json!(FEW - before + not_noted));
    assert_eq!(cdr.counters().compositions - asked, FEW - before);
    assert_nothing_left(&split.atlas, FEW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_a_quarantine_ends_its_entry_ends_where_it_is_read() {
    const FEW: u64 = 100;
    let server = sample(FEW).start().await.unwrap();
    let cdr = server.handle();
    cdr.set_unreadable(7, true);
    let split = Split::new(&server.base_url());
    let report = split.atlas.export(&[]).await.exits(1);
    assert_eq!(report["quarantined"], 1);

    cdr.set_unreadable(7, false);
    cdr.update(7);
    cdr.advance(Duration::from_secs(1));
    split.hold("DELETE ON atlas_quarantine").await;
    split.kill_when(NOT_NOTED).await;
    split.release().await;
    let report = split.atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], 1);
    assert_copy(split.atlas.store(), &of_sample(&cdr)).await;
    assert_conserved(&report, &split.ledger, FEW + 1).await;

    let report = split.atlas.export(&["--retry"]).await.exits(0);
    assert_eq!(report["read"], 0);
    assert_eq!(split.ledger.quarantined().await, [""; 0]);
    assert_nothing_left(&split.atlas, FEW).await;
}
