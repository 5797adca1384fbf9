//! What one row does stays with that row; what every row meets is the store's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use atlas_engine::ErrorKind;
use atlas_engine::model::{QuarantineFilter, Quarantined, Reason};
use atlas_engine::ports::Store;
use atlas_store_postgres::{Config, PostgresStore};
use atlas_store_suite::fixture::{Draft, begin, meta, object, replaced, unchanged};

use common::{Database, config};

const SOUND: &str = r#"{"systolic":120}"#;
/// `\u0000` is what JSONB cannot hold, and the store is not asked before.
const ZERO: &str = r#"{"name":"Anna\u0000Muster"}"#;

async fn quarantine(store: &dyn Store) -> Vec<Quarantined> {
    let mut all = store
        .ledger()
        .quarantined(&QuarantineFilter::default(), 1_000)
        .await
        .unwrap();
    all.sort_by(|a, b| a.meta.uid.object_id().cmp(b.meta.uid.object_id()));
    all
}

fn page(rows: u32, bad: &[u32], content: &str) -> Draft {
    (1..=rows).fold(Draft::plain(), |draft, number| {
        let is_bad = bad.contains(&number);
        draft.row(meta(number, 1), if is_bad { content } else { SOUND })
    })
}

/// All rows of [`page`] are stored but the bad ones, which are in quarantine with a SQLSTATE and no word of theirs.
async fn only_the_bad_ones_are_refused(
    database: &Database,
    rows: u32,
    bad: &[u32],
    content: &str,
    state: &str,
) {
    let store = database.store();
    let slice = begin(&*store).await;
    let after = page(rows, bad, content).commit(&*store, &slice).await;
    let counts = (
        after.counts.read,
        after.counts.written,
        after.counts.unchanged,
        after.counts.quarantined,
    );
    let refused = bad.len() as u64;
    assert_eq!(
        counts,
        (u64::from(rows), u64::from(rows) - refused, 0, refused)
    );
    let entries = quarantine(&*store).await;
    let objects: Vec<_> = entries
        .iter()
        .map(|entry| entry.meta.uid.object_id().clone())
        .collect();
    assert_eq!(
        objects,
        bad.iter().map(|number| object(*number)).collect::<Vec<_>>()
    );
    for entry in entries {
        assert_eq!(entry.reason, Reason::Unstorable);
        assert!(
            entry.detail.contains(state) && !entry.detail.contains("Anna"),
            "{}",
            entry.detail
        );
    }
    let stored = database
        .client()
        .await
        .query_one("SELECT count(*) FROM compositions", &[])
        .await
        .unwrap();
    assert_eq!(
        stored.get::<_, i64>(0),
        i64::from(rows) - i64::from(bad.len() as u32)
    );
    // The same answer again, whose first one got lost.
    assert_eq!(
        page(rows, bad, content).commit(&*store, &slice).await,
        after
    );
}

#[tokio::test]
async fn rows_that_jsonb_cannot_hold_are_refused_wherever_they_stand() {
    let all: Vec<u32> = (1..=7).collect();
    for (rows, bad) in [
        (19, &[11][..]),
        (19, &[1]),
        (19, &[19]),
        (8, &[1, 2, 7]),
        (1, &[1]),
        (7, &all),
    ] {
        let database = Database::new().await;
        only_the_bad_ones_are_refused(&database, rows, bad, ZERO, "22P05").await;
    }
}

#[tokio::test]
async fn numbers_that_numeric_cannot_hold_are_refused() {
    let database = Database::new().await;
    only_the_bad_ones_are_refused(&database, 9, &[4], "[1e200000]", "22003").await;
}

