//! Reads a slice portion by portion: adapts the size of pages to bytes and latency, and isolates
//! what the source cannot read.
//!
//! ```text
//!  page ──ok──► portion                         list ──► what the store lacks ──┐ (compare)
//!    └─unreadable─► list of its uids ─► suspects ◄── due in quarantine (retry) ──┘
//!                                        │ fetch a part: ok ─► portion
//!                                        └ fails ─► half of it … one alone ─► rejected
//! ```
//! A culprit is believed only if it fails again after the source has read something else: a server in trouble fails on every
//! page, and its compositions do not belong into quarantine.
//!
//! A short answer is never the end: servers cap them, and what became visible since the plan takes the place of what it had
//! counted. A slice ends when nothing is shown behind its cursor; where fewer compositions were seen than the plan had counted, a
//! count of the whole window has to say the same. Nor does an answer without a composition that was listed say that it is gone:
//! only a listing without it does.
//!
//! A page of n with one culprit costs about 5 + log2(n) requests more than a sound one: one for the list, one
//! for each halving, two for the proof, one for the rest. From the second culprit of a slice on, the parts are as long as
//! the clean run between the last two was, so a template in which every composition is a culprit costs three requests each.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;
use tokio::time::Instant as Moment;

use crate::error::{Error, ErrorKind, Result};
use crate::listing::Listing;
use crate::model::{
    Cursor, Meta, Page, QuarantineFilter, QuarantinePlace, Reason, Rejected, Scope, Slice,
    SliceKind, Window,
};
use crate::ports::{Clock, Source, Store};
use crate::quarantine::{missing, quarantined};
use crate::seeded::{Bug, planted};
use crate::transform::Transform;
use crate::work::budget::Budget;

/// So many compositions from all over the source are tried to see whether it can read any.
const CONTROLS: usize = 8;

/// So many entries of the quarantine are in memory at once.
const DUE: usize = 1_000;

/// So many portions at most are on their way from here into the store.
const ON_THEIR_WAY: usize = 8;

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

/// What is handed on at once, and where the slice stands when it is durable.
#[derive(Debug)]
pub struct Portion {
    /// Compositions, possibly none.
    pub page: Page,
    /// When they were asked for, by the ledger's clock.
    pub asked: Instant,
    /// What the source could not give.
    pub rejected: Vec<Rejected>,
    /// The slice's cursor once this portion is durable.
    pub cursor: Option<Cursor>,
}

/// What a reader comes to.
#[derive(Debug)]
pub enum Next {
    /// Something to hand on.
    Portion(Box<Portion>),
    /// The end of the slice.
    End,
    /// The end of the budget, before anything could be handed on: between two questions to the source.
    Spent,
}

/// What a reader asks.
#[derive(Clone)]
pub struct Parts {
    /// Where compositions come from.
    pub source: Arc<dyn Source>,
    /// What the copy holds.
    pub store: Arc<dyn Store>,
    /// Names the rows of the copy.
    pub transform: Transform,
    /// Tells when a page was asked for.
    pub clock: Arc<dyn Clock>,
}

/// Reads one slice from a cursor to its end.
pub struct Reader {
    parts: Parts,
    kind: SliceKind,
    scope: Scope,
    terms: PageTerms,
    cursor: Option<Cursor>,
    limit: usize,
    /// Compositions of the window that the plan counted.
    expected: u64,
    /// Compositions of the window that the source has shown, readable or not.
    seen: u64,
    /// Whether the source was asked a second time for what it counts and does not show.
    doubted: bool,
    /// The objects of the last portions, which need not be in the store yet.
    handed_on: VecDeque<Vec<ObjectId>>,
    /// Whether the suspects lie before the cursor, which stays where it is.
    looks_back: bool,
    suspects: VecDeque<Meta>,
    /// How many of the first suspects are known to hold a culprit.
    tainted: usize,
    /// How many suspects are asked for at once where nothing is known.
    stride: usize,
    /// Rows read since the last culprit; `None` before the first one.
    clean: Option<usize>,
    /// A composition that the source could read.
    sound: Option<ObjectId>,
    /// Entries of the quarantine tried last before this instant are tried again, by a slice that retries.
    due: Instant,
    /// Behind the entries of the quarantine that were loaded.
    loaded: Option<QuarantinePlace>,
    ended: bool,
}

