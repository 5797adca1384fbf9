//! Reads a slice portion by portion: adapts the size of pages to bytes and latency, and isolates
//! what the source cannot read.
//!
//! ```text
//!  page ──ok──► portion                         list ──► what the store lacks ──┐ (compare)
//!    └─unreadable─► list of its uids ─► suspects ◄── due in quarantine (retry) ──┘
//!                                        │ fetch a part: ok ─► portion
//!                                        └ fails ─► half of it … one alone ─► rejected
//! ```
//! Before a culprit is believed, the source has to show that it can read something else at that moment: a server in
//! trouble fails on every page, and its compositions do not belong into quarantine.
//!
//! A page of n with one culprit costs about 4 + log2(n) requests more than a sound one: one for the list, one
//! for each halving, one for the proof, one for the rest. From the second culprit of a slice on, the parts are as long as
//! the clean run between the last two was, so a template in which every composition is a culprit costs two requests each.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use tokio::time::Instant as Moment;

use crate::error::{Disposition, Error, ErrorKind, Result};
use crate::model::{
    Cursor, Meta, Page, QuarantineFilter, Reason, Rejected, Scope, Slice, SliceKind, Window,
};
use crate::ports::{Source, Store};

/// So many compositions from all over the source are tried to see whether it can read any.
const CONTROLS: usize = 8;

/// How large pages may become.
#[derive(Debug, Clone, Copy)]
pub struct PageTerms {
    /// Compositions in the first page.
    pub first: usize,
    /// Compositions in a page at most.
    pub most: usize,
    /// Bytes of an answer to aim at.
    pub bytes: usize,
    /// Time for an answer to aim at.
    pub latency: Duration,
    /// Uids in one listing.
    pub list: usize,
}

impl Default for PageTerms {
    fn default() -> Self {
        Self {
            first: 400,
            most: 1000,
            bytes: 4 << 20,
            latency: Duration::from_secs(4),
            list: 10_000,
        }
    }
}

impl PageTerms {
    /// Several readers share the memory of one: three pages each, and what the allocator keeps of earlier ones, stay below
    /// 100 MiB.
    #[must_use]
    pub fn shared_by(self, readers: usize) -> Self {
        let readers = readers.max(1);
        Self {
            first: (self.first / readers).max(1),
            bytes: self.bytes / readers,
            ..self
        }
    }
}

/// What is handed on at once, and where the slice stands when it is durable.
#[derive(Debug)]
pub struct Portion {
    /// Compositions, possibly none.
    pub page: Page,
    /// What the source could not give.
    pub rejected: Vec<Rejected>,
    /// The slice's cursor once this portion is durable.
    pub cursor: Option<Cursor>,
}

/// Reads one slice from a cursor to its end.
pub struct Reader {
    source: Arc<dyn Source>,
    store: Arc<dyn Store>,
    kind: SliceKind,
    scope: Scope,
    terms: PageTerms,
    cursor: Option<Cursor>,
    limit: usize,
    /// Compositions still expected in the window: while there are some, a short page is not taken for the end.
    expected: u64,
    suspects: VecDeque<Meta>,
    /// How many of the first suspects are known to hold a culprit.
    tainted: usize,
    /// How many suspects are asked for at once where nothing is known.
    stride: usize,
    /// Rows read since the last culprit; `None` before the first one.
    clean: Option<usize>,
    /// A composition that the source could read.
    sound: Option<ObjectId>,
    /// What is due in quarantine before this instant, once, for a slice that retries.
    due: Option<Instant>,
    ended: bool,
}

impl Reader {
    /// Begins behind the slice's cursor. `due` is the instant before which a quarantined composition must have been tried
    /// last, to be tried again; only retries look at it.
    #[must_use]
    pub fn new(
        source: Arc<dyn Source>,
        store: Arc<dyn Store>,
        slice: &Slice,
        ehrs: Vec<atlas_openehr::id::EhrId>,
        terms: PageTerms,
        due: Instant,
    ) -> Self {
        Self {
            source,
            store,
            kind: slice.kind,
            scope: Scope {
                templates: vec![slice.template.clone()],
                ehrs,
                window: slice.window,
            },
            cursor: slice.cursor.clone(),
            limit: terms.first.min(terms.most).max(1),
            expected: slice.expected.saturating_sub(slice.counts.read),
            suspects: VecDeque::new(),
            tainted: 0,
            stride: terms.first.min(terms.most).max(1),
            clean: None,
            sound: None,
            due: Some(due),
            ended: false,
            terms,
        }
    }

