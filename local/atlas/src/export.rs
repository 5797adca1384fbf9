//! `atlas export`: the main job, its report and its exit code.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use atlas_engine::ErrorKind;
use atlas_engine::engine::Engine;
use atlas_engine::export::Report;
use atlas_engine::model::{Mode, Outcome, Request, Slice};
use atlas_engine::plan::Plan;
use atlas_engine::work::Budget;
use atlas_engine::work::convert::Losses;
use atlas_openehr::id::TemplateId;
use atlas_runtime::settings::Settings;
use atlas_runtime::telemetry::REPORT;
use atlas_runtime::wiring;
use serde_json::{Value, json};

use crate::cli::{Export, Global};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::signals::{Ended, watched};
use crate::{output, session};

pub(crate) async fn run(global: &Global, arguments: &Export) -> Result<Exit, Failure> {
    if arguments.wants_anonymization() {
        return Err(Failure::usage(
            "`--anonymize` asks for de-identification, which this version does not have yet",
            "leave it out only if identifiable data may go to the store",
        ));
    }
    let progress = Progress::new();
    let settings = session::begin(global, arguments.overrides(), &progress)?;
    let result = export(&settings, arguments, &progress).await;
    if let (Err(failure), true) = (&result, arguments.json) {
        output::print_json(&not_begun(failure))?;
    }
    result
}

async fn export(
    settings: &Settings,
    arguments: &Export,
    progress: &Progress,
) -> Result<Exit, Failure> {
    if settings.export.mode == Mode::Full && !settings.export.dry_run && !arguments.yes {
        confirm_full()?;
    }
    let source = Arc::new(wiring::source(settings)?);
    let store = wiring::store(settings)?;
    let engine = wiring::engine(settings, source, store, Arc::new(progress.clone()));
    let request = wiring::request(settings);
    if settings.export.dry_run {
        let plan = engine.dry_run(&request).await?;
        show_plan(&plan, arguments.json)?;
        return Ok(Exit::Complete);
    }
    let finished = work(
        &engine,
        &request,
        settings.export.shutdown_timeout,
        progress,
    )
    .await?;
    let Finished { report, signal } = finished;
    if arguments.json {
        output::print_json(&document(&report))?;
    } else {
        show(&report)?;
    }
    Ok(exit(report, signal))
}

/// A run that came to its report.
pub(crate) struct Finished {
    pub(crate) report: Report,
    /// How to exit, if a signal ended it.
    pub(crate) signal: Option<Exit>,
}

/// Runs the engine with progress, until its end or a signal.
pub(crate) async fn work(
    engine: &Engine,
    request: &Request,
    patience: Duration,
    progress: &Progress,
) -> Result<Finished, Failure> {
    let budget = Budget::default();
    let work = progress.shown_during(engine.export(request, &budget));
    let ended = watched(work, &budget.stop, patience).await;
    progress.clear();
    let (report, signal) = match ended? {
        Ended::Done(report) => (report?, None),
        // Stopped while planning: there is no report yet, and the signal says how to exit.
        Ended::Stopped(signal, Err(error)) if error.kind() == ErrorKind::Interrupted => {
            return Err(Failure::from(error).exiting(signal));
        }
        Ended::Stopped(signal, report) => (report?, Some(signal)),
        Ended::AtOnce(exit) => {
            let failure = Failure::new(exit, "the run was stopped in the middle of a page");
            return Err(failure
                .fix("nothing is lost: the next `atlas export` repeats that page and goes on"));
        }
    };
    log(&report);
    Ok(Finished { report, signal })
}

fn log(report: &Report) {
    tracing::info!(
        target: REPORT,
        run_id = report.run,
        outcome = report.outcome.name(),
        read = report.counts.read,
        written = report.counts.written,
        unchanged = report.counts.unchanged,
        filtered = report.counts.filtered,
        quarantined = report.counts.quarantined,
        source_requests = report.usage.requests,
        source_bytes = report.usage.bytes,
        elapsed_ms = report.elapsed.as_millis() as u64,
        "run `{}` ended: {}",
        report.run,
        report.outcome.name()
    );
}

