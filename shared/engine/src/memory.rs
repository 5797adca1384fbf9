//! The twin of the real stores and sources, in memory: what the engine's tests, the stores' shared suite and the
//! benchmark of the engine run against. Faults are scripted, never random by themselves.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::json::{Checksum, Node};
use atlas_openehr::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Commit, Committed, Format, Holding, Known, Meta, Origin, QuarantineFilter, Quarantined, Reason,
    Record, Rejected, Run, SelectionKey, Slice, SliceState, StoredTemplate, Watermark,
};
use crate::ports::{Clock, Event, Hold, Observer, Store};

/// Whether a page and its checkpoint become durable together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomicity {
    /// In one commit, as in SQLite and PostgreSQL.
    Transactions,
    /// Rows first, then the slice by compare-and-swap, as in Cosmos DB and object stores.
    RowsFirst,
}

/// What goes wrong at a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused before anything happened.
    Refuse(ErrorKind),
    /// Everything happened; the answer is lost.
    LoseAnswer(ErrorKind),
    /// The rows landed, the checkpoint did not. With transactions nothing landed.
    DieBetween(ErrorKind),
}

/// A composition as the store keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What identifies and places it.
    pub meta: Meta,
    /// In the chosen format; empty if the store was reported to forget contents.
    pub content: String,
    /// Of the content.
    pub checksum: Checksum,
    /// The chosen format.
    pub format: Format,
    /// The run that wrote it.
    pub run: String,
}

#[derive(Debug, Default)]
struct Tables {
    compositions: BTreeMap<ObjectId, Stored>,
    quarantine: BTreeMap<ObjectId, Quarantined>,
    slices: BTreeMap<String, Slice>,
    watermarks: BTreeMap<(SelectionKey, TemplateId), Watermark>,
    runs: Vec<Run>,
    records: BTreeMap<String, Record>,
    templates: BTreeMap<TemplateId, StoredTemplate>,
    holds: HashSet<String>,
    /// The fault of the n-th commit from now on; `None` = it succeeds.
    script: std::collections::VecDeque<Option<Fault>>,
    commits: u64,
}

/// A store in memory.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    tables: Arc<Mutex<Tables>>,
    atomicity: Atomicity,
    keeps_content: bool,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(atomicity: Atomicity) -> Self {
        Self {
            tables: Arc::default(),
            atomicity,
            keeps_content: true,
        }
    }

    /// An empty store that checks and counts everything and keeps no content: what a benchmark of the engine needs.
    #[must_use]
    pub fn forgetting() -> Self {
        Self {
            keeps_content: false,
            ..Self::new(Atomicity::Transactions)
        }
    }

    /// What goes wrong at the next commits, one entry each.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.tables().script.extend(faults);
    }

    /// Every composition, by object id.
    #[must_use]
    pub fn compositions(&self) -> Vec<Stored> {
        self.tables().compositions.values().cloned().collect()
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
}

impl Tables {
    /// Answers the slice as it stands now, or why the commit does not apply.
    fn check(&self, commit: &Commit<'_>) -> Check {
        match self.slices.get(&commit.slice.id) {
            Some(now) if commit.applies_to(now) => Check::Applies(Box::new(now.clone())),
            Some(now) if commit.was_applied_to(now) => Check::Applied(Box::new(now.clone())),
            _ => Check::Lost,
        }
    }

    /// Answers how many rows were written.
    fn land_rows(&mut self, commit: &Commit<'_>, keeps_content: bool) -> u64 {
        let mut written = 0;
        for row in &commit.batch.rows {
            let object = row.meta.uid.object_id();
            let version = row.meta.uid.version();
            let keeps = self.compositions.get(object).is_none_or(|old| {
                let held = old.meta.uid.version();
                held < version
                    || (held == version
                        && (old.checksum != row.checksum || old.format != commit.format))
            });
            if keeps {
                written += 1;
                let content = if keeps_content {
                    commit.batch.content(row).to_owned()
                } else {
                    String::new()
                };
                let stored = Stored {
                    meta: row.meta.clone(),
                    content,
                    checksum: row.checksum,
                    format: commit.format,
                    run: commit.run.to_owned(),
                };
                self.compositions.insert(object.clone(), stored);
            }
            if self
                .quarantine
                .get(object)
                .is_some_and(|entry| entry.meta.uid.version() <= version)
            {
                self.quarantine.remove(object);
            }
        }
        for rejected in commit.rejected {
            self.reject(rejected, commit);
        }
        written
    }

