//! `local-hosts azure|lambda`: the suite on this machine.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use local_hosts::{azure, lambda};

/// Runs the functions of Atlas on this machine, as their cloud would.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    cloud: Cloud,
}

#[derive(Debug, Subcommand)]
enum Cloud {
    Azure(azure::command::Azure),
    /// Runs the functions as on AWS Lambda
    Lambda(lambda::command::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    let ended: Result<(), Box<dyn Error>> = match Arguments::parse().cloud {
        Cloud::Azure(arguments) => azure::command::run(arguments).await.map_err(Into::into),
        Cloud::Lambda(arguments) => lambda::command::run(arguments).await.map_err(Into::into),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            // A console that is gone is no reason to panic.
            let _ = writeln!(std::io::stderr(), "error: {text}");
            ExitCode::FAILURE
        }
    }
}
