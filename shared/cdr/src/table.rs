//! An AQL answer: its text kept once, its rows located in it. Columns are known by their place, which is
//! the one in the `SELECT` list of [`dialect`](crate::dialect).

use std::borrow::Cow;

use atlas_engine::checked::{UNREADABLE_OBJECT, is_made_up};
use atlas_engine::model::{CensusLine, Cursor, Meta, Misfit, Page, Row, Scope};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId, VersionUid, VersionUidError};
use atlas_openehr::json::{Items, Kind, Node, NodeId, Tape};
use atlas_openehr::time::Instant;
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::place::{Behind, ExactTime, position_without_object};

type Result<T> = std::result::Result<T, Failure>;

/// Bytes of an id or a change type at most. What is longer fits into no index of a database.
const LONGEST_ID: usize = 512;

/// What was asked for, as far as the answer is read by it.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) scope: &'a Scope,
    /// Whether the rows have to be in the order of the source.
    pub(crate) in_order: bool,
    /// They have to be behind this as well.
    pub(crate) after: Option<&'a Cursor>,
}

/// The rows of a page.
pub(crate) fn page(text: String, asked: Asked<'_>) -> Result<Page> {
    let tape = Tape::parse(&text).map_err(Failure::json)?;
    let readings = readings_with_content(tape.root(&text), asked)?;
    Ok(into_page(text, tape, readings))
}

/// The rows of several answers to one question, as one page. Each answer was read before.
pub(crate) fn joined(texts: &[String], asked: Asked<'_>) -> Result<Page> {
    let text = format!("[{}]", texts.join(","));
    let tape = Tape::parse(&text).map_err(Failure::json)?;
    let mut readings = Vec::new();
    for answer in tape.root(&text).items() {
        readings.extend(readings_with_content(answer, asked)?);
    }
    Ok(into_page(text, tape, readings))
}

/// The rows of a listing, in the order of the source.
pub(crate) fn list(text: &str, asked: Asked<'_>) -> Result<Vec<Meta>> {
    let tape = Tape::parse(text).map_err(Failure::json)?;
    let mut readings = Vec::new();
    each_row(tape.root(text), |cells: [Node<'_>; 5]| {
        readings.push((Reading::of(cells, asked.scope)?, ()));
        Ok(())
    })?;
    place(&mut readings, asked)?;
    Ok(readings
        .into_iter()
        .map(|(reading, ())| reading.meta)
        .collect())
}

fn readings_with_content(root: Node<'_>, asked: Asked<'_>) -> Result<Vec<(Reading, NodeId)>> {
    let mut readings = Vec::new();
    each_row(root, |[uid, committed, ehr, template, change, content]| {
        let mut reading = Reading::of([uid, committed, ehr, template, change], asked.scope)?;
        match content.kind() {
            Kind::Object => {}
            // Nothing where content was asked for: as unreadable as a 500.
            Kind::Null => return Err(Failure::NoContent),
            _ => reading.wrong.push("the content is no object"),
        }
        readings.push((reading, content.id()));
        Ok(())
    })?;
    place(&mut readings, asked)?;
    Ok(readings)
}

fn into_page(text: String, tape: Tape, readings: Vec<(Reading, NodeId)>) -> Page {
    let (mut rows, mut misfits) = (Vec::new(), Vec::new());
    for (reading, content) in readings {
        let meta = reading.meta;
        if reading.wrong.is_empty() {
            rows.push(Row { meta, content });
        } else {
            misfits.push(Misfit {
                meta,
                detail: reading.wrong.join("; "),
            });
        }
    }
    Page {
        text,
        tape,
        rows,
        misfits,
    }
}

/// A row without its content.
struct Reading {
    /// As much of it as could be read; what could not is empty, or made up where it must not be.
    meta: Meta,
    time: ExactTime,
    /// The commit time as the server said it.
    time_text: String,
    /// What keeps the row from being a composition. Names columns, never values.
    wrong: Vec<&'static str>,
}

impl Reading {
    fn of(cells: [Node<'_>; 5], scope: &Scope) -> Result<Self> {
        let [uid, committed, ehr, template, change] = cells;
        let time_text = time_text(committed)?;
        let time = ExactTime::parse(&time_text).ok_or(NO_TIME)?;
        let mut wrong = Vec::new();
        let uid = version_uid(uid, &cells, &mut wrong)?;
        let mut text = |node: Node<'_>, fault| match node.as_str() {
            Some(text) if is_sound(&text) => text.into_owned(),
            _ => {
                wrong.push(fault);
                String::new()
            }
        };
        let ehr = text(ehr, "the EHR id is missing, or no EHR id");
        let change_type = text(change, "the change type is missing, or no change type");
        let template = match (template.as_str(), scope.templates.as_slice()) {
            (Some(text), _) if !text.is_empty() => TemplateId::new(&text),
            (_, asked) => {
                wrong.push("the template id is missing, or no text");
                match asked {
                    [only] => only.clone(),
                    _ => TemplateId::new(""),
                }
            }
        };
        Ok(Self {
            meta: Meta {
                uid,
                ehr: EhrId::new(&ehr),
                template,
                committed: time.instant,
                position: time.is_finer_than_micros().then(|| time_text.clone()),
                change_type,
            },
            time,
            time_text,
            wrong,
        })
    }

    /// `None` if the row has none of its own.
    fn object(&self) -> Option<&ObjectId> {
        Some(self.meta.uid.object_id()).filter(|object| !is_made_up(object))
    }

