//! A look at who may do what with the tables. Nothing is changed.

use atlas_engine::Result;
use tokio_postgres::types::Type;

use crate::error::{Failure, attempt};
use crate::grants::RIGHTS;
use crate::schema::{self, LATEST, RELATIONS};
use crate::session::Session;
use crate::{PostgresStore, Tried};

/// What the tables, their schema and the role are to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Whether the tables of this program are there. False if this role may not look.
    pub is_prepared: bool,
    /// Whether this role may make what is missing.
    pub may_prepare: bool,
    /// Rights on what is there that this role lacks, such as `DELETE on atlas_runs`.
    pub lacks: Vec<String>,
    /// Whether this role is a superuser, or may become one.
    pub is_superuser: bool,
    /// Whether this role owns the tables or the schema, or may become their owner.
    pub is_owner: bool,
    /// Who may create in the schema besides superusers and the owner of the tables; `PUBLIC` is everybody.
    pub creators: Vec<String>,
}

impl PostgresStore {
    /// Looks at the role, the schema and the tables.
    ///
    /// # Errors
    /// As for all else that is asked of the store: a server out of reach, tables of another program or version.
    pub async fn look(&self) -> Result<Look> {
        attempt("look at the tables in PostgreSQL", self.try_look()).await
    }

    async fn try_look(&self) -> Tried<Look> {
        let names = self.names().await?;
        let rows = Session::only(
            &self.pool,
            names,
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolsuper
                            AND pg_catalog.pg_has_role(current_user, oid, 'MEMBER')) AS is_superuser,
                    EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname {=} $1
                            AND pg_catalog.pg_has_role(current_user, nspowner, 'MEMBER'))
                    OR EXISTS (SELECT FROM pg_catalog.pg_class AS c
                               JOIN pg_catalog.pg_namespace AS n ON n.oid {=} c.relnamespace
                               WHERE n.nspname {=} $1 AND c.relname {=} ANY ($2)
                               AND pg_catalog.pg_has_role(current_user, c.relowner, 'MEMBER')) AS is_owner,
                    coalesce(
                        (SELECT pg_catalog.has_schema_privilege(current_user, oid, 'USAGE')
                            AND pg_catalog.has_schema_privilege(current_user, oid, 'CREATE')
                         FROM pg_catalog.pg_namespace WHERE nspname {=} $1),
                        pg_catalog.has_database_privilege(current_user, pg_catalog.current_database(), 'CREATE')
                    ) AS may_create",
            &[(&names.schema, Type::NAME), (&RELATIONS, Type::NAME_ARRAY)],
        )
        .await?;
        let role = rows.first().ok_or(Failure::Unknown("rolsuper"))?;
        let is_owner = role.try_get("is_owner")?;
        let lacks = self.lacks().await?;
        // Without the right to look there is nothing to tell of what is there.
        let version = match lacks.is_empty() {
            true => Some(schema::version(&self.pool, names).await?),
            false => None,
        };
        Ok(Look {
            is_prepared: version == Some(LATEST),
            may_prepare: match version {
                Some(0) => role.try_get("may_create")?,
                Some(_) => is_owner,
                None => false,
            },
            lacks,
            is_superuser: role.try_get("is_superuser")?,
            is_owner,
            creators: self.creators().await?,
        })
    }

    /// Rights on the schema and on the tables that are there.
    async fn lacks(&self) -> Tried<Vec<String>> {
        let needed = RIGHTS.iter().flat_map(|(rights, tables)| {
            let rights = rights.split(", ");
            rights.flat_map(|right| tables.iter().map(move |table| (*table, right)))
        });
        let (tables, rights): (Vec<&str>, Vec<&str>) = needed.unzip();
        let names = self.names().await?;
        let rows = Session::only(
            &self.pool,
            names,
            "SELECT 'USAGE on the schema' AS lacking FROM pg_catalog.pg_namespace AS n
             WHERE n.nspname {=} $1 AND NOT pg_catalog.has_schema_privilege(current_user, n.oid, 'USAGE')
             AND EXISTS (SELECT FROM pg_catalog.pg_class AS c
                         WHERE c.relnamespace {=} n.oid AND c.relname {=} 'atlas_migrations')
             UNION ALL
             SELECT needed.privilege {||} ' on ' {||} needed.relation
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS needed (relation, privilege)
             JOIN pg_catalog.pg_class AS c ON c.relname {=} needed.relation::pg_catalog.name
             JOIN pg_catalog.pg_namespace AS n ON n.oid {=} c.relnamespace AND n.nspname {=} $1
             WHERE NOT pg_catalog.has_table_privilege(current_user, c.oid, needed.privilege)",
            &[
                (&names.schema, Type::NAME),
                (&tables, Type::TEXT_ARRAY),
                (&rights, Type::TEXT_ARRAY),
            ],
        )
        .await?;
        let rows = rows.iter().map(|row| Ok(row.try_get("lacking")?));
        rows.collect()
    }

    /// `pg_database_owner` is the owner of the database. Before the tables are there, whoever looks counts as their owner.
    async fn creators(&self) -> Tried<Vec<String>> {
        let names = self.names().await?;
        let rows = Session::only(
            &self.pool,
            names,
            "WITH granted AS (
                 SELECT a.grantee FROM pg_catalog.pg_namespace AS n,
                     pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS a
                 WHERE n.nspname {=} $1 AND a.privilege_type {=} 'CREATE'
                 UNION
                 SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname {=} $1
             ), creators AS (
                 SELECT DISTINCT CASE r.rolname WHEN 'pg_database_owner' THEN d.datdba ELSE g.grantee END AS id
                 FROM granted AS g
                 JOIN pg_catalog.pg_database AS d ON d.datname {=} pg_catalog.current_database()
                 LEFT JOIN pg_catalog.pg_roles AS r ON r.oid {=} g.grantee
             )
             SELECT coalesce(r.rolname, 'PUBLIC')::pg_catalog.text AS creator
             FROM creators LEFT JOIN pg_catalog.pg_roles AS r ON r.oid {=} creators.id
             WHERE r.rolsuper IS NOT TRUE AND r.oid IS DISTINCT FROM coalesce(
                 (SELECT c.relowner FROM pg_catalog.pg_class AS c
                  JOIN pg_catalog.pg_namespace AS n ON n.oid {=} c.relnamespace
                  WHERE n.nspname {=} $1 AND c.relname {=} 'atlas_migrations'),
                 (SELECT oid FROM pg_catalog.pg_roles WHERE rolname {=} current_user))
             ORDER BY creator",
            &[(&names.schema, Type::NAME)],
        )
        .await?;
        let rows = rows.iter().map(|row| Ok(row.try_get("creator")?));
        rows.collect()
    }
}
