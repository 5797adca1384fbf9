//! Nothing personal leaves Atlas but into the store: everything that runs of all kinds print and log, at the most
//! talkative level, is searched for ids, contents and passwords.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use atlas_ehrbase::EXPORTER_PASSWORD;
use atlas_sample_cdr::{Fault, Handle, On, Profile, Running, Template};
use atlas_scenarios::json::{self, Tree};
use atlas_scenarios::source::{Expected, object_id, of_sample, sample};
use atlas_scenarios::{Atlas, Kind, Run, Store};
use serde_json::json;

const COMPOSITIONS: u64 = 240;
const USER: &str = "reader-of-records";
const PASSWORD: &str = "a-password-to-look-for";
const WRONG_PASSWORD: &str = "another-password-to-look-for";

atlas_scenarios::into_both_stores!(
    runs_that_succeed_tell_nothing_personal,
    runs_that_fail_tell_nothing_personal,
);

/// What must be nowhere.
struct Secrets(BTreeSet<String>);

impl Secrets {
    fn of(everything: &Expected, atlas: &Atlas) -> Self {
        let mut secrets = BTreeSet::from([PASSWORD.to_owned(), WRONG_PASSWORD.to_owned()]);
        // Basic authentication as it travels.
        secrets.insert("cmVhZGVyLW9mLXJlY29yZHM6".to_owned());
        for (id, composition) in everything {
            secrets.insert(id.clone());
            secrets.insert(composition.ehr_id.clone());
            contents(&json::parse(&composition.content), &mut secrets);
        }
        if let Store::Postgres(_) = atlas.store() {
            secrets.insert(EXPORTER_PASSWORD.to_owned());
        }
        assert!(secrets.len() > 500, "there is too little to look for");
        Self(secrets)
    }

    fn are_not_in(&self, what: &str, text: &str) {
        let folded = text.to_lowercase();
        let found = self
            .0
            .iter()
            .filter(|secret| folded.contains(&secret.to_lowercase()));
        let found: Vec<&String> = found.collect();
        assert!(found.is_empty(), "{what} tells {found:?}:\n{text}");
    }
}

/// Names of people, remarks, results and numbers of specimens: every text a clinician or a device gave.
fn contents(tree: &Tree, into: &mut BTreeSet<String>) {
    const GIVEN: [&str; 2] = ["value", "id"];
    match tree {
        Tree::Object(members) => {
            let kind = match members.get("_type") {
                Some(Tree::Text(kind)) => kind.as_str(),
                _ => "",
            };
            for (name, value) in members {
                match value {
                    Tree::Text(text) if name == "name" && kind == "PARTY_IDENTIFIED" => {
                        into.insert(text.clone());
                    }
                    // Names of nodes are the template's.
                    Tree::Object(_) if name == "name" => {}
                    Tree::Text(text) if GIVEN.contains(&name.as_str()) && is_given(kind) => {
                        // Short words are found by chance.
                        if text.len() > 7 {
                            into.insert(text.clone());
                        }
                    }
                    _ => contents(value, into),
                }
            }
        }
        Tree::Array(items) => items.iter().for_each(|item| contents(item, into)),
        _ => {}
    }
}

fn is_given(kind: &str) -> bool {
    matches!(kind, "DV_TEXT" | "DV_IDENTIFIER" | "DV_DATE_TIME")
}

/// A server with a password, and a configuration that logs everything to stderr and into a file.
async fn talkative(kind: Kind) -> (Running, Handle, Atlas) {
    let server = sample(COMPOSITIONS)
        .profile(Profile::Full)
        .auth(USER, PASSWORD)
        .start()
        .await
        .unwrap();
    let atlas = Atlas::new(kind, &server.base_url())
        .await
        .with("openehr.username", json!(USER))
        .with("openehr.password", json!(PASSWORD))
        .with("openehr.query.batch_size", json!(20))
        .with("application.log_level", json!("trace"))
        .with("logging.local_enabled", json!(true));
    let logs = atlas.folder().join("logs");
    let atlas = atlas.with("logging.local_path", json!(logs));
    let cdr = server.handle();
    (server, cdr, atlas)
}

/// All that was ever written to log files.
fn logged(atlas: &Atlas) -> String {
    let files = std::fs::read_dir(atlas.folder().join("logs")).unwrap();
    let text: String = files
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    assert!(!text.is_empty(), "nothing was logged");
    text
}

