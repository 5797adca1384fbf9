//! The groups that run no tests: one command each, or a few.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::groups::Group;
use super::tools::Tool;
use xtask::Result;
use xtask::command::{cargo, command};

/// A part of a check.
pub(crate) enum Step {
    Run(Command),
    /// Something was left out for this reason.
    Note(String),
}

/// What a check runs. `installed` answers where a tool lies, once it is installed.
pub(crate) fn steps(
    group: Group,
    mut installed: impl FnMut(Tool) -> Result<PathBuf>,
) -> Result<Vec<Step>> {
    let one = |command| Ok(vec![Step::Run(command)]);
    match group {
        Group::Fmt => one(cargo(&["fmt", "--all", "--check"])),
        Group::Clippy => one(cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny=warnings",
        ])),
        Group::Doc => {
            let mut doc = cargo(&[
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ]);
            doc.env(
                "RUSTDOCFLAGS",
                "--deny=warnings --allow=rustdoc::private_intra_doc_links",
            );
            one(doc)
        }
        Group::Deny => deny(&installed(Tool::Deny)?),
        Group::Unused => one(command(installed(Tool::Machete)?, &[])),
        Group::Typos => one(command(installed(Tool::Typos)?, &[])),
        Group::Build | Group::Unit | Group::Scenarios => Ok(Vec::new()),
    }
}

/// The advisories live in a database that not every machine can reach: without it they are left out, and the table
/// says so.
fn deny(deny: &Path) -> Result<Vec<Step>> {
    let mut steps = vec![Step::Run(command(
        deny,
        &["check", "licenses", "bans", "sources"],
    ))];
    let fetched = command(deny, &["fetch", "db"]).output()?;
    steps.push(if fetched.status.success() {
        let check = ["check", "--disable-fetch", "advisories"];
        Step::Run(command(deny, &check))
    } else {
        Step::Note("advisories skipped: their database cannot be fetched from here".to_owned())
    });
    Ok(steps)
}
