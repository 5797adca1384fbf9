//! What can be wrong with the file, its folder and the processes around it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use atlas_engine::model::{Reason, Scan, SelectionKey, Watermark};
use atlas_engine::ports::{Hold, Ledger, Rows, Store};
use atlas_engine::{Error, ErrorKind};
use atlas_openehr::id::TemplateId;
use atlas_store_sqlite::SqliteStore;
use atlas_store_suite::fixture::{
    Draft, at, begin, meta, object, quarantined, selection, slice, template,
};
use rusqlite::Connection;

const A: &str = r#"{"systolic":120}"#;

fn fails(error: &Error, kind: ErrorKind) {
    assert_eq!(error.kind(), kind, "{}", error.chain());
    assert!(error.help().is_some(), "no fix for {}", error.chain());
}

fn store(path: &Path) -> SqliteStore {
    SqliteStore::new(path).unwrap()
}

async fn prepare(store: &SqliteStore) -> atlas_engine::Result<()> {
    Store::prepare(store).await
}

async fn compositions(store: &SqliteStore) -> Result<usize, Error> {
    let everything = Scan {
        limit: 100_000,
        ..Scan::default()
    };
    Ok(store.scan(&everything).await?.len())
}

#[tokio::test]
async fn only_prepare_creates_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let error = store(&path).slices(&selection()).await.unwrap_err();
    fails(&error, ErrorKind::Usage);
    assert!(!path.exists());
    prepare(&store(&path)).await.unwrap();
    assert!(store(&path).slices(&selection()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_missing_folder_is_denied() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("missing/atlas.db"));
    let error = prepare(&store).await.unwrap_err();
    fails(&error, ErrorKind::StoreDenied);
}

#[tokio::test]
async fn a_folder_in_place_of_the_file_is_denied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    std::fs::create_dir(&path).unwrap();
    fails(
        &prepare(&store(&path)).await.unwrap_err(),
        ErrorKind::StoreDenied,
    );
}

#[tokio::test]
async fn a_file_of_something_else_is_corrupt_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let text = "Dear diary, ".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    fails(
        &prepare(&store(&path)).await.unwrap_err(),
        ErrorKind::StoreCorrupt,
    );
    fails(
        &store(&path).runs(1).await.unwrap_err(),
        ErrorKind::StoreCorrupt,
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn what_has_a_name_of_ours_is_named_and_left_alone() {
    for (ddl, name) in [
        (
            "CREATE TABLE compositions (id INTEGER, title TEXT)",
            "compositions",
        ),
        ("CREATE TABLE watermarks (id INTEGER)", "watermarks"),
        ("CREATE VIEW watermarks AS SELECT 1 AS a", "watermarks"),
        ("CREATE VIEW atlas_runs AS SELECT 1 AS a", "atlas_runs"),
        (
            "CREATE TABLE t (a); CREATE INDEX compositions_by_template_time ON t (a)",
            "compositions_by_template_time",
        ),
        (
            "CREATE TABLE atlas_migrations (id INTEGER)",
            "atlas_migrations",
        ),
        (
            "CREATE TABLE atlas_migrations (version TEXT, name TEXT, atlas_version TEXT);
             INSERT INTO atlas_migrations VALUES ('one', 'two', 'three')",
            "atlas_migrations",
        ),
        (
            "CREATE VIEW atlas_migrations AS SELECT 100 AS version",
            "atlas_migrations",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("theirs.db");
        Connection::open(&path).unwrap().execute_batch(ddl).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = prepare(&store(&path)).await.unwrap_err();
        fails(&error, ErrorKind::Usage);
        assert!(
            error.chain().contains(&format!("`{name}`")),
            "{}",
            error.chain()
        );
        assert!(error.help().unwrap().contains("sqlite.path"));
        assert_eq!(std::fs::read(&path).unwrap(), before, "{ddl}");
    }
    // What has other names may stay beside ours.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("both.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (a)")
        .unwrap();
    prepare(&store(&path)).await.unwrap();
}

#[tokio::test]
async fn a_torn_file_is_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    {
        let store = store(&path);
        let slice = begin(&store).await;
        let mut page = Draft::plain();
        for number in 0..200 {
            page = page.row(meta(number, 1), A);
        }
        page.commit(&store, &slice).await;
    }
    let whole = std::fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn[4096..].fill(0xa5);
    std::fs::write(&path, torn).unwrap();
    fails(
        &compositions(&store(&path)).await.unwrap_err(),
        ErrorKind::StoreCorrupt,
    );
    std::fs::write(&path, whole).unwrap();
    assert_eq!(compositions(&store(&path)).await.unwrap(), 200);
}

#[tokio::test]
async fn a_file_of_a_newer_atlas_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    prepare(&store(&path)).await.unwrap();
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "DROP TABLE atlas_runs;
             INSERT INTO atlas_migrations (version, name, applied_at, atlas_version)
             VALUES (101, 'later', '2030-01-01T00:00:00.000000Z', '9.0.0')",
        )
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    fails(
        &prepare(&store(&path)).await.unwrap_err(),
        ErrorKind::StoreNewer,
    );
    fails(
        &store(&path).runs(1).await.unwrap_err(),
        ErrorKind::StoreNewer,
    );
    assert!(
        std::fs::read(&path).unwrap() == before,
        "not a byte was changed"
    );
}

