//! The first minutes of a newcomer: the demo, a configuration of one's own, and what to do next. Without a network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;

use atlas_scenarios::atlas::{Running, program};
use atlas_scenarios::source::{of_sample, sample};
use atlas_scenarios::{Atlas, Kind, Run, Store, assert_copy};
use serde_json::json;
use tokio::process::Command;

async fn atlas(folder: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(folder);
    Running::start(command).wait().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_leaves_a_copy_and_says_what_to_try_next() {
    let folder = tempfile::tempdir().unwrap();
    let run = atlas(folder.path(), &["demo"]).await;
    assert_eq!(run.code(), Some(0), "{}", run.stderr);
    let commands = run.stdout.matches("atlas ").count();
    assert!(
        commands >= 3,
        "names {commands} commands to try next:\n{}",
        run.stdout
    );
    let files = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|file| file.unwrap().path());
    let database = files
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "db"));
    let store = Store::Sqlite(database.expect("no SQLite file"));
    assert!(store.count().await >= 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_init_writes_is_valid() {
    for arguments in [&["init"][..], &["init", "--with-examples"]] {
        let folder = tempfile::tempdir().unwrap();
        let run = atlas(folder.path(), arguments).await;
        assert_eq!(run.code(), Some(0), "{}", run.stderr);
        // What the file leaves open, the way its comments say.
        let secrets = "ATLAS_OPENEHR_USERNAME=reader\nATLAS_OPENEHR_PASSWORD=secret\n";
        std::fs::write(folder.path().join(".env"), secrets).unwrap();
        let run = atlas(folder.path(), &["validate-config"]).await;
        assert_eq!(run.code(), Some(0), "{}", run.stderr);
        let again = atlas(folder.path(), arguments).await;
        assert_eq!(again.code(), Some(2), "it replaced a file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_configuration_the_message_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = atlas(folder.path(), &["export"]).await;
    assert_eq!(run.code(), Some(2));
    run.says(&["atlas.toml", "atlas init"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_typed_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["exprot"][..],
        &["export", "--mdoe", "full"],
        &["export", "--anonymize"],
    ] {
        let run = atlas(folder.path(), arguments).await;
        assert_eq!(run.code(), Some(2), "{arguments:?}: {}", run.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_and_copies_nothing() {
    let server = sample(300).start().await.unwrap();
    let atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    let plan = atlas.export(&["--dry-run"]).await.exits(0);
    assert_eq!(plan["expected"], 300);
    assert_eq!(server.handle().counters().compositions, 0);
    assert_eq!(atlas.store().count().await, 0);
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["written"], json!(300));
    assert_copy(atlas.store(), &of_sample(&server.handle())).await;
}
