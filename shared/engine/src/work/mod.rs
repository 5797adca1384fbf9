//! One slice from lease to last checkpoint.
//!
//! ```text
//!  fetch ──► convert ──► commit        three tasks; a permit travels with each page,
//!    ▲                      │          and bounds the memory
//!    └────── permit ◄───────┘
//! ```
//! Permits are shared by all slices of a process. How many requests a source gets at once is up to the source: while one
//! slice reads an answer or commits its last page, another one's request is on its way.
//!
//! | module | what |
//! |---|---|
//! | [`budget`] | how long work may go on |
//! | [`page`] | reads the pages of a slice: adapts their size, isolates what the server cannot read |
//! | [`mod@convert`] | a page of the source to a batch of the store, in the format that was chosen |
//! | [`canonical`] | canonical JSON as such a format |
//! | [`flat`] | FLAT as such a format: templates kept, losses counted, a sample compared with the source's own |

pub mod budget;
pub mod canonical;
pub mod convert;
pub mod flat;
pub mod job;
pub mod page;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use atlas_openehr::id::{EhrId, TemplateId};
use atlas_openehr::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, ErrorKind, InMessage, Result};
use crate::model::{Commit, Committed, Counts, Cursor, LeaseTerms, Slice, SliceState};
use crate::ports::{Clock, Event, Observer, Rows, Source, Store};
use crate::seeded::{Bug, planted};
use crate::transform::Transform;
use crate::two_phase::adopt_landed;
pub use crate::work::budget::Budget;
use crate::work::convert::{Converted, Converters, convert_page, converters_of};
use crate::work::page::{Next, PageTerms, Parts, Portion, Reader};

/// Pages in memory for each request on the source: one fetched, one converted, one written.
pub const PAGES_IN_FLIGHT: usize = 3;

/// How far work on a slice came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The slice is finished.
    Done,
    /// The budget was spent; the rest goes on from the checkpoint.
    Paused,
    /// Another worker holds the slice, or finished it.
    Held,
}

/// Everything a worker needs; cheap to clone.
#[derive(Clone)]
pub struct Worker {
    /// Where compositions come from.
    pub source: Arc<dyn Source>,
    /// Where they go.
    pub store: Arc<dyn Store>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Is told what happens.
    pub observer: Arc<dyn Observer>,
    /// Stages and keys of the copy.
    pub transform: Transform,
    /// One for each page that may be in memory, over all slices of the process.
    pub permits: Arc<Semaphore>,
    /// Size of pages.
    pub pages: PageTerms,
    /// Duration of leases.
    pub lease: LeaseTerms,
    /// Unique among all workers that ever run.
    pub owner: String,
    /// Leases whose owner begins like this are taken over: the holder of the exclusive export hold knows that no other
    /// process of its kind is alive.
    pub dead: Option<&'static str>,
    /// What was tried last before this instant is due for another try.
    pub due: Instant,
}

/// What a slice is worked with.
#[derive(Clone)]
pub struct Task {
    /// The slice, as it was last seen.
    pub slice: Slice,
    /// The run in which it is worked.
    pub run: String,
    /// EHRs of the selection; empty = all.
    pub ehrs: Vec<EhrId>,
    /// Make what is written.
    pub converters: Arc<dyn Converters>,
}

