//! Rate and peak memory of an export from the sample CDR into each store: neither may suffer from the size of the source.

use std::process::Stdio;

use atlas_ehrbase::Postgres;
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::program::{self, Store};
use crate::report;
use xtask::{Result, say};

#[derive(Args)]
pub(crate) struct Options {
    /// Sizes of the source, in compositions of about 2 KB
    #[arg(long, value_delimiter = ',', default_values_t = [20_000, 100_000, 1_000_000])]
    compositions: Vec<u64>,
    /// What the rates are compared with
    #[arg(long, default_value_t = 100_000)]
    base: u64,
    /// Stores to export into
    #[arg(long = "store", value_enum, value_delimiter = ',', default_values = ["sqlite", "postgresql"])]
    stores: Vec<Store>,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    program::build(&["atlas", "atlas-sample-cdr"])?;
    let server = Postgres::start().await?;
    let mut lines = vec![
        format!(
            "`atlas export` of the sample CDR with the default settings; the sample CDR and PostgreSQL (without durability) run on the \
             same machine. Ratio = rate / rate at {}. Targets: 0.8, and 100 MiB.",
            options.base
        ),
        String::new(),
        "| store | compositions | seconds | compositions/s | ratio | peak memory MiB |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for store in options.stores.iter().copied() {
        let mut base = None;
        for compositions in options.compositions.iter().copied() {
            let run = measure(store, &server, compositions).await?;
            let seconds = run.time.as_secs_f64();
            let rate = compositions as f64 / seconds;
            if compositions == options.base {
                base = Some(rate);
            }
            let line = format!(
                "| {} | {compositions} | {seconds:.1} | {rate:.0} | {} | {:.1} |",
                store.name(),
                base.map_or_else(String::new, |base| format!("{:.2}", rate / base)),
                run.peak_bytes as f64 / f64::from(1 << 20)
            );
            say(&line);
            lines.push(line);
        }
    }
    report::write("memory", "Rate and memory at size", &lines.join("\n"))
}

/// One export into an empty store.
async fn measure(store: Store, server: &Postgres, compositions: u64) -> Result<program::Run> {
    let folder = tempfile::tempdir()?;
    let number = compositions.to_string();
    let arguments = ["--port=0", "--profile=compact", "--compositions", &number];
    let mut source = program::program("sample-cdr", &arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = source.stdout.take().ok_or("the sample CDR has no output")?;
    let ready = BufReader::new(output).lines().next_line().await?;
    let base_url = ready
        .as_deref()
        .and_then(|line| line.strip_prefix("ready "))
        .ok_or("the sample CDR did not say where it is")?;
    let config = folder.path().join("atlas.toml");
    let (target, into) = store.settings(folder.path(), server).await?;
    std::fs::write(
        &config,
        format!("{target}\n[openehr]\nbase_url = {base_url:?}\n\n{into}"),
    )?;
    let run = program::export(&config).await?;
    source.kill().await?;
    Ok(run)
}
