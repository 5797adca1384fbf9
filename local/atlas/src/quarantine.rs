//! `atlas quarantine`: compositions that could not be copied, why, and another try.
//!
//! A uid is shown only when it is asked for: it leads to a patient.

use std::sync::Arc;

use atlas_engine::model::{Mode, QuarantineFilter, Quarantined};
use atlas_engine::ports::Store;
use atlas_engine::quarantine::quarantined;
use atlas_engine::transform::Transform;
use atlas_openehr::id::{ObjectId, TemplateId, VersionUid};
use atlas_runtime::wiring;
use serde_json::{Value, json};

use crate::cli::{Global, Quarantine, QuarantineList, QuarantineRetry, QuarantineShow};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{export, output, session};

pub(crate) async fn run(global: &Global, command: &Quarantine) -> Result<Exit, Failure> {
    let progress = Progress::new();
    match command {
        Quarantine::List(arguments) => {
            let settings = session::begin(global, Vec::new(), &progress)?;
            list(wiring::store(&settings)?.as_ref(), arguments).await
        }
        Quarantine::Show(arguments) => {
            let settings = session::begin(global, Vec::new(), &progress)?;
            show(wiring::store(&settings)?.as_ref(), arguments).await
        }
        Quarantine::Retry(arguments) => retry(global, arguments, &progress).await,
    }
}

async fn list(store: &dyn Store, arguments: &QuarantineList) -> Result<Exit, Failure> {
    let template = arguments.template_id.as_deref().map(TemplateId::new);
    let counts = store.ledger().quarantine_counts(None).await?;
    let total: u64 = counts
        .iter()
        .filter(|count| {
            template
                .as_ref()
                .is_none_or(|template| template == &count.template)
        })
        .map(|count| count.entries)
        .sum();
    let mut listing = Listing {
        store,
        filter: QuarantineFilter {
            template,
            ..Default::default()
        },
        left: arguments.limit,
    };
    if arguments.json {
        list_as_json(&mut listing, total, arguments.uids).await?;
        return Ok(Exit::Complete);
    }
    let mut shown = 0;
    loop {
        let entries = listing.next().await?;
        if entries.is_empty() {
            break;
        }
        shown += entries.len();
        output::print(&table(&entries, arguments.uids).to_string())?;
    }
    if shown == 0 {
        output::print("nothing is in quarantine")?;
        return Ok(Exit::Complete);
    }
    let mut text = format!("{shown} of {total} entries");
    if !arguments.uids {
        text.push_str("; --uids shows which compositions they are");
    }
    text.push_str("\nnext: repair them on the server, then atlas quarantine retry");
    output::print(&text)?;
    Ok(Exit::Complete)
}

/// Entries that are in memory, and in one table, at once: a quarantine can hold a million.
const AT_ONCE: usize = 1_000;

/// The entries of the quarantine, part by part.
struct Listing<'s> {
    store: &'s dyn Store,
    filter: QuarantineFilter,
    /// How many are still wanted.
    left: usize,
}

impl Listing<'_> {
    /// The next entries; none at the end.
    async fn next(&mut self) -> Result<Vec<Quarantined>, Failure> {
        let wanted = self.left.min(AT_ONCE);
        let entries = quarantined(self.store, &Transform::default(), &self.filter, wanted).await?;
        self.left -= entries.len();
        if let Some(last) = entries.last() {
            self.filter.after = Some(last.place());
        }
        Ok(entries)
    }
}

/// One JSON document, written while it is read: an entry a line.
async fn list_as_json(
    listing: &mut Listing<'_>,
    total: u64,
    with_uids: bool,
) -> Result<(), Failure> {
    output::print_json_part(&format!("{{\n  \"total\": {total},\n  \"entries\": ["))?;
    let mut before = "    ";
    loop {
        let entries = listing.next().await?;
        if entries.is_empty() {
            return output::print_json_part("  ]\n}");
        }
        let mut lines = String::new();
        for entry in &entries {
            lines.push_str(&format!("{before}{}\n", document(entry, with_uids)));
            before = "  , ";
        }
        output::print_json_part(&lines)?;
    }
}