impl Worker {
    /// Works a slice until it is done or the budget is spent. Every page is durable, with its checkpoint, before the
    /// next one is written. A slice that is paused begins its next part: `part` goes up by one.
    ///
    /// # Errors
    /// Whatever the source or the store could not do, and time that was over before the first page was durable; the slice is
    /// released with the reason, and keeps its checkpoint and what was learnt about the size of its pages.
    pub async fn work(&self, task: Task, budget: &Budget) -> Result<Progress> {
        let Some(mut slice) = self.take(&task.slice).await? else {
            return Ok(Progress::Held);
        };
        let first = slice.page;
        let next_page = Arc::new(AtomicU64::new(0));
        let read = self
            .read_to_end(&task, &mut slice, budget, &next_page)
            .await;
        let learnt = Some(next_page.load(Ordering::Relaxed)).filter(|next| *next > 0);
        let rest = Slice {
            next_page: learnt.or(slice.next_page),
            ..slice.clone()
        };
        let read = match read {
            Ok(Progress::Paused) if slice.page == first && budget.is_over() => Err(stood_still()),
            read => read,
        };
        match read {
            Ok(Progress::Paused) => {
                let rest = Slice {
                    part: slice.part + 1,
                    ..rest
                };
                self.release(&slice, rest).await?;
                Ok(Progress::Paused)
            }
            Ok(progress) => Ok(progress),
            Err(error) => {
                let failed = Slice {
                    failure: Some(error.chain()),
                    ..rest
                };
                if let Err(second) = self.release(&slice, failed).await {
                    tracing::warn!(
                        slice.kind = slice.kind.name(),
                        "a slice was not released and stays leased until it expires: {}",
                        second.chain()
                    );
                }
                Err(error)
            }
        }
    }

    /// Takes the lease and raises the fence: from here on, nobody with an older fence can commit to this slice.
    async fn take(&self, seen: &Slice) -> Result<Option<Slice>> {
        let Some(before) = self.store.ledger().slice(&seen.id).await? else {
            return Ok(None);
        };
        let now = self.clock.now();
        let owner = before.owner.as_deref().unwrap_or_default();
        let dead = self.dead.is_some_and(|like| owner.starts_with(like));
        if before.state == SliceState::Done || (before.is_leased(now) && !dead) {
            return Ok(None);
        }
        let after = Slice {
            state: SliceState::Open,
            fence: before.fence + 1,
            owner: Some(self.owner.clone()),
            lease_until: Some(now.saturating_add(self.lease.duration)),
            moved: before.moved.or(Some(now)),
            ..before.clone()
        };
        let Some(taken) = self.store.ledger().swap_slice(&before, &after).await? else {
            return Ok(None);
        };
        // Before anything is read: what the last worker landed and could not note is part of the slice.
        adopt_landed(self.store.as_ref(), taken).await
    }

    async fn release(&self, slice: &Slice, after: Slice) -> Result<()> {
        let after = Slice {
            owner: None,
            lease_until: None,
            ..after
        };
        // Refused means that somebody else took it: there is nothing left to release.
        self.store
            .ledger()
            .swap_slice(slice, &after)
            .await
            .map(|_| ())
    }

    async fn renew(&self, slice: &mut Slice) -> Result<()> {
        let until = self.clock.now().saturating_add(self.lease.duration);
        let renewed = Slice {
            lease_until: Some(until),
            ..slice.clone()
        };
        match self.store.ledger().swap_slice(slice, &renewed).await? {
            Some(renewed) => {
                *slice = renewed;
                Ok(())
            }
            None => Err(lost("renew the lease of a slice")),
        }
    }

    async fn read_to_end(
        &self,
        task: &Task,
        slice: &mut Slice,
        budget: &Budget,
        next_page: &Arc<AtomicU64>,
    ) -> Result<Progress> {
        let mut pages = self.fetch_and_convert(task, slice, budget, next_page);
        loop {
            let ready = tokio::select! {
                ready = pages.recv() => ready,
                // A page that is slow to come must not cost the lease.
                () = tokio::time::sleep(self.lease.duration / 3) => {
                    self.renew(slice).await?;
                    continue;
                }
            };
            let Some(ready) = ready else { break };
            let Ready {
                converted,
                cursor,
                bytes,
                permit,
            } = match ready {
                Ok(ready) => ready,
                Err(Stopped::Source(error)) => return Err(error),
                Err(Stopped::Template(template, error)) => {
                    let gives_up = error.kind().policy().message == InMessage::GiveUp;
                    if !gives_up || !slice.is_shared() {
                        return Err(error);
                    }
                    drop(pages);
                    self.take_out(slice, &template).await?;
                    pages = self.fetch_and_convert(task, slice, budget, next_page);
                    continue;
                }
            };
            let before = slice.clone();
            self.commit(task, slice, converted, cursor, SliceState::Open)
                .await?;
            drop(permit);
            self.report_page(&before, slice, bytes);
        }
        if !pages.ended.load(Ordering::Acquire) && !planted(Bug::StopIsTheEnd) {
            if budget.is_spent() {
                return Ok(Progress::Paused);
            }
            return Err(Error::new(
                ErrorKind::Internal,
                "read a slice to its end: a stage stopped without a reason",
            )
            .fix("please report this; the next run goes on from the last checkpoint"));
        }
        let cursor = slice.cursor.clone();
        self.commit(task, slice, Converted::default(), cursor, SliceState::Done)
            .await?;
        for template in slice.templates() {
            self.observer.event(&Event::SliceDone { template });
        }
        Ok(Progress::Done)
    }

