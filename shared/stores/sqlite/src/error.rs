//! From SQLite's result codes to the engine's error kinds. Decided by code, never by text.

use std::path::Path;

use atlas_engine::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// What a failed call means for the engine. `action` completes the sentence "failed to …".
pub(crate) fn explain(error: rusqlite::Error, action: &'static str, path: &Path) -> Error {
    let (kind, fix) = judge(&error);
    let error = Error::new(kind, format!("{action} ({})", path.display()))
        .because(without_words_of_others(error));
    match fix {
        Some(fix) => error.fix(fix),
        None => error,
    }
}

/// Whether a row may have met this error by what it is: if so, the row is tried alone. Otherwise it is about the file, the disk or
/// another process.
pub(crate) fn may_be_of_a_row(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    match error {
        E::SqliteFailure(failure, _) => is_of_what_is_written(failure.code),
        E::StatementChangedRows(_)
        | E::ToSqlConversionFailure(_)
        | E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::Utf8Error(..) => true,
        _ => false,
    }
}

/// Why a row is refused: a class of error; no ids, no content.
pub(crate) fn class(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => format!("SQLite: {failure}"),
        rusqlite::Error::StatementChangedRows(_) => {
            "SQLite left the row out without an error, as a trigger can ask it to".to_owned()
        }
        _ => "what the copy holds of it cannot be read".to_owned(),
    }
}

fn is_of_what_is_written(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::ConstraintViolation
            | ErrorCode::TooBig
            | ErrorCode::TypeMismatch
            | ErrorCode::Unknown
    )
}

/// SQLite's own messages name tables, columns and files, never values. A trigger's may say anything, so such a message is left out.
fn without_words_of_others(error: rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) if is_of_what_is_written(failure.code) => {
            rusqlite::Error::SqliteFailure(failure, None)
        }
        error => error,
    }
}

fn judge(error: &rusqlite::Error) -> (ErrorKind, Option<&'static str>) {
    use rusqlite::Error as E;
    match error {
        E::SqliteFailure(failure, _) => judge_code(failure.code),
        E::StatementChangedRows(_) => ADDED,
        // A column that is not what the schema says: nobody but Atlas was meant to write it.
        E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::Utf8Error(..)
        | E::SqlInputError { .. } => (
            ErrorKind::StoreCorrupt,
            Some(
                "Something other than Atlas changed the file: restore it from a backup, or export into a new one.",
            ),
        ),
        _ => (ErrorKind::Internal, None),
    }
}

/// Atlas' own tables take all that Atlas writes.
const ADDED: (ErrorKind, Option<&str>) = (
    ErrorKind::StoreDenied,
    Some(
        "Something that was added to the tables of Atlas refuses what Atlas writes, such as a trigger: remove it, or export into a new file.",
    ),
);

fn judge_code(code: ErrorCode) -> (ErrorKind, Option<&'static str>) {
    match code {
        code if is_of_what_is_written(code) => ADDED,
        ErrorCode::DiskFull => (
            ErrorKind::StoreFull,
            Some(
                "Make room on the disk, then run the same command again: it goes on where it stopped.",
            ),
        ),
        ErrorCode::ReadOnly
        | ErrorCode::PermissionDenied
        | ErrorCode::AuthorizationForStatementDenied => (
            ErrorKind::StoreDenied,
            Some(
                "Give this user the right to write the file and its folder, or set sqlite.path to another place.",
            ),
        ),
        ErrorCode::CannotOpen => (
            ErrorKind::StoreDenied,
            Some("Check that the folder of sqlite.path exists and that this user may write there."),
        ),
        ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt => (
            ErrorKind::StoreCorrupt,
            Some(
                "The file is no intact SQLite database: set sqlite.path to another file, or restore it from a backup.",
            ),
        ),
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => (
            ErrorKind::StoreUnreachable,
            Some("Another program holds the file locked: close it, or wait until it is done."),
        ),
        ErrorCode::SystemIoFailure => (
            ErrorKind::StoreUnreachable,
            Some(
                "The disk or network share failed to answer: see the system's log, and keep the file on a local disk.",
            ),
        ),
        _ => (ErrorKind::Internal, None),
    }
}