#[tokio::test]
async fn what_no_atlas_wrote_is_corrupt_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    begin(&store).await;
    for wrong in [
        "state = 'Anna, born 1970'",
        "window_to = 'Anna'",
        "step = -1",
    ] {
        let connection = Connection::open(&path).unwrap();
        connection
            .execute(&format!("UPDATE atlas_slices SET {wrong}"), [])
            .unwrap();
        let error = store.slices(&selection()).await.unwrap_err();
        fails(&error, ErrorKind::StoreCorrupt);
        assert!(!format!("{error:?} {}", error.chain()).contains("Anna"));
    }
}

#[tokio::test]
async fn a_commit_waits_while_another_program_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    let slice = begin(&store).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let page = Draft::plain().row(meta(1, 1), A);
    let commit = page.commit(&store, &slice);
    // The runtime turns meanwhile: this very task lets the other program finish.
    let release = async {
        tokio::task::yield_now().await;
        other.execute_batch("COMMIT").unwrap();
    };
    let (after, ()) = tokio::join!(commit, release);
    assert_eq!(after.counts.written, 1);
}

#[tokio::test]
async fn a_closed_store_is_one_complete_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    {
        let store = store(&path);
        let slice = begin(&store).await;
        Draft::plain()
            .row(meta(1, 1), A)
            .commit(&store, &slice)
            .await;
    }
    let copy = folder.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    assert_eq!(compositions(&store(&copy)).await.unwrap(), 1);
    assert!(!folder.path().join("atlas.db-wal").exists());
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_undo_or_block_anything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    let slice = begin(&store).await;
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let page = Draft::plain().row(meta(1, 1), A);
    {
        let mut commit = std::pin::pin!(page.try_commit(&store, &slice));
        let given_up = std::future::poll_fn(|context| {
            std::task::Poll::Ready(commit.as_mut().poll(context).is_pending())
        });
        assert!(given_up.await, "it waits for the other program");
    }
    other.execute_batch("COMMIT").unwrap();
    // Repeated, it answers what the first one did.
    let after = page.commit(&store, &slice).await;
    assert_eq!((after.counts.written, after.step), (1, slice.step + 1));
}

