//! From SQLSTATEs and broken connections to the engine's error kinds. Decided by code, never by text.
//!
//! Nothing that the server wrote is repeated: a message, detail, hint or name of a constraint may quote a value. A SQLSTATE says
//! enough, and of those only the ones that have their form.

use std::fmt;

use atlas_engine::{Error, ErrorKind};
use deadpool_postgres::PoolError;

/// Why a call failed, before the engine is told.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection from the pool.
    Pool(PoolError),
    /// A statement failed.
    Statement(tokio_postgres::Error),
    /// A row that was written is not there, and there was no error.
    LeftOut,
    /// A statement after the end of its transaction.
    Ended,
    /// A column holds what this program does not know.
    Unknown(&'static str),
    /// What is kept as JSON cannot be written.
    Unwritable(serde_json::Error),
    /// A number is larger than the database's.
    TooLarge(std::num::TryFromIntError),
    /// Already reported in full.
    Reported(Error),
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

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Unwritable(error)
    }
}

impl From<std::num::TryFromIntError> for Failure {
    fn from(error: std::num::TryFromIntError) -> Self {
        Self::TooLarge(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Reported(error)
    }
}

impl Failure {
    /// What the server answered to a statement, if it did.
    pub(crate) fn state(&self) -> Option<State> {
        match self {
            Self::Statement(error) => error.code().map(|code| State(code.code().to_owned())),
            _ => None,
        }
    }

    /// Whether the server may lack time, room or a free lock, so that all else that is written may meet the same.
    pub(crate) fn may_be_of_the_server(&self) -> bool {
        self.state()
            .as_ref()
            .is_some_and(State::may_be_of_the_server)
    }

    /// Why a row was refused, if a row may be to blame.
    pub(crate) fn of_a_row(&self) -> Option<String> {
        if let Self::LeftOut = self {
            return Some("PostgreSQL left this row out: a trigger or rule".to_owned());
        }
        let state = self.state().filter(State::may_be_of_a_row)?;
        Some(format!("PostgreSQL refused this row: {state}"))
    }
}

/// A SQLSTATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State(String);

impl State {
    pub(crate) fn code(&self) -> &str {
        &self.0
    }

    fn class(&self) -> &str {
        self.0.get(..2).unwrap_or_default()
    }

    /// Whether a row may be to blame. A trigger can raise any SQLSTATE for one row; only damaged data is never a row's.
    fn may_be_of_a_row(&self) -> bool {
        !matches!(self.0.as_str(), "XX001" | "XX002")
    }

