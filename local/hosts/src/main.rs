//! `local-hosts azure|lambda`: the suite on this machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use local_hosts::lambda;

#[derive(Parser)]
#[command(
    about = "Runs the functions of Atlas on this machine, as their cloud would",
    version
)]
struct Cli {
    #[command(subcommand)]
    cloud: Cloud,
}

#[derive(Subcommand)]
enum Cloud {
    /// Runs the functions as on AWS Lambda
    Lambda(lambda::command::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    let Cloud::Lambda(args) = Cli::parse().cloud;
    match lambda::command::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause = std::error::Error::source(&error);
            let mut line = error.to_string();
            while let Some(next) = cause {
                line = format!("{line}: {next}");
                cause = next.source();
            }
            tracing::error!("{line}");
            ExitCode::FAILURE
        }
    }
}
