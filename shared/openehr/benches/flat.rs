//! From page bytes to FLAT bytes over the looped corpus: parse, walk and write apart and together.
//!
//! `ATLAS_CORPUS=… cargo bench -p atlas-openehr`. One iteration is the whole corpus; items per
//! second are compositions, allocations per iteration are divided by their number.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use atlas_openehr::flat::{FlattenedWriter, Ids, JsonWriter, Key, Plan, Sink, Value, Walker};
use atlas_openehr::json::{Tape, checksum, doubled_member, minify};
use atlas_openehr::webtemplate::WebTemplate;
use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};
use std::collections::HashMap;
use std::fs;
use std::sync::LazyLock;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

struct Corpus {
    plans: Vec<Plan>,
    templates: Vec<String>,
    /// A composition and the index of its plan.
    compositions: Vec<(String, usize)>,
}

static CORPUS: LazyLock<Corpus> = LazyLock::new(|| {
    let folder = atlas_machine::corpus().unwrap();
    let mut corpus = Corpus {
        plans: Vec::new(),
        templates: Vec::new(),
        compositions: Vec::new(),
    };
    let mut known = HashMap::new();
    for row in fs::read_to_string(folder.join("pairs.tsv"))
        .unwrap()
        .lines()
        .skip(1)
    {
        let mut row = row.split('\t');
        let (stem, template) = (row.next().unwrap(), row.next().unwrap());
        let plan = *known.entry(template.to_owned()).or_insert_with(|| {
            let text =
                fs::read_to_string(folder.join(format!("webtemplate/{template}.json"))).unwrap();
            let plan = Plan::compile(&WebTemplate::parse(&text).unwrap(), Ids::Ehrbase).unwrap();
            corpus.plans.push(plan);
            corpus.templates.push(text);
            corpus.plans.len() - 1
        });
        let text = fs::read_to_string(folder.join(format!("canonical/{stem}.json"))).unwrap();
        corpus.compositions.push((text, plan));
    }
    corpus
});

impl Corpus {
    fn bytes(&self) -> BytesCount {
        BytesCount::new(
            self.compositions
                .iter()
                .map(|(text, _)| text.len())
                .sum::<usize>(),
        )
    }

    fn items(&self) -> ItemsCount {
        ItemsCount::new(self.compositions.len())
    }

    fn tapes(&self) -> Vec<Tape> {
        self.compositions
            .iter()
            .map(|(text, _)| Tape::parse(text).unwrap())
            .collect()
    }
}

fn main() {
    eprintln!(
        "{} compositions, {} templates",
        CORPUS.compositions.len(),
        CORPUS.plans.len()
    );
    divan::main();
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let mut tape = Tape::new();
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for (text, _) in &CORPUS.compositions {
                tape.reparse(black_box(text)).unwrap();
            }
        });
}

/// Counts keys, so that what is measured is the walk alone.
struct Count(usize);

impl Sink for Count {
    fn emit(&mut self, key: Key<'_>, value: Value<'_>) {
        black_box((key.path, key.suffix, value.data));
        self.0 += 1;
    }
}

#[divan::bench]
fn walk(bencher: Bencher<'_, '_>) {
    let tapes = CORPUS.tapes();
    let mut walker = Walker::new();
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            let mut count = Count(0);
            for ((text, plan), tape) in CORPUS.compositions.iter().zip(&tapes) {
                CORPUS.plans[*plan]
                    .walk(&mut walker, tape.root(text), None, &mut count)
                    .unwrap();
            }
            count.0
        });
}

#[divan::bench]
fn walk_and_write(bencher: Bencher<'_, '_>) {
    let tapes = CORPUS.tapes();
    let (mut walker, mut writer) = (Walker::new(), JsonWriter::new());
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for ((text, plan), tape) in CORPUS.compositions.iter().zip(&tapes) {
                black_box(
                    writer
                        .write(&CORPUS.plans[*plan], &mut walker, tape.root(text), None)
                        .unwrap(),
                );
            }
        });
}

#[divan::bench]
fn bytes_to_flat(bencher: Bencher<'_, '_>) {
    let (mut tape, mut walker, mut writer) = (Tape::new(), Walker::new(), JsonWriter::new());
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for (text, plan) in &CORPUS.compositions {
                tape.reparse(text).unwrap();
                black_box(
                    writer
                        .write(&CORPUS.plans[*plan], &mut walker, tape.root(text), None)
                        .unwrap(),
                );
            }
        });
}

#[divan::bench]
fn bytes_to_flattened(bencher: Bencher<'_, '_>) {
    let (mut tape, mut walker, mut writer) = (Tape::new(), Walker::new(), FlattenedWriter::new());
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for (text, plan) in &CORPUS.compositions {
                tape.reparse(text).unwrap();
                black_box(
                    writer
                        .write(&CORPUS.plans[*plan], &mut walker, tape.root(text), None)
                        .unwrap(),
                );
            }
        });
}

/// All 78 templates: what a cold worker pays at most.
#[divan::bench]
fn compile(bencher: Bencher<'_, '_>) {
    bencher
        .counter(ItemsCount::new(CORPUS.templates.len()))
        .bench_local(|| {
            for text in &CORPUS.templates {
                black_box(Plan::compile(&WebTemplate::parse(text).unwrap(), Ids::Ehrbase).unwrap());
            }
        });
}

#[divan::bench]
fn checksums(bencher: Bencher<'_, '_>) {
    let tapes = CORPUS.tapes();
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for ((text, _), tape) in CORPUS.compositions.iter().zip(&tapes) {
                black_box(checksum(tape.root(text)));
            }
        });
}

#[divan::bench]
fn minified(bencher: Bencher<'_, '_>) {
    let tapes = CORPUS.tapes();
    let mut out = String::new();
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for ((text, _), tape) in CORPUS.compositions.iter().zip(&tapes) {
                out.clear();
                minify(tape.root(text), &mut out);
                black_box(&out);
            }
        });
}

#[divan::bench]
fn doubled_members(bencher: Bencher<'_, '_>) {
    let tapes = CORPUS.tapes();
    bencher
        .counter(CORPUS.items())
        .counter(CORPUS.bytes())
        .bench_local(|| {
            for ((text, _), tape) in CORPUS.compositions.iter().zip(&tapes) {
                black_box(doubled_member(tape.root(text)));
            }
        });
}
