//! A private PostgreSQL cluster in a temporary folder.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use atlas_machine::postgres_programs;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::process::{Account, Guarded, temporary_folder};

/// The superuser of every cluster that is started here.
pub const SUPERUSER: &str = "postgres";
const PASSWORD: &str = "atlas-tests";
const START_LIMIT: Duration = Duration::from_secs(60);
/// What makes a cluster of tests fast, and useless for anything that must survive.
const SETTINGS: &[&str] = &[
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "max_connections=200",
    "max_wal_size=2GB",
];

/// A PostgreSQL cluster of which we are the superuser: one of our own, ended
/// when this is dropped (or this process dies), or one that somebody lent us.
pub struct Postgres {
    host: String,
    port: u16,
    user: String,
    password: String,
    ca: Option<String>,
    own: Option<Own>,
}

struct Own {
    programs: Programs,
    data: PathBuf,
    server: Guarded,
}

impl Postgres {
    /// Starts an empty cluster on a free port of the loopback interface.
    pub async fn start() -> Result<Self> {
        Self::start_fresh(None).await
    }

    /// Starts an empty cluster that accepts nothing but TLS, with a certificate
    /// for `localhost` and `127.0.0.1` of an authority made for it ([`Self::ca`]).
    pub async fn start_tls() -> Result<Self> {
        Self::start_fresh(Some(Certificates::generate()?)).await
    }

    /// Uses a cluster that runs already, by a connection URL of a superuser as
    /// [`Self::connection_string`] makes it.
    pub fn attach(url: &str) -> Result<Self> {
        let wrong = |what: &'static str| {
            Error::new(ErrorKind::Input, "read the connection URL of PostgreSQL").because(what)
        };
        let url = reqwest::Url::parse(url)
            .context(ErrorKind::Input, "read the connection URL of PostgreSQL")?;
        Ok(Self {
            host: url.host_str().ok_or_else(|| wrong("no host"))?.to_owned(),
            port: url.port().ok_or_else(|| wrong("no port"))?,
            user: url.username().to_owned(),
            password: url.password().unwrap_or_default().to_owned(),
            ca: None,
            own: None,
        })
    }

    async fn start_fresh(certificates: Option<Certificates>) -> Result<Self> {
        let programs = Programs::find()?;
        let folder = temporary_folder()?;
        programs.own(folder.path())?;
        programs.initdb(folder.path())?;
        if let Some(certificates) = &certificates {
            certificates.install(&programs, &folder.path().join("data"))?;
        }
        let ca = certificates.map(|certificates| certificates.ca);
        Self::start_in(programs, folder, ca).await
    }

    /// Starts the cluster that lies in `folder/data`.
    pub(crate) async fn start_in(
        programs: Programs,
        folder: TempDir,
        ca: Option<String>,
    ) -> Result<Self> {
        let data = folder.path().join("data");
        let port = free_port()?;
        let mut arguments = vec!["-D".to_owned(), data.display().to_string()];
        arguments.extend(["-p".to_owned(), port.to_string()]);
        let tls = ca.as_ref().map(|_| "ssl=on");
        for setting in SETTINGS.iter().copied().chain(tls) {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let server = Guarded::start(
            folder,
            "QUIT",
            programs.account,
            &programs.path("postgres"),
            &arguments,
        )?;
        let mut postgres = Self {
            host: "127.0.0.1".to_owned(),
            port,
            user: SUPERUSER.to_owned(),
            password: PASSWORD.to_owned(),
            ca,
            own: Some(Own {
                programs,
                data,
                server,
            }),
        };
        postgres.wait_until_ready().await?;
        Ok(postgres)
    }

    /// Waits for the line in `postmaster.pid` by which the server says that it takes connections.
    async fn wait_until_ready(&mut self) -> Result<()> {
        let Some(own) = &mut self.own else {
            return Ok(());
        };
        let state = own.data.join("postmaster.pid");
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // The file does not exist at first; a server that ended is found by `check`.
            let ready = std::fs::read_to_string(&state).is_ok_and(|text| {
                text.lines()
                    .nth(7)
                    .is_some_and(|line| line.trim() == "ready")
            });
            own.server.check("PostgreSQL")?;
            if ready {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(own.server.failure("PostgreSQL was not ready in time"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The port on the loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that signed the server's certificate, as PEM; only of [`Self::start_tls`].
    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    /// `postgres://user:password@host:port/database` of the superuser.
    pub fn connection_string(&self, database: &str) -> String {
        self.connection_string_as(&self.user, &self.password, database)
    }

    /// The same for another role; names and passwords of tests need no escaping.
    pub fn connection_string_as(&self, user: &str, password: &str, database: &str) -> String {
        let Self { host, port, .. } = self;
        format!("postgres://{user}:{password}@{host}:{port}/{database}")
    }

    /// Makes an empty UTF-8 database and answers its connection string.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        self.execute(
            "postgres",
            &format!(
                "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'",
                quoted(name)
            ),
        )
        .await?;
        Ok(self.connection_string(name))
    }

    /// Makes an empty database that no other test has, and answers its connection string.
    pub async fn fresh_database(&self) -> Result<String> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.create_database(&format!("test_{}_{next}", std::process::id()))
            .await
    }

    /// Runs statements as superuser in `database`, without TLS.
    pub async fn execute(&self, database: &str, statements: &str) -> Result<()> {
        let action = || format!("run statements in the database {database:?}");
        let (client, connection) =
            tokio_postgres::connect(&self.connection_string(database), NoTls)
                .await
                .context(ErrorKind::Connection, action())?;
        let run = async move {
            let done = client.batch_execute(statements).await;
            drop(client);
            done
        };
        let (done, connection) = tokio::join!(run, connection);
        done.context(ErrorKind::Connection, action())?;
        connection.context(ErrorKind::Connection, action())
    }

    /// Whether a database of this name exists.
    pub async fn has_database(&self, name: &str) -> Result<bool> {
        let action = "list the databases";
        let (client, connection) =
            tokio_postgres::connect(&self.connection_string("postgres"), NoTls)
                .await
                .context(ErrorKind::Connection, action)?;
        let ask = async move {
            client
                .query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name])
                .await
        };
        let (row, connection) = tokio::join!(ask, connection);
        connection.context(ErrorKind::Connection, action)?;
        Ok(row.context(ErrorKind::Connection, action)?.is_some())
    }

    /// Ends the cluster and answers the folder that holds it, fit to be copied;
    /// `None` for a cluster that was lent, which goes on.
    pub(crate) fn stop_cleanly(self) -> Result<Option<TempDir>> {
        let Some(own) = self.own else {
            return Ok(None);
        };
        let data = own.data.display().to_string();
        let arguments = ["-D", &data, "-m", "fast", "-w", "-t", "120", "stop"];
        own.programs
            .run("pg_ctl", &arguments.map(str::to_owned), "stop PostgreSQL")?;
        own.server.wait()
    }
}

