//! The groups of a test run, in their order.

use clap::ValueEnum;

/// A part of the run with a line of its own in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Formatting
    Fmt,
    /// Every program, test and example, built at once with one set of features
    Build,
    /// Lints
    Clippy,
    /// Documentation: links that lead nowhere
    Doc,
    /// Licences, duplicates, sources and advisories of dependencies
    Deny,
    /// Dependencies that nothing uses
    Unused,
    /// Spelling
    Typos,
    /// Unit and integration tests of each crate
    Unit,
    /// The whole suite against real servers
    Scenarios,
}

/// The chosen groups in order, with what they build upon; all of them if none is chosen.
pub(crate) fn selected(only: &[Group]) -> Vec<Group> {
    Group::value_variants()
        .iter()
        .copied()
        .filter(|group| {
            only.is_empty()
                || only.contains(group)
                || (*group == Group::Build && only.iter().any(|chosen| chosen.has_tests()))
        })
        .collect()
}

impl Group {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Build => "build",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
            Self::Deny => "deny",
            Self::Unused => "unused",
            Self::Typos => "typos",
            Self::Unit => "unit",
            Self::Scenarios => "scenarios",
        }
    }

    /// Whether it runs tests, on servers. The others are checks.
    pub(crate) fn has_tests(self) -> bool {
        matches!(self, Self::Unit | Self::Scenarios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_built_before_they_run() {
        assert_eq!(selected(&[Group::Unit]), [Group::Build, Group::Unit]);
        assert_eq!(selected(&[Group::Typos]), [Group::Typos]);
        assert_eq!(selected(&[]).len(), Group::value_variants().len());
    }
}
