//! Keeps compositions and control records in PostgreSQL, 14 or newer.
//!
//! | module | what |
//! |---|---|
//! | [`PostgresStore`] | the [`Store`] with its templates, over the rest of the crate |
//! | [`Config`], [`SslMode`], [`Endpoint`] | where the server is and how to talk to it |
//! | [`grant_script`] | the rights of a role that exports and may change no table |
//! | [`Look`] | who may do what with the tables |
//! | `address` | the connection string as libpq reads it |
//! | `connection` | connections and their pool |
//! | `session` | a call: one transaction that leaves nothing on its connection |
//! | `tls` | TLS as libpq means each `sslmode` |
//! | `schema` | what the server must be, and numbered migrations (`migrations/*.sql`) |
//! | `rows` | the copy: [`Rows`] and its [`Index`] |
//! | `ledger` | the control records: [`Ledger`] |
//! | `commit` | a page and its checkpoint in one transaction |
//! | `landed` | a page whose checkpoint lies elsewhere |
//! | `land` | rows into their table, and which of them PostgreSQL refuses |
//! | `quarantine` | the entries of the quarantine |
//! | `refusal` | what JSONB cannot hold |
//! | `records` | control records from and to their columns |
//! | `error` | SQLSTATEs to the engine's error kinds |

mod address;
mod commit;
mod config;
mod connection;
mod error;
mod grants;
mod land;
mod landed;
mod ledger;
mod look;
#[cfg(test)]
mod plans;
mod quarantine;
mod records;
mod refusal;
mod rows;
mod schema;
mod session;
mod slices;
mod tls;

use async_trait::async_trait;
use atlas_engine::model::{Batch, Commit, Committed, StoredTemplate};
use atlas_engine::ports::{Index, Ledger, Rows, Store, Templates};
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::TemplateId;
use deadpool_postgres::Pool;
use tokio::sync::OnceCell;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

pub use crate::address::ConnectionError;
pub use crate::config::{Config, Endpoint, SslMode, UnknownSslMode};
use crate::connection::Connector;
use crate::error::{Failure, attempt};
pub use crate::grants::{UnusableName, grant_script};
pub use crate::look::Look;
use crate::records::Time;
use crate::session::{Names, Parameter, Session, Statement};

/// A store in one schema of a PostgreSQL database.
pub struct PostgresStore {
    pool: Pool,
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

    async fn prepare_tables(&self) -> Result<()> {
        attempt("bring the tables in PostgreSQL up to date", async {
            schema::prepare(&self.pool, self.names().await?).await
        })
        .await
    }

    /// A transaction.
    async fn session(&self) -> Tried<Session<'_>> {
        Session::new(&self.pool, self.usable().await?).await
    }

    /// Statements in a transaction of their own. Answers the rows of the last one.
    async fn run_all(&self, statements: &[Statement<'_>]) -> Tried<Vec<Row>> {
        let answers = self.session().await?.commit_after(statements).await?;
        Ok(answers.into_iter().next_back().unwrap_or_default())
    }

    /// One statement in a transaction of its own.
    async fn only(&self, template: &str, parameters: &[Parameter<'_>]) -> Tried<Vec<Row>> {
        Session::only(&self.pool, self.usable().await?, template, parameters).await
    }
}

#[async_trait]
impl Store for PostgresStore {
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
        self.prepare_tables().await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed> {
        refuse_side_rows(commit.batch)?;
        attempt("write a page", async {
            commit::commit(&self.pool, self.usable().await?, commit).await
        })
        .await
    }
}

/// A page with side rows cannot be kept whole, so it is not kept at all.
fn refuse_side_rows(batch: &Batch) -> Result<()> {
    if batch.side_rows.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        "write a page: typed tables are not kept by this store yet",
    )
    .fix("Set enabled = false in the section [tables], or export into another store."))
}

#[async_trait]
impl Templates for PostgresStore {
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
