//! Exports that are killed at many moments, until one comes to its end.

use std::time::Duration;

use atlas_sample_cdr::{Fault, Handle, On};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{Atlas, Run, Store};

/// Compositions on the sample CDR: 60 pages.
pub const COMPOSITIONS: u64 = 3_000;
/// Compositions of a page.
pub const PAGE: u64 = 50;
/// Slices that are read at once.
pub const READERS: u64 = 2;

/// How a sweep ended.
pub struct Swept {
    /// Runs that were killed.
    pub kills: u64,
    /// The run that came to its end.
    pub last: Run,
}

/// Pages so small that a run has many moments, and a lease so short that no run waits long for a dead one.
pub fn in_small_pages(atlas: Atlas) -> Atlas {
    atlas
        .with("openehr.query.batch_size", json!(PAGE))
        .with("openehr.query.parallel", json!(READERS))
        .with("export.slice_size", json!(500))
        .with("state.lease_seconds", json!(1))
}

/// Exports until a run is faster than its SIGKILL. `before` looks at what lies there before each run.
pub async fn kill_until_complete(
    atlas: &Atlas,
    cdr: &Handle,
    mut before: impl AsyncFnMut(),
) -> Swept {
    cdr.inject(Fault::Latency { millis: 10 }.always().on(On::AqlPages));
    let mut chance = fastrand::Rng::with_seed(7);
    for kills in 0..200 {
        before().await;
        let mut running = atlas.start_export(&[]);
        // While it plans or some pages further, in the middle of something; later and later, because a page that has to be
        // divided is one step forward at its end only.
        let pages = cdr.counters().aql_pages + chance.u64(0..9 + kills);
        let is_there = running
            .until(async || cdr.counters().aql_pages >= pages)
            .await;
        sleep(Duration::from_micros(chance.u64(0..30_000))).await;
        let was_killed = is_there && running.signal("KILL").await;
        let last = running.wait().await;
        if !was_killed || last.code().is_some() {
            cdr.clear_faults();
            return Swept { kills, last };
        }
    }
    panic!("the runs get nowhere");
}

/// Holds counts against each other: what was read is somewhere, in the report of a run and in the ledger, which counts each
/// composition once however often its page was tried.
pub async fn assert_conserved(report: &Value, ledger: &Store, read: u64) {
    const WAYS: [&str; 5] = ["written", "unchanged", "filtered", "quarantined", "deleted"];
    let reported = WAYS.map(|way| report[way].as_u64().unwrap());
    assert_eq!(report["read"], json!(reported.iter().sum::<u64>()));

    let mut sums = Vec::new();
    for count in ["read"].into_iter().chain(WAYS) {
        let of = |table: &str| format!("SELECT count_{count} AS n FROM {table}");
        let all = format!("{} UNION ALL {}", of("atlas_slices"), of("atlas_counts"));
        let sum = format!("SELECT coalesce(sum(n), 0) FROM ({all}) AS counted");
        sums.push(ledger.number(&sum).await);
    }
    assert_eq!(sums[0], read, "{sums:?}");
    assert_eq!(sums[0], sums[1..].iter().sum::<u64>(), "{sums:?}");
}

/// Holds the next runs against a complete copy: there is nothing new, and a full run finds everything as it is.
pub async fn assert_nothing_left(atlas: &Atlas, copied: u64) {
    let report = atlas.export(&[]).await.exits(0);
    assert_eq!(
        (&report["written"], &report["read"]),
        (&json!(0), &json!(0))
    );
    let run = atlas.export(&["--mode", "full"]).await;
    let report = run.report();
    assert_eq!(
        (&report["written"], &report["unchanged"]),
        (&json!(0), &json!(copied))
    );
}
