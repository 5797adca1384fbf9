//! What can be typed. Names and flags stay stable; exit codes are in [`crate::failure::Exit`].

use std::path::PathBuf;

use atlas_openehr::flat::Ids;
use atlas_runtime::settings::{LogLevel, Override, UnknownLogLevel};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Keeps a copy of an openEHR server in SQL: complete, current, private and provably so.
#[derive(Debug, Parser)]
#[command(name = "atlas", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  complete                          4  source or store unreachable or refused
  1  partial: failed or quarantined    5  internal error
  2  usage or configuration            6  held by another run
  3  verification found differences    130, 143  interrupted (SIGINT, SIGTERM)

Messages go to stderr, results to stdout; with --json a result is one JSON document.
New here? `atlas demo` needs nothing.";

/// Before or after the subcommand.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Configuration file
    #[arg(
        short,
        long,
        global = true,
        env = "ATLAS_CONFIG",
        value_name = "FILE",
        default_value = "atlas.toml"
    )]
    pub(crate) config: PathBuf,
    /// Least severe log lines to show: error, warn, info, debug or trace
    #[arg(long, global = true, env = "ATLAS_LOG_LEVEL", value_name = "LEVEL", value_parser = log_level)]
    pub(crate) log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try everything in a minute: a sample server in this process, a copy of it in an SQLite file
    Demo(Demo),
    /// Write a commented configuration; asks on a terminal
    Init(Init),
    /// Check the configuration without any connection
    ValidateConfig(ValidateConfig),
    /// Check the configuration online: server, credentials, abilities, store, clock
    Doctor(Doctor),
    /// Make the tables of the copy, or bring them up to date, as their owner; nothing is copied
    Prepare(Prepare),
    /// List the templates of the server with counts, commit times and sizes
    Discover(Discover),
    /// Bring the copy up to date
    Export(Export),
    /// Show how far the copy is: watermarks, lag, slices, quarantine, last runs
    Status(Status),
    /// Keep the copy up to date until a signal: schedule, workers and the on-demand API in one process
    Serve,
    /// Look after compositions that could not be copied
    #[command(subcommand)]
    Quarantine(Quarantine),
    /// Convert canonical JSON to FLAT without a server, one document a line
    Flat(Flat),
    /// Print the SQL that gives a PostgreSQL role the rights that an export needs
    Grants(Grants),
    /// Print completions for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Folder for the copy
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Compositions on the sample server
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub(crate) compositions: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to write
    #[arg(short, long, value_name = "FILE", default_value = "atlas.toml")]
    pub(crate) output: PathBuf,
    /// Add every key with its default, commented out
    #[arg(long)]
    pub(crate) with_examples: bool,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateConfig {
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Compositions of each template whose FLAT is compared with the server's own; 0 compares none
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) flat_sample: usize,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Prepare {
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Discover {
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// `incremental` reads what is new, `full` everything again [default: export.mode]
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<String>,
    /// Templates to export, separated by commas [default: openehr.query.template_ids]
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) template_id: Option<Vec<String>>,
    /// EHRs to export, separated by commas [default: openehr.query.ehr_ids]
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) ehr_id: Option<Vec<String>>,
    /// Commit times from here on: a date, or a date and time
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Commit times before this
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// Plan and count, but copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask before reading everything again
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Refused: de-identification does not exist yet
    #[arg(long, hide = true)]
    pub(crate) anonymize: bool,
    /// Refused: de-identification does not exist yet
    #[arg(long, hide = true, value_name = "MODE")]
    pub(crate) anonymize_mode: Option<String>,
    /// Refused: de-identification does not exist yet
    #[arg(long, hide = true)]
    pub(crate) anonymize_dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Templates to show, separated by commas
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) template_id: Option<Vec<String>>,
    /// The copy that was made of these EHRs only [default: openehr.query.ehr_ids]
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) ehr_id: Option<Vec<String>>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// What is in quarantine, and why
    List(QuarantineList),
    /// Everything about one entry
    Show(QuarantineShow),
    /// Try the entries again now; an export does so once a day
    Retry(QuarantineRetry),
}

