//! The main job and the commands around it, against a sample server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of `common`"
)]

mod common;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use atlas_engine::model::Record;
use atlas_engine::ports::{Ledger, Store};
use atlas_openehr::time::Instant;
use atlas_sample_cdr::{Fault, On, SampleCdr};
use atlas_store_sqlite::SqliteStore;
use common::{Place, Server, count, wait_until};

const CANONICAL: &str = "[export]\nexport_composition_format = \"canonical\"\n";

#[test]
fn an_export_copies_everything_and_the_next_one_nothing() {
    let server = Server::with(300);
    let place = Place::for_server(&server, CANONICAL);
    let first = place.run(&["export", "--json"]);
    assert_eq!(first.code, Some(0), "{first:?}");
    let document = first.json();
    assert_eq!(document["outcome"], "complete");
    assert_eq!(document["written"], 300);
    assert_eq!(place.held(), 300);

    let second = place.run(&["export", "--json"]).json();
    assert_eq!(
        (&second["written"], &second["outcome"]),
        (&0.into(), &"complete".into())
    );
    assert!(second["source_requests"].as_u64().unwrap() <= 2, "{second}");
}

#[test]
fn the_content_is_what_the_server_prints() {
    let server = Server::with(20);
    let place = Place::for_server(&server, CANONICAL);
    assert_eq!(place.run(&["export"]).code, Some(0));
    let database = place.database();
    let handle = server.handle();
    for number in 0..20 {
        let content: String = database
            .query_row(
                "SELECT content FROM compositions WHERE composition_uid = ?1",
                [handle.version_uid(number).unwrap()],
                |row| row.get(0),
            )
            .unwrap();
        let copied: serde_json::Value = serde_json::from_str(&content).unwrap();
        let served: serde_json::Value =
            serde_json::from_str(&handle.content(number).unwrap()).unwrap();
        assert_eq!(copied, served);
    }
}

