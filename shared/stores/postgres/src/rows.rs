//! The copy.

use std::borrow::Cow;
use std::collections::HashMap;

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::{
    Known, LandAnswer, LandedPage, Landing, Reason, RowKey, Scan, Slice, StoredRow,
};
use atlas_engine::ports::{Index, Rows};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use tokio_postgres::types::Type;

use crate::error::{Failure, attempt};
use crate::records::{Time, storable};
use crate::session::Statement;
use crate::{PostgresStore, land, landed, records, refusal, refuse_side_rows};

/// One seek in an index for each template.
pub(crate) const NEWEST: &str = "
    SELECT t.template_id, n.time_committed
    FROM pg_catalog.unnest($1) AS t (template_id)
    CROSS JOIN LATERAL (
        SELECT c.time_committed FROM {schema}.compositions AS c
        WHERE c.template_id {=} t.template_id AND c.deleted_at IS NULL
        ORDER BY c.time_committed DESC LIMIT 1) AS n";

#[async_trait]
impl Index for PostgresStore {
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>> {
        attempt("look up versions", async {
            let ids: Vec<Cow<'_, str>> = keys
                .iter()
                .map(|key| storable(key.object.as_str()))
                .collect();
            let rows = self
                .only(
                    "SELECT id, version, checksum, ehr_id, template_id, asked, deleted_at
                     FROM {schema}.compositions WHERE id {=} ANY ($1)",
                    &[(&ids, Type::TEXT_ARRAY)],
                )
                .await?;
            rows.iter()
                .map(|row| Ok((ObjectId::new(row.try_get("id")?), land::known(row)?)))
                .collect()
        })
        .await
    }
}

#[async_trait]
impl Rows for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    async fn prepare(&self) -> Result<()> {
        self.prepare_tables().await
    }

    fn refuses(&self, content: &str) -> Option<(Reason, String)> {
        refusal::refuses(content).map(|detail| (Reason::Unstorable, detail))
    }

    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer> {
        refuse_side_rows(landing.batch)?;
        attempt("write a page", async {
            landed::land(&self.pool, self.usable().await?, landing).await
        })
        .await
    }

    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>> {
        attempt("read the last page of a slice", async {
            landed::landed(&self.pool, self.usable().await?, slice).await
        })
        .await
    }

    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>> {
        attempt("read rows back", async {
            let mut rows = Statement::new(
                "SELECT composition_uid, ehr_id, template_id, time_committed, change_type, export_mode, checksum, asked,
                     deleted_at, deleted_reason, run_id, content::pg_catalog.text AS content
                 FROM {schema}.compositions WHERE true",
            );
            if let Some(template) = &scan.template {
                rows = rows.and(" AND template_id {=} $", storable(template.as_str()), Type::TEXT);
            }
            if let Some(window) = scan.window {
                rows = rows
                    .and(" AND time_committed {>=} $", Time(window.from), Type::TIMESTAMPTZ)
                    .and(" AND time_committed {<} $", Time(window.to), Type::TIMESTAMPTZ);
            }
            if let Some(after) = &scan.after {
                rows = rows.and(" AND id {>} $", storable(after.as_str()), Type::TEXT);
            }
            let rows = rows.and(" ORDER BY id LIMIT $", i64::try_from(scan.limit)?, Type::INT8);
            let rows = self.run_all(&[rows]).await?;
            rows.iter().map(records::stored_row).collect()
        })
        .await
    }

    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>> {
        attempt("look up the newest compositions", async {
            let templates: Vec<Cow<'_, str>> = templates
                .iter()
                .map(|template| storable(template.as_str()))
                .collect();
            let rows = self.only(NEWEST, &[(&templates, Type::TEXT_ARRAY)]).await?;
            rows.iter()
                .map(|row| {
                    Ok((
                        records::template_id(row)?,
                        records::time(row, "time_committed")?,
                    ))
                })
                .collect()
        })
        .await
    }

    async fn erase(&self, ehr: &EhrId) -> Result<u64> {
        attempt("erase an EHR", async {
            let rows = self
                .only(
                    "WITH erased AS (DELETE FROM {schema}.compositions WHERE ehr_id {=} $1 RETURNING 1)
                     SELECT pg_catalog.count(*) AS compositions FROM erased",
                    &[(&storable(ehr.as_str()), Type::TEXT)],
                )
                .await?;
            let counted = rows.first().ok_or(Failure::Unknown("compositions"))?;
            records::number(counted, "compositions")
        })
        .await
    }
}
