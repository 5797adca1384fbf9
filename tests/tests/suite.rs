//! The function suite on both hosts, over queues of their own and over the clouds' emulators: what it copies equals what the
//! source shows, and what the command line writes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atlas_ehrbase::{Shared, shared};
use atlas_sample_cdr::{Handle, Running, Template};
use atlas_scenarios::hosted::{Cloud, Ended, Hosted, Queues, Wanted};
use atlas_scenarios::source::{next_second, of_ehrbase, of_sample, sample};
use atlas_scenarios::{Atlas, Kind, Row, assert_copy};
use reqwest::Method;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

/// Makes a test of each sentence for each host and each kind of queue.
macro_rules! on_every_host {
    ($($sentence:ident),+ $(,)?) => {
        on_every_host!(in azure_alone, Cloud::Azure, Queues::InProcess; $($sentence),+);
        on_every_host!(in azure_with_azurite, Cloud::Azure, Queues::Emulator; $($sentence),+);
        on_every_host!(in lambda_alone, Cloud::Lambda, Queues::InProcess; $($sentence),+);
        on_every_host!(in lambda_with_moto, Cloud::Lambda, Queues::Emulator; $($sentence),+);
    };
    (in $place:ident, $cloud:expr, $queues:expr; $($sentence:ident),+) => {
        mod $place {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $sentence() {
                super::$sentence($cloud, $queues).await;
            })+
        }
    };
}

on_every_host!(
    a_full_export_updates_and_idle_ticks_end_in_an_equal_copy,
    a_run_on_demand_beside_the_schedule_ends_by_itself,
    what_the_source_cannot_read_goes_to_quarantine_and_stops_nothing,
);