impl Reader {
    /// Begins behind the slice's cursor. `due` is the instant before which a quarantined composition must have been tried
    /// last, to be tried again; only retries look at it.
    #[must_use]
    pub fn new(
        parts: Parts,
        slice: &Slice,
        ehrs: Vec<atlas_openehr::id::EhrId>,
        terms: PageTerms,
        due: Instant,
    ) -> Self {
        let most = terms.most.max(1);
        let templates: Vec<_> = slice.templates().cloned().collect();
        let read = slice.lines().filter(|line| line.is_read);
        let (expected, seen) = read.fold((0, 0), |(expected, seen), line| {
            (expected + line.expected, seen + line.counts.read)
        });
        let learnt = slice
            .next_page
            .map(|next| usize::try_from(next).unwrap_or(most));
        Self {
            parts,
            kind: slice.kind,
            // Where all were taken out, nothing is left to ask for: no name would mean any template.
            ended: templates.is_empty(),
            scope: Scope {
                templates,
                ehrs,
                window: slice.window,
            },
            cursor: slice.cursor.clone(),
            limit: learnt.unwrap_or(terms.first).clamp(1, most),
            expected,
            seen,
            doubted: false,
            handed_on: VecDeque::new(),
            looks_back: false,
            suspects: VecDeque::new(),
            tainted: 0,
            stride: terms.first.clamp(1, most),
            clean: None,
            sound: None,
            due,
            loaded: None,
            terms,
        }
    }

    /// The next portion. A composition that cannot be read takes several questions to be found; the budget is looked at before
    /// each.
    ///
    /// # Errors
    /// What the source or the store could not do, other than a composition that cannot be read.
    pub async fn next(&mut self, budget: &Budget) -> Result<Next> {
        loop {
            let has_suspects = !self.suspects.is_empty();
            if self.ended && !has_suspects {
                return Ok(Next::End);
            }
            if budget.is_spent() {
                return Ok(Next::Spent);
            }
            let portion = if has_suspects {
                self.next_of_suspects().await?
            } else {
                match self.kind {
                    SliceKind::Read => self.page().await?,
                    SliceKind::Compare => self.next_comparison().await?,
                    SliceKind::Retry => self.load_due().await?,
                }
            };
            if let Some(portion) = portion {
                return Ok(Next::Portion(Box::new(portion)));
            }
        }
    }

    /// How many compositions to ask for next. While a culprit is looked for, half of those that are known to hold it: whoever
    /// goes on from the cursor reads the sound ones before it, instead of failing on a whole page once more.
    #[must_use]
    pub fn next_page(&self) -> u64 {
        let next = match self.tainted {
            0 => self.limit,
            tainted => (tainted / 2).max(1),
        };
        next as u64
    }

