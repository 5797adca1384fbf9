//! What can be wrong with what Atlas is given: a clear message with its fix, the right exit code, and nothing lost:
//! once it is right, a run completes the copy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use atlas_ehrbase::corpus::{Composition, Loaded};
use atlas_ehrbase::{EhrBase, shared, shared_postgres};
use atlas_sample_cdr::{Fault, On, Running, Template};
use atlas_scenarios::atlas::{self, program};
use atlas_scenarios::source::{next_second, of_ehrbase, of_sample, post_again, sample};
use atlas_scenarios::{Atlas, Kind, Run, Store, assert_copy};
use serde_json::{Value, json};
use tokio::process::Command;

const COMPOSITIONS: u64 = 300;

atlas_scenarios::into_both_stores!(
    of_two_runs_at_once_the_second_is_refused,
    a_watermark_in_the_future_is_refused_and_a_full_run_repairs_it,
    a_store_of_a_newer_version_is_left_alone,
);

/// Holds a refused run against its exit code; what people read and what programs read say the same.
fn refused(run: &Run, code: i32, words: &[&str]) {
    let document = run.exits(code);
    assert_eq!(document["outcome"], "failed", "{document:#}");
    run.says(words);
}

/// A run that has what it needs completes the copy.
async fn completes(atlas: &Atlas, server: &Running) {
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(report["outcome"], "complete");
    assert_copy(atlas.store(), &of_sample(&server.handle())).await;
}

/// Commits a composition that the next run has to see.
fn something_new(server: &Running) {
    server.handle().commit(Template::VitalSigns);
    server.handle().advance(Duration::from_secs(1));
}

// --- The source

