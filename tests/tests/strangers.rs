//! Texts of strangers: what a server, a trigger of the store or a name that somebody chose says is nowhere printed, logged or kept
//! unless it can hold nothing of a patient, and nothing in it acts upon a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use atlas_scenarios::source::{of_sample, sample};
use atlas_scenarios::{Atlas, Kind, Run};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri, header::DATE};
use serde_json::{Value, json};

/// What an evil name does to a terminal or a log: title, cursor, a line of its own, C1, a backward text, invisible letters.
const EVIL: &str = "t\u{1b}]0;OWNED\u{7}\u{1b}[2J\r\nFAKE LINE\u{9b}31m\u{85}\u{7f}\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}";

/// A small openEHR server of a stranger's, on a port of its own.
#[derive(Clone)]
struct Stranger {
    says: Arc<Mutex<Says>>,
    base_url: String,
}

struct Says {
    template: String,
    version: String,
    /// `Date`, if it is another than the time.
    date: Option<&'static str>,
    /// Content of the second one of its three compositions.
    content: String,
}

const EHR: &str = "7d44b88c-4199-4bad-97dc-d78268e01398";

impl Stranger {
    async fn start(template: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stranger = Self {
            base_url: format!("http://{}/ehrbase", listener.local_addr().unwrap()),
            says: Arc::new(Mutex::new(Says {
                template: template.to_owned(),
                version: "2.16.0".to_owned(),
                date: None,
                content: "{\"_type\":\"COMPOSITION\"}".to_owned(),
            })),
        };
        let router = Router::new().fallback(answer).with_state(stranger.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        stranger
    }

    fn says(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.lock().unwrap());
    }
}

async fn answer(State(stranger): State<Stranger>, uri: Uri, body: String) -> (HeaderMap, String) {
    let says = stranger.says.lock().unwrap();
    let mut headers = HeaderMap::new();
    if let Some(date) = says.date {
        headers.insert(DATE, HeaderValue::from_static(date));
    }
    let path = uri.path();
    let text = if path.ends_with("/rest/status") {
        json!({ "ehrbase_version": says.version }).to_string()
    } else if path.ends_with("/query/aql") {
        says.aql(&serde_json::from_str(&body).unwrap())
    } else if path.ends_with("/definition/template/adl1.4") {
        json!([{ "template_id": says.template }]).to_string()
    } else {
        json!({ "templateId": says.template }).to_string()
    };
    (headers, text)
}

impl Says {
    fn aql(&self, asked: &Value) -> String {
        let (query, parameters) = (asked["q"].as_str().unwrap(), &asked["query_parameters"]);
        let objects: Vec<String> = (1..4).map(|n| format!("{EHR}{n}")).collect();
        let time = |n: usize| format!("2024-01-01T00:00:0{n}.000000Z");
        let is_in = |n: usize| {
            let bound = |name: &str| parameters[name].as_str();
            bound("from").is_none_or(|from| *from <= *time(n))
                && bound("to").is_none_or(|to| *time(n) < *to)
                && bound("after").is_none_or(|after| *after < *time(n))
        };
        let values_of = |kind: char| {
            let is_kind = move |name: &str| {
                let number = name.strip_prefix(kind);
                number.is_some_and(|number| number.parse::<u32>().is_ok())
            };
            let values = parameters.as_object().unwrap().iter();
            let values = values.filter(|(name, _)| is_kind(name));
            values.map(|(_, value)| value.as_str().unwrap()).collect()
        };
        let (templates, uids): (Vec<&str>, Vec<&str>) = (values_of('t'), values_of('u'));
        let is_asked_for = |n: usize| {
            (templates.is_empty() || templates.contains(&self.template.as_str()))
                && (uids.is_empty() || uids.contains(&objects[n].as_str()))
        };
        let shown: Vec<usize> = (0..3).filter(|n| is_in(*n) && is_asked_for(*n)).collect();
        let most = asked["fetch"].as_u64().unwrap_or(u64::MAX) as usize;
        let template = json!(self.template);
        let (columns, rows): (usize, Vec<String>) = if query.contains("MIN(") {
            let line = shown.first().zip(shown.last()).map(|(first, last)| {
                let (first, last) = (time(*first), time(*last));
                format!("[{template},{},\"{first}\",\"{last}\"]", shown.len())
            });
            (4, line.into_iter().collect())
        } else if query.contains("COUNT(") {
            (1, vec![format!("[{}]", shown.len())])
        } else {
            let with_content = query.contains(", c FROM");
            let rows = shown.into_iter().take(most).map(|n| {
                let content = match (with_content, n) {
                    (false, _) => String::new(),
                    (true, 1) => format!(",{}", self.content),
                    (true, _) => ",{\"_type\":\"COMPOSITION\"}".to_owned(),
                };
                let (object, time) = (&objects[n], time(n));
                format!(
                    "[\"{object}::s::1\",\"{time}\",\"{EHR}\",{template},\"creation\"{content}]"
                )
            });
            (if with_content { 6 } else { 5 }, rows.collect())
        };
        let columns = vec!["{}"; columns].join(",");
        format!("{{\"columns\":[{columns}],\"rows\":[{}]}}", rows.join(","))
    }
}

