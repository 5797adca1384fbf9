//! Named locks between processes, as locked files beside the database. The system ends a lock with the process
//! that holds it, however that process ends. The empty files stay: removing one could split a lock in two.
//!
//! A lock is a proof of death that comes sooner than the end of a lease, never the only one, so nothing waits for it and nothing
//! fails by it. It belongs to its user: the file is created for nobody else to open, and a file of somebody else, who could
//! replace it, tells nothing. The database itself is not locked, because closing a second handle to it would end SQLite's own locks.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use atlas_engine::ports::Hold;
use atlas_engine::{Error, ErrorKind, Result};

/// Takes the lock if nobody has it.
pub(crate) fn try_hold(database: &Path, name: &str) -> Hold {
    // One file under two names is one store.
    let Ok(database) = database.canonicalize() else {
        return Hold::Unknown;
    };
    let Ok(file) = open(&file_of(&database, name), true) else {
        return Hold::Unknown;
    };
    match file.try_lock() {
        Ok(()) => Hold::Alone(Box::new(file)),
        Err(TryLockError::WouldBlock) => Hold::Taken,
        Err(TryLockError::Error(_)) => Hold::Unknown,
    }
}

/// Refuses a file that has a second name by a hard link: SQLite keeps its log beside the name, and two logs of one file destroy it.
/// A symbolic link is no second name.
///
/// # Errors
/// `Held` if a process holds it by another name in its folder, else `StoreDenied`.
pub(crate) fn refuse_second_name(database: &Path) -> Result<()> {
    let Ok(file) = fs::metadata(database) else {
        // What is not there or may not be seen is SQLite's to report.
        return Ok(());
    };
    if !file.is_file() || file.nlink() < 2 {
        return Ok(());
    }
    let kind = if is_held_by_another_name(database, &file).unwrap_or(false) {
        ErrorKind::Held
    } else {
        ErrorKind::StoreDenied
    };
    Err(Error::new(
        kind,
        format!(
            "use {}: the file has a second name by a hard link",
            database.display()
        ),
    )
    .fix("Remove the other name, or make it a symbolic link: SQLite keeps its log beside the name, and two logs destroy the file."))
}

fn is_held_by_another_name(database: &Path, file: &fs::Metadata) -> io::Result<bool> {
    let database = database.canonicalize()?;
    let folder = database.parent().unwrap_or(&database);
    let entries: Vec<OsString> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    let is_the_file = |name: &OsStr| {
        fs::symlink_metadata(folder.join(name))
            .is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()))
    };
    let names = entries.iter().filter(|name| is_the_file(name));
    for name in names {
        let mut begin = name.clone();
        begin.push(".");
        let locks = entries.iter().filter(|entry| {
            let entry = entry.as_encoded_bytes();
            entry.starts_with(begin.as_encoded_bytes()) && entry.ends_with(b".lock")
        });
        for lock in locks {
            let held = open(&folder.join(lock), false)
                .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
            if held {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A lock file of this user.
fn open(path: &Path, create: bool) -> io::Result<File> {
    // For reading as well: opening a pipe that somebody put there for writing only would wait.
    let there = || File::options().read(true).write(true).open(path);
    let file = match create.then(|| atlas_files::create(path)) {
        Some(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => there(),
        Some(made) => made,
        None => there(),
    }?;
    let about = file.metadata()?;
    if about.is_file() && about.uid() == rustix::process::geteuid().as_raw() {
        Ok(file)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
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
