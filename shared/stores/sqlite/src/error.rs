//! From SQLite's result codes to the engine's error kinds. Decided by code, never by text.

use std::path::Path;

use atlas_engine::{Error, ErrorKind};
use rusqlite::ErrorCode;

/// What a failed call means for the engine. `action` completes the sentence "failed to …".
/// SQLite's own messages name tables, columns and files, never values.
pub(crate) fn explain(error: rusqlite::Error, action: &'static str, path: &Path) -> Error {
    let (kind, fix) = judge(&error);
    let error = Error::new(kind, format!("{action} ({})", path.display())).because(error);
    match fix {
        Some(fix) => error.fix(fix),
        None => error,
    }
}

fn judge(error: &rusqlite::Error) -> (ErrorKind, Option<&'static str>) {
    use rusqlite::Error as E;
    match error {
        E::SqliteFailure(failure, _) => judge_code(failure.code),
        // A column that is not what the schema says: nobody but Atlas was meant to write it.
        E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::InvalidColumnType(..)
        | E::Utf8Error(..) => (
            ErrorKind::StoreCorrupt,
            Some(
                "Something other than Atlas changed the file: restore it from a backup, or export into a new one.",
            ),
        ),
        _ => (ErrorKind::Internal, None),
    }
}

fn judge_code(code: ErrorCode) -> (ErrorKind, Option<&'static str>) {
    match code {
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
