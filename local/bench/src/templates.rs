//! Full exports of a real EHRbase with hundreds of templates, most of them small. Each is beside a bare client that reads
//! everything in the order of its commits and, where compositions are converted, each web template once. A second full run
//! into the same store shows what is asked again.

use std::path::Path;

use atlas_ehrbase::{Access, Filling, Postgres, corpus, filled};
use clap::Args;

use crate::download::{Download, FETCH, Order, Pages};
use crate::program::{self, Setting, Store};
use crate::relay::{Passed, Relay};
use crate::report::{self, Spread};
use xtask::{Result, say};

#[derive(Args)]
pub(crate) struct Options {
    /// Templates that have compositions; no fewer than the corpus has
    #[arg(long, default_value_t = 300)]
    templates: usize,
    /// Compositions of all of them
    #[arg(long, default_value_t = 20_000)]
    compositions: usize,
    /// Exports of each format, each beside the bare client
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Store to export into
    #[arg(long, value_enum, default_value = "sqlite")]
    store: Store,
}

/// Whether the bare client needs web templates, and how the export is configured.
const SETTINGS: [(bool, Setting); 2] = [
    (
        false,
        Setting {
            readers: 1,
            format: "canonical",
        },
    ),
    (
        true,
        Setting {
            readers: 1,
            format: "preserve",
        },
    ),
];

/// One format.
struct Measured {
    setting: Setting,
    downloads: Vec<Download>,
    /// Seconds of an export by seconds of the download beside it.
    ratios: Vec<f64>,
    export_seconds: Vec<f64>,
    peak_bytes: u64,
    first: Passed,
    second: Passed,
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    program::build(&["atlas"])?;
    let filling = Filling::Templates {
        templates: options.templates,
        compositions: options.compositions,
    };
    let source = filled(&corpus::folder()?, filling, report::loaded).await?;
    // Of its own, so that the source's database has no other work.
    let target = Postgres::start().await?;
    let folder = tempfile::tempdir()?;
    let pages = Pages::plan(&source.ehrbase, Order::Commits).await?;
    say(&format!(
        "{} compositions of {} templates in {} pages",
        pages.compositions,
        pages.templates.len(),
        pages.len()
    ));
    // Warms the server up: its first answers are compiled while they are made.
    pages.download(&source.ehrbase).await?;
    pages.download_web_templates(&source.ehrbase).await?;
    let relay = Relay::start(source.ehrbase.access()).await?;

    let mut all = Vec::new();
    for (needs_web_templates, setting) in SETTINGS {
        let mut measured = Measured {
            setting,
            downloads: Vec::new(),
            ratios: Vec::new(),
            export_seconds: Vec::new(),
            peak_bytes: 0,
            first: Passed::default(),
            second: Passed::default(),
        };
        let download = async || -> Result<Download> {
            let read = pages.download(&source.ehrbase).await?;
            Ok(match needs_web_templates {
                true => read + pages.download_web_templates(&source.ehrbase).await?,
                false => read,
            })
        };
        let configure = async |access: &Access| {
            program::configure(folder.path(), options.store, setting, access, &target).await
        };
        for number in 0..options.pairs {
            let config = configure(source.ehrbase.access()).await?;
            // Who goes first changes, so that neither gains by its place.
            let (download, export) = if number % 2 == 0 {
                let download = download().await?;
                (download, program::export(&config).await?)
            } else {
                let export = program::export(&config).await?;
                (download().await?, export)
            };
            export.summary(pages.compositions)?;
            let seconds = export.time.as_secs_f64();
            let ratio = seconds / download.time.as_secs_f64();
            say(&format!(
                "{} {number}: bare {:.2} s, export {seconds:.2} s, ratio {ratio:.3}, peak {} MiB",
                setting.format,
                download.time.as_secs_f64(),
                export.peak_bytes >> 20
            ));
            measured.downloads.push(download);
            measured.ratios.push(ratio);
            measured.export_seconds.push(seconds);
            measured.peak_bytes = measured.peak_bytes.max(export.peak_bytes);
        }
        let config = configure(&relay.access).await?;
        measured.first = count(&relay, &config, &pages, &[]).await?;
        measured.second = count(&relay, &config, &pages, &["--mode", "full"]).await?;
        all.push(measured);
    }
    report::write(
        "templates",
        "Hundreds of templates",
        &table(options, &pages, &all),
    )
}

/// An export through the relay, which must have seen what the export says of itself.
async fn count(relay: &Relay, config: &Path, pages: &Pages, arguments: &[&str]) -> Result<Passed> {
    relay.passed();
    let run = program::export_with(config, arguments).await?;
    let (passed, said) = (
        relay.passed(),
        run.summary(pages.compositions)?.source_requests,
    );
    match passed.requests == said {
        true => Ok(passed),
        false => Err(format!(
            "the export says that it made {said} requests, and {} came by",
            passed.requests
        )
        .into()),
    }
}

fn table(options: &Options, pages: &Pages, all: &[Measured]) -> String {
    let mut lines = vec![
        format!(
            "Real EHRbase on this machine with {} compositions of {} templates ({} were wanted; the corpus' templates under \
             further ids; of the second half as many compositions as of the first, of the third a third, …). The bare \
             client reads everything in the order of its commits, in {} pages of at most {FETCH}, and for `preserve` each web \
             template once; its time and that of `atlas export` into {} (start of the process to its end, one reader) are of \
             the same run, {} pairs for each row, interleaved. The second run is full again, into the same store. Targets: \
             time 1.1, requests 1.2, no web template in the second run, 100 MiB.",
            pages.compositions,
            pages.templates.len(),
            options.templates,
            pages.len(),
            options.store.name(),
            options.pairs,
        ),
        String::new(),
        "| format | bare s, median | export s, median | ratio min | median | max | requests bare | export | ratio \
         | web templates, first run | second run | peak memory MiB |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for one in all {
        let seconds = |download: &Download| download.time.as_secs_f64();
        let spreads = (
            Spread::of(one.downloads.iter().map(seconds)),
            Spread::of(one.export_seconds.iter().copied()),
            Spread::of(one.ratios.iter().copied()),
        );
        let bare = one.downloads.first().map(|download| download.requests);
        if let ((Some(download), Some(export), Some(ratio)), Some(bare)) = (spreads, bare) {
            lines.push(format!(
                "| {} | {:.2} | {:.2} | {:.3} | {:.3} | {:.3} | {bare} | {} | {:.2} | {} | {} | {:.1} |",
                one.setting.format,
                download.median,
                export.median,
                ratio.min,
                ratio.median,
                ratio.max,
                one.first.requests,
                one.first.requests as f64 / bare as f64,
                one.first.web_templates,
                one.second.web_templates,
                one.peak_bytes as f64 / f64::from(1 << 20),
            ));
        }
    }
    lines.join("\n")
}
