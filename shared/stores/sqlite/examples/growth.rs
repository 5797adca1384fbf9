//! How fast a file takes rows while it grows, and in how much memory: `growth [rows] [folder]`. Rows of about 1 KB under random
//! uuids, in pages of 400, template after template; only the commits are timed. Prints one line for each 100,000 rows.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use atlas_engine::model::Meta;
use atlas_openehr::id::{EhrId, TemplateId, VersionUid};
use atlas_store_sqlite::SqliteStore;
use atlas_store_suite::fixture::{Draft, at, begin};
use fastrand::Rng;

const PAGE: u64 = 400;
const EACH: u64 = 100_000;
const ROWS_PER_TEMPLATE: u64 = 250_000;
const ROWS_PER_EHR: u64 = 25;

fn uuid(rng: &mut Rng) -> String {
    let hex = format!("{:032x}", rng.u128(..));
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

fn meta(rng: &mut Rng, number: u64, ehrs: &[EhrId]) -> Meta {
    Meta {
        uid: VersionUid::parse(&format!("{}::cdr.example.org::1", uuid(rng))).unwrap(),
        ehr: rng.choice(ehrs).unwrap().clone(),
        template: TemplateId::new(&format!("Vital signs.v{}", number / ROWS_PER_TEMPLATE)),
        committed: at(number),
        position: None,
        change_type: "creation".to_owned(),
    }
}

/// The most memory that this process ever held, as Linux counts it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("VmHWM: unknown").to_owned()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let rows = arguments
        .next()
        .map_or(1_000_000, |rows| rows.parse().unwrap());
    let folder = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let path = folder.path().join("atlas.db");
    let store = SqliteStore::new(&path).unwrap();
    let mut slice = begin(&store).await;
    let mut rng = Rng::with_seed(1);
    let ehrs: Vec<EhrId> = (0..rows / ROWS_PER_EHR)
        .map(|_| EhrId::new(&uuid(&mut rng)))
        .collect();
    let filler = "blood pressure ".repeat(60);
    let mut number = 0;
    let mut took = Duration::ZERO;
    let mut first = None;
    while number < rows {
        let mut page = Draft::plain();
        for _ in 0..PAGE {
            let content = format!(
                r#"{{"number":{number},"text":"{filler}","id":"{:x}"}}"#,
                rng.u64(..)
            );
            page = page.row(meta(&mut rng, number, &ehrs), &content);
            number += 1;
        }
        let begun = Instant::now();
        slice = page.commit(&store, &slice).await;
        took += begun.elapsed();
        if number % EACH == 0 {
            let rate = EACH as f64 / took.as_secs_f64();
            let first = *first.get_or_insert(rate);
            println!(
                "{number:>9} rows  {rate:>7.0}/s  {:.2} of the first  {}",
                rate / first,
                peak()
            );
            took = Duration::ZERO;
        }
    }
    let size = std::fs::metadata(&path).map_or(0, |file| file.len());
    println!("{} MiB in the file", size >> 20);
}
