//! Full exports of a real EHRbase into each store, each beside a bare download
//! of the same pages, interleaved so that both see the same machine.

use atlas_ehrbase::{Filling, Postgres, corpus, filled};
use clap::Args;

use crate::download::{Download, FETCH, Order, Pages};
use crate::program::{self, Run, Setting, Store, Summary};
use crate::report::{self, Spread};
use xtask::{Result, say};

#[derive(Args)]
pub(crate) struct Options {
    /// Compositions in the EHRbase
    #[arg(long, default_value_t = 20_000)]
    compositions: usize,
    /// Exports into each store, each beside a download
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Stores to export into
    #[arg(long = "store", value_enum, value_delimiter = ',', default_values = ["sqlite", "postgresql"])]
    stores: Vec<Store>,
}

/// Like for like with the download, with and without conversion, and what a user gets who sets nothing.
const SETTINGS: [Setting; 3] = [
    Setting {
        readers: 1,
        format: "canonical",
    },
    Setting {
        readers: 1,
        format: "preserve",
    },
    Setting {
        readers: 2,
        format: "preserve",
    },
];

struct Pair {
    store: Store,
    setting: Setting,
    download: Download,
    export: Run,
    summary: Summary,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.export.time.as_secs_f64() / self.download.time.as_secs_f64()
    }
}

pub(crate) async fn run(options: &Options) -> Result<()> {
    program::build(&["atlas"])?;
    let corpus = corpus::folder()?;
    let filling = Filling::Corpus(options.compositions);
    let source = filled(&corpus, filling, report::loaded).await?;
    // Of its own, so that the source's database has no other work.
    let target = Postgres::start().await?;
    let folder = tempfile::tempdir()?;
    let pages = Pages::plan(&source.ehrbase, Order::Templates).await?;
    say(&format!(
        "{} compositions in {} pages",
        pages.compositions,
        pages.len()
    ));

    // Warms the server up: its first answers are compiled while they are made.
    pages.download(&source.ehrbase).await?;
    let mut pairs = Vec::new();
    for number in 0..options.pairs {
        for (store, setting) in combinations(options) {
            let config = program::configure(
                folder.path(),
                store,
                setting,
                source.ehrbase.access(),
                &target,
            )
            .await?;
            // Who goes first changes, so that neither gains by its place.
            let (download, export) = if number % 2 == 0 {
                let download = pages.download(&source.ehrbase).await?;
                (download, program::export(&config).await?)
            } else {
                let export = program::export(&config).await?;
                (pages.download(&source.ehrbase).await?, export)
            };
            let summary = export.summary(pages.compositions)?;
            let pair = Pair {
                store,
                setting,
                download,
                export,
                summary,
            };
            say(&format!(
                "{store:?} {setting:?} {number}: download {:.2} s, export {:.2} s, ratio {:.3}, peak {} MiB",
                pair.download.time.as_secs_f64(),
                pair.export.time.as_secs_f64(),
                pair.ratio(),
                pair.export.peak_bytes >> 20
            ));
            pairs.push(pair);
        }
    }
    report::write(
        "export",
        "Export beside a bare download",
        &table(options, &pages, &pairs),
    )
}

fn combinations(options: &Options) -> impl Iterator<Item = (Store, Setting)> {
    let stores = options.stores.iter().copied();
    stores.flat_map(|store| SETTINGS.map(|setting| (store, setting)))
}

fn table(options: &Options, pages: &Pages, pairs: &[Pair]) -> String {
    let mebibytes = pairs.first().map_or(0, |pair| pair.download.bytes >> 20);
    let mut lines = vec![
        format!(
            "Real EHRbase on this machine with {} compositions ({mebibytes} MiB of answers in {} pages of at most \
             {FETCH}, template by template), one after the other; {} pairs for each row, interleaved; PostgreSQL without \
             durability. Ratio = wall time of `atlas export` (start of the process to its end) / wall time of \
             downloading the same pages and dropping them. Target: 1.1, and 100 MiB.",
            pages.compositions,
            pages.len(),
            options.pairs
        ),
        String::new(),
        "| store | format | readers | download s, median | export s, median | ratio min | median | max | peak memory MiB | requests, MiB read |".to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for (store, setting) in combinations(options) {
        let of = || {
            pairs
                .iter()
                .filter(|pair| (pair.store, pair.setting) == (store, setting))
        };
        let spreads = (
            Spread::of(of().map(|pair| pair.download.time.as_secs_f64())),
            Spread::of(of().map(|pair| pair.export.time.as_secs_f64())),
            Spread::of(of().map(Pair::ratio)),
        );
        let peak = of()
            .map(|pair| pair.export.peak_bytes)
            .max()
            .unwrap_or_default();
        if let (Some(download), Some(export), Some(ratio)) = spreads {
            lines.push(format!(
                "| {} | {} | {} | {:.2} | {:.2} | {:.3} | {:.3} | {:.3} | {:.1} | {} |",
                store.name(),
                setting.format,
                setting.readers,
                download.median,
                export.median,
                ratio.min,
                ratio.median,
                ratio.max,
                peak as f64 / f64::from(1 << 20),
                of().next().map_or_else(String::new, |pair| format!(
                    "{}, {}",
                    pair.summary.source_requests,
                    pair.summary.source_bytes >> 20
                )),
            ));
        }
    }
    lines.join("\n")
}
