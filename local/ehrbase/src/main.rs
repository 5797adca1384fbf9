//! Starts PostgreSQL and EHRbase with the corpus, and keeps them until standard input ends.
//!
//! One line on standard output says that they are ready: a JSON object of the environment variables by which tests find
//! them ([`ENV_POSTGRES`], [`ENV_EHRBASE`]). Standard error says what is going on. With a number as the argument, EHRbase
//! holds that many compositions; tests cannot use it then.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Read;
use std::process::ExitCode;

use atlas_ehrbase::{
    ENV_EHRBASE, ENV_POSTGRES, EhrBase, Filled, Filling, Postgres, Result, SharedEhrBase, chain,
    corpus, filled,
};
use serde_json::json;

#[tokio::main]
async fn main() -> ExitCode {
    let served = match std::env::args().nth(1) {
        None => serve_corpus().await,
        Some(total) => match total.parse() {
            Ok(total) => serve_many(total).await,
            Err(_) => {
                eprintln!("usage: atlas-test-servers [COMPOSITIONS]");
                return ExitCode::from(2);
            }
        },
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn serve_corpus() -> Result<()> {
    let corpus = corpus::folder()?;
    eprintln!("servers: PostgreSQL starts");
    let postgres = Postgres::start().await?;
    eprintln!("servers: EHRbase starts (its program is built first, if the cache has none)");
    let ehrbase = EhrBase::start(&postgres).await?;
    eprintln!("servers: the corpus is loaded");
    let loaded = corpus::load(&ehrbase, &corpus).await?;
    let shared = SharedEhrBase::write(&ehrbase, &loaded)?;
    eprintln!(
        "servers: ready with {} templates and {} compositions, {} of them unreadable",
        loaded.templates.len(),
        loaded.compositions.len(),
        loaded.unreadable().count()
    );
    println!(
        "{}",
        json!({
            ENV_POSTGRES: postgres.connection_string("postgres"),
            ENV_EHRBASE: shared.variable()?,
        })
    );
    wait_for_the_end();
    Ok(())
}

async fn serve_many(total: usize) -> Result<()> {
    let progress = |done: usize| {
        if done.is_multiple_of(1_000) {
            eprintln!("servers: {done} compositions loaded");
        }
    };
    let filling = Filling::Corpus(total);
    let Filled { ehrbase, postgres } = filled(&corpus::folder()?, filling, progress).await?;
    println!(
        "{}",
        json!({
            "postgres": postgres.connection_string("postgres"),
            "ehrbase": ehrbase.access(),
        })
    );
    wait_for_the_end();
    Ok(())
}

/// The process that started this one closes the pipe, or ends, which closes it too.
fn wait_for_the_end() {
    let _ = std::io::stdin().read(&mut [0]);
}