#[tokio::test]
async fn every_table_and_column_says_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    prepare(&store(&path)).await.unwrap();
    let connection = Connection::open(&path).unwrap();
    let mut statement = connection
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type IN ('table', 'view')")
        .unwrap();
    let tables: Vec<(String, String)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(tables.len(), 11);
    for (table, sql) in tables {
        let mut columns = connection
            .prepare("SELECT name FROM pragma_table_info(?1)")
            .unwrap();
        let columns = columns
            .query_map([&table], |row| row.get::<_, String>(0))
            .unwrap();
        assert!(
            sql.lines().nth(1).unwrap().trim().starts_with("-- "),
            "{table}"
        );
        for column in columns.map(Result::unwrap) {
            let says = sql.lines().any(|line| {
                let (code, comment) = line.split_once("-- ").unwrap_or((line, ""));
                code.contains(column.as_str()) && !comment.is_empty()
            });
            assert!(says, "{table}.{column}");
        }
    }
}

#[tokio::test]
async fn watermarks_have_one_row_per_template_and_ehr() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    let slice = begin(&store).await;
    // Objects 1 and 4 share an EHR; 2 is in another one.
    let page = Draft::plain()
        .row(meta(1, 1), A)
        .row(meta(4, 1), A)
        .row(meta(2, 1), A);
    page.commit(&store, &slice).await;
    // The lowest of all selections; another template tells nothing.
    for (key, name, until) in [
        ("a", template(), 200),
        ("b", template(), 100),
        ("b", TemplateId::new("x"), 50),
    ] {
        let watermark = Watermark {
            template: name,
            until: at(until),
            late_checked_until: at(0),
            position: None,
        };
        let key = SelectionKey(key.to_owned());
        store.raise_watermarks(&key, &[watermark]).await.unwrap();
    }
    let connection = Connection::open(&path).unwrap();
    let mut statement = connection
        .prepare("SELECT ehr_id, compositions, newest_committed, checked_until FROM watermarks ORDER BY ehr_id")
        .unwrap();
    let rows: Vec<(String, u32, String, Option<String>)> = statement
        .query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let expected = |number, count| {
        let meta = meta(number, 1);
        (
            meta.ehr.as_str().to_owned(),
            count,
            meta.committed.to_string(),
            Some(at(100).to_string()),
        )
    };
    assert_eq!(rows, [expected(4, 2), expected(2, 1)]);
}

/// Not a test by itself: the other process in the tests below. Does what it is told, says so, and waits to be killed.
#[tokio::test]
#[ignore = "run by other tests"]
async fn other_process() {
    let Ok(path) = std::env::var("ATLAS_TEST_FILE") else {
        return;
    };
    let store = store(Path::new(&path));
    let said = match std::env::var("ATLAS_TEST_ROLE").unwrap().as_str() {
        "hold" => {
            let hold = store.hold("export").await.unwrap();
            let said = name_of(&hold).to_owned();
            std::mem::forget(hold);
            said
        }
        "commit" => {
            let mut slice = begin(&store).await;
            for number in 0.. {
                slice = Draft::plain()
                    .row(meta(number, 1), A)
                    .commit(&store, &slice)
                    .await;
                println_now(&format!("step {}", slice.step));
            }
            String::new()
        }
        "write" => match store.add_slices(&[slice("slice 9")]).await {
            Ok(()) => "written".to_owned(),
            Err(error) => format!("{:?}, {}", error.kind(), error.help().is_some()),
        },
        _ => match prepare(&store).await {
            Ok(()) => "prepared".to_owned(),
            Err(error) => format!("{:?}, {}", error.kind(), error.help().is_some()),
        },
    };
    println_now(&said);
    std::future::pending::<()>().await;
}

fn name_of(hold: &Hold) -> &'static str {
    match hold {
        Hold::Alone(_) => "alone",
        Hold::Taken => "taken",
        Hold::Unknown => "unknown",
    }
}

/// Tries to hold a store and lets it go.
async fn hold(store: &SqliteStore) -> &'static str {
    name_of(&store.hold("export").await.unwrap())
}

fn println_now(line: &str) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

