//! Every pair of the conformance corpus: the FLAT made here equals the FLAT that EHRbase made, in
//! keys, values and number text. There is no list of exceptions.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, missing_docs)]
#![allow(unreachable_pub)]

mod flat_support;

use atlas_openehr::flat::{Ids, JsonWriter, Walker};
use atlas_openehr::json::Tape;
use flat_support::{Corpus, Pair, corpus, facts};

fn compare(corpus: &Corpus, pairs: &[Pair]) {
    let plans = corpus.plans(Ids::Ehrbase);
    // One walker and one writer for all: nothing of a composition may stay behind in them.
    let (mut tape, mut walker, mut writer) = (Tape::new(), Walker::new(), JsonWriter::new());
    let mut different = Vec::new();
    for pair in pairs {
        tape.reparse(&pair.canonical).unwrap();
        let made = writer
            .write(
                &plans[&pair.template],
                &mut walker,
                tape.root(&pair.canonical),
                None,
            )
            .unwrap();
        let (made, expected) = (facts(made), facts(&pair.flat));
        if made == expected {
            continue;
        }
        let mut report = format!("{} ({})", pair.name, pair.template);
        for (key, value) in &expected {
            match made.get(key) {
                None => report.push_str(&format!("\n  missing {key} = {value}")),
                Some(other) if other != value => {
                    report.push_str(&format!(
                        "\n  {key}\n    expected {value}\n    made     {other}"
                    ));
                }
                Some(_) => {}
            }
        }
        for (key, value) in made.iter().filter(|(key, _)| !expected.contains_key(*key)) {
            report.push_str(&format!("\n  surplus {key} = {value}"));
        }
        different.push(report);
    }
    println!(
        "{} of {} pairs are equal",
        pairs.len() - different.len(),
        pairs.len()
    );
    let few = &different[..different.len().min(20)];
    assert!(
        few.is_empty(),
        "{} of {} pairs differ:\n{}",
        different.len(),
        pairs.len(),
        few.join("\n")
    );
}

#[test]
fn every_pair_of_the_corpus_is_equal() {
    let Some(corpus) = corpus() else { return };
    let pairs = corpus.pairs();
    assert_eq!(pairs.len(), 319);
    compare(&corpus, &pairs);
}

#[test]
fn every_mutant_of_the_corpus_is_equal() {
    let Some(corpus) = corpus() else { return };
    let mutants = corpus.mutants();
    assert_eq!(mutants.len(), 235);
    compare(&corpus, &mutants);
}
