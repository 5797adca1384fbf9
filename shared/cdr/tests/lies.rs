//! Numbers and names that no honest server answers: none is reckoned with, shown or believed.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod wire;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atlas_cdr::{Auth, Cdr, Config, Oidc};
use atlas_engine::model::{Scope, Window};
use atlas_engine::ports::{Compositions, Definitions};
use atlas_engine::{Error, ErrorKind};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use wire::{Wire, head, json, page, reply, table};

fn scope() -> Scope {
    Scope {
        templates: vec![TemplateId::new("vitals")],
        ehrs: Vec::new(),
        window: Window {
            from: Instant::EPOCH,
            to: Instant::MAX,
        },
    }
}

/// A server that answers everything with this.
async fn saying(body: impl Into<String>) -> Wire {
    let body = body.into();
    Wire::start(move |_, _| json(&body)).await
}

/// How many tokens two reads need, one after the other.
async fn tokens_of_two_reads(expires_in: &str) -> usize {
    let token = format!(r#"{{"access_token":"t","token_type":"Bearer"{expires_in}}}"#);
    let wire = Wire::start(
        move |_, request| match request.line.starts_with("POST /token ") {
            true => json(&token),
            false => json(&page(1)),
        },
    )
    .await;
    let auth = Auth::Oidc(Oidc {
        token_url: format!("http://{}/token", wire.address),
        client_id: "atlas".to_owned(),
        client_secret: None,
        scope: None,
        user: None,
    });
    let cdr = Cdr::connect(Config {
        auth,
        ..wire.config()
    })
    .unwrap();
    for _ in 0..2 {
        let read = cdr.page(&scope(), None, 500).await;
        assert_eq!(read.unwrap().rows.len(), 1, "{expires_in}");
    }
    let is_token = |line: &str| line.starts_with("POST /token ");
    let requests = wire.requests();
    requests
        .iter()
        .filter(|request| is_token(&request.line))
        .count()
}

#[tokio::test]
async fn whatever_a_provider_says_about_its_token_the_token_is_used() {
    for expires_in in [
        "",
        r#","expires_in":3600"#,
        r#","expires_in":3600.5"#,
        r#","expires_in":3.6e3"#,
        r#","expires_in":"3600""#,
        r#","expires_in":" 3600 ""#,
        r#","expires_in":18446744073709551615"#,
        r#","expires_in":18446744073709551616"#,
        r#","expires_in":99999999999999999999999999999999999999999"#,
        r#","expires_in":1e999"#,
        r#","expires_in":"inf""#,
        // No number of seconds: as if it were not said.
        r#","expires_in":-1"#,
        r#","expires_in":-9223372036854775808"#,
        r#","expires_in":-1e999"#,
        r#","expires_in":"soon""#,
        r#","expires_in":"NaN""#,
        r#","expires_in":"""#,
        r#","expires_in":null"#,
        r#","expires_in":true"#,
        r#","expires_in":[3600]"#,
        r#","expires_in":{"seconds":3600}"#,
    ] {
        assert_eq!(tokens_of_two_reads(expires_in).await, 1, "{expires_in}");
    }
    for expires_in in [
        r#","expires_in":0"#,
        r#","expires_in":"0""#,
        r#","expires_in":1e-9"#,
    ] {
        assert_eq!(tokens_of_two_reads(expires_in).await, 2, "{expires_in}");
    }
}

#[tokio::test]
async fn counts_end_where_no_server_holds_more() {
    for (count, expected) in [
        ("0", Ok(0)),
        ("5", Ok(5)),
        ("10000000000", Ok(10_000_000_000)),
        ("10000000001", Err(ErrorKind::SourceUntrue)),
        ("1000000000000000", Err(ErrorKind::SourceUntrue)),
        ("9223372036854775807", Err(ErrorKind::SourceUntrue)),
        ("9223372036854775808", Err(ErrorKind::SourceUntrue)),
        ("18446744073709551616", Err(ErrorKind::SourceUntrue)),
        (
            "99999999999999999999999999999999999",
            Err(ErrorKind::SourceUntrue),
        ),
        ("-1", Err(ErrorKind::SourceUnsupported)),
        ("-9223372036854775808", Err(ErrorKind::SourceUnsupported)),
        ("1.5", Err(ErrorKind::SourceUnsupported)),
        ("1e3", Err(ErrorKind::SourceUnsupported)),
        ("\"5\"", Err(ErrorKind::SourceUnsupported)),
        ("null", Err(ErrorKind::SourceUnsupported)),
        ("[5]", Err(ErrorKind::SourceUnsupported)),
    ] {
        let wire = saying(table(1, &format!("[{count}]"))).await;
        let counted = wire.cdr().count(&scope()).await;
        assert_eq!(counted.map_err(|error| error.kind()), expected, "{count}");
        let time = "2020-01-01T00:00:00Z";
        let line = format!(r#"["vitals",{count},"{time}","{time}"]"#);
        let wire = saying(table(4, &line)).await;
        let census = wire.cdr().census(&scope()).await;
        let counted = census.map(|census| census.lines.iter().map(|line| line.count).sum());
        match expected {
            // A line about nothing is no line.
            Ok(0) => assert!(counted.is_err()),
            _ => assert_eq!(counted.map_err(|error| error.kind()), expected, "{count}"),
        }
    }
}

#[tokio::test]
async fn times_at_the_ends_of_the_calendar_are_no_trouble() {
    for (first, last) in [
        ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        (
            "9999-12-31T23:59:59.999999999Z",
            "9999-12-31T23:59:59.999999999Z",
        ),
    ] {
        let wire = saying(table(4, &format!(r#"["vitals",1,"{first}","{last}"]"#))).await;
        // Whether it is believed is another question.
        let _ = wire.cdr().census(&scope()).await;
        let cdr = Cdr::connect(Config {
            max_clock_skew: Duration::MAX,
            ..wire.config()
        });
        let census = cdr.unwrap().census(&scope()).await.unwrap();
        assert!(census.lines[0].last.successor() > Instant::EPOCH);
    }
}

/// A census of one template whose last commit is `last`, with a `Date` of its own.
async fn census_at(date: &'static str, last: &str) -> Result<(), Error> {
    let body = table(
        4,
        &format!(r#"["vitals",5,"2020-01-01T00:00:00Z","{last}"]"#),
    );
    let bytes = format!(
        "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let wire = Wire::start(move |_, _| vec![wire::Step::Send(bytes.clone().into_bytes())]).await;
    wire.cdr().census(&scope()).await.map(|_| ())
}

#[tokio::test]
async fn a_clock_before_the_servers_own_commits_is_not_believed() {
    for date in [
        "Thu, 01 Jan 1970 00:10:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Wed, 01 Jan 2020 00:00:00 GMT",
    ] {
        let error = census_at(date, "2023-11-14T22:13:20Z").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUntrue, "{date}");
        assert!(error.chain().contains("clock"), "{}", error.chain());
        assert!(
            error
                .help()
                .unwrap()
                .contains("openehr.max_clock_skew_seconds")
        );
    }
    // Behind, or ahead, without a contrary: that is told in the log, and goes on.
    census_at("Wed, 01 Jan 2020 01:00:00 GMT", "2020-01-01T01:04:00Z")
        .await
        .unwrap();
    census_at("Thu, 01 Jan 2099 00:00:00 GMT", "2023-11-14T22:13:20Z")
        .await
        .unwrap();
}

#[tokio::test]
async fn one_wrong_commit_time_does_not_stop_a_server_whose_clock_is_right() {
    let body = table(
        4,
        r#"["vitals",5,"2020-01-01T00:00:00Z","2099-01-01T00:00:00Z"]"#,
    );
    let wire = Wire::start(move |_, _| {
        let now = jiff::fmt::rfc2822::DateTimePrinter::new();
        let now = now
            .timestamp_to_rfc9110_string(&jiff::Timestamp::now())
            .unwrap();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nDate: {now}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        vec![wire::Step::Send(answer.into_bytes())]
    })
    .await;
    wire.cdr().census(&scope()).await.unwrap();
}

#[tokio::test]
async fn an_answer_of_hardly_anything_but_values_is_too_large() {
    for (what, unit) in [
        ("numbers", "1,"),
        ("lists", "[],"),
        ("objects", "{},"),
        ("texts", "\"\","),
        ("members", "{\"a\":1},"),
    ] {
        let values = unit.repeat((5 << 20) / unit.len());
        let row =
            format!(r#"["a::s::1","2020-01-01T00:00:00Z","e","vitals","creation",[{values}1]]"#);
        let wire = saying(table(6, &row)).await;
        let error = wire.cdr().page(&scope(), None, 500).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceTooLarge, "{what}");
        assert!(error.chain().contains("values"), "{}", error.chain());
    }
    // As large, and like a composition.
    let element = r#"{"_type":"DV_QUANTITY","magnitude":72.5,"units":"/min","name":"a, [text] {with: marks}"},"#;
    let values = element.repeat((5 << 20) / element.len());
    let row = format!(
        r#"["a::s::1","2020-01-01T00:00:00Z","e","vitals","creation",{{"content":[{values}1]}}]"#
    );
    let wire = saying(table(6, &row)).await;
    let read = wire.cdr().page(&scope(), None, 500).await.unwrap();
    assert_eq!(read.rows.len(), 1);
}

#[tokio::test]
async fn a_web_template_has_a_limit_of_its_own() {
    let template = TemplateId::new("vitals");
    let fitting = format!(r#"{{"a":"{}"}}"#, "x".repeat((2 << 20) - 100));
    let wire = saying(fitting).await;
    wire.cdr().web_template(&template).await.unwrap();
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(2 << 20));
    let wire = saying(large).await;
    let config = Config {
        // What a composition may have does not matter.
        body_limit: 100 << 20,
        ..wire.config()
    };
    let cdr = Cdr::connect(config).unwrap();
    let error = cdr.web_template(&template).await.unwrap_err();
    // The next template need not be so large.
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    assert!(error.help().unwrap().contains("canonical"));
    assert!(!error.kind().bisects());
}

#[tokio::test]
async fn a_length_that_lies_takes_no_memory_and_ends() {
    for length in [
        "1000000000000000000",
        "18446744073709551615",
        "18446744073709551616",
        "-1",
    ] {
        let asked = AtomicUsize::new(0);
        let wire = Wire::start(move |_, _| {
            asked.fetch_add(1, Ordering::SeqCst);
            let head = head(200, &format!("Content-Length: {length}\r\n"));
            vec![wire::Step::Send(head), wire::Step::Hang]
        })
        .await;
        let error = wire.cdr().page(&scope(), None, 500).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable, "{length}");
    }
}

#[tokio::test]
async fn a_pause_that_is_asked_for_has_an_end() {
    for after in [
        "99999999999999999999",
        "18446744073709551615",
        "Tue, 01 Jan 2999 00:00:00 GMT",
    ] {
        let wire =
            Wire::start(move |_, _| reply(503, &format!("Retry-After: {after}\r\n"), "")).await;
        let error = wire.cdr().page(&scope(), None, 500).await.unwrap_err();
        let ErrorKind::SourceBusy { retry_after } = error.kind() else {
            panic!("{after}: {error:?}");
        };
        assert!(
            retry_after.unwrap() <= Duration::from_secs(366 * 24 * 3_600),
            "{after}"
        );
        assert_eq!(wire.requests().len(), 1);
    }
}

#[tokio::test]
async fn only_a_version_is_shown_as_a_version() {
    for (said, shown) in [
        ("2.16.0", Some("2.16.0")),
        ("2.0.0-SNAPSHOT+b7_1", Some("2.0.0-SNAPSHOT+b7_1")),
        ("2\\u001b]0;OWNED\\u0007", None),
        ("2.16.0\\n2026-01-01 ERROR forged", None),
        ("2\\u009b31m", None),
        ("2.0\\u202e", None),
        ("2.0 for Jane Doe", None),
        ("Jane", None),
        ("", None),
    ] {
        let wire = saying(format!(r#"{{"ehrbase_version":"{said}"}}"#)).await;
        let info = wire.cdr().server_info().await.unwrap();
        assert_eq!(info.version.as_deref(), shown, "{said}");
        assert!(info.vendor.is_some());
    }
    let wire = saying(format!(r#"{{"ehrbase_version":"{}"}}"#, "1".repeat(41))).await;
    assert_eq!(wire.cdr().server_info().await.unwrap().version, None);
}
