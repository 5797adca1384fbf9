//! Keeps compositions and control records in PostgreSQL, 14 or newer.
//!
//! | module | what |
//! |---|---|
//! | [`PostgresStore`] | the [`Store`] port over the rest of the crate |
//! | [`Config`], [`SslMode`] | where the server is and how to talk to it |
//! | [`grant_script`] | the rights of a role that exports and may change no table |
//! | `connection` | the pool, and single connections for holds |
//! | `tls` | TLS as `ssl_mode` means it |
//! | `schema` | numbered migrations (`migrations/*.sql`) under an advisory lock |
//! | `commit` | a page and its checkpoint in one transaction |
//! | `refusal` | what JSONB cannot hold |
//! | `records` | control records from and to their columns |
//! | `error` | SQLSTATEs to the engine's error kinds |

mod commit;
mod config;
mod connection;
mod error;
mod records;
mod refusal;
mod schema;
mod tls;

use std::collections::HashMap;

use async_trait::async_trait;
use atlas_engine::Result;
use atlas_engine::model::{
    Commit, Committed, Format, Holding, Known, Origin, QuarantineFilter, Quarantined, Reason,
    Record, Run, SelectionKey, Slice, StoredTemplate, Watermark,
};
use atlas_engine::ports::{Hold, Store};
use atlas_openehr::id::{ObjectId, ObjectVersion, TemplateId};
use atlas_openehr::json::Node;
use atlas_openehr::time::Instant;
use deadpool_postgres::{Client, Pool};
use futures::future::try_join_all;
use tokio::sync::OnceCell;
use tokio_postgres::error::SqlState;

pub use crate::config::{Config, SslMode, UnknownSslMode};
use crate::connection::Connector;
use crate::error::{Failure, attempt};
use crate::records::{Time, Write};
pub use crate::schema::grant_script;

/// A store in one schema of a PostgreSQL database.
pub struct PostgresStore {
    pool: Pool,
    connector: Connector,
    schema: String,
    /// Set once the tables were seen not to be newer than this program.
    usable: OnceCell<()>,
}

impl PostgresStore {
    /// A store on that server. Connects when it is first asked for something.
    ///
    /// # Errors
    /// `Usage` if the connection string or the trusted certificates cannot be read.
    pub fn new(config: &Config) -> Result<Self> {
        let connector = Connector::new(config)?;
        Ok(Self {
            pool: connector.pool(config.max_connections)?,
            connector,
            schema: config.schema.clone(),
            usable: OnceCell::new(),
        })
    }

