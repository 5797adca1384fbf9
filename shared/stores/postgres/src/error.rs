//! From SQLSTATEs and broken connections to the engine's error kinds. Decided by code, never by text.

use std::fmt;

use atlas_engine::{Error, ErrorKind};
use deadpool_postgres::PoolError;
use tokio_postgres::error::DbError;

/// Why a call failed, before the engine is told.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection from the pool.
    Pool(PoolError),
    /// No connection of one's own.
    Connect(tokio_postgres::Error),
    /// A connection did not come about in time.
    ConnectTimeout,
    /// A statement failed.
    Statement(tokio_postgres::Error),
    /// A column holds what this program does not know.
    Unknown(&'static str),
    /// A number is larger than the database's.
    TooLarge(std::num::TryFromIntError),
    /// Already told.
    Told(Error),
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Statement(error)
    }
}

impl From<std::num::TryFromIntError> for Failure {
    fn from(error: std::num::TryFromIntError) -> Self {
        Self::TooLarge(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

/// Does the work, and says what a failure means for the engine. `action` completes the sentence "failed to …".
pub(crate) async fn attempt<T>(
    action: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Error> {
    work.await.map_err(|failure| explain(failure, action))
}

fn explain(failure: Failure, action: &'static str) -> Error {
    match failure {
        Failure::Pool(PoolError::Backend(error)) | Failure::Connect(error) => {
            explain_connect(error, action)
        }
        Failure::Pool(PoolError::Timeout(_)) | Failure::ConnectTimeout => {
            Error::new(ErrorKind::StoreUnreachable, action)
                .because("PostgreSQL gave no connection in time")
                .fix(
                    "Check host and port in postgresql.connection_string and the network on the way; under load raise \
                     postgresql.max_connections or postgresql.connection_timeout_seconds.",
                )
        }
        Failure::Pool(error) => Error::new(ErrorKind::Internal, action).because(error),
        Failure::Statement(error) => explain_statement(error, action),
        Failure::Unknown(column) => Error::new(ErrorKind::StoreCorrupt, action)
            .because(format!("the column {column} holds a text that this program does not know"))
            .fix("Something other than Atlas changed its tables: restore them, or export into a new schema."),
        Failure::TooLarge(error) => Error::new(ErrorKind::Internal, action).because(error),
        Failure::Told(error) => error,
    }
}

fn explain_connect(error: tokio_postgres::Error, action: &'static str) -> Error {
    if error.as_db_error().is_some() {
        return explain_statement(error, action);
    }
    let (kind, fix) = if let Some(tls) = cause::<rustls::Error>(&error) {
        match tls {
            rustls::Error::InvalidCertificate(_) => (
                ErrorKind::StoreDenied,
                "The server's certificate is not trusted: set postgresql.ssl_root_cert to its authority, or, if only the \
                 name differs, connect by the name in the certificate.",
            ),
            _ => (
                ErrorKind::StoreUnreachable,
                "The TLS handshake failed: check that the port is PostgreSQL's and that it speaks TLS 1.2 or newer.",
            ),
        }
    } else if error.is_closed() || cause::<std::io::Error>(&error).is_some() {
        (
            ErrorKind::StoreUnreachable,
            "Check that PostgreSQL runs, and host and port in postgresql.connection_string.",
        )
    } else {
        (
            ErrorKind::StoreDenied,
            "The server does not do what was asked for: without TLS there, set postgresql.ssl_mode = \"disable\"; \
             with another way of authentication, give the role a password.",
        )
    };
    Error::new(kind, action).because(error).fix(fix)
}

fn explain_statement(error: tokio_postgres::Error, action: &'static str) -> Error {
    let Some(answer) = error.as_db_error() else {
        let broken = error.is_closed() || cause::<std::io::Error>(&error).is_some();
        return if broken {
            Error::new(ErrorKind::StoreUnreachable, action)
                .because(error)
                .fix("The connection to PostgreSQL broke: check that the server runs, and its log.")
        } else {
            Error::new(ErrorKind::Internal, action).because(error)
        };
    };
    let (kind, fix) = judge(answer.code().code());
    let error = Error::new(kind, action).because(Answer::new(answer));
    match fix {
        Some(fix) => error.fix(fix),
        None => error,
    }
}

/// The whole list in one place: SQLSTATE to kind and fix.
fn judge(code: &str) -> (ErrorKind, Option<&'static str>) {
    let class = code.get(..2).unwrap_or(code);
    match (class, code) {
        (_, "53100") => (
            ErrorKind::StoreFull,
            Some(
                "Make room on PostgreSQL's disk, then run the same command again: it goes on where it stopped.",
            ),
        ),
        (_, "53300") => (
            ErrorKind::StoreUnreachable,
            Some(
                "PostgreSQL has no connection left: lower postgresql.max_connections or raise the server's.",
            ),
        ),
        (_, "25006") => (
            ErrorKind::StoreDenied,
            Some(
                "The server or role is read-only: connect to the primary, with a role that may write.",
            ),
        ),
        (_, "42501") => (
            ErrorKind::StoreDenied,
            Some(
                "Let the owner of the schema run what `atlas grants --role …` prints, or connect as the owner.",
            ),
        ),
        ("28", _) => (
            ErrorKind::StoreDenied,
            Some(
                "Check user and password in postgresql.connection_string, postgresql.ssl_mode and the server's pg_hba.conf.",
            ),
        ),
        (_, "3D000") => (
            ErrorKind::StoreDenied,
            Some("Create the database, or correct its name in postgresql.connection_string."),
        ),
        (_, "3F000" | "42P01" | "42703") => (
            ErrorKind::Usage,
            Some(
                "Run `atlas export` first: it creates the tables or brings them up to date. Check postgresql.schema.",
            ),
        ),
        (_, "57014") => (
            ErrorKind::StoreUnreachable,
            Some(
                "A statement took too long: raise postgresql.statement_timeout_seconds, or see what the server is busy with.",
            ),
        ),
        ("08", _) | (_, "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03") => (
            ErrorKind::StoreUnreachable,
            Some("PostgreSQL is starting, stopping or out of reach: wait until it runs."),
        ),
        ("40" | "53" | "58", _) | (_, "55P03") => (ErrorKind::StoreUnreachable, None),
        (_, "XX001" | "XX002") => (
            ErrorKind::StoreCorrupt,
            Some(
                "PostgreSQL found damaged data: restore from a backup, or export into a new database.",
            ),
        ),
        _ => (ErrorKind::Internal, None),
    }
}

/// The first cause of that type, also inside an [`std::io::Error`], which hides what it wraps from `source`.
fn cause<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => error.source(),
        };
    }
    None
}

/// What the server answered, without what could be a patient's: details never, messages only where they
/// speak of the server and not of values.
#[derive(Debug)]
struct Answer {
    code: String,
    message: Option<String>,
}

impl Answer {
    fn new(answer: &DbError) -> Self {
        let code = answer.code().code().to_owned();
        let about_values = matches!(code.get(..2), Some("21" | "22" | "23" | "P0"));
        Self {
            message: (!about_values).then(|| answer.message().to_owned()),
            code,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(
                f,
                "PostgreSQL answered {message:?} (SQLSTATE {})",
                self.code
            ),
            None => write!(f, "PostgreSQL answered SQLSTATE {}", self.code),
        }
    }
}

impl std::error::Error for Answer {}
