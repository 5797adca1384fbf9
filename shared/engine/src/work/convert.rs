//! A page of the source becomes a batch of the store: stages, conversion, and what the store cannot hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;
use atlas_openehr::json::{self, Checksum, JsonError, Node, Tape};
use atlas_openehr::time::Instant;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Batch, Body, Format, Meta, Misfit, NewRow, Page, Reason, Rejected, Row, SideRow,
};
use crate::ports::{Rows, Source};
use crate::transform::{Transform, Verdict};

/// Why a composition cannot be converted: a path of member names, at-codes and indexes, and what is wrong there.
/// No content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inconvertible(pub String);

/// Where a conversion writes.
#[derive(Debug)]
pub struct Out<'a> {
    /// The content is appended here.
    pub content: &'a mut String,
    /// What belongs to the composition beside its content.
    pub side_rows: &'a mut Vec<SideRow>,
}

/// Makes the content of the store from canonical JSON. Pure: the same composition gives the same content.
pub trait Convert: Send + Sync {
    /// Appends the content and the side rows of a composition to `out` and answers the checksum of the content.
    /// After an error `out` may hold a part of it; the caller cuts that off. The composition is as the stages left it; `uid` is
    /// the version uid that the copy shows: the one inside a composition says what the server was called when it was written.
    fn convert(
        &self,
        uid: &str,
        composition: Node<'_>,
        out: &mut Out<'_>,
    ) -> Result<Checksum, Inconvertible>;
}

/// Canonical JSON, value for value: only insignificant white space goes.
#[derive(Debug, Clone, Copy)]
pub struct Canonical;

impl Convert for Canonical {
    fn convert(
        &self,
        _uid: &str,
        composition: Node<'_>,
        out: &mut Out<'_>,
    ) -> Result<Checksum, Inconvertible> {
        json::minify(composition, out.content);
        Ok(json::checksum(composition))
    }
}

/// Who makes the content of a template's compositions.
#[derive(Clone)]
pub enum Converter {
    /// We do, from the canonical JSON of the page.
    Here(Arc<dyn Convert>),
    /// The source does, one request each: for a template in which ours was seen to differ. Never while a stage edits.
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

    /// The converter of a template. Asked for each page: what is costly to make is made once.
    async fn of(&self, template: &TemplateId) -> Result<Converter>;

    /// Looks whether the template has changed at the source, where its compositions hold what its converter does not know. Answers
    /// whether the converter is another one now.
    async fn refresh(&self, _template: &TemplateId) -> Result<bool> {
        Ok(false)
    }

    /// What the format did not carry so far.
    fn losses(&self, _template: &TemplateId) -> Losses {
        Losses::default()
    }
}

/// What became of a page: each of its rows is in exactly one of the three.
#[derive(Debug, Default)]
pub struct Converted {
    /// For the store.
    pub batch: Batch,
    /// For quarantine.
    pub rejected: Vec<Rejected>,
    /// Rows that a stage dropped, and rows of an object of which the page holds a newer version, by template.
    pub filtered: BTreeMap<TemplateId, u64>,
}

/// The converters of the templates of a page.
///
/// # Errors
/// The template whose converter cannot be had, and why.
pub async fn converters_of(
    page: &Page,
    converters: &dyn Converters,
) -> std::result::Result<HashMap<TemplateId, Converter>, (TemplateId, Error)> {
    let mut found = HashMap::new();
    for row in &page.rows {
        let template = &row.meta.template;
        if found.contains_key(template) {
            continue;
        }
        match converters.of(template).await {
            Ok(converter) => found.insert(template.clone(), converter),
            Err(error) => return Err((template.clone(), error)),
        };
    }
    Ok(found)
}

