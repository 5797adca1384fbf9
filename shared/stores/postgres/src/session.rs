//! A call of the store: one transaction, in which every name means what the store means by it.
//!
//! Nothing is left on the connection. A pooler may give each transaction another one, and other users of the database may
//! put functions, operators, views and tables of any name where a search path finds them.

use std::borrow::Cow;

use deadpool_postgres::{Client, Pool};
use futures::future::{try_join, try_join_all, try_join3};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::error::Failure;

/// A value and its type. With both known the statement needs no name, which a pooler may not know any more.
pub(crate) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A statement with its values, to be sent together with others.
pub(crate) struct Statement<'a> {
    template: Cow<'static, str>,
    values: Vec<(Box<dyn ToSql + Sync + Send + 'a>, Type)>,
}

impl<'a> Statement<'a> {
    pub(crate) fn new(template: impl Into<Cow<'static, str>>) -> Self {
        Self {
            template: template.into(),
            values: Vec::new(),
        }
    }

    /// With the value of its next parameter.
    #[must_use]
    pub(crate) fn with(mut self, value: impl ToSql + Sync + Send + 'a, column: Type) -> Self {
        self.values.push((Box::new(value), column));
        self
    }

    /// With more text, in which `$` stands for its value.
    #[must_use]
    pub(crate) fn and(
        mut self,
        text: &str,
        value: impl ToSql + Sync + Send + 'a,
        column: Type,
    ) -> Self {
        self = self.with(value, column);
        let place = format!("${}", self.values.len());
        let template = self.template.to_mut();
        template.push_str(&text.replace('$', &place));
        self
    }

    /// Answers how it would be done.
    #[cfg(test)]
    pub(crate) fn explained(mut self) -> Self {
        self.template = format!("EXPLAIN {}", self.template).into();
        self
    }

    fn written(&self, names: &Names) -> (String, Vec<Parameter<'_>>) {
        let values = self.values.iter();
        let parameters =
            values.map(|(value, column)| (&**value as &(dyn ToSql + Sync), column.clone()));
        (names.sql(&self.template), parameters.collect())
    }
}

/// What a transaction takes back of all that an earlier client may have left on a pooled connection: who it became, how durable it
/// wanted to be, and how long statements, locks and pauses may last, in milliseconds. A process that is frozen in a transaction
/// must not keep others out for longer.
fn as_connected(timeout: u128) -> String {
    format!(
        "SET LOCAL SESSION AUTHORIZATION DEFAULT;
         SET LOCAL role TO DEFAULT;
         SET LOCAL row_security TO DEFAULT;
         SET LOCAL synchronous_commit TO DEFAULT;
         SET LOCAL default_tablespace TO DEFAULT;
         SET LOCAL statement_timeout TO {timeout};
         SET LOCAL lock_timeout TO {timeout};
         SET LOCAL idle_in_transaction_session_timeout TO {timeout};
         "
    )
}

/// What decides how transactions begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    /// Of PostgreSQL, such as 15.
    pub(crate) major: i32,
    /// Whether it takes no writes, and not even the wish to write; or this role asked for that when it connected.
    pub(crate) is_read_only: bool,
}

impl Server {
    /// The first version that limits whole transactions.
    const LIMITS_TRANSACTIONS: i32 = 17;

    fn begin(self) -> &'static str {
        match self.is_read_only {
            true => "BEGIN ISOLATION LEVEL READ COMMITTED;",
            false => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;",
        }
    }

    fn limits(self) -> &'static str {
        match self.major >= Self::LIMITS_TRANSACTIONS {
            true => "SET LOCAL transaction_timeout TO 0;",
            false => "",
        }
    }
}

/// What the statements of one schema need.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// As in the catalogue.
    pub(crate) schema: String,
    quoted: String,
    begin: String,
}

