//! `atlas status`: how far the copy is. Asks the store only.

use atlas_engine::model::Outcome;
use atlas_engine::suite::report::{Report, TemplateState, report};
use atlas_openehr::time::Instant;
use atlas_runtime::wiring;
use serde_json::{Value, json};

use crate::cli::{Global, Status};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{output, session};

/// Runs that are shown.
const RUNS: usize = 5;

pub(crate) async fn run(global: &Global, arguments: &Status) -> Result<Exit, Failure> {
    let settings = session::begin(global, arguments.overrides(), &Progress::new())?;
    let store = wiring::store(&settings)?;
    let selection = wiring::request(&settings).selection.key();
    let at = store.ledger().now().await?;
    let at = at.unwrap_or_else(wiring::machine_time);
    let mut report = report(store.as_ref(), &wiring::slots(&settings), &selection, at).await?;
    report.runs.truncate(RUNS);
    if let Some(wanted) = &arguments.template_id {
        let known: Vec<&str> = report
            .templates
            .iter()
            .map(|template| template.template_id.as_str())
            .collect();
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
        report
            .templates
            .retain(|template| wanted.iter().any(|id| id == template.template_id.as_str()));
    }
    if arguments.json {
        output::print_json(&document(store.kind(), &report))?;
    } else {
        show(&report)?;
    }
    Ok(Exit::Complete)
}

fn lag(template: &TemplateState, now: Instant) -> Option<u64> {
    template
        .checked_until
        .map(|until| now.duration_since(until).as_secs())
}

/// Slices that are not finished, but for those that were given up.
fn open(template: &TemplateState) -> u64 {
    template.slices.waiting + template.slices.in_work
}

fn document(store: &str, report: &Report) -> Value {
    let templates: Vec<Value> = report
        .templates
        .iter()
        .map(|template| {
            json!({
                "template_id": template.template_id.as_str(),
                "compositions": template.compositions,
                "watermark": template.checked_until,
                "lag_seconds": lag(template, report.at),
                "newest": template.newest_data,
                "slices_open": open(template),
                "slices_failed": template.slices.failed,
                "failure": template.failure,
                "quarantined": template.quarantined,
            })
        })
        .collect();
    let runs: Vec<Value> = report
        .runs
        .iter()
        .map(|run| {
            json!({
                "run": run.run,
                "mode": run.mode,
                "started": run.started,
                "ended": run.ended,
                "cut": run.cut,
                "outcome": run.outcome.map(Outcome::name),
                "counts": run.counts,
            })
        })
        .collect();
    let quarantined: u64 = report
        .templates
        .iter()
        .map(|template| template.quarantined)
        .sum();
    json!({
        "store": store,
        "quarantined": quarantined,
        "unplanned": report.unplanned,
        "templates": templates,
        "runs": runs,
    })
}

fn show(report: &Report) -> Result<(), Failure> {
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
    for template in &report.templates {
        let slices = match (open(template), template.slices.failed) {
            (0, 0) => "-".to_owned(),
            (open, 0) => format!("{open} open"),
            (open, failed) => format!("{open} open, {failed} failed"),
        };
        table.add_row([
            template.template_id.to_string(),
            output::count(template.compositions),
            output::time(template.newest_data),
            output::time(template.checked_until),
            lag(template, report.at).map_or("-".to_owned(), output::duration),
            slices,
            output::count(template.quarantined),
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
    for run in &report.runs {
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
    for template in &report.templates {
        if let Some(failure) = &template.failure {
            text.push_str(&format!("\nfailed: `{}`: {failure}", template.template_id));
        }
    }
    if let Some(unplanned) = &report.unplanned {
        let ticks = match unplanned.ticks {
            1 => "tick".to_owned(),
            many => format!("{many} ticks"),
        };
        text.push_str(&format!(
            "\nnothing planned at the last {ticks}, since {}: {}",
            output::time(Some(unplanned.since)),
            unplanned.reason.explanation()
        ));
    }
    if report
        .templates
        .iter()
        .any(|template| template.quarantined > 0)
    {
        text.push_str("\nnext: atlas quarantine list");
    }
    output::print(&text)
}
