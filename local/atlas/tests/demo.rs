//! `atlas demo`, the first thing a newcomer runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of `common`"
)]

mod common;

use common::{Place, count, open};

#[test]
fn the_demo_needs_nothing_and_says_what_to_try_next() {
    let place = Place::new();
    // Twice: the second one replaces the copy of the first.
    for _ in 0..2 {
        let answer = place.run(&["demo", "--compositions", "1000"]);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        for next in [
            "atlas status -c atlas-demo.toml",
            "sqlite3 atlas-demo.db",
            "atlas init",
        ] {
            assert!(answer.stdout.contains(next), "{next}: {answer:?}");
        }
        let database = open(&place.path("atlas-demo.db"));
        assert_eq!(count(&database, "SELECT count(*) FROM compositions"), 1_085);
        assert_eq!(
            count(
                &database,
                "SELECT count(*) FROM compositions WHERE version = 2"
            ),
            40
        );
    }
    let status = place
        .run(&["status", "-c", "atlas-demo.toml", "--json"])
        .json();
    assert_eq!(status["templates"].as_array().unwrap().len(), 3);
    assert_eq!(status["runs"].as_array().unwrap().len(), 3);
}

#[test]
fn the_demo_as_json_tells_what_each_run_did() {
    let place = Place::new();
    std::fs::create_dir(place.path("here")).unwrap();
    let answer = place.run(&["demo", "--dir", "here", "--compositions", "500", "--json"]);
    let document = answer.json();
    assert_eq!(document["full"]["written"], 500);
    assert_eq!(document["incremental"]["written"], 125);
    assert_eq!(document["idle"]["written"], 0);
    assert_eq!(
        (&document["visible"], &document["held"]),
        (&575.into(), &585.into())
    );
    assert!(place.path("here/atlas-demo.db").exists());
}

#[test]
fn a_folder_that_is_not_there_is_told_with_the_fix() {
    let answer = Place::new().run(&["demo", "--dir", "nowhere"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(answer.text().contains("--dir"), "{answer:?}");
}
