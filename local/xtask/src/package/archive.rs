//! Archives: sorted, without times, so that the same content is the same file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use xtask::Result;

/// Mode bits of what is started.
pub(crate) const PROGRAM: u32 = 0o755;

const DATA: u32 = 0o644;

/// A file in an archive.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Path with `/` between its parts.
    pub(crate) name: String,
    /// Mode bits.
    pub(crate) mode: u32,
    pub(crate) bytes: Vec<u8>,
}

/// The files of a folder and the folders in it.
pub(crate) fn folder(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    collect(folder, "", &mut entries)?;
    Ok(entries)
}

fn collect(folder: &Path, prefix: &str, entries: &mut Vec<Entry>) -> Result<()> {
    let listed = std::fs::read_dir(folder)
        .map_err(|error| format!("failed to list {}: {error}", folder.display()))?;
    for entry in listed {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| format!("{} has no plain name", path.display()))?;
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            collect(&path, &format!("{name}/"), entries)?;
        } else {
            let bytes = std::fs::read(&path)?;
            entries.push(Entry {
                name,
                mode: DATA,
                bytes,
            });
        }
    }
    Ok(())
}

/// Writes an archive; replaces one that is there.
pub(crate) fn write(mut entries: Vec<Entry>, to: &Path) -> Result<()> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut zip = ZipWriter::new(File::create(to)?);
    for entry in entries {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(9))
            .last_modified_time(DateTime::default())
            .unix_permissions(entry.mode);
        zip.start_file(entry.name, options)?;
        zip.write_all(&entry.bytes)?;
    }
    zip.finish()?;
    Ok(())
}

/// Why an archive must not be uploaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    #[error("it cannot be read")]
    Unreadable(#[from] zip::result::ZipError),
    #[error("it cannot be read")]
    Io(#[from] std::io::Error),
    #[error("it has {bytes} bytes, more than {most} bytes")]
    TooLarge { bytes: u64, most: u64 },
    #[error("`{0}` does not belong into it")]
    Surplus(String),
    #[error("`{0}` is missing")]
    Missing(String),
    #[error("`{name}` has the mode {is:o}, must have {must:o}")]
    Mode { name: String, is: u32, must: u32 },
}

/// Looks at an archive as a cloud will: what is in it, with which mode bits, and how large it is.
pub(crate) fn check(
    path: &Path,
    program: &str,
    names: &[String],
    most: Option<u64>,
) -> Result<(), Wrong> {
    let bytes = std::fs::metadata(path)?.len();
    if let Some(most) = most.filter(|most| bytes > *most) {
        return Err(Wrong::TooLarge { bytes, most });
    }
    let mut zip = ZipArchive::new(File::open(path)?)?;
    let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for index in 0..zip.len() {
        let entry = zip.by_index(index)?;
        let name = entry.name()?.into_owned();
        if !missing.remove(name.as_str()) {
            return Err(Wrong::Surplus(name));
        }
        let must = if name == program { PROGRAM } else { DATA };
        let is = entry.unix_mode().unwrap_or(0) & 0o7777;
        if is != must {
            return Err(Wrong::Mode { name, is, must });
        }
    }
    match missing.first() {
        Some(name) => Err(Wrong::Missing((*name).to_owned())),
        None => Ok(()),
    }
}

/// What is in an archive, in its order.
#[cfg(test)]
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let zip = ZipArchive::new(File::open(path)?)?;
    (0..zip.len())
        .map(|index| Ok(zip.name_for_index(index).ok_or("no entry")??.into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn entry(name: &str, mode: u32) -> Entry {
        let bytes = name.repeat(100).into_bytes();
        let name = name.to_owned();
        Entry { name, mode, bytes }
    }

    /// The answer of [`check`] about an archive of these files, of which `bootstrap` should be the only one.
    fn checked(entries: Vec<Entry>, most: Option<u64>) -> Result<(), Wrong> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        write(entries, &path).unwrap();
        check(&path, "bootstrap", &["bootstrap".to_owned()], most)
    }

    #[test]
    fn the_same_files_make_the_same_archive_in_whatever_order_and_whenever() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, entries| {
            let path = folder.path().join(name);
            write(entries, &path).unwrap();
            std::fs::read(path).unwrap()
        };
        let (a, b) = (entry("a", DATA), entry("b/c", PROGRAM));
        let one = make("one.zip", vec![a.clone(), b.clone()]);
        assert_eq!(one, make("two.zip", vec![b, a]));
        // The time of each file is the first that a zip knows: 1980-01-01 00:00.
        assert_eq!(one[10..14], [0, 0, 0x21, 0]);
    }

    #[test]
    fn a_program_alone_with_its_mode_is_right() {
        checked(vec![entry("bootstrap", PROGRAM)], Some(1000)).unwrap();
    }

    #[test]
    fn a_program_that_may_not_be_started_is_refused() {
        let error = checked(vec![entry("bootstrap", DATA)], None).unwrap_err();
        assert!(
            matches!(
                error,
                Wrong::Mode {
                    is: 0o644,
                    must: 0o755,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_belong_there_is_refused() {
        let entries = vec![entry("bootstrap", PROGRAM), entry(".env", DATA)];
        let error = checked(entries, None).unwrap_err();
        assert!(
            matches!(&error, Wrong::Surplus(name) if name == ".env"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = checked(Vec::new(), None).unwrap_err();
        assert!(
            matches!(&error, Wrong::Missing(name) if name == "bootstrap"),
            "{error}"
        );
    }

    #[test]
    fn an_archive_that_is_too_large_is_refused() {
        let error = checked(vec![entry("bootstrap", PROGRAM)], Some(10)).unwrap_err();
        assert!(matches!(error, Wrong::TooLarge { most: 10, .. }), "{error}");
    }
}
