//! The sample CDR as a process of its own, for tests that need one and for trying things by hand.

use std::{io::Write as _, process::ExitCode, time::Duration};

use atlas_sample_cdr::{Clock, Profile, Release, SampleCdr};
use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

/// A small openEHR server with synthetic patients.
///
/// Prints `ready http://127.0.0.1:PORT/ehrbase` when it listens, and ends on SIGINT or SIGTERM. While it runs, POST
/// /sample/changes and /sample/faults change it, and GET /sample/counters tells what it was asked.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Port on the loopback interface; 0 takes any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Compositions at the start.
    #[arg(long, default_value_t = 1_000)]
    compositions: u64,
    /// EHRs they belong to [default: one for 20 compositions].
    #[arg(long)]
    patients: Option<u64>,
    /// The same seed gives the same compositions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Size of a composition: about 2 KB or about 8 KB.
    #[arg(long, value_enum, default_value_t = ProfileName::Full)]
    profile: ProfileName,
    /// Which EHRbase to behave like.
    #[arg(long, value_enum, default_value_t = ReleaseName::V2_31)]
    release: ReleaseName,
    /// Asks for this user by basic authentication.
    #[arg(long, requires = "password")]
    user: Option<String>,
    /// The user's password.
    #[arg(
        long,
        requires = "user",
        env = "SAMPLE_CDR_PASSWORD",
        hide_env_values = true
    )]
    password: Option<String>,
    /// A clock that stands at this time, such as 2026-01-01T00:00:00Z, until /sample/changes advances it.
    #[arg(long)]
    clock: Option<Timestamp>,
    /// Commit time of the first composition [default: 2025-01-01T00:00:00Z].
    #[arg(long)]
    first_commit: Option<Timestamp>,
    /// Mean milliseconds between two commits [default: 20000, less for millions].
    #[arg(long)]
    commit_step_millis: Option<u64>,
    /// Compress answers for clients that accept it.
    #[arg(long)]
    gzip: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProfileName {
    Compact,
    Full,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReleaseName {
    #[value(name = "2.16")]
    V2_16,
    #[value(name = "2.31")]
    V2_31,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "sample-cdr: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                let _ = write!(stderr, ": {inner}");
                cause = inner.source();
            }
            let _ = writeln!(stderr);
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    // Before anything is printed, so that a signal right after `ready` is not lost.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut cdr = SampleCdr::builder()
        .port(options.port)
        .compositions(options.compositions)
        .seed(options.seed)
        .gzip(options.gzip)
        .profile(match options.profile {
            ProfileName::Compact => Profile::Compact,
            ProfileName::Full => Profile::Full,
        })
        .release(match options.release {
            ReleaseName::V2_16 => Release::Ehrbase2_16,
            ReleaseName::V2_31 => Release::Ehrbase2_31,
        });
    if let Some(patients) = options.patients {
        cdr = cdr.patients(patients);
    }
    if let (Some(user), Some(password)) = (&options.user, &options.password) {
        cdr = cdr.auth(user, password);
    }
    if let Some(at) = options.clock {
        cdr = cdr.clock(Clock::Fixed(at));
    }
    if let Some(at) = options.first_commit {
        cdr = cdr.first_commit(at);
    }
    if let Some(millis) = options.commit_step_millis {
        cdr = cdr.commit_step(Duration::from_millis(millis));
    }
    let running = cdr.start().await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready {}", running.base_url())?;
    stdout.flush()?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    running.shutdown().await?;
    Ok(())
}
