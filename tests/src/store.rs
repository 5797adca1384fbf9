//! What lies in a store, read by plain SQL.

use std::collections::BTreeMap;
use std::path::PathBuf;

use atlas_ehrbase::{EXPORTER, EXPORTER_PASSWORD};
use rusqlite::{Connection, OpenFlags};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Which store a scenario uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One file.
    Sqlite,
    /// A database of its own on the shared server.
    Postgres,
}

/// A store that Atlas writes to.
#[derive(Debug, Clone)]
pub enum Store {
    /// Where the file is, or will be.
    Sqlite(PathBuf),
    /// The connection URL of a superuser, by which tests look into the store.
    Postgres(String),
}

/// A row of `compositions`.
#[derive(Debug, Clone)]
pub struct Row {
    /// `object id::system id::version`.
    pub uid: String,
    /// Of the version.
    pub version: i64,
    /// The EHR it belongs to.
    pub ehr_id: String,
    /// Its template.
    pub template_id: String,
    /// JSON, as the store gives it back.
    pub content: String,
    /// SHA-256, hexadecimal.
    pub checksum: String,
    /// The run that wrote it.
    pub run_id: String,
}

impl Store {
    /// Which one it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Sqlite(_) => Kind::Sqlite,
            Self::Postgres(_) => Kind::Postgres,
        }
    }

    /// How Atlas connects to PostgreSQL: as a role that may export and no more.
    pub fn exporter(&self) -> String {
        let Self::Postgres(owner) = self else {
            panic!("a file has no roles")
        };
        let (_, place) = owner.split_once('@').unwrap();
        format!("postgres://{EXPORTER}:{EXPORTER_PASSWORD}@{place}")
    }

    /// All rows of `compositions` that are no tombstones, by object id.
    pub async fn rows(&self) -> BTreeMap<String, Row> {
        self.rows_where("deleted_at IS NULL").await
    }

    /// The rows of `compositions` for which an SQL condition holds.
    pub async fn rows_where(&self, condition: &str) -> BTreeMap<String, Row> {
        const COLUMNS: &str =
            "id, composition_uid, version, ehr_id, template_id, content, checksum, run_id";
        let rows = self
            .query(&format!(
                "SELECT {COLUMNS} FROM compositions WHERE {condition}"
            ))
            .await;
        let count = rows.len();
        let rows: BTreeMap<String, Row> = rows
            .into_iter()
            .map(|row| {
                let [
                    id,
                    uid,
                    version,
                    ehr_id,
                    template_id,
                    content,
                    checksum,
                    run_id,
                ] = row.try_into().unwrap();
                let version = version.parse().unwrap();
                (
                    id,
                    Row {
                        uid,
                        version,
                        ehr_id,
                        template_id,
                        content,
                        checksum,
                        run_id,
                    },
                )
            })
            .collect();
        assert_eq!(rows.len(), count, "an object is there twice");
        rows
    }

    /// How many rows `compositions` has; 0 before the first run.
    pub async fn count(&self) -> u64 {
        self.number("SELECT count(*) FROM compositions").await
    }

    /// Version uids in quarantine, in their order.
    pub async fn quarantined(&self) -> Vec<String> {
        let rows = self
            .query("SELECT composition_uid FROM atlas_quarantine ORDER BY 1")
            .await;
        rows.into_iter().flatten().collect()
    }

    /// The only number that a query answers.
    pub async fn number(&self, sql: &str) -> u64 {
        self.query(sql).await[0][0].parse().unwrap()
    }

    /// What a query answers, all as text; nulls are empty.
    pub async fn query(&self, sql: &str) -> Vec<Vec<String>> {
        match self {
            Self::Sqlite(path) => {
                let connection =
                    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
                let mut statement = connection.prepare(sql).unwrap();
                let columns = statement.column_count();
                let rows = statement.query_map([], |row| {
                    let text = |column| -> rusqlite::Result<String> {
                        use rusqlite::types::ValueRef;
                        Ok(match row.get_ref(column)? {
                            ValueRef::Null => String::new(),
                            ValueRef::Integer(number) => number.to_string(),
                            ValueRef::Real(number) => number.to_string(),
                            ValueRef::Text(text) | ValueRef::Blob(text) => {
                                String::from_utf8(text.to_vec()).unwrap()
                            }
                        })
                    };
                    (0..columns).map(text).collect()
                });
                rows.unwrap().map(Result::unwrap).collect()
            }
            Self::Postgres(url) => {
                let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
                let connection = tokio::spawn(connection);
                let messages = client.simple_query(sql).await.unwrap();
                drop(client);
                connection.await.unwrap().unwrap();
                let row = |message| match message {
                    SimpleQueryMessage::Row(row) => Some(
                        (0..row.len())
                            .map(|column| row.get(column).unwrap_or_default().to_owned())
                            .collect(),
                    ),
                    _ => None,
                };
                messages.into_iter().filter_map(row).collect()
            }
        }
    }

    /// Runs statements that answer nothing.
    pub async fn execute(&self, sql: &str) {
        match self {
            Self::Sqlite(path) => Connection::open(path).unwrap().execute_batch(sql).unwrap(),
            Self::Postgres(_) => drop(self.query(sql).await),
        }
    }
}
