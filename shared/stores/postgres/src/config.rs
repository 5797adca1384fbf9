//! Where the server is and how to talk to it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// `postgres://user:password@host:5432/database`, or libpq's `key=value` form. Whether TLS is used is decided by
    /// `ssl_mode`, whatever the string says.
    pub connection_string: SecretString,
    /// Connections at most; a worker that commits needs one, each hold one more.
    pub max_connections: usize,
    /// For opening a connection, from name lookup to authentication, and for waiting for a free one.
    pub connection_timeout: Duration,
    /// For each statement, enforced by the server.
    pub statement_timeout: Duration,
    /// Whether TLS is used, and what is checked.
    pub ssl_mode: SslMode,
    /// PEM file of the authorities to trust instead of the system's.
    pub ssl_root_cert: Option<PathBuf>,
    /// Schema of all tables; created if it is missing.
    pub schema: String,
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
            ssl_mode: SslMode::Require,
            ssl_root_cert: None,
            schema: "public".to_owned(),
        }
    }
}

/// Whether TLS is used, in libpq's words. Unlike libpq, `require` checks the chain as `verify-ca` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server refuses without. Nothing is checked.
    Allow,
    /// If the server can. Nothing is checked.
    Prefer,
    /// Always; a trusted authority must have signed the server's certificate.
    Require,
    /// The same as [`Self::Require`].
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
