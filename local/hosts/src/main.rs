//! `local-hosts azure|lambda`: the suite on this machine.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use local_hosts::azure;

/// Hosts that run the function suite on this machine as the clouds run it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    host: Hosts,
}

#[derive(Debug, Subcommand)]
enum Hosts {
    Azure(azure::command::Azure),
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Arguments::parse().host {
        Hosts::Azure(arguments) => azure::command::run(arguments).await,
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
