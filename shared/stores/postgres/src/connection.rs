//! Connections and their pool. A connection has no state of its own: through a pooler each
//! transaction may get another one.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode as Negotiation;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::address::{Address, Host, Reach};
use crate::config::{Config, SslMode};
use crate::tls;

/// Opens connections that are ready for use.
#[derive(Clone)]
pub(crate) struct Connector {
    address: Address,
    tls: Option<MakeRustlsConnect>,
}

impl Connector {
    /// # Errors
    /// `Usage` if the connection string or the certificates cannot be read.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let address = Address::of(config)?;
        let is_remote = |host: &Host| host.reach() != Reach::Socket;
        let tls = if address.hosts.iter().any(is_remote) {
            tls::connector(&address)?
        } else {
            None
        };
        Ok(Self { address, tls })
    }

    /// A pool of connections; none is opened yet. `wait` is for a free one.
    pub(crate) fn pool(&self, size: usize, wait: Duration) -> Result<Pool> {
        let recycling = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let server = self.address.server.clone();
        let manager = Manager::from_connect(server, self.clone(), recycling);
        Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(wait))
            .create_timeout(Some(self.address.timeout))
            .build()
            .map_err(|cause| Error::new(ErrorKind::Internal, "set up the pool").because(cause))
    }

    /// The first of the hosts that takes us. One that refuses who we are is the end, as in libpq.
    async fn open(&self) -> Opened {
        use tokio_postgres::config::LoadBalanceHosts;
        let mut hosts: Vec<&Host> = self.address.hosts.iter().collect();
        if self.address.server.get_load_balance_hosts() == LoadBalanceHosts::Random {
            fastrand::shuffle(&mut hosts);
        }
        let mut last = self.open_at(hosts[0]).await;
        for host in hosts.into_iter().skip(1) {
            match &last {
                Err(error) if may_try_next(error) => last = self.open_at(host).await,
                _ => break,
            }
        }
        last
    }

    async fn open_at(&self, host: &Host) -> Opened {
        if host.reach() == Reach::Socket {
            return self.try_open(host, Negotiation::Disable).await;
        }
        match self.address.ssl_mode {
            SslMode::Disable => self.try_open(host, Negotiation::Disable).await,
            SslMode::Allow => match self.try_open(host, Negotiation::Disable).await {
                Err(error) if is_unwelcome(&error) => {
                    self.try_open(host, Negotiation::Require).await
                }
                opened => opened,
            },
            SslMode::Prefer => match self.try_open(host, Negotiation::Prefer).await {
                Err(error) if is_unwelcome(&error) || is_of_tls(&error) => {
                    self.try_open(host, Negotiation::Disable).await
                }
                opened => opened,
            },
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                self.try_open(host, Negotiation::Require).await
            }
        }
    }

    async fn try_open(&self, host: &Host, negotiation: Negotiation) -> Opened {
        let mut server = self.address.server.clone();
        server.ssl_mode(negotiation).port(host.port);
        match host.address {
            Some(address) => server.host(host.to_string()).hostaddr(address),
            None => server.host(&host.name),
        };
        match &self.tls {
            Some(tls) if negotiation != Negotiation::Disable => {
                let (client, connection) = server.connect(tls.clone()).await?;
                Ok((client, tokio::spawn(drive(connection))))
            }
            _ => {
                let (client, connection) = server.connect(NoTls).await?;
                Ok((client, tokio::spawn(drive(connection))))
            }
        }
    }
}

type Opened = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

/// Whether another server may answer better: this one is out of reach, or is starting or stopping.
fn may_try_next(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_none_or(|code| *code == SqlState::CANNOT_CONNECT_NOW)
}

/// What pg_hba.conf says to a connection that it wants the other way, encrypted or not.
fn is_unwelcome(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

fn is_of_tls(error: &tokio_postgres::Error) -> bool {
    crate::error::cause::<rustls::Error>(error).is_some()
}

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