    fn may_be_of_the_server(&self) -> bool {
        matches!(self.class(), "08" | "40" | "53" | "57" | "58") || self.0 == "55P03"
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A server of somebody else's can send anything in its place.
        let has_its_form = self.0.len() == 5
            && self
                .0
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        if !has_its_form {
            return f.write_str("an error without a SQLSTATE");
        }
        write!(f, "SQLSTATE {}", self.0)?;
        match condition(&self.0) {
            Some(name) => write!(f, ", {name}"),
            None => Ok(()),
        }
    }
}

/// PostgreSQL's name for a condition, of those that are met here.
fn condition(code: &str) -> Option<&'static str> {
    Some(match code {
        "08P01" => "protocol_violation",
        "0A000" => "feature_not_supported",
        "21000" => "cardinality_violation",
        "22001" => "string_data_right_truncation",
        "22003" => "numeric_value_out_of_range",
        "22008" => "datetime_field_overflow",
        "22021" => "character_not_in_repertoire",
        "22023" => "invalid_parameter_value",
        "22030" => "duplicate_json_object_key_value",
        "22032" => "invalid_json_text",
        "22P02" => "invalid_text_representation",
        "22P03" => "invalid_binary_representation",
        "22P05" => "untranslatable_character",
        "23000" => "integrity_constraint_violation",
        "23001" => "restrict_violation",
        "23502" => "not_null_violation",
        "23503" => "foreign_key_violation",
        "23505" => "unique_violation",
        "23514" => "check_violation",
        "23P01" => "exclusion_violation",
        "25006" => "read_only_sql_transaction",
        "25P02" => "in_failed_sql_transaction",
        "25P03" => "idle_in_transaction_session_timeout",
        "28000" => "invalid_authorization_specification",
        "28P01" => "invalid_password",
        "3D000" => "invalid_catalog_name",
        "3F000" => "invalid_schema_name",
        "40001" => "serialization_failure",
        "40P01" => "deadlock_detected",
        "42501" => "insufficient_privilege",
        "42601" => "syntax_error",
        "42703" => "undefined_column",
        "42804" => "datatype_mismatch",
        "42809" => "wrong_object_type",
        "42883" => "undefined_function",
        "42P01" => "undefined_table",
        "42P05" => "duplicate_prepared_statement",
        "42P06" => "duplicate_schema",
        "42P07" => "duplicate_table",
        "42P10" => "invalid_column_reference",
        "42710" => "duplicate_object",
        "428C9" => "generated_always",
        "44000" => "with_check_option_violation",
        "53100" => "disk_full",
        "53200" => "out_of_memory",
        "53300" => "too_many_connections",
        "54000" => "program_limit_exceeded",
        "54001" => "statement_too_complex",
        "55P03" => "lock_not_available",
        "57014" => "query_canceled",
        "57P01" => "admin_shutdown",
        "57P02" => "crash_shutdown",
        "57P03" => "cannot_connect_now",
        "57P05" => "idle_session_timeout",
        "58030" => "io_error",
        "P0001" => "raise_exception",
        "P0002" => "no_data_found",
        "P0004" => "assert_failure",
        "XX000" => "internal_error",
        "XX001" => "data_corrupted",
        "XX002" => "index_corrupted",
        _ => return None,
    })
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
        Failure::Pool(PoolError::Backend(error)) => explain_connect(error, action),
        Failure::Pool(PoolError::Timeout(_)) => {
            Error::new(ErrorKind::StoreUnreachable, action)
                .because("PostgreSQL gave no connection in time")
                .fix(
                    "Check host and port in postgresql.connection_string and the network on the way; under load raise \
                     postgresql.max_connections or postgresql.connection_timeout_seconds.",
                )
        }
        Failure::Pool(error) => Error::new(ErrorKind::Internal, action).because(error),
        Failure::Statement(error) => explain_statement(error, action),
        Failure::LeftOut => Error::new(ErrorKind::StoreDenied, action)
            .because("rows that were written are not there")
            .fix("Look for a trigger or rule on Atlas's tables that leaves rows out, and remove it."),
        Failure::Ended => Error::new(ErrorKind::Internal, action)
            .because("a statement came after the end of its transaction"),
        Failure::Unknown(column) => Error::new(ErrorKind::StoreCorrupt, action)
            .because(format!("the column {column} holds a text that this program does not know"))
            .fix(CHANGED_BY_OTHERS),
        Failure::Unwritable(error) => Error::new(ErrorKind::Internal, action).because(error),
        Failure::TooLarge(error) => Error::new(ErrorKind::Internal, action).because(error),
        Failure::Reported(error) => error,
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
    Error::new(kind, action)
        .because(in_own_words(&error))
        .fix(fix)
}

/// What failed, and why as far as this machine or TLS says so. Everything else below it can repeat the server: a refusal of SCRAM
/// holds whatever the server wrote, a message that cannot be read a piece of it, a value that cannot be read a piece of that.
fn in_own_words(error: &tokio_postgres::Error) -> String {
    let why = if let Some(tls) = cause::<rustls::Error>(error) {
        Some(tls.to_string())
    } else {
        cause::<std::io::Error>(error)
            .filter(|io| io.raw_os_error().is_some())
            .map(ToString::to_string)
    };
    match why {
        Some(why) => format!("{error}: {why}"),
        None => error.to_string(),
    }
}

const CHANGED_BY_OTHERS: &str = "Something other than Atlas changed its tables: restore them, or set postgresql.schema to a new schema and export into that.";