struct Other {
    process: std::process::Child,
    said: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Other {
    fn start(role: &str, path: &Path, user: Option<u32>) -> Self {
        use std::os::unix::process::CommandExt;
        let mut program = std::env::current_exe().unwrap();
        let mut command = if let Some(user) = user {
            // The build folder may lie where another user may not go.
            let copy = path.with_extension(role);
            std::fs::copy(&program, &copy).unwrap();
            program = copy;
            let mut command = Command::new(program);
            command.uid(user).gid(user);
            command
        } else {
            Command::new(program)
        };
        let mut process = command
            .args(["--exact", "other_process", "--ignored", "--nocapture"])
            .env("ATLAS_TEST_FILE", path)
            .env("ATLAS_TEST_ROLE", role)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stderr.take().unwrap()).lines();
        Self { process, said }
    }

    fn says(&mut self) -> String {
        self.said.next().expect("the other process ended").unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_killed_process_lets_go_of_its_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    prepare(&store).await.unwrap();
    let mut other = Other::start("hold", &path, None);
    assert_eq!(other.says(), "alone");
    assert_eq!(hold(&store).await, "taken");
    drop(other);
    assert_eq!(hold(&store).await, "alone");
}

#[tokio::test]
async fn a_process_killed_while_it_writes_leaves_whole_pages_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let mut other = Other::start("commit", &path, None);
    let mut told = 0;
    while told < 40 {
        told = other.says().strip_prefix("step ").unwrap().parse().unwrap();
    }
    drop(other);
    let store = store(&path);
    prepare(&store).await.unwrap();
    let slice = store.slice("slice 1").await.unwrap().unwrap();
    let held = compositions(&store).await.unwrap() as u64;
    assert!(slice.step >= told, "what was answered is there");
    assert_eq!(
        slice.counts.written, held,
        "rows and checkpoint moved together"
    );
    assert_eq!(slice.step, 3 + held);
}

#[tokio::test]
async fn eight_processes_may_prepare_the_same_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let mut others: Vec<Other> = (0..8)
        .map(|_| Other::start("prepare", &path, None))
        .collect();
    for other in &mut others {
        assert_eq!(other.says(), "prepared");
    }
}

/// Only the system's administrator can start a process as somebody else; to others the rights apply right here.
#[tokio::test]
async fn a_read_only_file_or_folder_is_denied() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    let root = std::fs::metadata(folder.path()).unwrap().uid() == 0;
    let user = root.then_some(NOBODY);
    let path = folder.path().join("atlas.db");
    prepare(&store(&path)).await.unwrap();
    let rights = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    rights(&path, 0o444);
    rights(folder.path(), 0o555);
    for role in ["prepare", "write"] {
        let mut other = Other::start(role, &path, user);
        assert_eq!(other.says(), "StoreDenied, true", "{role}");
    }
    rights(folder.path(), 0o755);
}

#[tokio::test]
async fn one_file_under_two_names_is_one_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    prepare(&store(&path)).await.unwrap();
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let links = [
        folder.path().join("alias.db"),
        elsewhere.join("atlas.db"),
        elsewhere.join("again.db"),
    ];
    for link in &links[..2] {
        std::os::unix::fs::symlink(&path, link).unwrap();
    }
    std::os::unix::fs::symlink(&links[1], &links[2]).unwrap();
    let first = store(&path);
    let held = first.hold("export").await.unwrap();
    for link in &links {
        assert_eq!(hold(&store(link)).await, "taken", "{}", link.display());
        prepare(&store(link)).await.unwrap();
    }
    let dots = elsewhere.join("../atlas.db");
    assert_eq!(hold(&store(&dots)).await, "taken");
    drop(held);
    assert_eq!(hold(&store(&links[2])).await, "alone");
}