/// Converts each row of a page whose request was sent at `asked`, by the converter of its template. What cannot be converted, or
/// not be stored, is rejected by itself.
///
/// # Errors
/// Only if the source converts, and cannot be asked.
pub async fn convert_page(
    page: &Page,
    asked: Instant,
    converters: &HashMap<TemplateId, Converter>,
    transform: &Transform,
    rows: &dyn Rows,
) -> Result<Converted> {
    let mut converted = Converted {
        batch: Batch {
            text: String::with_capacity(page.text.len()),
            rows: Vec::with_capacity(page.rows.len()),
            side_rows: Vec::new(),
        },
        ..Converted::default()
    };
    let newest = newest_versions(page);
    let is_newest =
        |meta: &Meta| newest.get(meta.uid.object_id().as_str()) == Some(&meta.uid.version());
    let reject = |meta: &Meta, reason, detail| Rejected {
        key: transform.keys.key(meta),
        ..Rejected::new(meta.clone(), reason, detail)
    };
    let mut edited = Edited::default();
    for row in &page.rows {
        let (verdict, edits) = match is_newest(&row.meta) {
            true => transform.apply(&row.meta, page.content(row)),
            false => (Verdict::Drop("an older version"), json::Edits::default()),
        };
        if let Verdict::Drop(_) = verdict {
            let template = row.meta.template.clone();
            *converted.filtered.entry(template).or_default() += 1;
            continue;
        }
        let Some(converter) = converters.get(&row.meta.template) else {
            return Err(Error::new(
                ErrorKind::Internal,
                "convert a page: it holds a row of a template that has no converter",
            )
            .fix("please report this; the next run goes on from the last checkpoint"));
        };
        let uid = transform.keys.uid(&row.meta);
        let batch = &mut converted.batch;
        let (start, side_start) = (batch.text.len(), batch.side_rows.len());
        let result = match converter {
            Converter::Here(converter) => {
                let mut out = Out {
                    content: &mut batch.text,
                    side_rows: &mut batch.side_rows,
                };
                match edited.composition(page, row, &edits) {
                    Ok(composition) => {
                        convert_row(uid.as_str(), composition, converter.as_ref(), &mut out)
                    }
                    Err(error) => Err(inconvertible(&error)),
                }
            }
            Converter::Source(source) => {
                ask_source(&row.meta, source.as_ref(), &mut batch.text).await?
            }
        };
        let content = batch.text.get(start..).unwrap_or_default();
        let result = result.and_then(|checksum| match rows.refuses(content) {
            Some(refusal) => Err(refusal),
            None => Ok(checksum),
        });
        match result {
            Ok(checksum) => batch.rows.push(NewRow {
                key: transform.keys.key(&row.meta),
                uid,
                asked,
                body: Body::Content {
                    text: start..batch.text.len(),
                    checksum,
                    side_rows: side_start..batch.side_rows.len(),
                },
                meta: row.meta.clone(),
            }),
            Err((reason, detail)) => {
                batch.text.truncate(start);
                batch.side_rows.truncate(side_start);
                converted.rejected.push(reject(&row.meta, reason, detail));
            }
        }
    }
    for Misfit { meta, detail } in &page.misfits {
        let rejected = reject(meta, Reason::Unreadable, detail.clone());
        converted.rejected.push(rejected);
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

/// A composition as the stages left it: its own text, parsed anew, so that every walk obeys the edits. Memory is used again.
#[derive(Default)]
struct Edited {
    text: String,
    tape: Tape,
}

impl Edited {
    fn composition<'a>(
        &'a mut self,
        page: &'a Page,
        row: &Row,
        edits: &json::Edits,
    ) -> Result<Node<'a>, JsonError> {
        let composition = page.content(row);
        if edits.is_empty() {
            return Ok(composition);
        }
        self.text.clear();
        json::edited(composition, edits, &mut self.text)?;
        self.tape.reparse(&self.text)?;
        Ok(self.tape.root(&self.text))
    }
}

fn convert_row(
    uid: &str,
    composition: Node<'_>,
    converter: &dyn Convert,
    out: &mut Out<'_>,
) -> Result<Checksum, (Reason, String)> {
    if let Some(path) = json::doubled_member(composition) {
        let detail = format!("a member stands twice in the object at `{path}`");
        return Err((Reason::Inconvertible, detail));
    }
    converter
        .convert(uid, composition, out)
        .map_err(|error| (Reason::Inconvertible, error.to_string()))
}

fn inconvertible(error: &JsonError) -> (Reason, String) {
    (Reason::Inconvertible, error.to_string())
}

/// The source's own FLAT, without insignificant white space.
async fn ask_source(
    meta: &Meta,
    source: &dyn Source,
    text: &mut String,
) -> Result<Result<Checksum, (Reason, String)>> {
    let answer = match source.flat(meta).await {
        Ok(answer) => answer,
        Err(error) if error.kind().bisects() => {
            return Ok(Err((Reason::Unreadable, error.chain())));
        }
        Err(error) => return Err(error),
    };
    let tape = match Tape::parse(&answer) {
        Ok(tape) => tape,
        Err(error) => return Ok(Err(inconvertible(&error))),
    };
    json::minify(tape.root(&answer), text);
    Ok(Ok(json::checksum(tape.root(&answer))))
}

/// Refuses to let the source convert what stages edit: its answer would show what they drop.
///
/// # Errors
/// `SourceUnsupported`, by the template's name.
pub(crate) fn refuse_source_while_edited(
    template: &TemplateId,
    transform: &Transform,
) -> Result<()> {
    if transform.edits() {
        return Err(Error::new(
            ErrorKind::SourceUnsupported,
            format!("make FLAT of `{template}`: ours differs from the source's, and the source's would show what is to be left out"),
        )
        .fix("export this template as `canonical`, or without edits; and report the template"));
    }
    Ok(())
}
