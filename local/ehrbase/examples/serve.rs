//! Starts PostgreSQL and EHRbase with the corpus, prints how to reach them as
//! JSON, and keeps them until standard input ends. With a number, EHRbase holds
//! that many compositions.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Read;

use atlas_ehrbase::{EhrBase, Filled, Postgres, corpus, filled};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = corpus::folder()?;
    let (Filled { ehrbase, postgres }, loaded) = match std::env::args().nth(1) {
        Some(total) => {
            let progress = |done: usize| {
                if done.is_multiple_of(1_000) {
                    eprintln!("{done} compositions loaded");
                }
            };
            let filled = filled(&corpus, total.parse()?, false, progress).await?;
            (filled, None)
        }
        None => {
            let postgres = Postgres::start().await?;
            let ehrbase = EhrBase::start(&postgres).await?;
            let loaded = corpus::load(&ehrbase, &corpus).await?;
            (Filled { ehrbase, postgres }, Some(loaded))
        }
    };
    let servers = json!({
        "postgres": postgres.connection_string("postgres"),
        "ehrbase": ehrbase.access(),
        "loaded": loaded,
    });
    println!("{servers}");
    // Whoever started this closes the pipe when done.
    let _ = std::io::stdin().read(&mut [0])?;
    Ok(())
}
