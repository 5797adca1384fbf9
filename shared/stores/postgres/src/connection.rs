//! Connections: the pool, and single ones for holds.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode as Negotiation;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{Config, SslMode};
use crate::error::Failure;
use crate::tls;

/// A server that is gone without a word is noticed after about a minute of silence.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);

/// Opens connections that are ready for use.
#[derive(Clone)]
pub(crate) struct Connector {
    server: tokio_postgres::Config,
    mode: SslMode,
    tls: Option<MakeRustlsConnect>,
    setup: String,
    timeout: Duration,
}

impl Connector {
    /// # Errors
    /// `Usage` if the connection string or the certificates cannot be read.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let wrong = |what: &'static str| {
            // The parser's own error could quote from the string, which holds a password.
            Error::new(ErrorKind::Usage, format!("read postgresql.connection_string: {what}")).fix(
                "Write postgres://user:password@host:5432/database (special characters as %41) or \
                 \"host=… user=… password=… dbname=…\"; TLS is set by postgresql.ssl_mode and ssl_root_cert.",
            )
        };
        let mut server: tokio_postgres::Config = config
            .connection_string
            .expose_secret()
            .parse()
            .map_err(|_| {
            wrong("it is neither a URL nor key=value pairs that Atlas understands")
        })?;
        if server.get_hosts().is_empty() && server.get_hostaddrs().is_empty() {
            return Err(wrong("it names no host"));
        }
        server
            .application_name("atlas")
            .connect_timeout(config.connection_timeout)
            .keepalives_idle(KEEPALIVE_AFTER)
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3)
            .tcp_user_timeout(config.statement_timeout + KEEPALIVE_AFTER);
        let schema = quoted(&config.schema);
        let statement_timeout = config.statement_timeout.as_millis();
        Ok(Self {
            server,
            mode: config.ssl_mode,
            tls: tls::connector(config.ssl_mode, config.ssl_root_cert.as_deref())?,
            // A process that is frozen in the middle of a transaction must not keep others out for longer than a statement.
            // LZ4, where the server has it: a page is written in about half the time that the default compression takes.
            setup: format!(
                "SET search_path TO {schema};
                 SET statement_timeout TO {statement_timeout};
                 SET idle_in_transaction_session_timeout TO {statement_timeout};
                 SELECT set_config(name, 'lz4', false) FROM pg_settings
                 WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)"
            ),
            timeout: config.connection_timeout,
        })
    }

    /// A pool of connections; none is opened yet.
    pub(crate) fn pool(&self, size: usize) -> Result<Pool> {
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let manager = Manager::from_connect(self.server.clone(), self.clone(), recycling);
        Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(self.timeout))
            .create_timeout(Some(self.timeout))
            .build()
            .map_err(|cause| Error::new(ErrorKind::Internal, "set up the pool").because(cause))
    }

    /// A connection beside the pool. It ends with the client.
    pub(crate) async fn single(&self) -> Result<Client, Failure> {
        let (client, _) = tokio::time::timeout(self.timeout, self.open())
            .await
            .map_err(|_| Failure::ConnectTimeout)?
            .map_err(Failure::Connect)?;
        Ok(client)
    }

    async fn open(&self) -> Opened {
        let (client, task) = match self.mode {
            SslMode::Disable => self.try_open(Negotiation::Disable).await?,
            SslMode::Allow => match self.try_open(Negotiation::Disable).await {
                // What pg_hba.conf says to a connection that it wants encrypted.
                Err(error)
                    if error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) =>
                {
                    self.try_open(Negotiation::Require).await?
                }
                opened => opened?,
            },
            SslMode::Prefer => self.try_open(Negotiation::Prefer).await?,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                self.try_open(Negotiation::Require).await?
            }
        };
        client.batch_execute(&self.setup).await?;
        Ok((client, task))
    }

    async fn try_open(&self, negotiation: Negotiation) -> Opened {
        let mut server = self.server.clone();
        server.ssl_mode(negotiation);
        match &self.tls {
            Some(tls) => {
                let (client, connection) = server.connect(tls.clone()).await?;
                Ok((client, tokio::spawn(drive(connection))))
            }
            None => {
                let (client, connection) = server.connect(NoTls).await?;
                Ok((client, tokio::spawn(drive(connection))))
            }
        }
    }
}

type Opened = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

/// Moves bytes until the client is dropped or the connection breaks. Whoever waits for an answer is told then.
async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if connection.await.is_err() {
        tracing::debug!("a connection to PostgreSQL broke");
    }
}

impl Connect for Connector {
    fn connect(
        &self,
        _server: &tokio_postgres::Config,
    ) -> Pin<Box<dyn Future<Output = Opened> + Send + '_>> {
        Box::pin(self.open())
    }
}

/// An identifier as SQL writes it.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
