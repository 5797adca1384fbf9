//! What the tests said, and the table at the end of a run.

use std::process::ExitCode;

use crate::print;

/// Sums of libtest's result lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    /// Adds up a line such as `test result: ok. 7 passed; 0 failed; 1 ignored; …`; others are nothing.
    pub(crate) fn look(&mut self, line: &str) {
        let Some((_, result)) = line
            .strip_prefix("test result: ")
            .and_then(|result| result.split_once(". "))
        else {
            return;
        };
        for part in result.split("; ") {
            match part
                .split_once(' ')
                .map(|(count, what)| (count.parse::<u64>(), what))
            {
                Some((Ok(count), "passed")) => self.passed += count,
                Some((Ok(count), "failed")) => self.failed += count,
                _ => {}
            }
        }
    }
}

/// How a group ended.
pub(crate) enum Outcome {
    Ran {
        counts: Counts,
        /// Whether all its commands succeeded.
        complete: bool,
        notes: Vec<String>,
    },
    /// What it needs is missing.
    Skipped(String),
}

pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) seconds: f64,
    pub(crate) outcome: Outcome,
}

/// The groups of a run as they ended.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn push(&mut self, row: Row) {
        self.0.push(row);
    }

    /// Prints the table and, as the last line, the sums. A group that failed
    /// without a failing test (it did not compile, it crashed) counts as one
    /// failure. In continuous integration so does a group that was skipped.
    pub(crate) fn finish(&self, ci: bool) -> ExitCode {
        let mut sum = Counts::default();
        print("");
        print("group       seconds   passed   failed");
        for Row {
            group,
            seconds,
            outcome,
        } in &self.0
        {
            let (counts, notes) = match outcome {
                Outcome::Ran {
                    counts,
                    complete,
                    notes,
                } => {
                    let broken = !complete && counts.failed == 0;
                    let failed = counts.failed + u64::from(broken);
                    (Counts { failed, ..*counts }, notes.join("; "))
                }
                Outcome::Skipped(reason) => {
                    let counts = Counts {
                        passed: 0,
                        failed: u64::from(ci),
                    };
                    (counts, format!("SKIPPED: {reason}"))
                }
            };
            let Counts { passed, failed } = counts;
            let line = format!("{group:<10} {seconds:>8.1} {passed:>8} {failed:>8}  {notes}");
            print(line.trim_end());
            sum.passed += passed;
            sum.failed += failed;
        }
        if self.ran_no_test() {
            print("no test was run");
            sum.failed = sum.failed.max(1);
        }
        print(&format!("{} passed, {} failed", sum.passed, sum.failed));
        match sum.failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// Whether groups of tests were run and there was none in them.
    fn ran_no_test(&self) -> bool {
        let mut tests = self
            .0
            .iter()
            .filter_map(|row| match &row.outcome {
                Outcome::Ran { counts, .. } if matches!(row.group, "unit" | "scenarios") => {
                    Some(counts.passed + counts.failed)
                }
                _ => None,
            })
            .peekable();
        tests.peek().is_some() && tests.sum::<u64>() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_several_binaries_are_added_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.20s",
            "test result: nonsense",
        ] {
            counts.look(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 9,
                failed: 3
            }
        );
    }

    fn table(group: &'static str, outcome: Outcome) -> Table {
        Table(vec![Row {
            group,
            seconds: 0.0,
            outcome,
        }])
    }

    fn ran(passed: u64, complete: bool) -> Outcome {
        Outcome::Ran {
            counts: Counts { passed, failed: 0 },
            complete,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_command_that_fails_without_a_failing_test_fails_the_run() {
        assert_eq!(
            table("clippy", ran(0, false)).finish(false),
            ExitCode::FAILURE
        );
        assert_eq!(
            table("clippy", ran(0, true)).finish(false),
            ExitCode::SUCCESS
        );
    }

    #[test]
    fn a_run_without_a_single_test_fails() {
        assert_eq!(table("unit", ran(0, true)).finish(false), ExitCode::FAILURE);
        assert_eq!(table("unit", ran(1, true)).finish(false), ExitCode::SUCCESS);
    }

    #[test]
    fn a_skipped_group_fails_in_continuous_integration_only() {
        let skipped = || table("unit", Outcome::Skipped("no Java".to_owned()));
        assert_eq!(skipped().finish(true), ExitCode::FAILURE);
        assert_eq!(skipped().finish(false), ExitCode::SUCCESS);
    }
}
