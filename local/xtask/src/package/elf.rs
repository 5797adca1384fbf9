//! Whether a program can run where it is going.

use std::fmt;

use object::read::elf::{ElfFile64, FileHeader};
use object::{Architecture, Endianness, Object, ObjectKind};

/// The oldest C library there: Amazon Linux 2023 has 2.34, the images of Azure Functions a newer one.
pub(crate) const GLIBC: Glibc = Glibc(2, 34);

/// A version of the C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Glibc(pub(crate) u32, pub(crate) u32);

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "glibc {}.{}", self.0, self.1)
    }
}

/// Why a file is nothing that a cloud can start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it is no 64-bit ELF file")]
    NotElf(#[source] object::Error),
    #[error("it is an ELF file, but no program")]
    NoProgram,
    #[error("it is for {is:?}, not for {must}; build on a machine of that kind")]
    Machine { is: Architecture, must: String },
    #[error("it needs {needs}, the cloud has {has}; build on an older distribution")]
    Glibc { needs: Glibc, has: Glibc },
}

/// Checks a program for a machine (`x86_64`, `aarch64`) whose C library is `has`; answers the version it needs.
pub(crate) fn check(bytes: &[u8], machine: &str, has: Glibc) -> Result<Glibc, Unfit> {
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(Unfit::NotElf)?;
    if !matches!(file.kind(), ObjectKind::Executable | ObjectKind::Dynamic) || file.entry() == 0 {
        return Err(Unfit::NoProgram);
    }
    let architecture = match machine {
        "x86_64" => Architecture::X86_64,
        "aarch64" => Architecture::Aarch64,
        _ => Architecture::Unknown,
    };
    if file.architecture() != architecture {
        return Err(Unfit::Machine {
            is: file.architecture(),
            must: machine.to_owned(),
        });
    }
    let needs = glibc(&file).map_err(Unfit::NotElf)?;
    if needs > has {
        return Err(Unfit::Glibc { needs, has });
    }
    Ok(needs)
}

/// The highest version of the C library that a program asks for; 0.0 if it asks for none.
fn glibc(file: &ElfFile64<'_, Endianness>) -> Result<Glibc, object::Error> {
    let (endian, data) = (file.endian(), file.data());
    let sections = file.elf_header().sections(endian, data)?;
    let mut highest = Glibc(0, 0);
    let Some((mut libraries, strings)) = sections.gnu_verneed(endian, data)? else {
        return Ok(highest);
    };
    let strings = sections.strings(endian, data, strings)?;
    while let Some((_, mut versions)) = libraries.next()? {
        while let Some(version) = versions.next()? {
            let name = version.name(endian, strings)?;
            highest = highest.max(parse(name).unwrap_or(Glibc(0, 0)));
        }
    }
    Ok(highest)
}

/// `GLIBC_2.34` or `GLIBC_2.2.5`; `None` for what is no numbered version of the C library.
fn parse(name: &[u8]) -> Option<Glibc> {
    let mut numbers = std::str::from_utf8(name)
        .ok()?
        .strip_prefix("GLIBC_")?
        .split('.');
    let mut next = || numbers.next()?.parse().ok();
    Some(Glibc(next()?, next()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::env::consts::ARCH;

    use super::*;

    fn program() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::read(super::super::tests::program(folder.path())).unwrap()
    }

    #[test]
    fn a_program_of_this_machine_names_the_library_it_needs() {
        let needs = check(&program(), ARCH, Glibc(9, 0)).unwrap();
        assert!(needs > Glibc(2, 0) && needs < Glibc(3, 0), "{needs}");
    }

    #[test]
    fn a_program_that_needs_a_newer_library_is_refused() {
        let error = check(&program(), ARCH, Glibc(2, 1)).unwrap_err();
        assert!(
            matches!(
                error,
                Unfit::Glibc {
                    has: Glibc(2, 1),
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_program_for_another_machine_is_refused() {
        let other = if ARCH == "x86_64" {
            "aarch64"
        } else {
            "x86_64"
        };
        let error = check(&program(), other, GLIBC).unwrap_err();
        assert!(matches!(error, Unfit::Machine { .. }), "{error}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let mut object = program();
        let relocatable = 1_u16.to_ne_bytes();
        object[16..18].copy_from_slice(&relocatable);
        assert!(matches!(check(&object, ARCH, GLIBC), Err(Unfit::NoProgram)));
        for bytes in [&b"#!/bin/sh\n"[..], b"", &program()[..40]] {
            assert!(matches!(check(bytes, ARCH, GLIBC), Err(Unfit::NotElf(_))));
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse(b"GLIBC_2.2.5"), Some(Glibc(2, 2)));
        assert_eq!(parse(b"GLIBC_PRIVATE"), None);
        assert_eq!(parse(b"GCC_3.0"), None);
        assert!(parse(b"GLIBC_2.4") < parse(b"GLIBC_2.34"));
    }
}
