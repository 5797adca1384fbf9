//! `cargo xtask package`: what is uploaded to a cloud.
//!
//! ```text
//! cargo build, one package at a time ──► program ──► elf: does it run there? ──┐
//! functions/azure/app ─────────────────────────────────────────────────────────┴──► archive ──► target/package/*.zip
//! ```
//! Packages are built one by one: in one build, features unify, and a program for one cloud would carry the other.
//!
//! - [`elf`]: what kind of program a file is, and what it needs of the system.
//! - [`archive`]: a zip that is the same, byte for byte, whenever it is made; and the look at it afterwards.

mod archive;
mod elf;

use std::path::Path;

use clap::{Args, ValueEnum};

use archive::Entry;
use xtask::command::{cargo, must, root, target};
use xtask::{Result, print, say};

/// The largest archive that a cloud accepts in one upload and starts without a noticeable wait.
const MOST_BYTES: u64 = 10 * 1024 * 1024;

#[derive(Args)]
pub(crate) struct Options {
    /// For which cloud
    cloud: Cloud,
    /// Packages programs of the debug profile, which build fast and are large: to try something
    #[arg(long)]
    debug_build: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Cloud {
    /// One program and the app folder: azure.zip
    Azure,
    /// One program for each function: aws-*.zip
    Aws,
}

/// One program, and where it goes.
struct Part {
    package: &'static str,
    program: &'static str,
    features: &'static [&'static str],
    /// Where it will run: Azure has one kind of machine for this, AWS those that Terraform is told.
    machine: &'static str,
    /// The program's name in the archive: the cloud looks for it.
    inside: &'static str,
    /// Folder with what else belongs into the archive.
    beside: Option<&'static str>,
    archive: &'static str,
}

const AZURE: [Part; 1] = [Part {
    package: "atlas-azure",
    program: "atlas-azure",
    features: &[],
    machine: "x86_64",
    inside: "handler",
    beside: Some("functions/azure/app"),
    archive: "azure.zip",
}];

const AWS: [Part; 4] = [
    lambda("atlas-planner", "atlas-lambda-planner", "aws-planner.zip"),
    lambda("atlas-worker", "atlas-lambda-worker", "aws-worker.zip"),
    lambda(
        "atlas-watermark",
        "atlas-lambda-watermark",
        "aws-watermark.zip",
    ),
    lambda("atlas-export", "atlas-lambda-export", "aws-export.zip"),
];

const fn lambda(package: &'static str, program: &'static str, archive: &'static str) -> Part {
    Part {
        package,
        program,
        features: &["lambda"],
        machine: std::env::consts::ARCH,
        inside: "bootstrap",
        beside: None,
        archive,
    }
}

/// Builds, checks and packs; the last lines say how large everything is.
pub(crate) fn run(options: &Options) -> Result<()> {
    let parts: &[Part] = match options.cloud {
        Cloud::Azure => &AZURE,
        Cloud::Aws => &AWS,
    };
    let (profile, built) = match options.debug_build {
        true => ("dev", target().join("debug")),
        false => ("dist", target().join("dist")),
    };
    let folder = root().join("target/package");
    std::fs::create_dir_all(&folder)?;
    let mut table = vec![format!(
        "{:<20} {:>12} {:>12}  needs",
        "archive", "program", "zipped"
    )];
    for part in parts {
        say(&format!("building {}", part.program));
        let mut build = cargo(&["build", "--profile", profile, "--package", part.package]);
        build.args(["--bin", part.program]);
        build.args(
            part.features
                .iter()
                .flat_map(|feature| ["--features", feature]),
        );
        must(build, &format!("build {}", part.program))?;
        let archive = folder.join(part.archive);
        let most = (!options.debug_build).then_some(MOST_BYTES);
        let line = pack(part, &root(), &built.join(part.program), &archive, most)?;
        table.push(line);
    }
    table.iter().for_each(|line| print(line));
    print(&format!("in {}", folder.display()));
    Ok(())
}

/// Makes one archive and looks at it; answers its line of the table. What failed a check is not left behind.
fn pack(part: &Part, root: &Path, program: &Path, to: &Path, most: Option<u64>) -> Result<String> {
    let bytes = std::fs::read(program)
        .map_err(|error| format!("failed to read {}: {error}", program.display()))?;
    let needs = elf::check(&bytes, part.machine, elf::GLIBC)
        .map_err(|error| format!("{} cannot run in the cloud: {error}", program.display()))?;
    let size = bytes.len();
    let mut entries = match part.beside {
        Some(folder) => archive::folder(&root.join(folder))?,
        None => Vec::new(),
    };
    entries.push(Entry {
        name: part.inside.to_owned(),
        mode: archive::PROGRAM,
        bytes,
    });
    let names: Vec<String> = entries.iter().map(|entry| entry.name.clone()).collect();
    archive::write(entries, to)?;
    if let Err(error) = archive::check(to, part.inside, &names, most) {
        std::fs::remove_file(to)?;
        return Err(format!("{} must not be uploaded: {error}", part.archive).into());
    }
    let zipped = std::fs::metadata(to)?.len();
    let archive = part.archive;
    Ok(format!(
        "{archive:<20} {:>12} {:>12}  {needs}",
        megabytes(size as u64),
        megabytes(zipped)
    ))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / (1024.0 * 1024.0))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// A real program, as small as one is.
    pub(crate) fn program(folder: &Path) -> PathBuf {
        let source = folder.join("main.rs");
        let program = folder.join("program");
        std::fs::write(&source, "fn main() {}").unwrap();
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(compiler);
        command.args(["-C", "strip=symbols", "-o"]);
        let status = command.arg(&program).arg(&source).status().unwrap();
        assert!(status.success());
        program
    }

    #[test]
    fn the_app_folder_and_the_program_become_one_archive() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path());
        let zip = folder.path().join("azure.zip");
        let [azure] = AZURE;
        let azure = Part {
            machine: std::env::consts::ARCH,
            ..azure
        };
        let line = pack(&azure, &root(), &program, &zip, Some(MOST_BYTES)).unwrap();
        assert!(line.starts_with("azure.zip"), "{line}");
        assert!(line.contains("glibc 2."), "{line}");
        let functions = [
            "deadletter",
            "export",
            "planner",
            "report",
            "watermark",
            "worker",
        ];
        let mut expected: Vec<String> = functions.map(|f| format!("{f}/function.json")).into();
        expected.extend(["handler".to_owned(), "host.json".to_owned()]);
        expected.sort();
        assert_eq!(archive::names(&zip).unwrap(), expected);
    }

    #[test]
    fn an_archive_that_fails_a_check_is_not_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path());
        let zip = folder.path().join("aws-worker.zip");
        let error = pack(&AWS[1], &root(), &program, &zip, Some(100)).unwrap_err();
        assert!(error.to_string().contains("more than 100 bytes"), "{error}");
        assert!(!zip.exists());
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let error = pack(&AWS[1], &root(), &program, &zip, None).unwrap_err();
        assert!(
            error.to_string().contains("cannot run in the cloud"),
            "{error}"
        );
    }

    #[test]
    fn every_function_of_the_suite_has_its_archive() {
        let archives = AWS.map(|part| part.archive);
        assert_eq!(
            archives,
            [
                "aws-planner.zip",
                "aws-worker.zip",
                "aws-watermark.zip",
                "aws-export.zip"
            ]
        );
        assert!(AWS.iter().all(|part| part.inside == "bootstrap"));
    }
}
