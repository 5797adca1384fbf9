//! The servers themselves: they start, take the corpus, and leave nothing behind.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use atlas_ehrbase::{ErrorKind, Postgres, shared, shared_postgres};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::NoTls;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn clusters_run_side_by_side_and_end_with_their_owner() {
    let (one, other) = (
        Postgres::start().await.unwrap(),
        Postgres::start().await.unwrap(),
    );
    one.create_database("records").await.unwrap();
    assert!(one.has_database("records").await.unwrap());
    assert!(!other.has_database("records").await.unwrap());
    let url = one.connection_string("records");
    drop(one);
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err());
    other.create_database("records").await.unwrap();
}

#[tokio::test]
async fn a_cluster_with_tls_lets_nobody_in_without() {
    let postgres = Postgres::start_tls().await.unwrap();
    let url = postgres.connection_string("postgres");
    let plain = tokio_postgres::connect(&format!("{url}?sslmode=disable"), NoTls).await;
    let error = plain.err().expect("a connection without TLS is refused");
    assert_eq!(
        error.code().map(tokio_postgres::error::SqlState::code),
        Some("28000"),
        "invalid authorization specification"
    );
    assert!(postgres.ca().unwrap().contains("BEGIN CERTIFICATE"));
}

#[tokio::test]
async fn a_lent_cluster_is_read_from_its_url_and_survives() {
    let own = shared_postgres().await.unwrap();
    let url = own.fresh_database().await.unwrap();
    drop(Postgres::attach(&url).unwrap());
    let (_client, _connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let wrong = Postgres::attach("postgres://postgres@127.0.0.1/x")
        .err()
        .unwrap();
    assert_eq!(wrong.kind(), ErrorKind::Input);
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
#[ignore = "runs until it is killed"]
async fn start_a_cluster_and_wait() {
    let postgres = Postgres::start().await.unwrap();
    println!("\nready {}", postgres.connection_string("postgres"));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_process_leaves_no_server_and_no_folder() {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "start_a_cluster_and_wait",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let url = output
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("ready ").map(str::to_owned))
        .expect("the process tells where its server is");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let row = client.query_one("SHOW data_directory", &[]).await.unwrap();
    let data = row.get::<_, String>(0);
    let folder = Path::new(&data).parent().unwrap().to_owned();
    assert!(folder.is_dir());

    process.kill().unwrap();
    process.wait().unwrap();

    let ended = timeout(SOON, connection).await;
    assert!(ended.expect("the server ends").unwrap().is_err());
    let removed = async {
        while folder.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, removed).await.expect("its folder is removed");
}

#[tokio::test]
async fn the_server_answers_for_everything_that_it_took_of_the_corpus() {
    let shared = shared().await.unwrap();
    let loaded = &shared.loaded;
    assert!(loaded.templates.len() >= 70, "{}", loaded.templates.len());
    assert!(loaded.readable().count() >= 250);
    // EHRbase 2.16 takes these, and can never read them back: the tests need them.
    assert!(loaded.unreadable().count() >= 1);
    for one in loaded.readable() {
        let text = shared
            .ehrbase
            .get_canonical(&one.ehr_id, &one.version_uid)
            .await
            .unwrap();
        let composition: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(composition["uid"]["value"], one.version_uid.as_str());
    }
}

#[tokio::test]
async fn a_composition_lives_through_its_versions() {
    let shared = shared().await.unwrap();
    let (ehrbase, one) = (&shared.ehrbase, shared.loaded.readable().next().unwrap());
    let canonical = ehrbase
        .get_canonical(&one.ehr_id, &one.version_uid)
        .await
        .unwrap();
    let mut composition: Value = serde_json::from_str(&canonical).unwrap();
    composition.as_object_mut().unwrap().remove("uid");
    let text = composition.to_string();

    let ehr = ehrbase.create_ehr().await.unwrap();
    let first = ehrbase.post_composition(&ehr, &text).await.unwrap();
    let second = ehrbase.put_composition(&ehr, &first, &text).await.unwrap();
    assert!(first.ends_with("::1") && second.ends_with("::2"));
    let flat = ehrbase.get_flat(&ehr, &second).await.unwrap();
    assert!(flat.contains(&second));

    let query = "SELECT v/uid/value FROM EHR e CONTAINS VERSION v[LATEST_VERSION] \
                 CONTAINS COMPOSITION c WHERE e/ehr_id/value = $ehr";
    let rows = async || -> Value {
        let answer = ehrbase.aql(query, &json!({"ehr": ehr}), 10).await.unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()["rows"].take()
    };
    assert_eq!(rows().await, json!([[second]]));
    ehrbase.delete_composition(&ehr, &second).await.unwrap();
    assert_eq!(rows().await, json!([]));
    assert!(ehrbase.get_canonical(&ehr, &first).await.is_ok());
    ehrbase.erase_composition(&ehr, &first).await.unwrap();
    let erased = ehrbase.get_canonical(&ehr, &first).await.unwrap_err();
    assert_eq!(erased.kind(), ErrorKind::Status(404));
}
