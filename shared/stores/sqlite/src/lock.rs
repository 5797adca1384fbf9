//! Named locks between processes, as locked files beside the database. The system ends a lock with the process
//! that holds it, however that process ends. The empty files stay: removing one could split a lock in two.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use atlas_engine::ports::Hold;
use atlas_engine::{Error, ErrorKind, Result};

/// Takes the lock if nobody has it.
pub(crate) fn try_hold(database: &Path, name: &str) -> Result<Option<Hold>> {
    let path = file_of(database, name);
    let file = create(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Box::new(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(cause)) => Err(denied(&path, cause)),
    }
}

/// Waits for the lock; for what takes a moment only.
pub(crate) fn wait(database: &Path, name: &str) -> Result<File> {
    let path = file_of(database, name);
    let file = create(&path)?;
    file.lock().map_err(|cause| denied(&path, cause))?;
    Ok(file)
}

fn create(path: &Path) -> Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|cause| denied(path, cause))
}

fn denied(path: &Path, cause: std::io::Error) -> Error {
    let kind = match cause.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::StoreFull,
        _ => ErrorKind::StoreDenied,
    };
    Error::new(kind, format!("lock {}", path.display()))
        .because(cause)
        .fix("The folder of sqlite.path must exist and be writable for this user, on a local disk with room.")
}

/// `atlas.db` and `export` give `atlas.db.export.lock`; what a file name should not hold becomes `%` and its code.
fn file_of(database: &Path, name: &str) -> PathBuf {
    let mut file = String::from(".");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            file.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(file, "%{byte:02x}");
        }
    }
    file.push_str(".lock");
    let mut path = OsString::from(database);
    path.push(file);
    path.into()
}
