//! What Atlas makes of a server, a proxy or a network that does not behave.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod wire;

use std::time::{Duration, Instant as Moment};

use atlas_cdr::{Auth, Cdr, Config, Oidc};
use atlas_engine::model::{Page, Scope, Window};
use atlas_engine::ports::{Compositions, Definitions, Source};
use atlas_engine::{Error, ErrorKind};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use wire::{EHR, Reply, SECRET, Step, UID, Wire, head, json, page, reply, table};

fn scope() -> Scope {
    Scope {
        templates: vec![TemplateId::new("vitals")],
        ehrs: vec![EhrId::new(EHR)],
        window: Window {
            from: Instant::EPOCH,
            to: Instant::MAX,
        },
    }
}

async fn read(cdr: &Cdr) -> Result<Page, Error> {
    cdr.page(&scope(), None, 500).await
}

/// Fails as often as told, then answers a page.
async fn failing(times: usize, failure: impl Fn() -> Reply + Send + Sync + 'static) -> Wire {
    Wire::start(move |number, _| {
        if number < times {
            failure()
        } else {
            json(&page(3))
        }
    })
    .await
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[tokio::test]
async fn what_passes_is_tried_again() {
    for status in [408, 425, 429, 502, 503, 504] {
        let wire = failing(3, move || reply(status, "", "{}")).await;
        let cdr = wire.cdr();
        assert_eq!(read(&cdr).await.unwrap().rows.len(), 3, "{status}");
        assert_eq!(wire.requests().len(), 4);
        assert_eq!(cdr.usage().requests, 4);
    }
}

#[tokio::test]
async fn what_does_not_pass_is_not_tried_again() {
    for (status, kind) in [
        (400, ErrorKind::SourceUnsupported),
        (401, ErrorKind::SourceDenied),
        (403, ErrorKind::SourceDenied),
        (404, ErrorKind::SourceUnsupported),
        (406, ErrorKind::SourceUnsupported),
        (422, ErrorKind::SourceUnsupported),
        (500, ErrorKind::SourceUnreadable),
        (501, ErrorKind::SourceUnsupported),
    ] {
        let wire = failing(1, move || reply(status, "", "{}")).await;
        assert_eq!(
            read(&wire.cdr()).await.unwrap_err().kind(),
            kind,
            "{status}"
        );
        assert_eq!(wire.requests().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_500_without_content_is_tried_again_and_then_a_server_that_is_down() {
    let wire = Wire::start(|_, _| reply(500, "", "{}")).await;
    let cdr = wire.cdr();
    for failed in [
        cdr.census(&scope()).await.err(),
        cdr.count(&scope()).await.err(),
        cdr.list(&scope(), None, 5).await.err(),
        cdr.templates().await.err(),
    ] {
        assert_eq!(
            failed.map(|error| error.kind()),
            Some(ErrorKind::SourceUnreachable)
        );
    }
    assert_eq!(wire.requests().len(), 4 * 4);
}

#[tokio::test]
async fn the_pause_a_server_asks_for_is_kept() {
    let wire = failing(1, || reply(429, "Retry-After: 1\r\n", "")).await;
    let started = Moment::now();
    read(&wire.cdr()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_pause_may_be_a_date_of_the_servers_clock_and_outlasts_the_longest_wait() {
    // The wire's Date is 20:35:38.
    let wire = failing(1, || {
        reply(503, "Retry-After: Mon, 23 Nov 2026 20:35:39 GMT\r\n", "")
    })
    .await;
    let cdr = Cdr::connect(with(wire.config(), |config| {
        config.retry.max_delay = Duration::from_millis(5);
    }))
    .unwrap();
    let started = Moment::now();
    read(&cdr).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(wire.requests().len(), 2);
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_for_long_is_not_asked_again() {
    for (header, seconds) in [
        ("Retry-After: 601\r\n", 601),
        ("Retry-After: 86400\r\n", 86_400),
        ("Retry-After: Mon, 23 Nov 2026 21:35:38 GMT\r\n", 3600),
    ] {
        let wire = Wire::start(move |_, _| reply(429, header, "")).await;
        let error = read(&wire.cdr()).await.unwrap_err();
        let retry_after = Some(Duration::from_secs(seconds));
        assert_eq!(error.kind(), ErrorKind::SourceBusy { retry_after });
        assert_eq!(wire.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_caller_without_time_ends_the_pause() {
    let wire = Wire::start(|_, _| reply(503, "Retry-After: 300\r\n", "")).await;
    let cdr = wire.cdr();
    let mut reading = Box::pin(read(&cdr));
    while cdr.usage().busy == 0 {
        assert!(futures::poll!(&mut reading).is_pending());
        tokio::task::yield_now().await;
    }
    drop(reading);
    assert_eq!(cdr.usage().requests, 1);
}

#[tokio::test]
async fn a_server_that_stays_busy_says_how_long_to_wait() {
    let wire = Wire::start(|_, _| reply(503, "Retry-After: 7\r\n", "")).await;
    let cdr = Cdr::connect(with(wire.config(), |config| config.retry.max_retries = 0)).unwrap();
    let error = read(&cdr).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::SourceBusy {
            retry_after: Some(Duration::from_secs(7))
        }
    );
}

#[tokio::test]
async fn a_body_that_is_cut_is_asked_for_again() {
    let text = page(3);
    let half = text.as_bytes()[..text.len() / 2].to_vec();
    let declared = format!("Content-Length: {}\r\n", text.len());
    let cuts: [Reply; 4] = [
        // Shorter than declared.
        vec![
            Step::Send([head(200, &declared), half.clone()].concat()),
            Step::Hang,
        ],
        // A chunk that ends early, and a missing last chunk.
        vec![
            Step::Send([head(200, CHUNKED), b"ffff\r\n".to_vec(), half.clone()].concat()),
            Step::Hang,
        ],
        vec![
            Step::Send([head(200, CHUNKED), chunk(&half)].concat()),
            Step::Hang,
        ],
        // Nothing declared: only the JSON knows.
        vec![
            Step::Send([head(200, "Connection: close\r\n"), half].concat()),
            Step::Hang,
        ],
    ];
    for cut in cuts {
        let wire = failing(2, move || cut.clone()).await;
        assert_eq!(read(&wire.cdr()).await.unwrap().rows.len(), 3);
        assert_eq!(wire.requests().len(), 3);
    }
}

#[tokio::test]
async fn a_connection_that_ends_before_the_answer_is_tried_again() {
    let wire = failing(2, || vec![Step::Hang]).await;
    assert_eq!(read(&wire.cdr()).await.unwrap().rows.len(), 3);
}

#[tokio::test]
async fn a_server_that_lets_go_of_idle_connections_does_no_harm() {
    // Says keep-alive and hangs up after each answer.
    let wire = Wire::start(|_, _| {
        let mut answer = json(&page(1));
        answer.push(Step::Hang);
        answer
    })
    .await;
    let cdr = wire.cdr();
    for _ in 0..50 {
        read(&cdr).await.unwrap();
    }
}

#[tokio::test]
async fn connections_are_kept() {
    let wire = Wire::start(|_, _| json(&page(1))).await;
    let cdr = wire.cdr();
    for _ in 0..20 {
        read(&cdr).await.unwrap();
    }
    assert_eq!(wire.connections(), 1);
}

#[tokio::test]
async fn a_server_that_is_down_is_unreachable_after_all_attempts() {
    let wire = Wire::start(|_, _| json("{}")).await;
    let config = wire.config();
    drop(wire);
    let cdr = Cdr::connect(config).unwrap();
    let error = read(&cdr).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
    assert!(error.help().unwrap().contains("openehr.base_url"));
    assert_eq!(cdr.usage().requests, 4);
}

#[tokio::test]
async fn slow_and_endless_answers_end() {
    const LONG: Duration = Duration::from_secs(3600);
    let drip = |pause| {
        vec![
            Step::Send([head(200, CHUNKED), chunk(b"{\"rows\":[")].concat()),
            Step::Forever(chunk(b" "), pause),
        ]
    };
    let cases: [(Reply, &str); 3] = [
        (vec![Step::Pause(LONG)], "no answer within 300ms"),
        (
            vec![
                Step::Send([head(200, CHUNKED), chunk(b"{")].concat()),
                Step::Pause(LONG),
            ],
            "paused for longer than 150ms",
        ),
        (drip(Duration::from_millis(5)), "did not end within 300ms"),
    ];
    for (answer, expected) in cases {
        let wire = Wire::start(move |_, _| answer.clone()).await;
        let cdr = Cdr::connect(with(wire.config(), |config| {
            config.timeout = Duration::from_millis(300);
            config.retry.max_retries = 1;
        }))
        .unwrap();
        let error = read(&cdr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
        assert!(error.chain().contains(expected), "{}", error.chain());
        assert!(error.help().unwrap().contains("timeout_seconds"));
        assert_eq!(cdr.usage().requests, 2);
    }
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_given_up_before_it_is_read() {
    let endless = vec![
        Step::Send(head(200, CHUNKED)),
        Step::Forever(chunk(&[b' '; 4096]), Duration::ZERO),
    ];
    let declared = vec![
        Step::Send(head(200, "Content-Length: 999999999\r\n")),
        Step::Forever(vec![b' '; 4096], Duration::ZERO),
    ];
    for answer in [endless, declared] {
        let wire = Wire::start(move |_, _| answer.clone()).await;
        let cdr = Cdr::connect(with(wire.config(), |config| config.body_limit = 1 << 20)).unwrap();
        assert_eq!(
            read(&cdr).await.unwrap_err().kind(),
            ErrorKind::SourceTooLarge
        );
        assert_eq!(cdr.usage().requests, 1);
        // One piece more than the limit at most; a piece is what the connection holds at once.
        assert!(cdr.usage().bytes < 3 << 20);
    }
}

#[tokio::test]
async fn an_answer_as_large_as_the_limit_is_taken() {
    let text = page(40);
    let length = text.len();
    let wire = Wire::start(move |_, _| json(&text)).await;
    for (limit, kind) in [
        (length, None),
        (length - 1, Some(ErrorKind::SourceTooLarge)),
    ] {
        let cdr = Cdr::connect(with(wire.config(), |config| config.body_limit = limit)).unwrap();
        assert_eq!(read(&cdr).await.err().map(|error| error.kind()), kind);
    }
}

#[tokio::test]
async fn what_is_no_openehr_server_is_told_so() {
    for answer in [
        reply(
            200,
            "Content-Type: text/html\r\n",
            "<!doctype html><title>Sign in</title>",
        ),
        reply(302, "Location: http://127.0.0.1:9/login\r\n", ""),
        json("[]"),
        json("{}"),
        json("null"),
        json(r#"{"columns":[],"rows":[]}"#),
        json(&table(6, r#"["a"]"#)),
        json(&table(6, r#"{}"#)),
        json(&table(6, r#"["a","b","c","d","e",{}]"#)),
        json(&table(
            6,
            &format!(r#"["{UID}::s::1","yesterday","{EHR}","t","c",{{}}]"#),
        )),
    ] {
        let shown = format!("{answer:?}");
        let wire = Wire::start(move |_, _| answer.clone()).await;
        let cdr = wire.cdr();
        let error = read(&cdr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnsupported, "{shown}");
        assert!(
            error.help().unwrap().contains("openehr.base_url"),
            "{shown}"
        );
        assert_eq!(cdr.usage().requests, 1, "{shown}");
    }
}

#[tokio::test]
async fn one_composition_that_breaks_the_json_of_its_page_is_unreadable() {
    let broken = page(3).replacen(
        r#"{"_type":"COMPOSITION"}"#,
        r#"{"_type":"COMPOSITION\q"}"#,
        1,
    );
    let mut binary = page(3).into_bytes();
    let place = binary.len() - 8;
    binary[place] = 0xff;
    let missing = page(3).replacen(r#"{"_type":"COMPOSITION"}"#, "null", 1);
    for answer in [json(&broken), reply(200, "", binary), json(&missing)] {
        let wire = Wire::start(move |_, _| answer.clone()).await;
        assert_eq!(
            read(&wire.cdr()).await.unwrap_err().kind(),
            ErrorKind::SourceUnreadable
        );
        assert_eq!(wire.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_census_needs_the_servers_clock() {
    let empty = table(4, "");
    let bare = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{empty}",
        empty.len()
    );
    let wire = Wire::start(move |number, _| match number {
        0 => json(&empty),
        _ => vec![Step::Send(bare.clone().into_bytes())],
    })
    .await;
    let cdr = wire.cdr();
    let census = cdr.census(&scope()).await.unwrap();
    assert_eq!(
        census.server_time.to_string(),
        "2026-11-23T20:35:38.000000Z"
    );
    let error = cdr.census(&scope()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    assert!(error.help().unwrap().contains("Date"));
}

#[tokio::test]
async fn gzip_is_offered_and_counted_unpacked() {
    let text = page(3);
    let packed = gzip(text.as_bytes());
    assert_ne!(packed.len(), text.len());
    let wire = Wire::start(move |_, _| reply(200, "Content-Encoding: gzip\r\n", &packed)).await;
    let cdr = wire.cdr();
    let page = read(&cdr).await.unwrap();
    assert_eq!(page.text, text);
    assert_eq!(cdr.usage().bytes, text.len() as u64);
    assert!(
        wire.requests()[0]
            .header("accept-encoding")
            .unwrap()
            .contains("gzip")
    );
}

#[tokio::test]
async fn values_travel_as_parameters_never_in_the_query() {
    let wire = Wire::start(|_, _| json(&table(6, ""))).await;
    let cdr = wire.cdr();
    let scope = Scope {
        templates: vec![TemplateId::new("a'b"), TemplateId::new("c\"d}")],
        ..scope()
    };
    let after = atlas_engine::model::Cursor {
        committed: Instant::parse("2026-11-23T03:50:12.5Z").unwrap(),
        object: ObjectId::new(UID),
        position: None,
    };
    cdr.page(&scope, Some(&after), 77).await.unwrap();
    cdr.fetch(&scope, &[ObjectId::new(UID), ObjectId::new(EHR)])
        .await
        .unwrap();
    let asked: Vec<serde_json::Value> = wire
        .requests()
        .iter()
        .map(|request| serde_json::from_str(&request.body).unwrap())
        .collect();
    let page = &asked[0];
    assert_eq!(page["fetch"], 77);
    assert_eq!(page["query_parameters"]["t0"], "a'b");
    assert_eq!(page["query_parameters"]["t1"], "c\"d}");
    assert_eq!(page["query_parameters"]["e0"], EHR);
    assert_eq!(page["query_parameters"]["uid"], UID);
    assert_eq!(
        page["query_parameters"]["after"],
        "2026-11-23T03:50:12.500000Z"
    );
    for query in &asked {
        let text = query["q"].as_str().unwrap();
        for value in ["a'b", "c\"d", EHR, UID, "2026"] {
            assert!(!text.contains(value), "{text}");
        }
    }
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_allowed() {
    let wire = Wire::start(|_, _| {
        let mut answer = vec![Step::Pause(Duration::from_millis(30))];
        answer.extend(json(&page(1)));
        answer
    })
    .await;
    let cdr = Cdr::connect(with(wire.config(), |config| config.parallel = 2)).unwrap();
    let cdr = std::sync::Arc::new(cdr);
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let cdr = std::sync::Arc::clone(&cdr);
            tokio::spawn(async move { read(&cdr).await.unwrap().rows.len() })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), 1);
    }
    assert_eq!(wire.most_at_once(), 2);
}

#[tokio::test]
async fn each_kind_of_credentials_is_sent() {
    let wire = Wire::start(|_, _| json(&page(1))).await;
    let basic = Auth::Basic {
        user: "reader".to_owned(),
        password: "geheim äöü".into(),
    };
    for auth in [
        Auth::None,
        basic,
        Auth::Bearer {
            token: SECRET.into(),
        },
    ] {
        let cdr = Cdr::connect(with(wire.config(), |config| config.auth = auth)).unwrap();
        read(&cdr).await.unwrap();
    }
    let requests = wire.requests();
    let sent: Vec<Option<&str>> = requests
        .iter()
        .map(|request| request.header("authorization"))
        .collect();
    let bearer = format!("Bearer {SECRET}");
    assert_eq!(
        sent,
        [
            None,
            Some("Basic cmVhZGVyOmdlaGVpbSDDpMO2w7w="),
            Some(bearer.as_str())
        ]
    );
}

#[tokio::test]
async fn credentials_that_fit_into_no_header_are_refused_at_once() {
    for auth in [
        Auth::Bearer {
            token: format!("{SECRET}\n").into(),
        },
        Auth::Basic {
            user: "a:b".to_owned(),
            password: SECRET.into(),
        },
    ] {
        let error = Cdr::connect(Config {
            auth,
            ..Config::new("http://h/ehrbase")
        })
        .err()
        .unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(!error.chain().contains(SECRET));
    }
}

/// An identity provider and a CDR on one port. The n-th token is `token-n`, valid for `seconds`.
async fn provider(seconds: &'static str, refused: &'static str) -> Wire {
    let issued = std::sync::atomic::AtomicUsize::new(0);
    Wire::start(move |_, request| {
        if request.line.starts_with("POST /token ") {
            let number = issued.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            return json(&format!(
                r#"{{"access_token":"token-{number}","token_type":"Bearer"{seconds}}}"#
            ));
        }
        match request.header("authorization") {
            Some(header) if header == refused => reply(401, "", ""),
            Some(header) if header.starts_with("Bearer token-") => json(&page(1)),
            _ => reply(401, "", ""),
        }
    })
    .await
}

fn oidc(wire: &Wire, user: Option<(String, secrecy::SecretString)>) -> Cdr {
    Cdr::connect(with(wire.config(), |config| {
        config.auth = Auth::Oidc(Oidc {
            token_url: format!("http://{}/token", wire.address),
            client_id: "atlas app".to_owned(),
            client_secret: Some("s3:cret".into()),
            scope: Some("cdr.read offline".to_owned()),
            user,
        });
    }))
    .unwrap()
}

fn tokens(wire: &Wire) -> usize {
    wire.requests()
        .iter()
        .filter(|request| request.line.starts_with("POST /token "))
        .count()
}

#[tokio::test]
async fn a_token_is_fetched_once_and_kept() {
    let wire = provider(r#","expires_in":3600"#, "").await;
    let cdr = std::sync::Arc::new(oidc(&wire, None));
    let readers: Vec<_> = (0..6)
        .map(|_| {
            let cdr = std::sync::Arc::clone(&cdr);
            tokio::spawn(async move { read(&cdr).await.unwrap().rows.len() })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), 1);
    }
    assert_eq!(tokens(&wire), 1);
    let token = &wire.requests()[0];
    assert_eq!(
        token.body,
        "grant_type=client_credentials&scope=cdr.read+offline"
    );
    // atlas+app:s3%3Acret
    assert_eq!(
        token.header("authorization"),
        Some("Basic YXRsYXMrYXBwOnMzJTNBY3JldA==")
    );
    assert_eq!(
        cdr.usage().requests,
        6,
        "the identity provider is not the source"
    );
}

#[tokio::test]
async fn a_user_name_makes_it_the_password_grant() {
    let wire = provider("", "").await;
    read(&oidc(&wire, Some(("ann".to_owned(), "p&w".into()))))
        .await
        .unwrap();
    assert_eq!(
        wire.requests()[0].body,
        "grant_type=password&username=ann&password=p%26w&scope=cdr.read+offline"
    );
}

#[tokio::test]
async fn a_token_that_says_to_be_good_for_ever_is_kept() {
    let wire = provider(r#","expires_in":18446744073709551615"#, "").await;
    let cdr = oidc(&wire, None);
    read(&cdr).await.unwrap();
    read(&cdr).await.unwrap();
    assert_eq!(tokens(&wire), 1);
}

#[tokio::test]
async fn a_token_that_ran_out_is_replaced_before_it_is_used() {
    let wire = provider(r#","expires_in":0"#, "").await;
    let cdr = oidc(&wire, None);
    read(&cdr).await.unwrap();
    read(&cdr).await.unwrap();
    assert_eq!(tokens(&wire), 2);
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_once() {
    let wire = provider(r#","expires_in":3600"#, "Bearer token-0").await;
    let cdr = oidc(&wire, None);
    read(&cdr).await.unwrap();
    read(&cdr).await.unwrap();
    assert_eq!(tokens(&wire), 2);
    let always = Wire::start(
        |_, request| match request.line.starts_with("POST /token ") {
            true => json(r#"{"access_token":"no-good"}"#),
            false => reply(401, "", ""),
        },
    )
    .await;
    let error = read(&oidc(&always, None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceDenied);
    assert_eq!(tokens(&always), 2);
}

#[tokio::test]
async fn a_client_the_provider_does_not_know_is_denied_with_its_fix() {
    for (status, kind, asked) in [
        (400, ErrorKind::SourceDenied, 1),
        (401, ErrorKind::SourceDenied, 1),
        (404, ErrorKind::SourceDenied, 1),
        (503, ErrorKind::SourceBusy { retry_after: None }, 4),
        (500, ErrorKind::SourceUnreachable, 4),
    ] {
        let wire =
            Wire::start(move |_, _| reply(status, "", r#"{"error":"invalid_client"}"#)).await;
        let error = read(&oidc(&wire, None)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}");
        assert!(error.help().unwrap().contains("client_secret"), "{status}");
        assert_eq!(tokens(&wire), asked, "{status}");
    }
    for answer in ["<html>", "{}", r#"{"access_token":"a\nb"}"#] {
        let wire = Wire::start(move |_, _| json(answer)).await;
        let error = read(&oidc(&wire, None)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
        assert!(error.help().unwrap().contains("openehr.oidc_token_url"));
    }
}

#[tokio::test]
async fn a_server_that_does_not_say_who_it_is_is_still_one() {
    let wire = Wire::start(|_, request| match request.line.contains("/rest/status") {
        true => reply(404, "", ""),
        false => json(r#"[{"template_id":"vitals"}]"#),
    })
    .await;
    let info = wire.cdr().server_info().await.unwrap();
    assert_eq!((info.vendor, info.version), (None, None));
    let wire = Wire::start(|_, _| reply(404, "", "")).await;
    let error = wire.cdr().server_info().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnsupported);
    assert!(error.help().unwrap().contains("/ehrbase"));
}

fn with(mut config: Config, change: impl FnOnce(&mut Config)) -> Config {
    change(&mut config);
    config
}

/// RFC 1952 around one stored block.
fn gzip(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    let mut checksum = !0_u32;
    for byte in data {
        checksum ^= u32::from(*byte);
        for _ in 0..8 {
            checksum = (checksum >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(checksum & 1));
        }
    }
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend(data);
    out.extend((!checksum).to_le_bytes());
    out.extend(u32::from(length).to_le_bytes());
    out
}
