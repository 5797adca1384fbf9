//! `atlas flat`, with the sample server's web templates and, where it is, the corpus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of `common`"
)]

mod common;

use std::io::Write;
use std::path::PathBuf;

use common::{Answer, Place, Server};
use serde_json::Value;

/// A place with a web template (`template.json`) and three compositions (`0.json` …) of it.
fn place() -> Place {
    let server = Server::with(20);
    let handle = server.handle();
    let place = Place::new();
    let numbers =
        (0..20).filter(|number| handle.template(*number) == atlas_sample_cdr::Template::VitalSigns);
    for (index, number) in numbers.take(3).enumerate() {
        std::fs::write(
            place.path(&format!("{index}.json")),
            handle.content(number).unwrap(),
        )
        .unwrap();
    }
    let template = atlas_sample_cdr::Template::VitalSigns.web_template();
    std::fs::write(place.path("template.json"), template).unwrap();
    place
}

fn with_stdin(place: &Place, arguments: &[&str], text: &str) -> Answer {
    let mut command = place.command(arguments);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn each_composition_becomes_one_line() {
    let answer = place().run(&[
        "flat",
        "--web-template",
        "template.json",
        "0.json",
        "1.json",
        "2.json",
    ]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let lines: Vec<Value> = answer
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        assert!(
            line.as_object()
                .unwrap()
                .keys()
                .any(|key| key.ends_with("systolic|magnitude")),
            "{line}"
        );
    }
}

#[test]
fn names_that_sql_likes_hold_no_separators() {
    let answer = place().run(&[
        "flat",
        "--web-template",
        "template.json",
        "--flatten",
        "0.json",
    ]);
    let line: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert!(
        line.as_object()
            .unwrap()
            .keys()
            .all(|key| !key.contains(['/', ':', '|'])),
        "{line}"
    );
}

#[test]
fn stdin_holds_one_document_or_one_on_each_line() {
    let place = place();
    let arguments = ["flat", "--web-template", "template.json"];
    let text = std::fs::read_to_string(place.path("0.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let pretty = with_stdin(&place, &arguments, &format!("{document:#}"));
    assert_eq!(
        (pretty.code, pretty.stdout.lines().count()),
        (Some(0), 1),
        "{pretty:?}"
    );
    let lines = with_stdin(&place, &arguments, &format!("{document}\n\n{document}\n"));
    assert_eq!(
        (lines.code, lines.stdout.lines().count()),
        (Some(0), 2),
        "{lines:?}"
    );
    assert!(lines.stdout.starts_with(&pretty.stdout));
}

#[test]
fn what_cannot_be_converted_is_named_and_the_rest_still_comes() {
    let place = place();
    std::fs::write(place.path("broken.json"), "{\"s3cret\": ").unwrap();
    std::fs::write(place.path("other.json"), "[1]").unwrap();
    let arguments = [
        "flat",
        "--web-template",
        "template.json",
        "broken.json",
        "none.json",
        "other.json",
        "0.json",
    ];
    let answer = place.run(&arguments);
    assert_eq!(
        (answer.code, answer.stdout.lines().count()),
        (Some(1), 1),
        "{answer:?}"
    );
    for name in ["broken.json: ", "none.json: ", "other.json: "] {
        assert!(answer.stderr.contains(name), "{answer:?}");
    }
    assert!(!answer.stderr.contains("s3cret"), "{answer:?}");
}

#[test]
fn a_web_template_that_is_none_is_told() {
    let place = place();
    let answer = place.run(&["flat", "--web-template", "0.json", "0.json"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.text().contains("`0.json`"), "{answer:?}");
}

#[test]
fn a_pair_of_the_corpus_is_equal_and_its_losses_are_told() {
    let corpus = std::env::var_os("ATLAS_CORPUS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
        PathBuf::from,
    );
    if !corpus.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "the corpus is missing; set ATLAS_CORPUS"
        );
        println!("skipped: the corpus is missing; set ATLAS_CORPUS");
        return;
    }
    let pairs = std::fs::read_to_string(corpus.join("pairs.tsv")).unwrap();
    let file = |folder: &str, stem: &str| {
        corpus
            .join(folder)
            .join(format!("{stem}.json"))
            .into_os_string()
            .into_string()
            .unwrap()
    };
    for line in pairs.lines().skip(1).take(5) {
        let mut fields = line.split('\t');
        let (stem, template) = (fields.next().unwrap(), fields.next().unwrap());
        let (template, canonical) = (file("webtemplate", template), file("canonical", stem));
        let answer = Place::new().run(&["flat", "--web-template", &template, "--loss", &canonical]);
        assert_eq!(answer.code, Some(0), "{stem}: {answer:?}");
        let expected = std::fs::read_to_string(file("flat", stem)).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        assert_eq!(answer.json(), expected, "{stem}");
        assert!(
            answer.stderr.contains("leaves carried"),
            "{stem}: {answer:?}"
        );
    }
}
