//! What the fuzz targets in `fuzz/` do, deterministic and short: parser, plan compiler and walker
//! get mutated texts and neither panic nor write anything but JSON without doubled keys.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, missing_docs)]
#![allow(unreachable_pub)]

mod flat_support;

use atlas_openehr::flat::{FlattenedWriter, Ids, JsonWriter, Loss, Plan, Walker};
use atlas_openehr::json::{Node, Tape};
use atlas_openehr::webtemplate::WebTemplate;
use flat_support::{composition, corpus, dv_text, element, facts, plan, template};
use serde_json::json;

/// Our own example and, where there is a corpus, a spread of its compositions with their templates.
fn seeds() -> Vec<(String, String)> {
    let items = json!([
        element(
            "at0005",
            "Rate unit",
            dv_text("a \"quoted\" \u{1F600} text")
        ),
        element(
            "at0004",
            "Rate",
            json!({ "_type": "DV_QUANTITY", "magnitude": 1e-7, "units": "/min" })
        )
    ]);
    let mut seeds = vec![(
        template().to_string(),
        composition(items, json!([])).to_string(),
    )];
    if let Some(corpus) = corpus() {
        let pairs = corpus
            .pairs()
            .into_iter()
            .filter(|pair| pair.canonical.len() < 30_000)
            .step_by(9);
        seeds.extend(pairs.map(|pair| (corpus.template(&pair.template), pair.canonical)));
    }
    seeds
}

/// Flips, cuts, doubles or inserts a few bytes.
fn damage(text: &str, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random
            .usize(..bytes.len().max(1))
            .min(bytes.len().saturating_sub(1));
        let end = (at + random.usize(..16)).min(bytes.len());
        match random.u8(..5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => bytes.insert(at, *random.choice(b"{}[]\",:\\u0-9e+.\x00\xFFnt").unwrap()),
            _ if bytes.is_empty() => {}
            _ => bytes[at] ^= 1 << random.u8(..8),
        }
    }
    bytes
}

/// Puts one value of the text in the place of another, so that what comes out still is JSON.
fn transplant(text: &str, random: &mut fastrand::Rng) -> String {
    let tape = Tape::parse(text).unwrap();
    let mut values = Vec::new();
    let mut pending = vec![tape.root(text)];
    while let Some(value) = pending.pop() {
        values.push(value);
        pending.extend(value.items().chain(value.members().map(|(_, value)| value)));
    }
    let (from, to): (Node<'_>, Node<'_>) = (
        values[random.usize(..values.len())],
        values[random.usize(..values.len())],
    );
    let to = to.span();
    [&text[..to.start], from.raw(), &text[to.end..]].concat()
}

fn walk(plan: &Plan, text: &str) {
    let tape = Tape::parse(text).unwrap();
    let root = tape.root(text);
    let mut walker = Walker::new();
    let Ok(keys) = JsonWriter::new()
        .write(plan, &mut walker, root, None)
        .map(|made| facts(made).len())
    else {
        return;
    };
    let mut writer = FlattenedWriter::new();
    assert_eq!(
        facts(writer.write(plan, &mut walker, root, None).unwrap()).len(),
        keys
    );
    let mut loss = Loss::with_leaves();
    JsonWriter::new()
        .write_with_loss(plan, &mut walker, root, None, &mut loss)
        .unwrap();
    assert_eq!(loss.leaves().len() as u64, loss.lost());
}

#[test]
fn damaged_json_is_parsed_or_refused() {
    let mut random = fastrand::Rng::with_seed(11);
    for (template, composition) in seeds() {
        for _ in 0..20 {
            for text in [&template, &composition] {
                let bytes = damage(text, &mut random);
                let text = String::from_utf8_lossy(&bytes);
                if let Ok(tape) = Tape::parse(&text) {
                    serde_json::from_str::<serde::de::IgnoredAny>(&text).unwrap();
                    assert_eq!(
                        tape.root(&text).raw(),
                        text.trim_matches([' ', '\t', '\r', '\n'])
                    );
                }
            }
        }
    }
}

#[test]
fn a_mutated_template_is_compiled_or_refused() {
    let mut random = fastrand::Rng::with_seed(12);
    let mut compiled = 0;
    for (template, composition) in seeds() {
        for _ in 0..12 {
            let mutated = transplant(&template, &mut random);
            let Ok(template) = WebTemplate::parse(&mutated) else {
                continue;
            };
            for ids in [Ids::Ehrbase, Ids::Template] {
                if let Ok(plan) = Plan::compile(&template, ids) {
                    walk(&plan, &composition);
                    compiled += 1;
                }
            }
        }
    }
    assert!(compiled > 0);
}

#[test]
fn a_mutated_composition_is_walked_or_refused() {
    let mut random = fastrand::Rng::with_seed(13);
    for (template, composition) in seeds() {
        let plan = plan(&template, Ids::Ehrbase);
        let mut text = composition.clone();
        for round in 0..30 {
            if round % 5 == 0 || text.len() > 200_000 {
                text.clone_from(&composition);
            }
            text = transplant(&text, &mut random);
            walk(&plan, &text);
        }
    }
}