    async fn page(&mut self) -> Result<Option<Portion>> {
        let (asked, begun) = (self.parts.clock.now(), Moment::now());
        let limit = self.limit;
        let source = &self.parts.source;
        match source.page(&self.scope, self.cursor.as_ref(), limit).await {
            Ok(page) => {
                let rows = page.rows.len() + page.misfits.len();
                if rows == 0 {
                    self.ended = self.is_really_the_end().await?;
                    return Ok(None);
                }
                self.adapt(&page, limit, begun.elapsed());
                self.seen += rows as u64;
                self.ended = rows < limit && planted(Bug::ShortIsTheEnd);
                self.note_sound(&page, rows);
                self.cursor = last_place(&page);
                if planted(Bug::TiesSkipped)
                    && let Some(cursor) = &mut self.cursor
                {
                    cursor.object = ObjectId::new("~");
                }
                Ok(Some(self.portion(page, asked, Vec::new())))
            }
            Err(error) if error.kind() == ErrorKind::SourceTooLarge && limit > 1 => {
                self.limit = limit / 2;
                self.terms.most = self.limit;
                Ok(None)
            }
            Err(error) if error.kind().bisects() => {
                let metas = source
                    .list(&self.scope, self.cursor.as_ref(), limit)
                    .await?;
                if metas.is_empty() {
                    self.ended = self.is_really_the_end().await?;
                }
                self.tainted = metas.len();
                self.suspects = metas.into();
                self.looks_back = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether all was seen, where the source shows nothing behind the cursor. Where the plan had counted more, a count has to
    /// say the same. If it does not, the source is asked once more: for the next page, or, if nothing is behind the cursor, for
    /// what it lists and has not shown.
    async fn is_really_the_end(&mut self) -> Result<bool> {
        if self.seen >= self.expected {
            return Ok(true);
        }
        let counted = self.parts.source.count(&self.scope).await?;
        if counted <= self.seen {
            return Ok(true);
        }
        if self.doubted {
            return Err(cut_short(counted - self.seen));
        }
        self.doubted = true;
        if self.count_behind().await? == 0 {
            self.look_back().await?;
        }
        Ok(false)
    }

    /// Makes suspects of all that is listed in the window, and neither in the store nor on its way there: it became visible
    /// where pages had passed already.
    ///
    /// # Errors
    /// `SourceUntrue` if it is not in pages even now.
    async fn look_back(&mut self) -> Result<()> {
        let mut listed = 0;
        let mut overlooked: Vec<Meta> = Vec::new();
        let Parts {
            source,
            store,
            transform,
            ..
        } = &self.parts;
        let mut listing = Listing::new(source.as_ref(), &self.scope, self.terms.list);
        while let Some(metas) = listing.next().await? {
            listed += metas.len() as u64;
            let on_its_way = |meta: &Meta| {
                let mut portions = self.handed_on.iter();
                portions.any(|objects| objects.contains(meta.uid.object_id()))
            };
            let lacking = missing(store.as_ref(), transform, metas).await?;
            overlooked.extend(lacking.into_iter().filter(|meta| !on_its_way(meta)));
        }
        if let Some(first) = overlooked.first()
            && !self.is_in_pages(first).await?
        {
            return Err(cut_short(overlooked.len() as u64));
        }
        self.seen = listed - overlooked.len() as u64;
        self.suspects = overlooked.into();
        self.tainted = 0;
        self.looks_back = true;
        Ok(())
    }

    /// Whether the page of its commit time holds a composition, or cannot be read.
    async fn is_in_pages(&self, meta: &Meta) -> Result<bool> {
        let scope = Scope {
            window: Window {
                from: meta.committed,
                to: meta.committed.successor(),
            },
            ..self.scope.clone()
        };
        let mut after: Option<Cursor> = None;
        loop {
            let page = match self
                .parts
                .source
                .page(&scope, after.as_ref(), self.limit)
                .await
            {
                Ok(page) => page,
                Err(error) if error.kind().bisects() => return Ok(true),
                Err(error) => return Err(error),
            };
            if absent(&page, std::iter::once(meta)).next().is_none() {
                return Ok(true);
            }
            let Some(last) = last_place(&page) else {
                return Ok(false);
            };
            after = Some(last);
        }
    }

    /// What the source counts with later commit times than the cursor's.
    async fn count_behind(&self) -> Result<u64> {
        let Some(cursor) = &self.cursor else {
            return self.parts.source.count(&self.scope).await;
        };
        let behind = Scope {
            window: Window {
                from: cursor.committed.successor(),
                ..self.scope.window
            },
            ..self.scope.clone()
        };
        match behind.window.is_empty() {
            true => Ok(0),
            false => self.parts.source.count(&behind).await,
        }
    }

    async fn next_comparison(&mut self) -> Result<Option<Portion>> {
        let asked = self.parts.clock.now();
        let metas = self
            .parts
            .source
            .list(&self.scope, self.cursor.as_ref(), self.terms.list)
            .await?;
        let Some(last) = metas.last().map(Meta::cursor) else {
            self.ended = true;
            return Ok(None);
        };
        let lacking = missing(self.parts.store.as_ref(), &self.parts.transform, metas).await?;
        self.suspects = lacking.into();
        self.tainted = 0;
        if self.suspects.is_empty() {
            self.cursor = Some(last);
            return Ok(Some(self.portion(Page::default(), asked, Vec::new())));
        }
        Ok(None)
    }

    async fn load_due(&mut self) -> Result<Option<Portion>> {
        let filter = QuarantineFilter {
            template: self.scope.templates.first().cloned(),
            tried_before: Some(self.due),
            object: None,
            after: self.loaded.take(),
        };
        let store = self.parts.store.as_ref();
        let due = quarantined(store, &self.parts.transform, &filter, DUE).await?;
        self.ended = due.len() < DUE;
        self.loaded = due.last().map(|entry| entry.place());
        if planted(Bug::RetryOutsideSelection) {
            self.scope.ehrs.clear();
        }
        let selected = |meta: &Meta| {
            self.scope.window.contains(meta.committed)
                && (self.scope.ehrs.is_empty() || self.scope.ehrs.contains(&meta.ehr))
        };
        self.suspects = due
            .into_iter()
            .map(|entry| entry.meta)
            .filter(selected)
            .collect();
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
        let asked = self.parts.clock.now();
        match self.fetch(&objects).await {
            Ok(page) => Ok(Some(self.fetched(page, asked, part))),
            Err(error) if error.kind().bisects() => {
                if part > 1 {
                    self.tainted = part;
                    return Ok(None);
                }
                self.believe(&objects, error).await.map(Some)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the first suspects. One that the source lists, and of which it shows nothing, cannot be read; one that it does not
    /// list any more is gone, or is another version now.
    async fn fetch(&self, objects: &[ObjectId]) -> Result<Page> {
        let page = self.parts.source.fetch(&self.scope, objects).await?;
        if self.kind == SliceKind::Retry {
            return Ok(page);
        }
        let asked = self.suspects.iter().take(objects.len());
        let absent: Vec<&Meta> = absent(&page, asked).collect();
        if self.lists_any(&absent).await? {
            return Err(Error::new(
                ErrorKind::SourceUnreadable,
                "read compositions by uid: the source lists them, and shows nothing of them",
            ));
        }
        Ok(page)
    }

    /// Whether the source still lists one of these versions.
    async fn lists_any(&self, metas: &[&Meta]) -> Result<bool> {
        let times = metas.iter().map(|meta| meta.committed);
        let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
            return Ok(false);
        };
        let scope = Scope {
            window: Window {
                from: first,
                to: last.successor(),
            },
            ..self.scope.clone()
        };
        let mut listing = Listing::new(self.parts.source.as_ref(), &scope, self.terms.list);
        while let Some(listed) = listing.next().await? {
            if listed.iter().any(|listed| {
                metas
                    .iter()
                    .any(|meta| meta.uid.identity() == listed.uid.identity())
            }) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first `part` suspects were read, as far as the source still shows them.
    fn fetched(&mut self, page: Page, asked: Instant, part: usize) -> Portion {
        self.tainted = self.tainted.saturating_sub(part);
        self.note_sound(&page, part);
        self.stride = (self.stride * 2).clamp(1, self.terms.most);
        let part = part.min(self.suspects.len());
        let metas: Vec<Meta> = self.suspects.drain(..part).collect();
        self.pass(metas.last(), page.rows.len() + page.misfits.len());
        let rejected = match self.kind {
            SliceKind::Retry => gone(&page, &metas),
            SliceKind::Read | SliceKind::Compare => Vec::new(),
        };
        self.portion(page, asked, rejected)
    }

    /// One suspect failed alone. It is believed to be a culprit if it fails again after the source has read something else.
    async fn believe(&mut self, culprit: &[ObjectId], error: Error) -> Result<Portion> {
        if !self.source_reads_something().await? {
            return Err(in_trouble(error));
        }
        let asked = self.parts.clock.now();
        let error = match self.fetch(culprit).await {
            Ok(page) => return Ok(self.fetched(page, asked, 1)),
            Err(error) if error.kind().bisects() => error,
            Err(error) => return Err(error),
        };
        self.tainted = 0;
        self.stride = match self.clean.replace(0) {
            Some(clean) => clean.clamp(1, self.terms.most),
            None => self.terms.most,
        };
        let meta = self.suspects.pop_front();
        self.pass(meta.as_ref(), 1);
        let rejected = meta.map(|meta| reject(meta, &error)).into_iter().collect();
        Ok(self.portion(Page::default(), asked, rejected))
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
                .parts
                .source
                .fetch(&anything, std::slice::from_ref(&sound))
                .await
            {
                Ok(page) if !page.rows.is_empty() => {
                    self.sound = Some(sound);
                    return Ok(true);
                }
                // Deleted meanwhile.
                Ok(_) => {
                    self.parts
                        .source
                        .list(&anything, None, self.terms.list)
                        .await?
                }
                Err(error) if error.kind().bisects() => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            },
            None => {
                self.parts
                    .source
                    .list(&anything, None, self.terms.list)
                    .await?
            }
        };
        let step = metas.len().div_ceil(CONTROLS).max(1);
        let controls: Vec<ObjectId> = metas
            .iter()
            .step_by(step)
            .map(|meta| meta.uid.object_id().clone())
            .collect();
        for control in controls {
            match self
                .parts
                .source
                .fetch(&anything, std::slice::from_ref(&control))
                .await
            {
                Ok(page) if page.rows.is_empty() => {}
                Ok(_) => {
                    self.sound = Some(control);
                    return Ok(true);
                }
                Err(error) if error.kind().bisects() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Moves the cursor behind a suspect, the last one of those of which the source has shown so many; retries have no place in
    /// the order of the source.
    fn pass(&mut self, meta: Option<&Meta>, seen: usize) {
        self.seen += seen as u64;
        if self.kind != SliceKind::Retry
            && !self.looks_back
            && let Some(meta) = meta
        {
            self.cursor = Some(meta.cursor());
        }
    }

    fn portion(&mut self, page: Page, asked: Instant, rejected: Vec<Rejected>) -> Portion {
        let rejected_here = rejected.iter().map(|rejected| &rejected.meta);
        let objects = metas(&page).chain(rejected_here);
        let objects = objects.map(|meta| meta.uid.object_id().clone()).collect();
        self.handed_on.push_back(objects);
        if self.handed_on.len() > ON_THEIR_WAY {
            self.handed_on.pop_front();
        }
        Portion {
            page,
            asked,
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

/// The source shows nothing where it counts something.
fn cut_short(left: u64) -> Error {
    Error::new(
        ErrorKind::SourceUntrue,
        format!("read a slice to its end: the server shows {left} compositions fewer than it counts"),
    )
    .fix("does a proxy or the server cut answers short? The slice goes on from its last checkpoint when the answers are whole")
}

fn in_trouble(cause: Error) -> Error {
    // Where all are too large, the limit is too small.
    let own = match cause.kind() {
        ErrorKind::SourceTooLarge => cause.help().map(str::to_owned),
        _ => None,
    };
    let fix = own.unwrap_or_else(|| {
        "look into the server's log; nothing was put into quarantine for this, and the next run goes on from here".to_owned()
    });
    Error::new(
        ErrorKind::SourceUnreachable,
        "read compositions: the source fails on every one that was tried",
    )
    .because(cause)
    .fix(fix)
}

fn reject(meta: Meta, error: &Error) -> Rejected {
    let reason = match error.kind() {
        ErrorKind::SourceTooLarge => Reason::TooLarge,
        _ => Reason::Unreadable,
    };
    Rejected::new(meta, reason, error.chain())
}

/// The place of the last row of a page.
fn last_place(page: &Page) -> Option<Cursor> {
    metas(page).map(Meta::cursor).max()
}

/// Of all rows of a page, whatever is wrong with them.
fn metas(page: &Page) -> impl Iterator<Item = &Meta> {
    let rows = page.rows.iter().map(|row| &row.meta);
    rows.chain(page.misfits.iter().map(|misfit| &misfit.meta))
}

/// Of the compositions that were asked for, those that a page does not hold.
fn absent<'m>(
    page: &Page,
    asked: impl Iterator<Item = &'m Meta>,
) -> impl Iterator<Item = &'m Meta> {
    let shown: HashSet<ObjectId> = metas(page)
        .map(|meta| meta.uid.object_id().clone())
        .collect();
    asked.filter(move |meta| !shown.contains(meta.uid.object_id()))
}

/// Of the compositions that were asked for again, those that the source does not show any more.
fn gone(page: &Page, asked: &[Meta]) -> Vec<Rejected> {
    let reason = "the source does not show it any more";
    absent(page, asked.iter())
        .map(|meta| Rejected::new(meta.clone(), Reason::Unreadable, reason))
        .collect()
}
