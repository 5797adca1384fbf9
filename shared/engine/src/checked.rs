//! A source whose every answer is compared with the question: a server that ignores a condition would fill the copy with
//! what nobody selected, or leave gaps that look complete.
//!
//! ```text
//!  page, list, fetch ──► Row: scope, limit, twice ─┐
//!  page, list        ──► Order: cursor, ORDER BY  ─┼─► SourceUntrue: what was ignored, never whose it is
//!  census            ──► Line: scope, twice       ─┘
//! ```

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use atlas_openehr::id::{EhrId, ObjectId, TemplateId};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Census, CensusLine, Cursor, Meta, Page, Scope, Usage};
use crate::ports::{Compositions, Definitions, FlatOracle, Source};

/// What the object id begins with that a source makes up for a row whose own cannot be read. Such a row has no place of its own
/// among those of the same commit time.
pub const UNREADABLE_OBJECT: &str = "unreadable-";

/// Whether a source made this id up, because that of the row cannot be read.
#[must_use]
pub fn is_made_up(object: &ObjectId) -> bool {
    object.as_str().starts_with(UNREADABLE_OBJECT)
}

/// Passes on only what answers the question. Everything else is an error of kind `SourceUntrue`, which stops the run.
pub struct CheckedSource {
    inner: Arc<dyn Source>,
}

impl CheckedSource {
    /// Checks the answers of `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Source>) -> Self {
        Self { inner }
    }
}

#[async_trait]
impl Compositions for CheckedSource {
    async fn census(&self, scope: &Scope) -> Result<Census> {
        let census = self.inner.census(scope).await?;
        check_lines(scope, &census.lines).map_err(|lie| lie.into_error("take a census"))?;
        Ok(census)
    }

    async fn count(&self, scope: &Scope) -> Result<u64> {
        self.inner.count(scope).await
    }

    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page> {
        let page = self.inner.page(scope, after, limit).await?;
        check_page(scope, after, limit, &page)
            .map_err(|lie| lie.into_error("read a page of compositions"))?;
        Ok(page)
    }

    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>> {
        let metas = self.inner.list(scope, after, limit).await?;
        check_list(scope, after, limit, &metas)
            .map_err(|lie| lie.into_error("list compositions"))?;
        Ok(metas)
    }

    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        let page = self.inner.fetch(scope, objects).await?;
        check_fetch(scope, objects, &page)
            .map_err(|lie| lie.into_error("read compositions by uid"))?;
        Ok(page)
    }
}

#[async_trait]
impl Definitions for CheckedSource {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        self.inner.templates().await
    }

    async fn web_template(&self, template: &TemplateId) -> Result<String> {
        self.inner.web_template(template).await
    }
}

#[async_trait]
impl FlatOracle for CheckedSource {
    async fn flat(&self, meta: &Meta) -> Result<String> {
        self.inner.flat(meta).await
    }
}

impl Source for CheckedSource {
    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

/// What a server ignored, or how an answer contradicts itself. Says nothing about whose row showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Lie {
    #[error(
        "the server ignored the condition on the template (`c/archetype_details/template_id/value`)"
    )]
    Template,
    #[error("the server ignored the condition on the EHR (`e/ehr_id/value`)")]
    Ehr,
    #[error(
        "the server ignored the lower bound of the commit time (`v/commit_audit/time_committed`)"
    )]
    From,
    #[error(
        "the server ignored the upper bound of the commit time (`v/commit_audit/time_committed`)"
    )]
    To,
    #[error(
        "the server ignored the condition to go on behind the last row (`v/commit_audit/time_committed` and `v/uid/value`)"
    )]
    Cursor,
    #[error("the server ignored the order (`ORDER BY v/commit_audit/time_committed, v/uid/value`)")]
    Order,
    #[error("the server ignored the condition on the uid (`v/uid/value`)")]
    Object,
    #[error("the server ignored the number of rows that was asked for (`fetch`)")]
    Limit,
    #[error(
        "the server answered one composition twice, where only its latest version was asked for (`LATEST_VERSION`)"
    )]
    Twice,
    #[error("the server counted one template in two lines of a census")]
    TemplateTwice,
    #[error(
        "the server answered a census whose first commit time is after its last one (`MIN` and `MAX`)"
    )]
    Span,
}

impl Lie {
    fn into_error(self, action: &'static str) -> Error {
        Error::new(ErrorKind::SourceUntrue, action)
            .because(self)
            .fix(
                "Nothing of this answer was copied. Look for a gateway or cache before the server that changes requests or \
                 answers, and check openehr.vendor and the server's version: a query of this kind must be answered as asked.",
            )
    }
}

