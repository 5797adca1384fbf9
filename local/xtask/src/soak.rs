//! `cargo xtask soak`: the tests again and again on a machine that has too much to do. Tests that depend on how fast the
//! machine is fail here.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use xtask::{Result, say};

use crate::test::{Group, Run, Table};

#[derive(Args)]
pub(crate) struct Options {
    /// What is run again and again
    suite: Suite,
    /// How often
    #[arg(long, default_value_t = 3)]
    times: u32,
    /// Loops that do nothing but use a processor meanwhile
    #[arg(long, default_value_t = 5)]
    load: u32,
    /// Runs only tests whose names contain this
    filter: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// Every test that continuous integration runs; the checks of the source are left out
    Ci,
}

/// Builds once without the load, then runs the tests `times` times under it, and prints one table of all runs.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Suite::Ci = options.suite;
    let tests = [Group::Unit, Group::Scenarios];
    let mut run = Run::prepare(
        &[&[Group::Build], &tests[..]].concat(),
        options.filter.clone(),
    );
    let mut table = Table::default();
    table.push(run.group(Group::Build));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..options.load {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        for time in 1..=options.times {
            say(&format!(
                "\nsoak: run {time} of {} under a load of {}",
                options.times, options.load
            ));
            for group in tests {
                table.push(run.group(group));
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(run);
    // A soak that ran nothing has shown nothing.
    Ok(table.finish(true))
}