#[tokio::test]
async fn what_a_trigger_or_constraint_of_somebody_else_refuses_is_in_quarantine() {
    for (ddl, state) in [
        ("ALTER TABLE compositions ADD CONSTRAINT theirs CHECK (content ? 'systolic')", "23514"),
        (
            "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NOT NEW.content ? 'systolic' THEN RAISE EXCEPTION 'no: %', NEW.content; END IF; RETURN NEW; END $$;
             CREATE TRIGGER theirs BEFORE INSERT ON compositions FOR EACH ROW EXECUTE FUNCTION theirs()",
            "P0001",
        ),
        (
            "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NOT NEW.content ? 'systolic' THEN PERFORM 1 / 0; END IF; RETURN NEW; END $$;
             CREATE CONSTRAINT TRIGGER theirs AFTER INSERT ON compositions DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION theirs()",
            "22012",
        ),
        ("CREATE UNIQUE INDEX theirs ON compositions ((content -> 'name'))", "23505"),
        ("CREATE INDEX theirs ON compositions ((content ->> 'name'))", "54000"),
    ] {
        let database = Database::new().await;
        database.store().prepare().await.unwrap();
        database.client().await.batch_execute(ddl).await.unwrap();
        let store = database.store();
        let slice = begin(&*store).await;
        // Random enough not to be compressed below what an index takes.
        let mut long = String::new();
        for n in 0..6_000_u64 {
            long.push_str(&format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        }
        let bad = match state {
            "54000" => format!("{{\"name\":\"{long}\"}}"),
            _ => "{\"name\":\"Anna\"}".to_owned(),
        };
        let mut draft = Draft::plain();
        for number in 1..=9 {
            let content = match (number, state) {
                (1 | 6, "23505") => bad.as_str(),
                (6, _) => bad.as_str(),
                _ => SOUND,
            };
            draft = draft.row(meta(number, 1), content);
        }
        let after = draft.commit(&*store, &slice).await;
        assert_eq!((after.counts.written, after.counts.quarantined), (8, 1), "{state}");
        let entries = quarantine(&*store).await;
        assert_eq!(entries[0].meta.uid.object_id().clone(), object(6), "{state}");
        assert!(entries[0].detail.contains(state), "{state}: {}", entries[0].detail);
    }
}

#[tokio::test]
async fn what_every_row_meets_is_the_stores_and_nothing_moves() {
    for rows in [1, 2, 50] {
        for (ddl, state) in [
            ("ALTER TABLE compositions ADD CONSTRAINT theirs CHECK (ehr_id = 'none')", "23514"),
            (
                "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'Anna'; END $$;
                 CREATE TRIGGER theirs BEFORE INSERT ON compositions FOR EACH ROW EXECUTE FUNCTION theirs()",
                "P0001",
            ),
            ("ALTER TABLE compositions ADD COLUMN theirs text NOT NULL", "23502"),
            ("ALTER TABLE compositions ALTER COLUMN change_type TYPE varchar(3)", "22001"),
            ("ALTER TABLE compositions RENAME COLUMN checksum TO theirs", "42703"),
            ("DROP TABLE compositions CASCADE", "42P01"),
            ("ALTER TABLE compositions DROP CONSTRAINT compositions_id_key", "42P10"),
        ] {
            let database = Database::new().await;
            let store = database.store();
            let slice = begin(&*store).await;
            database.client().await.batch_execute(ddl).await.unwrap();
            let error = page(rows, &[], SOUND).try_commit(&*store, &slice).await.unwrap_err();
            let said = format!("{} {error:?}", error.chain());
            assert!(said.contains(state) && !said.contains("Anna"), "{said}");
            assert_ne!(error.kind(), ErrorKind::Internal, "{said}");
            assert!(error.help().is_some(), "no fix for {said}");
            assert_eq!(store.ledger().slice(&slice.id).await.unwrap(), Some(slice));
            assert!(quarantine(&*store).await.is_empty());
        }
    }
}

/// Every class of SQLSTATE. A trigger may raise any of them.
const STATES: &[&str] = &[
    "01000", "02000", "08006", "0A000", "20000", "21000", "22012", "23505", "25006", "25P02",
    "26000", "28000", "2F005", "38000", "3D000", "3F000", "40001", "40P01", "42501", "42P01",
    "44000", "53100", "53200", "53300", "54000", "55000", "55P03", "57014", "57P01", "57P03",
    "58030", "F0000", "HV000", "P0001", "XX000", "ZZ999",
];

/// A trigger that raises a SQLSTATE for the rows that the condition names.
fn raises(state: &str, condition: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF {condition} THEN RAISE 'Anna' USING ERRCODE = '{state}'; END IF; RETURN NEW; END $$;
         DROP TRIGGER IF EXISTS theirs ON compositions;
         CREATE TRIGGER theirs BEFORE INSERT OR UPDATE ON compositions FOR EACH ROW EXECUTE FUNCTION theirs()"
    )
}