    /// Whether this row can stand right behind another one.
    fn can_follow(&self, before: &Self) -> bool {
        match (before.object(), self.object()) {
            _ if self.time != before.time => self.time > before.time,
            // A branch is of the same object as the trunk.
            (Some(before_it), Some(it)) if it == before_it => {
                !self.wrong.is_empty() || !before.wrong.is_empty()
            }
            (Some(before_it), Some(it)) => it > before_it,
            _ => true,
        }
    }

    fn is_behind(&self, after: &Behind) -> bool {
        match (&after.object, self.object()) {
            _ if self.time != after.exact => self.time > after.exact,
            (None, _) => false,
            (Some(after), Some(it)) => it > after,
            (Some(_), None) => true,
        }
    }
}

/// Checks what every page of a keyset must keep, or compositions get lost: each row behind the one before it. Then says of
/// rows without a uid where the server can go on behind them.
fn place<C>(readings: &mut [(Reading, C)], asked: Asked<'_>) -> Result<()> {
    if !asked.in_order {
        return Ok(());
    }
    let after = asked.after.map(Behind::of);
    if let (Some((first, _)), Some(after)) = (readings.first(), &after)
        && !first.is_behind(after)
    {
        return Err(Failure::Order);
    }
    for pair in readings.windows(2) {
        if let [(before, _), (row, _)] = pair
            && !row.can_follow(before)
        {
            return Err(Failure::Order);
        }
    }
    // From behind: the last row of a commit time is where the next page begins.
    let mut last: Option<(ExactTime, Option<ObjectId>)> = None;
    for (reading, _) in readings.iter_mut().rev() {
        let object = match last.take() {
            Some((time, object)) if time == reading.time => object,
            _ => reading.object().cloned(),
        };
        if reading.object().is_none() {
            let position = position_without_object(&reading.time_text, object.as_ref());
            reading.meta.position = Some(position);
        }
        last = Some((reading.time.clone(), object));
    }
    Ok(())
}

/// The uid of a row, or one that keeps the object id, or one that is made up: the same row gives the same one.
fn version_uid(
    uid: Node<'_>,
    cells: &[Node<'_>],
    wrong: &mut Vec<&'static str>,
) -> Result<VersionUid> {
    let text = uid.as_str().unwrap_or_default();
    wrong.push(match VersionUid::parse(&text) {
        Ok(uid) if is_sound(&text) => return Ok(uid),
        Err(VersionUidError::Branch) => "the uid names a branch, not a version of the trunk",
        _ => "the uid is no version uid (`object_id::system_id::version`)",
    });
    let mut parts = text
        .split("::")
        .map(|part| Some(part).filter(|part| is_sound(part)));
    let mut next = || parts.next().flatten();
    let object = match next() {
        Some(object) => object.to_owned(),
        None => made_up_object(cells),
    };
    let system = next().unwrap_or("unknown");
    // A branch grows from the version that its first number names.
    let version = next()
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok())
        .unwrap_or(1)
        .max(1);
    VersionUid::parse(&format!("{object}::{system}::{version}"))
        .map_err(|_| Failure::Shape("a version uid was expected in `v/uid/value`"))
}

/// Of the cells without the content: a listing shows the same ones.
fn made_up_object(cells: &[Node<'_>]) -> String {
    let mut digest = Sha256::new();
    for cell in cells {
        let text = cell.as_str().unwrap_or(Cow::Borrowed(cell.raw()));
        digest.update(text.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    let hex: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{UNREADABLE_OBJECT}{hex}")
}

/// Whether a text can be kept as an id.
fn is_sound(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_ID && !text.chars().any(char::is_control)
}

/// The lines of a census.
pub(crate) fn census(text: &str) -> Result<Vec<CensusLine>> {
    let tape = Tape::parse(text).map_err(Failure::json)?;
    let mut lines = Vec::new();
    each_row(tape.root(text), |[template, number, first, last]| {
        let count = count_of(number)?;
        // Grouped over nothing, a server may answer one row of nothing.
        if count == 0 && template.kind() != Kind::Null {
            return Err(Failure::Shape(
                "a census of templates with compositions was expected",
            ));
        }
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

fn string(node: Node<'_>) -> Result<Cow<'_, str>> {
    node.as_str()
        .ok_or(Failure::Shape("a template id was expected in a census"))
}

const NO_TIME: Failure =
    Failure::Shape("a commit time was expected in `v/commit_audit/time_committed`");

/// A commit time, as text or as a DV_DATE_TIME: servers differ, and so do `SELECT` and `MIN`.
fn time_text(node: Node<'_>) -> Result<String> {
    match node.as_str() {
        Some(text) => Ok(text.into_owned()),
        None => Ok(node
            .get("value")
            .and_then(|value| value.as_str())
            .ok_or(NO_TIME)?
            .into_owned()),
    }
}

fn instant(node: Node<'_>) -> Result<Instant> {
    Instant::parse(&time_text(node)?).map_err(|_| NO_TIME)
}

/// Compositions that a server can hold: one for everybody on earth, and more. What is counted is added up, multiplied and planned
/// by, so it ends here.
const MOST_COUNTED: u64 = 10_000_000_000;

fn count_of(node: Node<'_>) -> Result<u64> {
    let digits = node
        .number()
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or(Failure::Shape("a count was expected"))?;
    match digits.parse() {
        Ok(count) if count <= MOST_COUNTED => Ok(count),
        _ => Err(Failure::Untrue(
            "it counts more compositions than any server holds",
        )),
    }
}
