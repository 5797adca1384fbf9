//! What the tests said, and the table at the end of a run.

use std::process::ExitCode;

use xtask::print;

/// How many of the slowest tests are named.
const SLOWEST: usize = 10;

/// Sums of libtest's lines, and what they say of single tests.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Names of what failed.
    failures: Vec<String>,
    /// Seconds and name of each test.
    times: Vec<(f64, String)>,
}

impl Tally {
    /// Takes in a line of the test program `program`; most lines are nothing.
    pub(crate) fn look(&mut self, program: &str, line: &str) {
        if let Some((_, result)) = line
            .strip_prefix("test result: ")
            .and_then(|result| result.split_once(". "))
        {
            self.sums(result);
        } else if let Some((name, ended)) = line
            .strip_prefix("test ")
            .and_then(|test| test.rsplit_once(" ... "))
        {
            self.test(&format!("{program} {name}"), ended);
        }
    }

    /// Adds up what follows `ok. `, such as `7 passed; 0 failed; 1 ignored; …`.
    fn sums(&mut self, result: &str) {
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

    /// Notes how a test ended, such as `ok <0.012s>` or `FAILED <1.234s>`.
    fn test(&mut self, name: &str, ended: &str) {
        let (word, rest) = ended.split_once(' ').unwrap_or((ended, ""));
        if word == "FAILED" {
            self.failures.push(name.to_owned());
        }
        let seconds = rest
            .strip_prefix('<')
            .and_then(|rest| rest.strip_suffix("s>"))
            .and_then(|seconds| seconds.parse().ok());
        if let Some(seconds) = seconds {
            self.times.push((seconds, name.to_owned()));
        }
    }

    /// Counts a failure that no test reported.
    pub(crate) fn fail(&mut self, what: &str) {
        self.failed += 1;
        self.failures.push(what.to_owned());
    }
}

/// How a group ended.
pub(crate) enum Outcome {
    Ran {
        tally: Tally,
        notes: Vec<String>,
    },
    /// What it needs is missing.
    Skipped(String),
}

impl Outcome {
    /// A group that has nothing to remark.
    pub(crate) fn ran(tally: Tally) -> Self {
        Self::Ran {
            tally,
            notes: Vec::new(),
        }
    }
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

    /// Prints the slowest tests, the table, what failed and, as the last line, the sums. In continuous integration a
    /// group that was skipped counts as one failure.
    pub(crate) fn finish(&self, ci: bool) -> ExitCode {
        let (mut passed, mut failed) = (0, 0);
        let mut lines = Vec::new();
        let mut failures = Vec::new();
        for Row {
            group,
            seconds,
            outcome,
        } in &self.0
        {
            let (counts, notes) = match outcome {
                Outcome::Ran { tally, notes } => {
                    failures.extend(tally.failures.iter().map(String::as_str));
                    ((tally.passed, tally.failed), notes.join("; "))
                }
                Outcome::Skipped(reason) => ((0, u64::from(ci)), format!("SKIPPED: {reason}")),
            };
            let line = format!(
                "{group:<10} {seconds:>8.1} {:>8} {:>8}  {notes}",
                counts.0, counts.1
            );
            lines.push(line.trim_end().to_owned());
            passed += counts.0;
            failed += counts.1;
        }
        self.print_slowest();
        print("\ngroup       seconds   passed   failed");
        lines.iter().for_each(|line| print(line));
        failures
            .iter()
            .for_each(|failure| print(&format!("failed: {failure}")));
        if self.ran_no_test() {
            print("no test was run");
            failed = failed.max(1);
        }
        print(&format!("{passed} passed, {failed} failed"));
        match failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    fn tallies(&self) -> impl Iterator<Item = (&'static str, &Tally)> {
        self.0.iter().filter_map(|row| match &row.outcome {
            Outcome::Ran { tally, .. } => Some((row.group, tally)),
            Outcome::Skipped(_) => None,
        })
    }

    fn slowest(&self) -> Vec<&(f64, String)> {
        let mut times: Vec<_> = self.tallies().flat_map(|(_, tally)| &tally.times).collect();
        times.sort_by(|a, b| b.0.total_cmp(&a.0));
        times.truncate(SLOWEST);
        times
    }

    fn print_slowest(&self) {
        let slowest = self.slowest();
        if !slowest.is_empty() {
            print("\nslowest tests, in seconds");
        }
        for (seconds, name) in slowest {
            print(&format!("{seconds:>8.1}  {name}"));
        }
    }

    /// Whether groups of tests were run and there was none in them.
    fn ran_no_test(&self) -> bool {
        let mut tests = self
            .tallies()
            .filter(|(group, _)| matches!(*group, "unit" | "scenarios"))
            .map(|(_, tally)| tally.passed + tally.failed)
            .peekable();
        tests.peek().is_some() && tests.sum::<u64>() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_several_programs_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.20s",
            "test result: nonsense",
        ] {
            tally.look("x", line);
        }
        assert_eq!((tally.passed, tally.failed), (9, 3));
    }

    #[test]
    fn single_tests_are_known_by_program_name_and_time() {
        let mut tally = Tally::default();
        for line in [
            "test a::b ... ok <0.250s>",
            "test c - should panic ... ok <1.500s>",
            "test d ... FAILED <0.001s>",
            "test e ... ignored, runs until it is killed",
            "test f ... ok",
            "test of nothing",
        ] {
            tally.look("crate", line);
        }
        assert_eq!(tally.failures, ["crate d"]);
        let names: Vec<&str> = tally.times.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["crate a::b", "crate c - should panic", "crate d"]);
        let table = table("unit", Outcome::ran(tally));
        assert_eq!(table.slowest().first().map(|slow| slow.0), Some(1.5));
    }

    fn table(group: &'static str, outcome: Outcome) -> Table {
        Table(vec![Row {
            group,
            seconds: 0.0,
            outcome,
        }])
    }

    fn passed(passed: u64) -> Outcome {
        Outcome::ran(Tally {
            passed,
            ..Tally::default()
        })
    }

    #[test]
    fn a_failure_that_no_test_reported_fails_the_run() {
        let mut tally = Tally::default();
        tally.fail("clippy");
        let failed = table("clippy", Outcome::ran(tally));
        assert_eq!(failed.finish(false), ExitCode::FAILURE);
        assert_eq!(table("clippy", passed(0)).finish(false), ExitCode::SUCCESS);
    }

    #[test]
    fn a_run_without_a_single_test_fails() {
        assert_eq!(table("unit", passed(0)).finish(false), ExitCode::FAILURE);
        assert_eq!(table("unit", passed(1)).finish(false), ExitCode::SUCCESS);
    }

    #[test]
    fn a_skipped_group_fails_in_continuous_integration_only() {
        let skipped = || table("unit", Outcome::Skipped("no Java".to_owned()));
        assert_eq!(skipped().finish(true), ExitCode::FAILURE);
        assert_eq!(skipped().finish(false), ExitCode::SUCCESS);
    }
}
