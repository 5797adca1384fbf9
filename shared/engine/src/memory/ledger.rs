//! The control records in memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use atlas_openehr::id::{ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;

use super::{Commits, Fault, MemoryStore, Tables, injected};
use crate::error::Result;
use crate::model::{
    Counts, Format, Origin, QuarantineCount, QuarantineFilter, Quarantined, Reason, Record,
    Rejected, Run, SelectionKey, Slice, SliceFilter, SliceState, SlicesOf, TemplateCounts, Totals,
    Watermark,
};
use crate::ports::Ledger;

impl Tables {
    pub(super) fn reject(&mut self, rejected: &Rejected, run: &str, now: Instant) {
        let object = rejected.meta.uid.object_id();
        let version = rejected.meta.uid.version();
        let entry = self.quarantine.get(object);
        if entry.is_some_and(|entry| entry.meta.uid.version() > version) {
            return;
        }
        let same = entry.filter(|entry| entry.meta.uid.version() == version);
        let entry = Quarantined {
            meta: rejected.meta.clone(),
            reason: rejected.reason,
            detail: rejected.detail.clone(),
            run: same.map_or_else(|| run.to_owned(), |entry| entry.run.clone()),
            since: same.map_or(now, |entry| entry.since),
            tried: now,
            tries: same.map_or(1, |entry| entry.tries + u32::from(entry.tried_by != run)),
            tried_by: run.to_owned(),
        };
        self.quarantine.insert(object.clone(), entry);
    }

    pub(super) fn end_entry(&mut self, version: &ObjectVersion) {
        let ends = self
            .quarantine
            .get(&version.object_id)
            .is_some_and(|entry| entry.meta.uid.version() <= version.version);
        if ends {
            self.quarantine.remove(&version.object_id);
        }
    }

    /// Removes a slice; its counts stay.
    fn remove_slice(&mut self, id: &str) {
        if let Some(slice) = self.slices.remove(id) {
            for line in slice.lines() {
                *self.counts.entry(line.template.clone()).or_default() += line.counts;
            }
        }
    }
}

impl MemoryStore {
    /// A step of a commit in two phases, with what is to go wrong at it.
    fn step<T>(&self, step: impl FnOnce(&mut Tables) -> T) -> Result<T> {
        let fault = match self.commits {
            Commits::InOneTransaction => None,
            Commits::InTwoPhases | Commits::ByAppending => self.next_fault(),
        };
        if let Some(Fault::Refuse(kind) | Fault::DieBetween(kind)) = fault {
            return Err(injected(kind));
        }
        let done = step(&mut self.tables());
        match fault {
            Some(Fault::LoseAnswer(kind)) => Err(injected(kind)),
            _ => Ok(done),
        }
    }
}

