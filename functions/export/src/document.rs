//! Runs as JSON.

use atlas_engine::model::{Outcome, Run};
use atlas_engine::suite::runs::RunState;
use serde_json::{Value, json};

/// A run as it was accepted or ended.
pub(crate) fn of_run(run: &Run) -> Value {
    json!({
        "run": run.id,
        "state": state(run),
        "mode": run.mode.name(),
        "started": run.started,
        "ended": run.ended,
        "cut": run.cut,
        "read": run.counts.read,
        "written": run.counts.written,
        "unchanged": run.counts.unchanged,
        "filtered": run.counts.filtered,
        "quarantined": run.counts.quarantined,
        "failure": run.failure,
    })
}

/// A run with its slices.
pub(crate) fn of_state(of: &RunState) -> Value {
    let mut document = of_run(&of.run);
    if let Some(members) = document.as_object_mut() {
        members.insert("expected".to_owned(), json!(of.expected));
        members.insert(
            "slices".to_owned(),
            json!({ "open": of.open, "done": of.done, "failed": of.failed }),
        );
    }
    document
}

/// `accepted`, `running`, or how it ended.
fn state(run: &Run) -> &'static str {
    match (run.outcome, run.planned) {
        (Some(outcome), _) => Outcome::name(outcome),
        (None, true) => "running",
        (None, false) => "accepted",
    }
}
