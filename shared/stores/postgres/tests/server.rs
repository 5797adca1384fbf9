//! What a real server does to the store, beside answering.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use std::time::Duration;

use atlas_ehrbase::Postgres;
use atlas_engine::model::{DeleteReason, QuarantineFilter};
use atlas_engine::ports::Store;
use atlas_engine::{Error, ErrorKind};
use atlas_store_postgres::{Config, PostgresStore, SslMode, grant_script};
use atlas_store_suite::fixture::{Draft, at, begin, meta, selection};

use common::{Database, config};

const A: &str = r#"{"systolic":120}"#;

fn fails(error: &Error, kind: ErrorKind) {
    assert_eq!(error.kind(), kind, "{}", error.chain());
}

/// Of the kinds that a person has to act on, each says how.
fn fails_with_a_fix(error: &Error, kind: ErrorKind) {
    fails(error, kind);
    assert!(error.help().is_some(), "no fix for {}", error.chain());
}

#[tokio::test]
async fn a_wrong_password_is_denied_and_not_repeated() {
    let database = Database::new().await;
    let url = database
        .cluster
        .connection_string_as("postgres", "hunter2", &database.name);
    let store = PostgresStore::new(&config(&url)).unwrap();
    let error = store.prepare().await.unwrap_err();
    fails_with_a_fix(&error, ErrorKind::StoreDenied);
    assert!(!format!("{} {error:?}", error.chain()).contains("hunter2"));
}

#[tokio::test]
async fn a_missing_database_is_denied() {
    let database = Database::new().await;
    let url = database.cluster.connection_string("no such database");
    let error = PostgresStore::new(&config(&url.replace(' ', "%20")))
        .unwrap()
        .prepare()
        .await
        .unwrap_err();
    fails_with_a_fix(&error, ErrorKind::StoreDenied);
}

#[tokio::test]
async fn a_server_that_does_not_run_is_unreachable() {
    // Bound and never listened on: nothing answers there, and nobody else gets the port meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let url = format!("postgres://atlas:secret@127.0.0.1:{port}/atlas");
    let store = PostgresStore::new(&config(&url)).unwrap();
    fails_with_a_fix(
        &store.prepare().await.unwrap_err(),
        ErrorKind::StoreUnreachable,
    );
    let error = store.ledger().now().await.err().unwrap();
    fails_with_a_fix(&error, ErrorKind::StoreUnreachable);
}

#[tokio::test]
async fn a_server_that_never_answers_is_unreachable_after_the_timeout() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "postgres://atlas:secret@{}/atlas",
        silent.local_addr().unwrap()
    );
    let config = Config {
        connection_timeout: Duration::from_millis(200),
        ..config(&url)
    };
    let store = PostgresStore::new(&config).unwrap();
    fails_with_a_fix(
        &store.prepare().await.unwrap_err(),
        ErrorKind::StoreUnreachable,
    );
    let error = store.ledger().now().await.err().unwrap();
    fails_with_a_fix(&error, ErrorKind::StoreUnreachable);
}

