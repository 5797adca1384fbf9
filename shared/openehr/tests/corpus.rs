//! What real compositions ask of `json`: nothing lost, nothing rounded, no damage that panics.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use atlas_openehr::json::{Kind, Node, Tape, canonicalize, checksum, minify, unstorable_text};
use serde::de::IgnoredAny;
use std::path::PathBuf;

fn corpus() -> PathBuf {
    atlas_machine::corpus().unwrap()
}

/// Name and text of every JSON file in a folder of the corpus, by name.
fn texts(folder: &str) -> Vec<(String, String)> {
    let folder = corpus().join(folder);
    let entries = std::fs::read_dir(&folder)
        .expect("the corpus is needed: set ATLAS_CORPUS to the folder that holds `canonical`");
    let mut texts: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    texts.sort();
    texts
}

fn minified(node: Node<'_>) -> String {
    let mut out = String::new();
    minify(node, &mut out);
    out
}

fn canonical(node: Node<'_>) -> String {
    let mut out = String::new();
    canonicalize(node, &mut out);
    out
}

/// Every bracket, name and value in the order of the text, as it is written.
fn tokens<'a>(node: Node<'a>, out: &mut Vec<&'a str>) {
    match node.kind() {
        Kind::Array => {
            out.push("[");
            node.items().for_each(|item| tokens(item, out));
            out.push("]");
        }
        Kind::Object => {
            out.push("{");
            for (name, value) in node.members() {
                out.push(name.raw());
                tokens(value, out);
            }
            out.push("}");
        }
        _ => out.push(node.raw()),
    }
}

/// Numbers with the way to them, whatever the order of members.
fn numbers(node: Node<'_>, path: &str, out: &mut Vec<(String, u64)>) {
    for (at, item) in node.items().enumerate() {
        numbers(item, &format!("{path}/{at}"), out);
    }
    for (name, value) in node.members() {
        numbers(value, &format!("{path}/{}", name.as_str().unwrap()), out);
    }
    out.extend(
        node.as_f64()
            .map(|number| (path.to_owned(), number.to_bits())),
    );
}

fn spread(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

#[test]
fn minify_keeps_every_token_of_every_composition() {
    let texts = texts("canonical");
    assert!(texts.len() > 300, "{} compositions", texts.len());
    for (name, text) in &texts {
        let tape = Tape::parse(text).unwrap();
        let short = minified(tape.root(text));
        let again = Tape::parse(&short).unwrap();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        tokens(tape.root(text), &mut before);
        tokens(again.root(&short), &mut after);
        assert_eq!(before, after, "{name}");
        assert_eq!(minified(again.root(&short)), short, "{name}");
        assert!(before.len() > 10, "{name}");
    }
}

#[test]
fn canonical_form_keeps_every_number_to_the_bit() {
    let mut count = 0;
    for (name, text) in texts("canonical") {
        let tape = Tape::parse(&text).unwrap();
        let form = canonical(tape.root(&text));
        let again = Tape::parse(&form).unwrap();
        let (mut before, mut after) = (Vec::new(), Vec::new());
        numbers(tape.root(&text), "", &mut before);
        numbers(again.root(&form), "", &mut after);
        before.sort();
        after.sort();
        assert_eq!(before, after, "{name}");
        count += before.len();
    }
    assert!(count > 1000, "{count} numbers");
}

#[test]
fn checksums_survive_pretty_printing_and_sorting_by_another_writer() {
    for (name, text) in texts("canonical") {
        let pretty = spread(&text);
        let (tape, other) = (Tape::parse(&text).unwrap(), Tape::parse(&pretty).unwrap());
        assert_eq!(
            checksum(tape.root(&text)),
            checksum(other.root(&pretty)),
            "{name}"
        );
        assert_eq!(unstorable_text(tape.root(&text)), None, "{name}");
    }
}

#[test]
fn every_other_file_of_the_corpus_reads_as_another_parser_reads_it() {
    for folder in ["flat", "webtemplate", "mutants/canonical"] {
        for (name, text) in texts(folder) {
            let tape = Tape::parse(&text).unwrap();
            let form = canonical(tape.root(&text));
            let ours: serde_json::Value = serde_json::from_str(&form).unwrap();
            let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
            let same = |a: &serde_json::Value, b: &serde_json::Value| {
                let again = |value: &serde_json::Value| {
                    let text = value.to_string();
                    canonical(Tape::parse(&text).unwrap().root(&text))
                };
                again(a) == again(b)
            };
            assert!(same(&ours, &theirs), "{name}");
        }
    }
}

/// Cut off anywhere, or with any byte damaged: an error or a value, never a panic, and the same
/// verdict as another strict parser's.
#[test]
fn damaged_compositions_never_panic() {
    let mut texts = texts("canonical");
    texts.sort_by_key(|(_, text)| text.len());
    for (name, text) in texts.iter().take(3) {
        for (end, _) in text.trim_end().char_indices() {
            assert!(
                Tape::parse(&text[..end]).is_err(),
                "{name} cut off at {end}"
            );
        }
        let mut bytes = text.clone().into_bytes();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x02, 0x10, 0x20, 0x40] {
                bytes[at] ^= flip;
                if let Ok(damaged) = std::str::from_utf8(&bytes) {
                    let theirs = serde_json::from_str::<IgnoredAny>(damaged).is_ok();
                    let ours = Tape::parse(damaged);
                    assert_eq!(
                        ours.is_ok(),
                        theirs,
                        "{name} with byte {at} flipped by {flip}"
                    );
                    if let Ok(tape) = ours {
                        let root = tape.root(damaged);
                        let _ = (minified(root), canonical(root), unstorable_text(root));
                    }
                }
                bytes[at] ^= flip;
            }
        }
    }
}