/// An EHR with two compositions on the real server.
async fn two_compositions(ehrbase: &EhrBase, loaded: &Loaded) -> (String, Vec<Composition>) {
    let ehr_id = ehrbase.create_ehr().await.unwrap();
    let mut held = Vec::new();
    for original in loaded.readable().take(2) {
        held.push(post_again(ehrbase, original, &ehr_id).await);
    }
    next_second(ehrbase).await;
    (ehr_id, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_as_such() {
    let shared = shared().await.unwrap();
    let ehrbase = &shared.ehrbase;
    let (ehr_id, held) = two_compositions(ehrbase, &shared.loaded).await;
    let mut atlas = Atlas::of_ehrbase(Kind::Sqlite, ehrbase, &[&ehr_id]).await;
    atlas.set("openehr.password", json!("not-the-password"));
    let run = atlas.export(&[]).await;
    refused(&run, 4, &["401", "openehr.auth_type", "credentials"]);
    assert!(!run.stderr.contains("not-the-password"));
    assert!(!run.stdout.contains("not-the-password"));

    atlas.set("openehr.password", json!(ehrbase.password()));
    atlas.export(&[]).await.exits(0);
    assert_copy(atlas.store(), &of_ehrbase(ehrbase, held.iter()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_template_is_named_with_near_matches() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let mut atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    atlas.set(
        "openehr.query.template_ids",
        json!(["sample_vital_sing.v1"]),
    );
    refused(
        &atlas.export(&[]).await,
        2,
        &["`sample_vital_sing.v1`", "`sample_vital_signs.v1`"],
    );
    atlas.set("openehr.query.template_ids", json!([]));
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_unknown_to_a_real_server_is_named_with_near_matches() {
    let shared = shared().await.unwrap();
    let known = &shared.loaded.readable().next().unwrap().template_id;
    let atlas = Atlas::of_ehrbase(Kind::Sqlite, &shared.ehrbase, &[]).await;
    let wrong = format!("{known}x");
    let run = atlas.export(&["--template-id", &wrong]).await;
    refused(&run, 2, &[&format!("`{wrong}`"), &format!("`{known}`")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_unreachable_and_loses_nothing() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let url = server.base_url();
    let port = url.split([':', '/']).nth(4).unwrap().parse().unwrap();
    let atlas = Atlas::new(Kind::Sqlite, &url).await;
    server.shutdown().await.unwrap();
    refused(
        &atlas.export(&[]).await,
        4,
        &["Connection refused", "openehr.base_url"],
    );

    let server = sample(COMPOSITIONS).port(port).start().await.unwrap();
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_down_half_way_is_gone_on_with_when_it_is_back() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let url = server.base_url();
    let port = url.split([':', '/']).nth(4).unwrap().parse().unwrap();
    let cdr = server.handle();
    cdr.inject(Fault::Latency { millis: 20 }.always());
    let atlas = Atlas::new(Kind::Sqlite, &url)
        .await
        .with("openehr.query.batch_size", json!(10));
    let mut running = atlas.start_export(&[]);
    assert!(running.until(async || cdr.counters().aql_pages >= 5).await);
    server.shutdown().await.unwrap();
    let report = running.wait().await.exits(4);
    let written = report["written"].as_u64().unwrap();
    assert_eq!(atlas.store().count().await, written);

    let server = sample(COMPOSITIONS).port(port).start().await.unwrap();
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_openehr_server_is_refused() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let postgres = shared_postgres().await.unwrap();
    let mut atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    // A web server without openEHR, and a server that does not speak HTTP.
    let web = format!("{}/elsewhere", server.origin());
    atlas.set("openehr.base_url", json!(web));
    refused(&atlas.export(&[]).await, 4, &["404", "openehr.base_url"]);
    atlas.set(
        "openehr.base_url",
        json!(format!("http://127.0.0.1:{}", postgres.port())),
    );
    refused(
        &atlas.export(&[]).await,
        4,
        &["connection broke", "proxy or gateway"],
    );

    atlas.set("openehr.base_url", json!(server.base_url()));
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_page_with_status_200_is_no_answer() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    server.handle().inject(Fault::Html.always());
    let run = atlas.export(&[]).await;
    refused(
        &run,
        4,
        &[
            "does not look like an openEHR server",
            "openehr.base_url",
            "login page",
        ],
    );
    assert!(
        !run.stderr.contains("Please log in"),
        "a body is never shown"
    );

    // The session of a proxy that ends half way.
    server.handle().clear_faults();
    server
        .handle()
        .inject(Fault::Html.always().on(On::AqlPages).after(1));
    let run = atlas.export(&[]).await;
    assert!(
        matches!(run.code(), Some(1 | 4)),
        "{:?}: {}",
        run.code(),
        run.stderr
    );
    assert!(atlas.store().quarantined().await.is_empty());
    server.handle().clear_faults();
    completes(&atlas, &server).await;
}

// --- The store

/// Runs a script in a mount namespace of its own; `None` where the system does not let us.
async fn with_mounts(script: &str, arguments: &[&Path]) -> Option<String> {
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-euc"])
        .arg(script)
        .arg("sh")
        .args(arguments);
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap());
    }
    assert!(
        said.contains("unshare failed") && std::env::var_os("CI").is_none(),
        "{}\n{said}",
        output.status
    );
    eprintln!(
        "skipped: this system lets nobody make a small disk: {}",
        said.trim()
    );
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_as_such_and_with_more_room_the_run_goes_on() {
    let server = sample(2_000).start().await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    let mut atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    atlas.set("sqlite.path", json!(disk.path().join("copy.db")));
    atlas.set("openehr.query.batch_size", json!(100));
    let configuration = atlas.configuration();
    let script = r#"
        mount -t tmpfs -o size=2m tmpfs "$1"
        code=0; "$2" export --json -c "$3" >"$4/full.json" 2>"$4/full.txt" || code=$?
        mount -o remount,size=64m "$1"
        again=0; "$2" export --json -c "$3" >"$4/more.json" 2>"$4/more.txt" || again=$?
        cp "$1"/copy.db* "$4"
        echo $code $again"#;
    let arguments = [disk.path(), &program(), &configuration, atlas.folder()];
    let Some(codes) = with_mounts(script, &arguments).await else {
        return;
    };
    let read = |name: &str| std::fs::read_to_string(atlas.folder().join(name)).unwrap();
    assert_eq!(
        codes.trim(),
        "4 0",
        "{}{}",
        read("full.txt"),
        read("more.txt")
    );
    assert!(
        read("full.txt").contains("Make room on the disk"),
        "{}",
        read("full.txt")
    );
    let full: Value = serde_json::from_str(&read("full.json")).unwrap();
    let more: Value = serde_json::from_str(&read("more.json")).unwrap();
    let written = full["written"].as_u64().unwrap();
    assert!(written > 0);
    assert_eq!(more["written"], json!(2_000 - written));
    // The store of this configuration lay here all along.
    assert_copy(atlas.store(), &of_sample(&server.handle())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_without_room_is_named_as_such_and_with_more_room_the_run_goes_on() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let atlas = Atlas::new(Kind::Postgres, &server.base_url()).await;
    atlas.export(&["--to", "2000-01-01"]).await.exits(0);
    // What PostgreSQL says when a disk is full, word for word and code for code.
    atlas
        .store()
        .execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 RAISE EXCEPTION 'could not extend file: No space left on device'
                     USING ERRCODE = 'disk_full';
             END $$;
             CREATE TRIGGER full_disk BEFORE INSERT ON compositions
                 FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        .await;
    let run = atlas.export(&[]).await;
    refused(&run, 4, &["room"]);
    assert_eq!(atlas.store().count().await, 0);

    atlas
        .store()
        .execute("DROP TRIGGER full_disk ON compositions")
        .await;
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_role_that_may_only_read_is_refused() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let mut atlas = Atlas::new(Kind::Postgres, &server.base_url()).await;
    let Store::Postgres(url) = atlas.store().clone() else {
        panic!("no PostgreSQL")
    };
    let database = url.rsplit('/').next().unwrap();
    let postgres = shared_postgres().await.unwrap();
    let role = format!("reader_of_{database}");
    let owner = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'reader';
         GRANT USAGE ON SCHEMA public TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
         ALTER ROLE {role} SET default_transaction_read_only = on"
    );
    atlas.store().execute(&owner).await;
    let connection = postgres.connection_string_as(&role, "reader", database);
    atlas.set("postgresql.connection_string", json!(connection));
    let run = atlas.export(&[]).await;
    refused(&run, 4, &["read-only"]);
    assert!(!run.stderr.contains(&connection));

    atlas
        .store()
        .execute(&format!(
            "ALTER ROLE {role} RESET default_transaction_read_only"
        ))
        .await;
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_refuses_or_is_not_there_is_named() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let mut atlas = Atlas::new(Kind::Postgres, &server.base_url()).await;
    let Store::Postgres(url) = atlas.store().clone() else {
        panic!("no PostgreSQL")
    };
    let database = url.rsplit('/').next().unwrap();
    let postgres = shared_postgres().await.unwrap();
    let wrong = postgres.connection_string_as("nobody", "wrong-secret", database);
    atlas.set("postgresql.connection_string", json!(wrong));
    let run = atlas.export(&[]).await;
    refused(&run, 4, &["postgresql.connection_string"]);
    assert!(!run.stderr.contains("wrong-secret") && !run.stdout.contains("wrong-secret"));

    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    atlas.set("export.retry_backoff_ms", json!([1]));
    atlas.set(
        "postgresql.connection_string",
        json!(format!("postgres://127.0.0.1:{port}/none")),
    );
    refused(
        &atlas.export(&[]).await,
        4,
        &["postgresql.connection_string"],
    );

    let connection = atlas.store().exporter();
    atlas.set("postgresql.connection_string", json!(connection));
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_for_the_sqlite_file_that_cannot_be_is_named() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let mut atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    let file = atlas.folder().join("file");
    std::fs::write(&file, "no folder").unwrap();
    for path in [file.join("copy.db"), atlas.folder().join("none/copy.db")] {
        atlas.set("sqlite.path", json!(path));
        refused(
            &atlas.export(&[]).await,
            4,
            &["sqlite.path", path.to_str().unwrap()],
        );
    }
    // A file that is something else is not touched.
    std::fs::write(&file, "x".repeat(8_192)).unwrap();
    atlas.set("sqlite.path", json!(file));
    refused(&atlas.export(&[]).await, 4, &["sqlite.path"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x".repeat(8_192));

    atlas.set("sqlite.path", json!(atlas.folder().join("copy.db")));
    completes(&atlas, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_that_may_only_be_read_is_refused_and_stays_as_it_is() {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let atlas = Atlas::new(Kind::Sqlite, &server.base_url()).await;
    let Store::Sqlite(file) = atlas.store().clone() else {
        panic!("no SQLite")
    };
    atlas.export(&[]).await.exits(0);
    something_new(&server);
    let rights = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let configuration = atlas.configuration();
    // Rights mean nothing to root: the program runs as nobody then, as a copy that nobody can reach.
    let copy = atlas.folder().join("atlas");
    std::fs::copy(program(), &copy).unwrap();
    for path in [atlas.folder(), &copy] {
        rights(path, 0o555);
    }
    for path in [&configuration, &file] {
        rights(path, 0o444);
    }
    let command = if is_root().await {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy);
        command
    } else {
        Command::new(&copy)
    };
    let run = with_configuration(command, &configuration).await;
    rights(atlas.folder(), 0o755);
    rights(&file, 0o644);
    refused(&run, 4, &["sqlite.path"]);
    assert_eq!(atlas.store().count().await, COMPOSITIONS);
    std::fs::remove_file(&configuration).unwrap();
    completes(&atlas, &server).await;
}

async fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().await.unwrap();
    output.stdout == b"0\n"
}

async fn with_configuration(mut command: Command, configuration: &Path) -> Run {
    command.args(["export", "--json", "-c"]).arg(configuration);
    atlas::Running::start(command).wait().await
}

async fn of_two_runs_at_once_the_second_is_refused(kind: Kind) {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let cdr = server.handle();
    cdr.inject(Fault::Latency { millis: 1_000 }.always().on(On::AqlPages));
    let atlas = Atlas::new(kind, &server.base_url())
        .await
        .with("openehr.query.batch_size", json!(10));
    let mut first = atlas.start_export(&[]);
    assert!(first.until(async || cdr.counters().aql_pages >= 2).await);
    let second = atlas.export(&[]).await;
    assert!(
        first.is_running(),
        "the first run ended too early to prove anything"
    );
    refused(&second, 6, &["another", "atlas status"]);
    // Looking is allowed meanwhile.
    atlas.run(&["status", "--json"]).await.exits(0);
    cdr.clear_faults();
    first.wait().await.exits(0);
    assert_copy(atlas.store(), &of_sample(&cdr)).await;
    completes(&atlas, &server).await;
}

async fn a_watermark_in_the_future_is_refused_and_a_full_run_repairs_it(kind: Kind) {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let atlas = Atlas::new(kind, &server.base_url()).await;
    atlas.export(&[]).await.exits(0);
    // As after a server whose clock was wrong for a while.
    atlas
        .store()
        .execute("UPDATE atlas_watermarks SET until = '2099-01-01T00:00:00.000000Z'")
        .await;
    something_new(&server);
    let run = atlas.export(&[]).await;
    refused(&run, 4, &["2099-01-01", "atlas export --mode full"]);
    assert_eq!(atlas.store().count().await, COMPOSITIONS);

    // What the message says helps.
    let report = atlas.export(&["--mode", "full", "--yes"]).await.exits(0);
    assert_eq!(
        (&report["written"], &report["unchanged"]),
        (&json!(1), &json!(COMPOSITIONS))
    );
    something_new(&server);
    completes(&atlas, &server).await;
}

async fn a_store_of_a_newer_version_is_left_alone(kind: Kind) {
    let server = sample(COMPOSITIONS).start().await.unwrap();
    let atlas = Atlas::new(kind, &server.base_url()).await;
    atlas.export(&[]).await.exits(0);
    something_new(&server);
    let newer = "INSERT INTO atlas_migrations (version, name, applied_at, atlas_version)
                 VALUES (999, 'later', '2099-01-01T00:00:00.000000Z', '9.0.0')";
    atlas.store().execute(newer).await;
    let asked = server.handle().counters().requests;
    refused(&atlas.export(&[]).await, 4, &["999", "newer"]);
    let status = atlas.run(&["status"]).await;
    assert_eq!(status.code(), Some(4), "{}", status.stderr);
    assert_eq!(
        server.handle().counters().requests,
        asked,
        "the server was asked for nothing"
    );
    assert_eq!(atlas.store().count().await, COMPOSITIONS);

    atlas
        .store()
        .execute("DELETE FROM atlas_migrations WHERE version = 999")
        .await;
    completes(&atlas, &server).await;
}
