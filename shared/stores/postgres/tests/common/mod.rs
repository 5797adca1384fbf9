//! An empty database for each test, dropped at its end, and a pooler before it.
#![allow(
    dead_code,
    clippy::panic,
    clippy::expect_used,
    reason = "each test program uses some of it, and a pooler that does not start ends its test"
)]

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
        ssl_mode: Some(SslMode::Disable),
        max_connections: 8,
        ..Config::new(url.into())
    }
}

/// PgBouncer in transaction mode in front of a cluster. It ends with the value.
pub struct Pooler {
    process: std::process::Child,
    _folder: tempfile::TempDir,
    port: u16,
}

impl Pooler {
    /// `settings` are lines of its `[pgbouncer]` section. `ATLAS_TEST_PGBOUNCER` names another program than `pgbouncer`.
    pub async fn start(cluster: &Postgres, settings: &str) -> Self {
        use std::process::{Command, Stdio};
        let folder = tempfile::tempdir().unwrap();
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let server: tokio_postgres::Config = cluster.connection_string("postgres").parse().unwrap();
        let (user, password) = (
            server.get_user().unwrap(),
            String::from_utf8(server.get_password().unwrap().to_vec()).unwrap(),
        );
        let ini = folder.path().join("pgbouncer.ini");
        let users = folder.path().join("users.txt");
        std::fs::write(&users, format!("\"{user}\" \"{password}\"\n")).unwrap();
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = plain\nauth_file = {}\npool_mode = transaction\nunix_socket_dir =\n{settings}\n",
            cluster.port(),
            users.display()
        );
        std::fs::write(&ini, text).unwrap();
        let program = match std::env::var("ATLAS_TEST_PGBOUNCER") {
            // A copy, because the other user may not look into the folders above the original.
            Ok(path) => {
                let copy = folder.path().join("pgbouncer");
                std::fs::copy(path, &copy).unwrap();
                copy.display().to_string()
            }
            Err(_) => "pgbouncer".to_owned(),
        };
        let mut command = Command::new(&program);
        // It refuses to run as root.
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
            use std::os::unix::process::CommandExt;
            const NOBODY: u32 = 65_534;
            if std::fs::metadata(folder.path()).unwrap().uid() == 0 {
                for path in [folder.path(), &ini, &users] {
                    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
                }
                command.uid(NOBODY).gid(NOBODY);
            }
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(folder.path(), private).unwrap();
        }
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = command
            .arg(&ini)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("this test needs `{program}` (Debian: pgbouncer): {error}")
            });
        let mut pooler = Self {
            process,
            _folder: folder,
            port,
        };
        pooler.wait_until_ready().await;
        pooler
    }

    async fn wait_until_ready(&mut self) {
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port))
                .await
                .is_err()
            {
                if let Some(status) = self.process.try_wait().unwrap() {
                    let log = std::fs::read_to_string(self._folder.path().join("log"));
                    panic!("pgbouncer ended with {status}: {}", log.unwrap_or_default());
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), listens)
            .await
            .expect("pgbouncer listens");
    }

    /// A database of the cluster by way of the pooler.
    pub fn url(&self, direct: &str) -> String {
        let (head, tail) = direct.rsplit_once(':').unwrap();
        let (_, database) = tail.split_once('/').unwrap();
        format!("{head}:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("the pooler of a test was not ended: {error}");
        }
    }
}
