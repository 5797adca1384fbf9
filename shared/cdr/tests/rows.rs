//! Rows that are no compositions, places finer than a microsecond, answers that somebody capped, limits of the server.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod wire;

use std::collections::BTreeSet;

use atlas_cdr::{Cdr, Config};
use atlas_engine::ErrorKind;
use atlas_engine::checked::CheckedSource;
use atlas_engine::model::{Cursor, Meta, Page, Scope, Window};
use atlas_engine::ports::{Compositions, Definitions, Source};
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use serde_json::{Value, json as value};
use wire::{EHR, SECRET, UID, Wire, json, reply, table};

const TIME: &str = "2026-11-23T03:50:12.1166Z";

fn everything() -> Scope {
    Scope {
        templates: Vec::new(),
        ehrs: Vec::new(),
        window: Window::EVER,
    }
}

fn of_vitals() -> Scope {
    Scope {
        templates: vec![TemplateId::new("vitals")],
        ..everything()
    }
}

/// A sound row, as cells.
fn row(number: usize, time: &str) -> Vec<Value> {
    vec![
        value!(format!("{}::sys::1", id(number))),
        value!(time),
        value!(EHR),
        value!("vitals"),
        value!("creation"),
        value!({"_type": "COMPOSITION"}),
    ]
}

fn id(number: usize) -> String {
    format!("{}{number:04}", &UID[..UID.len() - 4])
}

fn cells(rows: &[Vec<Value>], columns: usize) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| Value::from(row[..columns].to_vec()).to_string())
        .collect();
    table(columns, &rows.join(","))
}

/// A server with these rows that compares times to the last digit and object ids as texts, and gives at most `cap` rows.
async fn server(rows: Vec<Vec<Value>>, cap: usize) -> Wire {
    Wire::start(move |_, request| json(&answer(&rows, cap, &request.body))).await
}

fn answer(rows: &[Vec<Value>], cap: usize, body: &str) -> String {
    let asked: Value = serde_json::from_str(body).unwrap();
    let (text, given) = (asked["q"].as_str().unwrap(), &asked["query_parameters"]);
    let time = |row: &[Value]| row[1].as_str().unwrap().replace('Z', "");
    let object = |row: &[Value]| match row[0].as_str() {
        Some(uid) => uid.split("::").next().unwrap().to_owned(),
        None => String::new(),
    };
    let wanted: Option<BTreeSet<&str>> = text.contains("v/uid/value matches").then(|| {
        let all = given.as_object().unwrap().iter();
        all.filter(|(name, _)| name.starts_with('u'))
            .map(|(_, id)| id.as_str().unwrap())
            .collect()
    });
    let wanted = match (wanted, given["u0"].as_str()) {
        (None, Some(only)) => Some(BTreeSet::from([only])),
        (wanted, _) => wanted,
    };
    let found: Vec<Vec<Value>> = rows
        .iter()
        .filter(|row| match given["after"].as_str() {
            None => true,
            Some(after) => {
                let (at, after) = (time(row), after.replace('Z', ""));
                at.trim_end_matches('0') > after.trim_end_matches('0')
                    || at.trim_end_matches('0') == after.trim_end_matches('0')
                        && given["uid"]
                            .as_str()
                            .is_some_and(|uid| object(row).as_str() > uid)
            }
        })
        .filter(|row| {
            wanted
                .as_ref()
                .is_none_or(|ids| ids.contains(object(row).as_str()))
        })
        .take(cap.min(usize::try_from(asked["fetch"].as_u64().unwrap()).unwrap()))
        .cloned()
        .collect();
    cells(&found, if text.contains(", c FROM") { 6 } else { 5 })
}

