//! Where the tables are, whether this program may use them, and numbered migrations.

use atlas_engine::{Error, ErrorKind};
use deadpool_postgres::Pool;
use tokio_postgres::types::Type;

use crate::error::Failure;
use crate::session::{self, Names, Server, Session};

/// Number, name and statements, in order. A migration that was published is never changed.
const MIGRATIONS: &[(i64, &str, &str)] =
    &[(FIRST, "tables", include_str!("migrations/0100_tables.sql"))];

/// The tables of the first release. Lower numbers were made before it.
const FIRST: i64 = 100;
pub(crate) const LATEST: i64 = 100;

/// Tables and views of the migrations, which nothing else may be called.
pub(crate) const RELATIONS: &[&str] = &[
    "atlas_counts",
    "atlas_landed",
    "atlas_migrations",
    "atlas_quarantine",
    "atlas_records",
    "atlas_runs",
    "atlas_slices",
    "atlas_templates",
    "atlas_watermarks",
    "compositions",
    "watermarks",
];

const OLDEST_SERVER: i32 = 14;

/// The table of migrations comes first, and only one of several processes can make it: the others wait for that one and
/// find its work done.
const BEGIN_TABLES: &str = "
    CREATE TABLE {schema}.atlas_migrations (
        version       pg_catalog.int8        NOT NULL PRIMARY KEY,
        name          pg_catalog.text        NOT NULL,
        applied_at    pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
        atlas_version pg_catalog.text        NOT NULL
    );
    COMMENT ON TABLE {schema}.atlas_migrations IS 'What has been done to these tables.';
    COMMENT ON COLUMN {schema}.atlas_migrations.version IS 'Number of the migration.';
    COMMENT ON COLUMN {schema}.atlas_migrations.name IS 'Its name.';
    COMMENT ON COLUMN {schema}.atlas_migrations.applied_at IS 'When it was run.';
    COMMENT ON COLUMN {schema}.atlas_migrations.atlas_version IS 'Program that ran it.';";

/// Finds the schema, and refuses a server or a database that cannot hold a copy.
///
/// `timeout` is for each statement, in milliseconds.
pub(crate) async fn find(
    pool: &Pool,
    configured: Option<&str>,
    timeout: u128,
) -> Result<Names, Failure> {
    let rows = session::query_server(
        pool,
        timeout,
        "SELECT pg_catalog.getdatabaseencoding() AS encoding, pg_catalog.current_schemas(false) AS schemas,
                pg_catalog.current_setting('server_version_num') AS version, pg_catalog.pg_is_in_recovery()
                 OR EXISTS (SELECT FROM pg_catalog.pg_settings
                            WHERE name OPERATOR(pg_catalog.=) 'default_transaction_read_only'
                              AND reset_val OPERATOR(pg_catalog.=) 'on') AS is_read_only",
    )
    .await?;
    let row = rows.first().ok_or(Failure::Unknown("server_version_num"))?;
    let version = row.try_get::<_, &str>("version")?.parse::<i32>();
    let major = version.map_err(|_| Failure::Unknown("server_version_num"))? / 10_000;
    if major < OLDEST_SERVER {
        let action = format!("use this server: it is PostgreSQL {major}");
        let fix = format!("Use PostgreSQL {OLDEST_SERVER} or newer.");
        return Err(Error::new(ErrorKind::Usage, action).fix(fix).into());
    }
    let encoding = row.try_get::<_, &str>("encoding")?;
    if encoding != "UTF8" {
        let action =
            format!("use this database: its encoding is {encoding}, which lacks most characters");
        return Err(Error::new(ErrorKind::Usage, action)
            .fix(
                "Make a database with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in \
                 postgresql.connection_string.",
            )
            .into());
    }
    let path = row.try_get::<_, Vec<&str>>("schemas")?;
    let first = path
        .into_iter()
        .find(|schema| !schema.starts_with("pg_") && *schema != "information_schema");
    let schema = configured.or(first).ok_or_else(|| {
        Error::new(
            ErrorKind::Usage,
            "find a schema: none of the search path is there, or this role may use none of them",
        )
        .fix("Set postgresql.schema, or make the schema that the search path names.")
    })?;
    let server = Server {
        major,
        is_read_only: row.try_get("is_read_only")?,
    };
    Ok(Names::new(schema, server, timeout))
}