#[test]
fn a_connection_string_that_cannot_be_read_is_not_quoted() {
    for wrong in [
        "postgres://atlas:hunter2@:badport/x",
        "hunter2",
        "host=h password=hunter2 hunter2",
        "mysql://atlas:hunter2@localhost/atlas",
        "user=atlas password=hunter2",
    ] {
        let error = PostgresStore::new(&config(wrong)).err().unwrap();
        fails_with_a_fix(&error, ErrorKind::Usage);
        let said = format!("{} {error:?} {:?}", error.chain(), config(wrong));
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_unreachable() {
    let cluster = Postgres::start().await.unwrap();
    let url = cluster.fresh_database().await.unwrap();
    let store = PostgresStore::new(&config(&url)).unwrap();
    let slice = begin(&store).await;
    let slice = Draft::plain()
        .row(meta(1, 1), A)
        .commit(&store, &slice)
        .await;
    drop(cluster);
    let next = Draft::plain().row(meta(2, 1), A);
    fails_with_a_fix(
        &next.try_commit(&store, &slice).await.unwrap_err(),
        ErrorKind::StoreUnreachable,
    );
    // And again, over a new connection.
    fails_with_a_fix(
        &next.try_commit(&store, &slice).await.unwrap_err(),
        ErrorKind::StoreUnreachable,
    );
}

#[tokio::test]
async fn a_commit_whose_connection_was_ended_succeeds_when_it_is_repeated() {
    let database = Database::new().await;
    let store = database.store();
    let slice = begin(&*store).await;
    // Another transaction has the slice: the commit waits for it, and its connection is ended there.
    let mut other = database.client().await;
    let lock = other.transaction().await.unwrap();
    lock.execute("SELECT 1 FROM atlas_slices FOR UPDATE", &[])
        .await
        .unwrap();
    let page = Draft::plain().row(meta(1, 1), A);
    let client = database.client().await;
    let end_waiting = async {
        loop {
            let ended = client
                .execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE application_name = 'atlas' AND wait_event_type = 'Lock' AND datname = current_database()",
                    &[],
                )
                .await
                .unwrap();
            if ended > 0 {
                break;
            }
        }
    };
    let both = async { tokio::join!(page.try_commit(&*store, &slice), end_waiting) };
    let (committed, ()) = tokio::time::timeout(Duration::from_secs(30), both)
        .await
        .expect("the commit waits for the lock and is ended there");
    fails_with_a_fix(&committed.unwrap_err(), ErrorKind::StoreUnreachable);
    lock.rollback().await.unwrap();
    let after = page.commit(&*store, &slice).await;
    assert_eq!(after.counts.written, 1);
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_given_up() {
    let database = Database::new().await;
    let slice = begin(&*database.store()).await;
    let mut other = database.client().await;
    let lock = other.transaction().await.unwrap();
    lock.execute("SELECT 1 FROM atlas_slices FOR UPDATE", &[])
        .await
        .unwrap();
    let config = Config {
        statement_timeout: Duration::from_millis(200),
        ..config(&database.url)
    };
    let store = PostgresStore::new(&config).unwrap();
    let page = Draft::plain().row(meta(1, 1), A);
    let error = page.try_commit(&store, &slice).await.unwrap_err();
    fails_with_a_fix(&error, ErrorKind::StoreUnreachable);
    lock.rollback().await.unwrap();
    // The connection is as good as new.
    page.commit(&store, &slice).await;
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_a_connection_that_works() {
    let database = Database::new().await;
    let config = Config {
        max_connections: 1,
        ..config(&database.url)
    };
    let store = PostgresStore::new(&config).unwrap();
    let slice = begin(&store).await;
    let mut other = database.client().await;
    let lock = other.transaction().await.unwrap();
    lock.execute("SELECT 1 FROM atlas_slices FOR UPDATE", &[])
        .await
        .unwrap();
    let page = Draft::plain().row(meta(1, 1), A);
    let given_up =
        tokio::time::timeout(Duration::from_millis(200), page.try_commit(&store, &slice));
    assert!(given_up.await.is_err());
    lock.rollback().await.unwrap();
    page.commit(&store, &slice).await;
}

#[tokio::test]
async fn a_role_that_may_only_read_is_denied() {
    let database = Database::new().await;
    let slice = begin(&*database.store()).await;
    let sql = format!(
        "ALTER DATABASE \"{}\" SET default_transaction_read_only TO on",
        database.name
    );
    database.cluster.execute("postgres", &sql).await.unwrap();
    let store = database.store();
    let page = Draft::plain().row(meta(1, 1), A);
    fails_with_a_fix(
        &page.try_commit(&*store, &slice).await.unwrap_err(),
        ErrorKind::StoreDenied,
    );
    // Reading goes on.
    assert_eq!(store.ledger().slices(&selection()).await.unwrap().len(), 1);
}

/// A role of its own, dropped with the guard's database.
async fn role(database: &Database) -> (String, String) {
    let name = format!("Role of {}", database.name);
    let sql = format!("CREATE ROLE \"{name}\" LOGIN PASSWORD 'secret'");
    database.cluster.execute("postgres", &sql).await.unwrap();
    let url =
        database
            .cluster
            .connection_string_as(&name.replace(' ', "%20"), "secret", &database.name);
    (name, url)
}

#[tokio::test]
async fn the_granted_role_exports_and_may_create_nothing() {
    let database = Database::new().await;
    let (name, url) = role(&database).await;
    // As careful operators do: nothing for everybody.
    let revoke = format!(
        "REVOKE ALL ON DATABASE \"{}\" FROM PUBLIC; GRANT CONNECT ON DATABASE \"{}\" TO \"{name}\"",
        database.name, database.name
    );
    database.cluster.execute("postgres", &revoke).await.unwrap();
    let with_schema = |url: &str| Config {
        schema: Some("The \"copy\"".to_owned()),
        ..config(url)
    };
    let owner = PostgresStore::new(&with_schema(&database.url)).unwrap();
    let slice = begin(&owner).await;

    let store = PostgresStore::new(&with_schema(&url)).unwrap();
    fails_with_a_fix(&store.prepare().await.unwrap_err(), ErrorKind::StoreDenied);
    let script = grant_script(Some("The \"copy\""), &name).unwrap();
    database
        .cluster
        .execute(&database.name, &script)
        .await
        .unwrap();

    store.prepare().await.unwrap();
    let first = Draft::plain()
        .row(meta(1, 1), A)
        .reject(meta(2, 1))
        .commit(&store, &slice)
        .await;
    let second = Draft::plain()
        .row(meta(1, 2), A)
        .row(meta(2, 1), A)
        .commit(&store, &first)
        .await;
    assert_eq!(second.counts.written, 3);
    store
        .ledger()
        .add_slices(&[atlas_store_suite::fixture::slice("slice 2")])
        .await
        .unwrap();
    store
        .ledger()
        .swap_slice(&second, &second)
        .await
        .unwrap()
        .unwrap();
    store
        .ledger()
        .remove_slices(&["slice 2".to_owned()])
        .await
        .unwrap();
    store.ledger().watermarks(&selection()).await.unwrap();
    store
        .ledger()
        .raise_watermarks(&selection(), &[watermark(), watermark()])
        .await
        .unwrap();
    store.index().known(&[meta(1, 1).key()]).await.unwrap();
    store
        .ledger()
        .quarantined(&QuarantineFilter::default(), 9)
        .await
        .unwrap();
    let ledger = store.ledger();
    let counts = ledger.template_counts().await.unwrap();
    ledger
        .set_template_counts(&counts[0].template, &counts[0].counts)
        .await
        .unwrap();
    ledger.quarantine_counts(None).await.unwrap();
    let foreign = atlas_store_suite::fixture::slice("elsewhere");
    assert_eq!(store.rows().landed(&foreign).await.unwrap(), None);
    Draft::plain()
        .delete(meta(2, 1), at(60), DeleteReason::Deleted)
        .land(&store, &foreign)
        .await;
    assert_eq!(store.rows().erase(&meta(2, 1).ehr).await.unwrap(), 1);
    store.ledger().add_run(&run()).await.unwrap();
    store.ledger().swap_run(&run(), &run()).await.unwrap();
    store.ledger().runs(1).await.unwrap();
    store
        .ledger()
        .prune_runs(atlas_store_suite::fixture::at(99))
        .await
        .unwrap();
    store
        .templates()
        .save_template(&web_template())
        .await
        .unwrap();
    store
        .templates()
        .save_template(&web_template())
        .await
        .unwrap();
    store
        .templates()
        .template(&web_template().template)
        .await
        .unwrap();

    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let ddl = [
        "CREATE TABLE \"The \"\"copy\"\"\".x ()",
        "DROP TABLE \"The \"\"copy\"\"\".compositions",
        "DELETE FROM \"The \"\"copy\"\"\".atlas_migrations",
        "TRUNCATE \"The \"\"copy\"\"\".compositions",
        "CREATE SCHEMA x",
    ];
    for sql in ddl {
        let error = client.execute(sql, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{sql}");
    }
    let end = format!("DROP OWNED BY \"{name}\"; DROP ROLE \"{name}\"");
    drop((store, client));
    database
        .cluster
        .execute(&database.name, &end)
        .await
        .unwrap();
}

fn watermark() -> atlas_engine::model::Watermark {
    atlas_engine::model::Watermark {
        template: atlas_store_suite::fixture::template(),
        until: atlas_store_suite::fixture::at(10),
        late_checked_until: atlas_store_suite::fixture::at(5),
        position: None,
    }
}

fn run() -> atlas_engine::model::Run {
    atlas_engine::model::Run {
        id: atlas_store_suite::fixture::RUN.to_owned(),
        step: 0,
        origin: atlas_engine::model::Origin::CommandLine,
        request: None,
        failure: None,
        selection: selection(),
        mode: atlas_engine::model::Mode::Full,
        started: atlas_store_suite::fixture::at(0),
        ended: None,
        cut: None,
        source_clock: None,
        planned: false,
        outcome: None,
        counts: atlas_engine::model::Counts::default(),
    }
}

fn web_template() -> atlas_engine::model::StoredTemplate {
    atlas_engine::model::StoredTemplate {
        template: atlas_store_suite::fixture::template(),
        digest: String::new(),
        web_template: "{}".to_owned(),
        names: String::new(),
        fetched: atlas_store_suite::fixture::at(0),
    }
}

#[tokio::test]
async fn tables_of_a_newer_atlas_are_left_alone() {
    let database = Database::new().await;
    database.store().prepare().await.unwrap();
    let client = database.client().await;
    let newer = "DROP TABLE atlas_runs;
                 INSERT INTO atlas_migrations (version, name, atlas_version) VALUES (101, 'later', '9.0.0')";
    client.batch_execute(newer).await.unwrap();
    let error = database.store().prepare().await.unwrap_err();
    fails_with_a_fix(&error, ErrorKind::StoreNewer);
    let there = client
        .query_one("SELECT to_regclass('atlas_runs')::text", &[])
        .await
        .unwrap();
    assert_eq!(
        there.get::<_, Option<String>>(0),
        None,
        "nothing was created"
    );
}

#[tokio::test]
async fn tables_from_before_the_first_release_are_left_alone() {
    for number in [1, 2, 99] {
        let database = Database::new().await;
        let client = database.client().await;
        let older = format!(
            "CREATE TABLE atlas_migrations (version int8, name text, applied_at timestamptz, atlas_version text);
             INSERT INTO atlas_migrations (version, name, atlas_version) VALUES ({number}, 'tables', '0.1.0')"
        );
        client.batch_execute(&older).await.unwrap();
        for error in [
            database.store().prepare().await.unwrap_err(),
            database.store().ledger().now().await.unwrap_err(),
        ] {
            fails_with_a_fix(&error, ErrorKind::StoreDenied);
            let said = "made before the first release: export into a new schema or file";
            assert!(error.chain().contains(said), "{}", error.chain());
        }
        let there = client
            .query_one("SELECT to_regclass('compositions')::text", &[])
            .await
            .unwrap();
        assert_eq!(
            there.get::<_, Option<String>>(0),
            None,
            "nothing was created"
        );
    }
}

#[tokio::test]
async fn tables_that_are_not_there_are_said_to_be_missing() {
    let database = Database::new().await;
    let error = database
        .store()
        .ledger()
        .slices(&selection())
        .await
        .unwrap_err();
    fails_with_a_fix(&error, ErrorKind::Usage);
}

#[tokio::test]
async fn what_no_atlas_wrote_is_corrupt() {
    let database = Database::new().await;
    let store = database.store();
    begin(&*store).await;
    let client = database.client().await;
    client
        .execute("UPDATE atlas_slices SET state = 'Anna, born 1970'", &[])
        .await
        .unwrap();
    let error = store.ledger().slices(&selection()).await.unwrap_err();
    fails_with_a_fix(&error, ErrorKind::StoreCorrupt);
    assert!(!error.chain().contains("Anna"));
    // Columns of other types and names are no defect of this program either.
    for ddl in [
        "ALTER TABLE atlas_slices ALTER COLUMN count_read TYPE text",
        "ALTER TABLE atlas_slices ALTER COLUMN failure TYPE bytea USING failure::bytea",
        "ALTER TABLE atlas_slices RENAME COLUMN fence TO theirs",
        "ALTER TABLE atlas_slices ALTER COLUMN run_id DROP NOT NULL; UPDATE atlas_slices SET run_id = NULL",
    ] {
        let database = Database::new().await;
        let store = database.store();
        begin(&*store).await;
        database.client().await.batch_execute(ddl).await.unwrap();
        let error = store.ledger().slices(&selection()).await.unwrap_err();
        fails_with_a_fix(&error, ErrorKind::StoreCorrupt);
    }
}

#[tokio::test]
async fn a_full_disk_is_full_and_a_crash_is_unreachable() {
    let database = Database::new().await;
    let store = database.store();
    let slice = begin(&*store).await;
    let client = database.client().await;
    for (code, kind) in [
        ("53100", ErrorKind::StoreFull),
        ("57P02", ErrorKind::StoreUnreachable),
        ("40001", ErrorKind::StoreUnreachable),
        ("40P01", ErrorKind::StoreUnreachable),
        ("25006", ErrorKind::StoreDenied),
    ] {
        let trigger = format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '{code}'; END $$;
             DROP TRIGGER IF EXISTS refuse ON compositions;
             CREATE TRIGGER refuse BEFORE INSERT ON compositions FOR EACH ROW EXECUTE FUNCTION refuse()"
        );
        client.batch_execute(&trigger).await.unwrap();
        let page = Draft::plain().row(meta(1, 1), A);
        fails(&page.try_commit(&*store, &slice).await.unwrap_err(), kind);
        assert_eq!(
            store.ledger().slice(&slice.id).await.unwrap().as_ref(),
            Some(&slice),
            "nothing moved"
        );
    }
}

#[tokio::test]
async fn what_is_refused_is_what_jsonb_cannot_hold() {
    let database = Database::new().await;
    let store = database.store();
    let client = database.client().await;
    let long = "1".repeat(131_073);
    let contents = [
        r#"{"a":["x\u0000y"]}"#,
        r#"{"\u0000":1}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\udc00\ud800"}"#,
        r#"{"a":"\\u0000"}"#,
        r#"{"a\"[{1e999999":"\\","b":[{"c":true},1e5]}"#,
        r#"{"a":"\ud83e\ude7a"}"#,
        "[1e131071]",
        "[1e131072]",
        "[12.5e131071]",
        "[0.1e131072]",
        "[-0.1e131073]",
        "[0.00012e131075]",
        "[0.00012e131076]",
        "[1e-16383]",
        "[1e-16384]",
        "[1.5e-16382]",
        "[1.5e-16383]",
        "[1e99999999999]",
        "[1e400,-1e-400]",
        &format!("[{long}]"),
        &format!("[{}]", &long[1..]),
        &format!("[0.{}]", &long[..16_383]),
        &format!("[0.{}]", &long[..16_384]),
        &format!("{}{}", "[".repeat(512), "]".repeat(512)),
    ];
    for content in contents {
        let refused = store.rows().refuses(content);
        let held = client
            .execute(&format!("SELECT '{content}'::jsonb"), &[])
            .await;
        let label = &content[..content.len().min(40)];
        assert_eq!(
            refused.is_none(),
            held.is_ok(),
            "{label}: {refused:?}, {held:?}"
        );
        if let Some((_, detail)) = refused {
            assert!(
                !detail.contains('x') || detail.contains("which"),
                "{detail}"
            );
        }
    }
}

#[tokio::test]
async fn every_table_and_column_has_a_comment() {
    let database = Database::new().await;
    database.store().prepare().await.unwrap();
    let client = database.client().await;
    let silent = client
        .query(
            "SELECT c.relname || coalesce('.' || a.attname, '')
             FROM pg_class AS c
             CROSS JOIN LATERAL (
                 SELECT 0 AS attnum, NULL::name AS attname
                 UNION ALL SELECT attnum, attname FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) AS a
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
               AND col_description(c.oid, a.attnum) IS NULL AND (a.attnum > 0 OR obj_description(c.oid) IS NULL)",
            &[],
        )
        .await
        .unwrap();
    let silent: Vec<String> = silent.iter().map(|row| row.get(0)).collect();
    assert!(silent.is_empty(), "without a comment: {silent:?}");
}

#[tokio::test]
async fn watermarks_have_one_row_per_template_and_ehr() {
    let database = Database::new().await;
    let store = database.store();
    let slice = begin(&*store).await;
    // Objects 1 and 4 share an EHR; 2 is in another one.
    let page = Draft::plain()
        .row(meta(1, 1), A)
        .row(meta(4, 1), A)
        .row(meta(2, 1), A);
    page.commit(&*store, &slice).await;
    for (selection, until) in [("one", 9), ("two", 7)] {
        let reached = atlas_engine::model::Watermark {
            until: at(until),
            ..watermark()
        };
        let selection = atlas_engine::model::SelectionKey(selection.to_owned());
        store
            .ledger()
            .raise_watermarks(&selection, &[reached])
            .await
            .unwrap();
    }
    let rows = database
        .client()
        .await
        .query(
            "SELECT ehr_id, compositions, newest_committed = (
                 SELECT max(time_committed) FROM compositions AS c WHERE c.ehr_id = w.ehr_id),
                 checked_until = (SELECT min(until) FROM atlas_watermarks)
             FROM watermarks AS w WHERE template_id = 'Vital signs.v1' ORDER BY ehr_id",
            &[],
        )
        .await
        .unwrap();
    let rows: Vec<(String, i64, bool, bool)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect();
    let ehr = |number| meta(number, 1).ehr.as_str().to_owned();
    assert_eq!(rows, [(ehr(1), 2, true, true), (ehr(2), 1, true, true)]);
}

#[tokio::test]
async fn another_schema_is_another_copy() {
    let database = Database::new().await;
    let in_schema = |schema: &str| {
        PostgresStore::new(&Config {
            schema: Some(schema.to_owned()),
            ..config(&database.url)
        })
        .unwrap()
    };
    let (one, two) = (in_schema("one"), in_schema("TWO 2"));
    let slice = begin(&one).await;
    two.prepare().await.unwrap();
    Draft::plain().row(meta(1, 1), A).commit(&one, &slice).await;
    assert!(two.ledger().slices(&selection()).await.unwrap().is_empty());
    assert!(two.ledger().template_counts().await.unwrap().is_empty());
}

mod tls {
    use super::*;

    fn with(url: &str, ssl_mode: SslMode, root: Option<&std::path::Path>) -> Config {
        Config {
            ssl_mode: Some(ssl_mode),
            ssl_root_cert: root.map(Into::into),
            ..config(url)
        }
    }

    async fn outcome(config: &Config) -> Result<(), ErrorKind> {
        let store = PostgresStore::new(config).map_err(|error| error.kind())?;
        let prepared = store.prepare().await;
        if let Err(error) = &prepared {
            assert!(error.help().is_some(), "no fix for {}", error.chain());
        }
        prepared.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn each_mode_checks_what_it_promises() {
        let cluster = Postgres::start_tls().await.unwrap();
        let other = Postgres::start_tls().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let right = folder.path().join("right.pem");
        let wrong = folder.path().join("wrong.pem");
        std::fs::write(&right, cluster.ca().unwrap()).unwrap();
        std::fs::write(&wrong, other.ca().unwrap()).unwrap();
        let named = cluster.connection_string("postgres");
        let password = named.split(['@', ':']).nth(2).unwrap();
        let port = cluster.port();
        let misnamed = format!(
            "host=db.example.org hostaddr=127.0.0.1 port={port} user=postgres password={password} dbname=postgres"
        );

        let denied = Err(ErrorKind::StoreDenied);
        for (mode, root, by_name, by_another_name) in [
            (SslMode::Disable, None, denied, denied),
            (SslMode::Allow, None, Ok(()), Ok(())),
            (SslMode::Allow, Some(&wrong), denied, denied),
            (SslMode::Prefer, None, Ok(()), Ok(())),
            (SslMode::Prefer, Some(&right), Ok(()), Ok(())),
            (SslMode::Prefer, Some(&wrong), denied, denied),
            (SslMode::Require, Some(&right), Ok(()), Ok(())),
            (SslMode::Require, Some(&wrong), denied, denied),
            (SslMode::Require, None, Ok(()), Ok(())),
            (SslMode::VerifyCa, None, denied, denied),
            (SslMode::VerifyCa, Some(&right), Ok(()), Ok(())),
            (SslMode::VerifyCa, Some(&wrong), denied, denied),
            (SslMode::VerifyFull, Some(&right), Ok(()), denied),
            (SslMode::VerifyFull, Some(&wrong), denied, denied),
            (SslMode::VerifyFull, None, denied, denied),
        ] {
            let root = root.map(std::path::PathBuf::as_path);
            let label = format!("{} with {root:?}", mode.name());
            assert_eq!(outcome(&with(&named, mode, root)).await, by_name, "{label}");
            assert_eq!(
                outcome(&with(&misnamed, mode, root)).await,
                by_another_name,
                "{label}, by another name"
            );
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_refused_from_require_on() {
        let database = Database::new().await;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root.pem");
        let cluster = Postgres::start_tls().await.unwrap();
        std::fs::write(&root, cluster.ca().unwrap()).unwrap();
        for mode in SslMode::ALL {
            let expected = match mode {
                SslMode::Disable | SslMode::Allow | SslMode::Prefer => Ok(()),
                _ => Err(ErrorKind::StoreDenied),
            };
            let config = with(&database.url, mode, Some(&root));
            assert_eq!(outcome(&config).await, expected, "{}", mode.name());
        }
    }

    #[test]
    fn a_root_file_without_a_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "no certificate here\n").unwrap();
        let broken = folder.path().join("broken.pem");
        std::fs::write(
            &broken,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        for path in [empty, broken, folder.path().join("missing.pem")] {
            let url = "postgres://atlas:secret@localhost/atlas";
            let error = PostgresStore::new(&with(url, SslMode::VerifyFull, Some(&path)))
                .err()
                .unwrap();
            fails_with_a_fix(&error, ErrorKind::Usage);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(error.chain().contains(name));
        }
    }
}

#[test]
fn ssl_modes_have_the_names_of_libpq() {
    for mode in SslMode::ALL {
        assert_eq!(mode.name().parse(), Ok(mode));
    }
    assert!("verify_full".parse::<SslMode>().is_err());
}
