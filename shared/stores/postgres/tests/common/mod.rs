//! An empty database for each test, dropped at its end.

use std::sync::Arc;

use atlas_ehrbase::{Postgres, shared_postgres};
use atlas_store_postgres::{Config, PostgresStore, SslMode};
use tokio_postgres::{Client, NoTls};

/// An empty database in the shared cluster.
pub struct Database {
    pub cluster: Postgres,
    pub name: String,
    pub url: String,
}

impl Database {
    pub async fn new() -> Self {
        let cluster = shared_postgres().await.unwrap();
        let url = cluster.fresh_database().await.unwrap();
        let name = url.rsplit('/').next().unwrap().to_owned();
        Self { cluster, name, url }
    }

    /// A store in this database as its superuser; the cluster has no TLS.
    pub fn store(&self) -> Arc<PostgresStore> {
        Arc::new(PostgresStore::new(&config(&self.url)).unwrap())
    }

    /// A connection beside the store.
    pub async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name);
        let cluster = &self.cluster;
        // Dropping happens inside a runtime, which cannot wait for itself.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                if let Err(error) = runtime.block_on(cluster.execute("postgres", &sql)) {
                    // The cluster ends with this process, and the database with it.
                    eprintln!("the database of a test was not dropped: {error}");
                }
            });
        });
    }
}

/// The defaults, without TLS.
pub fn config(url: &str) -> Config {
    Config {
        ssl_mode: SslMode::Disable,
        max_connections: 8,
        ..Config::new(url.into())
    }
}