/// Runs the migrations that are missing, in one transaction that only one process at a time gets through.
pub(crate) async fn prepare(pool: &Pool, names: &Names) -> Result<(), Failure> {
    // Asked first by itself: a role without the right to create anything gets through here.
    let found = version(pool, names).await?;
    if found == LATEST {
        return Ok(());
    }
    let Err(failure) = migrate(pool, names, found).await else {
        return Ok(());
    };
    // Another process was faster, perhaps between two looks of ours, or something else has one of the names.
    let found = version(pool, names).await?;
    if found == LATEST {
        return Ok(());
    }
    if is_collision(&failure) {
        return migrate(pool, names, found).await;
    }
    Err(may_not_create(&failure).map_or(failure, Failure::Reported))
}

/// What is said if this role may not make the tables.
fn may_not_create(failure: &Failure) -> Option<Error> {
    let state = failure.state().filter(|state| state.code() == "42501")?;
    let action = "make the tables in PostgreSQL or bring them up to date, which this role may not";
    let fix = "Run `atlas prepare` as the role that owns the schema, then what `atlas grants --role …` prints; or give this \
               role the right to create.";
    let error = Error::new(ErrorKind::StoreDenied, action);
    Some(
        error
            .because(format!("PostgreSQL answered {state}"))
            .fix(fix),
    )
}

fn is_collision(failure: &Failure) -> bool {
    failure
        .state()
        .is_some_and(|state| matches!(state.code(), "23505" | "42P06" | "42P07" | "42710"))
}