#[tokio::test]
async fn whatever_a_trigger_raises_for_one_row_stays_with_that_row() {
    for rows in [1, 9] {
        let database = Database::new().await;
        let store = database.store();
        let mut slice = begin(&*store).await;
        let client = database.client().await;
        for state in STATES {
            let only = "NOT NEW.content ? 'systolic' AND NOT NEW.content ? 'filler'";
            client.batch_execute(&raises(state, only)).await.unwrap();
            client
                .batch_execute("DELETE FROM compositions; DELETE FROM atlas_quarantine")
                .await
                .unwrap();
            let bad = rows.min(5);
            let after = page(rows, &[bad], r#"{"name":"Anna"}"#)
                .commit(&*store, &slice)
                .await;
            let added = after.counts.since(&slice.counts);
            assert_eq!(
                (added.written, added.quarantined),
                (u64::from(rows) - 1, 1),
                "{state}"
            );
            let entries = quarantine(&*store).await;
            assert_eq!(entries[0].meta.uid.object_id(), &object(bad), "{state}");
            assert!(entries[0].detail.contains(state), "{}", entries[0].detail);
            assert!(!entries[0].detail.contains("Anna"), "{}", entries[0].detail);
            slice = after;
        }
    }
}

#[tokio::test]
async fn whatever_a_trigger_raises_for_every_row_is_the_stores() {
    let database = Database::new().await;
    let store = database.store();
    let slice = begin(&*store).await;
    let client = database.client().await;
    for state in STATES.iter().chain(&["XX001", "XX002"]) {
        client.batch_execute(&raises(state, "true")).await.unwrap();
        for rows in [1, 9] {
            let error = page(rows, &[], SOUND)
                .try_commit(&*store, &slice)
                .await
                .unwrap_err();
            assert!(error.chain().contains(state), "{}", error.chain());
            assert_ne!(error.kind(), ErrorKind::Internal);
            assert!(error.help().is_some(), "{state}");
            assert_eq!(
                store.ledger().slice(&slice.id).await.unwrap().as_ref(),
                Some(&slice)
            );
            assert!(quarantine(&*store).await.is_empty(), "{state}");
        }
    }
}

#[tokio::test]
async fn a_server_without_room_for_large_rows_puts_none_into_quarantine() {
    let database = Database::new().await;
    let store = database.store();
    let slice = begin(&*store).await;
    let client = database.client().await;
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(9_000));
    // As on a full disk: small rows find room in pages that are there.
    for state in ["53100", "53200", "57014", "58030"] {
        let no_room = "length(NEW.content::text) > 5000";
        client.batch_execute(&raises(state, no_room)).await.unwrap();
        for rows in [1, 9] {
            let error = page(rows, &[rows], &large)
                .try_commit(&*store, &slice)
                .await
                .unwrap_err();
            assert!(error.chain().contains(state), "{}", error.chain());
            assert!(quarantine(&*store).await.is_empty());
        }
    }
}

#[tokio::test]
async fn a_row_that_a_trigger_leaves_out_without_an_error_is_in_quarantine() {
    for (on, version) in [("INSERT", 1), ("UPDATE", 2), ("INSERT OR UPDATE", 2)] {
        let database = Database::new().await;
        let store = database.store();
        let slice = begin(&*store).await;
        let slice = page(9, &[], SOUND).commit(&*store, &slice).await;
        let ddl = format!(
            "DELETE FROM compositions WHERE version <> {};
             CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.content ? 'name' THEN RETURN NULL; END IF; RETURN NEW; END $$;
             CREATE TRIGGER theirs BEFORE {on} ON compositions FOR EACH ROW EXECUTE FUNCTION theirs()",
            version - 1
        );
        database.client().await.batch_execute(&ddl).await.unwrap();
        let next = (1..=9).fold(Draft::plain(), |draft, number| {
            let content = if number == 5 {
                r#"{"name":"Anna"}"#
            } else {
                SOUND
            };
            draft.row(meta(number, version), content)
        });
        let after = next.commit(&*store, &slice).await;
        let added = after.counts.since(&slice.counts);
        assert_eq!((added.written, added.quarantined), (8, 1), "{on}");
        let entries = quarantine(&*store).await;
        assert_eq!(entries[0].meta.uid.object_id(), &object(5), "{on}");
        assert!(
            entries[0].detail.contains("left this row out"),
            "{}",
            entries[0].detail
        );
    }
}

