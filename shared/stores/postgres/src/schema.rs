//! Numbered migrations, which versions of the tables this program may use, and the rights it needs on them.

use atlas_engine::{Error, ErrorKind};
use deadpool_postgres::{Client, GenericClient};

use crate::connection::quoted;
use crate::error::Failure;

/// In order; the first is number 1. A migration that was published is never changed.
const MIGRATIONS: &[(&str, &str)] = &[
    ("tables", include_str!("migrations/0001_tables.sql")),
    ("suite", include_str!("migrations/0002_suite.sql")),
];

const LATEST: i64 = MIGRATIONS.len() as i64;

/// Runs the migrations that are missing, in one transaction that only one process at a time gets into.
pub(crate) async fn prepare(client: &mut Client, schema: &str) -> Result<(), Failure> {
    // Asked first without a lock: a role without the right to create anything gets through here.
    if version(client, schema).await? == LATEST {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('atlas migrations in ' || $1, 0))",
            &[&schema],
        )
        .await?;
    let done = version(&transaction, schema).await?;
    let is_there = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)",
            &[&schema],
        )
        .await?
        .try_get::<_, bool>(0)?;
    if !is_there {
        // Not IF NOT EXISTS, which asks for the right to create even where there is nothing to do.
        let create = format!("CREATE SCHEMA {}", quoted(schema));
        transaction.batch_execute(&create).await?;
    }
    transaction
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS atlas_migrations (
                 version       bigint      NOT NULL PRIMARY KEY,
                 name          text        NOT NULL,
                 applied_at    timestamptz NOT NULL DEFAULT now(),
                 atlas_version text        NOT NULL
             );
             COMMENT ON TABLE atlas_migrations IS 'What has been done to these tables.';
             COMMENT ON COLUMN atlas_migrations.version IS 'Number of the migration.';
             COMMENT ON COLUMN atlas_migrations.name IS 'Its name.';
             COMMENT ON COLUMN atlas_migrations.applied_at IS 'When it was run.';
             COMMENT ON COLUMN atlas_migrations.atlas_version IS 'Program that ran it.';",
        )
        .await?;
    for (number, (name, sql)) in (1_i64..).zip(MIGRATIONS) {
        if number <= done {
            continue;
        }
        transaction.batch_execute(sql).await?;
        transaction
            .execute(
                "INSERT INTO atlas_migrations (version, name, atlas_version) VALUES ($1, $2, $3)",
                &[&number, name, &env!("CARGO_PKG_VERSION")],
            )
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Refuses tables that a newer program wrote.
pub(crate) async fn require_known(client: &Client, schema: &str) -> Result<(), Failure> {
    version(client, schema).await.map(|_| ())
}

/// Number of the last migration; 0 in a schema without tables of Atlas.
async fn version(client: &impl GenericClient, schema: &str) -> Result<i64, Failure> {
    // The catalogue itself: `to_regclass` may remember from before the lock that there was no such table.
    let is_there = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                            WHERE n.nspname = $1 AND c.relname = 'atlas_migrations')",
            &[&schema],
        )
        .await?
        .try_get::<_, bool>(0)?;
    if !is_there {
        return Ok(0);
    }
    // Named in full: a role without rights on the schema is told so, and not that the table is missing.
    let schema = quoted(schema);
    let newest = format!("SELECT coalesce(max(version), 0) FROM {schema}.atlas_migrations");
    let found = client.query_one(&newest, &[]).await?.try_get::<_, i64>(0)?;
    if found > LATEST {
        let action = format!(
            "use this schema: its tables have version {found}, this program knows {LATEST}"
        );
        return Err(Error::new(ErrorKind::StoreNewer, action)
            .fix("Use the Atlas that wrote it or a newer one; or export into a new schema by postgresql.schema.")
            .into());
    }
    Ok(found)
}

/// The SQL that gives a role exactly the rights an export needs, once the tables are there. Whoever owns the schema runs it.
#[must_use]
pub fn grant_script(schema: &str, role: &str) -> String {
    let (schema, role) = (quoted(schema), quoted(role));
    // For the staging table, which lives as long as a connection.
    let temporary = format!("GRANT TEMPORARY ON DATABASE %I TO {role}").replace('\'', "''");
    format!(
        "-- What Atlas needs to export once its tables are there: no right to create, change or drop any of them.
DO $atlas$ BEGIN EXECUTE format('{temporary}', current_database()); END $atlas$;
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON {schema}.atlas_migrations, {schema}.watermarks TO {role};
GRANT SELECT, INSERT, UPDATE ON {schema}.compositions, {schema}.atlas_runs, {schema}.atlas_templates,
    {schema}.atlas_records TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.atlas_watermarks, {schema}.atlas_slices,
    {schema}.atlas_quarantine TO {role};
"
    )
}