/// All that a run has said, with what lies in its log files.
fn said(run: &Run, atlas: &Atlas) -> String {
    let files = std::fs::read_dir(atlas.folder().join("logs"));
    let logged = files.into_iter().flatten();
    let logged = logged.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    format!("{}{}{}", run.stdout, run.stderr, logged.collect::<String>())
}

fn talkative(atlas: Atlas) -> Atlas {
    let logs = atlas.folder().join("logs");
    atlas
        .with("application.log_level", json!("trace"))
        .with("logging.local_enabled", json!(true))
        .with("logging.local_path", json!(logs))
        .with("openehr.retry.max_retries", json!(0))
        .with("export.max_retries", json!(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_of_a_server_acts_upon_a_terminal_or_a_log() {
    let stranger = Stranger::start(EVIL).await;
    stranger.says(|says| says.version = format!("2{EVIL}"));
    let atlas = talkative(Atlas::new(Kind::Sqlite, &stranger.base_url).await);
    for (arguments, code) in [
        (&["discover"][..], 0),
        (&["discover", "--json"], 0),
        (&["doctor"], 0),
        (&["doctor", "--json"], 0),
        (&["export", "--dry-run"], 0),
        (&["export", "--dry-run", "--json"], 0),
        (&["export"], 0),
        (&["export", "--json"], 0),
        (&["status"], 0),
        (&["status", "--json"], 0),
        (&["quarantine", "list"], 0),
        (&["export", "--template-id", EVIL], 0),
        (&["export", "--template-id", &format!("{EVIL}x")], 2),
        (&["status", "--template-id", &format!("{EVIL}x")], 2),
    ] {
        let run = atlas.run(arguments).await;
        assert_eq!(
            run.code(),
            Some(code),
            "{arguments:?}\n{}{}",
            run.stdout,
            run.stderr
        );
        let said = said(&run, &atlas);
        let evil: BTreeSet<char> = EVIL.chars().filter(|c| !c.is_ascii_graphic()).collect();
        let evil = |c: &char| *c != '\n' && *c != ' ' && evil.contains(c);
        let found: BTreeSet<char> = said.chars().filter(evil).collect();
        assert!(found.is_empty(), "{arguments:?} prints {found:?}");
        let forged = said.lines().find(|line| line.starts_with("FAKE LINE"));
        assert_eq!(forged, None, "{arguments:?}");
        if arguments.contains(&"--json") && run.stdout.contains("template_id") {
            // The same name for a program that reads it.
            let document: Value = serde_json::from_str(&run.stdout).unwrap();
            assert_eq!(
                document["templates"][0]["template_id"], EVIL,
                "{arguments:?}"
            );
        }
    }
    let kept = atlas
        .store()
        .query("SELECT template_id FROM compositions")
        .await;
    assert!(kept.len() == 3 && kept.iter().all(|row| row[0] == EVIL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_far_off_is_told_and_not_believed_against_the_servers_own_commits() {
    let stranger = Stranger::start("t").await;
    let mut atlas = Atlas::new(Kind::Sqlite, &stranger.base_url).await;
    atlas.set("openehr.retry.max_retries", json!(0));
    stranger.says(|says| says.date = Some("Thu, 01 Jan 1970 00:10:00 GMT"));
    let run = atlas.export(&[]).await;
    let document = run.exits(4);
    assert_eq!(document["outcome"], "failed");
    run.says(&[
        "clock",
        "1970-01-01T00:10:00",
        "openehr.max_clock_skew_seconds",
    ]);
    // Ahead of us, and no contrary: told only.
    stranger.says(|says| says.date = Some("Thu, 01 Jan 2099 00:00:00 GMT"));
    let run = atlas.run(&["export", "--dry-run"]).await;
    assert_eq!(run.code(), Some(0));
    run.says(&[
        "clock",
        "2099-01-01",
        "ahead of",
        "openehr.max_clock_skew_seconds (300)",
    ]);
    let told = run.stderr.matches("openehr.max_clock_skew_seconds").count();
    assert_eq!(told, 1, "{}", run.stderr);
    stranger.says(|says| says.date = None);
    let run = atlas.export(&[]).await;
    assert_eq!(run.exits(0)["written"], 3);
    assert!(!run.stderr.contains("clock"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composition_of_24_megabytes_of_values_is_set_aside_within_128_mebibytes() {
    let stranger = Stranger::start("t").await;
    for (what, unit) in [("numbers", "1,"), ("lists", "[],"), ("texts", "\"\",")] {
        let atlas = Atlas::new(Kind::Sqlite, &stranger.base_url).await;
        let values = unit.repeat(23_900_000 / unit.len());
        stranger.says(|says| {
            says.content = format!("{{\"_type\":\"COMPOSITION\",\"content\":[{values}1]}}")
        });
        let run = atlas.export(&[]).await;
        let report = run.exits(1);
        assert_eq!(
            (&report["written"], &report["quarantined"]),
            (&json!(2), &json!(1)),
            "{what}"
        );
        // 73 to 103 MiB were seen: what the allocator keeps of earlier answers differs from run to run.
        assert!(run.peak_kib < 128 << 10, "{what}: {} KiB", run.peak_kib);
        let reason = atlas.run(&["quarantine", "list", "--json"]).await.exits(0);
        assert_eq!(reason["entries"][0]["reason"], "toolarge", "{what}");
    }
}

/// What a trigger of somebody else's can do to a row, with all that is in it in what it says.
fn refusals(kind: Kind) -> Vec<String> {
    const TABLE: &str = "compositions";
    match kind {
        Kind::Sqlite => ["ABORT", "FAIL", "ROLLBACK"]
            .iter()
            .map(|how| {
                format!(
                    "DROP TRIGGER IF EXISTS strange; CREATE TRIGGER strange BEFORE INSERT ON {TABLE} BEGIN \
                     SELECT RAISE({how}, 'bad ' || NEW.ehr_id || NEW.id || NEW.content); END;"
                )
            })
            .collect(),
        Kind::Postgres => {
            // One of each kind that is judged by itself, and such that nobody has defined.
            let classes = [
                "01000", "0A000", "22001", "23505", "28000", "40001", "42501", "45000", "53100", "57014", "P0001", "XX000",
                "XX001", "ZZ001", "A1B2C",
            ];
            let raised = classes.iter().map(|class| {
                format!(
                    "RAISE EXCEPTION 'bad % % %', NEW.ehr_id, NEW.id, NEW.content USING ERRCODE = '{class}', \
                     DETAIL = NEW.ehr_id, HINT = NEW.id, CONSTRAINT = NEW.ehr_id, COLUMN = NEW.ehr_id, TABLE = NEW.ehr_id, \
                     SCHEMA = NEW.ehr_id, DATATYPE = NEW.ehr_id;"
                )
            });
            // The server's own words, made of values.
            let own = [
                "EXECUTE format('SELECT %I FROM compositions', NEW.ehr_id);",
                "EXECUTE format('SET ROLE %I', NEW.ehr_id);",
                "EXECUTE 'syntax ' || quote_literal(NEW.ehr_id);",
                "PERFORM NEW.ehr_id::integer;",
                "RAISE NOTICE '%', NEW.ehr_id; RAISE WARNING '%', NEW.content; ASSERT false, NEW.ehr_id;",
            ];
            raised
                .chain(own.map(str::to_owned))
                .map(|body| {
                    format!(
                        "CREATE OR REPLACE FUNCTION strange() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} \
                         RETURN NEW; END $$; DROP TRIGGER IF EXISTS strange ON {TABLE}; \
                         CREATE TRIGGER strange BEFORE INSERT ON {TABLE} FOR EACH ROW EXECUTE FUNCTION strange();"
                    )
                })
                .collect()
        }
    }
}

atlas_scenarios::into_both_stores!(no_message_of_a_store_is_printed_or_kept_whatever_its_class);

async fn no_message_of_a_store_is_printed_or_kept_whatever_its_class(kind: Kind) {
    let server = sample(4).start().await.unwrap();
    let atlas = talkative(Atlas::new(kind, &server.base_url()).await);
    let mut secrets = BTreeSet::new();
    for (id, composition) in of_sample(&server.handle()) {
        secrets.extend([id, composition.ehr_id]);
    }
    assert_eq!(atlas.run(&["prepare"]).await.code(), Some(0));
    for refusal in refusals(kind) {
        atlas.store().execute(&refusal).await;
        let run = atlas.run(&["export", "--mode", "full", "--yes"]).await;
        assert!(run.code() != Some(0), "{refusal}");
        let mut all = said(&run, &atlas);
        // What `status`, `quarantine` and the API show.
        for table in ["atlas_slices", "atlas_runs"] {
            let failures = format!("SELECT failure FROM {table}");
            all.push_str(&format!("{:?}", atlas.store().query(&failures).await));
        }
        let details = "SELECT detail FROM atlas_quarantine";
        all.push_str(&format!("{:?}", atlas.store().query(details).await));
        let all = all.to_lowercase();
        let found: Vec<&String> = secrets
            .iter()
            .filter(|secret| all.contains(*secret))
            .collect();
        assert!(found.is_empty(), "{found:?} after {refusal}");
    }
}