#[test]
fn the_report_as_json_has_the_documented_fields() {
    let server = Server::with(50);
    let place = Place::for_server(&server, "");
    let document = place.run(&["export", "--json"]).json();
    for field in [
        "run",
        "outcome",
        "cut",
        "read",
        "written",
        "unchanged",
        "filtered",
        "quarantined",
        "deleted",
        "source_requests",
        "source_bytes",
        "seconds",
        "templates",
    ] {
        assert!(!document[field].is_null(), "{field}: {document}");
    }
    let templates = document["templates"].as_array().unwrap();
    assert_eq!(templates.len(), 3);
    for template in templates {
        for field in [
            "template_id",
            "read",
            "written",
            "unchanged",
            "quarantined",
            "watermark",
        ] {
            assert!(!template[field].is_null(), "{field}: {template}");
        }
    }
    let sum = |field: &str| {
        templates
            .iter()
            .map(|t| t[field].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(document["read"], sum("read"));
    let ways = ["written", "unchanged", "filtered", "quarantined"]
        .map(|way| document[way].as_u64().unwrap());
    assert_eq!(document["read"], ways.iter().sum::<u64>());
}

#[test]
fn the_summary_shows_each_template_and_what_was_done() {
    let server = Server::with(50);
    let answer = Place::for_server(&server, "").run(&["export"]);
    assert!(
        answer.stdout.contains("sample_vital_signs.v1"),
        "{answer:?}"
    );
    assert!(
        answer.stdout.contains("complete: 50 compositions"),
        "{answer:?}"
    );
}

#[test]
fn full_mode_reads_everything_again_and_changes_nothing() {
    let server = Server::with(60);
    let place = Place::for_server(&server, "");
    assert_eq!(place.run(&["export"]).code, Some(0));
    let again = place
        .run(&["export", "--mode", "full", "--yes", "--json"])
        .json();
    assert_eq!(
        (&again["read"], &again["unchanged"]),
        (&60.into(), &60.into())
    );
}

#[test]
fn a_dry_run_counts_and_copies_nothing() {
    let server = Server::with(70);
    let place = Place::for_server(&server, "");
    let answer = place.run(&["export", "--dry-run", "--json"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(answer.json()["expected"], 70);
    assert_eq!(place.held(), 0);
}

#[test]
fn only_what_is_asked_for_is_copied() {
    let server = Server::with(200);
    let place = Place::for_server(&server, "");
    let one = place
        .run(&["export", "--template-id", "sample_vital_signs.v1", "--json"])
        .json();
    assert_eq!(one["templates"].as_array().unwrap().len(), 1);
    assert_eq!(one["written"], 100);

    let ehr = server.handle().ehr_id(0).unwrap();
    let other = Place::for_server(&server, "");
    assert_eq!(other.run(&["export", "--ehr-id", &ehr]).code, Some(0));
    let ehrs = count(
        &other.database(),
        "SELECT count(DISTINCT ehr_id) FROM compositions",
    );
    assert_eq!(ehrs, 1);
    assert!(other.held() < 200);

    let none = Place::for_server(&server, "");
    let early = none.run(&["export", "--to", "2000-01-01", "--json"]);
    assert_eq!((early.code, &early.json()["read"]), (Some(0), &0.into()));
}

#[test]
fn an_unknown_template_is_named_with_near_ones() {
    let server = Server::with(20);
    let place = Place::for_server(&server, "");
    let answer = place.run(&["export", "--template-id", "sample_vital_sign.v1"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    let text = answer.text();
    assert!(
        text.contains("`sample_vital_sign.v1`") && text.contains("`sample_vital_signs.v1`"),
        "{answer:?}"
    );
}

#[test]
fn a_wrong_password_is_refused_with_the_fix_and_never_shown() {
    let server = Server::start(SampleCdr::builder().compositions(10).auth("atlas", "right"));
    let place = Place::for_server(&server, "username = \"atlas\"\npassword = \"wr0ng\"\n");
    let answer = place.run(&["export", "--json"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert_eq!(answer.json()["outcome"], "failed");
    assert!(answer.json()["fix"].is_string(), "{answer:?}");
    assert!(!answer.text().contains("wr0ng"), "{answer:?}");
    let right = Place::for_server(&server, "username = \"atlas\"\npassword = \"right\"\n");
    assert_eq!(right.run(&["export"]).code, Some(0));
}

#[test]
fn a_server_that_is_down_is_told_with_the_fix() {
    // A port that was free a moment ago, and that nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let place = Place::for_address(&format!("http://127.0.0.1:{port}/ehrbase"), "");
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(answer.text().contains("help:"), "{answer:?}");
}

#[test]
fn an_address_that_is_no_openehr_server_is_told() {
    let server = Server::with(10);
    let place = Place::for_address(&server.base_url().replace("/ehrbase", "/elsewhere"), "");
    assert_eq!(place.run(&["export"]).code, Some(4));
    server.handle().inject(Fault::Html.always());
    let place = Place::for_server(&server, "");
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(!answer.text().contains("<html"), "{answer:?}");
}

#[test]
fn a_folder_that_is_not_there_is_told_as_a_store_that_refuses() {
    let server = Server::with(10);
    let place = Place::for_server(&server, "[sqlite]\npath = \"not/there/atlas.db\"\n");
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(answer.text().contains("sqlite.path"), "{answer:?}");
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let server = Server::with(10);
    let place = Place::for_server(&server, "");
    std::fs::write(
        place.path("atlas.db"),
        "a diary, not a database".repeat(100),
    )
    .unwrap();
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    let left = std::fs::read_to_string(place.path("atlas.db")).unwrap();
    assert!(left.starts_with("a diary"));
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let server = Server::with(10);
    let place = Place::for_server(&server, "");
    assert_eq!(place.run(&["export"]).code, Some(0));
    place
        .database()
        .execute("INSERT INTO atlas_migrations VALUES (9999, 'later', '2030-01-01T00:00:00.000000Z', '9.9')", [])
        .unwrap();
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(answer.text().contains("9999"), "{answer:?}");
}

#[test]
fn a_watermark_in_the_future_stops_the_run() {
    let server = Server::with(10);
    let place = Place::for_server(&server, "");
    assert_eq!(place.run(&["export"]).code, Some(0));
    place
        .database()
        .execute(
            "UPDATE atlas_watermarks SET until = '2999-01-01T00:00:00.000000Z'",
            [],
        )
        .unwrap();
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(answer.text().contains("2999"), "{answer:?}");
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let server = Server::with(10);
    let place = Place::for_server(&server, "[state]\nlease_seconds = 3\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = SqliteStore::new(place.path("atlas.db")).unwrap();
    let (stop, stopped) = channel::<()>();
    let (begun, begins) = channel::<()>();
    let living = std::thread::spawn(move || {
        runtime.block_on(async {
            Store::prepare(&store).await.unwrap();
            let _alone = store.hold("export").await.unwrap();
            let mut lease = Record::new("export");
            // A heartbeat now and then, as a run that is alive gives.
            while stopped.recv_timeout(Duration::from_millis(300)) == Err(RecvTimeoutError::Timeout)
            {
                let beat = Record {
                    owner: Some("export/living".to_owned()),
                    until: Some(Instant::MAX),
                    ..lease.clone()
                };
                lease = store.swap_record(&lease, &beat).await.unwrap().unwrap();
                let _ = begun.send(());
            }
        });
    });
    begins.recv().unwrap();
    let answer = place.run(&["export"]);
    stop.send(()).unwrap();
    living.join().unwrap();
    assert_eq!(answer.code, Some(6), "{answer:?}");
    assert!(answer.text().contains("atlas status"), "{answer:?}");
}

#[test]
fn what_cannot_be_read_goes_to_quarantine_and_comes_back_when_it_is_repaired() {
    let server = Server::with(100);
    let handle = server.handle();
    handle.set_unreadable(7, true);
    let uid = handle.version_uid(7).unwrap();
    let place = Place::for_server(&server, "");
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(
        answer.stdout.contains("atlas quarantine list"),
        "{answer:?}"
    );
    assert_eq!(place.held(), 99);

    let listed = place.run(&["quarantine", "list"]);
    assert_eq!(listed.code, Some(0));
    assert!(
        listed.stdout.contains("unreadable") && !listed.stdout.contains(&uid),
        "{listed:?}"
    );
    let listed = place
        .run(&["quarantine", "list", "--uids", "--json"])
        .json();
    assert_eq!(
        (&listed["total"], &listed["entries"][0]["uid"]),
        (&1.into(), &uid.as_str().into())
    );
    let shown = place.run(&["quarantine", "show", &uid, "--json"]).json();
    assert_eq!(shown["reason"], "unreadable");
    assert_eq!(place.run(&["status", "--json"]).json()["quarantined"], 1);

    // Known and still broken: nothing new, nothing failed.
    assert_eq!(place.run(&["export"]).code, Some(0));
    handle.set_unreadable(7, false);
    let retried = place.run(&["quarantine", "retry", "--json"]);
    assert_eq!(
        (retried.code, &retried.json()["written"]),
        (Some(0), &1.into()),
        "{retried:?}"
    );
    assert_eq!(place.held(), 100);
    assert!(
        place
            .run(&["quarantine", "list"])
            .stdout
            .contains("nothing is in quarantine")
    );
    assert_eq!(place.run(&["quarantine", "show", &uid]).code, Some(2));
}

#[test]
fn status_shows_watermarks_lag_and_runs() {
    let server = Server::with(40);
    let place = Place::for_server(&server, "");
    let early = place.run(&["status"]);
    assert_eq!(early.code, Some(2), "{early:?}");
    assert!(early.text().contains("atlas export"), "{early:?}");
    assert_eq!(place.run(&["export"]).code, Some(0));
    let document = place.run(&["status", "--json"]).json();
    let templates = document["templates"].as_array().unwrap();
    assert_eq!(templates.len(), 3);
    for template in templates {
        // The cut of a fresh run lies 60 s behind the server's clock.
        assert!(
            (30..3_600).contains(&template["lag_seconds"].as_u64().unwrap()),
            "{template}"
        );
        assert!(
            template["newest"].is_string() && template["watermark"].is_string(),
            "{template}"
        );
    }
    assert_eq!(document["runs"][0]["outcome"], "complete");
    let one = place
        .run(&["status", "--template-id", "sample_vital_signs.v1", "--json"])
        .json();
    assert_eq!(one["templates"].as_array().unwrap().len(), 1);
    assert_eq!(
        place.run(&["status", "--template-id", "nothing"]).code,
        Some(2)
    );
    assert!(place.run(&["status"]).stdout.contains("checked until"));
}

#[test]
fn discover_lists_templates_with_counts_times_and_sizes() {
    let server = Server::with(100);
    let place = Place::for_server(&server, "");
    let document = place.run(&["discover", "--json"]).json();
    let templates = document["templates"].as_array().unwrap();
    let counts: u64 = templates.iter().map(|t| t["count"].as_u64().unwrap()).sum();
    assert_eq!((templates.len(), counts), (3, 100));
    for template in templates {
        assert!(template["first"].as_str().unwrap() <= template["last"].as_str().unwrap());
        assert!(
            template["bytes_estimate"].as_u64().unwrap() > 0,
            "{template}"
        );
    }
    let answer = place.run(&["discover"]);
    assert!(
        answer.stdout.contains("100 compositions of 3 templates"),
        "{answer:?}"
    );
}

#[test]
fn a_healthy_place_passes_the_doctor() {
    let server = Server::with(20);
    let place = Place::for_server(&server, "");
    let answer = place.run(&["doctor", "--json"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let document = answer.json();
    assert_eq!(document["healthy"], true);
    let checks: Vec<&str> = document["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["check"].as_str().unwrap())
        .collect();
    for check in [
        "configuration",
        "DNS",
        "TCP",
        "server",
        "clock",
        "AQL",
        "templates",
        "store",
    ] {
        assert!(checks.contains(&check), "{check}: {document}");
    }
}

#[test]
fn the_doctor_names_the_step_that_fails_and_its_fix() {
    let server = Server::start(SampleCdr::builder().compositions(10).auth("atlas", "right"));
    let place = Place::for_server(&server, "username = \"atlas\"\npassword = \"wrong\"\n");
    let answer = place.run(&["doctor"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    let failed = answer
        .stdout
        .lines()
        .find(|line| line.starts_with("fail"))
        .unwrap();
    assert!(failed.contains("server"), "{answer:?}");
    assert!(answer.stdout.contains("fix:"), "{answer:?}");

    let place = Place::for_address("http://no-such-host.invalid/ehrbase", "");
    let answer = place.run(&["doctor"]);
    assert_eq!(answer.code, Some(4), "{answer:?}");
    assert!(
        answer
            .stdout
            .lines()
            .any(|line| line.starts_with("fail") && line.contains("DNS")),
        "{answer:?}"
    );
}

#[test]
fn the_doctor_knows_a_template_that_is_not_there() {
    let server = Server::with(10);
    let place = Place::for_server(
        &server,
        "[openehr.query]\ntemplate_ids = [\"sample_vital_sings.v1\"]\n",
    );
    let answer = place.run(&["doctor"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(
        answer.stdout.contains("sample_vital_signs.v1"),
        "{answer:?}"
    );
}

#[test]
fn a_first_signal_stops_at_a_page_boundary_and_the_next_run_goes_on() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let server = Server::with(2_000);
        let handle = server.handle();
        handle.inject(Fault::Latency { millis: 100 }.always().on(On::AqlPages));
        let place = Place::for_server(&server, "[openehr.query]\nbatch_size = 20\n");
        let child = place.spawn(&["export", "--json"]);
        wait_until("some pages", || handle.counters().aql_pages >= 6);
        kill(&child, signal);
        let answer: common::Answer = child.wait_with_output().unwrap().into();
        assert_eq!(answer.code, Some(code), "{answer:?}");
        let document = answer.json();
        assert_eq!(document["outcome"], "interrupted");
        let held = place.held();
        assert_eq!(document["written"], held);
        assert!(held > 0 && held < 2_000, "{held}");

        handle.clear_faults();
        let rest = place.run(&["export", "--json"]).json();
        assert_eq!(
            (&rest["outcome"], &rest["written"]),
            (&"complete".into(), &(2_000 - held).into())
        );
        assert_eq!(place.held(), 2_000);
    }
}

/// An export that came some pages far and now waits for the store, which somebody else has locked.
fn stuck_export(more: &str) -> (Server, Place, std::process::Child, rusqlite::Connection) {
    let server = Server::with(2_000);
    let handle = server.handle();
    handle.inject(Fault::Latency { millis: 50 }.always().on(On::AqlPages));
    let place = Place::for_server(
        &server,
        &format!("[openehr.query]\nbatch_size = 20\n{more}"),
    );
    let child = place.spawn(&["export"]);
    wait_until("some pages", || handle.counters().aql_pages >= 6);
    let database = place.database();
    database
        .busy_timeout(std::time::Duration::from_secs(30))
        .unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    (server, place, child, database)
}

#[test]
fn a_second_signal_stops_at_once() {
    let (server, place, mut child, database) = stuck_export("");
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    kill(&child, "TERM");
    let mut line = String::new();
    while !line.contains("once more stops at once") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0);
    }
    kill(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));

    database.execute_batch("ROLLBACK").unwrap();
    server.handle().clear_faults();
    assert_eq!(place.run(&["export"]).code, Some(0));
    assert_eq!(place.held(), 2_000);
}

#[test]
fn a_run_that_does_not_reach_a_page_boundary_in_time_is_ended() {
    let (_server, _place, child, _database) = stuck_export("[export]\nshutdown_timeout_secs = 1\n");
    kill(&child, "TERM");
    let answer: common::Answer = child.wait_with_output().unwrap().into();
    assert_eq!(answer.code, Some(143), "{answer:?}");
    assert!(answer.text().contains("nothing is lost"), "{answer:?}");
}

fn kill(child: &std::process::Child, signal: &str) {
    let line = format!("kill -s {signal} {}", child.id());
    assert!(
        std::process::Command::new("sh")
            .args(["-c", &line])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn nothing_personal_and_nothing_secret_is_in_messages_and_log_files() {
    let server = Server::start(
        SampleCdr::builder()
            .compositions(300)
            .auth("atlas", "s3cret-word"),
    );
    let handle = server.handle();
    handle.set_unreadable(5, true);
    handle.inject(Fault::CutBody { after_bytes: 500 }.next(1).on(On::AqlPages));
    let place = Place::for_server(
        &server,
        "username = \"atlas\"\npassword = \"s3cret-word\"\n[logging]\nlocal_enabled = true\nlocal_path = \"atlas.log\"\n[application]\nlog_level = \"trace\"\n",
    );
    let mut said = String::new();
    for arguments in [
        &["doctor"][..],
        &["discover"],
        &["export"],
        &["export", "--mode", "full", "--yes"],
        &["status"],
        &["quarantine", "list"],
        &["quarantine", "retry"],
    ] {
        said.push_str(&place.run(arguments).text());
    }
    said.push_str(&std::fs::read_to_string(place.path("atlas.log")).unwrap());
    assert!(!said.contains("s3cret-word"));
    for number in 0..300 {
        let uid = handle.version_uid(number).unwrap();
        let object = uid.split("::").next().unwrap();
        assert!(!said.contains(object), "uid of composition {number}");
        assert!(
            !said.contains(&handle.ehr_id(number).unwrap()),
            "EHR of composition {number}"
        );
    }
}

#[test]
fn every_log_line_of_the_file_is_json() {
    let server = Server::with(20);
    server.handle().inject(
        Fault::Status {
            status: 503,
            retry_after_secs: None,
        }
        .next(1),
    );
    let place = Place::for_server(
        &server,
        "[logging]\nlocal_enabled = true\nlocal_path = \"logs\"\n[application]\nlog_level = \"debug\"\n",
    );
    assert_eq!(place.run(&["export"]).code, Some(0));
    let log = std::fs::read_to_string(place.path("logs/atlas.log")).unwrap();
    assert!(
        log.lines().any(|line| line.contains("ended: complete")),
        "{log}"
    );
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            line["level"].is_string() && line["timestamp"].is_string(),
            "{line}"
        );
    }
}
