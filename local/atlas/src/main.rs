//! The command line of Atlas: the same engine as in the cloud, with an in-process queue.
//!
//! | module | what |
//! |---|---|
//! | `cli` | what can be typed |
//! | `export`, `status`, `quarantine` | the main job, and how far it is |
//! | `serve` | the whole suite in one process: schedule, workers, on-demand API |
//! | `init`, `validate`, `doctor`, `discover` | on the way to a configuration that works |
//! | `flat` | canonical JSON to FLAT, without a server |
//! | `prepare`, `grants` | the tables, as their owner; the rights of a role that exports and may change no table |
//! | `demo` | all of it in a minute, against a sample server in this process |
//! | `session` | settings, log lines and the parts that commands use |
//! | `progress`, `output`, `failure` | what the person sees: bars, tables, JSON, errors and exit codes |
//! | `signals` | how a run is stopped |

mod cli;
mod demo;
mod discover;
mod doctor;
mod export;
mod failure;
mod flat;
mod grants;
mod init;
mod output;
mod prepare;
mod progress;
mod quarantine;
mod serve;
mod session;
mod signals;
mod status;
mod validate;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::new(Exit::Internal, "failed to start the runtime");
            failure.because(error).show();
            return Exit::Internal.into();
        }
    };
    let exit = match runtime.block_on(run(cli)) {
        Ok(exit) => exit,
        Err(failure) => {
            let exit = failure.exit;
            failure.show();
            exit
        }
    };
    // What was told to stop at once may still wait for a disk or a network.
    runtime.shutdown_background();
    exit.into()
}

async fn run(Cli { global, command }: Cli) -> Result<Exit, Failure> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments).await,
        Command::Init(arguments) => init::run(&arguments),
        Command::ValidateConfig(arguments) => validate::run(&global, &arguments),
        Command::Doctor(arguments) => doctor::run(&global, &arguments).await,
        Command::Prepare(arguments) => prepare::run(&global, &arguments).await,
        Command::Discover(arguments) => discover::run(&global, &arguments).await,
        Command::Export(arguments) => export::run(&global, &arguments).await,
        Command::Status(arguments) => status::run(&global, &arguments).await,
        Command::Serve => serve::run(&global).await,
        Command::Quarantine(command) => quarantine::run(&global, &command).await,
        Command::Flat(arguments) => flat::run(&arguments),
        Command::Grants(arguments) => grants::run(&global, &arguments),
        Command::Completions(arguments) => {
            let mut script = Vec::new();
            clap_complete::generate(arguments.shell, &mut Cli::command(), "atlas", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Complete)
        }
    }
}
