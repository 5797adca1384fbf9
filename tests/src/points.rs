//! Moments between two statements of a worker: a trigger in its PostgreSQL waits there for a lock that the test holds, and
//! while it waits the test kills the worker. Nothing in the shipped programs knows of it.

use std::time::Duration;

use tokio_postgres::{Client, NoTls};

use crate::hosted::LIMIT;
use crate::store::Store;

/// Between which two steps a worker is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It has read the slice and is about to take it.
    BeforeTake,
    /// It has taken the slice, and does not know yet that it did.
    AfterTake,
    /// It has a page and is about to write its first row.
    BeforeWrite,
    /// The rows are written; the transaction is open.
    AfterWrite,
    /// The slice's cursor is about to move; the transaction is open.
    BeforeCheckpoint,
    /// Page and cursor are durable; the worker does not know yet.
    AfterCheckpoint,
    /// The slice is done; its watermark is not raised, and the message not acknowledged.
    BeforeAcknowledge,
}

impl Step {
    /// When, on which table, under which condition, and whether only at the commit.
    fn trigger(self) -> (&'static str, &'static str, &'static str, bool) {
        let slices = "atlas_slices";
        let taken = "WHEN (NEW.fence > OLD.fence)";
        let moved = "WHEN (NEW.cursor_object IS DISTINCT FROM OLD.cursor_object)";
        match self {
            Self::BeforeTake => ("BEFORE UPDATE", slices, taken, false),
            Self::AfterTake => ("AFTER UPDATE", slices, taken, true),
            Self::BeforeWrite => ("BEFORE INSERT", "compositions", "", false),
            Self::AfterWrite => ("AFTER INSERT", "compositions", "", false),
            Self::BeforeCheckpoint => ("BEFORE UPDATE", slices, moved, false),
            Self::AfterCheckpoint => ("AFTER UPDATE", slices, moved, true),
            Self::BeforeAcknowledge => ("AFTER UPDATE", slices, "WHEN (NEW.state = 'done')", true),
        }
    }
}

/// A worker that comes to the step waits until this is released.
pub struct Hold {
    client: Client,
    step: Step,
}

/// Any number that nobody else uses.
const KEY: i64 = 0x000a_71a5;

impl Hold {
    /// Holds whoever comes to a step from now on. The tables are there.
    pub async fn at(step: Step, store: &Store) -> Self {
        let Store::Postgres(url) = store else {
            panic!("only PostgreSQL has such triggers");
        };
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let (when, table, condition, at_commit) = step.trigger();
        let (kind, timing) = if at_commit {
            ("CONSTRAINT TRIGGER", "DEFERRABLE INITIALLY DEFERRED")
        } else {
            ("TRIGGER", "")
        };
        let sql = format!(
            "SELECT pg_advisory_lock({KEY});
             CREATE OR REPLACE FUNCTION hold_here() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock({KEY}); RETURN NEW; END $$;
             CREATE {kind} hold_here {when} ON {table} {timing} FOR EACH ROW {condition} EXECUTE FUNCTION hold_here()"
        );
        client.batch_execute(&sql).await.unwrap();
        Self { client, step }
    }

    /// Waits until a worker is held.
    pub async fn reached(&self) {
        let begun = std::time::Instant::now();
        let waiting = "SELECT count(*) FROM pg_locks
                       WHERE locktype = 'advisory' AND NOT granted AND database =
                           (SELECT oid FROM pg_database WHERE datname = current_database())";
        while self
            .client
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {
            assert!(begun.elapsed() < LIMIT, "nobody came to {:?}", self.step);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes the trigger away and lets go on what waits there: with its client dead, what was not committed is rolled back,
    /// and a commit under way is finished.
    pub async fn release(self) {
        let (_, table, _, _) = self.step.trigger();
        let unlock = format!("SELECT pg_advisory_unlock({KEY})");
        self.client.batch_execute(&unlock).await.unwrap();
        let sql = format!("DROP TRIGGER hold_here ON {table}");
        self.client.batch_execute(&sql).await.unwrap();
    }
}
