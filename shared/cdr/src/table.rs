//! An AQL answer: its text kept once, its rows located in it. Columns are known by their place, which is
//! the one in the `SELECT` list of [`dialect`](crate::dialect).

use std::borrow::Cow;

use atlas_engine::model::{CensusLine, Cursor, Meta, Page, Row};
use atlas_openehr::id::{EhrId, TemplateId, VersionUid};
use atlas_openehr::json::{Items, Kind, Node, Tape};
use atlas_openehr::time::Instant;

use crate::failure::Failure;

type Result<T> = std::result::Result<T, Failure>;

/// The rows of a page. With `after`, they have to be in the order of the source, behind it.
pub(crate) fn page(text: String, after: Option<Order<'_>>) -> Result<Page> {
    let tape = Tape::parse(&text).map_err(Failure::json)?;
    let mut rows = Vec::new();
    each_row(
        tape.root(&text),
        |[uid, committed, ehr, template, change, content]| {
            let meta = meta([uid, committed, ehr, template, change])?;
            // Nothing where content was asked for: as unreadable as a 500.
            match content.kind() {
                Kind::Object => rows.push(Row {
                    meta,
                    content: content.id(),
                }),
                Kind::Null => return Err(Failure::NoContent),
                _ => return Err(Failure::Shape("a composition was expected")),
            }
            Ok(())
        },
    )?;
    if let Some(order) = after {
        order.check(rows.iter().map(|row| &row.meta))?;
    }
    Ok(Page {
        text,
        tape,
        rows,
        misfits: Vec::new(),
    })
}

/// The rows of a listing, in the order of the source.
pub(crate) fn list(text: &str, order: Order<'_>) -> Result<Vec<Meta>> {
    let tape = Tape::parse(text).map_err(Failure::json)?;
    let mut metas = Vec::new();
    each_row(tape.root(text), |cells: [Node<'_>; 5]| {
        metas.push(meta(cells)?);
        Ok(())
    })?;
    order.check(metas.iter())?;
    Ok(metas)
}

/// The lines of a census.
pub(crate) fn census(text: &str) -> Result<Vec<CensusLine>> {
    let tape = Tape::parse(text).map_err(Failure::json)?;
    let mut lines = Vec::new();
    each_row(tape.root(text), |[template, number, first, last]| {
        let count = count_of(number)?;
        // Grouped over nothing, a server may answer one row of nothing.
        if count > 0 {
            lines.push(CensusLine {
                template: TemplateId::new(&string(template)?),
                count,
                first: instant(first)?,
                last: instant(last)?,
            });
        }
        Ok(())
    })?;
    Ok(lines)
}

/// The one number of a count.
pub(crate) fn count(text: &str) -> Result<u64> {
    let tape = Tape::parse(text).map_err(Failure::json)?;
    let mut counts = Vec::new();
    each_row(tape.root(text), |[number]| {
        counts.push(count_of(number)?);
        Ok(())
    })?;
    match counts.as_slice() {
        [count] => Ok(*count),
        _ => Err(Failure::Shape("one row with a count was expected")),
    }
}

/// The names in the server's list of templates.
pub(crate) fn templates(text: &str) -> Result<Vec<TemplateId>> {
    let tape = Tape::parse(text).map_err(Failure::json)?;
    let root = tape.root(text);
    if root.kind() != Kind::Array {
        return Err(Failure::Shape("a list of templates was expected"));
    }
    root.items()
        .map(|entry| {
            let name = entry
                .get("template_id")
                .and_then(|name| name.as_str())
                .ok_or(Failure::Shape("a template id was expected"))?;
            Ok(TemplateId::new(&name))
        })
        .collect()
}

/// What every page of a keyset must keep, or compositions get lost: each row behind the one before it.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    pub(crate) after: Option<&'a Cursor>,
}

impl Order<'_> {
    fn check<'m>(self, metas: impl Iterator<Item = &'m Meta>) -> Result<()> {
        let mut last = self.after.map(|cursor| (cursor.committed, &cursor.object));
        for meta in metas {
            let place = Some((meta.committed, meta.uid.object_id()));
            if place <= last {
                return Err(Failure::Shape(
                    "rows in the order of commit time and object id were expected",
                ));
            }
            last = place;
        }
        Ok(())
    }
}

/// Checks the frame of an answer and the width of its rows.
fn each_row<'a, const N: usize>(
    root: Node<'a>,
    mut row: impl FnMut([Node<'a>; N]) -> Result<()>,
) -> Result<()> {
    let columns = root
        .get("columns")
        .filter(|columns| columns.kind() == Kind::Array)
        .ok_or(Failure::Shape("an AQL answer with `columns` was expected"))?;
    if columns.len() != N {
        return Err(Failure::Shape(
            "as many columns as were selected were expected",
        ));
    }
    let rows = root
        .get("rows")
        .filter(|rows| rows.kind() == Kind::Array)
        .ok_or(Failure::Shape("an AQL answer with `rows` was expected"))?;
    for cells in rows.items() {
        row(exactly(cells.items())
            .ok_or(Failure::Shape("rows as wide as `columns` were expected"))?)?;
    }
    Ok(())
}

fn exactly<const N: usize>(items: Items<'_>) -> Option<[Node<'_>; N]> {
    let cells: Vec<Node<'_>> = items.take(N + 1).collect();
    cells.try_into().ok()
}

fn meta([uid, committed, ehr, template, change]: [Node<'_>; 5]) -> Result<Meta> {
    Ok(Meta {
        uid: VersionUid::parse(&string(uid)?)
            .map_err(|_| Failure::Shape("a version uid was expected"))?,
        ehr: EhrId::new(&string(ehr)?),
        template: TemplateId::new(&string(template)?),
        committed: instant(committed)?,
        position: None,
        change_type: string(change)?.into_owned(),
    })
}

fn string(node: Node<'_>) -> Result<Cow<'_, str>> {
    node.as_str().ok_or(Failure::Shape("a text was expected"))
}

/// A commit time, as text or as a DV_DATE_TIME: servers differ, and so do `SELECT` and `MIN`.
fn instant(node: Node<'_>) -> Result<Instant> {
    let text = node
        .as_str()
        .or_else(|| node.get("value")?.as_str())
        .ok_or(Failure::Shape("a commit time was expected"))?;
    Instant::parse(&text).map_err(|_| Failure::Shape("a commit time was expected"))
}

fn count_of(node: Node<'_>) -> Result<u64> {
    node.as_i64()
        .and_then(|count| u64::try_from(count).ok())
        .ok_or(Failure::Shape("a count was expected"))
}
