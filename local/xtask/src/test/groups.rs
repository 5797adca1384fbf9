//! The groups of a test run, in their order.

use clap::ValueEnum;
use tokio::process::Command;

use super::needs;
use crate::Result;
use crate::command::{cargo, command};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Formatting
    Fmt,
    /// Licences, duplicates, sources and advisories of dependencies
    Deny,
    /// Lints
    Clippy,
    /// The programs that the scenarios run
    Build,
    /// Unit and integration tests of each crate
    Unit,
    /// The whole suite against real servers
    Scenarios,
}

/// A part of a group.
pub(crate) enum Step {
    Run(Command),
    /// Something was left out for this reason.
    Note(String),
}

/// The chosen groups in order, with what they build upon; all of them if none is chosen.
pub(crate) fn selected(only: &[Group]) -> Vec<Group> {
    Group::value_variants()
        .iter()
        .copied()
        .filter(|group| {
            only.is_empty()
                || only.contains(group)
                // Scenarios run programs; stale ones would pass for the wrong reason.
                || (*group == Group::Build && only.contains(&Group::Scenarios))
        })
        .collect()
}

impl Group {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Deny => "deny",
            Self::Clippy => "clippy",
            Self::Build => "build",
            Self::Unit => "unit",
            Self::Scenarios => "scenarios",
        }
    }

    pub(crate) fn needs_servers(self) -> bool {
        matches!(self, Self::Unit | Self::Scenarios)
    }

    /// What the group runs. Only tests can be filtered by name.
    pub(crate) async fn steps(self, filter: Option<&str>) -> Result<Vec<Step>> {
        let test = |arguments: &[&'static str]| {
            let mut command = cargo(&["test", "--no-fail-fast"]);
            command.args(arguments).args(filter);
            vec![Step::Run(command)]
        };
        Ok(match self {
            Self::Fmt => vec![Step::Run(cargo(&["fmt", "--all", "--check"]))],
            Self::Deny => deny().await?,
            Self::Clippy => vec![Step::Run(cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny=warnings",
            ]))],
            // Not ourselves: we are running.
            Self::Build => vec![Step::Run(cargo(&[
                "build",
                "--workspace",
                "--bins",
                "--exclude=xtask",
            ]))],
            Self::Unit => test(&["--workspace", "--exclude=atlas-scenarios"]),
            Self::Scenarios => test(&["--package=atlas-scenarios"]),
        })
    }
}

/// The advisories live in a database that not every machine can reach: without
/// it they are left out, and the table says so.
async fn deny() -> Result<Vec<Step>> {
    let deny = needs::cargo_deny().await?;
    let mut steps = vec![Step::Run(command(
        &deny,
        &["check", "licenses", "bans", "sources"],
    ))];
    let fetched = command(&deny, &["fetch", "db"]).output().await?;
    steps.push(if fetched.status.success() {
        let check = ["check", "--disable-fetch", "advisories"];
        Step::Run(command(&deny, &check))
    } else {
        Step::Note("advisories skipped: their database cannot be fetched from here".to_owned())
    });
    Ok(steps)
}