/// Rows and misfits of all pages, in the order of their cursors, as a reader follows them.
async fn follow(cdr: &Cdr, scope: &Scope, limit: usize) -> (Vec<Meta>, Vec<(Meta, String)>) {
    let (mut rows, mut misfits) = (Vec::new(), Vec::new());
    let mut after: Option<Cursor> = None;
    for _ in 0..1000 {
        let page = cdr.page(scope, after.as_ref(), limit).await.unwrap();
        let listed = cdr.list(scope, after.as_ref(), limit).await.unwrap();
        let Some(last) = last(&page) else {
            assert!(listed.is_empty());
            return (rows, misfits);
        };
        assert_eq!(listed.len(), page.rows.len() + page.misfits.len());
        after = Some(last);
        rows.extend(page.rows.into_iter().map(|row| row.meta));
        misfits.extend(page.misfits.into_iter().map(|one| (one.meta, one.detail)));
    }
    panic!("paging does not end")
}

fn last(page: &Page) -> Option<Cursor> {
    let rows = page.rows.iter().map(|row| row.meta.cursor());
    rows.chain(page.misfits.iter().map(|misfit| misfit.meta.cursor()))
        .max()
}

/// What is wrong with the second of five rows, what is said about it, and the object id that is kept.
fn misfits() -> Vec<(&'static str, Vec<Value>, &'static str, Option<String>)> {
    let long = "0123456789abcdef".repeat(1250);
    let uid = |text: &str| replaced(0, value!(text));
    let mut all = vec![
        (
            "branch",
            uid(&format!("{}::sys::1.1.2", id(1))),
            "branch",
            Some(id(1)),
        ),
        (
            "deep branch",
            uid(&format!("{}::sys::12.30.4", id(1))),
            "branch",
            Some(id(1)),
        ),
        (
            "version 0",
            uid(&format!("{}::sys::0", id(1))),
            "version uid",
            Some(id(1)),
        ),
        (
            "two parts",
            uid(&format!("{}::s", id(1))),
            "version uid",
            Some(id(1)),
        ),
        ("one part", uid(&id(1)), "version uid", Some(id(1))),
        (
            "four parts",
            uid(&format!("{}::a::b::1", id(1))),
            "version uid",
            Some(id(1)),
        ),
        (
            "no system",
            uid(&format!("{}::::1", id(1))),
            "version uid",
            Some(id(1)),
        ),
        (
            "NUL in uid",
            uid(&format!("{}::s\0::1", id(1))),
            "version uid",
            Some(id(1)),
        ),
        ("no object", uid("::sys::1"), "version uid", None),
        ("empty uid", uid(""), "version uid", None),
        (
            "uid of 20 kB",
            uid(&format!("{long}::s::1")),
            "version uid",
            None,
        ),
        ("uid a number", replaced(0, value!(5)), "version uid", None),
        ("uid null", replaced(0, Value::Null), "version uid", None),
        (
            "uid an object",
            replaced(0, value!({"value": "x"})),
            "version uid",
            None,
        ),
        (
            "content a text",
            replaced(5, value!("x")),
            "content",
            Some(id(1)),
        ),
        (
            "content a list",
            replaced(5, value!([1])),
            "content",
            Some(id(1)),
        ),
        (
            "content a number",
            replaced(5, value!(1.5)),
            "content",
            Some(id(1)),
        ),
        (
            "content true",
            replaced(5, value!(true)),
            "content",
            Some(id(1)),
        ),
        (
            "template null",
            replaced(3, Value::Null),
            "template",
            Some(id(1)),
        ),
        (
            "template empty",
            replaced(3, value!("")),
            "template",
            Some(id(1)),
        ),
    ];
    for bad in [
        Value::Null,
        value!(5),
        value!(""),
        value!({}),
        value!("e\0x"),
        value!(long),
    ] {
        all.push(("EHR", replaced(2, bad.clone()), "EHR", Some(id(1))));
        all.push(("change type", replaced(4, bad), "change type", Some(id(1))));
    }
    all
}

fn replaced(column: usize, by: Value) -> Vec<Value> {
    let mut row = row(1, "2026-11-23T03:50:12.2Z");
    row[column] = by;
    row
}

fn world_with(misfit: Vec<Value>) -> Vec<Vec<Value>> {
    vec![
        row(0, "2026-11-23T03:50:12.1Z"),
        misfit,
        row(2, "2026-11-23T03:50:12.3Z"),
        row(3, "2026-11-23T03:50:12.3Z"),
        row(4, "2026-11-23T03:50:12.4Z"),
    ]
}

