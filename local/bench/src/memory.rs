//! Peak memory of an export from the sample CDR into SQLite: it must not grow
//! with the size of the source.

use std::process::Stdio;

use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::program;
use crate::report;
use xtask::{Result, say};

#[derive(Args)]
pub(crate) struct Options {
    /// Sizes of the source, in compositions of about 2 KB
    #[arg(long, value_delimiter = ',', default_values_t = [20_000, 1_000_000])]
    compositions: Vec<u64>,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    program::build(&["atlas", "atlas-sample-cdr"])?;
    let folder = tempfile::tempdir()?;
    let mut lines = vec![
        "`atlas export` of the sample CDR into SQLite with the default settings. Target: 100 MiB at any size."
            .to_owned(),
        String::new(),
        "| compositions | seconds | compositions/s | peak memory MiB |".to_owned(),
        "|---|---|---|---|".to_owned(),
    ];
    for compositions in options.compositions.iter().copied() {
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
        let config = folder.path().join(format!("{compositions}.toml"));
        let database = config.with_extension("db");
        std::fs::write(
            &config,
            format!("[openehr]\nbase_url = {base_url:?}\n\n[sqlite]\npath = {database:?}\n"),
        )?;
        let run = program::export(&config).await?;
        source.kill().await?;
        std::fs::remove_file(&database)?;
        let seconds = run.time.as_secs_f64();
        let line = format!(
            "| {compositions} | {seconds:.1} | {:.0} | {:.1} |",
            compositions as f64 / seconds,
            run.peak_bytes as f64 / f64::from(1 << 20)
        );
        say(&line);
        lines.push(line);
    }
    report::write("memory", "Peak memory", &lines.join("\n"))
}