async fn runs_that_succeed_tell_nothing_personal(kind: Kind) {
    let (_server, cdr, mut atlas) = talkative(kind).await;
    let mut secrets = Secrets::of(&of_sample(&cdr), &atlas);
    // Quarantine, divided pages, an update, a late commit, an EHR that is asked for by name.
    cdr.set_unreadable(7, true);
    let mut runs: Vec<(&str, Run)> = vec![("an export", atlas.export(&[]).await)];
    cdr.update(3);
    cdr.commit(Template::LaboratoryReport);
    cdr.advance(Duration::from_secs(1));
    secrets.0.extend(Secrets::of(&of_sample(&cdr), &atlas).0);
    runs.push(("an increment", atlas.export(&[]).await));
    for (what, arguments) in [
        ("a summary", &["export"][..]),
        ("a plan", &["export", "--dry-run"]),
        ("a full run", &["export", "--mode", "full", "--yes"]),
        ("status", &["status"]),
        ("status as JSON", &["status", "--json"]),
        ("the quarantine", &["quarantine", "list"]),
        ("the quarantine as JSON", &["quarantine", "list", "--json"]),
        ("a retry", &["quarantine", "retry"]),
        ("the doctor", &["doctor"]),
        ("the templates", &["discover"]),
        ("the configuration", &["validate-config", "--json"]),
    ] {
        runs.push((what, atlas.run(arguments).await));
    }
    let ehr = cdr.ehr_id(11).unwrap();
    atlas.set("openehr.query.ehr_ids", json!([ehr]));
    runs.push(("a run for one EHR", atlas.export(&[]).await));
    for (what, run) in &runs {
        assert!(matches!(run.code(), Some(0 | 1)), "{what}: {}", run.stderr);
        secrets.are_not_in(what, &run.stdout);
        secrets.are_not_in(what, &run.stderr);
    }
    secrets.are_not_in("the log", &logged(&atlas));
}

async fn runs_that_fail_tell_nothing_personal(kind: Kind) {
    let (_server, cdr, mut atlas) = talkative(kind).await;
    let secrets = Secrets::of(&of_sample(&cdr), &atlas);
    let status = |status| Fault::Status {
        status,
        retry_after_secs: Some(0),
    };
    let mut runs = Vec::new();
    for (what, fault) in [
        ("busy", status(429)),
        ("failing", status(500)),
        ("refusing the query", status(400)),
        ("forbidding", status(403)),
        ("cutting", Fault::CutBody { after_bytes: 4_000 }),
        ("a login page", Fault::Html),
    ] {
        cdr.inject(fault.always().on(On::AqlPages).after(2));
        let run = atlas.export(&["--mode", "full", "--yes"]).await;
        runs.push((what.to_owned(), run));
        cdr.clear_faults();
    }
    let ehr = cdr.ehr_id(5).unwrap();
    // Ids in places where they are wrong must not come back in the message.
    for (what, arguments) in [
        (
            "an id that is no template",
            ["--ehr-id", &ehr, "--template-id", "none"],
        ),
        (
            "a version that is no time",
            ["--ehr-id", &ehr, "--from", "yesterday"],
        ),
    ] {
        runs.push((what.to_owned(), atlas.export(&arguments).await));
    }
    let shown = atlas.run(&["quarantine", "show", &ehr]).await;
    runs.push(("an id that is not in quarantine".to_owned(), shown));

    // A store that refuses rows, and names the values in what it says.
    let refuse = match kind {
        Kind::Sqlite => {
            "CREATE TRIGGER refuse BEFORE INSERT ON compositions
             BEGIN SELECT RAISE(ABORT, 'refused'); END"
        }
        Kind::Postgres => {
            "ALTER TABLE compositions ADD CONSTRAINT refuse CHECK (ehr_id = '') NOT VALID"
        }
    };
    atlas.store().execute(refuse).await;
    runs.push((
        "a store that refuses".to_owned(),
        atlas.export(&["--mode", "full", "--yes"]).await,
    ));
    cdr.update(5);
    cdr.advance(Duration::from_secs(1));
    runs.push((
        "a store that refuses a new one".to_owned(),
        atlas.export(&[]).await,
    ));

    atlas.set("openehr.password", json!(WRONG_PASSWORD));
    runs.push(("a wrong password".to_owned(), atlas.export(&[]).await));
    runs.push(("the doctor".to_owned(), atlas.run(&["doctor"]).await));
    for (what, run) in &runs {
        assert_ne!(run.code(), Some(0), "{what} was meant to fail");
        secrets.are_not_in(what, &run.stdout);
        secrets.are_not_in(what, &run.stderr);
    }
    secrets.are_not_in("the log", &logged(&atlas));
}

/// The search itself has to find what is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_would_be_found() {
    let (_server, cdr, atlas) = talkative(Kind::Sqlite).await;
    cdr.set_unreadable(7, true);
    atlas.export(&[]).await.exits(1);
    let secrets = Secrets::of(&of_sample(&cdr), &atlas);
    // Asked for, and so it is shown.
    let list = atlas.run(&["quarantine", "list", "--uids", "--json"]).await;
    let uid = cdr.version_uid(7).unwrap();
    assert!(list.stdout.contains(&uid));
    assert!(secrets.0.contains(object_id(&uid)));
    for told in [
        "Dr. Ada Beispiel",
        "Patient says \"a little dizzy\" when standing up.",
    ] {
        assert!(secrets.0.contains(told), "{told} is not looked for");
    }
}