#[tokio::test]
async fn a_row_that_is_no_composition_stands_alone_and_paging_goes_on_behind_it() {
    for (name, misfit, said, object) in misfits() {
        let wire = server(world_with(misfit), usize::MAX).await;
        let cdr = wire.cdr();
        let mut made = BTreeSet::new();
        for limit in [1, 2, 3, 500] {
            let (rows, misfits) = follow(&cdr, &of_vitals(), limit).await;
            let found: Vec<&str> = rows.iter().map(|m| m.uid.object_id().as_str()).collect();
            assert_eq!(found, [id(0), id(2), id(3), id(4)], "{name} by {limit}");
            let [(meta, detail)] = misfits.as_slice() else {
                panic!("{name} by {limit}: {} misfits", misfits.len())
            };
            assert!(detail.contains(said), "{name}: {detail}");
            for secret in [id(1), EHR.to_owned()] {
                assert!(!detail.contains(&secret), "{name}: {detail}");
            }
            assert_eq!(meta.template.as_str(), "vitals", "{name}");
            let kept = meta.uid.object_id().as_str();
            match &object {
                Some(object) => assert_eq!(kept, object, "{name}"),
                None => {
                    let hex = kept.strip_prefix("unreadable-").unwrap();
                    assert_eq!(hex.len(), 16, "{name}");
                    assert!(hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
                }
            }
            made.insert(kept.to_owned());
        }
        let listed = cdr.list(&of_vitals(), None, 500).await.unwrap();
        if said != "content" {
            made.insert(listed[1].uid.object_id().as_str().to_owned());
        }
        assert_eq!(made.len(), 1, "{name}: the same row gives the same entry");
    }
}

#[tokio::test]
async fn rows_without_a_uid_are_told_apart() {
    let mut other = replaced(0, Value::Null);
    other[2] = value!("another");
    let at = |mut row: Vec<Value>, time: &str| {
        row[1] = value!(time);
        row
    };
    let no_uid = replaced(0, Value::Null);
    let wire = server(
        vec![
            no_uid.clone(),
            at(no_uid, "2026-11-23T03:50:12.3Z"),
            at(other, "2026-11-23T03:50:12.3Z"),
        ],
        usize::MAX,
    )
    .await;
    let page = wire.cdr().page(&everything(), None, 500).await.unwrap();
    let ids: BTreeSet<&str> = page
        .misfits
        .iter()
        .map(|misfit| misfit.meta.uid.as_str())
        .collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn what_shares_its_commit_time_with_a_row_without_a_uid_is_not_lost() {
    let mut no_uid = replaced(0, Value::Null);
    no_uid[1] = value!(TIME);
    let mut rows: Vec<_> = (2..9).map(|number| row(number, TIME)).collect();
    rows.insert(0, no_uid);
    rows.push(row(9, "2026-11-23T03:50:13Z"));
    let wire = server(rows, usize::MAX).await;
    for limit in [2, 3, 500] {
        let (rows, misfits) = follow(&wire.cdr(), &everything(), limit).await;
        assert_eq!((rows.len(), misfits.len()), (8, 1), "by {limit}");
    }
}

#[tokio::test]
async fn a_row_without_a_uid_cannot_be_fetched_and_is_not_taken_for_gone() {
    let wire = server(Vec::new(), usize::MAX).await;
    let cdr = wire.cdr();
    let made_up = ObjectId::new("unreadable-0123456789abcdef");
    for objects in [vec![made_up.clone()], vec![ObjectId::new(UID), made_up]] {
        let error = cdr.fetch(&everything(), &objects).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnreadable);
    }
    assert_eq!(cdr.usage().requests, 0);
}

#[tokio::test]
async fn a_row_without_a_commit_time_says_which_column_is_wrong() {
    for bad in [
        Value::Null,
        value!(5),
        value!("yesterday"),
        value!({"value": 1}),
        value!("2026-11"),
    ] {
        let mut rows = world_with(row(1, TIME));
        rows[1][1] = bad;
        let text = cells(&rows, 6);
        let wire = Wire::start(move |_, _| json(&text)).await;
        let error = wire.cdr().page(&everything(), None, 9).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
        assert!(
            error.chain().contains("v/commit_audit/time_committed"),
            "{}",
            error.chain()
        );
    }
}

#[tokio::test]
async fn commit_times_finer_than_a_microsecond_are_followed_to_their_last_digit() {
    // One microsecond, in the order of time and against that of the object ids; ties to the nanosecond; trailing zeros.
    let mut rows = vec![
        row(9, "2026-11-23T03:50:12.123456Z"),
        row(8, "2026-11-23T03:50:12.123456001Z"),
        row(6, "2026-11-23T03:50:12.1234561Z"),
        row(7, "2026-11-23T03:50:12.123456100Z"),
        row(5, "2026-11-23T03:50:12.123456789Z"),
        row(4, "2026-11-23T03:50:12.1234567891Z"),
        row(3, "2026-11-23T03:50:12.123456999Z"),
        row(2, "2026-11-23T03:50:12.123457Z"),
    ];
    rows.extend((10..40).map(|number| row(number, "2026-11-23T03:50:12.999999999Z")));
    let expected: Vec<String> = rows
        .iter()
        .map(|row| row[0].as_str().unwrap().to_owned())
        .collect();
    let wire = server(rows, usize::MAX).await;
    let cdr = wire.cdr();
    for limit in [1, 2, 3, 7, 500] {
        let (rows, misfits) = follow_in_order(&cdr, limit).await;
        assert_eq!(rows, expected, "by {limit}");
        assert_eq!(misfits, 0);
    }
    let metas = cdr.list(&everything(), None, 500).await.unwrap();
    let positions: Vec<Option<&str>> = metas.iter().map(|m| m.position.as_deref()).collect();
    assert_eq!(positions[0], None, "six digits need no position");
    assert_eq!(positions[1], Some("2026-11-23T03:50:12.123456001Z"));
    assert_eq!(positions[7], None);
    assert_eq!(metas[6].committed, metas[0].committed);
    let asked = wire.requests();
    assert!(asked.iter().any(|request| {
        let body: Value = serde_json::from_str(&request.body).unwrap();
        body["query_parameters"]["after"] == "2026-11-23T03:50:12.1234567891Z"
    }));
}

/// By the last row of each page.
async fn follow_in_order(cdr: &Cdr, limit: usize) -> (Vec<String>, usize) {
    let (mut read, mut misfits) = (Vec::new(), 0);
    let mut after: Option<Cursor> = None;
    loop {
        let page = cdr
            .page(&everything(), after.as_ref(), limit)
            .await
            .unwrap();
        let Some(row) = page.rows.last() else {
            return (read, misfits);
        };
        // As a slice keeps it between two runs.
        let kept = serde_json::to_string(&row.meta.cursor()).unwrap();
        after = Some(serde_json::from_str(&kept).unwrap());
        misfits += page.misfits.len();
        read.extend(page.rows.iter().map(|row| row.meta.uid.as_str().to_owned()));
        assert!(read.len() < 1000, "paging does not end");
    }
}

#[tokio::test]
async fn rows_out_of_their_exact_order_are_a_lie_of_the_server() {
    let late = "2026-11-23T03:50:12.123456002Z";
    let early = "2026-11-23T03:50:12.123456001Z";
    for rows in [
        vec![row(1, late), row(2, early)],
        vec![row(2, late), row(1, late)],
        vec![row(1, late), row(1, late)],
    ] {
        let text = cells(&rows, 6);
        let wire = Wire::start(move |_, _| json(&text)).await;
        let error = wire.cdr().page(&everything(), None, 9).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUntrue);
        assert!(error.chain().contains("order"), "{}", error.chain());
    }
    // The same row again, because the server cuts the parameter to microseconds.
    let text = cells(&[row(1, late)], 6);
    let wire = Wire::start(move |_, _| json(&text)).await;
    let cdr = wire.cdr();
    let page = cdr.page(&everything(), None, 9).await.unwrap();
    let after = page.rows[0].meta.cursor();
    let error = cdr.page(&everything(), Some(&after), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUntrue);
}

