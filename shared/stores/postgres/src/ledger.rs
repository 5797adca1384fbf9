//! The control records.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::{
    Counts, Format, Origin, QuarantineCount, QuarantineFilter, Quarantined, Record, Rejected, Run,
    SelectionKey, Slice, SliceFilter, SlicesOf, TemplateCounts, Totals, Watermark,
};
use atlas_engine::ports::Ledger;
use atlas_openehr::id::{ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::time::Instant;
use tokio_postgres::types::Type;

use crate::error::{Failure, attempt};
use crate::records::{Time, storable};
use crate::session::Statement;
use crate::{PostgresStore, quarantine, records, slices};

#[async_trait]
impl Ledger for PostgresStore {
    async fn prepare(&self) -> Result<()> {
        self.prepare_tables().await
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        attempt("read the watermarks", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_watermarks WHERE selection {=} $1 ORDER BY template_id",
                    &[(&selection.0, Type::TEXT)],
                )
                .await?;
            rows.iter().map(records::watermark).collect()
        })
        .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        attempt("forget watermarks", async {
            let names: Vec<&str> = templates.iter().map(TemplateId::as_str).collect();
            self.only(
                "DELETE FROM {schema}.atlas_watermarks WHERE selection {=} $1 AND template_id {=} ANY ($2)",
                &[(&selection.0, Type::TEXT), (&names, Type::TEXT_ARRAY)],
            )
            .await?;
            Ok(())
        })
        .await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        attempt("read the slices", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_slices WHERE selection {=} $1
                     ORDER BY template_id, window_from, window_to, id",
                    &[(&selection.0, Type::TEXT)],
                )
                .await?;
            rows.iter().map(records::slice).collect()
        })
        .await
    }

    async fn find_slices(&self, filter: &SliceFilter<'_>, limit: usize) -> Result<Vec<Slice>> {
        attempt("find slices", async {
            let rows = self.run_all(&[slices::find(filter, limit)?]).await?;
            rows.iter().map(records::slice).collect()
        })
        .await
    }

    async fn slice_totals(&self, of: SlicesOf<'_>, now: Instant) -> Result<Totals> {
        attempt("count slices", async {
            let mut session = self.session().await?;
            let counted = session
                .query_all(&[slices::count(of, now), slices::shared(of)])
                .await?;
            session.commit().await?;
            let [alone, shared] = counted.as_slice() else {
                return Err(Failure::Ended);
            };
            let alone = alone.iter().map(slices::totals);
            let mut totals = Totals::of_templates(alone.collect::<std::result::Result<_, _>>()?);
            for row in shared {
                totals.add(&records::slice(row)?, now);
            }
            Ok(totals)
        })
        .await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        attempt("read a slice", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_slices WHERE id {=} $1",
                    &[(&id, Type::TEXT)],
                )
                .await?;
            rows.first().map(records::slice).transpose()
        })
        .await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        attempt("read the last runs", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_runs ORDER BY started DESC, id DESC LIMIT $1",
                    &[(&i64::try_from(limit)?, Type::INT8)],
                )
                .await?;
            rows.iter().map(records::run).collect()
        })
        .await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        attempt("read a run", self.read_run(id)).await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        attempt("read the runs without an end", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_runs WHERE ended IS NULL AND origin {=} $1 ORDER BY started, id",
                    &[(&origin.name(), Type::TEXT)],
                )
                .await?;
            rows.iter().map(records::run).collect()
        })
        .await
    }

    async fn now(&self) -> Result<Option<Instant>> {
        attempt("read the store's clock", async {
            let rows = self
                .only("SELECT pg_catalog.clock_timestamp() AS now", &[])
                .await?;
            let row = rows.first().ok_or(Failure::Unknown("now"))?;
            Ok(Some(row.try_get::<_, Time>("now")?.0))
        })
        .await
    }

    async fn prune_runs(&self, ended_before: Instant) -> Result<()> {
        attempt("remove old records of runs", async {
            self.only(
                "DELETE FROM {schema}.atlas_runs AS r WHERE r.ended {<} $1
                 AND NOT EXISTS (SELECT FROM {schema}.atlas_slices AS s WHERE s.run_id {=} r.id)
                 AND NOT EXISTS (SELECT FROM {schema}.atlas_quarantine AS q WHERE q.run_id {=} r.id)
                 AND NOT EXISTS (SELECT FROM {schema}.atlas_quarantine AS q WHERE q.tried_by {=} r.id)",
                &[(&Time(ended_before), Type::TIMESTAMPTZ)],
            )
            .await?;
            Ok(())
        })
        .await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        attempt("read control records", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_records WHERE pg_catalog.starts_with(name, $1) ORDER BY name",
                    &[(&prefix, Type::TEXT)],
                )
                .await?;
            rows.iter().map(records::record).collect()
        })
        .await
    }

    async fn swap_record(&self, before: &Record, after: &Record) -> Result<Option<Record>> {
        let after = Record {
            name: before.name.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        attempt("change a control record", async {
            let names = self.usable().await?;
            if records::swap_record(&self.pool, names, before.step, &after).await? {
                return Ok(Some(after));
            }
            // Perhaps the first call got through, and its answer did not.
            let sql = "SELECT * FROM {schema}.atlas_records WHERE name {=} $1";
            let rows = self.only(sql, &[(&after.name, Type::TEXT)]).await?;
            let stands = rows.first().map(records::record).transpose()?;
            Ok(stands.filter(|stands| stands == &after))
        })
        .await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        attempt("raise watermarks", async {
            // One statement cannot change a row twice: of a template that comes twice the later times count.
            let mut highest: BTreeMap<&TemplateId, Watermark> = BTreeMap::new();
            for watermark in watermarks {
                let entry = highest.entry(&watermark.template);
                let held = entry.or_insert_with(|| watermark.clone());
                if held.until < watermark.until {
                    held.until = watermark.until;
                    held.position.clone_from(&watermark.position);
                }
                held.late_checked_until = watermark.late_checked_until.max(held.late_checked_until);
            }
            let times = |time: fn(&Watermark) -> Instant| -> Vec<Time> {
                highest.values().map(|watermark| Time(time(watermark))).collect()
            };
            let templates = highest.keys().map(|template| template.as_str());
            let positions = highest.values().map(|watermark| watermark.position.as_deref());
            self.only(
                "INSERT INTO {schema}.atlas_watermarks AS w (selection, template_id, until, late_checked_until, position)
                 SELECT $1, p.*
                 FROM ROWS FROM (
                     pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) AS p
                 ON CONFLICT (selection, template_id) DO UPDATE SET
                     until = greatest(w.until, excluded.until),
                     late_checked_until = greatest(w.late_checked_until, excluded.late_checked_until),
                     position = CASE WHEN excluded.until {>} w.until THEN excluded.position ELSE w.position END",
                &[
                    (&selection.0, Type::TEXT),
                    (&templates.collect::<Vec<_>>(), Type::TEXT_ARRAY),
                    (&times(|watermark| watermark.until), Type::TIMESTAMPTZ_ARRAY),
                    (&times(|watermark| watermark.late_checked_until), Type::TIMESTAMPTZ_ARRAY),
                    (&positions.collect::<Vec<_>>(), Type::TEXT_ARRAY),
                ],
            )
            .await?;
            Ok(())
        })
        .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        attempt("forget the watermarks of other formats", async {
            let prefix = SelectionKey::prefix(format);
            let others = "NOT pg_catalog.starts_with(selection, $1)";
            self.run_all(&[
                Statement::new(format!(
                    "DELETE FROM {{schema}}.atlas_watermarks WHERE {others}"
                ))
                .with(&prefix, Type::TEXT),
                Statement::new(records::remove_slices(others)).with(&prefix, Type::TEXT),
            ])
            .await?;
            Ok(())
        })
        .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        attempt("add slices", async {
            let slices = slices.iter().map(records::insert_slice);
            let slices = slices.collect::<std::result::Result<Vec<_>, Failure>>()?;
            let mut session = self.session().await?;
            session.query_all(&slices).await?;
            session.commit().await
        })
        .await
    }

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        let after = Slice {
            id: before.id.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        attempt("change a slice", async {
            let mut session = self.session().await?;
            let found = session
                .query_all(&[records::lock_slice(&before.id)])
                .await?;
            let stands = found
                .iter()
                .flatten()
                .next()
                .map(records::slice)
                .transpose()?;
            if let Some(slice) = &stands
                && (slice.step, slice.fence) == (before.step, before.fence)
            {
                let update = [records::update_slice(&after)?];
                records::require_changed(&session.commit_after(&update).await?)?;
                drop(update);
                return Ok(Some(after));
            }
            session.commit().await?;
            // Perhaps the first call got through, and its answer did not.
            Ok(stands.filter(|slice| slice == &after))
        })
        .await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        attempt("remove finished slices", async {
            let sql = records::remove_slices("id {=} ANY ($1) AND state {=} 'done'");
            self.only(&sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
            Ok(())
        })
        .await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        attempt("remove the slices of a cancelled run", async {
            let sql = records::remove_slices("id {=} ANY ($1)");
            self.only(&sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
            Ok(())
        })
        .await
    }

    async fn template_counts(&self) -> Result<Vec<TemplateCounts>> {
        attempt("count the compositions", async {
            let rows = self.only(&records::template_counts(), &[]).await?;
            rows.iter().map(records::template_count).collect()
        })
        .await
    }

    async fn set_template_counts(&self, template: &TemplateId, counts: &Counts) -> Result<()> {
        attempt("save the counts of a template", async {
            self.run_all(&[records::write_counts(template, counts)?])
                .await?;
            Ok(())
        })
        .await
    }

    async fn quarantine(&self, rejected: &[Rejected], run: &str, now: Instant) -> Result<()> {
        attempt("put compositions into quarantine", async {
            self.run_all(&[quarantine::reject(rejected, run, now)])
                .await?;
            Ok(())
        })
        .await
    }

    async fn end_quarantine(&self, versions: &[ObjectVersion]) -> Result<()> {
        attempt("end entries of the quarantine", async {
            self.run_all(&[quarantine::end(versions.iter())]).await?;
            Ok(())
        })
        .await
    }

    async fn in_quarantine(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, u32>> {
        attempt("look into the quarantine", async {
            let ids: Vec<Cow<'_, str>> = objects
                .iter()
                .map(|object| storable(object.as_str()))
                .collect();
            let rows = self
                .only(
                    "SELECT id, version FROM {schema}.atlas_quarantine WHERE id {=} ANY ($1)",
                    &[(&ids, Type::TEXT_ARRAY)],
                )
                .await?;
            rows.iter()
                .map(|row| {
                    Ok((
                        ObjectId::new(row.try_get("id")?),
                        records::number(row, "version")?,
                    ))
                })
                .collect()
        })
        .await
    }

    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: usize,
    ) -> Result<Vec<Quarantined>> {
        attempt("read the quarantine", async {
            let rows = self.run_all(&[quarantine::entries(filter, limit)?]).await?;
            rows.iter().map(records::quarantined).collect()
        })
        .await
    }

    async fn quarantine_counts(
        &self,
        tried_before: Option<Instant>,
    ) -> Result<Vec<QuarantineCount>> {
        attempt("count the quarantine", async {
            let rows = self.run_all(&[quarantine::count(tried_before)]).await?;
            quarantine::counts(&rows)
        })
        .await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        attempt("add the record of a run", async {
            let added = self.run_all(&[records::add_run(run)?]).await?;
            Ok(!added.is_empty())
        })
        .await
    }

    async fn swap_run(&self, before: &Run, after: &Run) -> Result<Option<Run>> {
        let after = Run {
            id: before.id.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        attempt("change the record of a run", async {
            let changed = self.run_all(&[records::update_run(&after)?]).await?;
            if !changed.is_empty() {
                return Ok(Some(after));
            }
            // Perhaps the first call got through, and its answer did not.
            let stands = self.read_run(&after.id).await?;
            Ok(stands.filter(|stands| stands == &after))
        })
        .await
    }
}

impl PostgresStore {
    async fn read_run(&self, id: &str) -> std::result::Result<Option<Run>, Failure> {
        let sql = "SELECT * FROM {schema}.atlas_runs WHERE id {=} $1";
        let rows = self.only(sql, &[(&id, Type::TEXT)]).await?;
        rows.first().map(records::run).transpose()
    }
}