#[derive(Debug, Args)]
pub(crate) struct QuarantineList {
    /// Only this template
    #[arg(long, value_name = "ID")]
    pub(crate) template_id: Option<String>,
    /// Show the uid of each composition, to find it on the server. Handle the output as personal data
    #[arg(long)]
    pub(crate) uids: bool,
    /// Entries at most, the longest untried first
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QuarantineShow {
    /// Version uid or object id, as `quarantine list --uids` prints it
    pub(crate) uid: String,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QuarantineRetry {
    /// Only these templates, separated by commas
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub(crate) template_id: Option<Vec<String>>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Flat {
    /// The web template of the compositions, as the server serves it
    #[arg(long, value_name = "FILE")]
    pub(crate) web_template: PathBuf,
    /// Compositions in canonical JSON, one a file; without any, stdin: one a line, or indented from a `{` to a `}`
    #[arg(value_name = "COMPOSITION")]
    pub(crate) compositions: Vec<PathBuf>,
    /// Names of nodes that the template has twice
    #[arg(long, value_enum, default_value_t = FlatIds::Ehrbase)]
    pub(crate) ids: FlatIds,
    /// Names that SQL likes
    #[arg(long)]
    pub(crate) flatten: bool,
    /// Tell on stderr what FLAT does not carry: each leaf with its path, then the counts
    #[arg(long)]
    pub(crate) loss: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlatIds {
    /// As EHRbase names them
    Ehrbase,
    /// As the template does, always
    Template,
}

impl From<FlatIds> for Ids {
    fn from(ids: FlatIds) -> Self {
        match ids {
            FlatIds::Ehrbase => Self::Ehrbase,
            FlatIds::Template => Self::Template,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Grants {
    /// The role that will export
    #[arg(long)]
    pub(crate) role: String,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Checked here, because not every command reads settings. An empty variable says nothing.
fn log_level(text: &str) -> Result<String, UnknownLogLevel> {
    if !text.trim().is_empty() {
        text.parse::<LogLevel>()?;
    }
    Ok(text.trim().to_owned())
}

impl Global {
    pub(crate) fn overrides(&self) -> Vec<Override> {
        let level = given(
            "application.log_level",
            "--log-level",
            self.log_level.clone(),
        );
        level.into_iter().collect()
    }
}

impl Export {
    pub(crate) fn overrides(&self) -> Vec<Override> {
        let dry_run = self.dry_run.then(|| "true".to_owned());
        [
            given("export.mode", "--mode", self.mode.clone()),
            given(
                "openehr.query.template_ids",
                "--template-id",
                list(&self.template_id),
            ),
            given("openehr.query.ehr_ids", "--ehr-id", list(&self.ehr_id)),
            given(
                "openehr.query.time_range_start",
                "--from",
                self.from.clone(),
            ),
            given("openehr.query.time_range_end", "--to", self.to.clone()),
            given("export.dry_run", "--dry-run", dry_run),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub(crate) fn wants_anonymization(&self) -> bool {
        self.anonymize || self.anonymize_mode.is_some() || self.anonymize_dry_run
    }
}

impl Status {
    pub(crate) fn overrides(&self) -> Vec<Override> {
        given("openehr.query.ehr_ids", "--ehr-id", list(&self.ehr_id))
            .into_iter()
            .collect()
    }
}

impl QuarantineRetry {
    pub(crate) fn overrides(&self) -> Vec<Override> {
        given(
            "openehr.query.template_ids",
            "--template-id",
            list(&self.template_id),
        )
        .into_iter()
        .collect()
    }
}

fn given(key: &'static str, flag: &'static str, value: Option<String>) -> Option<Override> {
    Some(Override {
        key,
        flag,
        value: value?,
    })
}

fn list(values: &Option<Vec<String>>) -> Option<String> {
    let values = values.as_ref()?;
    Some(serde_json::Value::from(values.clone()).to_string())
}