#[tokio::test(flavor = "multi_thread")]
async fn every_address_that_a_page_prints_is_answered_on_azure() {
    printed_addresses_are_answered(Cloud::Azure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_that_a_page_prints_is_answered_on_lambda() {
    printed_addresses_are_answered(Cloud::Lambda).await;
}

/// Calls what `docs/deploy` prints, and addresses beside it: those are told what there is.
async fn printed_addresses_are_answered(cloud: Cloud) {
    let (_server, _cdr, hosted) = start(cloud, Queues::InProcess, 3).await;
    let export = hosted
        .request(Method::POST, "/api/exports")
        .json(&json!({}));
    let run = hosted.answers(export, 202).await["run"].clone();
    let run = run.as_str().unwrap();
    let printed = printed_addresses();
    assert!(printed.len() >= 5, "{printed:?}");
    // Only a host of Azure has an admin interface.
    let printed = printed
        .into_iter()
        .filter(|(_, path)| cloud == Cloud::Azure || !path.starts_with("/admin/"));
    // A run is taken back last.
    let (last, first): (Vec<_>, Vec<_>) = printed.partition(|(method, _)| method == "DELETE");
    for (method, path) in first.into_iter().chain(last) {
        let method: Method = method.parse().unwrap();
        let path = path.replace("RUN", run);
        let request = hosted.request(method.clone(), &path);
        let request = match method {
            Method::POST => request.json(&json!({})),
            _ => request,
        };
        let status = request.send().await.unwrap().status();
        assert!(status.is_success(), "{method} {path}: {status}");
    }
    // Azure's host answers by itself what it has no function for, also where it is only the method.
    let wrong = match cloud {
        Cloud::Azure => vec![
            (Method::GET, "/api/watermarks"),
            (Method::GET, "/api/exports/a/b"),
            (Method::PUT, "/api/exports"),
            (Method::GET, "/export"),
            (Method::POST, "/admin/functions/plan"),
        ],
        Cloud::Lambda => ["/", "/api/watermarks", "/api/exports/a/b", "/watermark"]
            .map(|path| (Method::GET, path))
            .to_vec(),
    };
    for (method, path) in wrong {
        let answer = hosted.request(method, path).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        let text = answer.text().await.unwrap();
        for there in ["/api/exports", "{run", "/api/watermark"] {
            assert!(text.contains(there), "{path}: {text}");
        }
    }
    if cloud == Cloud::Lambda {
        let planned = hosted.invoke("planner", &printed_event()).await;
        assert_eq!(planned, Ended::Succeeded);
    }
    hosted.stop().await;
}

/// The event with which `aws.md` starts the planner, as a shell would write it.
fn printed_event() -> String {
    let page = atlas_scenarios::infra::root().join("docs/deploy/aws.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (before, event) = page.split_once("--payload \"").unwrap();
    assert!(before.contains("aws lambda invoke --function-name atlas-planner"));
    let (event, _) = event.split_once("\" /dev/stdout").unwrap();
    let event = event.replace("\\\"", "\"");
    let (head, rest) = event.split_once("$(date -u +%FT%TZ)").unwrap();
    let now = jiff::Timestamp::now().strftime("%FT%TZ");
    format!("{head}{now}{rest}")
}

/// Method and path of each address of the API in `docs/deploy`; the id of a run is `RUN`.
fn printed_addresses() -> BTreeSet<(String, String)> {
    let mut printed = BTreeSet::new();
    for page in ["aws.md", "azure.md", "server.md"] {
        let page = atlas_scenarios::infra::root()
            .join("docs/deploy")
            .join(page);
        for line in std::fs::read_to_string(page).unwrap().lines() {
            let found = ["/api/", "/admin/"].map(|begin| line.match_indices(begin));
            for (at, _) in found.into_iter().flatten() {
                let path = &line[at..];
                let end = path.find(|c: char| c.is_whitespace() || "`\"'|)".contains(c));
                let path = &path[..end.unwrap_or(path.len())];
                let path = match path.strip_prefix("/api/exports/") {
                    Some(_) => "/api/exports/RUN",
                    None => path,
                };
                let method = ["POST", "DELETE"]
                    .into_iter()
                    .find(|method| line.contains(&format!("-X {method}")));
                printed.insert((method.unwrap_or("GET").to_owned(), path.to_owned()));
            }
        }
    }
    printed
}

async fn start(cloud: Cloud, queues: Queues, compositions: u64) -> (Running, Handle, Hosted) {
    let server = sample(compositions).start().await.unwrap();
    let cdr = server.handle();
    let hosted = Wanted::new(cloud, queues, &server.base_url())
        .await
        .start()
        .await;
    (server, cdr, hosted)
}

/// Without what says who wrote a row and when.
async fn rows(store: &atlas_scenarios::Store) -> BTreeMap<String, Row> {
    let mut rows = store.rows().await;
    for row in rows.values_mut() {
        row.run_id.clear();
    }
    rows
}

async fn a_full_export_updates_and_idle_ticks_end_in_an_equal_copy(cloud: Cloud, queues: Queues) {
    let (server, cdr, hosted) = start(cloud, queues, 400).await;
    hosted.tick_and_work().await;
    assert_copy(hosted.store(), &of_sample(&cdr)).await;
    hosted.assert_settled().await;
    let worked = hosted.worked();
    // 7 slices of at most 60: whoever finishes one goes on with the next.
    assert!((1..=8).contains(&worked.len()), "{} messages", worked.len());
    assert!(
        worked.iter().all(|one| *one == Ended::Succeeded),
        "{worked:?}"
    );
    assert!(cdr.counters().most_at_once <= 2, "{:?}", cdr.counters());

    // The command line writes the same.
    let atlas = Atlas::new(Kind::Postgres, &server.base_url()).await;
    atlas.export(&[]).await.exits(0);
    let by_hand = rows(atlas.store()).await;
    let by_suite = rows(hosted.store()).await;
    assert_eq!(by_suite.len(), by_hand.len());
    for (id, row) in &by_hand {
        let same = &by_suite[id];
        assert_eq!(
            (&same.uid, &same.checksum, &same.content),
            (&row.uid, &row.checksum, &row.content)
        );
    }

    // An idle tick asks twice at most.
    cdr.advance(1_000 * SECOND);
    hosted.tick_and_work().await;
    let before = cdr.counters().requests;
    cdr.advance(1_000 * SECOND);
    hosted.tick_and_work().await;
    assert!(cdr.counters().requests - before <= 2);

    for number in 0..30 {
        cdr.update(number);
    }
    cdr.commit(Template::VitalSigns);
    cdr.advance(10 * SECOND);
    hosted.tick_and_work().await;
    assert_copy(hosted.store(), &of_sample(&cdr)).await;
    hosted.assert_settled().await;
    assert_eq!(hosted.report().await, Ended::Succeeded);
    let report = hosted
        .answers(hosted.request(Method::GET, "/api/watermark"), 200)
        .await;
    assert_eq!(
        report["slices"],
        json!({ "waiting": 0, "in_work": 0, "failed": 0 })
    );
    assert_eq!(report["slots"]["held"], 0);
    hosted.stop().await;
}

async fn a_run_on_demand_beside_the_schedule_ends_by_itself(cloud: Cloud, queues: Queues) {
    let (_server, cdr, hosted) = start(cloud, queues, 300).await;
    let ask = || {
        let request = hosted.request(Method::POST, "/api/exports");
        request
            .header("idempotency-key", "monday")
            .json(&json!({ "mode": "full" }))
    };
    let accepted = hosted.answers(ask(), 202).await;
    let run = accepted["run"].as_str().unwrap().to_owned();
    assert_eq!(hosted.plan_and_repair().await, Ended::Succeeded);
    let again = hosted.answers(ask(), 202).await;
    assert_eq!(again["run"], run.as_str());
    let state = hosted.ended(&run).await;
    assert_eq!(state["state"], "complete", "{state}");
    hosted.quiet().await;
    hosted.tick_and_work().await;
    assert_copy(hosted.store(), &of_sample(&cdr)).await;
    hosted.assert_settled().await;
    let other = hosted
        .request(Method::POST, "/api/exports")
        .header("idempotency-key", "monday");
    hosted.answers(other.json(&json!({})), 422).await;
    hosted
        .answers(
            hosted
                .request(Method::POST, "/api/exports")
                .body("nonsense"),
            400,
        )
        .await;
    hosted
        .answers(hosted.request(Method::GET, "/api/exports/none"), 404)
        .await;
    let gone = hosted
        .answers(
            hosted.request(Method::DELETE, &format!("/api/exports/{run}")),
            200,
        )
        .await;
    assert_eq!(
        gone["state"], "complete",
        "a run that has ended stays as it is"
    );
    hosted.stop().await;
}

async fn what_the_source_cannot_read_goes_to_quarantine_and_stops_nothing(
    cloud: Cloud,
    queues: Queues,
) {
    let (_server, cdr, hosted) = start(cloud, queues, 200).await;
    cdr.set_unreadable(17, true);
    cdr.set_unreadable(133, true);
    hosted.tick_and_work().await;
    assert_eq!(hosted.store().quarantined().await.len(), 2);
    let mut expected = of_sample(&cdr);
    for number in [17, 133] {
        let uid = cdr.version_uid(number).unwrap();
        expected.remove(atlas_scenarios::source::object_id(&uid));
    }
    assert_copy(hosted.store(), &expected).await;
    let partial = "SELECT count(*) FROM atlas_runs WHERE outcome = 'partial'";
    assert_eq!(hosted.store().number(partial).await, 1);
    hosted.stop().await;
}

/// The real server, once per host.
async fn the_corpus_arrives_from_a_real_server(cloud: Cloud) {
    let Shared { ehrbase, loaded } = shared().await.unwrap();
    let ehrs: BTreeSet<&str> = loaded
        .compositions
        .iter()
        .map(|one| one.ehr_id.as_str())
        .collect();
    let ehrs: Vec<&str> = ehrs.into_iter().collect();
    next_second(&ehrbase).await;
    let hosted = Wanted::new(cloud, Queues::InProcess, ehrbase.base_url())
        .await
        .with("ATLAS_OPENEHR_USERNAME", ehrbase.user())
        .with("ATLAS_OPENEHR_PASSWORD", ehrbase.password())
        .with("ATLAS_OPENEHR_QUERY_EHR_IDS", &ehrs.join(","))
        .start()
        .await;
    hosted.tick_and_work().await;
    assert_copy(
        hosted.store(),
        &of_ehrbase(&ehrbase, loaded.readable()).await,
    )
    .await;
    assert_eq!(
        hosted.store().quarantined().await.len(),
        loaded.unreadable().count()
    );
    hosted.assert_settled().await;
    hosted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_corpus_arrives_from_a_real_server_on_azure() {
    the_corpus_arrives_from_a_real_server(Cloud::Azure).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_corpus_arrives_from_a_real_server_on_lambda() {
    the_corpus_arrives_from_a_real_server(Cloud::Lambda).await;
}
