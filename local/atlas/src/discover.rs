//! `atlas discover`: what is on the server, before anything is copied.

use std::collections::{BTreeMap, BTreeSet};

use atlas_engine::model::{CensusLine, Scope, Window};
use atlas_engine::plan::proven_census;
use atlas_engine::ports::{Definitions, Source};
use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;
use atlas_runtime::wiring;
use serde_json::{Value, json};

use crate::cli::{Discover, Global};
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use crate::{output, session};

/// Compositions that are read to estimate the size of a template.
const SAMPLE: usize = 20;

struct Found {
    template: TemplateId,
    line: Option<CensusLine>,
    /// Mean size of a composition in bytes, if some could be read.
    mean: Option<u64>,
}

impl Found {
    fn count(&self) -> u64 {
        self.line.as_ref().map_or(0, |line| line.count)
    }

    fn bytes(&self) -> Option<u64> {
        self.mean.map(|mean| mean.saturating_mul(self.count()))
    }
}

pub(crate) async fn run(global: &Global, arguments: &Discover) -> Result<Exit, Failure> {
    let settings = session::begin(global, Vec::new(), &Progress::new())?;
    let source = wiring::source(&settings)?;
    let everything = Window {
        from: Instant::EPOCH,
        to: Instant::MAX,
    };
    let census = proven_census(&source, &scope(Vec::new(), everything), |now| now).await?;
    let mut lines: BTreeMap<TemplateId, CensusLine> = census
        .lines
        .into_iter()
        .map(|line| (line.template.clone(), line))
        .collect();
    let served = source.templates().await?;
    let names: BTreeSet<TemplateId> = served.into_iter().chain(lines.keys().cloned()).collect();
    let mut found = Vec::with_capacity(names.len());
    for template in names {
        let line = lines.remove(&template);
        let mean = match &line {
            Some(line) => mean_size(&source, line).await?,
            None => None,
        };
        found.push(Found {
            template,
            line,
            mean,
        });
    }
    if arguments.json {
        output::print_json(&document(&found, census.server_time))?;
    } else {
        show(&found)?;
    }
    Ok(Exit::Complete)
}

fn scope(templates: Vec<TemplateId>, window: Window) -> Scope {
    Scope {
        templates,
        ehrs: Vec::new(),
        window,
    }
}

/// `None` when the server cannot read back one of the compositions that were asked for.
async fn mean_size(source: &dyn Source, line: &CensusLine) -> Result<Option<u64>, Failure> {
    let window = Window {
        from: line.first,
        to: line.last.successor(),
    };
    match source
        .page(&scope(vec![line.template.clone()], window), None, SAMPLE)
        .await
    {
        Ok(page) if page.rows.is_empty() => Ok(None),
        Ok(page) => {
            let bytes: usize = page
                .rows
                .iter()
                .map(|row| page.content(row).raw().len())
                .sum();
            Ok(Some((bytes / page.rows.len()) as u64))
        }
        Err(error) if error.kind().bisects() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn document(found: &[Found], server_time: Instant) -> Value {
    let templates: Vec<Value> = found
        .iter()
        .map(|one| {
            json!({
                "template_id": one.template.as_str(),
                "count": one.count(),
                "first": one.line.as_ref().map(|line| line.first),
                "last": one.line.as_ref().map(|line| line.last),
                "bytes_estimate": one.bytes(),
            })
        })
        .collect();
    json!({ "server_time": server_time, "templates": templates })
}

fn show(found: &[Found]) -> Result<(), Failure> {
    let header = [
        "template",
        "compositions",
        "first commit",
        "last commit",
        "about",
    ];
    let mut table = output::table(1, &header);
    for one in found {
        table.add_row([
            one.template.to_string(),
            output::count(one.count()),
            output::time(one.line.as_ref().map(|line| line.first)),
            output::time(one.line.as_ref().map(|line| line.last)),
            one.bytes().map_or("?".to_owned(), output::bytes),
        ]);
    }
    let total: u64 = found.iter().map(Found::count).sum();
    // Each of them can be an estimate by a count that is a lie.
    let bytes = found
        .iter()
        .filter_map(Found::bytes)
        .fold(0, u64::saturating_add);
    output::print(&format!(
        "{table}\n{} compositions of {} templates, about {} of canonical JSON",
        output::count(total),
        found.len(),
        output::bytes(bytes)
    ))?;
    output::tell(
        "next: name the templates you want in `openehr.query.template_ids`, then atlas export",
    );
    Ok(())
}