#[tokio::test]
async fn a_file_with_a_second_name_by_a_hard_link_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let first = store(&path);
    prepare(&first).await.unwrap();
    let link = folder.path().join("alias.db");
    std::fs::hard_link(&path, &link).unwrap();
    for name in [&link, &path] {
        fails(
            &prepare(&store(name)).await.unwrap_err(),
            ErrorKind::StoreDenied,
        );
        fails(
            &store(name).runs(1).await.unwrap_err(),
            ErrorKind::StoreDenied,
        );
    }
    let held = first.hold("export").await.unwrap();
    fails(&prepare(&store(&link)).await.unwrap_err(), ErrorKind::Held);
    drop(held);
    std::fs::remove_file(&link).unwrap();
    assert!(store(&path).runs(1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lock_file_is_for_its_user_only_and_one_of_others_tells_nothing() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    assert_eq!(hold(&store).await, "unknown", "there is no file yet");
    prepare(&store).await.unwrap();
    assert_eq!(hold(&store).await, "alone");
    let lock = folder.path().join("atlas.db.export.lock");
    let about = std::fs::metadata(&lock).unwrap();
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    // What stands in its place is no lock, and nothing waits for it.
    std::fs::remove_file(&lock).unwrap();
    let made = Command::new("mkfifo").arg(&lock).status().unwrap();
    assert!(made.success());
    assert_eq!(hold(&store).await, "unknown");
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    assert_eq!(hold(&store).await, "unknown");
    std::fs::remove_dir(&lock).unwrap();
    std::fs::write(&lock, "").unwrap();
    if about.uid() == 0 {
        std::os::unix::fs::chown(&lock, Some(65534), None).unwrap();
        assert_eq!(hold(&store).await, "unknown", "somebody else's");
    }
    begin(&store).await;
}

#[tokio::test]
async fn a_file_made_before_the_first_release_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for version in [1, 2, 99] {
        let path = folder.path().join(format!("{version}.db"));
        Connection::open(&path)
            .unwrap()
            .execute_batch(&format!(
                "CREATE TABLE atlas_migrations (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL,
                     applied_at TEXT NOT NULL, atlas_version TEXT NOT NULL) STRICT;
                 INSERT INTO atlas_migrations VALUES ({version}, 'tables', '2026-11-01T00:00:00.000000Z', '0.1.0')"
            ))
            .unwrap();
        let before = std::fs::read(&path).unwrap();
        for error in [
            prepare(&store(&path)).await.unwrap_err(),
            store(&path).runs(1).await.unwrap_err(),
        ] {
            fails(&error, ErrorKind::StoreDenied);
            let said = "made before the first release: export into a new schema or file";
            assert!(error.chain().contains(said), "{}", error.chain());
        }
        assert!(
            std::fs::read(&path).unwrap() == before,
            "not a byte was changed"
        );
    }
}

