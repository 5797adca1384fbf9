//! A call of the store: one transaction, in which every name means what the store means by it.
//!
//! Nothing is left on the connection. A pooler may give each transaction another one, and other users of the database may
//! put functions, operators, views and tables of any name where a search path finds them.

use deadpool_postgres::{Client, Pool};
use futures::future::{try_join, try_join_all, try_join3};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::error::Failure;

/// A value and its type. With both known the statement needs no name, which a pooler may not know any more.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// How a transaction begins where the schema is not known yet. It reads the catalogue only.
///
/// The search path is the one that options, role and database set, whatever an earlier client left on a pooled connection.
const BEGIN_ANYWHERE: &str = "BEGIN; SET LOCAL search_path TO DEFAULT";

/// What the statements of one schema need.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// As in the catalogue.
    pub(crate) schema: String,
    quoted: String,
    begin: String,
}

impl Names {
    /// `timeout` is for a statement, and for a pause inside a transaction, in milliseconds: a process that is frozen in
    /// one must not keep others out for longer.
    pub(crate) fn new(schema: &str, timeout: u128) -> Self {
        let quoted = quoted(schema);
        // Constraints at once: an error that comes with the commit could not be told from row to row.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;
             SET LOCAL search_path TO pg_catalog, {quoted}, pg_temp;
             SET LOCAL statement_timeout TO {timeout};
             SET LOCAL idle_in_transaction_session_timeout TO {timeout};
             SET CONSTRAINTS ALL IMMEDIATE"
        );
        Self {
            schema: schema.to_owned(),
            quoted,
            begin,
        }
    }

    /// A statement with `{schema}` and operators such as `{=}` written out, so that no search path decides about them.
    pub(crate) fn sql(&self, template: &str) -> String {
        let mut sql = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some((before, name, after)) = rest.split_once('{').and_then(|(before, after)| {
            let (name, after) = after.split_once('}')?;
            Some((before, name, after))
        }) {
            sql.push_str(before);
            if name == "schema" {
                sql.push_str(&self.quoted);
            } else {
                sql.push_str("OPERATOR(pg_catalog.");
                sql.push_str(name);
                sql.push(')');
            }
            rest = after;
        }
        sql.push_str(rest);
        sql
    }
}

/// A transaction that ends with [`Self::commit`]. Dropped before, it takes its connection out of the pool: the server rolls back.
pub(crate) struct Session<'a> {
    names: &'a Names,
    client: Lent,
    has_begun: bool,
}

impl<'a> Session<'a> {
    /// A transaction, which goes to the server together with its first statement.
    pub(crate) async fn new(pool: &Pool, names: &'a Names) -> Result<Self, Failure> {
        Ok(Self {
            names,
            client: Lent(Some(pool.get().await?)),
            has_begun: false,
        })
    }

    /// One statement in a transaction of its own, in one round trip.
    pub(crate) async fn only(
        pool: &Pool,
        names: &Names,
        template: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let sql = names.sql(template);
        alone(pool, &names.begin, &sql, parameters).await
    }

    pub(crate) async fn query(
        &mut self,
        template: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        let sql = self.names.sql(template);
        let client = self.client.get()?;
        if self.has_begun {
            return Ok(client.query_typed(&sql, parameters).await?);
        }
        self.has_begun = true;
        // Both are polled in this order, and thus sent in this order.
        let begin = client.batch_execute(&self.names.begin);
        let ((), rows) = try_join(begin, client.query_typed(&sql, parameters)).await?;
        Ok(rows)
    }

    /// How many rows it changed.
    pub(crate) async fn execute(
        &mut self,
        template: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<u64, Failure> {
        self.begin().await?;
        let sql = self.names.sql(template);
        Ok(self.client.get()?.execute_typed(&sql, parameters).await?)
    }

    /// The same statement for several sets of values, sent one after the other without waiting for answers.
    pub(crate) async fn execute_all(
        &mut self,
        template: &str,
        all: Vec<Vec<Parameter<'_>>>,
    ) -> Result<(), Failure> {
        self.begin().await?;
        let sql = self.names.sql(template);
        let client = self.client.get()?;
        let statements = all
            .iter()
            .map(|parameters| client.execute_typed(&sql, parameters));
        try_join_all(statements).await?;
        Ok(())
    }

    /// A statement that leaves the transaction as it was if it fails: then [`Self::undo`] must follow.
    pub(crate) async fn attempt(
        &mut self,
        template: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        self.begin().await?;
        let sql = self.names.sql(template);
        let client = self.client.get()?;
        let ((), rows, ()) = try_join3(
            client.batch_execute("SAVEPOINT attempt"),
            client.query_typed(&sql, parameters),
            client.batch_execute("RELEASE SAVEPOINT attempt"),
        )
        .await?;
        Ok(rows)
    }

    /// Takes back the [`Self::attempt`] that failed.
    pub(crate) async fn undo(&mut self) -> Result<(), Failure> {
        self.batch("ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt")
            .await
    }

    /// Whether a statement works; nothing of it stays.
    pub(crate) async fn would_work(
        &mut self,
        template: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Result<(), Failure>, Failure> {
        self.batch("SAVEPOINT trial").await?;
        let sql = self.names.sql(template);
        let tried = self.client.get()?.query_typed(&sql, parameters).await;
        self.batch("ROLLBACK TO SAVEPOINT trial; RELEASE SAVEPOINT trial")
            .await?;
        Ok(tried.map(|_| ()).map_err(Failure::from))
    }

    /// Statements without parameters.
    pub(crate) async fn batch(&mut self, template: &str) -> Result<(), Failure> {
        self.begin().await?;
        let sql = self.names.sql(template);
        Ok(self.client.get()?.batch_execute(&sql).await?)
    }

    pub(crate) async fn commit(mut self) -> Result<(), Failure> {
        if self.has_begun {
            self.client.get()?.batch_execute("COMMIT").await?;
        }
        self.client.give_back();
        Ok(())
    }

    /// The last statement and the commit in one round trip.
    pub(crate) async fn commit_with(
        mut self,
        template: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Failure> {
        self.begin().await?;
        let sql = self.names.sql(template);
        let client = self.client.get()?;
        let (rows, ()) = try_join(
            client.query_typed(&sql, parameters),
            client.batch_execute("COMMIT"),
        )
        .await?;
        self.client.give_back();
        Ok(rows)
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        if !self.has_begun {
            self.has_begun = true;
            let client = self.client.get()?;
            client.batch_execute(&self.names.begin).await?;
        }
        Ok(())
    }
}

/// One statement about the server, before the schema is known.
pub(crate) async fn ask(pool: &Pool, sql: &str) -> Result<Vec<Row>, Failure> {
    alone(pool, BEGIN_ANYWHERE, sql, &[]).await
}

async fn alone(
    pool: &Pool,
    begin: &str,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Row>, Failure> {
    let mut lent = Lent(Some(pool.get().await?));
    let client = lent.get()?;
    // They are polled in this order, and thus sent in this order. After an error COMMIT rolls back.
    let ((), rows, ()) = try_join3(
        client.batch_execute(begin),
        client.query_typed(sql, parameters),
        client.batch_execute("COMMIT"),
    )
    .await?;
    lent.give_back();
    Ok(rows)
}

/// A connection that goes back to the pool only when its transaction is known to have ended well.
struct Lent(Option<Client>);

impl Lent {
    fn get(&self) -> Result<&Client, Failure> {
        self.0.as_ref().ok_or(Failure::Ended)
    }

    fn give_back(&mut self) {
        self.0 = None;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Client::take(client));
        }
    }
}

/// An identifier as SQL writes it.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