#[tokio::test]
async fn a_capped_answer_ends_nothing() {
    let rows: Vec<_> = (0..45).map(|number| row(number, TIME)).collect();
    for cap in [1, 7, 10, 44, 45] {
        let wire = server(rows.clone(), cap).await;
        let cdr = wire.cdr();
        let (read, _) = follow_in_order(&cdr, 500).await;
        assert_eq!(read.len(), 45, "capped at {cap}");
        // Six of them are not there.
        let objects: Vec<ObjectId> = (0..51).map(|n| ObjectId::new(&id(n))).collect();
        let page = cdr.fetch(&everything(), &objects).await.unwrap();
        let found: BTreeSet<&str> = page
            .rows
            .iter()
            .map(|row| row.meta.uid.object_id().as_str())
            .collect();
        assert_eq!((page.rows.len(), found.len()), (45, 45), "capped at {cap}");
        for row in &page.rows {
            assert_eq!(page.content(row).raw(), r#"{"_type":"COMPOSITION"}"#);
        }
    }
}

#[tokio::test]
async fn what_is_fetched_in_parts_is_no_larger_than_what_is_fetched_at_once() {
    let mut large = row(0, TIME);
    large[5] = value!({"_type": "COMPOSITION", "text": "x".repeat(600)});
    let rows: Vec<_> = (0..4)
        .map(|number| {
            let mut row = large.clone();
            row[0] = row_uid(number);
            row
        })
        .collect();
    let wire = server(rows, 1).await;
    let cdr = Cdr::connect(Config {
        body_limit: 2000,
        ..wire.config()
    })
    .unwrap();
    let objects: Vec<ObjectId> = (0..4).map(|n| ObjectId::new(&id(n))).collect();
    let error = cdr.fetch(&everything(), &objects).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceTooLarge);
    assert!(error.help().unwrap().contains("max_composition_mb"));
    let page = cdr.fetch(&everything(), &objects[..2]).await.unwrap();
    assert_eq!(page.rows.len(), 2);
}

