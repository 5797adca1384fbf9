//! Keeps compositions and control records in PostgreSQL, 14 or newer.
//!
//! | module | what |
//! |---|---|
//! | [`PostgresStore`] | the [`Store`] port over the rest of the crate |
//! | [`Config`], [`SslMode`], [`Endpoint`] | where the server is and how to talk to it |
//! | [`grant_script`] | the rights of a role that exports and may change no table |
//! | `address` | the connection string as libpq reads it |
//! | `connection` | the pool, and single connections for holds |
//! | `session` | a call: one transaction that leaves nothing on its connection |
//! | `tls` | TLS as libpq means each `sslmode` |
//! | `schema` | what the server must be, and numbered migrations (`migrations/*.sql`) |
//! | `commit` | a page and its checkpoint in one transaction, and rows that the server refuses |
//! | `refusal` | what JSONB cannot hold |
//! | `records` | control records from and to their columns |
//! | `error` | SQLSTATEs to the engine's error kinds |

mod address;
mod commit;
mod config;
mod connection;
mod error;
mod records;
mod refusal;
mod schema;
mod session;
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
use deadpool_postgres::Pool;
use tokio::sync::OnceCell;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

pub use crate::config::{Config, Endpoint, SslMode, UnknownSslMode};
use crate::connection::Connector;
use crate::error::{Failure, attempt};
use crate::records::Time;
pub use crate::schema::grant_script;
use crate::session::{Names, Parameter, Session};

/// A store in one schema of a PostgreSQL database.
pub struct PostgresStore {
    pool: Pool,
    connector: Connector,
    /// `None` = the first schema of the search path.
    schema: Option<String>,
    /// Of each statement, in milliseconds.
    statement_timeout: u128,
    /// Set once the server and the database were seen to be of use.
    names: OnceCell<Names>,
    /// Set once the tables were seen not to be newer than this program.
    usable: OnceCell<()>,
}

type Tried<T> = std::result::Result<T, Failure>;

impl PostgresStore {
    /// A store on that server. Connects when it is first asked for something.
    ///
    /// # Errors
    /// `Usage` if the connection string or the trusted certificates cannot be read.
    pub fn new(config: &Config) -> Result<Self> {
        let connector = Connector::new(config)?;
        Ok(Self {
            pool: connector.pool(config.max_connections, config.connection_timeout)?,
            connector,
            schema: config.schema.clone(),
            statement_timeout: config.statement_timeout.as_millis(),
            names: OnceCell::new(),
            usable: OnceCell::new(),
        })
    }

    /// Where the tables are, or will be.
    async fn names(&self) -> Tried<&Names> {
        let find = || schema::find(&self.pool, self.schema.as_deref(), self.statement_timeout);
        self.names.get_or_try_init(find).await
    }

    /// The same, of tables that this program understands.
    async fn usable(&self) -> Tried<&Names> {
        let names = self.names().await?;
        let check = || schema::require_known(&self.pool, names);
        self.usable.get_or_try_init(check).await?;
        Ok(names)
    }

