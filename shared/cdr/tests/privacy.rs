//! Nothing of a patient and no secret leaves by an error or a log, whatever goes wrong. Its own program, because
//! it listens to everything that all crates of the process log.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod wire;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atlas_cdr::{Auth, Cdr, Config, Oidc};
use atlas_engine::Error;
use atlas_engine::model::{Cursor, Meta, Scope, Window};
use atlas_engine::ports::{Compositions, Definitions, FlatOracle};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid};
use atlas_openehr::time::Instant;
use tracing_subscriber::fmt::MakeWriter;
use wire::{EHR, Reply, SECRET, Step, UID, Wire, head, json, reply, table};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// A piece of content, in each answer.
const CONTENT: &str = "hypertension-of-a-synthetic-patient";
const TIME: &str = "2019-07-08T09:10:11.121314Z";

/// All that can be asked.
async fn ask_everything(cdr: &Cdr) -> Vec<Error> {
    let at = Instant::parse(TIME).unwrap();
    let scope = Scope {
        templates: vec![TemplateId::new("vitals")],
        ehrs: vec![EhrId::new(EHR)],
        window: Window {
            from: at,
            to: Instant::MAX,
        },
    };
    let after = Cursor {
        committed: at,
        object: ObjectId::new(UID),
        position: None,
    };
    let meta = Meta {
        uid: VersionUid::parse(&format!("{UID}::sys::1")).unwrap(),
        ehr: EhrId::new(EHR),
        template: TemplateId::new("vitals"),
        committed: at,
        position: None,
        change_type: "creation".to_owned(),
    };
    [
        cdr.census(&scope).await.err(),
        cdr.count(&scope).await.err(),
        cdr.page(&scope, Some(&after), 5).await.err(),
        cdr.list(&scope, Some(&after), 5).await.err(),
        cdr.fetch(&scope, &[ObjectId::new(UID)]).await.err(),
        cdr.templates().await.err(),
        cdr.web_template(&TemplateId::new("vitals")).await.err(),
        cdr.flat(&meta).await.err(),
        cdr.server_info().await.err(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn replies() -> Vec<Reply> {
    let echo = format!(r#"{{"error":"x","message":"{CONTENT} {UID} {EHR} {SECRET}"}}"#);
    let row =
        format!(r#"["{UID}::sys::1","{TIME}x","{EHR}","vitals","{CONTENT}",{{"a":"{CONTENT}"}}]"#);
    let mut replies: Vec<Reply> = [400, 401, 403, 404, 429, 500, 503]
        .map(|status| reply(status, "", &echo))
        .into();
    replies.extend([
        json(&echo),
        json(&table(6, &row)),
        json(&table(5, &row)),
        json(&format!("{echo}{echo}")),
        reply(200, "", format!("<html>{echo}")),
        reply(
            302,
            &format!("Location: http://127.0.0.1:1/{EHR}/{UID}\r\n"),
            "",
        ),
        vec![
            Step::Send([head(200, "Content-Length: 9999\r\n"), echo.into_bytes()].concat()),
            Step::Hang,
        ],
        vec![
            Step::Send(head(200, "Content-Length: 10\r\n")),
            Step::Pause(Duration::from_secs(60)),
        ],
        vec![Step::Pause(Duration::from_secs(60))],
        vec![Step::Hang],
    ]);
    replies
}

#[tokio::test]
async fn no_id_no_content_and_no_secret_is_in_any_error_or_log() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    let mut texts = Vec::new();
    for reply in replies() {
        let wire = Wire::start(
            move |_, request| match request.line.starts_with("POST /token ") {
                true => json(&format!(r#"{{"access_token":"{SECRET}-token"}}"#)),
                false => reply.clone(),
            },
        )
        .await;
        let basic = Auth::Basic {
            user: "reader".to_owned(),
            password: SECRET.into(),
        };
        let oidc = Auth::Oidc(Oidc {
            token_url: format!("http://{}/token", wire.address),
            client_id: "atlas".to_owned(),
            client_secret: Some(SECRET.into()),
            scope: None,
            user: Some(("reader".to_owned(), SECRET.into())),
        });
        for auth in [
            basic,
            Auth::Bearer {
                token: SECRET.into(),
            },
            oidc,
        ] {
            let mut config = Config {
                auth,
                timeout: Duration::from_millis(60),
                ..wire.config()
            };
            config.retry.max_retries = 1;
            config.retry.max_delay = Duration::from_millis(5);
            texts.push(format!("{config:?}"));
            let errors = ask_everything(&Cdr::connect(config).unwrap()).await;
            assert!(errors.len() >= 6, "{errors:?}");
            for error in errors {
                texts.extend([error.chain(), format!("{error:?}"), format!("{error:#?}")]);
                texts.extend(error.help().map(str::to_owned));
            }
        }
    }
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("atlas_cdr"), "nothing was logged");
    assert!(
        logged.contains("hyper_util"),
        "the log of other crates was not heard"
    );
    texts.push(logged);
    // Base64 of "reader:<secret>", as basic authentication sends it, without its end.
    for private in [
        UID,
        EHR,
        SECRET,
        CONTENT,
        "2019-07-08",
        "cmVhZGVyOnBhNTUt",
        "query_parameters",
    ] {
        for text in &texts {
            assert!(!text.contains(private), "{private} in {text}");
        }
    }
}
