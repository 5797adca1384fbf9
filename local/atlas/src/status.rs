//! `atlas status`: how far the copy is. Asks the store only.

use std::collections::BTreeMap;

use atlas_engine::model::{
    ALL_TEMPLATES, Holding, Outcome, QuarantineFilter, Run, Slice, SliceState,
};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use atlas_runtime::wiring;
use serde_json::{Value, json};

use crate::cli::{Global, Status};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{output, session};

/// Runs that are shown.
const RUNS: usize = 5;

/// What is known about one template of the copy.
#[derive(Default)]
struct Line {
    /// "Checked until": the watermark.
    until: Option<Instant>,
    /// "Newest data": the latest commit time in the store.
    newest: Option<Instant>,
    compositions: u64,
    open: u64,
    failed: u64,
    failure: Option<String>,
    quarantined: u64,
}

pub(crate) async fn run(global: &Global, arguments: &Status) -> Result<Exit, Failure> {
    let settings = session::begin(global, arguments.overrides(), &Progress::new())?;
    let store = wiring::store(&settings)?;
    let selection = wiring::request(&settings).selection.key();
    let mut lines: BTreeMap<TemplateId, Line> = BTreeMap::new();
    for Holding {
        template,
        compositions,
        newest,
    } in store.holdings().await?
    {
        let line = lines.entry(template).or_default();
        line.compositions = compositions;
        line.newest = newest;
    }
    for watermark in store.ledger().watermarks(&selection).await? {
        if watermark.template.as_str() == ALL_TEMPLATES {
            continue;
        }
        lines.entry(watermark.template).or_default().until = Some(watermark.until);
    }
    for Slice {
        template,
        state,
        failure,
        ..
    } in store.ledger().slices(&selection).await?
    {
        let line = lines.entry(template).or_default();
        match state {
            SliceState::Open => line.open += 1,
            SliceState::Failed => line.failed += 1,
            SliceState::Done => {}
        }
        line.failure = failure.or(line.failure.take());
    }
    for entry in store.ledger().quarantined(&QuarantineFilter::default()).await? {
        lines.entry(entry.meta.template).or_default().quarantined += 1;
    }
    if let Some(wanted) = &arguments.template_id {
        let known: Vec<&str> = lines.keys().map(TemplateId::as_str).collect();
        if let Some(unknown) = wanted.iter().find(|id| !known.contains(&id.as_str())) {
            let near = atlas_runtime::settings::near_matches(unknown, known).join("`, `");
            let fix = match near.as_str() {
                "" => "`atlas status` without it lists all".to_owned(),
                near => format!("did you mean `{near}`?"),
            };
            return Err(Failure::usage(
                format!("the copy holds no template `{unknown}`"),
                fix,
            ));
        }
        lines.retain(|template, _| wanted.iter().any(|id| id == template.as_str()));
    }
    let runs = store.ledger().runs(RUNS).await?;
    let now = wiring::machine_time();
    if arguments.json {
        output::print_json(&document(store.kind(), &lines, &runs, now))?;
    } else {
        show(&lines, &runs, now)?;
    }
    Ok(Exit::Complete)
}

fn lag(line: &Line, now: Instant) -> Option<u64> {
    line.until.map(|until| now.duration_since(until).as_secs())
}

fn document(store: &str, lines: &BTreeMap<TemplateId, Line>, runs: &[Run], now: Instant) -> Value {
    let templates: Vec<Value> = lines
        .iter()
        .map(|(template, line)| {
            json!({
                "template_id": template.as_str(),
                "compositions": line.compositions,
                "watermark": line.until,
                "lag_seconds": lag(line, now),
                "newest": line.newest,
                "slices_open": line.open,
                "slices_failed": line.failed,
                "failure": line.failure,
                "quarantined": line.quarantined,
            })
        })
        .collect();
    let runs: Vec<Value> = runs
        .iter()
        .map(|run| {
            json!({
                "run": run.id,
                "mode": run.mode,
                "started": run.started,
                "ended": run.ended,
                "cut": run.cut,
                "outcome": run.outcome.map(Outcome::name),
                "counts": run.counts,
            })
        })
        .collect();
    let quarantined: u64 = lines.values().map(|line| line.quarantined).sum();
    json!({ "store": store, "quarantined": quarantined, "templates": templates, "runs": runs })
}

fn show(lines: &BTreeMap<TemplateId, Line>, runs: &[Run], now: Instant) -> Result<(), Failure> {
    let header = [
        "template",
        "compositions",
        "newest data",
        "checked until",
        "lag",
        "slices",
        "quarantined",
    ];
    let mut table = output::table(1, &header);
    for (template, line) in lines {
        let slices = match (line.open, line.failed) {
            (0, 0) => "-".to_owned(),
            (open, 0) => format!("{open} open"),
            (open, failed) => format!("{open} open, {failed} failed"),
        };
        table.add_row([
            template.to_string(),
            output::count(line.compositions),
            output::time(line.newest),
            output::time(line.until),
            lag(line, now).map_or("-".to_owned(), output::duration),
            slices,
            output::count(line.quarantined),
        ]);
    }
    let mut past = output::table(
        3,
        &[
            "run",
            "mode",
            "outcome",
            "took",
            "read",
            "written",
            "quarantined",
        ],
    );
    for run in runs {
        past.add_row([
            output::time(Some(run.started)),
            format!("{:?}", run.mode).to_lowercase(),
            run.outcome
                .map_or("running or killed", Outcome::name)
                .to_owned(),
            run.ended.map_or("-".to_owned(), |ended| {
                output::duration(ended.duration_since(run.started).as_secs())
            }),
            output::count(run.counts.read),
            output::count(run.counts.written),
            output::count(run.counts.quarantined),
        ]);
    }
    let mut text = format!("{table}\n{past}");
    for (template, line) in lines {
        if let Some(failure) = &line.failure {
            text.push_str(&format!("\nfailed: `{template}`: {failure}"));
        }
    }
    if lines.values().any(|line| line.quarantined > 0) {
        text.push_str("\nnext: atlas quarantine list");
    }
    output::print(&text)
}
