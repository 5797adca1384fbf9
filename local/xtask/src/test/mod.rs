//! `cargo xtask test`: everything that must hold, in groups, on one PostgreSQL
//! and one EHRbase that are brought up for the run and leave nothing behind.
//!
//! - [`groups`]: what is run, in which order.
//! - [`needs`]: what must be installed, and how it gets there.
//! - [`servers`]: the servers, and how the tests find them.
//! - [`tally`]: what the tests said, and the table at the end.

mod groups;
mod needs;
pub(crate) mod servers;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use crate::command::stream;
use crate::{Result, say};
use groups::Group;
use servers::Servers;
use tally::{Outcome, Row, Table};

#[derive(Args)]
pub(crate) struct Options {
    /// Runs these groups only (given again or separated by commas)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<Group>,
    /// Runs only tests whose names contain this
    filter: Option<String>,
}

/// Runs the groups one after the other, all of them whatever fails, and prints the table.
pub(crate) async fn run(options: &Options) -> Result<ExitCode> {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let groups = groups::selected(&options.only);
    // Built and started while the first groups run.
    let servers = groups
        .iter()
        .any(|group| group.needs_servers())
        .then(|| tokio::spawn(Servers::start()));
    let mut table = Table::default();
    let mut waiting = servers;
    let mut running: Option<Result<Servers, String>> = None;
    for group in groups {
        let start = Instant::now();
        if group.needs_servers()
            && let Some(servers) = waiting.take()
        {
            running = Some(
                servers
                    .await?
                    .map_err(|error| atlas_ehrbase::chain(error.as_ref())),
            );
        }
        let outcome = match (&running, group.needs_servers()) {
            (Some(Err(reason)), true) => Outcome::Skipped(reason.clone()),
            (Some(Ok(servers)), true) => run_group(group, options, Some(servers)).await?,
            _ => run_group(group, options, None).await?,
        };
        table.push(Row {
            group: group.name(),
            seconds: start.elapsed().as_secs_f64(),
            outcome,
        });
    }
    drop(running);
    Ok(table.finish(ci))
}

async fn run_group(group: Group, options: &Options, servers: Option<&Servers>) -> Result<Outcome> {
    say(&format!("\n=== {} ===", group.name()));
    let mut counts = tally::Counts::default();
    let mut notes = Vec::new();
    let mut complete = true;
    let steps = match group.steps(options.filter.as_deref()).await {
        Ok(steps) => steps,
        Err(error) => return Ok(Outcome::Skipped(atlas_ehrbase::chain(error.as_ref()))),
    };
    for step in steps {
        let mut command = match step {
            groups::Step::Run(command) => command,
            groups::Step::Note(note) => {
                notes.push(note);
                continue;
            }
        };
        if let Some(servers) = servers {
            command.envs(servers.environment());
        }
        let status = stream(command, |line| counts.look(line)).await?;
        complete &= status.success();
    }
    Ok(Outcome::Ran {
        counts,
        complete,
        notes,
    })
}