#[async_trait]
impl Ledger for MemoryStore {
    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    async fn now(&self) -> Result<Option<Instant>> {
        Ok(None)
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
            if held.until < watermark.until {
                held.until = watermark.until;
                held.position.clone_from(&watermark.position);
            }
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
        let others: Vec<String> = tables
            .slices
            .values()
            .filter(|slice| !slice.selection.0.starts_with(&prefix))
            .map(|slice| slice.id.clone())
            .collect();
        for id in others {
            tables.remove_slice(&id);
        }
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

    async fn find_slices(&self, filter: &SliceFilter<'_>, limit: usize) -> Result<Vec<Slice>> {
        let tables = self.tables();
        let mut found: Vec<&Slice> = tables
            .slices
            .values()
            .filter(|slice| filter.takes(slice))
            .collect();
        let place = |slice: &Slice| (slice.window.from, slice.window.to, slice.id.clone());
        match filter {
            SliceFilter::Waiting { .. } => {
                found.sort_by_key(|slice| (slice.template.clone(), place(slice)));
            }
            SliceFilter::Read { .. } | SliceFilter::ReadTogether { .. } => {
                found.sort_by_key(|slice| place(slice));
            }
            SliceFilter::UnderWay { .. } | SliceFilter::Failed { .. } => {
                found.sort_by_key(|slice| slice.id.clone());
            }
        }
        Ok(found.into_iter().take(limit).cloned().collect())
    }

    async fn slice_totals(&self, of: SlicesOf<'_>, now: Instant) -> Result<Totals> {
        let mut totals = Totals::default();
        for slice in self.tables().slices.values() {
            if of.takes(slice) {
                totals.add(slice, now);
            }
        }
        Ok(totals)
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        Ok(self.tables().slices.get(id).cloned())
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        self.step(|tables| {
            let now = tables.slices.get(&before.id)?.clone();
            let wanted = Slice {
                step: before.step + 1,
                ..after.clone()
            };
            let applies = now.step == before.step && now.fence == before.fence;
            if applies {
                if now.page != wanted.page {
                    tables.note_page(&wanted);
                }
                tables.slices.insert(wanted.id.clone(), wanted.clone());
            }
            (applies || now == wanted).then_some(wanted)
        })
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        let mut tables = self.tables();
        for id in ids {
            let done = tables
                .slices
                .get(id)
                .is_some_and(|slice| slice.state == SliceState::Done);
            if done {
                tables.remove_slice(id);
            }
        }
        Ok(())
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        let mut tables = self.tables();
        for id in ids {
            tables.remove_slice(id);
        }
        Ok(())
    }

    async fn template_counts(&self) -> Result<Vec<TemplateCounts>> {
        let tables = self.tables();
        let mut sums: BTreeMap<TemplateId, Counts> = tables.counts.clone();
        for slice in tables.slices.values() {
            for line in slice.lines() {
                *sums.entry(line.template.clone()).or_default() += line.counts;
            }
        }
        Ok(sums
            .into_iter()
            .map(|(template, counts)| TemplateCounts { template, counts })
            .collect())
    }

    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()> {
        self.tables().counts.insert(template.clone(), *counts);
        Ok(())
    }

    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()> {
        self.step(|tables| {
            for rejected in rejected {
                tables.reject(rejected, run, now);
            }
        })
    }

    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()> {
        self.step(|tables| {
            for version in versions {
                tables.end_entry(version);
            }
        })
    }

    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>> {
        let tables = self.tables();
        Ok(objects
            .iter()
            .filter_map(|object| {
                let entry = tables.quarantine.get(object)?;
                Some((object.clone(), entry.meta.uid.version()))
            })
            .collect())
    }

    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>> {
        let mut tables = self.tables();
        let mut entries: Vec<&Quarantined> = tables
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
                    && filter
                        .after
                        .as_ref()
                        .is_none_or(|after| entry.place() > *after)
            })
            .collect();
        entries.sort_by_key(|entry| entry.place());
        let answer: Vec<Quarantined> = entries.into_iter().take(limit).cloned().collect();
        tables.most_quarantined = tables.most_quarantined.max(answer.len());
        Ok(answer)
    }

    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>> {
        let mut counts: BTreeMap<(TemplateId, Reason), QuarantineCount> = BTreeMap::new();
        for entry in self.tables().quarantine.values() {
            if tried_before.is_some_and(|before| entry.tried >= before) {
                continue;
            }
            let template = entry.meta.template.clone();
            let count = counts
                .entry((template.clone(), entry.reason))
                .or_insert_with(|| QuarantineCount {
                    template,
                    reason: entry.reason,
                    entries: 0,
                    oldest: entry.since,
                });
            count.entries += 1;
            count.oldest = count.oldest.min(entry.since);
        }
        Ok(counts.into_values().collect())
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        let mut tables = self.tables();
        let is_new = tables.runs.iter().all(|other| other.id != run.id);
        if is_new {
            tables.runs.push(run.clone());
        }
        Ok(is_new)
    }

    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>> {
        let after = Run {
            id: before.id.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        let mut tables = self.tables();
        let stands = tables.runs.iter_mut().find(|run| run.id == after.id);
        Ok(stands.and_then(|stands| {
            if stands.step == before.step {
                stands.clone_from(&after);
            }
            (*stands == after).then_some(after)
        }))
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

    async fn prune_runs(&self, ended_before: Instant) -> Result<()> {
        let mut tables = self.tables();
        let of_slices = tables.slices.values().map(|slice| slice.run.clone());
        let of_quarantine = tables
            .quarantine
            .values()
            .flat_map(|entry| [entry.run.clone(), entry.tried_by.clone()]);
        let spoken_of: HashSet<String> = of_slices.chain(of_quarantine).collect();
        tables.runs.retain(|run| {
            run.ended.is_none_or(|ended| ended >= ended_before) || spoken_of.contains(&run.id)
        });
        Ok(())
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
}
