//! The twin of the real stores, in memory: what the engine's tests, the stores' shared suite and the
//! benchmark of the engine run against. Faults are scripted, or come by chance from a seed.
//!
//! | module | what |
//! |---|---|
//! | this one | [`MemoryStore`], its [modes](Commits) and its faults; a simulated clock |
//! | `rows` | the copy, with and without transactions, and as a sink that only appends |
//! | `ledger` | the control records |

mod ledger;
mod rows;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::json::Checksum;
use atlas_openehr::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Commit, Committed, Counts, Deleted, Format, LandAnswer, Meta, Quarantined, Record, Run,
    SelectionKey, SideRow, Slice, StoredTemplate, Watermark, counts_of,
};
use crate::ports::{Clock, Event, Index, Ledger, Observer, Rows, Store, Templates};
use crate::seeded::{Bug, planted};
use crate::two_phase::two_phase_commit;
use rows::LandedBefore;

/// How a page and its checkpoint become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commits {
    /// Together, as in SQLite and PostgreSQL.
    InOneTransaction,
    /// In two phases, row by row, as in Cosmos DB: an error can leave half of a page behind.
    InTwoPhases,
    /// In two phases, into a sink that only appends whole pages, as a lake: a page that lands twice is there twice.
    ByAppending,
}

impl Commits {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::InOneTransaction, Self::InTwoPhases, Self::ByAppending];
}

/// What goes wrong at a step of a commit: the commit itself, or one of its two phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused before anything happened.
    Refuse(ErrorKind),
    /// Everything happened; the answer is lost.
    LoseAnswer(ErrorKind),
    /// Half of it happened, if it has halves: some rows landed. With transactions, and where pages are appended whole, nothing did.
    DieBetween(ErrorKind),
}

/// A composition as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What identifies and places it, as the copy shows it.
    pub meta: Meta,
    /// In the chosen format; empty if the store was told to forget contents.
    pub content: String,
    /// Of the content.
    pub checksum: Checksum,
    /// The chosen format.
    pub format: Format,
    /// When it was asked for.
    pub asked: Instant,
    /// Set in a tombstone.
    pub deleted: Option<Deleted>,
    /// What the conversion made beside it.
    pub side_rows: Vec<SideRow>,
    /// The run that wrote it.
    pub run: String,
    landed: LandedBefore,
}

/// One line of a sink that only appends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Appended {
    /// The slice that brought it.
    pub slice: String,
    /// The page that brought it.
    pub page: u64,
    /// Its object.
    pub object: ObjectId,
    /// Its version.
    pub version: u32,
}

#[derive(Debug, Default)]
struct Tables {
    compositions: BTreeMap<ObjectId, Stored>,
    /// Only where pages are appended.
    appended: Vec<Appended>,
    landed: BTreeMap<String, rows::SlicePages>,
    quarantine: BTreeMap<ObjectId, Quarantined>,
    slices: BTreeMap<String, Slice>,
    /// Of slices that were removed.
    counts: BTreeMap<TemplateId, Counts>,
    watermarks: BTreeMap<(SelectionKey, TemplateId), Watermark>,
    runs: Vec<Run>,
    records: BTreeMap<String, Record>,
    templates: BTreeMap<TemplateId, StoredTemplate>,
    /// The fault of the n-th step from now on; `None` = it succeeds.
    script: VecDeque<Option<Fault>>,
    chance: Option<(fastrand::Rng, u8)>,
    commits: u64,
    /// The most entries of the quarantine that were answered at once.
    most_quarantined: usize,
    /// Fence and page of each change of a slice that moved its page, in order.
    history: BTreeMap<String, Vec<(u64, u64)>>,
}

/// A store in memory.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    tables: Arc<Mutex<Tables>>,
    commits: Commits,
    keeps_content: bool,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(commits: Commits) -> Self {
        Self {
            tables: Arc::default(),
            commits,
            keeps_content: true,
        }
    }

    /// An empty store that checks and counts everything and keeps no content: what a benchmark of the engine needs.
    #[must_use]
    pub fn forgetting() -> Self {
        Self {
            keeps_content: false,
            ..Self::new(Commits::InOneTransaction)
        }
    }

    /// What goes wrong at the next steps of commits, one entry each; forgets what was scripted before.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        let mut tables = self.tables();
        tables.script = faults.into_iter().collect();
        tables.chance = None;
    }

    /// From now on each step of a commit fails with this chance in percent, before or after it happened.
    pub fn fail_by_chance(&self, percent: u8, seed: u64) {
        self.tables().chance = Some((fastrand::Rng::with_seed(seed), percent));
    }

    /// Every composition, tombstones included, by object id.
    #[must_use]
    pub fn compositions(&self) -> Vec<Stored> {
        self.tables().compositions.values().cloned().collect()
    }

    /// Every line that was appended, in order; empty unless pages are appended.
    #[must_use]
    pub fn appended(&self) -> Vec<Appended> {
        self.tables().appended.clone()
    }

    /// Fence and page of every page that was committed, by slice, in order.
    #[must_use]
    pub fn history(&self) -> BTreeMap<String, Vec<(u64, u64)>> {
        self.tables().history.clone()
    }

    /// The most entries of the quarantine that were ever answered at once.
    #[must_use]
    pub fn most_quarantined(&self) -> usize {
        self.tables().most_quarantined
    }

    /// How many commits were asked for.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.tables().commits
    }

    /// A panic in another test thread leaves the tables as they were between two statements: still readable.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong at this step.
    fn next_fault(&self) -> Option<Fault> {
        self.tables().next_fault()
    }
}

