//! What other users of the database may make changes nothing of what the store does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use std::fmt::Write;

use atlas_engine::model::{
    Counts, DeleteReason, Format, LandAnswer, QuarantineFilter, QuarantinePlace, Reason, Record,
    Rejected, Scan, Slice, StoredTemplate, Watermark,
};
use atlas_engine::ports::Store;
use atlas_engine::{Error, ErrorKind};
use atlas_store_postgres::{Config, PostgresStore};
use atlas_store_suite::fixture::{Draft, at, begin, meta, object, selection, slice, template};

use common::{Database, config};

const A: &str = r#"{"systolic":120}"#;

/// Everything that a store is asked, the answers included.
async fn use_all(store: &dyn Store) {
    let open = begin(store).await;
    let mut page = Draft::plain()
        .row(meta(1, 1), A)
        .row(meta(2, 1), A)
        .reject(meta(3, 1));
    page = page.row(meta(4, 1), r#"["\u0000"]"#);
    let after = page.commit(store, &open).await;
    assert_eq!((after.counts.written, after.counts.quarantined), (2, 2));
    let after = Draft::plain()
        .row(meta(1, 2), A)
        .row(meta(2, 1), A)
        .row(meta(3, 1), A)
        .commit(store, &after)
        .await;
    assert_eq!((after.counts.written, after.counts.unchanged), (4, 1));
    assert_eq!(
        store.ledger().slices(&selection()).await.unwrap(),
        std::slice::from_ref(&after)
    );
    let swapped = store
        .ledger()
        .swap_slice(&after, &after)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        store.ledger().slice(&swapped.id).await.unwrap(),
        Some(swapped.clone())
    );
    store
        .ledger()
        .add_slices(&[
            slice("slice 2"),
            Slice {
                state: atlas_engine::model::SliceState::Done,
                ..slice("slice 3")
            },
        ])
        .await
        .unwrap();
    store
        .ledger()
        .remove_slices(&["slice 2".to_owned(), "slice 3".to_owned()])
        .await
        .unwrap();
    store
        .ledger()
        .drop_slices(&["slice 2".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        store.ledger().slices(&selection()).await.unwrap(),
        [swapped]
    );
    let watermark = |until| Watermark {
        template: template(),
        until: at(until),
        late_checked_until: at(until),
        position: None,
    };
    store
        .ledger()
        .raise_watermarks(&selection(), &[watermark(5), watermark(9)])
        .await
        .unwrap();
    store
        .ledger()
        .raise_watermarks(&selection(), &[watermark(7)])
        .await
        .unwrap();
    assert_eq!(
        store.ledger().watermarks(&selection()).await.unwrap(),
        [watermark(9)]
    );
    store
        .ledger()
        .forget_watermarks(&selection(), &[template()])
        .await
        .unwrap();
    assert!(
        store
            .ledger()
            .watermarks(&selection())
            .await
            .unwrap()
            .is_empty()
    );
    let known = store
        .index()
        .known(&[1, 3, 9].map(|number| meta(number, 1).key()))
        .await
        .unwrap();
    assert_eq!(known.len(), 2);
    assert_eq!(known[&object(1)].version, 2);
    let filter = QuarantineFilter {
        template: Some(template()),
        tried_before: Some(at(1_000)),
        object: Some(object(4)),
        after: Some(QuarantinePlace {
            tried: at(0),
            object: object(9),
        }),
    };
    let ledger = store.ledger();
    assert_eq!(ledger.quarantined(&filter, 5).await.unwrap().len(), 1);
    let counted = ledger.quarantine_counts(Some(at(1_000))).await.unwrap();
    assert_eq!(counted[0].entries, 1);
    assert_eq!(ledger.in_quarantine(&[object(4)]).await.unwrap().len(), 1);
    ledger
        .end_quarantine(&[meta(4, 1).uid.identity().clone()])
        .await
        .unwrap();
    let again = Rejected::new(meta(4, 1), Reason::Unreadable, "500");
    ledger
        .quarantine(&[again.clone(), again], "a run", at(200))
        .await
        .unwrap();
    assert_eq!(ledger.template_counts().await.unwrap()[0].compositions(), 3);
    ledger
        .set_template_counts(&template(), &Counts::default())
        .await
        .unwrap();
    use_rows(store).await;
    let record = Record {
        name: "a".to_owned(),
        step: 0,
        owner: None,
        until: Some(at(1)),
        value: String::new(),
    };
    let one = store
        .ledger()
        .swap_record(&record, &record)
        .await
        .unwrap()
        .unwrap();
    store
        .ledger()
        .swap_record(&one, &one)
        .await
        .unwrap()
        .unwrap();
    assert!(
        store
            .ledger()
            .swap_record(
                &record,
                &Record {
                    value: "b".to_owned(),
                    ..record.clone()
                }
            )
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(store.ledger().records("a").await.unwrap()[0].step, 2);
    let stored = StoredTemplate {
        template: template(),
        digest: String::new(),
        web_template: "{}".to_owned(),
        names: String::new(),
        fetched: at(0),
    };
    store.templates().save_template(&stored).await.unwrap();
    store.templates().save_template(&stored).await.unwrap();
    assert_eq!(
        store.templates().template(&template()).await.unwrap(),
        Some(stored)
    );
    store.ledger().now().await.unwrap().unwrap();
    store.ledger().keep_format(Format::Canonical).await.unwrap();
}

async fn use_rows(store: &dyn Store) {
    let rows = store.rows();
    let newest = rows.newest(&[template()]).await.unwrap();
    assert_eq!(newest[&template()], meta(3, 1).committed);
    let scan = Scan {
        template: Some(template()),
        window: Some(slice("any").window),
        after: Some(object(1)),
        limit: 9,
    };
    assert_eq!(rows.scan(&scan).await.unwrap().len(), 2);
    let foreign = slice("elsewhere");
    assert_eq!(rows.landed(&foreign).await.unwrap(), None);
    let gone = Draft::plain()
        .asked(at(60))
        .row(meta(1, 2), A)
        .delete(meta(2, 1), at(55), DeleteReason::Erased)
        .row(meta(5, 1), A);
    for _ in 0..2 {
        let answer = gone.land(store, &foreign).await;
        assert!(matches!(answer, LandAnswer::Landed(landed) if landed.len() == 3));
    }
    assert_eq!(rows.landed(&foreign).await.unwrap().unwrap().page, 1);
    assert_eq!(rows.erase(&meta(5, 1).ehr).await.unwrap(), 2);
}

/// Functions, operators and types with the names that statements use, for every pair of types that could fit better than
/// PostgreSQL's own. Each says so by an error that no transaction survives.
fn traps(schema: &str) -> String {
    const TYPES: [&str; 9] = [
        "text",
        "name",
        "int4",
        "int8",
        "bool",
        "timestamptz",
        "jsonb",
        "text[]",
        "varchar",
    ];
    const OPERATORS: [&str; 12] = [
        "=", "<>", "<", ">", "<=", ">=", "+", "-", "||", "?", "->", "->>",
    ];
    const FUNCTIONS: [&str; 24] = [
        "count",
        "max",
        "min",
        "now",
        "unnest",
        "starts_with",
        "clock_timestamp",
        "hashtextextended",
        "pg_advisory_lock",
        "pg_advisory_xact_lock",
        "current_schemas",
        "current_setting",
        "getdatabaseencoding",
        "set_config",
        "coalesce",
        "greatest",
        "format",
        "length",
        "encode",
        "sha256",
        "sum",
        "row",
        "to_jsonb",
        "jsonb_build_object",
    ];
    let mut sql = format!(
        "CREATE FUNCTION {schema}.trap() RETURNS bool LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'trapped' USING ERRCODE = 'XX777'; END $$;"
    );
    for left in TYPES {
        for right in TYPES {
            writeln!(sql, "CREATE FUNCTION {schema}.trap({left}, {right}) RETURNS bool LANGUAGE sql AS 'SELECT {schema}.trap()';").unwrap();
            for operator in OPERATORS {
                writeln!(sql, "CREATE OPERATOR {schema}.{operator} (FUNCTION = {schema}.trap, LEFTARG = {left}, RIGHTARG = {right});").unwrap();
            }
        }
        for function in FUNCTIONS {
            writeln!(sql, "CREATE FUNCTION {schema}.\"{function}\"({left}) RETURNS bool LANGUAGE sql AS 'SELECT {schema}.trap()';
                           CREATE FUNCTION {schema}.\"{function}\"({left}, int4) RETURNS bool LANGUAGE sql AS 'SELECT {schema}.trap()';
                           CREATE FUNCTION {schema}.\"{function}\"({left}, text) RETURNS bool LANGUAGE sql AS 'SELECT {schema}.trap()';").unwrap();
        }
    }
    for function in FUNCTIONS {
        writeln!(sql, "CREATE FUNCTION {schema}.\"{function}\"() RETURNS bool LANGUAGE sql AS 'SELECT {schema}.trap()';").unwrap();
    }
    for name in ["text", "timestamptz", "jsonb", "int8", "bigint", "name"] {
        writeln!(
            sql,
            "CREATE DOMAIN {schema}.\"{name}\" AS pg_catalog.int4 CHECK (VALUE = 7);"
        )
        .unwrap();
    }
    for name in [
        "pg_class",
        "pg_namespace",
        "pg_attribute",
        "pg_type",
        "pg_settings",
        "pg_collation",
    ] {
        writeln!(
            sql,
            "CREATE VIEW {schema}.{name} AS SELECT {schema}.trap();"
        )
        .unwrap();
    }
    sql
}

#[tokio::test]
async fn nothing_that_others_plant_is_called() {
    for (before, path) in [
        (true, ""),
        (false, ""),
        (true, "theirs, public, pg_catalog"),
        (false, "public, theirs, pg_catalog"),
    ] {
        let database = Database::new().await;
        let client = database.client().await;
        let plant = format!(
            "CREATE SCHEMA theirs; {} {}",
            traps("public"),
            traps("theirs")
        );
        if before {
            client.batch_execute(&plant).await.unwrap();
        }
        if !path.is_empty() {
            let sql = format!(
                "ALTER DATABASE \"{}\" SET search_path TO {path}",
                database.name
            );
            database.cluster.execute("postgres", &sql).await.unwrap();
        }
        let config = Config {
            schema: Some("public".to_owned()),
            ..config(&database.url)
        };
        let store = PostgresStore::new(&config).unwrap();
        store.prepare().await.unwrap();
        if !before {
            client.batch_execute(&plant).await.unwrap();
        }
        use_all(&store).await;
        use_all_readers(&database).await;
    }
}

/// The view that analysts read works too, and means PostgreSQL's functions.
async fn use_all_readers(database: &Database) {
    let rows = database
        .client()
        .await
        .simple_query("SELECT * FROM public.watermarks")
        .await
        .unwrap();
    assert!(!rows.is_empty());
}

#[tokio::test]
async fn tables_of_others_in_the_search_path_are_not_ours() {
    let database = Database::new().await;
    let client = database.client().await;
    for schema in ["theirs", "pg_temp"] {
        let theirs = format!(
            "{} CREATE TABLE {schema}.compositions (id text PRIMARY KEY); CREATE TABLE {schema}.atlas_slices (id text);
             CREATE TABLE {schema}.atlas_migrations (version int)",
            if schema == "theirs" { "CREATE SCHEMA theirs;" } else { "" }
        );
        client.batch_execute(&theirs).await.unwrap();
    }
    let config = Config {
        schema: Some("copy".to_owned()),
        ..config(&database.url)
    };
    use_all(&PostgresStore::new(&config).unwrap()).await;
}

async fn refused(database: &Database, config: &Config) -> Error {
    let error = PostgresStore::new(config)
        .unwrap()
        .prepare()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{}", error.chain());
    assert!(
        error
            .help()
            .is_some_and(|fix| fix.contains("postgresql.schema")),
        "{}",
        error.chain()
    );
    let left = "SELECT FROM pg_tables WHERE tablename = 'atlas_slices'";
    assert!(
        database
            .client()
            .await
            .query(left, &[])
            .await
            .unwrap()
            .is_empty(),
        "nothing was made"
    );
    error
}

#[tokio::test]
async fn what_has_a_name_of_ours_is_named_and_left_alone() {
    for (ddl, name) in [
        (
            "CREATE TABLE compositions (id int, title text)",
            "compositions",
        ),
        ("CREATE TABLE watermarks (id int)", "watermarks"),
        ("CREATE VIEW atlas_runs AS SELECT 1 AS a", "atlas_runs"),
        ("CREATE SEQUENCE atlas_records", "atlas_records"),
        ("CREATE TABLE atlas_counts (id int)", "atlas_counts"),
        ("CREATE TABLE atlas_landed (id int)", "atlas_landed"),
        (
            "CREATE TYPE atlas_templates AS ENUM ('a')",
            "atlas_templates",
        ),
        (
            "CREATE TABLE t (id int); CREATE INDEX atlas_quarantine ON t (id)",
            "atlas_quarantine",
        ),
        ("CREATE TABLE atlas_migrations (id int)", "atlas_migrations"),
        (
            "CREATE TABLE atlas_migrations (version text, name text, atlas_version text);
             INSERT INTO atlas_migrations VALUES ('one', 'two', 'three')",
            "atlas_migrations",
        ),
        (
            "CREATE VIEW atlas_migrations AS SELECT 100::bigint AS version, ''::text AS name, ''::text AS atlas_version",
            "atlas_migrations",
        ),
        ("CREATE DOMAIN atlas_slices AS text", "atlas_slices"),
        (
            "CREATE MATERIALIZED VIEW watermarks AS SELECT 1 AS a",
            "watermarks",
        ),
        ("CREATE TYPE compositions AS (a int)", "compositions"),
    ] {
        let database = Database::new().await;
        database.client().await.batch_execute(ddl).await.unwrap();
        let error = refused(&database, &config(&database.url)).await;
        assert!(error.chain().contains(name), "{}", error.chain());
        // The way out that the fix names.
        let aside = Config {
            schema: Some("copy".to_owned()),
            ..config(&database.url)
        };
        PostgresStore::new(&aside).unwrap().prepare().await.unwrap();
    }
}

#[tokio::test]
async fn an_index_with_a_name_of_ours_is_in_the_way_with_a_plain_reason() {
    let database = Database::new().await;
    let ddl = "CREATE TABLE t (id int); CREATE INDEX compositions_by_ehr ON t (id)";
    database.client().await.batch_execute(ddl).await.unwrap();
    refused(&database, &config(&database.url)).await;
}

#[tokio::test]
async fn a_database_in_another_encoding_is_refused_with_its_reason() {
    let database = Database::new().await;
    for encoding in ["LATIN1", "WIN1252", "SQL_ASCII", "EUC_JP"] {
        let name = format!("{}_{}", database.name, encoding.to_lowercase());
        let sql = format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        database.cluster.execute("postgres", &sql).await.unwrap();
        let store =
            PostgresStore::new(&config(&database.cluster.connection_string(&name))).unwrap();
        for error in [
            store.prepare().await.unwrap_err(),
            store.ledger().now().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.chain().contains(encoding), "{}", error.chain());
            assert!(error.help().unwrap().contains("ENCODING 'UTF8'"));
        }
        drop(store);
        let sql = format!("DROP DATABASE {name} WITH (FORCE)");
        database.cluster.execute("postgres", &sql).await.unwrap();
    }
}

/// Where the tables are.
async fn schema_of(database: &Database) -> Vec<String> {
    let sql = "SELECT schemaname::text FROM pg_tables WHERE tablename = 'compositions'";
    let rows = database.client().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn without_a_schema_it_is_the_one_that_libpq_would_use() {
    for (setup, parameters, expected) in [
        ("", "", "public"),
        (
            "CREATE SCHEMA clinic",
            "?options=-csearch_path%3Dclinic",
            "clinic",
        ),
        (
            "CREATE SCHEMA clinic",
            "?options=-c%20search_path%3Dmissing,clinic",
            "clinic",
        ),
        (
            "CREATE SCHEMA clinic; ALTER DATABASE current SET search_path TO clinic, public",
            "",
            "clinic",
        ),
        (
            "CREATE SCHEMA clinic; ALTER ROLE postgres IN DATABASE current SET search_path TO clinic",
            "",
            "clinic",
        ),
        ("CREATE SCHEMA postgres", "", "postgres"),
        (
            "CREATE SCHEMA \"The Clinic\"; ALTER DATABASE current SET search_path TO \"The Clinic\"",
            "",
            "The Clinic",
        ),
        (
            "CREATE SCHEMA clinic; ALTER DATABASE current SET search_path TO pg_catalog, clinic",
            "",
            "clinic",
        ),
        (
            "CREATE SCHEMA a; CREATE SCHEMA b; ALTER DATABASE current SET search_path TO a",
            "?options=-csearch_path%3Db",
            "b",
        ),
    ] {
        let database = Database::new().await;
        let setup = setup.replace("current ", &format!("\"{}\" ", database.name));
        database
            .cluster
            .execute(&database.name, &setup)
            .await
            .unwrap();
        let store = PostgresStore::new(&config(&format!("{}{parameters}", database.url))).unwrap();
        use_all(&store).await;
        assert_eq!(
            schema_of(&database).await,
            [expected],
            "{setup} {parameters}"
        );
    }
}

#[tokio::test]
async fn a_search_path_that_leads_nowhere_is_refused() {
    let database = Database::new().await;
    let url = format!("{}?options=-csearch_path%3Dmissing", database.url);
    refused(&database, &config(&url)).await;
}