    /// The next portion, or `None` at the end of the slice.
    ///
    /// # Errors
    /// What the source or the store could not do, other than a composition that cannot be read.
    pub async fn next(&mut self) -> Result<Option<Portion>> {
        loop {
            if !self.suspects.is_empty() {
                if let Some(portion) = self.next_of_suspects().await? {
                    return Ok(Some(portion));
                }
                continue;
            }
            if self.ended {
                return Ok(None);
            }
            let portion = match self.kind {
                SliceKind::Read => self.next_page().await?,
                SliceKind::Compare => self.next_comparison().await?,
                SliceKind::Retry => self.load_due().await?,
            };
            if portion.is_some() {
                return Ok(portion);
            }
        }
    }

    async fn next_page(&mut self) -> Result<Option<Portion>> {
        let asked = Moment::now();
        let limit = self.limit;
        match self
            .source
            .page(&self.scope, self.cursor.as_ref(), limit)
            .await
        {
            Ok(page) => {
                self.adapt(&page, limit, asked.elapsed());
                self.expected = self.expected.saturating_sub(page.rows.len() as u64);
                self.ended =
                    page.rows.is_empty() || (page.rows.len() < limit && self.expected == 0);
                let Some(last) = page.rows.last() else {
                    return Ok(None);
                };
                self.note_sound(&page, page.rows.len());
                self.cursor = Some(last.meta.cursor());
                Ok(Some(self.portion(page, Vec::new())))
            }
            Err(error) if error.kind() == ErrorKind::SourceTooLarge && limit > 1 => {
                self.limit = limit / 2;
                self.terms.most = self.limit;
                Ok(None)
            }
            Err(error) if error.kind().disposition() == Disposition::Bisect => {
                let metas = self
                    .source
                    .list(&self.scope, self.cursor.as_ref(), limit)
                    .await?;
                self.ended = metas.is_empty();
                self.tainted = metas.len();
                self.suspects = metas.into();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn next_comparison(&mut self) -> Result<Option<Portion>> {
        let metas = self
            .source
            .list(&self.scope, self.cursor.as_ref(), self.terms.list)
            .await?;
        self.ended = metas.len() < self.terms.list;
        let Some(last) = metas.last().map(Meta::cursor) else {
            return Ok(None);
        };
        self.suspects = missing(self.store.as_ref(), metas).await?.into();
        self.tainted = 0;
        if self.suspects.is_empty() {
            self.cursor = Some(last);
            return Ok(Some(self.portion(Page::default(), Vec::new())));
        }
        Ok(None)
    }

    async fn load_due(&mut self) -> Result<Option<Portion>> {
        self.ended = true;
        let due = self
            .store
            .quarantined(&QuarantineFilter {
                template: self.scope.templates.first().cloned(),
                tried_before: self.due.take(),
                ..QuarantineFilter::default()
            })
            .await?;
        self.suspects = due.into_iter().map(|entry| entry.meta).collect();
        // What failed before fails again more often than not: one at a time is the cheapest order.
        self.stride = 1;
        Ok(None)
    }

    /// Fetches the first part of the suspects, or learns that it must be smaller.
    async fn next_of_suspects(&mut self) -> Result<Option<Portion>> {
        let part = match self.tainted {
            0 => self.stride.min(self.terms.most),
            1 => 1,
            tainted => tainted.div_ceil(2),
        }
        .clamp(1, self.suspects.len());
        let objects: Vec<ObjectId> = self
            .suspects
            .iter()
            .take(part)
            .map(|meta| meta.uid.object_id().clone())
            .collect();
        match self.source.fetch(&self.scope, &objects).await {
            Ok(page) => {
                self.tainted = self.tainted.saturating_sub(part);
                self.note_sound(&page, part);
                self.stride = (self.stride * 2).clamp(1, self.terms.most);
                let metas: Vec<Meta> = self.suspects.drain(..part).collect();
                self.pass(metas.last());
                let rejected = match self.kind {
                    SliceKind::Retry => gone(&page, metas),
                    SliceKind::Read | SliceKind::Compare => Vec::new(),
                };
                Ok(Some(self.portion(page, rejected)))
            }
            Err(error) if error.kind().disposition() == Disposition::Bisect => {
                if part > 1 {
                    self.tainted = part;
                    return Ok(None);
                }
                if !self.source_reads_something().await? {
                    return Err(in_trouble(error));
                }
                self.tainted = 0;
                self.stride = match self.clean.replace(0) {
                    Some(clean) => clean.clamp(1, self.terms.most),
                    None => self.terms.most,
                };
                let Some(meta) = self.suspects.pop_front() else {
                    return Ok(None);
                };
                self.pass(Some(&meta));
                let rejected = vec![reject(meta, &error)];
                Ok(Some(self.portion(Page::default(), rejected)))
            }
            Err(error) => Err(error),
        }
    }

    /// Something was asked for and read.
    fn note_sound(&mut self, page: &Page, rows: usize) {
        if let Some(clean) = &mut self.clean {
            *clean += rows;
        }
        if let Some(last) = page.rows.last() {
            self.sound = Some(last.meta.uid.object_id().clone());
        }
    }

    /// Whether the source can read something, so that the composition it cannot read is to blame.
    async fn source_reads_something(&mut self) -> Result<bool> {
        let anything = Scope {
            templates: Vec::new(),
            ehrs: Vec::new(),
            window: Window::EVER,
        };
        let metas = match self.sound.take() {
            Some(sound) => match self
                .source
                .fetch(&anything, std::slice::from_ref(&sound))
                .await
            {
                Ok(page) if !page.rows.is_empty() => {
                    self.sound = Some(sound);
                    return Ok(true);
                }
                // Deleted meanwhile.
                Ok(_) => self.source.list(&anything, None, self.terms.list).await?,
                Err(error) if error.kind().disposition() == Disposition::Bisect => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            },
            None => self.source.list(&anything, None, self.terms.list).await?,
        };
        let step = metas.len().div_ceil(CONTROLS).max(1);
        let controls: Vec<ObjectId> = metas
            .iter()
            .step_by(step)
            .map(|meta| meta.uid.object_id().clone())
            .collect();
        for control in controls {
            match self
                .source
                .fetch(&anything, std::slice::from_ref(&control))
                .await
            {
                Ok(page) if page.rows.is_empty() => {}
                Ok(_) => {
                    self.sound = Some(control);
                    return Ok(true);
                }
                Err(error) if error.kind().disposition() == Disposition::Bisect => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Moves the cursor behind a suspect that is dealt with; retries have no place in the order of the source.
    fn pass(&mut self, meta: Option<&Meta>) {
        if self.kind != SliceKind::Retry
            && let Some(meta) = meta
        {
            self.cursor = Some(meta.cursor());
            self.expected = self.expected.saturating_sub(1);
        }
    }

    fn portion(&self, page: Page, rejected: Vec<Rejected>) -> Portion {
        Portion {
            page,
            rejected,
            cursor: self.cursor.clone(),
        }
    }

    /// Halves or doubles at most, so that one odd page does not throw the size about.
    fn adapt(&mut self, page: &Page, limit: usize, elapsed: Duration) {
        if page.rows.is_empty() {
            return;
        }
        let by_bytes = self.terms.bytes as f64 / page.text.len().max(1) as f64;
        let by_latency = self.terms.latency.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        let factor = by_bytes.min(by_latency).clamp(0.5, 2.0);
        let scaled = (page.rows.len() as f64 * factor) as usize;
        let bound = if page.rows.len() < limit && factor >= 1.0 {
            limit
        } else {
            scaled
        };
        self.limit = bound.clamp(1, self.terms.most.max(1));
    }
}

/// Of what the source lists, what the store has not seen in this version or a newer one.
///
/// # Errors
/// What the store could not do.
pub async fn missing(store: &dyn Store, metas: Vec<Meta>) -> Result<Vec<Meta>> {
    let objects: Vec<ObjectId> = metas
        .iter()
        .map(|meta| meta.uid.object_id().clone())
        .collect();
    let known = store.known(&objects).await?;
    Ok(metas
        .into_iter()
        .filter(|meta| {
            known
                .get(meta.uid.object_id())
                .is_none_or(|seen| seen.version.version < meta.uid.version())
        })
        .collect())
}

fn in_trouble(cause: Error) -> Error {
    Error::new(
        ErrorKind::SourceUnreachable,
        "read compositions: the source fails on every one that was tried",
    )
    .because(cause)
    .fix("look into the server's log; nothing was put into quarantine for this, and the next run goes on from here")
}

fn reject(meta: Meta, error: &Error) -> Rejected {
    Rejected {
        meta,
        reason: match error.kind() {
            ErrorKind::SourceTooLarge => Reason::TooLarge,
            _ => Reason::Unreadable,
        },
        detail: error.chain(),
    }
}

/// Of the compositions that were asked for again, those that the source does not show any more.
fn gone(page: &Page, asked: Vec<Meta>) -> Vec<Rejected> {
    asked
        .into_iter()
        .filter(|meta| {
            page.rows
                .iter()
                .all(|row| row.meta.uid.object_id() != meta.uid.object_id())
        })
        .map(|meta| Rejected {
            meta,
            reason: Reason::Unreadable,
            detail: "the source does not show it any more".to_owned(),
        })
        .collect()
}