/// The server's programs, and who may run them.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    bin: PathBuf,
    account: Option<Account>,
}

impl Programs {
    /// Those that are installed, and the account that may run them.
    pub(crate) fn find() -> Result<Self> {
        let bin = postgres_programs()?;
        // The server refuses to run as root.
        let account = if id(&["-u"])? == 0 {
            let action = "find the account `postgres`, as PostgreSQL refuses to run as root";
            let missing = |error: Error| {
                Error::new(ErrorKind::Missing, action)
                    .fix("install the server's package, which makes it")
                    .because(error)
            };
            Some(Account {
                uid: id(&["-u", "postgres"]).map_err(missing)?,
                gid: id(&["-g", "postgres"]).map_err(missing)?,
            })
        } else {
            None
        };
        Ok(Self { bin, account })
    }

    /// What `postgres --version` says.
    pub(crate) fn version(&self) -> Result<String> {
        let arguments = ["--version".to_owned()];
        let output = self.run("postgres", &arguments, "ask PostgreSQL for its version")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    /// Gives a file or folder to the account the server runs under.
    pub(crate) fn own(&self, path: &Path) -> Result<()> {
        match self.account {
            None => Ok(()),
            Some(Account { uid, gid }) => chown(path, Some(uid), Some(gid))
                .context(ErrorKind::System, format!("give {} away", path.display())),
        }
    }

    /// Makes an empty cluster in `folder/data`.
    pub(crate) fn initdb(&self, folder: &Path) -> Result<()> {
        let password = folder.join("password");
        std::fs::write(&password, PASSWORD)
            .context(ErrorKind::System, "write the superuser's password")?;
        let arguments = [
            format!("--pgdata={}", folder.join("data").display()),
            format!("--username={SUPERUSER}"),
            format!("--pwfile={}", password.display()),
            "--auth=scram-sha-256".to_owned(),
            "--encoding=UTF8".to_owned(),
            "--locale=C".to_owned(),
            "--no-sync".to_owned(),
            "--no-instructions".to_owned(),
        ];
        self.own(&password)?;
        self.run("initdb", &arguments, "make a PostgreSQL cluster")?;
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[String], action: &'static str) -> Result<Output> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.path(program));
        command.args(arguments).current_dir("/");
        if let Some(Account { uid, gid }) = self.account {
            command.uid(uid).gid(gid);
        }
        let output = command.output().context(ErrorKind::System, action)?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(ErrorKind::Start, action).because(format!("{}: {said}", output.status)))
    }
}

/// What the program `id` answers.
fn id(arguments: &[&str]) -> Result<u32> {
    let action = "ask `id` for an account";
    let output = Command::new("id")
        .args(arguments)
        .output()
        .context(ErrorKind::System, action)?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .context(ErrorKind::System, action)
}

/// A port that was free a moment ago; PostgreSQL cannot choose one itself.
fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .context(ErrorKind::System, "find a free port")
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// An authority and a certificate it signed, all PEM.
struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

impl Certificates {
    fn generate() -> Result<Self> {
        Self::try_generate().context(ErrorKind::System, "make certificates")
    }

    fn try_generate() -> Result<Self, rcgen::Error> {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.distinguished_name
            .push(DnType::CommonName, "Atlas tests");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key)?;
        let key = KeyPair::generate()?;
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let certificate =
            CertificateParams::new(names)?.signed_by(&key, &Issuer::new(ca, ca_key))?;
        Ok(Self {
            ca: ca_certificate.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Puts the files where the server looks, and refuses connections without TLS.
    fn install(&self, programs: &Programs, data: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let files = [
            ("server.crt", self.certificate.as_str()),
            ("server.key", self.key.as_str()),
            (
                "pg_hba.conf",
                "hostssl all all 127.0.0.1/32 scram-sha-256\n",
            ),
        ];
        for (name, text) in files {
            let path = data.join(name);
            let action = format!("write {name}");
            std::fs::write(&path, text).context(ErrorKind::System, action.clone())?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                .context(ErrorKind::System, action)?;
            programs.own(&path)?;
        }
        Ok(())
    }
}
