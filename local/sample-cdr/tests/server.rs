//! The server as its clients see it: over HTTP, with a client and a JSON parser that know nothing of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    missing_docs
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use atlas_sample_cdr::{
    Clock, Commit, Fault, On, Profile, Quirks, REST_BASE, Release, Running, SampleCdr, Template,
};
use futures::StreamExt as _;
use jiff::Timestamp;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

const F: &str = "FROM EHR e CONTAINS VERSION v[LATEST_VERSION] CONTAINS COMPOSITION c";
const T: &str = "c/archetype_details/template_id/value";
const TIME: &str = "v/commit_audit/time_committed";
const LOWEST: &str = "00000000-0000-0000-0000-000000000000";

struct Cdr {
    running: Running,
    client: reqwest::Client,
}

/// A server whose clock stands at 2026-01-01, after all of its compositions.
fn builder(compositions: u64) -> SampleCdr {
    SampleCdr::builder()
        .seed(7)
        .compositions(compositions)
        .profile(Profile::Compact)
        .clock(Clock::Fixed("2026-01-01T00:00:00Z".parse().unwrap()))
}

async fn start(builder: SampleCdr) -> Cdr {
    Cdr {
        running: builder.start().await.unwrap(),
        client: reqwest::Client::builder().no_proxy().build().unwrap(),
    }
}

impl Cdr {
    fn handle(&self) -> atlas_sample_cdr::Handle {
        self.running.handle()
    }

    async fn post(&self, body: Value) -> Response {
        let url = format!("{}{REST_BASE}/query/aql", self.running.origin());
        self.client.post(url).json(&body).send().await.unwrap()
    }

    async fn query(&self, q: &str, parameters: Value, fetch: Option<u64>) -> Response {
        let mut body = json!({"q": q, "query_parameters": parameters});
        if let Some(fetch) = fetch {
            body["fetch"] = json!(fetch);
        }
        self.post(body).await
    }

    async fn rows(&self, q: &str, parameters: Value, fetch: Option<u64>) -> Vec<Value> {
        let response = self.query(q, parameters, fetch).await;
        assert_eq!(response.status(), StatusCode::OK, "{q}");
        let mut answer: Value = response.json().await.unwrap();
        assert_eq!(answer["q"], q);
        let Value::Array(rows) = answer["rows"].take() else {
            panic!("no rows");
        };
        assert_eq!(answer["meta"]["resultsize"], rows.len());
        rows
    }

    async fn count(&self, condition: &str, parameters: Value) -> u64 {
        let q = format!("SELECT COUNT(v/uid/value) {F} {condition}");
        let rows = self.rows(&q, parameters, Some(1)).await;
        rows[0][0].as_u64().unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        let url = format!("{}{REST_BASE}{path}", self.running.origin());
        let request = self.client.get(url).header("Accept", "application/json");
        request.send().await.unwrap()
    }

    async fn composition(&self, ehr_id: &str, uid: &str) -> Response {
        self.get(&format!("/ehr/{ehr_id}/composition/{uid}")).await
    }

