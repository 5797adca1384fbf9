//! A page and its checkpoint in one transaction: COPY into a staging table, then one statement that never lets an
//! older version win.

use std::pin::pin;

use atlas_engine::model::{Commit, Committed, NewRow, Rejected};
use deadpool_postgres::{Client, GenericClient, Transaction};
use futures::future::{try_join, try_join_all};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;

use crate::error::Failure;
use crate::records::{self, Json, Time, Write};

type Result<T> = std::result::Result<T, Failure>;

/// One table per connection, emptied by each commit. Making and dropping one for every page is as fast, and swells the
/// catalogue.
const STAGING: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS atlas_page (
        id text COLLATE \"C\", composition_uid text, version bigint, ehr_id text, template_id text,
        time_committed timestamptz, change_type text, content jsonb, checksum text
    ) ON COMMIT DELETE ROWS";

const COPY: &str = "COPY pg_temp.atlas_page FROM STDIN (FORMAT binary)";

const COLUMNS: [Type; 9] = [
    Type::TEXT,
    Type::TEXT,
    Type::INT8,
    Type::TEXT,
    Type::TEXT,
    Type::TIMESTAMPTZ,
    Type::TEXT,
    Type::JSONB,
    Type::TEXT,
];

/// In order of id, so that two pages with the same objects wait for each other and never in a circle.
const LAND: &str = "
    WITH landed AS (
        INSERT INTO compositions AS c
            (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, content, checksum,
             export_mode, exported_at, run_id, atlas_version)
        SELECT p.*, $1::text, $2::timestamptz, $3::text, $4::text FROM pg_temp.atlas_page AS p ORDER BY p.id
        ON CONFLICT (id) DO UPDATE SET
            composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
            template_id = excluded.template_id, time_committed = excluded.time_committed,
            change_type = excluded.change_type, content = excluded.content, checksum = excluded.checksum,
            export_mode = excluded.export_mode, exported_at = excluded.exported_at, run_id = excluded.run_id,
            atlas_version = excluded.atlas_version, deleted_at = NULL
        WHERE excluded.version > c.version
           OR (excluded.version = c.version AND c.deleted_at IS NULL
               AND (excluded.export_mode <> c.export_mode OR excluded.checksum <> c.checksum))
        RETURNING 1
    ), ended AS (
        DELETE FROM atlas_quarantine AS q USING pg_temp.atlas_page AS p
        WHERE q.id = p.id AND q.version <= p.version
    )
    SELECT count(*) FROM landed";

const REJECT: &str = "
    INSERT INTO atlas_quarantine AS q
        (id, composition_uid, version, ehr_id, template_id, time_committed, change_type,
         reason, detail, run_id, since, tried, tries)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, 1
    WHERE NOT EXISTS (SELECT 1 FROM compositions WHERE id = $1 AND version > $3)
    ON CONFLICT (id) DO UPDATE SET
        composition_uid = excluded.composition_uid, version = excluded.version, ehr_id = excluded.ehr_id,
        template_id = excluded.template_id, time_committed = excluded.time_committed,
        change_type = excluded.change_type, reason = excluded.reason, detail = excluded.detail,
        tried = excluded.tried,
        run_id = CASE WHEN q.version = excluded.version THEN q.run_id ELSE excluded.run_id END,
        since = CASE WHEN q.version = excluded.version THEN q.since ELSE excluded.since END,
        tries = CASE WHEN q.version = excluded.version THEN q.tries + 1 ELSE 1 END
    WHERE excluded.version >= q.version";

/// See [`Store::commit`](atlas_engine::ports::Store::commit).
pub(crate) async fn commit(client: &mut Client, commit: &Commit<'_>) -> Result<Committed> {
    let transaction = client.transaction().await?;
    let Some(stands) = records::lock_slice(&transaction, &commit.slice.id).await? else {
        return Ok(Committed::Lost);
    };
    if !commit.applies_to(&stands) {
        return Ok(if commit.was_applied_to(&stands) {
            Committed::Done(stands)
        } else {
            Committed::Lost
        });
    }

    let written = if commit.batch.rows.is_empty() {
        0
    } else {
        land(&transaction, commit).await?
    };
    let slice = commit.apply(stands, written);
    let rejections = commit
        .rejected
        .iter()
        .map(|rejected| quarantine(&transaction, commit, rejected));
    try_join(
        try_join_all(rejections),
        records::write_slice(&transaction, Write::Update, &slice),
    )
    .await?;
    transaction.commit().await?;
    Ok(Committed::Done(slice))
}

/// Writes the rows that the store lacks, and ends the quarantine of all of them. Answers how many were written.
async fn land(transaction: &Transaction<'_>, commit: &Commit<'_>) -> Result<u64> {
    transaction.batch_execute(STAGING).await?;
    let copy = transaction.prepare_cached(COPY).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(
        transaction.copy_in(&copy).await?,
        &COLUMNS
    ));
    for row in &commit.batch.rows {
        let NewRow { meta, checksum, .. } = row;
        writer
            .as_mut()
            .write(&[
                &meta.uid.object_id().as_str(),
                &meta.uid.as_str(),
                &i64::from(meta.uid.version()),
                &meta.ehr.as_str(),
                &meta.template.as_str(),
                &Time(meta.committed),
                &meta.change_type,
                &Json(commit.batch.content(row)),
                &checksum.to_string(),
            ])
            .await?;
    }
    writer.finish().await?;

    let land = transaction.prepare_cached(LAND).await?;
    let landed: i64 = transaction
        .query_one(
            &land,
            &[
                &commit.format.name(),
                &Time(commit.now),
                &commit.run,
                &env!("CARGO_PKG_VERSION"),
            ],
        )
        .await?
        .try_get(0)?;
    Ok(u64::try_from(landed)?)
}

/// Puts a composition into quarantine, unless the store or the quarantine is about a newer version of it.
async fn quarantine(
    transaction: &Transaction<'_>,
    commit: &Commit<'_>,
    rejected: &Rejected,
) -> Result<()> {
    let statement = transaction.prepare_cached(REJECT).await?;
    let meta = &rejected.meta;
    transaction
        .execute(
            &statement,
            &[
                &meta.uid.object_id().as_str(),
                &meta.uid.as_str(),
                &i64::from(meta.uid.version()),
                &meta.ehr.as_str(),
                &meta.template.as_str(),
                &Time(meta.committed),
                &meta.change_type,
                &rejected.reason.name(),
                &rejected.detail,
                &commit.run,
                &Time(commit.now),
            ],
        )
        .await?;
    Ok(())
}