#[tokio::test]
async fn a_trigger_that_leaves_every_row_out_is_the_stores_and_nothing_moves() {
    for rows in [1, 9] {
        let database = Database::new().await;
        let store = database.store();
        let slice = begin(&*store).await;
        let ddl = "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
                   CREATE TRIGGER theirs BEFORE INSERT ON compositions FOR EACH ROW EXECUTE FUNCTION theirs()";
        database.client().await.batch_execute(ddl).await.unwrap();
        let error = page(rows, &[], SOUND)
            .try_commit(&*store, &slice)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreDenied, "{}", error.chain());
        assert!(error.help().is_some_and(|fix| fix.contains("trigger")));
        assert_eq!(store.ledger().slice(&slice.id).await.unwrap(), Some(slice));
        assert!(quarantine(&*store).await.is_empty());
    }
}

#[tokio::test]
async fn a_trigger_that_keeps_a_slice_as_it_is_is_said_and_never_taken_for_done() {
    let database = Database::new().await;
    let store = database.store();
    let slice = begin(&*store).await;
    let ddl = "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
               CREATE TRIGGER theirs BEFORE UPDATE ON atlas_slices FOR EACH ROW EXECUTE FUNCTION theirs()";
    database.client().await.batch_execute(ddl).await.unwrap();
    for error in [
        page(3, &[], SOUND)
            .try_commit(&*store, &slice)
            .await
            .unwrap_err(),
        store.ledger().swap_slice(&slice, &slice).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::StoreDenied, "{}", error.chain());
        assert!(error.help().is_some_and(|fix| fix.contains("trigger")));
    }
    assert_eq!(store.ledger().slice(&slice.id).await.unwrap(), Some(slice));
}

#[tokio::test]
async fn a_row_that_comes_from_elsewhere_meanwhile_is_judged_as_it_stands() {
    // The version that comes meanwhile, and what this page's version 2 adds to its slice then.
    for (version, expected) in [(1, replaced(1)), (2, unchanged(1)), (3, unchanged(1))] {
        let database = Database::new().await;
        let store = database.store();
        let slice = begin(&*store).await;
        let draft = Draft::plain().row(meta(7, 2), SOUND);
        let theirs = Draft::plain().row(meta(7, version), SOUND);
        // Their row, as a transaction that is still open has put it.
        let elsewhere = store_in(&database, "elsewhere");
        let there = begin(&elsewhere).await;
        theirs.commit(&elsewhere, &there).await;
        let columns = "id, composition_uid, version, ehr_id, template_id, time_committed, change_type, export_mode, checksum, \
                       exported_at, run_id, atlas_version, asked, content";
        let mut client = database.client().await;
        let open = client.transaction().await.unwrap();
        open.batch_execute(&format!(
            "INSERT INTO public.compositions ({columns}) SELECT {columns} FROM elsewhere.compositions"
        ))
        .await
        .unwrap();
        let watcher = database.client().await;
        let end_once_waited_for = async {
            loop {
                let waiting = watcher
                    .query(
                        "SELECT FROM pg_stat_activity
                         WHERE application_name = 'atlas' AND wait_event_type = 'Lock' AND datname = current_database()",
                        &[],
                    )
                    .await
                    .unwrap();
                if !waiting.is_empty() {
                    break;
                }
            }
            open.commit().await.unwrap();
        };
        let both = async { tokio::join!(draft.commit(&*store, &slice), end_once_waited_for) };
        let (after, ()) = tokio::time::timeout(std::time::Duration::from_secs(30), both)
            .await
            .expect("the commit waits for the open transaction");
        assert_eq!(after.counts, expected, "version {version}");
        let held = store.index().known(&[meta(7, 1).key()]).await.unwrap();
        assert_eq!(held[&object(7)].version, version.max(2));
    }
}

fn store_in(database: &Database, schema: &str) -> PostgresStore {
    let config = Config {
        schema: Some(schema.to_owned()),
        ..config(&database.url)
    };
    PostgresStore::new(&config).unwrap()
}
