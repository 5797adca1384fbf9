//! `cargo xtask test`: everything that must hold, in groups, with one table and one line at the end.
//!
//! ```text
//! fmt ─► build ──────────────► clippy, doc ─► deny, unused, typos ─► unit ─► scenarios ─► table
//!        │ meanwhile: packages  │ meanwhile: PostgreSQL and EHRbase start
//!        │ and tools arrive     │ and take the corpus
//! ```
//!
//! - [`groups`]: what there is to run, in which order.
//! - [`needs`]: what must be installed from Debian; [`tools`]: what cargo installs.
//! - [`build`]: the one build, and the programs in it.
//! - [`checks`]: the groups that run no tests.
//! - [`servers`]: the servers, and how the tests find them.
//! - [`tally`]: what the tests said, and the table at the end.

mod build;
mod checks;
mod groups;
mod needs;
pub(crate) mod servers;
mod tally;
mod tools;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use xtask::command::{command, stream, target};
use xtask::{Result, print, say};

use build::{Built, TestProgram};
use checks::Step;
pub(crate) use groups::Group;
use servers::Servers;
pub(crate) use tally::Table;
use tally::{Outcome, Row, Tally};
use tools::Tools;

/// A program of tests that runs longer hangs: the slowest takes a few minutes. One that waits for something that never
/// comes must not hold a run for ever.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The tests that are run again with another PgBouncer, and the variable that names it to them.
const POOLER_TESTS: &str = " tests/pooler";
const ENV_POOLER: &str = "ATLAS_TEST_PGBOUNCER";

#[derive(Args)]
pub(crate) struct Options {
    /// Runs these groups only (given again or separated by commas)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<Group>,
    /// Runs only tests whose names contain this
    filter: Option<String>,
}

/// Runs the groups one after the other, all of them whatever fails, and prints the table.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let groups = groups::selected(&options.only);
    let mut run = Run::prepare(&groups, options.filter.clone());
    let mut table = Table::default();
    for group in groups {
        table.push(run.group(group));
    }
    // Before the last line, so that nothing of theirs follows it.
    drop(run);
    Ok(table.finish(ci))
}

/// What one group leaves to the next.
pub(crate) struct Run {
    filter: Option<String>,
    tools: Tools,
    packages: Option<JoinHandle<Result<PathBuf>>>,
    /// A second PgBouncer for the tests of the pooler, or why there is none.
    pooler: Option<Result<PathBuf, String>>,
    built: Option<Built>,
    starting: Option<JoinHandle<Result<Servers>>>,
    /// Once they have started, or why they did not.
    servers: Option<Result<Servers, String>>,
}

impl Run {
    /// Says what will be done, and begins to install what it needs.
    pub(crate) fn prepare(groups: &[Group], filter: Option<String>) -> Self {
        let names: Vec<&str> = groups.iter().map(|group| group.name()).collect();
        say(&format!(
            "cargo xtask test: {}; built in {}",
            names.join(", "),
            target().display()
        ));
        let has_tests = groups.iter().any(|group| group.has_tests());
        Self {
            filter,
            tools: Tools::install(groups),
            packages: has_tests.then(|| {
                std::thread::spawn(|| {
                    // What could not be installed is named by the server that needs it.
                    if let Err(error) = needs::packages() {
                        say(&format!("packages: {error}"));
                    }
                    needs::newer_pgbouncer()
                })
            }),
            pooler: None,
            built: None,
            starting: None,
            servers: None,
        }
    }

    /// Runs one group to its end.
    pub(crate) fn group(&mut self, group: Group) -> Row {
        say(&format!("\n=== {} ===", group.name()));
        let start = Instant::now();
        let outcome = match group {
            Group::Build => self.build(),
            Group::Unit | Group::Scenarios => self.tests(group),
            _ => self.check(group),
        };
        Row {
            group: group.name(),
            seconds: start.elapsed().as_secs_f64(),
            outcome: outcome.unwrap_or_else(|error| Outcome::Skipped(error.to_string())),
        }
    }

    fn build(&mut self) -> Result<Outcome> {
        self.built = build::build()?;
        // Servers start while the checks go on.
        if let (Some(built), Some(packages)) = (&self.built, self.packages.take()) {
            self.pooler = Some(match packages.join() {
                Ok(newer) => newer.map_err(|error| error.to_string()),
                Err(_) => Err("the thread that installs packages ended".to_owned()),
            });
            let program = built.servers()?.to_owned();
            self.starting = Some(std::thread::spawn(move || Servers::start(&program)));
        }
        let mut tally = Tally::default();
        if self.built.is_none() {
            tally.fail("the workspace does not compile");
        }
        Ok(Outcome::ran(tally))
    }

    fn check(&mut self, group: Group) -> Result<Outcome> {
        let mut tally = Tally::default();
        let mut notes = Vec::new();
        for step in checks::steps(group, |tool| self.tools.get(tool))? {
            match step {
                Step::Note(note) => notes.push(note),
                Step::Run(command) => {
                    if !stream(command, None, print)?.success() {
                        tally.fail(group.name());
                    }
                }
            }
        }
        Ok(Outcome::Ran { tally, notes })
    }

    fn tests(&mut self, group: Group) -> Result<Outcome> {
        if let Some(starting) = self.starting.take() {
            let started = match starting.join() {
                Ok(started) => started.map_err(|error| error.to_string()),
                Err(_) => Err("the thread that starts the servers ended".to_owned()),
            };
            self.servers = Some(started);
        }
        let servers = match &self.servers {
            Some(Ok(servers)) => servers,
            Some(Err(reason)) => return Err(reason.clone().into()),
            None => return Err("the tests were not built".into()),
        };
        let mut tally = Tally::default();
        let mut notes = Vec::new();
        let environment = servers.environment();
        for program in self.built.iter().flat_map(|built| built.tests(group)) {
            let filter = self.filter.as_deref();
            run_tests(program, filter, environment, &mut tally);
            if !program.name.ends_with(POOLER_TESTS) {
                continue;
            }
            match &self.pooler {
                Some(Ok(newer)) => {
                    let mut again = program.clone();
                    again.name.push_str(" with PgBouncer 1.24");
                    let mut environment = environment.clone();
                    environment.insert(ENV_POOLER.to_owned(), newer.display().to_string());
                    run_tests(&again, filter, &environment, &mut tally);
                }
                Some(Err(reason)) => notes.push(format!("no tests with PgBouncer 1.24: {reason}")),
                None => {}
            }
        }
        Ok(Outcome::Ran { tally, notes })
    }
}

/// Runs the tests of one program, as cargo would.
fn run_tests(
    program: &TestProgram,
    filter: Option<&str>,
    environment: &BTreeMap<String, String>,
    tally: &mut Tally,
) {
    say(&format!("\n--- {} ---", program.name));
    let mut tests = command(&program.path, &["-Zunstable-options", "--report-time"]);
    tests
        .args(filter)
        .current_dir(&program.package)
        .env("CARGO_MANIFEST_DIR", &program.package)
        .envs(environment)
        // The times of tests are the one thing that the stable test harness does not tell.
        .env("RUSTC_BOOTSTRAP", "1");
    let failed = tally.failed;
    let ended = stream(tests, Some(PROGRAM_LIMIT), |line| {
        print(line);
        tally.look(&program.name, line);
    });
    match ended {
        Ok(status) if status.success() || tally.failed > failed => {}
        Ok(status) => tally.fail(&format!("{} ended with {status}", program.name)),
        Err(error) => tally.fail(&format!("{}: {error}", program.name)),
    }
}