    /// Everything, read page by page with the cursor after the last row, as (time, version uid).
    async fn follow(&self, template: Option<Template>, fetch: u64) -> Vec<(Timestamp, String)> {
        let condition = template.map_or(String::new(), |_| format!("{T} = $template AND "));
        let q = format!(
            "SELECT v/uid/value, {TIME}/value {F} WHERE {condition}{TIME} >= $after \
             AND ({TIME} > $after OR v/uid/value > $uid) AND {TIME} < $to \
             ORDER BY {TIME}, v/uid/value"
        );
        let mut all: Vec<(Timestamp, String)> = Vec::new();
        loop {
            let after = all
                .last()
                .map_or("2000-01-01T00:00:00Z".to_owned(), |row| row.0.to_string());
            let uid = all.last().map_or(LOWEST, |row| object_id(&row.1));
            let parameters = json!({
                "template": template.map(Template::id),
                "after": after,
                "uid": uid,
                "to": "2027-01-01T00:00:00Z",
            });
            let rows = self.rows(&q, parameters, Some(fetch)).await;
            let done = (rows.len() as u64) < fetch;
            for row in rows {
                let next = (time(&row[1]), text(&row[0]));
                if let Some(last) = all.last() {
                    let order = |row: &(Timestamp, String)| (row.0, object_id(&row.1).to_owned());
                    assert!(order(last) < order(&next), "the order is not strict");
                }
                all.push(next);
            }
            if done {
                return all;
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

fn object_id(uid: &str) -> &str {
    uid.split("::").next().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[tokio::test]
async fn keyset_pages_of_any_size_lose_nothing_and_repeat_nothing() {
    let cdr = start(builder(700)).await;
    let all: BTreeSet<String> = (0..700)
        .map(|number| cdr.handle().version_uid(number).unwrap())
        .collect();
    assert_eq!(all.len(), 700);
    for fetch in [1, 2, 3, 7, 50, 350, 700, 701] {
        let read = cdr.follow(None, fetch).await;
        assert_eq!(read.len(), 700, "pages of {fetch}");
        assert_eq!(
            read.into_iter().map(|row| row.1).collect::<BTreeSet<_>>(),
            all
        );
    }
}

#[tokio::test]
async fn the_templates_together_are_everything() {
    let cdr = start(builder(1_500)).await;
    let mut read = BTreeSet::new();
    for template in Template::ALL {
        for (_, uid) in cdr.follow(Some(template), 41).await {
            assert!(read.insert(uid), "in two templates");
        }
    }
    assert_eq!(read.len(), 1_500);
}

#[tokio::test]
async fn ties_occur_at_page_edges() {
    let cdr = start(builder(2_000)).await;
    let read = cdr.follow(Some(Template::VitalSigns), 2).await;
    let edges = read.chunks(2).zip(read.chunks(2).skip(1));
    let tied = edges.filter(|(page, next)| page.last().unwrap().0 == next[0].0);
    assert!(tied.count() > 3);
}

#[tokio::test]
async fn pages_stay_complete_when_rows_were_updated_deleted_and_added() {
    let cdr = start(builder(600)).await;
    let handle = cdr.handle();
    let numbers: Vec<u64> = (0..600).step_by(7).collect();
    for number in &numbers {
        match number % 3 {
            0 => assert!(handle.update(*number)),
            1 => assert!(handle.delete(*number)),
            _ => assert!(handle.erase(*number)),
        }
    }
    for minute in 0..30 {
        let committed = at("2025-01-01T01:00:00Z") + jiff::SignedDuration::from_mins(minute);
        let visible = handle.now();
        handle.commit_at(Template::LaboratoryReport, Commit { committed, visible });
    }
    let expected: BTreeSet<String> = (0..handle.numbers())
        .filter_map(|number| handle.version_uid(number))
        .collect();
    let gone = numbers.iter().filter(|number| *number % 3 != 0).count();
    assert_eq!(expected.len(), 630 - gone);
    for fetch in [1, 13, 100] {
        let read = cdr.follow(None, fetch).await;
        assert_eq!(read.len(), expected.len());
        assert_eq!(
            read.iter()
                .map(|row| row.1.clone())
                .collect::<BTreeSet<_>>(),
            expected
        );
        let updated = read.iter().rev().take_while(|row| row.1.ends_with("::2"));
        assert_eq!(
            updated.count(),
            numbers.len() - gone,
            "updated rows are at the end"
        );
    }
}

#[tokio::test]
async fn a_late_commit_is_seen_from_its_visible_time_with_its_earlier_commit_time() {
    let cdr = start(builder(100)).await;
    let handle = cdr.handle();
    let late = Commit {
        committed: at("2025-01-01T00:10:00.5Z"),
        visible: at("2026-01-01T00:00:05Z"),
    };
    let number = handle.commit_at(Template::VitalSigns, late);
    assert!(handle.update_at(3, late));
    assert_eq!(cdr.follow(None, 50).await.len(), 100);
    assert_eq!(handle.version_uid(number), None);
    assert!(handle.version_uid(3).unwrap().ends_with("::1"));
    handle.advance(Duration::from_secs(5));
    let read = cdr.follow(None, 50).await;
    assert_eq!(read.len(), 101);
    let uid = handle.version_uid(number).unwrap();
    assert!(read.contains(&(late.committed, uid)));
    assert!(read.contains(&(late.committed, handle.version_uid(3).unwrap())));
}

#[tokio::test]
async fn both_forms_of_the_cursor_and_the_order_of_uids_read_the_same() {
    let cdr = start(builder(900)).await;
    let handle = cdr.handle();
    for number in [5, 6, 7, 800] {
        handle.update(number);
    }
    let after = cdr.follow(None, 100).await[417].clone();
    let parameters = json!({"t": after.0.to_string(), "u": object_id(&after.1)});
    let select = format!("SELECT v/uid/value, {TIME}/value {F} WHERE");
    let order = format!("ORDER BY {TIME}, v/uid/value");
    let or = format!("{select} {TIME} > $t OR ({TIME} = $t AND v/uid/value > $u) {order}");
    let and = format!("{select} {TIME} >= $t AND ({TIME} > $t OR v/uid/value > $u) {order}");
    let rows = cdr.rows(&and, parameters.clone(), None).await;
    assert_eq!(rows, cdr.rows(&or, parameters, None).await);
    assert_eq!(rows.len(), 482);

    let mut by_uid = BTreeSet::new();
    let mut last = LOWEST.to_owned();
    let q = format!("SELECT v/uid/value {F} WHERE v/uid/value > $u ORDER BY v/uid/value");
    loop {
        let rows = cdr.rows(&q, json!({"u": last}), Some(37)).await;
        for row in &rows {
            let uid = text(&row[0]);
            assert!(object_id(&uid) > last.as_str());
            object_id(&uid).clone_into(&mut last);
            by_uid.insert(uid);
        }
        if rows.len() < 37 {
            break;
        }
    }
    let by_time: BTreeSet<String> = cdr
        .follow(None, 500)
        .await
        .into_iter()
        .map(|r| r.1)
        .collect();
    assert_eq!(by_uid, by_time);
}

#[tokio::test]
async fn counts_are_those_of_the_listed_rows() {
    let cdr = start(builder(2_500)).await;
    let handle = cdr.handle();
    for number in (0..2_500).step_by(11) {
        match number % 4 {
            0 => handle.delete(number),
            1 => handle.erase(number),
            _ => handle.update(number),
        };
    }
    for template in Template::ALL {
        handle.commit(template);
    }
    let rows = cdr.follow(None, 1_000).await;
    let list =
        format!("SELECT {T}, {TIME}/value, e/ehr_id/value, v/commit_audit/change_type/value {F}");
    let window = format!("WHERE {TIME} >= $from AND {TIME} < $to");
    for (from, to) in [(0, 2_000), (17, 18), (18, 19), (300, 300), (141, 1_900)] {
        let parameters = json!({"from": rows[from].0.to_string(), "to": rows[to].0.to_string()});
        let listed = cdr
            .rows(&format!("{list} {window}"), parameters.clone(), None)
            .await;
        assert_eq!(
            cdr.count(&window, parameters.clone()).await,
            listed.len() as u64
        );
        for (column, path) in [
            (0, T),
            (2, "e/ehr_id/value"),
            (3, "v/commit_audit/change_type/value"),
        ] {
            let mut expected = BTreeMap::<String, (u64, Timestamp, Timestamp)>::new();
            for row in &listed {
                let at = time(&row[1]);
                let entry = expected.entry(text(&row[column])).or_insert((0, at, at));
                *entry = (entry.0 + 1, entry.1.min(at), entry.2.max(at));
            }
            let q = format!(
                "SELECT {path}, COUNT(v/uid/value), MIN({TIME}), MAX({TIME}/value) {F} {window}"
            );
            let grouped: BTreeMap<_, _> = cdr
                .rows(&q, parameters.clone(), None)
                .await
                .iter()
                .map(|row| {
                    let count = row[1].as_u64().unwrap();
                    (
                        text(&row[0]),
                        (count, time(&row[2]["value"]), time(&row[3])),
                    )
                })
                .collect();
            assert_eq!(grouped, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn an_empty_window_counts_nothing() {
    let cdr = start(builder(50)).await;
    let condition = format!("{F} WHERE {TIME} >= $t");
    let counts = format!("COUNT(v/uid/value), MIN({TIME}), MAX({TIME}/value)");
    let never = json!({"t": "2030-01-01T00:00:00Z"});
    let rows = cdr
        .rows(&format!("SELECT {counts} {condition}"), never.clone(), None)
        .await;
    assert_eq!(rows, [json!([0, null, null])]);
    let rows = cdr
        .rows(&format!("SELECT {T}, {counts} {condition}"), never, None)
        .await;
    assert_eq!(rows, [] as [Value; 0]);
}

#[tokio::test]
async fn conditions_hold_as_on_the_real_server() {
    let cdr = start(builder(400)).await;
    let all = cdr
        .rows(
            &format!("SELECT v/uid/value, {TIME}/value, e/ehr_id/value, {T} {F}"),
            json!({}),
            None,
        )
        .await;
    let row = &all[123];
    let (uid, ehr, instant) = (text(&row[0]), text(&row[2]), time(&row[1]));
    let at_instant = all.iter().filter(|row| time(&row[1]) == instant).count() as u64;
    let of_ehr = all.iter().filter(|row| row[2] == ehr).count() as u64;
    let of = |template: Template| all.iter().filter(|row| row[3] == template.id()).count() as u64;
    let vital = of(Template::VitalSigns);
    let kinds = [Template::VitalSigns.id(), Template::MedicationOrder.id()];
    let shifted = instant.to_string().replace('Z', "+00:00");
    let cases = [
        ("v/uid/value = $x", json!(uid), 1),
        ("v/uid/value = $x", json!([uid]), 1),
        ("v/uid/value = $x", json!(object_id(&uid)), 1),
        ("v/uid/value = $x", json!(uid.replace("::1", "::2")), 0),
        (
            "v/uid/value < $x AND v/uid/value >= $o",
            json!(uid.replace("::1", "::2")),
            1,
        ),
        ("v/uid/value != $x", json!(uid), 399),
        (
            "v/uid/value matches {$x, '11111111-2222-4333-8444-555555555555'}",
            json!(uid),
            1,
        ),
        ("NOT v/uid/value matches {$x}", json!(uid), 399),
        (
            "c/uid/value matches {$x}",
            json!([uid, text(&all[0][0])]),
            2,
        ),
        ("e/ehr_id/value = $x", json!(ehr), of_ehr),
        ("e/ehr_id/value matches {$x}", json!(ehr), of_ehr),
        ("e/ehr_id/value = $x", json!("nobody"), 0),
        (
            "c/archetype_details/template_id/value = $x",
            json!(kinds[0]),
            vital,
        ),
        (
            "c/archetype_details/template_id/value != $x",
            json!(kinds[0]),
            400 - vital,
        ),
        (
            "c/archetype_details/template_id/value matches {$x}",
            json!(kinds),
            vital + of(Template::MedicationOrder),
        ),
        (
            "c/archetype_details/template_id/value = $x",
            json!("unknown"),
            0,
        ),
        (
            "v/commit_audit/change_type/value = $x",
            json!("creation"),
            400,
        ),
        ("v/commit_audit/change_type/value = $x", json!("deleted"), 0),
        (
            "v/commit_audit/time_committed = $x",
            json!(instant.to_string()),
            at_instant,
        ),
        (
            "v/commit_audit/time_committed = $x",
            json!(shifted),
            at_instant,
        ),
        ("v/commit_audit/time_committed = $x", json!("garbage"), 0),
        ("v/commit_audit/time_committed != $x", json!("garbage"), 400),
        ("v/commit_audit/time_committed = $x", json!("2025-01-01"), 0),
        (
            "v/commit_audit/time_committed >= $x",
            json!("2025-01-01"),
            400,
        ),
        (
            "v/commit_audit/time_committed > $x OR v/uid/value = $o",
            json!("2030-01-01T00:00:00"),
            1,
        ),
    ];
    for (condition, x, expected) in cases {
        let parameters = json!({"x": x, "o": object_id(&uid)});
        let listed = cdr
            .rows(
                &format!("SELECT v/uid/value {F} WHERE {condition}"),
                parameters.clone(),
                None,
            )
            .await;
        assert_eq!(listed.len() as u64, expected, "{condition}");
        let counted = cdr.count(&format!("WHERE {condition}"), parameters).await;
        assert_eq!(counted, expected, "{condition}");
    }
}

#[tokio::test]
async fn refusals_have_the_status_and_shape_of_the_real_server() {
    let cdr = start(builder(20).release(Release::Ehrbase2_16)).await;
    let uid = format!("SELECT v/uid/value {F}");
    let cases = [
        (json!({"q": "SELECT c FRM x"}), 400),
        (json!({"q": uid, "fetch": "x"}), 400),
        (json!({"q": uid, "fetch": 1.5}), 400),
        (json!({"q": uid, "fetch": -1}), 500),
        (json!({"q": uid, "offset": 1}), 422),
        (json!({"q": format!("{uid} LIMIT 3"), "fetch": 1}), 422),
        (json!({"fetch": 1}), 400),
        (json!({"q": uid, "query_parameters": "x"}), 500),
        (
            json!({"q": format!("{uid} WHERE v/uid/value matches {{$u}}"), "query_parameters": {"u": []}}),
            400,
        ),
        (
            json!({"q": format!("SELECT c/uid/value {F} ORDER BY v/uid/value")}),
            400,
        ),
        (json!({"q": uid, "query_parameters": "x"}), 500),
        (
            json!({"q": format!("{uid} WHERE v/uid/value matches {{$u}}"), "query_parameters": {"u": []}}),
            400,
        ),
        (
            json!({"q": format!("SELECT c/uid/value {F} ORDER BY v/uid/value")}),
            400,
        ),
        (json!([]), 400),
        (json!({"q": format!("{uid} WHERE v/uid/value = $u")}), 400),
        (
            json!({"q": format!("{uid} WHERE v/uid/value = $u"), "query_parameters": {"u": null}}),
            400,
        ),
        (
            json!({"q": format!("{uid} WHERE v/uid/value = 'zzz'")}),
            400,
        ),
        (
            json!({"q": format!("{uid} WHERE v/uid/value = '{LOWEST}::other.node::1'")}),
            400,
        ),
        (
            json!({"q": format!("{uid} WHERE {TIME} >= 'garbage'")}),
            500,
        ),
        (
            json!({"q": format!("SELECT COUNT(*) {F}"), "query_parameters": {"a": 1}}),
            500,
        ),
        (json!({"q": format!("SELECT MIN(v/uid/value) {F}")}), 400),
    ];
    for (body, status) in cases {
        let response = cdr.post(body.clone()).await;
        assert_eq!(response.status().as_u16(), status, "{body}");
        assert!(response.headers().contains_key("date"));
        let answer: Value = response.json().await.unwrap();
        assert!(
            answer["error"].is_string() && answer["message"].is_string(),
            "{answer}"
        );
    }
    for body in [
        json!({"q": uid, "fetch": "10"}),
        json!({"q": format!("{uid} LIMIT 10 OFFSET 3")}),
    ] {
        let answer: Value = cdr.post(body).await.json().await.unwrap();
        assert_eq!(answer["rows"].as_array().unwrap().len(), 10);
    }
    assert_eq!(cdr.rows(&uid, json!({}), Some(0)).await.len(), 0);
}

#[tokio::test]
async fn nothing_that_is_sent_stops_the_server() {
    let cdr = start(builder(5)).await;
    let url = format!("{}{REST_BASE}/query/aql", cdr.running.origin());
    let long = "(".repeat(200_000);
    for body in [
        "",
        "{",
        "null",
        "{\"q\":\"\"}",
        "\u{0}",
        &long,
        "{\"q\":\"SELECT é\"}",
        "{\"q\":\"SELECT c FROM EHR\"}",
    ] {
        let response = cdr
            .client
            .post(&url)
            .body(body.to_owned())
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    let not_text = cdr
        .client
        .post(&url)
        .body(vec![0xff, 0xfe])
        .send()
        .await
        .unwrap();
    assert_eq!(not_text.status(), StatusCode::BAD_REQUEST);
    for path in [
        "/ehr/x/composition/y",
        "/ehr/x/composition/%ff",
        "/ehr/x/versioned_composition/::/revision_history",
    ] {
        assert!(cdr.get(path).await.status().is_client_error());
    }
    let everything = json!({"q": format!("SELECT v/uid/value {F}"), "offset": u64::MAX >> 1, "fetch": u64::MAX >> 1});
    assert_eq!(cdr.post(everything).await.status(), StatusCode::OK);
    assert_eq!(cdr.count("", json!({})).await, 5);
}

#[tokio::test]
async fn an_answer_has_the_shape_of_the_real_server() {
    let cdr = start(builder(30)).await;
    let q = format!("SELECT v/uid/value AS uid, {TIME}, c {F} WHERE {TIME} >= $t ORDER BY {TIME}");
    let response = cdr
        .query(&q, json!({"t": "2025-01-01T00:00:00Z"}), Some(2))
        .await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["date"], "Thu, 01 Jan 2026 00:00:00 GMT");
    let text = response.text().await.unwrap();
    let places: Vec<usize> = ["\"meta\":", "\"q\":", "\"columns\":", "\"rows\":"]
        .iter()
        .map(|member| text.find(member).unwrap())
        .collect();
    assert!(places.is_sorted(), "rows come last");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        answer["columns"][0],
        json!({"path": "v/uid/value", "name": "uid"})
    );
    assert_eq!(answer["columns"][2], json!({"path": "c", "name": "#2"}));
    assert_eq!(answer["meta"]["fetch"], 2);
    assert!(
        answer["meta"]["_executed_aql"]
            .as_str()
            .unwrap()
            .contains(">= '2025-01-01T00:00:00Z'")
    );
    let row = &answer["rows"][1];
    assert_eq!(row[1]["_type"], "DV_DATE_TIME");
    assert_eq!(row[2]["uid"]["value"], row[0]);
    assert_eq!(
        row[2],
        serde_json::from_str::<Value>(&cdr.handle().content(1).unwrap()).unwrap()
    );
}

#[tokio::test]
async fn commit_times_have_fractions_of_several_widths() {
    let cdr = start(builder(3_000)).await;
    let rows = cdr
        .rows(&format!("SELECT {TIME}/value {F}"), json!({}), None)
        .await;
    let widths: BTreeSet<usize> = rows.iter().map(|row| text(&row[0]).len()).collect();
    assert!(widths.len() >= 3, "{widths:?}");
    assert!(
        rows.iter()
            .all(|row| !text(&row[0]).ends_with("0Z") || !text(&row[0]).contains('.'))
    );
}

#[tokio::test]
async fn a_composition_is_read_by_object_id_and_by_version() {
    for release in [Release::Ehrbase2_16, Release::Ehrbase2_31] {
        let cdr = start(builder(10).release(release)).await;
        let handle = cdr.handle();
        let (uid, ehr) = (handle.version_uid(4).unwrap(), handle.ehr_id(4).unwrap());
        let id = object_id(&uid).to_owned();
        let version = |version: u32| format!("{id}::sample.atlas::{version}");
        let first = cdr.composition(&ehr, &id).await.text().await.unwrap();
        assert_eq!(first, handle.content(4).unwrap());
        assert_eq!(release == Release::Ehrbase2_16, first.contains('\n'));
        assert!(handle.update(4));
        let second = cdr.composition(&ehr, &id).await;
        assert_eq!(second.headers()["etag"], format!("\"{}\"", version(2)));
        assert_ne!(second.text().await.unwrap(), first);
        assert_eq!(
            cdr.composition(&ehr, &version(1))
                .await
                .text()
                .await
                .unwrap(),
            first
        );
        assert!(handle.delete(4));
        for (uid, status) in [
            (id.clone(), 204),
            (version(3), 204),
            (version(1), 200),
            (version(4), 404),
        ] {
            assert_eq!(cdr.composition(&ehr, &uid).await.status().as_u16(), status);
        }
        let other = handle.ehr_id(5).unwrap();
        let wrong = if other == ehr { LOWEST } else { &other };
        assert_eq!(
            cdr.composition(wrong, &id).await.status(),
            StatusCode::NOT_FOUND
        );

        let history = format!("/ehr/{ehr}/versioned_composition/{id}/revision_history");
        let answer: Value = cdr.get(&history).await.json().await.unwrap();
        let items = if release == Release::Ehrbase2_16 {
            &answer
        } else {
            &answer["items"]
        };
        let changes: Vec<&str> = items
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["audits"][0]["change_type"]["value"].as_str().unwrap())
            .collect();
        assert_eq!(changes, ["creation", "modification", "deleted"]);
        assert_eq!(items[2]["version_id"]["value"], version(3));
        assert_eq!(
            items[2]["audits"][0]["time_committed"]["value"],
            "2026-01-01T00:00:00Z"
        );

        assert!(handle.update(4), "a deleted composition can come back");
        assert_eq!(handle.version_uid(4).unwrap(), version(4));
        assert!(handle.erase(4));
        assert!(!handle.update(4));
        assert_eq!(
            cdr.composition(&ehr, &id).await.status(),
            StatusCode::NOT_FOUND
        );
        assert_eq!(cdr.get(&history).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn an_unreadable_composition_breaks_its_page_and_not_its_metadata() {
    let cdr = start(builder(60)).await;
    let handle = cdr.handle();
    handle.set_unreadable(21, true);
    let uid = handle.version_uid(21).unwrap();
    let page = format!("SELECT v/uid/value, {TIME}, c {F} ORDER BY {TIME}, v/uid/value");
    let response = cdr.query(&page, json!({}), Some(22)).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(cdr.rows(&page, json!({}), Some(21)).await.len(), 21);
    let list = format!("SELECT v/uid/value {F}");
    assert_eq!(cdr.rows(&list, json!({}), None).await.len(), 60);
    let one = format!("SELECT c {F} WHERE v/uid/value matches {{$u}}");
    let response = cdr.query(&one, json!({"u": uid}), None).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let ehr = handle.ehr_id(21).unwrap();
    assert_eq!(
        cdr.composition(&ehr, &uid).await.status(),
        StatusCode::BAD_REQUEST
    );
    handle.set_unreadable(21, false);
    assert_eq!(cdr.rows(&page, json!({}), None).await.len(), 60);
}

#[tokio::test]
async fn templates_are_listed_and_served() {
    let cdr = start(builder(1)).await;
    let list: Value = cdr
        .get("/definition/template/adl1.4")
        .await
        .json()
        .await
        .unwrap();
    let ids: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["template_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, Template::ALL.map(Template::id));
    for id in ids {
        let path = format!("/definition/template/adl1.4/{}", id.replace(' ', "%20"));
        let web_template: Value = cdr.get(&path).await.json().await.unwrap();
        assert_eq!(web_template["templateId"], id);
        assert_eq!(web_template["tree"]["rmType"], "COMPOSITION");
    }
    assert_eq!(
        cdr.get("/definition/template/adl1.4/none").await.status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn only_the_right_user_is_let_in() {
    let cdr = start(builder(1).auth("reader", "sesame")).await;
    let url = format!("{}/rest/status", cdr.running.base_url());
    let response = cdr.client.get(&url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        response.headers()["www-authenticate"],
        "Basic realm=\"Realm\""
    );
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], 401);
    assert_eq!(body["path"], "/ehrbase/rest/status");
    for (password, status) in [("open", 401), ("sesame", 200)] {
        let request = cdr.client.get(&url).basic_auth("reader", Some(password));
        assert_eq!(request.send().await.unwrap().status().as_u16(), status);
    }
}

#[tokio::test]
async fn scripted_errors_happen_as_often_as_asked() {
    let cdr = start(builder(10)).await;
    let handle = cdr.handle();
    let too_many = Fault::Status {
        status: 429,
        retry_after_secs: Some(3),
    };
    handle.inject(too_many.next(2).on(On::AqlPages));
    handle.inject(
        Fault::Status {
            status: 503,
            retry_after_secs: None,
        }
        .next(1)
        .on(On::AqlPages)
        .after(1),
    );
    let page = format!("SELECT c {F}");
    assert_eq!(cdr.count("", json!({})).await, 10);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let response = cdr.query(&page, json!({}), Some(1)).await;
        if response.status() == 429 {
            assert_eq!(response.headers()["retry-after"], "3");
        }
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [429, 429, 200, 503]);
    handle.inject(
        Fault::Status {
            status: 500,
            retry_after_secs: None,
        }
        .always(),
    );
    assert_eq!(
        cdr.get("/definition/template/adl1.4")
            .await
            .status()
            .as_u16(),
        500
    );
    handle.clear_faults();
    assert_eq!(
        cdr.get("/definition/template/adl1.4")
            .await
            .status()
            .as_u16(),
        200
    );
    assert_eq!(handle.counters().faults, 4);
}

#[tokio::test]
async fn quirks_last_until_they_are_replaced() {
    let cdr = start(builder(40)).await;
    let handle = cdr.handle();
    let list = format!("SELECT v/uid/value, v/commit_audit/change_type/value {F}");
    let page = format!("SELECT v/uid/value, c {F}");
    let of_one = format!("{list} WHERE {T} = $t AND e/ehr_id/value = $e");
    let one = json!({"t": handle.template(0).id(), "e": handle.ehr_id(0)});
    let few = cdr.rows(&of_one, one.clone(), None).await.len();
    assert!((1..20).contains(&few));
    let by = |quirks: Value| {
        let url = format!("{}/sample/quirks", cdr.running.origin());
        cdr.client.put(url).json(&quirks).send()
    };
    assert_eq!(by(json!({"most_rows": 7})).await.unwrap().status(), 204);
    assert_eq!(cdr.rows(&list, json!({}), Some(20)).await.len(), 7);
    assert_eq!(cdr.rows(&list, json!({}), Some(3)).await.len(), 3);
    assert_eq!(by(json!({"most_rows": 2})).await.unwrap().status(), 204);
    let census = format!("SELECT {T}, COUNT(v/uid/value) {F}");
    assert_eq!(cdr.rows(&census, json!({}), None).await.len(), 2);
    assert!(
        by(json!({"unknown": 1}))
            .await
            .unwrap()
            .status()
            .is_client_error()
    );

    handle.set_quirks(Quirks {
        max_fetch: Some(10),
        ..Quirks::default()
    });
    let response = cdr.query(&list, json!({}), Some(11)).await;
    assert_eq!(response.status(), 422);
    let said: Value = response.json().await.unwrap();
    assert_eq!(
        said["message"],
        "Fetch parameter 11 exceeds maximum fetch 10"
    );
    assert_eq!(cdr.rows(&list, json!({}), Some(10)).await.len(), 10);

    handle.set_quirks(Quirks {
        ignores_ehrs: true,
        ignores_templates: true,
        ..Quirks::default()
    });
    assert_eq!(cdr.rows(&of_one, one.clone(), None).await.len(), 40);

    handle.set_quirks(Quirks {
        has_no_pages: true,
        ..Quirks::default()
    });
    assert_eq!(cdr.rows(&page, json!({}), None).await.len(), 0);
    assert_eq!(cdr.rows(&list, json!({}), None).await.len(), 40);
    assert_eq!(cdr.count("", json!({})).await, 40);

    handle.set_quirks(Quirks {
        branches: [3].into(),
        no_change_type: [4].into(),
        no_object: [5].into(),
        ..Quirks::default()
    });
    let rows = cdr.rows(&list, json!({}), None).await;
    assert!(rows[3][0].as_str().unwrap().ends_with("::1.1.2"));
    assert_eq!(rows[4][1], Value::Null);
    assert!(cdr.rows(&page, json!({}), None).await[5][1].is_string());

    handle.set_quirks(Quirks::default());
    assert_eq!(cdr.rows(&of_one, one, None).await.len(), few);
}

#[tokio::test]
async fn commit_times_with_nanoseconds_are_printed_and_compared_to_the_last_digit() {
    let cdr = start(builder(300)).await;
    cdr.handle().set_quirks(Quirks {
        nanoseconds: true,
        ..Quirks::default()
    });
    let q = format!(
        "SELECT v/uid/value, {TIME}/value {F} WHERE {TIME} >= $from ORDER BY {TIME}, v/uid/value"
    );
    let rows = cdr
        .rows(&q, json!({"from": "2000-01-01T00:00:00Z"}), None)
        .await;
    let times: Vec<&str> = rows.iter().map(|row| row[1].as_str().unwrap()).collect();
    assert_eq!(times.len(), 300);
    assert!(
        times.is_sorted(),
        "all have nine digits, so texts are in the order of time"
    );
    assert!(
        times
            .iter()
            .all(|time| time.len() == "2025-01-01T00:00:00.000000000Z".len())
    );
    let inside = times
        .windows(2)
        .filter(|pair| pair[0][..26] == pair[1][..26] && pair[0] != pair[1]);
    assert!(inside.count() > 0, "some differ inside a microsecond only");
    for (at, time) in times.iter().enumerate().step_by(17) {
        let before = times.partition_point(|other| other < time);
        let rows = cdr.rows(&q, json!({"from": time}), None).await;
        assert_eq!(rows.len(), 300 - before, "{at}");
    }
}

#[tokio::test]
async fn damaged_bodies_arrive_damaged() {
    let cdr = start(builder(200)).await;
    let handle = cdr.handle();
    let page = format!("SELECT v/uid/value, c {F}");

    handle.inject(
        Fault::CutBody {
            after_bytes: 100_000,
        }
        .next(1),
    );
    let mut body = cdr.query(&page, json!({}), None).await.bytes_stream();
    let (mut arrived, mut broken) = (0, false);
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => arrived += piece.len(),
            Err(_) => broken = true,
        }
    }
    assert!(broken && arrived <= 100_000, "{arrived}");

    handle.inject(Fault::Html.next(1));
    let response = cdr.query(&page, json!({}), None).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        response.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );

    handle.inject(
        Fault::SlowBody {
            bytes: 1_000,
            pause_millis: 1,
        }
        .next(1),
    );
    let response = cdr.query(&page, json!({}), Some(10)).await;
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["rows"].as_array().unwrap().len(), 10);

    handle.inject(Fault::EndlessBody.next(1));
    let mut body = cdr.query(&page, json!({}), Some(1)).await.bytes_stream();
    let mut arrived = 0;
    while arrived < 20_000_000 {
        arrived += body.next().await.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn latency_holds_an_answer_back() {
    let cdr = start(builder(1)).await;
    cdr.handle()
        .inject(Fault::Latency { millis: 3_600_000 }.next(1));
    let slow = cdr.get("/definition/template/adl1.4");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), slow)
            .await
            .is_err()
    );
    assert!(
        cdr.get("/definition/template/adl1.4")
            .await
            .status()
            .is_success()
    );
}

#[tokio::test]
async fn requests_that_are_open_at_once_are_counted_until_their_body_ends() {
    let cdr = start(builder(5)).await;
    let handle = cdr.handle();
    let query = format!("SELECT c {F}");
    assert_eq!(cdr.rows(&query, json!({}), None).await.len(), 5);
    assert_eq!(cdr.rows(&query, json!({}), None).await.len(), 5);
    assert_eq!(handle.counters().most_at_once, 1);
    handle.inject(Fault::EndlessBody.next(3));
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(cdr.query(&query, json!({}), None).await);
    }
    let counters = handle.counters();
    assert_eq!(counters.most_at_once, 3);
    assert_eq!((counters.requests, counters.aql_pages), (5, 5));
    assert!(counters.body_bytes > 15_000);
    drop(open);
}

#[tokio::test]
async fn a_stopping_server_breaks_off_what_it_is_sending() {
    let cdr = start(builder(1)).await;
    cdr.handle().inject(Fault::EndlessBody.next(1));
    let mut body = cdr
        .query(&format!("SELECT c {F}"), json!({}), None)
        .await
        .bytes_stream();
    let stopped = tokio::spawn(cdr.running.shutdown());
    let mut broken = false;
    while let Some(piece) = body.next().await {
        broken |= piece.is_err();
    }
    assert!(broken);
    stopped.await.unwrap().unwrap();
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_accept_it() {
    let cdr = start(builder(300).gzip(true)).await;
    let page = format!("SELECT c {F}");
    let rows = cdr.rows(&page, json!({}), None).await;
    assert_eq!(rows.len(), 300);
    let packed = cdr.handle().counters().body_bytes;
    let plain = Cdr {
        client: reqwest::Client::builder()
            .no_proxy()
            .no_gzip()
            .build()
            .unwrap(),
        running: cdr.running,
    };
    let response = plain.query(&page, json!({}), None).await;
    assert!(!response.headers().contains_key("content-encoding"));
    let size = response.bytes().await.unwrap().len() as u64;
    assert!(packed * 5 < size, "{packed} of {size}");
}

#[tokio::test]
async fn a_page_of_a_million_costs_what_is_on_it() {
    let cdr = start(builder(1_000_000)).await;
    let handle = cdr.handle();
    for number in [0, 500_000, 999_000] {
        handle.update(number);
    }
    let cost = |before: atlas_sample_cdr::Counters| {
        let after = handle.counters();
        (
            after.rows_examined - before.rows_examined,
            after.compositions - before.compositions,
        )
    };

    let before = handle.counters();
    let census =
        format!("SELECT {T}, COUNT(v/uid/value), MIN({TIME}), MAX({TIME}) {F} WHERE {TIME} >= $t");
    let rows = cdr
        .rows(&census, json!({"t": "2025-01-01T00:00:00Z"}), None)
        .await;
    let total: u64 = rows.iter().map(|row| row[1].as_u64().unwrap()).sum();
    assert_eq!(total, 1_000_000);
    let (examined, written) = cost(before);
    assert!(examined < 100, "{examined} rows for a census");
    assert_eq!(written, 0);

    let before = handle.counters();
    let end = cdr.handle().content(999_000);
    assert!(end.is_some());
    let near_the_end = time(&rows[0][3]["value"]) - jiff::SignedDuration::from_hours(30 * 24);
    let page = format!(
        "SELECT v/uid/value, {TIME}/value, e/ehr_id/value, c {F} WHERE {T} = $template AND {TIME} >= $after \
         AND ({TIME} > $after OR v/uid/value > $uid) AND {TIME} < $to ORDER BY {TIME}, v/uid/value"
    );
    let parameters = json!({
        "template": Template::MedicationOrder.id(),
        "after": "2025-08-01T00:00:00Z",
        "uid": LOWEST,
        "to": "2026-01-01T00:00:00Z",
    });
    assert!(near_the_end > at("2025-08-01T00:00:00Z"));
    let rows = cdr.rows(&page, parameters, Some(100)).await;
    assert_eq!(rows.len(), 100);
    let (examined, written) = cost(before);
    // One row in five has the template, and a page is walked twice: to size it, to write it.
    assert!(examined < 2 * 100 * 6, "{examined} rows for a page of 100");
    assert_eq!(written, 100);
}

#[tokio::test]
async fn an_answer_of_everything_is_made_as_it_is_taken() {
    let cdr = start(builder(1_000_000)).await;
    let mut body = cdr
        .query(&format!("SELECT c {F}"), json!({}), None)
        .await
        .bytes_stream();
    let mut arrived = 0;
    while arrived < 1_000_000 {
        arrived += body.next().await.unwrap().unwrap().len();
    }
    let written = cdr.handle().counters().compositions;
    assert!(
        written < 50_000,
        "{written} of a million were written for the first megabyte"
    );
}

#[tokio::test]
async fn the_same_seed_is_the_same_server() {
    let (one, same, other) = (
        start(builder(50)).await,
        start(builder(50)).await,
        start(builder(50).seed(8)).await,
    );
    let read = |cdr: &Cdr| {
        (0..50)
            .map(|k| cdr.handle().content(k).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(read(&one), read(&same));
    assert_ne!(read(&one), read(&other));
}

#[tokio::test]
async fn impossible_servers_do_not_start() {
    assert!(builder(u64::MAX).start().await.is_err());
    let early = Clock::Fixed(at("2025-01-01T00:00:10Z"));
    let error = builder(100).clock(early).start().await.unwrap_err();
    assert!(error.to_string().contains("start earlier"), "{error}");
    let first = builder(1).start().await.unwrap();
    let port = first
        .base_url()
        .split(':')
        .nth(2)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(builder(1).port(port).start().await.is_err());
}

#[tokio::test]
async fn the_binary_serves_takes_orders_and_ends_on_a_signal() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sample-cdr"))
        .args([
            "--compositions",
            "40",
            "--seed",
            "3",
            "--profile",
            "compact",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let base = line.trim().strip_prefix("ready ").unwrap().to_owned();
    let origin = base.strip_suffix("/ehrbase").unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();

    let changes = json!({
        "update": [1],
        "delete": [2, 1_000],
        "unreadable": [3],
        "commit": [{"template_id": "sample_vital_signs.v1", "committed": "2025-03-01T00:00:00Z"}],
    });
    let url = format!("{origin}/sample/changes");
    let answer: Value = client
        .post(&url)
        .json(&changes)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(answer, json!({"changed": 2, "committed": [40]}));
    let faults = json!([{"fault": {"status": {"status": 503, "retry_after_secs": 1}}, "on": "aql", "times": 1}]);
    let url = format!("{origin}/sample/faults");
    assert!(
        client
            .post(&url)
            .json(&faults)
            .send()
            .await
            .unwrap()
            .status()
            .is_success()
    );

    let url = format!("{base}/rest/openehr/v1/query/aql");
    let query = json!({"q": format!("SELECT COUNT(v/uid/value) {F}")});
    let first = client.post(&url).json(&query).send().await.unwrap();
    assert_eq!(first.status(), StatusCode::SERVICE_UNAVAILABLE);
    let second: Value = client
        .post(&url)
        .json(&query)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(second["rows"], json!([[40]]));
    let url = format!("{origin}/sample/compositions/1");
    let one: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
    assert!(one["uid"].as_str().unwrap().ends_with("::2"));
    let url = format!("{origin}/sample/counters");
    let counters: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(counters["requests"], 2);

    let ended = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(ended.success());
    assert!(child.wait().unwrap().success());
}