/// Full runs are long and a load on the server: a person is asked first.
fn confirm_full() -> Result<(), Failure> {
    let (mut stdin, mut stderr) = (std::io::stdin().lock(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Ok(());
    }
    let asked = write!(
        stderr,
        "Read everything again? Compositions that did not change stay as they are. [y/N] "
    )
    .and_then(|()| stderr.flush());
    let mut answer = String::new();
    let answered = asked.and_then(|()| stdin.read_line(&mut answer));
    match answered {
        Ok(_) if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") => Ok(()),
        Ok(_) => Err(Failure::usage(
            "not confirmed",
            "answer `y`, or add `--yes`",
        )),
        Err(error) => Err(Failure::new(Exit::Usage, "failed to ask")
            .because(error)
            .fix("add `--yes`")),
    }
}

/// The exit code of a run; tells what stopped it.
pub(crate) fn exit(report: Report, signal: Option<Exit>) -> Exit {
    match (report.outcome, signal, report.stopped_by) {
        (Outcome::Complete, _, _) => Exit::Complete,
        (Outcome::Interrupted, Some(signal), _) => signal,
        (_, _, Some(error)) => {
            let exit = error.kind().into();
            Failure::from(error).show();
            exit
        }
        // A budget that ended without a signal leaves work for the next run, as a failure does.
        (
            Outcome::Partial | Outcome::Interrupted | Outcome::Failed | Outcome::Cancelled,
            _,
            None,
        ) => Exit::Partial,
    }
}

/// The report as JSON; the fields stay stable.
pub(crate) fn document(report: &Report) -> Value {
    let templates: Vec<Value> = report
        .templates
        .iter()
        .map(|(template, one)| {
            json!({
                "template_id": template.as_str(),
                "read": one.counts.read,
                "written": one.counts.written,
                "unchanged": one.counts.unchanged,
                "filtered": one.counts.filtered,
                "quarantined": one.counts.quarantined,
                "watermark": one.watermark,
                "losses": one.losses,
                "failure": one.failure,
            })
        })
        .collect();
    json!({
        "run": report.run,
        "outcome": report.outcome.name(),
        "cut": report.cut,
        "read": report.counts.read,
        "written": report.counts.written,
        "unchanged": report.counts.unchanged,
        "filtered": report.counts.filtered,
        "quarantined": report.counts.quarantined,
        "deleted": report.counts.deleted,
        "source_requests": report.usage.requests,
        "source_bytes": report.usage.bytes,
        "seconds": report.elapsed.as_secs_f64(),
        "failure": report.stopped_by.as_ref().map(atlas_engine::Error::chain),
        "templates": templates,
    })
}

/// The document of a run that could not begin.
fn not_begun(failure: &Failure) -> Value {
    let outcome = match failure.exit {
        Exit::Interrupted | Exit::Terminated => Outcome::Interrupted,
        _ => Outcome::Failed,
    };
    let mut document = failure.to_json();
    document["outcome"] = json!(outcome.name());
    document
}

/// The summary for people, failures last.
pub(crate) fn show(report: &Report) -> Result<(), Failure> {
    let header = [
        "template",
        "read",
        "written",
        "unchanged",
        "filtered",
        "quarantined",
        "checked until",
    ];
    let mut table = output::table(1, &header);
    let row = |name: &str, counts: &atlas_engine::model::Counts, until| {
        [
            name.to_owned(),
            output::count(counts.read),
            output::count(counts.written),
            output::count(counts.unchanged),
            output::count(counts.filtered),
            output::count(counts.quarantined),
            until,
        ]
    };
    for (template, one) in &report.templates {
        table.add_row(row(
            &template.to_string(),
            &one.counts,
            output::time(one.watermark),
        ));
    }
    if report.templates.len() != 1 {
        table.add_row(row("all", &report.counts, String::new()));
    }
    let seconds = report.elapsed.as_secs_f64();
    let mut text = format!(
        "{table}\n{}: {} compositions in {seconds:.1} s ({}/s), {} requests, {}; cut {}",
        report.outcome.name(),
        output::count(report.counts.read),
        output::count((report.counts.read as f64 / seconds.max(0.001)) as u64),
        output::count(report.usage.requests),
        output::bytes(report.usage.bytes),
        output::time(Some(report.cut)),
    );
    if report.counts.quarantined > 0 {
        let count = output::count(report.counts.quarantined);
        text.push_str(&format!(
            "\n{count} in quarantine; next: atlas quarantine list"
        ));
    }
    if report.outcome == Outcome::Interrupted {
        text.push_str("\nstopped before the end; next: atlas export, which goes on from there");
    }
    if let Some(losses) = losses(report) {
        text.push('\n');
        text.push_str(&losses);
    }
    for (template, one) in &report.templates {
        if let Some(failure) = &one.failure {
            text.push_str(&format!("\nfailed: `{template}`: {failure}"));
        }
    }
    if report.templates.values().any(|one| one.failure.is_some()) {
        text.push_str("\nnext: atlas doctor, then atlas export, which tries the failed ones again");
    }
    output::print(&text)
}

/// What FLAT does not carry, by reason. By template it is in the JSON document.
fn losses(report: &Report) -> Option<String> {
    let mut leaves: BTreeMap<&str, u64> = BTreeMap::new();
    let mut looked_at = 0;
    for Losses {
        looked_at: some,
        leaves: lost,
    } in report.templates.values().map(|one| &one.losses)
    {
        looked_at += some;
        for (kind, count) in lost {
            *leaves.entry(kind).or_default() += count;
        }
    }
    let kinds: Vec<String> = leaves
        .iter()
        .map(|(kind, count)| format!("{} {kind}", output::count(*count)))
        .collect();
    (!kinds.is_empty()).then(|| {
        format!(
            "not in FLAT, in {} compositions looked at: {} leaves; by template: --json",
            output::count(looked_at),
            kinds.join(", ")
        )
    })
}

fn show_plan(plan: &Plan, as_json: bool) -> Result<(), Failure> {
    let expected = |template| {
        let lines = plan.slices.iter().flat_map(Slice::lines);
        let lines = lines.filter(|line| line.template == template);
        lines.fold((0, 0), |(count, expected), line| {
            (count + 1, expected + line.expected)
        })
    };
    let lines: Vec<(&TemplateId, u64, u64)> = plan
        .templates
        .iter()
        .map(|template| {
            let (slices, compositions) = expected(template);
            (template, slices, compositions)
        })
        .collect();
    let total: u64 = lines.iter().map(|(_, _, compositions)| compositions).sum();
    if as_json {
        let templates: Vec<Value> = lines
            .iter()
            .map(|(template, slices, compositions)| {
                json!({ "template_id": template, "slices": slices, "expected": compositions })
            })
            .collect();
        return output::print_json(&json!({
            "dry_run": true, "cut": plan.cut, "expected": total, "templates": templates,
        }));
    }
    let mut table = output::table(1, &["template", "slices", "to read"]);
    for (template, slices, compositions) in lines {
        table.add_row([
            template.to_string(),
            output::count(slices),
            output::count(compositions),
        ]);
    }
    output::print(&format!(
        "{table}\nwould read {} compositions committed before {}; nothing was copied",
        output::count(total),
        output::time(Some(plan.cut))
    ))
}