    /// Tells of each template of a page, and of one at least; the bytes go to the first one.
    fn report_page(&self, before: &Slice, after: &Slice, bytes: u64) {
        let mut bytes = Some(bytes);
        let mut report = |template, counts| {
            self.observer.event(&Event::Page {
                template,
                counts,
                bytes: bytes.take().unwrap_or_default(),
            });
        };
        let lines = before.lines().zip(after.lines());
        let changed = lines.filter(|(before, after)| before.counts != after.counts);
        let mut changed = changed.peekable();
        if changed.peek().is_none() {
            report(&after.template, Counts::default());
        }
        for (before, after) in changed {
            report(after.template, after.counts.since(&before.counts));
        }
    }

    /// A template that cannot go on gets a slice of its own, and holds up nobody.
    async fn take_out(&self, slice: &mut Slice, template: &TemplateId) -> Result<()> {
        let Some((rest, own)) = slice.without(template) else {
            return Err(Error::new(
                ErrorKind::Internal,
                "take a template out of a slice that does not read it",
            )
            .fix("please report this; the next run goes on from the last checkpoint"));
        };
        let ledger = self.store.ledger();
        // First of all. Dying between the two costs only that the template is tried twice.
        ledger.add_slices(std::slice::from_ref(&own)).await?;
        match ledger.swap_slice(slice, &rest).await? {
            Some(rest) => {
                *slice = rest;
                Ok(())
            }
            None => Err(lost("take a template out of a slice")),
        }
    }

    /// Starts the two stages before the commit. They end with the answer's receiver.
    fn fetch_and_convert(
        &self,
        task: &Task,
        slice: &Slice,
        budget: &Budget,
        next_page: &Arc<AtomicU64>,
    ) -> Pages {
        let parts = Parts {
            source: Arc::clone(&self.source),
            store: Arc::clone(&self.store),
            transform: self.transform.clone(),
            clock: Arc::clone(&self.clock),
        };
        let mut reader = Reader::new(parts, slice, task.ehrs.clone(), self.pages, self.due);
        let (portions, mut to_convert) = mpsc::channel::<Result<Fetched>>(1);
        let (converted, ready) = mpsc::channel(1);
        let permits = Arc::clone(&self.permits);
        let ended = Arc::new(AtomicBool::new(false));

        let fetch = {
            let budget = budget.clone();
            let (ended, next_page) = (Arc::clone(&ended), Arc::clone(next_page));
            tokio::spawn(async move {
                while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                    // A page that is still on its way when the stop comes is read again by the next run.
                    let reading = reader.next(&budget);
                    let Some(next) = budget.stop.run_until_cancelled(reading).await else {
                        return;
                    };
                    next_page.store(reader.next_page(), Ordering::Relaxed);
                    let fetched = match next {
                        Ok(Next::Portion(portion)) => Ok(Fetched { portion, permit }),
                        Ok(Next::End) => {
                            ended.store(true, Ordering::Release);
                            return;
                        }
                        Ok(Next::Spent) => return,
                        Err(error) => Err(error),
                    };
                    let failed = fetched.is_err();
                    if portions.send(fetched).await.is_err() || failed {
                        return;
                    }
                }
            })
        };
        let convert = {
            let converters = Arc::clone(&task.converters);
            let (store, transform) = (Arc::clone(&self.store), self.transform.clone());
            tokio::spawn(async move {
                while let Some(fetched) = to_convert.recv().await {
                    let ready = match fetched {
                        Ok(fetched) => {
                            convert(fetched, converters.as_ref(), &transform, store.rows()).await
                        }
                        Err(error) => Err(Stopped::Source(error)),
                    };
                    if converted.send(ready).await.is_err() {
                        return;
                    }
                }
            })
        };
        Pages {
            ready,
            ended,
            _stages: [
                AbortOnDropHandle::new(fetch),
                AbortOnDropHandle::new(convert),
            ],
        }
    }

    async fn commit(
        &self,
        task: &Task,
        slice: &mut Slice,
        converted: Converted,
        cursor: Option<Cursor>,
        state: SliceState,
    ) -> Result<()> {
        let Converted {
            batch,
            rejected,
            filtered,
        } = converted;
        let now = self.clock.now();
        let batch = &Arc::new(batch);
        let committed = self
            .store
            .commit(&Commit {
                slice,
                batch,
                rejected: &rejected,
                filtered: &filtered,
                cursor,
                state,
                lease_until: (state == SliceState::Open)
                    .then(|| now.saturating_add(self.lease.duration)),
                run: &task.run,
                format: task.converters.format(),
                now,
            })
            .await?;
        match committed {
            Committed::Done(after) => {
                *slice = after;
                Ok(())
            }
            Committed::Lost => Err(lost("commit a page")),
        }
    }
}