fn row_uid(number: usize) -> Value {
    value!(format!("{}::sys::1", id(number)))
}

#[tokio::test]
async fn a_limit_of_the_server_is_learnt_once_and_kept() {
    for (status, limit, said) in [
        (422, 1000, "Fetch parameter {} exceeds maximum fetch 1000"),
        (422, 30, "Fetch parameter {} exceeds maximum fetch 30"),
        (422, 3, "Fetch parameter {} exceeds maximum fetch 3"),
        (422, 17, "no"),
        (400, 40, "Fetch parameter {} exceeds maximum fetch 40"),
        (400, 40, "too many rows"),
        (400, 40, "the most is 40"),
        (413, 20, ""),
        (416, 20, ""),
    ] {
        let rows: Vec<_> = (0..45).map(|number| row(number, TIME)).collect();
        let wire = Wire::start(move |_, request| {
            let asked: Value = serde_json::from_str(&request.body).unwrap();
            let fetch = asked["fetch"].as_u64().unwrap();
            if fetch > limit {
                let message = said.replace("{}", &fetch.to_string());
                let body = value!({"error": "Unprocessable Entity", "message": message});
                return reply(status, "", body.to_string());
            }
            match asked["q"].as_str().unwrap().contains("MIN(") {
                true => json(&table(4, &format!(r#"["vitals",45,"{TIME}","{TIME}"]"#))),
                false => json(&answer(&rows, usize::MAX, &request.body)),
            }
        })
        .await;
        let cdr = wire.cdr();
        assert_eq!(cdr.census(&everything()).await.unwrap().lines.len(), 1);
        let learnt = cdr.usage().requests;
        assert!(learnt <= 20, "{learnt} requests");
        let (read, _) = follow_in_order(&cdr, 500).await;
        assert_eq!(read.len(), 45);
        let objects: Vec<ObjectId> = (0..51).map(|n| ObjectId::new(&id(n))).collect();
        let page = cdr.fetch(&everything(), &objects).await.unwrap();
        assert_eq!(page.rows.len(), 45);
        let refused = wire
            .requests()
            .iter()
            .skip(usize::try_from(learnt).unwrap())
            .filter(|request| {
                let asked: Value = serde_json::from_str(&request.body).unwrap();
                asked["fetch"].as_u64().unwrap() > limit
            })
            .count();
        assert_eq!(refused, 0, "asked for too much again");
    }
}

#[tokio::test]
async fn a_census_line_without_compositions_is_no_answer_and_a_row_of_nothing_is() {
    for (row, lines) in [
        (r#"[null,0,null,null]"#.to_owned(), Some(0)),
        (format!(r#"["vitals",1,"{TIME}","{TIME}"]"#), Some(1)),
        (format!(r#"["vitals",0,"{TIME}","{TIME}"]"#), None),
        (r#"["vitals",0,null,null]"#.to_owned(), None),
    ] {
        let body = table(4, &row);
        let wire = Wire::start(move |_, _| json(&body)).await;
        let census = wire.cdr().census(&everything()).await;
        match lines {
            Some(lines) => assert_eq!(census.unwrap().lines.len(), lines, "{row}"),
            None => assert_eq!(
                census.unwrap_err().kind(),
                ErrorKind::SourceUnsupported,
                "{row}"
            ),
        }
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_about_the_number_of_rows_is_shown_and_not_repeated_for_ever() {
    let echo = format!("Parameter {UID} of {EHR} with {SECRET} is not supported");
    let body = value!({"error": "Bad Request", "message": echo}).to_string();
    let wire = Wire::start(move |_, _| reply(400, "", &body)).await;
    let cdr = wire.cdr();
    let error = cdr.census(&everything()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    // The question, and the same one for a single row.
    assert_eq!(cdr.usage().requests, 2);
    assert!(
        error
            .chain()
            .contains("Parameter … of … with … is not supported"),
        "{}",
        error.chain()
    );
    let wire = Wire::start(|_, _| reply(422, "", r#"{"message":"query limit exceeded"}"#)).await;
    let cdr = wire.cdr();
    let error = cdr.census(&everything()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    assert!(error.chain().contains("422"), "{}", error.chain());
    assert!(
        error.chain().contains("query limit exceeded"),
        "{}",
        error.chain()
    );
    assert!(error.help().unwrap().contains("max-fetch"));
    assert!(cdr.usage().requests <= 20);
}

#[tokio::test]
async fn a_template_is_asked_for_by_a_path_that_every_server_takes() {
    let strict = |line: &str| {
        line.split(' ')
            .nth(1)
            .unwrap()
            .contains(['[', ']', '|', '^', '`', '{', '}', '<', '>', '"', '\\'])
    };
    let wire = Wire::start(move |_, request| match strict(&request.line) {
        true => reply(400, "", "bad request"),
        false => json(r#"{"templateId":"x"}"#),
    })
    .await;
    let cdr = wire.cdr();
    for name in ["Vitals [draft]", "a|b", "x^y", "`{<\">}\\", "a;b", "ü ß"] {
        cdr.web_template(&TemplateId::new(name)).await.unwrap();
    }
    assert!(wire.requests()[0].line.contains("/Vitals%20%5Bdraft%5D "));
}

#[tokio::test]
async fn a_checked_source_believes_no_row_that_nobody_asked_for() {
    let text = cells(&world_with(row(1, "2026-11-23T03:50:12.2Z")), 6);
    let wire = Wire::start(move |_, _| json(&text)).await;
    let source = CheckedSource::new(std::sync::Arc::new(wire.cdr()));
    let scope = Scope {
        templates: vec![TemplateId::new("another")],
        ..everything()
    };
    let error = source.page(&scope, None, 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUntrue);
    assert!(error.chain().contains("condition on the template"));
    let late = Scope {
        window: Window {
            from: Instant::parse("2027-01-01T00:00:00Z").unwrap(),
            to: Instant::MAX,
        },
        ..everything()
    };
    assert!(source.page(&late, None, 9).await.is_err());
    assert!(source.page(&everything(), None, 9).await.is_ok());
}