    fn reject(&mut self, rejected: &Rejected, commit: &Commit<'_>) {
        let object = rejected.meta.uid.object_id();
        let version = rejected.meta.uid.version();
        let newer_in_store = self
            .compositions
            .get(object)
            .is_some_and(|held| held.meta.uid.version() > version);
        let entry = self.quarantine.get(object);
        if newer_in_store || entry.is_some_and(|entry| entry.meta.uid.version() > version) {
            return;
        }
        let same = entry.filter(|entry| entry.meta.uid.version() == version);
        let entry = Quarantined {
            meta: rejected.meta.clone(),
            reason: rejected.reason,
            detail: rejected.detail.clone(),
            run: same.map_or_else(|| commit.run.to_owned(), |entry| entry.run.clone()),
            since: same.map_or(commit.now, |entry| entry.since),
            tried: commit.now,
            tries: same.map_or(0, |entry| entry.tries) + 1,
        };
        self.quarantine.insert(object.clone(), entry);
    }
}

enum Check {
    /// The slice as it stands.
    Applies(Box<Slice>),
    Applied(Box<Slice>),
    Lost,
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "commit a page: a scripted fault")
}

struct MemoryHold {
    tables: Arc<Mutex<Tables>>,
    name: String,
}

impl Drop for MemoryHold {
    fn drop(&mut self) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.holds.remove(&self.name);
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn refuses(&self, _content: Node<'_>) -> Option<(Reason, String)> {
        None
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn hold(&self, name: &str) -> Result<Option<Hold>> {
        let free = self.tables().holds.insert(name.to_owned());
        Ok(free.then(|| -> Hold {
            Box::new(MemoryHold {
                tables: Arc::clone(&self.tables),
                name: name.to_owned(),
            })
        }))
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        Ok(self
            .tables()
            .watermarks
            .iter()
            .filter(|((of, _), _)| of == selection)
            .map(|(_, watermark)| watermark.clone())
            .collect())
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        let mut tables = self.tables();
        for watermark in watermarks {
            let key = (selection.clone(), watermark.template.clone());
            let held = tables
                .watermarks
                .entry(key)
                .or_insert_with(|| watermark.clone());
            held.until = watermark.until.max(held.until);
            held.late_checked_until = watermark.late_checked_until.max(held.late_checked_until);
        }
        Ok(())
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        let mut tables = self.tables();
        for template in templates {
            tables
                .watermarks
                .remove(&(selection.clone(), template.clone()));
        }
        Ok(())
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        let prefix = SelectionKey::prefix(format);
        let mut tables = self.tables();
        tables
            .watermarks
            .retain(|(selection, _), _| selection.0.starts_with(&prefix));
        tables
            .slices
            .retain(|_, slice| slice.selection.0.starts_with(&prefix));
        Ok(())
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        let mut tables = self.tables();
        for slice in slices {
            tables
                .slices
                .entry(slice.id.clone())
                .or_insert_with(|| slice.clone());
        }
        Ok(())
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        let mut slices: Vec<Slice> = self
            .tables()
            .slices
            .values()
            .filter(|slice| &slice.selection == selection)
            .cloned()
            .collect();
        slices.sort_by(|a, b| {
            (&a.template, a.window.from, &a.id).cmp(&(&b.template, b.window.from, &b.id))
        });
        Ok(slices)
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        Ok(self.tables().slices.get(id).cloned())
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        let mut tables = self.tables();
        let Some(now) = tables.slices.get_mut(&before.id) else {
            return Ok(None);
        };
        let wanted = Slice {
            step: before.step + 1,
            ..after.clone()
        };
        if now.step == before.step && now.fence == before.fence {
            *now = wanted.clone();
        }
        Ok((*now == wanted).then_some(wanted))
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        let mut tables = self.tables();
        for id in ids {
            if tables
                .slices
                .get(id)
                .is_some_and(|slice| slice.state == SliceState::Done)
            {
                tables.slices.remove(id);
            }
        }
        Ok(())
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        self.tables().slices.retain(|id, _| !ids.contains(id));
        Ok(())
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        let mut tables = self.tables();
        tables.commits += 1;
        let fault = tables.script.pop_front().flatten();
        if let Some(Fault::Refuse(kind)) = fault {
            return Err(injected(kind));
        }
        if let (Some(Fault::DieBetween(kind)), Atomicity::Transactions) = (fault, self.atomicity) {
            return Err(injected(kind));
        }
        let stands = match tables.check(commit) {
            Check::Applied(slice) => return Ok(Committed::Done(*slice)),
            Check::Lost => {
                if self.atomicity == Atomicity::RowsFirst {
                    // Rows are right by themselves: without a transaction they land before the refusal is known.
                    tables.land_rows(commit, self.keeps_content);
                }
                return Ok(Committed::Lost);
            }
            Check::Applies(slice) => *slice,
        };
        let written = tables.land_rows(commit, self.keeps_content);
        if let Some(Fault::DieBetween(kind)) = fault {
            return Err(injected(kind));
        }
        let after = commit.apply(stands, written);
        tables.slices.insert(after.id.clone(), after.clone());
        match fault {
            Some(Fault::LoseAnswer(kind)) => Err(injected(kind)),
            _ => Ok(Committed::Done(after)),
        }
    }

    async fn known(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Known>> {
        let tables = self.tables();
        Ok(objects
            .iter()
            .filter_map(|object| {
                let stored = tables.compositions.get(object).map(|row| &row.meta.uid);
                let waiting = tables.quarantine.get(object).map(|entry| &entry.meta.uid);
                let newest = stored
                    .into_iter()
                    .chain(waiting)
                    .max_by_key(|uid| uid.version())?;
                let version = newest.identity().clone();
                Some((object.clone(), Known { version }))
            })
            .collect())
    }

    async fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<Quarantined>> {
        let mut entries: Vec<Quarantined> = self
            .tables()
            .quarantine
            .values()
            .filter(|entry| {
                filter
                    .template
                    .as_ref()
                    .is_none_or(|template| template == &entry.meta.template)
                    && filter
                        .tried_before
                        .is_none_or(|before| entry.tried < before)
                    && filter
                        .object
                        .as_ref()
                        .is_none_or(|object| object == entry.meta.uid.object_id())
            })
            .cloned()
            .collect();
        entries.sort_by_key(|entry| entry.tried);
        entries.truncate(filter.limit.unwrap_or(usize::MAX));
        Ok(entries)
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        let mut holdings: BTreeMap<TemplateId, Holding> = BTreeMap::new();
        for row in self.tables().compositions.values() {
            let holding = holdings
                .entry(row.meta.template.clone())
                .or_insert_with(|| Holding {
                    template: row.meta.template.clone(),
                    compositions: 0,
                    newest: None,
                });
            holding.compositions += 1;
            holding.newest = holding.newest.max(Some(row.meta.committed));
        }
        Ok(holdings.into_values().collect())
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        let mut tables = self.tables();
        let is_new = tables.runs.iter().all(|other| other.id != run.id);
        if is_new {
            tables.runs.push(run.clone());
        }
        Ok(is_new)
    }

    async fn save_run(&self, run: &Run) -> Result<()> {
        let mut tables = self.tables();
        tables.runs.retain(|other| other.id != run.id);
        tables.runs.push(run.clone());
        Ok(())
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        let mut runs = self.tables().runs.clone();
        runs.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
        runs.truncate(limit);
        Ok(runs)
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        let tables = self.tables();
        Ok(tables.runs.iter().find(|run| run.id == id).cloned())
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = self
            .tables()
            .runs
            .iter()
            .filter(|run| run.origin == origin && run.ended.is_none())
            .cloned()
            .collect();
        runs.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        Ok(runs)
    }

    async fn now(&self) -> Result<Option<Instant>> {
        Ok(None)
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        Ok(self
            .tables()
            .records
            .values()
            .filter(|record| record.name.starts_with(prefix))
            .cloned()
            .collect())
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        let mut tables = self.tables();
        let wanted = Record {
            name: before.name.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        let step = tables.records.get(&before.name).map_or(0, |now| now.step);
        if step == before.step {
            tables.records.insert(before.name.clone(), wanted.clone());
        }
        Ok((tables.records.get(&before.name) == Some(&wanted)).then_some(wanted))
    }

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