fn table(entries: &[Quarantined], with_uids: bool) -> comfy_table::Table {
    let mut header = vec![
        "template",
        "reason",
        "detail",
        "since",
        "last tried",
        "tries",
    ];
    if with_uids {
        header.push("uid");
    }
    let mut table = output::table(5, &header);
    for entry in entries {
        let mut row = vec![
            entry.meta.template.to_string(),
            entry.reason.name().to_owned(),
            entry.detail.clone(),
            output::time(Some(entry.since)),
            output::time(Some(entry.tried)),
            output::count(entry.tries.into()),
        ];
        if with_uids {
            row.push(entry.meta.uid.as_str().to_owned());
        }
        table.add_row(row);
    }
    table
}

async fn show(store: &dyn Store, arguments: &QuarantineShow) -> Result<Exit, Failure> {
    let object = match VersionUid::parse(&arguments.uid) {
        Ok(uid) => uid.object_id().clone(),
        Err(_) => ObjectId::new(&arguments.uid),
    };
    let filter = QuarantineFilter {
        object: Some(object),
        ..Default::default()
    };
    let entries = quarantined(store, &Transform::default(), &filter, 1).await?;
    let Some(entry) = entries.first() else {
        return Err(Failure::usage(
            "this composition is not in quarantine",
            "`atlas quarantine list --uids` shows which ones are",
        ));
    };
    if arguments.json {
        output::print_json(&document(entry, true))?;
        return Ok(Exit::Complete);
    }
    let meta = &entry.meta;
    let mut table = output::table(2, &["", ""]);
    for (name, value) in [
        ("uid", meta.uid.as_str().to_owned()),
        ("EHR", meta.ehr.as_str().to_owned()),
        ("template", meta.template.to_string()),
        ("committed", output::time(Some(meta.committed))),
        ("change type", meta.change_type.clone()),
        ("reason", explain(entry)),
        ("detail", entry.detail.clone()),
        ("since", output::time(Some(entry.since))),
        ("last tried", output::time(Some(entry.tried))),
        ("tries", output::count(entry.tries.into())),
        ("run", entry.run.clone()),
    ] {
        table.add_row([name.to_owned(), value]);
    }
    output::print(&table.to_string())?;
    Ok(Exit::Complete)
}

fn explain(entry: &Quarantined) -> String {
    use atlas_engine::model::Reason;
    let why = match entry.reason {
        Reason::Unreadable => "the server names it, but fails to read it back",
        Reason::TooLarge => "it alone is larger than the limit for one answer",
        Reason::Inconvertible => "it cannot be converted to the chosen format",
        Reason::Unstorable => "the store cannot hold what is in it",
    };
    format!("{}: {why}", entry.reason.name())
}

fn document(entry: &Quarantined, with_uid: bool) -> Value {
    let mut document = json!({
        "template_id": entry.meta.template.as_str(),
        "reason": entry.reason.name(),
        "detail": entry.detail,
        "committed": entry.meta.committed,
        "since": entry.since,
        "tried": entry.tried,
        "tries": entry.tries,
        "run": entry.run,
    });
    if with_uid {
        document["uid"] = json!(entry.meta.uid.as_str());
        document["ehr_id"] = json!(entry.meta.ehr.as_str());
    }
    document
}

/// An export in which everything that is in quarantine is due.
async fn retry(
    global: &Global,
    arguments: &QuarantineRetry,
    progress: &Progress,
) -> Result<Exit, Failure> {
    let settings = session::begin(global, arguments.overrides(), progress)?;
    let source = Arc::new(wiring::source(&settings)?);
    let store = wiring::store(&settings)?;
    let mut engine = wiring::engine(&settings, source, store, Arc::new(progress.clone()));
    engine.retry_after = std::time::Duration::ZERO;
    let mut request = wiring::request(&settings);
    request.mode = Mode::Incremental;
    let patience = settings.export.shutdown_timeout;
    let finished = export::work(&engine, &request, patience, progress).await?;
    if arguments.json {
        output::print_json(&export::document(&finished.report))?;
    } else {
        export::show(&finished.report)?;
    }
    Ok(export::exit(finished.report, finished.signal))
}
