//! Files and folders that only the user of Atlas can open: the copy holds health records, logs name templates and servers, and
//! queues name runs.
//!
//! | function | what |
//! |---|---|
//! | [`options`] | how a file is opened: whoever makes it makes it private |
//! | [`create`] | a file that is not there yet |
//! | [`write()`] | a whole text into a file |
//! | [`create_folders`] | a folder, and those on the way to it |
//! | [`is_open_to_others`] | whether other users can look into it, for warnings |
//!
//! A file or folder has its mode from the moment it is made: between making and changing it, others could open it. What is there
//! already keeps its mode, which may be on purpose.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const FILE: u32 = 0o600;
const FOLDER: u32 = 0o700;

/// Options that make a file for its owner alone, if they make one; nothing else is set.
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE);
    options
}

/// Makes a file for its owner alone, open for reading and writing.
///
/// # Errors
/// `AlreadyExists` if something has the name, else what the system said.
pub fn create(path: &Path) -> io::Result<File> {
    let file = options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    let mode = file.metadata()?.mode();
    if mode & FILE != FILE {
        // The umask took rights of the owner, who could not open the file again.
        file.set_permissions(Permissions::from_mode(FILE))?;
    }
    Ok(file)
}

/// Writes a whole text, into a file that is made for its owner alone if there is none.
///
/// # Errors
/// What the system said.
pub fn write(path: &Path, text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = match create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?,
        made => made?,
    };
    file.write_all(text.as_ref())
}

/// Makes a folder and those that are missing on the way to it, each for its owner alone. Nothing is done where one is.
///
/// # Errors
/// What the system said.
pub fn create_folders(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_folders(parent)?;
    }
    match DirBuilder::new().mode(FOLDER).create(path) {
        Ok(()) => {}
        // Another process was faster.
        Err(_) if path.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    }
    if fs::metadata(path)?.mode() & FOLDER != FOLDER {
        fs::set_permissions(path, Permissions::from_mode(FOLDER))?;
    }
    Ok(())
}

/// Whether users other than the owner can read or write it. Of a file in a private folder they cannot, whatever this says.
#[must_use]
pub fn is_open_to_others(file: &Metadata) -> bool {
    file.mode() & 0o066 != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn a_file_on_the_way_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        super::write(&file, "").unwrap();
        assert!(super::create_folders(&file).is_err());
        assert!(super::create_folders(&file.join("inside")).is_err());
    }
}
