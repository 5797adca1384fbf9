//! The control records.

use std::collections::HashMap;

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::{
    Counts, Format, Origin, QuarantineCount, QuarantineFilter, Quarantined, Record, Rejected, Run,
    SelectionKey, Slice, SliceFilter, SlicesOf, TemplateCounts, Totals, Watermark,
};
use atlas_engine::ports::{Hold, Ledger};
use atlas_openehr::id::{ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;
use rusqlite::{OptionalExtension, params};

use crate::records::{Time, template_id};
use crate::{SqliteStore, lock, quarantine, records, slices};

#[async_trait]
impl Ledger for SqliteStore {
    async fn prepare(&self) -> Result<()> {
        self.worker.prepare().await
    }

    /// All processes of a file are on its machine.
    async fn now(&self) -> Result<Option<Instant>> {
        Ok(None)
    }

    async fn hold(&self, name: &str) -> Result<Hold> {
        Ok(lock::try_hold(&self.path, name))
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        let selection = selection.clone();
        self.worker
            .call("read the watermarks", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT template_id, until, late_checked_until, position FROM atlas_watermarks
                         WHERE selection = ?1 ORDER BY template_id",
                    )?
                    .query_map([&selection.0], |row| {
                        Ok(Watermark {
                            template: template_id(row)?,
                            until: row.get::<_, Time>(1)?.0,
                            late_checked_until: row.get::<_, Time>(2)?.0,
                            position: row.get(3)?,
                        })
                    })?
                    .collect()
            })
            .await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        let (selection, watermarks) = (selection.clone(), watermarks.to_vec());
        self.worker
            .call("raise watermarks", move |connection| {
                let transaction = records::begin(connection)?;
                for watermark in &watermarks {
                    transaction
                        .prepare_cached(
                            "INSERT INTO atlas_watermarks AS w (selection, template_id, until, late_checked_until, position)
                             VALUES (?1, ?2, ?3, ?4, ?5)
                             ON CONFLICT (selection, template_id) DO UPDATE SET
                                 until = max(w.until, excluded.until),
                                 late_checked_until = max(w.late_checked_until, excluded.late_checked_until),
                                 position = iif(excluded.until > w.until, excluded.position, w.position)",
                        )?
                        .execute(params![
                            selection.0,
                            watermark.template.as_str(),
                            Time(watermark.until),
                            Time(watermark.late_checked_until),
                            watermark.position,
                        ])?;
                }
                transaction.commit()
            })
            .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        let (selection, templates) = (selection.clone(), templates.to_vec());
        self.worker
            .call("forget watermarks", move |connection| {
                let transaction = records::begin(connection)?;
                for template in &templates {
                    transaction
                        .prepare_cached(
                            "DELETE FROM atlas_watermarks WHERE selection = ?1 AND template_id = ?2",
                        )?
                        .execute([selection.0.as_str(), template.as_str()])?;
                }
                transaction.commit()
            })
            .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        let prefix = SelectionKey::prefix(format);
        self.worker
            .call(
                "forget the watermarks of other formats",
                move |connection| {
                    let transaction = records::begin(connection)?;
                    transaction.execute(
                        "DELETE FROM atlas_watermarks WHERE instr(selection, ?1) <> 1",
                        [&prefix],
                    )?;
                    records::remove_slices(&transaction, "instr(selection, ?1) <> 1", &prefix)?;
                    transaction.commit()
                },
            )
            .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        let slices = slices.to_vec();
        self.worker
            .call("add slices", move |connection| {
                let transaction = records::begin(connection)?;
                for slice in &slices {
                    records::insert_slice(&transaction, slice)?;
                }
                transaction.commit()
            })
            .await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        let selection = selection.clone();
        self.worker
            .call("read the slices", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::slice_columns!(),
                        " FROM atlas_slices WHERE selection = ?1
                         ORDER BY template_id, window_from, window_to, id"
                    ))?
                    .query_map([&selection.0], records::slice)?
                    .collect()
            })
            .await
    }

    async fn find_slices(&self, filter: &SliceFilter<'_>, limit: usize) -> Result<Vec<Slice>> {
        let question = slices::find(filter, limit);
        self.worker
            .call("find slices", move |connection| question.slices(connection))
            .await
    }

    async fn slice_totals(&self, of: SlicesOf<'_>, now: Instant) -> Result<Totals> {
        let (alone, shared) = (slices::count(of, now), slices::shared(of));
        self.worker
            .call("count slices", move |connection| {
                let mut totals = Totals::of_templates(alone.totals(connection)?);
                for slice in shared.slices(connection)? {
                    totals.add(&slice, now);
                }
                Ok(totals)
            })
            .await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        let id = id.to_owned();
        self.worker
            .call("read a slice", move |connection| {
                records::read_slice(connection, &id)
            })
            .await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        let before = before.clone();
        let after = Slice {
            id: before.id.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        self.worker
            .call("change a slice", move |connection| {
                let transaction = records::begin(connection)?;
                let stands = records::read_slice(&transaction, &before.id)?;
                let answer = match stands {
                    Some(slice) if (slice.step, slice.fence) == (before.step, before.fence) => {
                        records::update_slice(&transaction, &after)?;
                        Some(after)
                    }
                    // The first call got through, its answer did not.
                    Some(slice) if slice == after => Some(slice),
                    _ => None,
                };
                transaction.commit()?;
                Ok(answer)
            })
            .await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        let ids = ids.to_vec();
        self.worker
            .call("remove finished slices", move |connection| {
                let transaction = records::begin(connection)?;
                for id in &ids {
                    records::remove_slices(&transaction, "id = ?1 AND state = 'done'", id)?;
                }
                transaction.commit()
            })
            .await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        let ids = ids.to_vec();
        self.worker
            .call("remove the slices of a cancelled run", move |connection| {
                let transaction = records::begin(connection)?;
                for id in &ids {
                    records::remove_slices(&transaction, "id = ?1", id)?;
                }
                transaction.commit()
            })
            .await
    }

    async fn template_counts(&self) -> Result<Vec<TemplateCounts>> {
        self.worker
            .call("count the compositions", records::template_counts)
            .await
    }

    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()> {
        let (template, counts) = (template.clone(), *counts);
        self.worker
            .call("save the counts of a template", move |connection| {
                records::write_counts(connection, &template, &counts)
            })
            .await
    }

    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()> {
        let (rejected, run) = (rejected.to_vec(), run.to_owned());
        self.worker
            .call("put compositions into quarantine", move |connection| {
                let transaction = records::begin(connection)?;
                for rejected in &rejected {
                    quarantine::reject(&transaction, rejected, &run, now)?;
                }
                transaction.commit()
            })
            .await
    }

    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()> {
        let versions = versions.to_vec();
        self.worker
            .call("end entries of the quarantine", move |connection| {
                let transaction = records::begin(connection)?;
                for version in &versions {
                    quarantine::end(&transaction, version)?;
                }
                transaction.commit()
            })
            .await
    }

    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>> {
        let objects = objects.to_vec();
        self.worker
            .call("look into the quarantine", move |connection| {
                let mut statement = connection
                    .prepare_cached("SELECT version FROM atlas_quarantine WHERE id = ?1")?;
                let mut waiting = HashMap::new();
                for object in objects {
                    let version = statement
                        .query_row([object.as_str()], |row| row.get(0))
                        .optional()?;
                    if let Some(version) = version {
                        waiting.insert(object, version);
                    }
                }
                Ok(waiting)
            })
            .await
    }

    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>> {
        let filter = filter.clone();
        self.worker
            .call("read the quarantine", move |connection| {
                quarantine::entries(connection, &filter, limit)
            })
            .await
    }

    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>> {
        self.worker
            .call("count the quarantine", move |connection| {
                quarantine::counts(connection, tried_before)
            })
            .await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        let run = run.clone();
        self.worker
            .call("add the record of a run", move |connection| {
                records::add_run(connection, &run)
            })
            .await
    }

    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>> {
        let step = before.step;
        let after = Run {
            id: before.id.clone(),
            step: step + 1,
            ..after.clone()
        };
        self.worker
            .call("change the record of a run", move |connection| {
                let transaction = records::begin(connection)?;
                let stands = records::read_run(&transaction, &after.id)?;
                if stands.as_ref().is_some_and(|stands| stands.step == step) {
                    records::replace_run(&transaction, &after)?;
                    transaction.commit()?;
                    return Ok(Some(after));
                }
                // Perhaps the first call got through, and its answer did not.
                Ok(stands.filter(|stands| stands == &after))
            })
            .await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        self.worker
            .call("read the last runs", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::run_columns!(),
                        " FROM atlas_runs ORDER BY started DESC, id DESC LIMIT ?1"
                    ))?
                    .query_map([limit], records::run)?
                    .collect()
            })
            .await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        let id = id.to_owned();
        self.worker
            .call("read a run", move |connection| {
                records::read_run(connection, &id)
            })
            .await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        self.worker
            .call("read the runs without an end", move |connection| {
                connection
                    .prepare_cached(concat!(
                        "SELECT ",
                        records::run_columns!(),
                        " FROM atlas_runs WHERE ended IS NULL AND origin = ?1 ORDER BY started, id"
                    ))?
                    .query_map([origin.name()], records::run)?
                    .collect()
            })
            .await
    }

    async fn prune_runs(&self, ended_before: Instant) -> Result<()> {
        self.worker
            .call("remove old records of runs", move |connection| {
                connection
                    .prepare_cached(
                        "DELETE FROM atlas_runs WHERE ended < ?1
                         AND NOT EXISTS (SELECT 1 FROM atlas_slices WHERE run_id = atlas_runs.id)
                         AND id NOT IN (SELECT run_id FROM atlas_quarantine UNION SELECT tried_by FROM atlas_quarantine)",
                    )?
                    .execute([Time(ended_before)])?;
                Ok(())
            })
            .await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        let prefix = prefix.to_owned();
        self.worker
            .call("read control records", move |connection| {
                connection
                    .prepare_cached(
                        "SELECT name, step, owner, held_until, value FROM atlas_records
                         WHERE instr(name, ?1) = 1 ORDER BY name",
                    )?
                    .query_map([&prefix], records::record)?
                    .collect()
            })
            .await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        let before = before.clone();
        let after = Record {
            name: before.name.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        self.worker
            .call("change a control record", move |connection| {
                let transaction = records::begin(connection)?;
                let stands = records::read_record(&transaction, &before.name)?;
                let step = stands.as_ref().map_or(0, |record| record.step);
                if step == before.step {
                    records::write_record(&transaction, &after)?;
                    transaction.commit()?;
                    return Ok(Some(after));
                }
                // Perhaps the first call got through, and its answer did not.
                Ok(stands.filter(|record| record == &after))
            })
            .await
    }
}