async fn migrate(pool: &Pool, names: &Names, mut done: i64) -> Result<(), Failure> {
    let mut session = Session::new(pool, names).await?;
    let sql = "SELECT FROM pg_catalog.pg_namespace WHERE nspname {=} $1";
    let is_there = session.query(sql, &[(&names.schema, Type::NAME)]).await?;
    if is_there.is_empty() {
        // Not IF NOT EXISTS, which asks for the right to create even where there is nothing to do.
        session.batch("CREATE SCHEMA {schema}").await?;
    }
    if done == 0 {
        require_free_names(&mut session, names).await?;
        session.batch(BEGIN_TABLES).await?;
    } else {
        session
            .batch("LOCK TABLE {schema}.atlas_migrations IN ACCESS EXCLUSIVE MODE")
            .await?;
        let newest = session.query(NEWEST, &[]).await?;
        done = newest.first().map_or(Ok(0), |row| row.try_get(0))?;
    }
    for (number, name, sql) in MIGRATIONS.iter().filter(|(number, ..)| *number > done) {
        session.batch(sql).await?;
        session
            .execute(
                "INSERT INTO {schema}.atlas_migrations (version, name, atlas_version) VALUES ($1, $2, $3)",
                &[
                    (number, Type::INT8),
                    (name, Type::TEXT),
                    (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                ],
            )
            .await?;
    }
    // Where the server has it: a page is written in about half the time that the default compression takes.
    let has_lz4 = "SELECT FROM pg_catalog.pg_settings
                   WHERE name {=} 'default_toast_compression' AND 'lz4' {=} ANY (enumvals)";
    if !session.query(has_lz4, &[]).await?.is_empty() {
        session
            .batch("ALTER TABLE {schema}.compositions ALTER COLUMN content SET COMPRESSION lz4")
            .await?;
    }
    session.commit().await
}

/// Refuses a schema where something else has one of the names.
async fn require_free_names(session: &mut Session<'_>, names: &Names) -> Result<(), Failure> {
    // A table's row type has its name too.
    let taken = session
        .query(
            "SELECT t.typname::pg_catalog.text AS name FROM pg_catalog.pg_type AS t
             JOIN pg_catalog.pg_namespace AS n ON n.oid {=} t.typnamespace
             WHERE n.nspname {=} $1 AND t.typname {=} ANY ($2)
             UNION ALL
             SELECT c.relname::pg_catalog.text FROM pg_catalog.pg_class AS c
             JOIN pg_catalog.pg_namespace AS n ON n.oid {=} c.relnamespace
             WHERE n.nspname {=} $1 AND c.relname {=} ANY ($2)
             ORDER BY name LIMIT 1",
            &[(&names.schema, Type::NAME), (&RELATIONS, Type::NAME_ARRAY)],
        )
        .await?;
    let Some(row) = taken.first() else {
        return Ok(());
    };
    let name = row.try_get::<_, &str>("name")?;
    // One of our own names, never one of theirs.
    let name = RELATIONS.iter().find(|ours| **ours == name);
    let action = format!(
        "make the tables: the schema has a `{}` already that is not Atlas's",
        name.ok_or(Failure::Unknown("typname"))?
    );
    Err(Error::new(ErrorKind::Usage, action)
        .fix("Set postgresql.schema to a schema of its own; it is made if it is missing.")
        .into())
}

/// Refuses tables that this program cannot use.
pub(crate) async fn require_known(pool: &Pool, names: &Names) -> Result<(), Failure> {
    version(pool, names).await.map(|_| ())
}

const NEWEST: &str =
    "SELECT coalesce(pg_catalog.max(version), 0) AS newest FROM {schema}.atlas_migrations";

/// Number of the last migration; 0 in a schema without tables of Atlas.
pub(crate) async fn version(pool: &Pool, names: &Names) -> Result<i64, Failure> {
    // The catalogue itself: a role without rights on the schema is told so by the next statement, and not that the table
    // is missing.
    let shape = Session::only(
        pool,
        names,
        "SELECT c.relkind {=} 'r' AND (
                SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid {=} c.oid AND a.attname {=} ANY ($2) AND a.atttypid {=} CASE a.attname
                    WHEN 'version' THEN 'pg_catalog.int8'::pg_catalog.regtype::pg_catalog.oid
                    ELSE 'pg_catalog.text'::pg_catalog.regtype::pg_catalog.oid END) {=} 3 AS is_ours
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid {=} c.relnamespace
         WHERE n.nspname {=} $1 AND c.relname {=} 'atlas_migrations'",
        &[
            (&names.schema, Type::NAME),
            (
                &["version", "name", "atlas_version"].as_slice(),
                Type::NAME_ARRAY,
            ),
        ],
    )
    .await?;
    let Some(row) = shape.first() else {
        return Ok(0);
    };
    if !row.try_get::<_, bool>("is_ours")? {
        let action = "use this schema: its `atlas_migrations` is not Atlas's";
        return Err(Error::new(ErrorKind::Usage, action)
            .fix("Set postgresql.schema to a schema of its own; it is made if it is missing.")
            .into());
    }
    let newest = Session::only(pool, names, NEWEST, &[]).await?;
    let found = newest
        .first()
        .map_or(Ok(0), |row| row.try_get::<_, i64>("newest"))?;
    if found > LATEST {
        let action = format!(
            "use this schema: its tables have version {found}, this program knows {LATEST}"
        );
        return Err(Error::new(ErrorKind::StoreNewer, action)
            .fix("Use the Atlas that wrote it or a newer one; or export into a new schema by postgresql.schema.")
            .into());
    }
    if found > 0 && found < FIRST {
        let action = "use this schema: its tables were made before the first release: export into a new schema or file";
        return Err(Error::new(ErrorKind::StoreDenied, action)
            .fix("Set postgresql.schema to a new schema and run `atlas export`.")
            .into());
    }
    Ok(found)
}