fn explain_statement(error: tokio_postgres::Error, action: &'static str) -> Error {
    let Some(code) = error.code() else {
        let broken = error.is_closed() || cause::<std::io::Error>(&error).is_some();
        return if broken {
            Error::new(ErrorKind::StoreUnreachable, action)
                .because(in_own_words(&error))
                .fix("The connection to PostgreSQL broke: check that the server runs, and its log.")
        } else {
            // A column is missing, or is of another type: these tables are not as Atlas made them.
            Error::new(ErrorKind::StoreCorrupt, action)
                .because(in_own_words(&error))
                .fix(CHANGED_BY_OTHERS)
        };
    };
    let state = State(code.code().to_owned());
    let (kind, fix) = judge(&state);
    Error::new(kind, action)
        .because(format!("PostgreSQL answered {state}"))
        .fix(fix)
}

/// The whole list in one place: SQLSTATE to kind and fix. None of them is a defect: a trigger, a constraint or a rule of
/// somebody else can raise each one.
fn judge(state: &State) -> (ErrorKind, &'static str) {
    match (state.class(), state.code()) {
        (_, "53100") => (
            ErrorKind::StoreFull,
            "Make room on PostgreSQL's disk, then run the same command again: it goes on where it stopped.",
        ),
        (_, "53300") => (
            ErrorKind::StoreUnreachable,
            "PostgreSQL has no connection left: lower postgresql.max_connections or raise the server's.",
        ),
        (_, "25006") => (
            ErrorKind::StoreDenied,
            "The server or role is read-only: connect to the primary, with a role that may write.",
        ),
        (_, "0A000") => (
            ErrorKind::StoreDenied,
            "The server does not do this: a standby takes no writes. Connect to the primary.",
        ),
        (_, "42501") => (
            ErrorKind::StoreDenied,
            "Let the owner of the schema run what `atlas grants --role …` prints, or connect as the owner. A policy of row \
             security on Atlas's tables must let this role pass.",
        ),
        ("28", _) => (
            ErrorKind::StoreDenied,
            "Check user and password in postgresql.connection_string, postgresql.ssl_mode and the server's pg_hba.conf.",
        ),
        (_, "3D000") => (
            ErrorKind::StoreDenied,
            "Create the database, or correct its name in postgresql.connection_string.",
        ),
        (_, "3F000" | "42P01") => (
            ErrorKind::Usage,
            "Run `atlas export` or `atlas prepare` first: they make the tables or bring them up to date. Check postgresql.schema.",
        ),
        (_, "42P06" | "42P07" | "42710" | "42723") => (
            ErrorKind::Usage,
            "The schema holds something of this name that is not Atlas's: set postgresql.schema to a schema of its own.",
        ),
        (_, "42703" | "42804" | "42809" | "42P10" | "428C9" | "42846") => (
            ErrorKind::StoreCorrupt,
            "Something other than Atlas changed its tables or made some of their names: restore them, or set \
             postgresql.schema to a new schema and export into that.",
        ),
        (_, "57014") => (
            ErrorKind::StoreUnreachable,
            "A statement took too long: raise postgresql.statement_timeout_seconds, or see what the server is busy with.",
        ),
        (_, "08P01") => (
            ErrorKind::StoreUnreachable,
            "The server, or a connection pooler before it, ended the connection: see its log. A pooler may refuse \
             `options` in postgresql.connection_string: set postgresql.schema instead. It must pool sessions or \
             transactions, not statements.",
        ),
        ("08", _) | (_, "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03") => (
            ErrorKind::StoreUnreachable,
            "PostgreSQL is starting, stopping or out of reach: wait until it runs.",
        ),
        ("40", _) | (_, "55P03") => (
            ErrorKind::StoreUnreachable,
            "Another transaction was in the way: run the same command again, or see who holds locks on Atlas's tables.",
        ),
        ("53" | "57" | "58", _) => (
            ErrorKind::StoreUnreachable,
            "PostgreSQL lacks something it needs: see its log, then run the same command again.",
        ),
        (_, "XX001" | "XX002") => (
            ErrorKind::StoreCorrupt,
            "PostgreSQL found damaged data: restore from a backup, or export into a new database.",
        ),
        _ => (
            ErrorKind::StoreDenied,
            "PostgreSQL refused this: its log says what. Look for a trigger, constraint, rule or setting that is not \
             Atlas's; without any, report it with the SQLSTATE.",
        ),
    }
}

/// The first cause of that type, also inside an [`std::io::Error`], which hides what it wraps from `source`.
pub(crate) fn cause<'a, E: std::error::Error + 'static>(
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
