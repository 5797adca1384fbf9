//! A page of the source becomes a batch of the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;
use atlas_openehr::json::{self, Checksum, Node, Tape};
use serde::Serialize;

use crate::error::{Disposition, Result};
use crate::model::{Batch, Format, Meta, NewRow, Page, Reason, Rejected, Row};
use crate::ports::{Source, Store};

/// Why a composition cannot be converted: a path of member names, at-codes and indexes, and what is wrong there.
/// No content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inconvertible(pub String);

/// Makes the content of the store from canonical JSON. Pure: the same composition gives the same content.
pub trait Convert: Send + Sync {
    /// Appends the content to `out` and answers the checksum of what was appended.
    /// After an error `out` may hold a part of it; the caller cuts that off.
    fn convert(&self, composition: Node<'_>, out: &mut String) -> Result<Checksum, Inconvertible>;
}

/// Canonical JSON, value for value: only insignificant white space goes.
#[derive(Debug, Clone, Copy)]
pub struct Canonical;

impl Convert for Canonical {
    fn convert(&self, composition: Node<'_>, out: &mut String) -> Result<Checksum, Inconvertible> {
        json::minify(composition, out);
        Ok(json::checksum(composition))
    }
}

/// Who makes the content of a template's compositions.
#[derive(Clone)]
pub enum Converter {
    /// We do, from the canonical JSON of the page.
    Here(Arc<dyn Convert>),
    /// The source does, one request each: for a template in which ours was seen to differ.
    Source(Arc<dyn Source>),
}

/// What a format did not carry of the compositions of a template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    /// Compositions that were looked at. Looking is slow, so it ends after some: the sums are of these only.
    pub looked_at: u64,
    /// Leaves, by the name of the reason; reasons that never occurred are left out.
    pub leaves: BTreeMap<&'static str, u64>,
}

/// Gives the converter of a template; formats that need its web template get it here.
#[async_trait]
pub trait Converters: Send + Sync {
    /// What all of them make.
    fn format(&self) -> Format;

    /// The converter of a template. Asked for each slice: what is costly to make is made once.
    async fn of(&self, template: &TemplateId) -> Result<Converter>;

    /// What the format did not carry so far.
    fn losses(&self, _template: &TemplateId) -> Losses {
        Losses::default()
    }
}

#[async_trait]
impl Converters for Canonical {
    fn format(&self) -> Format {
        Format::Canonical
    }

    async fn of(&self, _template: &TemplateId) -> Result<Converter> {
        Ok(Converter::Here(Arc::new(*self)))
    }
}

/// What became of a page: each of its rows is in exactly one of the three.
#[derive(Debug, Default)]
pub struct Converted {
    /// For the store.
    pub batch: Batch,
    /// For quarantine.
    pub rejected: Vec<Rejected>,
    /// Rows of an object of which the page holds a newer version.
    pub filtered: u64,
}

/// Converts each row of a page. What cannot be converted, or not be stored, is rejected by itself.
///
/// # Errors
/// Only if the source converts, and cannot be asked.
pub async fn convert_page(
    page: &Page,
    converter: &Converter,
    store: &dyn Store,
) -> Result<Converted> {
    let mut converted = Converted {
        batch: Batch {
            text: String::with_capacity(page.text.len()),
            rows: Vec::with_capacity(page.rows.len()),
        },
        ..Converted::default()
    };
    let newest = newest_versions(page);
    for row in &page.rows {
        if newest.get(row.meta.uid.object_id().as_str()) != Some(&row.meta.uid.version()) {
            converted.filtered += 1;
            continue;
        }
        let text = &mut converted.batch.text;
        let new = match converter {
            Converter::Here(converter) => convert_row(page, row, converter.as_ref(), store, text),
            Converter::Source(source) => ask_source(&row.meta, source.as_ref(), text).await?,
        };
        match new {
            Ok(new) => converted.batch.rows.push(new),
            Err(rejected) => converted.rejected.push(*rejected),
        }
    }
    Ok(converted)
}

fn newest_versions(page: &Page) -> HashMap<&str, u32> {
    let mut newest = HashMap::with_capacity(page.rows.len());
    for row in &page.rows {
        let version = newest.entry(row.meta.uid.object_id().as_str()).or_insert(0);
        *version = row.meta.uid.version().max(*version);
    }
    newest
}

fn convert_row(
    page: &Page,
    row: &Row,
    converter: &dyn Convert,
    store: &dyn Store,
    text: &mut String,
) -> Result<NewRow, Box<Rejected>> {
    let reject = |reason, detail| {
        Box::new(Rejected {
            meta: row.meta.clone(),
            reason,
            detail,
        })
    };
    let composition = page.content(row);
    if let Some((reason, detail)) = store.refuses(composition) {
        return Err(reject(reason, detail));
    }
    let start = text.len();
    match converter.convert(composition, text) {
        Ok(checksum) => Ok(NewRow {
            meta: row.meta.clone(),
            content: start..text.len(),
            checksum,
        }),
        Err(error) => {
            text.truncate(start);
            Err(reject(Reason::Inconvertible, error.to_string()))
        }
    }
}

/// The source's own FLAT, without insignificant white space.
async fn ask_source(
    meta: &Meta,
    source: &dyn Source,
    text: &mut String,
) -> Result<Result<NewRow, Box<Rejected>>> {
    let reject = |reason, detail| {
        Box::new(Rejected {
            meta: meta.clone(),
            reason,
            detail,
        })
    };
    let answer = match source.flat(meta).await {
        Ok(answer) => answer,
        Err(error) if error.kind().disposition() == Disposition::Bisect => {
            return Ok(Err(reject(Reason::Unreadable, error.chain())));
        }
        Err(error) => return Err(error),
    };
    let tape = match Tape::parse(&answer) {
        Ok(tape) => tape,
        Err(error) => return Ok(Err(reject(Reason::Inconvertible, error.to_string()))),
    };
    let start = text.len();
    json::minify(tape.root(&answer), text);
    Ok(Ok(NewRow {
        meta: meta.clone(),
        content: start..text.len(),
        checksum: json::checksum(tape.root(&answer)),
    }))
}