type Checked = std::result::Result<(), Lie>;

fn check_page(scope: &Scope, after: Option<&Cursor>, limit: usize, page: &Page) -> Checked {
    let misfits = || page.misfits.iter().map(|misfit| &misfit.meta);
    let rows = || page.rows.iter().map(|row| &row.meta);
    check_number(limit, page.rows.len() + page.misfits.len())?;
    rows()
        .chain(misfits())
        .try_for_each(|meta| check_scope(scope, meta))?;
    check_order(after, rows())?;
    // Where a misfit stood among the rows is not known any more.
    misfits().try_for_each(|meta| check_behind(after, meta))?;
    check_once(rows())
}

fn check_list(scope: &Scope, after: Option<&Cursor>, limit: usize, metas: &[Meta]) -> Checked {
    check_number(limit, metas.len())?;
    metas.iter().try_for_each(|meta| check_scope(scope, meta))?;
    check_order(after, metas.iter())?;
    check_once(metas.iter())
}

fn check_fetch(scope: &Scope, objects: &[ObjectId], page: &Page) -> Checked {
    let misfits = page.misfits.iter().map(|misfit| &misfit.meta);
    let rows = page.rows.iter().map(|row| &row.meta);
    let asked: HashSet<&ObjectId> = objects.iter().collect();
    for meta in rows.clone().chain(misfits) {
        let object = meta.uid.object_id();
        if !asked.contains(object) && !is_made_up(object) {
            return Err(Lie::Object);
        }
        check_scope(scope, meta)?;
    }
    check_once(rows)
}

fn check_number(limit: usize, rows: usize) -> Checked {
    holds(rows <= limit, Lie::Limit)
}

/// What could not be read of a misfit is empty and cannot be compared.
fn check_scope(scope: &Scope, meta: &Meta) -> Checked {
    let template = meta.template.as_str();
    holds(
        template.is_empty() || is_among(&scope.templates, |asked| *asked == meta.template),
        Lie::Template,
    )?;
    let ehr = meta.ehr.as_str();
    let is_this = |asked: &EhrId| asked.as_str().eq_ignore_ascii_case(ehr);
    holds(ehr.is_empty() || is_among(&scope.ehrs, is_this), Lie::Ehr)?;
    holds(meta.committed >= scope.window.from, Lie::From)?;
    holds(meta.committed < scope.window.to, Lie::To)
}

/// An empty list does not restrict.
fn is_among<T>(asked: &[T], is_this: impl Fn(&T) -> bool) -> bool {
    asked.is_empty() || asked.iter().any(is_this)
}

fn check_order<'m>(after: Option<&Cursor>, metas: impl Iterator<Item = &'m Meta>) -> Checked {
    let mut last: Option<Cursor> = None;
    for meta in metas {
        let place = meta.cursor();
        check_behind(after, meta)?;
        if let Some(last) = &last {
            holds(is_behind(&place, last), Lie::Order)?;
        }
        last = Some(place);
    }
    Ok(())
}

fn check_behind(after: Option<&Cursor>, meta: &Meta) -> Checked {
    match after {
        Some(after) => holds(is_behind(&meta.cursor(), after), Lie::Cursor),
        None => Ok(()),
    }
}

/// Whether `place` can lie behind `before`. Within a commit time the object decides, unless only the source knows the exact
/// place: then one and the same place is all that can be told.
fn is_behind(place: &Cursor, before: &Cursor) -> bool {
    if place.committed != before.committed {
        return place.committed > before.committed;
    }
    let is_exact = |place: &Cursor| place.position.is_none() && !is_made_up(&place.object);
    if is_exact(place) && is_exact(before) {
        place.object > before.object
    } else {
        place != before
    }
}

fn check_once<'m>(metas: impl Iterator<Item = &'m Meta>) -> Checked {
    let mut seen = HashSet::new();
    for meta in metas {
        holds(seen.insert(meta.uid.object_id()), Lie::Twice)?;
    }
    Ok(())
}

fn check_lines(scope: &Scope, lines: &[CensusLine]) -> Checked {
    let mut seen = HashSet::new();
    for line in lines {
        holds(
            is_among(&scope.templates, |asked| *asked == line.template),
            Lie::Template,
        )?;
        holds(seen.insert(&line.template), Lie::TemplateTwice)?;
        holds(line.first <= line.last, Lie::Span)?;
        holds(line.first >= scope.window.from, Lie::From)?;
    }
    Ok(())
}

fn holds(condition: bool, otherwise: Lie) -> Checked {
    if condition { Ok(()) } else { Err(otherwise) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
