//! Through PgBouncer in transaction mode, where each transaction may get another connection of the server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use std::sync::Arc;

use atlas_engine::ErrorKind;
use atlas_engine::ports::Store;
use atlas_store_postgres::{Config, PostgresStore};
use atlas_store_suite::fixture::{Draft, begin, meta, selection, slice, template};

use common::{Database, Pooler, config};

const A: &str = r#"{"systolic":120}"#;

/// Without a name that survives; and with names that the pooler keeps, where it is new enough to know them.
const SETTINGS: [&str; 2] = ["default_pool_size = 1", "default_pool_size = 3"];

fn in_schema(url: &str, schema: &str) -> Arc<PostgresStore> {
    let config = Config {
        schema: Some(schema.to_owned()),
        ..config(url)
    };
    Arc::new(PostgresStore::new(&config).unwrap())
}

#[tokio::test]
async fn stores_of_two_schemas_never_meet_on_one_connection() {
    for settings in SETTINGS {
        let database = Database::new().await;
        let pooler = Pooler::start(&database.cluster, settings).await;
        let url = pooler.url(&database.url);
        let stores = ["one", "two", "three"].map(|schema| in_schema(&url, schema));
        let runs = stores.iter().enumerate().map(|(number, store)| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut slice = begin(&*store).await;
                for page in 1..=20_u32 {
                    let rows = (1..=10 + number as u32).map(|row| page * 100 + row);
                    let draft = rows.fold(Draft::plain(), |draft, row| draft.row(meta(row, 1), A));
                    slice = draft
                        .reject(meta(page * 100, 1))
                        .commit(&*store, &slice)
                        .await;
                    store.index().known(&[meta(page, 1).key()]).await.unwrap();
                }
                slice.counts.written
            })
        });
        for (number, run) in runs.enumerate() {
            assert_eq!(run.await.unwrap(), 20 * (10 + number as u64));
        }
        for (number, store) in stores.iter().enumerate() {
            let counts = store.ledger().template_counts().await.unwrap();
            assert_eq!(counts[0].compositions(), 20 * (10 + number as u64));
            assert_eq!(counts[0].template, template());
            assert_eq!(store.ledger().slices(&selection()).await.unwrap().len(), 1);
        }
    }
}

#[tokio::test]
async fn nothing_is_left_on_a_connection() {
    let database = Database::new().await;
    let pooler = Pooler::start(&database.cluster, "default_pool_size = 1").await;
    let url = pooler.url(&database.url);
    let store = in_schema(&url, "copy");
    let open = begin(&*store).await;
    let open = Draft::plain()
        .row(meta(1, 1), A)
        .reject(meta(2, 1))
        .commit(&*store, &open)
        .await;
    // A row that is refused, and a page that is lost.
    let zero = Draft::plain()
        .row(meta(3, 1), A)
        .row(meta(4, 1), r#"["\u0000"]"#);
    let after = zero.commit(&*store, &open).await;
    assert_eq!(after.counts.quarantined, 2);
    Draft::plain()
        .row(meta(5, 1), A)
        .try_commit(&*store, &slice("another"))
        .await
        .unwrap();

    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let left = client
        .simple_query(
            "SELECT 'setting ' || name FROM pg_settings WHERE source = 'session' AND name <> 'client_encoding'
             UNION ALL SELECT 'statement ' || name FROM pg_prepared_statements
             UNION ALL SELECT 'relation ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
             UNION ALL SELECT 'lock ' || locktype FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        )
        .await
        .unwrap();
    let left: Vec<_> = left
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect();
    // What pgbouncer itself sets for its client is no state of ours.
    let left: Vec<_> = left
        .iter()
        .filter(|name| *name != "setting application_name")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_another_client_left_on_a_connection_changes_nothing() {
    let database = Database::new().await;
    let pooler = Pooler::start(&database.cluster, "default_pool_size = 1").await;
    let url = pooler.url(&database.url);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let role = format!("{}_other", database.name);
    let made = format!("CREATE SCHEMA theirs; CREATE ROLE \"{role}\"");
    client.batch_execute(&made).await.unwrap();
    // In one batch, whose transaction still writes. The role may do nothing at all.
    let left = format!(
        "SET search_path TO theirs; SET DateStyle TO 'SQL'; SET TimeZone TO 'Asia/Tokyo';
         SET statement_timeout TO 900; SET lock_timeout TO 900; SET idle_in_transaction_session_timeout TO 900;
         SET default_transaction_read_only TO on; SET default_transaction_isolation TO 'serializable';
         SET standard_conforming_strings TO off; SET bytea_output TO 'escape'; SET extra_float_digits TO -15;
         SET transform_null_equals TO on; SET quote_all_identifiers TO on; SET row_security TO off;
         SET synchronous_commit TO off; SET session_replication_role TO replica; SET IntervalStyle TO 'iso_8601';
         SET check_function_bodies TO off; SET client_min_messages TO error; SET enable_indexscan TO off;
         SET xmloption TO document; SET array_nulls TO off; SET ROLE \"{role}\""
    );
    client.batch_execute(&left).await.unwrap();
    let store = PostgresStore::new(&config(&url)).unwrap();
    let open = begin(&store).await;
    // The page waits for longer than that other client would have waited.
    let direct = database.client().await;
    direct
        .batch_execute("BEGIN; LOCK TABLE public.compositions IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let page = Draft::plain().row(meta(1, 1), A);
    let (_, released) = tokio::join!(
        page.commit(&store, &open),
        direct.batch_execute("SELECT pg_sleep(2); COMMIT")
    );
    released.unwrap();
    let found = database
        .client()
        .await
        .query(
            "SELECT schemaname FROM pg_tables WHERE tablename = 'compositions'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].get::<_, &str>(0), "public");
}

#[tokio::test]
async fn several_processes_prepare_at_once_through_a_pooler() {
    let database = Database::new().await;
    let pooler = Pooler::start(&database.cluster, "default_pool_size = 6").await;
    let url = pooler.url(&database.url);
    let all = (0..6).map(|_| {
        let store = in_schema(&url, "copy");
        tokio::spawn(async move { store.prepare().await })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn options_that_a_pooler_refuses_are_said_to_be_refused() {
    let database = Database::new().await;
    let pooler = Pooler::start(&database.cluster, "").await;
    let url = format!(
        "{}?options=-csearch_path%3Dclinic",
        pooler.url(&database.url)
    );
    let error = PostgresStore::new(&config(&url))
        .unwrap()
        .prepare()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnreachable);
    assert!(error.help().unwrap().contains("postgresql.schema"));
}
