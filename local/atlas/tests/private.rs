//! What Atlas writes is for its user alone, whatever the umask; secrets that are typed stay out of the configuration.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of `common`"
)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use atlas_sample_cdr::{Fault, On};
use common::{Answer, Place, Server, wait_until};

const UMASKS: [&str; 4] = ["000", "022", "027", "077"];

/// The program in the folder of a place, under a umask.
fn under(place: &Place, umask: &str, arguments: &[&str]) -> Command {
    let program = place.command(arguments);
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask \"$0\" && exec \"$@\"", umask])
        .arg(program.get_program())
        .args(arguments)
        .current_dir(place.path(""))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The modes of all that lies below a folder, but of what was there before.
fn modes(folder: &Path, but: &[&str]) -> BTreeMap<String, u32> {
    let mut modes = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if but.contains(&name.as_str()) {
            continue;
        }
        let about = path.metadata().unwrap();
        if about.is_dir() {
            let inside = modes_below(&name, &path);
            modes.extend(inside);
        }
        modes.insert(name, about.mode() & 0o777);
    }
    modes
}

fn modes_below(folder: &str, path: &Path) -> Vec<(String, u32)> {
    let inside = modes(path, &[]).into_iter();
    inside
        .map(|(name, mode)| (format!("{folder}/{name}"), mode))
        .collect()
}

#[track_caller]
fn are_private(modes: &BTreeMap<String, u32>, folders: &[&str], expected: &[&str]) {
    for name in expected {
        assert!(modes.contains_key(*name), "no {name}: {modes:?}");
    }
    for (name, mode) in modes {
        let wanted = if folders.contains(&name.as_str()) {
            0o700
        } else {
            0o600
        };
        assert_eq!(*mode, wanted, "{name}: {modes:?}");
    }
}

#[test]
fn copy_logs_and_locks_are_private_while_an_export_runs_and_after_it() {
    for umask in UMASKS {
        let server = Server::with(60);
        let handle = server.handle();
        let place = Place::for_server(
            &server,
            "[openehr.query]\nbatch_size = 10\n[logging]\nlocal_enabled = true\nlocal_path = \"a/logs\"\n\
             [application]\nlog_level = \"trace\"\n",
        );
        let folder = place.path("a/logs");
        assert!(!folder.exists());
        handle.inject(Fault::Latency { millis: 60_000 }.always().on(On::AqlPages));
        let mut child = under(&place, umask, &["export"]).spawn().unwrap();
        wait_until("a page is asked for", || handle.counters().aql_pages > 0);
        let during = modes(&place.path(""), &["atlas.toml"]);
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = [
            "atlas.db",
            "atlas.db-wal",
            "atlas.db-shm",
            "a/logs/atlas.log",
        ];
        are_private(&during, &["a", "a/logs"], &expected);
        assert!(
            during.keys().any(|name| name.ends_with(".lock")),
            "{during:?}"
        );
    }
}

#[test]
fn demo_init_and_prepare_write_for_their_user_alone() {
    for umask in UMASKS {
        let place = Place::new();
        for arguments in [
            &["init"][..],
            &["init", "-o", "other.toml", "--with-examples"],
            &["demo", "--compositions", "100"],
            &["prepare", "-c", "atlas-demo.toml"],
        ] {
            let answer: Answer = under(&place, umask, arguments).output().unwrap().into();
            assert_eq!(answer.code, Some(0), "{answer:?}");
        }
        let expected = [
            "atlas.toml",
            "other.toml",
            "atlas-demo.toml",
            "atlas-demo.db",
        ];
        are_private(&modes(&place.path(""), &[]), &[], &expected);
    }
}

#[test]
fn a_file_that_is_there_keeps_its_mode_and_the_doctor_warns_of_it() {
    let server = Server::with(20);
    let place = Place::for_server(
        &server,
        "username = \"atlas\"\npassword = \"s3cret-word\"\n[logging]\nlocal_enabled = true\nlocal_path = \"logs\"\n",
    );
    std::fs::write(place.path(".env"), "X=1\n").unwrap();
    assert_eq!(place.run(&["export"]).code, Some(0));
    let warned = |place: &Place| {
        let document = place.run(&["doctor", "--json"]).json();
        let checks = document["checks"].as_array().unwrap().clone();
        let files = checks.into_iter().filter(|check| check["check"] == "files");
        let files = files.filter(|check| check["status"] == "warn");
        files
            .map(|check| check["detail"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let set = |name: &str, mode| {
        std::fs::set_permissions(place.path(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let names = ["atlas.toml", ".env", "atlas.db", "logs/atlas.log"];
    for name in names {
        set(name, 0o600);
    }
    assert_eq!(warned(&place), [""; 0]);
    for name in names {
        for mode in [0o604, 0o640, 0o644] {
            set(name, mode);
            let warned = warned(&place);
            assert_eq!(warned.len(), 1, "{name} {mode:o}: {warned:?}");
            assert!(warned[0].contains(name), "{name}: {warned:?}");
            let about = place.path(name).metadata().unwrap();
            assert_eq!(about.mode() & 0o777, mode, "{name}");
        }
        set(name, 0o600);
    }
    // Without a secret in it, it can be shown to anybody.
    let place = Place::for_server(&server, "");
    std::fs::set_permissions(place.path("atlas.toml"), PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(warned(&place), [""; 0]);
}

#[test]
fn the_doctor_makes_nothing_and_prepare_makes_the_tables() {
    let server = Server::with(20);
    let place = Place::for_server(&server, "");
    let before = modes(&place.path(""), &[]);
    assert_eq!(place.run(&["doctor"]).code, Some(0));
    assert_eq!(modes(&place.path(""), &[]), before);
    let answer = place.run(&["prepare", "--json"]);
    assert_eq!(
        (answer.code, &answer.json()["prepared"]),
        (Some(0), &true.into())
    );
    assert_eq!(place.held(), 0);
    assert_eq!(place.run(&["prepare"]).code, Some(0));
    assert_eq!(place.run(&["doctor"]).code, Some(0));
    assert_eq!(place.run(&["export"]).code, Some(0));
    assert_eq!(place.held(), 20);
}

#[test]
fn a_path_that_is_no_file_is_refused_before_anything_is_written() {
    let server = Server::with(10);
    for path in [
        ":memory:",
        "file:x.db",
        "file:x.db?mode=memory",
        "file::memory:?cache=shared",
        "FILE:x.db",
        "sqlite://x.db",
        "",
        " ",
        "data/",
        ".",
        "x.db-wal",
    ] {
        let place = Place::for_server(&server, "");
        let text = std::fs::read_to_string(place.path("atlas.toml")).unwrap();
        place.configure(&format!("{text}[sqlite]\npath = \"{path}\"\n"));
        for command in [&["export"][..], &["validate-config"]] {
            let answer = place.run(command);
            assert_eq!(answer.code, Some(2), "{path:?}: {answer:?}");
            assert!(answer.text().contains("sqlite.path"), "{answer:?}");
        }
        assert_eq!(modes(&place.path(""), &["atlas.toml"]).len(), 0, "{path:?}");
    }
}