fn lost(what: &str) -> Error {
    let action = format!("{what}: another worker took the slice meanwhile");
    Error::new(ErrorKind::LostLease, action)
        .fix("nothing is lost: the other worker goes on from the last checkpoint")
}

fn stood_still() -> Error {
    Error::new(
        ErrorKind::SourceUnreachable,
        "read a page of a slice: the time of its part was over before the first page was durable",
    )
    .fix(
        "The slice is tried again, with smaller pages. If it goes on like this, the source or the store is too slow for the time \
         of a function: give the functions more time, or look for what slows the server down",
    )
}

async fn convert(
    fetched: Fetched,
    converters: &dyn Converters,
    transform: &Transform,
    rows: &dyn Rows,
) -> std::result::Result<Ready, Stopped> {
    let Fetched { portion, permit } = fetched;
    let Portion {
        page,
        asked,
        rejected,
        cursor,
    } = *portion;
    let mut converted = loop {
        let found = converters_of(&page, converters)
            .await
            .map_err(|(template, error)| Stopped::Template(template, error))?;
        let converted = convert_page(&page, asked, &found, transform, rows)
            .await
            .map_err(Stopped::Source)?;
        let mut has_changed = false;
        for template in found.keys() {
            let refreshed = converters.refresh(template).await;
            has_changed |= refreshed.map_err(|error| Stopped::Template(template.clone(), error))?;
        }
        if !has_changed {
            break converted;
        }
    };
    for mut rejected in rejected {
        rejected.key = transform.keys.key(&rejected.meta);
        converted.rejected.push(rejected);
    }
    Ok(Ready {
        converted,
        cursor,
        bytes: page.text.len() as u64,
        permit,
    })
}

/// Why a stage stopped.
enum Stopped {
    /// The source or the store could not go on.
    Source(Error),
    /// The compositions of this template cannot be converted.
    Template(TemplateId, Error),
}

struct Fetched {
    portion: Box<Portion>,
    permit: OwnedSemaphorePermit,
}

struct Ready {
    converted: Converted,
    cursor: Option<Cursor>,
    bytes: u64,
    permit: OwnedSemaphorePermit,
}

/// Converted pages in order; dropping it ends the stages behind it.
struct Pages {
    ready: mpsc::Receiver<std::result::Result<Ready, Stopped>>,
    /// Set before the channel closes if the source had no more; a spent budget closes it without.
    ended: Arc<AtomicBool>,
    _stages: [AbortOnDropHandle<()>; 2],
}

impl Pages {
    async fn recv(&mut self) -> Option<std::result::Result<Ready, Stopped>> {
        self.ready.recv().await
    }
}
