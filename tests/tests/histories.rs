//! Random histories: a server that changes and fails, runs of all kinds that are killed; in the end the copy is equal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::BTreeSet;
use std::time::Duration;

use atlas_sample_cdr::{Commit, Fault, Handle, On, Template};
use atlas_scenarios::source::{of_sample, sample};
use atlas_scenarios::{Atlas, Kind, assert_row};
use fastrand::Rng;
use serde_json::json;

/// Names how many histories are lived through; 3 without it.
const ENV_SEEDS: &str = "ATLAS_TEST_SEEDS";
const STEPS: usize = 40;
const SECOND: Duration = Duration::from_secs(1);

atlas_scenarios::into_both_stores!(whatever_happens_the_copy_ends_up_equal);

async fn whatever_happens_the_copy_ends_up_equal(kind: Kind) {
    let seeds = std::env::var(ENV_SEEDS).map_or(3, |count| count.parse().unwrap());
    for seed in 1..=seeds {
        println!("seed {seed}");
        history(kind, Rng::with_seed(seed)).await;
    }
}

async fn history(kind: Kind, mut chance: Rng) {
    let server = sample(150).start().await.unwrap();
    let cdr = server.handle();
    let atlas = Atlas::new(kind, &server.base_url())
        .await
        .with("openehr.query.batch_size", json!(10))
        .with("openehr.retry.initial_delay_ms", json!(1))
        .with("export.slice_size", json!(25));
    let mut ever = BTreeSet::new();
    for _ in 0..STEPS {
        ever.extend(of_sample(&cdr).into_keys());
        match chance.u8(0..10) {
            0..4 => change(&cdr, &mut chance),
            4 => misbehave(&cdr, &mut chance),
            5 => cdr.advance(chance.u32(1..1_000) * SECOND),
            _ => export(&atlas, &cdr, &mut chance).await,
        }
    }

    cdr.clear_faults();
    for number in 0..cdr.numbers() {
        cdr.set_unreadable(number, false);
    }
    // What is late becomes visible, and is old enough to be looked at.
    cdr.advance(700 * SECOND);
    atlas.export(&[]).await.exits(0);
    atlas.run(&["quarantine", "retry", "--json"]).await.exits(0);
    let (rows, expected) = (atlas.store().rows().await, of_sample(&cdr));
    for (id, composition) in &expected {
        let row = rows.get(id).expect("a composition is missing");
        assert_row(kind, row, composition);
    }
    // Queries never show deletes: what was deleted may still be there.
    assert!(
        rows.keys()
            .all(|id| expected.contains_key(id) || ever.contains(id))
    );
    assert!(atlas.store().quarantined().await.is_empty());
    assert_eq!(atlas.export(&[]).await.exits(0)["read"], 0);
}

fn change(cdr: &Handle, chance: &mut Rng) {
    let number = chance.u64(0..cdr.numbers());
    let template = Template::ALL[chance.usize(0..Template::ALL.len())];
    let committed = cdr.now();
    let late = Commit {
        committed,
        visible: committed + chance.u32(1..600) * SECOND,
    };
    match chance.u8(0..8) {
        0 => drop(cdr.delete(number)),
        1 => cdr.set_unreadable(number, true),
        2 => cdr.set_unreadable(number, false),
        3 => drop(cdr.update_at(number, late)),
        4 => drop(cdr.commit_at(template, late)),
        5 => drop(cdr.commit(template)),
        _ => drop(cdr.update(number)),
    }
}

fn misbehave(cdr: &Handle, chance: &mut Rng) {
    let status = |status| Fault::Status {
        status,
        retry_after_secs: Some(0),
    };
    let fault = match chance.u8(0..5) {
        0 => status(429),
        1 => status(503),
        2 => status(500),
        3 => Fault::Html,
        _ => Fault::CutBody {
            after_bytes: chance.usize(0..30_000),
        },
    };
    let on = [On::Any, On::Aql, On::AqlPages][chance.usize(0..3)];
    cdr.inject(fault.next(chance.u64(1..6)).on(on).after(chance.u64(0..9)));
}

/// A run of some kind, to its end or killed on the way.
async fn export(atlas: &Atlas, cdr: &Handle, chance: &mut Rng) {
    let ehr = cdr.ehr_id(chance.u64(0..150)).unwrap_or_default();
    let template = Template::ALL[chance.usize(0..Template::ALL.len())].id();
    let arguments: &[&str] = match chance.u8(0..8) {
        0 => &["--mode", "full", "--yes"],
        1 => &["--template-id", template],
        2 if !ehr.is_empty() => &["--ehr-id", &ehr],
        3 => &[
            "--from",
            "2025-01-01T00:10:00Z",
            "--to",
            "2025-01-01T00:30:00Z",
        ],
        _ => &[],
    };
    let mut running = atlas.start_export(arguments);
    if chance.u8(0..3) == 0 {
        let requests = cdr.counters().requests + chance.u64(0..12);
        running
            .until(async || cdr.counters().requests >= requests)
            .await;
        running.signal(["KILL", "TERM"][chance.usize(0..2)]).await;
    }
    let run = running.wait().await;
    let expected = [None, Some(0), Some(1), Some(4), Some(143)];
    assert!(
        expected.contains(&run.code()),
        "{:?}: {}",
        run.code(),
        run.stderr
    );
}