    /// A transaction.
    async fn session(&self) -> Tried<Session<'_>> {
        Session::new(&self.pool, self.usable().await?).await
    }

    /// One statement in a transaction of its own.
    async fn only(&self, template: &str, parameters: &[Parameter<'_>]) -> Tried<Vec<Row>> {
        Session::only(&self.pool, self.usable().await?, template, parameters).await
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
            schema::prepare(&self.pool, self.names().await?).await
        })
        .await
    }

    async fn hold(&self, name: &str) -> Result<Option<Hold>> {
        attempt("keep other runs away from this store", async {
            let name = format!("atlas hold in {}: {name}", self.names().await?.schema);
            // A session's lock ends with its connection: nobody else may get this one.
            let client = self.connector.single().await?;
            // A hold that was just let go may take its server a moment to notice. Where the server ends idle
            // sessions, not this one.
            client
                .batch_execute("SET lock_timeout TO '500ms'; SET idle_session_timeout TO 0")
                .await?;
            let locked = client
                .execute_typed(
                    "SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended($1, 0::pg_catalog.int8))",
                    &[(&name, Type::TEXT)],
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

    async fn raise_watermarks(
        &self,
        selection: &SelectionKey,
        watermarks: &[Watermark],
    ) -> Result<()> {
        attempt("raise watermarks", async {
            let times = |time: fn(&Watermark) -> Instant| -> Vec<Time> {
                watermarks.iter().map(|watermark| Time(time(watermark))).collect()
            };
            let templates = watermarks.iter().map(|watermark| watermark.template.as_str());
            // One statement cannot change a row twice: of a template that comes twice the later times count.
            self.only(
                "INSERT INTO {schema}.atlas_watermarks AS w (selection, template_id, until, late_checked_until)
                 SELECT $1, p.template_id, pg_catalog.max(p.until), pg_catalog.max(p.late_checked_until)
                 FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4))
                     AS p (template_id, until, late_checked_until)
                 GROUP BY p.template_id ORDER BY p.template_id
                 ON CONFLICT (selection, template_id) DO UPDATE SET
                     until = greatest(w.until, excluded.until),
                     late_checked_until = greatest(w.late_checked_until, excluded.late_checked_until)",
                &[
                    (&selection.0, Type::TEXT),
                    (&templates.collect::<Vec<_>>(), Type::TEXT_ARRAY),
                    (&times(|watermark| watermark.until), Type::TIMESTAMPTZ_ARRAY),
                    (&times(|watermark| watermark.late_checked_until), Type::TIMESTAMPTZ_ARRAY),
                ],
            )
            .await?;
            Ok(())
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

    async fn keep_format(&self, format: Format) -> Result<()> {
        attempt("forget the watermarks of other formats", async {
            let prefix = SelectionKey::prefix(format);
            self.only(
                "WITH watermarks AS (
                     DELETE FROM {schema}.atlas_watermarks WHERE NOT pg_catalog.starts_with(selection, $1))
                 DELETE FROM {schema}.atlas_slices WHERE NOT pg_catalog.starts_with(selection, $1)",
                &[(&prefix, Type::TEXT)],
            )
            .await?;
            Ok(())
        })
        .await
    }

    async fn add_slices(&self, slices: &[Slice]) -> Result<()> {
        attempt("add slices", async {
            let mut session = self.session().await?;
            records::insert_slices(&mut session, slices).await?;
            session.commit().await
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

    async fn swap_slice(&self, before: &Slice, after: &Slice) -> Result<Option<Slice>> {
        let after = Slice {
            id: before.id.clone(),
            step: before.step + 1,
            ..after.clone()
        };
        attempt("change a slice", async {
            let mut session = self.session().await?;
            let stands = records::lock_slice(&mut session, &before.id).await?;
            if let Some(slice) = &stands
                && (slice.step, slice.fence) == (before.step, before.fence)
            {
                records::update_slice(session, &after).await?;
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
            self.only(
                "DELETE FROM {schema}.atlas_slices WHERE id {=} ANY ($1) AND state {=} 'done'",
                &[(&ids, Type::TEXT_ARRAY)],
            )
            .await?;
            Ok(())
        })
        .await
    }

    async fn drop_slices(&self, ids: &[String]) -> Result<()> {
        attempt("remove the slices of a cancelled run", async {
            let sql = "DELETE FROM {schema}.atlas_slices WHERE id {=} ANY ($1)";
            self.only(sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
            Ok(())
        })
        .await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        attempt("write a page", async {
            commit::commit(&self.pool, self.usable().await?, commit).await
        })
        .await
    }

    async fn known(&self, objects: &[ObjectId]) -> Result<HashMap<ObjectId, Known>> {
        attempt("look up versions", async {
            let ids: Vec<&str> = objects.iter().map(ObjectId::as_str).collect();
            let rows = self
                .only(
                    "SELECT id, pg_catalog.max(version) AS version FROM (
                         SELECT id, version FROM {schema}.compositions WHERE id {=} ANY ($1)
                         UNION ALL SELECT id, version FROM {schema}.atlas_quarantine WHERE id {=} ANY ($1)
                     ) AS seen GROUP BY id",
                    &[(&ids, Type::TEXT_ARRAY)],
                )
                .await?;
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
            let limit = filter.limit.map(i64::try_from).transpose()?;
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_quarantine
                     WHERE ($1 IS NULL OR template_id {=} $1)
                       AND ($2 IS NULL OR tried {<} $2)
                       AND ($3 IS NULL OR id {=} $3)
                     ORDER BY tried, id LIMIT $4",
                    &[
                        (
                            &filter.template.as_ref().map(TemplateId::as_str),
                            Type::TEXT,
                        ),
                        (&filter.tried_before.map(Time), Type::TIMESTAMPTZ),
                        (&filter.object.as_ref().map(ObjectId::as_str), Type::TEXT),
                        (&limit, Type::INT8),
                    ],
                )
                .await?;
            rows.iter().map(records::quarantined).collect()
        })
        .await
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        attempt("count the compositions", async {
            let rows = self
                .only(
                    "SELECT template_id, pg_catalog.count(*) AS compositions, pg_catalog.max(time_committed) AS newest
                     FROM {schema}.compositions WHERE deleted_at IS NULL
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
            let names = self.usable().await?;
            records::write_run(&self.pool, names, records::ADD_RUN, run).await
        })
        .await
    }

    async fn save_run(&self, run: &Run) -> Result<()> {
        attempt("save the record of a run", async {
            let names = self.usable().await?;
            records::write_run(&self.pool, names, records::SAVE_RUN, run).await?;
            Ok(())
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
        attempt("read a run", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_runs WHERE id {=} $1",
                    &[(&id, Type::TEXT)],
                )
                .await?;
            rows.first().map(records::run).transpose()
        })
        .await
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

    async fn template(&self, template: &TemplateId) -> Result<Option<StoredTemplate>> {
        attempt("read a web template", async {
            let rows = self
                .only(
                    "SELECT * FROM {schema}.atlas_templates WHERE template_id {=} $1",
                    &[(&template.as_str(), Type::TEXT)],
                )
                .await?;
            rows.first().map(records::stored_template).transpose()
        })
        .await
    }

    async fn save_template(&self, template: &StoredTemplate) -> Result<()> {
        attempt("save a web template", async {
            self.only(
                "INSERT INTO {schema}.atlas_templates (template_id, digest, web_template, names, fetched)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (template_id) DO UPDATE SET
                     (digest, web_template, names, fetched) = ($2, $3, $4, $5)",
                &[
                    (&template.template.as_str(), Type::TEXT),
                    (&template.digest, Type::TEXT),
                    (&template.web_template, Type::TEXT),
                    (&template.names, Type::TEXT),
                    (&Time(template.fetched), Type::TIMESTAMPTZ),
                ],
            )
            .await?;
            Ok(())
        })
        .await
    }
}
