//! Where the server is and how to talk to it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::address::{self, Address, ConnectionError, Reach};

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// `postgres://user:password@host:5432/database`, or libpq's `key=value` form, with libpq's parameters.
    pub connection_string: SecretString,
    /// Connections at most; a worker that commits needs one.
    pub max_connections: usize,
    /// For opening a connection, from name lookup to authentication, and for waiting for a free one. A `connect_timeout` in
    /// the connection string goes before it.
    pub connection_timeout: Duration,
    /// For each statement, enforced by the server.
    pub statement_timeout: Duration,
    /// Whether TLS is used, and what is checked. `None` = what the connection string says; without a word there,
    /// [`SslMode::VerifyFull`] over TCP.
    pub ssl_mode: Option<SslMode>,
    /// PEM file of the authorities to trust instead of the system's. `None` = what the connection string says.
    pub ssl_root_cert: Option<PathBuf>,
    /// Schema of all tables; created if it is missing. `None` = the first schema of the search path that is there, as
    /// `options`, the role or the database set it.
    pub schema: Option<String>,
}

/// A host of the connection string, as far as it decides what has to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name, address or folder of the socket, as it was written.
    pub host: String,
    /// Whether nothing leaves this machine on the way there: a Unix-domain socket or a loopback address.
    pub is_local: bool,
    /// What holds there. Nothing is encrypted over a socket, whatever was asked for.
    pub ssl_mode: SslMode,
}

impl Config {
    /// The defaults of the configuration reference.
    #[must_use]
    pub fn new(connection_string: SecretString) -> Self {
        Self {
            connection_string,
            max_connections: 20,
            connection_timeout: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(60),
            ssl_mode: None,
            ssl_root_cert: None,
            schema: None,
        }
    }

    /// The hosts in the order in which they are tried, each with the mode of TLS that holds there.
    ///
    /// # Errors
    /// If the connection string cannot be read, or contradicts `ssl_mode` or `ssl_root_cert`.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, ConnectionError> {
        let address = Address::of(self)?;
        let endpoints = address.hosts.iter().map(|host| Endpoint {
            host: host.to_string(),
            is_local: host.reach() != Reach::Network,
            ssl_mode: match host.reach() {
                Reach::Socket => SslMode::Disable,
                Reach::Loopback | Reach::Network => address.ssl_mode,
            },
        });
        Ok(endpoints.collect())
    }

    /// All in the connection string that lets somebody in, in any of its forms: passwords and keys, those of parameters that are
    /// not supported among them. A `\0` in the string stands for a part that is not known. Nothing if it cannot be read.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        address::secrets(self.connection_string.expose_secret())
    }
}

/// Whether TLS is used and what is checked, in libpq's words and with libpq's meaning.
///
/// With a file of authorities to trust, the chain is checked in every mode that uses TLS, as libpq does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server refuses without.
    Allow,
    /// If the server can.
    Prefer,
    /// Always; without a file of authorities nothing is checked.
    Require,
    /// Always; a trusted authority must have signed the server's certificate.
    VerifyCa,
    /// Always; the certificate must also be for the host's name.
    VerifyFull,
}

impl SslMode {
    /// All of them, from least to most strict.
    pub const ALL: [Self; 6] = [
        Self::Disable,
        Self::Allow,
        Self::Prefer,
        Self::Require,
        Self::VerifyCa,
        Self::VerifyFull,
    ];

    /// The name in configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// No mode has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be disable, allow, prefer, require, verify-ca or verify-full")]
pub struct UnknownSslMode;

impl FromStr for SslMode {
    type Err = UnknownSslMode;

    fn from_str(name: &str) -> Result<Self, UnknownSslMode> {
        let mut modes = Self::ALL.into_iter();
        modes.find(|mode| mode.name() == name).ok_or(UnknownSslMode)
    }
}