impl Names {
    /// `timeout` is for a statement, a lock, and a pause inside a transaction, in milliseconds.
    pub(crate) fn new(schema: &str, server: Server, timeout: u128) -> Self {
        let quoted = quoted(schema);
        // Constraints at once: an error that comes with the commit could not be told from row to row.
        let begin = format!(
            "{} {} {}
             SET LOCAL search_path TO pg_catalog, {quoted}, pg_temp;
             SET CONSTRAINTS ALL IMMEDIATE",
            server.begin(),
            as_connected(timeout),
            server.limits()
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

    /// Several statements, sent one after the other without waiting for answers. Answers the rows of each.
    pub(crate) async fn query_all(
        &mut self,
        statements: &[Statement<'_>],
    ) -> Result<Vec<Vec<Row>>, Failure> {
        let written = self.written(statements);
        let client = self.client.get()?;
        if self.has_begun {
            return Ok(send(client, &written).await?);
        }
        self.has_begun = true;
        let begin = client.batch_execute(&self.names.begin);
        let ((), rows) = try_join(begin, send(client, &written)).await?;
        Ok(rows)
    }

    /// Statements that leave the transaction as it was if one of them fails: then [`Self::undo`] must follow.
    pub(crate) async fn attempt(
        &mut self,
        statements: &[Statement<'_>],
    ) -> Result<Vec<Vec<Row>>, Failure> {
        self.begin().await?;
        let written = self.written(statements);
        let client = self.client.get()?;
        let ((), rows, ()) = try_join3(
            client.batch_execute("SAVEPOINT attempt"),
            send(client, &written),
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

    /// What a statement would answer; nothing of it stays.
    pub(crate) async fn trial(
        &mut self,
        statement: &Statement<'_>,
    ) -> Result<Result<Vec<Row>, Failure>, Failure> {
        self.batch("SAVEPOINT trial").await?;
        let (sql, parameters) = statement.written(self.names);
        let tried = self.client.get()?.query_typed(&sql, &parameters).await;
        self.batch("ROLLBACK TO SAVEPOINT trial; RELEASE SAVEPOINT trial")
            .await?;
        Ok(tried.map_err(Failure::from))
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

    /// The last statements and the commit in one round trip.
    pub(crate) async fn commit_after(
        mut self,
        statements: &[Statement<'_>],
    ) -> Result<Vec<Vec<Row>>, Failure> {
        let written = self.written(statements);
        let client = self.client.get()?;
        let begin = async {
            if self.has_begun {
                return Ok(());
            }
            client.batch_execute(&self.names.begin).await
        };
        let commit = client.batch_execute("COMMIT");
        let ((), rows, ()) = try_join3(begin, send(client, &written), commit).await?;
        self.client.give_back();
        Ok(rows)
    }

    /// Ends it with nothing done.
    pub(crate) async fn roll_back(mut self) -> Result<(), Failure> {
        if self.has_begun {
            self.client.get()?.batch_execute("ROLLBACK").await?;
        }
        self.client.give_back();
        Ok(())
    }

    fn written<'s>(&self, statements: &'s [Statement<'_>]) -> Vec<(String, Vec<Parameter<'s>>)> {
        let statements = statements.iter();
        statements.map(|one| one.written(self.names)).collect()
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

/// Polled in this order, and thus sent in this order.
async fn send(
    client: &Client,
    written: &[(String, Vec<Parameter<'_>>)],
) -> Result<Vec<Vec<Row>>, tokio_postgres::Error> {
    let statements = written.iter();
    try_join_all(statements.map(|(sql, parameters)| client.query_typed(sql, parameters))).await
}

/// One statement about the server, before the schema is known. It reads the catalogue only.
///
/// The search path is the one that options, role and database set. `timeout` is in milliseconds.
pub(crate) async fn query_server(
    pool: &Pool,
    timeout: u128,
    sql: &str,
) -> Result<Vec<Row>, Failure> {
    let begin = format!(
        "BEGIN; {} SET LOCAL search_path TO DEFAULT",
        as_connected(timeout)
    );
    alone(pool, &begin, sql, &[]).await
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