    /// A connection to tables that this program understands.
    async fn client(&self) -> std::result::Result<Client, Failure> {
        let client = self.pool.get().await?;
        self.usable
            .get_or_try_init(|| schema::require_known(&client, &self.schema))
            .await?;
        Ok(client)
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn refuses(&self, content: Node<'_>) -> Option<(Reason, String)> {
        refusal::refuses(content).map(|detail| (Reason::Unstorable, detail))
    }

    async fn prepare(&self) -> Result<()> {
        attempt("bring the tables in PostgreSQL up to date", async {
            let mut client = self.pool.get().await?;
            schema::prepare(&mut client, &self.schema).await
        })
        .await
    }

    async fn hold(&self, name: &str) -> Result<Option<Hold>> {
        attempt("keep other runs away from this store", async {
            // A session's lock ends with its connection: nobody else may get this one.
            let client = self.connector.single().await?;
            // A hold that was just let go may take its server a moment to notice. Where the server ends idle
            // sessions, not this one.
            client
                .batch_execute("SET lock_timeout TO '500ms'; SET idle_session_timeout TO 0")
                .await?;
            let locked = client
                .execute(
                    "SELECT pg_advisory_lock(hashtextextended('atlas hold in ' || $1 || ': ' || $2, 0))",
                    &[&self.schema, &name],
                )
                .await;
            match locked {
                Ok(_) => Ok(Some(Box::new(client) as Hold)),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(None),
                Err(error) => Err(Failure::from(error)),
            }
        })
        .await
    }

    async fn watermarks(&self, selection: &SelectionKey) -> Result<Vec<Watermark>> {
        attempt("read the watermarks", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached(
                    "SELECT * FROM atlas_watermarks WHERE selection = $1 ORDER BY template_id",
                )
                .await?;
            let rows = client.query(&statement, &[&selection.0]).await?;
            rows.iter().map(records::watermark).collect()
        })
        .await
    }

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        attempt("raise watermarks", async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            let statement = transaction
                .prepare_cached(
                    "INSERT INTO atlas_watermarks AS f (selection, template_id, until, late_checked_until)
                     VALUES ($1, $2, $3, $4)
                     ON CONFLICT (selection, template_id) DO UPDATE SET
                         until = greatest(f.until, excluded.until),
                         late_checked_until = greatest(f.late_checked_until, excluded.late_checked_until)",
                )
                .await?;
            for watermark in watermarks {
                transaction
                    .execute(
                        &statement,
                        &[
                            &selection.0,
                            &watermark.template.as_str(),
                            &Time(watermark.until),
                            &Time(watermark.late_checked_until),
                        ],
                    )
                    .await?;
            }
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn forget_watermarks(
        &self,
        selection: &SelectionKey,
        templates: &[TemplateId],
    ) -> Result<()> {
        attempt("forget watermarks", async {
            let client = self.client().await?;
            let names: Vec<&str> = templates.iter().map(TemplateId::as_str).collect();
            client
                .execute(
                    "DELETE FROM atlas_watermarks WHERE selection = $1 AND template_id = ANY ($2)",
                    &[&selection.0, &names],
                )
                .await?;
            Ok(())
        })
        .await
    }

    async fn keep_format(&self, format: Format) -> Result<()> {
        attempt("forget the watermarks of other formats", async {
            let client = self.client().await?;
            let prefix = SelectionKey::prefix(format);
            client
                .execute(
                    "WITH watermarks AS (
                         DELETE FROM atlas_watermarks WHERE NOT starts_with(selection, $1))
                     DELETE FROM atlas_slices WHERE NOT starts_with(selection, $1)",
                    &[&prefix],
                )
                .await?;
            Ok(())
        })
        .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        attempt("add slices", async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            let inserts = slices
                .iter()
                .map(|slice| records::write_slice(&transaction, Write::Insert, slice));
            try_join_all(inserts).await?;
            Ok(transaction.commit().await?)
        })
        .await
    }

    async fn slices(&self, selection: &SelectionKey) -> Result<Vec<Slice>> {
        attempt("read the slices", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached(
                    "SELECT * FROM atlas_slices WHERE selection = $1
                     ORDER BY template_id, window_from, window_to, id",
                )
                .await?;
            let rows = client.query(&statement, &[&selection.0]).await?;
            rows.iter().map(records::slice).collect()
        })
        .await
    }

    async fn slice(&self, id: &str) -> Result<Option<Slice>> {
        attempt("read a slice", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached("SELECT * FROM atlas_slices WHERE id = $1")
                .await?;
            let row = client.query_opt(&statement, &[&id]).await?;
            row.as_ref().map(records::slice).transpose()
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
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            match records::lock_slice(&transaction, &before.id).await? {
                Some(slice) if (slice.step, slice.fence) == (before.step, before.fence) => {
                    records::write_slice(&transaction, Write::Update, &after).await?;
                    transaction.commit().await?;
                    Ok(Some(after))
                }
                // The first call got through, its answer did not.
                Some(slice) if slice == after => Ok(Some(slice)),
                _ => Ok(None),
            }
        })
        .await
    }

    async fn remove_slices(&self, ids: &[String]) -> Result<()> {
        attempt("remove finished slices", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached("DELETE FROM atlas_slices WHERE id = ANY ($1) AND state = 'done'")
                .await?;
            client.execute(&statement, &[&ids]).await?;
            Ok(())
        })
        .await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        attempt("remove the slices of a cancelled run", async {
            let client = self.client().await?;
            let sql = "DELETE FROM atlas_slices WHERE id = ANY ($1)";
            client.execute(sql, &[&ids]).await?;
            Ok(())
        })
        .await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        attempt("write a page", async {
            let mut client = self.client().await?;
            let committed = commit::commit(&mut client, commit).await;
            if committed.is_err() {
                // The pool may not know yet that this connection broke: the repetition gets another one.
                drop(Client::take(client));
            }
            committed
        })
        .await
    }

    async fn known(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Known>> {
        attempt("look up versions", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached(
                    "SELECT id, max(version) AS version FROM (
                         SELECT id, version FROM compositions WHERE id = ANY ($1)
                         UNION ALL SELECT id, version FROM atlas_quarantine WHERE id = ANY ($1)
                     ) AS seen GROUP BY id",
                )
                .await?;
            let ids: Vec<&str> = objects.iter().map(ObjectId::as_str).collect();
            let rows = client.query(&statement, &[&ids]).await?;
            rows.iter()
                .map(|row| {
                    let object_id = ObjectId::new(row.try_get("id")?);
                    let version = u32::try_from(row.try_get::<_, i64>("version")?)
                        .map_err(|_| Failure::Unknown("version"))?;
                    let version = ObjectVersion {
                        object_id: object_id.clone(),
                        version,
                    };
                    Ok((object_id, Known { version }))
                })
                .collect()
        })
        .await
    }

    async fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<Quarantined>> {
        attempt("read the quarantine", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached(
                    "SELECT * FROM atlas_quarantine
                     WHERE ($1::text IS NULL OR template_id = $1)
                       AND ($2::timestamptz IS NULL OR tried < $2)
                       AND ($3::text IS NULL OR id = $3)
                     ORDER BY tried, id LIMIT $4",
                )
                .await?;
            let limit = filter.limit.map(i64::try_from).transpose()?;
            let rows = client
                .query(
                    &statement,
                    &[
                        &filter.template.as_ref().map(TemplateId::as_str),
                        &filter.tried_before.map(Time),
                        &filter.object.as_ref().map(ObjectId::as_str),
                        &limit,
                    ],
                )
                .await?;
            rows.iter().map(records::quarantined).collect()
        })
        .await
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        attempt("count the compositions", async {
            let client = self.client().await?;
            let rows = client
                .query(
                    "SELECT template_id, count(*) AS compositions, max(time_committed) AS newest
                     FROM compositions WHERE deleted_at IS NULL
                     GROUP BY template_id ORDER BY template_id",
                    &[],
                )
                .await?;
            rows.iter().map(records::holding).collect()
        })
        .await
    }

    async fn add_run(&self, run: &Run) -> Result<bool> {
        attempt("add the record of a run", async {
            let client = self.client().await?;
            records::write_run(&client, Write::Insert, run).await
        })
        .await
    }

    async fn save_run(&self, run: &Run) -> Result<()> {
        attempt("save the record of a run", async {
            let client = self.client().await?;
            records::write_run(&client, Write::Update, run).await?;
            Ok(())
        })
        .await
    }

    async fn runs(&self, limit: usize) -> Result<Vec<Run>> {
        attempt("read the last runs", async {
            let client = self.client().await?;
            let rows = client
                .query(
                    "SELECT * FROM atlas_runs ORDER BY started DESC, id DESC LIMIT $1",
                    &[&i64::try_from(limit)?],
                )
                .await?;
            rows.iter().map(records::run).collect()
        })
        .await
    }

    async fn run(&self, id: &str) -> Result<Option<Run>> {
        attempt("read a run", async {
            let client = self.client().await?;
            let row = client
                .query_opt("SELECT * FROM atlas_runs WHERE id = $1", &[&id])
                .await?;
            row.as_ref().map(records::run).transpose()
        })
        .await
    }

    async fn unfinished_runs(&self, origin: Origin) -> Result<Vec<Run>> {
        attempt("read the runs without an end", async {
            let client = self.client().await?;
            let rows = client
                .query(
                    "SELECT * FROM atlas_runs WHERE ended IS NULL AND origin = $1 ORDER BY started, id",
                    &[&origin.name()],
                )
                .await?;
            rows.iter().map(records::run).collect()
        })
        .await
    }

    async fn now(&self) -> Result<Option<Instant>> {
        attempt("read the store's clock", async {
            let client = self.client().await?;
            let row = client.query_one("SELECT clock_timestamp()", &[]).await?;
            Ok(Some(row.try_get::<_, Time>(0)?.0))
        })
        .await
    }

    async fn records(&self, prefix: &str) -> Result<Vec<Record>> {
        attempt("read control records", async {
            let client = self.client().await?;
            let statement = client
                .prepare_cached(
                    "SELECT * FROM atlas_records WHERE starts_with(name, $1) ORDER BY name",
                )
                .await?;
            let rows = client.query(&statement, &[&prefix]).await?;
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
            let client = self.client().await?;
            if records::swap_record(&client, before.step, &after).await? {
                return Ok(Some(after));
            }
            // Perhaps the first call got through, and its answer did not.
            let sql = "SELECT * FROM atlas_records WHERE name = $1";
            let row = client.query_opt(sql, &[&after.name]).await?;
            let stands = row.as_ref().map(records::record).transpose()?;
            Ok(stands.filter(|stands| stands == &after))
        })
        .await
    }

    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        attempt("read a web template", async {
            let client = self.client().await?;
            let row = client
                .query_opt(
                    "SELECT * FROM atlas_templates WHERE template_id = $1",
                    &[&template.as_str()],
                )
                .await?;
            row.as_ref().map(records::stored_template).transpose()
        })
        .await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        attempt("save a web template", async {
            let client = self.client().await?;
            client
                .execute(
                    "INSERT INTO atlas_templates (template_id, digest, web_template, names, fetched)
                     VALUES ($1, $2, $3, $4, $5)
                     ON CONFLICT (template_id) DO UPDATE SET
                         (digest, web_template, names, fetched) = ($2, $3, $4, $5)",
                    &[
                        &template.template.as_str(),
                        &template.digest,
                        &template.web_template,
                        &template.names,
                        &Time(template.fetched),
                    ],
                )
                .await?;
            Ok(())
        })
        .await
    }
}