/// What a user's trigger on the rows of one object can do, and how often.
#[tokio::test]
async fn whatever_one_row_does_stays_with_that_row() {
    let doing = [
        "SELECT raise(ABORT, 'Anna')",
        "SELECT raise(FAIL, 'Anna')",
        "SELECT raise(ROLLBACK, 'Anna')",
        "SELECT raise(IGNORE)",
        "INSERT INTO limited VALUES (2)",
        "SELECT json_extract('{', '$.a')",
        "UPDATE typed SET number = 'Anna'",
    ];
    for moment in [
        "BEFORE INSERT",
        "AFTER INSERT",
        "BEFORE UPDATE",
        "AFTER UPDATE",
    ] {
        for does in doing {
            if does.contains("IGNORE") && moment.starts_with("AFTER") {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("atlas.db");
            let store = store(&path);
            let slice = begin(&store).await;
            let page_of = |version| {
                (1..=5).fold(Draft::plain(), |page, number| {
                    page.row(meta(number, version), A)
                })
            };
            let first = page_of(1).commit(&store, &slice).await;
            let culprit = object(3);
            Connection::open(&path)
                .unwrap()
                .execute_batch(&format!(
                    "CREATE TABLE limited (a CHECK (a < 2));
                     CREATE TABLE typed (number INTEGER) STRICT;
                     INSERT INTO typed VALUES (1);
                     CREATE TRIGGER theirs {moment} ON compositions WHEN new.id = '{}' BEGIN {does}; END",
                    culprit.as_str()
                ))
                .unwrap();
            let page = if moment.ends_with("INSERT") {
                store.erase(&meta(3, 1).ehr).await.unwrap();
                page_of(1)
            } else {
                page_of(2)
            };
            let after = page.commit(&store, &first).await;
            let step = after.counts.since(&first.counts);
            assert!(step.conserved());
            assert_eq!((step.read, step.quarantined), (5, 1), "{moment} {does}");
            let waiting = quarantined(&store).await;
            assert_eq!(waiting.len(), 1);
            assert_eq!(waiting[0].meta.uid.object_id(), &culprit);
            assert_eq!(waiting[0].reason, Reason::Unstorable);
            assert!(!waiting[0].detail.contains("Anna"), "{}", waiting[0].detail);
        }
    }
}

#[tokio::test]
async fn of_rows_that_are_in_each_others_way_the_first_one_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("atlas.db");
    let store = store(&path);
    let slice = begin(&store).await;
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE UNIQUE INDEX theirs ON compositions (content)")
        .unwrap();
    let page = (1..=4).fold(Draft::plain(), |page, number| {
        let content = if number == 4 {
            r#"{"systolic":121}"#
        } else {
            A
        };
        page.row(meta(number, 1), content)
    });
    let after = page.commit(&store, &slice).await;
    assert_eq!((after.counts.written, after.counts.quarantined), (2, 2));
    let waiting = quarantined(&store).await;
    assert!(
        waiting
            .iter()
            .all(|entry| entry.reason == Reason::Unstorable)
    );
    // The same answer again, whose first one got lost.
    assert_eq!(page.commit(&store, &slice).await, after);
}

#[tokio::test]
async fn what_every_row_meets_stops_with_its_reason() {
    for does in [
        "SELECT raise(ABORT, 'Anna')",
        "SELECT raise(IGNORE)",
        "SELECT * FROM nowhere",
    ] {
        for table in ["compositions", "atlas_quarantine", "atlas_slices"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("atlas.db");
            let store = store(&path);
            let slice = begin(&store).await;
            let event = if table == "atlas_slices" {
                "UPDATE"
            } else {
                "INSERT"
            };
            if table == "atlas_quarantine" && does.contains("IGNORE") {
                continue;
            }
            Connection::open(&path)
                .unwrap()
                .execute_batch(&format!(
                    "CREATE TRIGGER theirs BEFORE {event} ON {table} BEGIN {does}; END"
                ))
                .unwrap();
            let page = Draft::plain()
                .row(meta(1, 1), A)
                .row(meta(2, 1), A)
                .reject(meta(3, 1));
            let error = page.try_commit(&store, &slice).await.unwrap_err();
            fails(&error, ErrorKind::StoreDenied);
            assert!(!format!("{error:?} {}", error.chain()).contains("Anna"));
            assert_eq!(compositions(&store).await.unwrap(), 0);
            assert_eq!(store.slice(&slice.id).await.unwrap(), Some(slice));
        }
    }
}

#[tokio::test]
async fn side_rows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("atlas.db"));
    let slice = begin(&store).await;
    let mut page = Draft::plain().row(meta(1, 1), A);
    let batch = std::sync::Arc::make_mut(&mut page.batch);
    batch.side_rows.push(atlas_engine::model::SideRow {
        table: "vitals".into(),
        values: "{}".to_owned(),
    });
    fails(
        &page.try_commit(&store, &slice).await.unwrap_err(),
        ErrorKind::Usage,
    );
    assert_eq!(compositions(&store).await.unwrap(), 0);
}
