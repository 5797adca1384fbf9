//! Modes under every umask. The umask belongs to the whole process, so this is one test in a file of its own.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{Permissions, metadata, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::umask;

fn mode(path: &Path) -> u32 {
    metadata(path).unwrap().mode() & 0o777
}

#[test]
fn what_is_made_is_private_under_any_umask_and_what_is_there_keeps_its_mode() {
    for mask in [0o000, 0o002, 0o022, 0o027, 0o077, 0o177, 0o277, 0o777] {
        let folder = tempfile::tempdir().unwrap();
        let before = umask(Mode::from_raw_mode(mask));
        let deep = folder.path().join("a/b/c");
        atlas_files::create_folders(&deep).unwrap();
        for part in ["a", "a/b", "a/b/c"] {
            assert_eq!(mode(&folder.path().join(part)), 0o700, "{mask:o} {part}");
        }
        let (made, written) = (deep.join("made"), deep.join("written"));
        drop(atlas_files::create(&made).unwrap());
        let again = atlas_files::create(&made).unwrap_err();
        assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
        atlas_files::write(&written, "longer text").unwrap();
        assert_eq!((mode(&made), mode(&written)), (0o600, 0o600), "{mask:o}");
        assert!(!atlas_files::is_open_to_others(
            &metadata(&written).unwrap()
        ));

        set_permissions(&written, Permissions::from_mode(0o640)).unwrap();
        atlas_files::write(&written, "text").unwrap();
        assert_eq!(mode(&written), 0o640, "{mask:o}");
        assert_eq!(std::fs::read(&written).unwrap(), b"text");
        assert!(atlas_files::is_open_to_others(&metadata(&written).unwrap()));
        let opened = deep.join("opened");
        atlas_files::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&opened)
            .unwrap();
        assert_eq!(mode(&opened) & 0o077, 0, "{mask:o}");
        atlas_files::create_folders(&deep).unwrap();
        umask(before);
    }
}