impl Tables {
    /// Remembers that a slice is about to come to its next page.
    fn note_page(&mut self, after: &Slice) {
        let page = (after.fence, after.page);
        self.history.entry(after.id.clone()).or_default().push(page);
    }

    fn next_fault(&mut self) -> Option<Fault> {
        if let Some(fault) = self.script.pop_front() {
            return fault;
        }
        let (rng, percent) = self.chance.as_mut()?;
        if rng.u8(0..100) >= *percent {
            return None;
        }
        let kind = ErrorKind::StoreUnreachable;
        Some(match rng.u8(0..3) {
            0 => Fault::Refuse(kind),
            1 => Fault::LoseAnswer(kind),
            _ => Fault::DieBetween(kind),
        })
    }
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "commit a page: a scripted fault")
}

#[async_trait]
impl Store for MemoryStore {
    fn rows(&self) -> &dyn Rows {
        self
    }

    fn index(&self) -> &dyn Index {
        self
    }

    fn ledger(&self) -> &dyn Ledger {
        self
    }

    fn templates(&self) -> &dyn Templates {
        self
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        self.tables().commits += 1;
        if self.commits != Commits::InOneTransaction {
            return two_phase_commit(self, commit).await;
        }
        let mut tables = self.tables();
        let fault = tables.next_fault();
        if let Some(Fault::Refuse(kind) | Fault::DieBetween(kind)) = fault {
            return Err(injected(kind));
        }
        let committed = tables.commit(commit, self.keeps_content);
        match fault {
            Some(Fault::LoseAnswer(kind)) => Err(injected(kind)),
            _ => Ok(committed),
        }
    }
}

impl Tables {
    /// All of it, as one transaction.
    fn commit(&mut self, commit: &Commit<'_>, keeps_content: bool) -> Committed {
        let stands = match self.slices.get(&commit.slice.id) {
            Some(stands) if commit.applies_to(stands) => stands.clone(),
            Some(stands) if commit.was_applied_to(stands) => {
                return Committed::Done(stands.clone());
            }
            _ => return Committed::Lost,
        };
        let entries: Vec<_> = commit
            .rejected
            .iter()
            .filter(|rejected| {
                self.compositions
                    .get(&rejected.key.object)
                    .is_none_or(|held| held.meta.uid.version() <= rejected.meta.uid.version())
            })
            .collect();
        for rejected in entries
            .iter()
            .filter(|_| !planted(Bug::QuarantineForgotten))
        {
            self.reject(rejected, commit.run, commit.now);
        }
        let landing = commit.landing(entries.iter().copied());
        let LandAnswer::Landed(landed) = self.land_rows(&landing, keeps_content) else {
            return Committed::Lost;
        };
        for row in &commit.batch.rows {
            self.end_entry(row.meta.uid.identity());
        }
        let after = commit.apply(stands, &counts_of(&landing, &landed));
        self.note_page(&after);
        self.slices.insert(after.id.clone(), after.clone());
        Committed::Done(after)
    }
}

#[async_trait]
impl Templates for MemoryStore {
    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        Ok(self.tables().templates.get(template).cloned())
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        self.tables()
            .templates
            .insert(template.template.clone(), template.clone());
        Ok(())
    }
}

/// A clock that follows tokio's, so that a test with paused time turns both at once.
#[derive(Debug, Clone, Copy)]
pub struct SimulatedClock {
    begun: tokio::time::Instant,
    base: Instant,
}

impl SimulatedClock {
    /// Shows `base` now.
    #[must_use]
    pub fn starting_at(base: Instant) -> Self {
        Self {
            begun: tokio::time::Instant::now(),
            base,
        }
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        self.base.saturating_add(self.begun.elapsed())
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn event(&self, _event: &Event<'_>) {}
}
