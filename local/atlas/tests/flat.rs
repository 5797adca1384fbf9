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

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use common::{Answer, Place, Server};
use serde_json::value::RawValue;
use serde_json::{Value, json};

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
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // Beside the reading: neither waits for the other with a full pipe.
        scope.spawn(move || stdin.write_all(text.as_bytes()).unwrap());
        child.wait_with_output().unwrap().into()
    })
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
fn stdin_holds_documents_on_lines_of_their_own_and_indented_ones() {
    let place = place();
    let arguments = ["flat", "--web-template", "template.json"];
    let text = std::fs::read_to_string(place.path("0.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let expected = place.run(&[&arguments[..], &["0.json"]].concat()).stdout;
    for (input, documents) in [
        (format!("{document}"), 1),
        (format!("{document:#}"), 1),
        (format!("{document}\n\n{document}\n"), 2),
        (
            format!("{document:#}\n{document:#}\n{document}\n{document:#}"),
            4,
        ),
        (format!("{document:#}\n").replace('\n', "\r\n"), 1),
        (String::new(), 0),
    ] {
        let answer = with_stdin(&place, &arguments, &input);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        assert_eq!(answer.stdout, expected.repeat(documents));
    }
}

#[test]
fn a_broken_document_on_stdin_is_named_by_its_line_and_the_rest_still_comes() {
    let place = place();
    let arguments = ["flat", "--web-template", "template.json"];
    let text = std::fs::read_to_string(place.path("0.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let expected = place.run(&[&arguments[..], &["0.json"]].concat()).stdout;
    let input = format!(
        "\n{{\"s3cret\n{document}\n{{\n  \"s3cret\"\n}}\n{document:#}\n[\"s3cret\"]\n{document}"
    );
    let answer = with_stdin(&place, &arguments, &input);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert_eq!(answer.stdout, expected.repeat(3));
    let said: Vec<&str> = answer
        .stderr
        .lines()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    let last = 6 + format!("{document:#}").lines().count() + 1;
    assert_eq!(
        said,
        [
            "stdin, line 2",
            "stdin, line 4",
            &format!("stdin, line {last}")
        ]
    );
    assert!(!answer.stderr.contains("s3cret"), "{answer:?}");
}

#[test]
fn a_stream_is_converted_as_it_comes_and_ends_when_nobody_reads() {
    let place = place();
    let text = std::fs::read_to_string(place.path("0.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut command = place.command(&["flat", "--web-template", "template.json"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        writeln!(stdin, "{document}").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with("}\n"), "{line}");
    }
    drop(stdout);
    // The pipe breaks at the next document, and ours when the program has ended.
    while writeln!(stdin, "{document}").is_ok() {}
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""));
}

#[test]
fn what_no_composition_can_be_as_large_as_is_refused_and_the_rest_still_comes() {
    let place = place();
    let text = std::fs::read_to_string(place.path("0.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let long = format!("\"{}\"", "x".repeat(64 << 20));
    std::fs::write(place.path("long.json"), &long).unwrap();
    let arguments = ["flat", "--web-template", "template.json"];
    let files = place.run(&[&arguments[..], &["long.json", "0.json"]].concat());
    let many_lines = format!("{{\n{}\n}}", "  \"x\": 1,\n".repeat(7 << 20));
    let lines = with_stdin(
        &place,
        &arguments,
        &format!("{long}\n{many_lines}\n{document}\n"),
    );
    for (answer, refused) in [(files, 1), (lines, 2)] {
        assert_eq!((answer.code, answer.stdout.lines().count()), (Some(1), 1));
        assert_eq!(
            answer.stderr.matches("larger than 64 MiB").count(),
            refused,
            "{}",
            answer.stderr
        );
    }
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

/// Documents that look like a composition to whoever saved them: each by itself, in a file and on stdin.
#[test]
fn a_document_of_another_kind_is_named_and_nothing_is_printed() {
    let place = place();
    let composition = std::fs::read_to_string(place.path("0.json")).unwrap();
    let composition: Value = serde_json::from_str(&composition).unwrap();
    let flat = place.run(&["flat", "--web-template", "template.json", "0.json"]);
    let mut of_other_template = composition.clone();
    of_other_template["archetype_details"]["template_id"]["value"] = "another template".into();
    let mut of_other_archetype = composition.clone();
    of_other_archetype["archetype_node_id"] = "openEHR-EHR-COMPOSITION.other.v1".into();
    of_other_archetype["archetype_details"] =
        json!({ "archetype_id": { "value": "openEHR-EHR-COMPOSITION.other.v1" } });
    for (document, kind) in [
        (
            json!({ "error": "Not Found", "message": "s3cret" }),
            "an error answer",
        ),
        (
            json!({ "timestamp": "x", "status": 404, "error": "s3cret", "path": "/x" }),
            "an error answer",
        ),
        (json!({ "message": "s3cret" }), "an error answer"),
        (
            json!({ "columns": [], "rows": [[composition]] }),
            "a whole AQL answer",
        ),
        (
            json!({ "meta": {}, "q": "SELECT s3cret", "columns": [{}], "rows": [] }),
            "a whole AQL answer",
        ),
        (
            json!({ "resultSet": [{ "c": composition }] }),
            "a whole AQL answer",
        ),
        (
            json!({ "ehr_id": "s3cret", "composition": composition }),
            "an object around a composition",
        ),
        (
            json!({ "_type": "EHR", "ehr_id": { "value": "s3cret" } }),
            "an EHR",
        ),
        (
            json!({ "ehr_id": { "value": "s3cret" }, "ehr_status": {}, "time_created": {} }),
            "an EHR",
        ),
        (
            json!({ "_type": "ORIGINAL_VERSION", "data": composition }),
            "a version",
        ),
        (json!([composition]), "a list"),
        (json!([]), "a list"),
        (serde_json::from_str(&flat.stdout).unwrap(), "FLAT already"),
        (json!({ "_type": "OBSERVATION" }), "another class"),
        (
            serde_json::from_str(&std::fs::read_to_string(place.path("template.json")).unwrap())
                .unwrap(),
            "a web template",
        ),
        (json!({}), "an object without anything"),
        (json!("s3cret"), "a single value"),
        (of_other_template, "`another template`"),
        (of_other_archetype, "`openEHR-EHR-COMPOSITION.other.v1`"),
    ] {
        std::fs::write(place.path("document.json"), document.to_string()).unwrap();
        let arguments = ["flat", "--web-template", "template.json"];
        for flatten in [&[][..], &["--flatten"], &["--ids", "template"], &["--loss"]] {
            let arguments = [&arguments[..], flatten].concat();
            let file = place.run(&[&arguments[..], &["document.json"]].concat());
            let line = with_stdin(&place, &arguments, &format!("{document}\n"));
            for answer in [file, line] {
                assert_eq!(
                    (answer.code, answer.stdout.as_str()),
                    (Some(2), ""),
                    "{kind}: {answer:?}"
                );
                assert!(answer.stderr.contains(kind), "{kind}: {answer:?}");
                assert!(!answer.stderr.contains("s3cret"), "{answer:?}");
            }
        }
        // Beside others it is one that failed.
        let mixed = place.run(&[
            "flat",
            "--web-template",
            "template.json",
            "document.json",
            "0.json",
        ]);
        assert_eq!(
            (mixed.code, mixed.stdout.lines().count()),
            (Some(1), 1),
            "{mixed:?}"
        );
        assert!(mixed.stderr.contains(kind), "{mixed:?}");
    }
}

#[test]
fn a_web_template_that_is_none_is_told() {
    let place = place();
    let answer = place.run(&["flat", "--web-template", "0.json", "0.json"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.text().contains("`0.json`"), "{answer:?}");
}

#[test]
fn every_pair_of_the_corpus_is_equal_and_its_losses_are_told() {
    let corpus = atlas_machine::corpus().unwrap();
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
        let path = corpus.join(folder).join(format!("{stem}.json"));
        path.into_os_string().into_string().unwrap()
    };
    let mut stems: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in pairs.lines().skip(1) {
        let mut fields = line.split('\t');
        let (stem, template) = (fields.next().unwrap(), fields.next().unwrap());
        stems.entry(template).or_default().push(stem);
    }
    assert!(stems.len() > 70, "only {} templates", stems.len());
    let place = Place::new();
    for (template, stems) in stems {
        let template = file("webtemplate", template);
        let mut arguments = vec!["flat", "--loss", "--web-template", &template];
        let files: Vec<String> = stems.iter().map(|stem| file("canonical", stem)).collect();
        arguments.extend(files.iter().map(String::as_str));
        let answer = place.run(&arguments);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        assert_eq!(answer.stdout.lines().count(), stems.len());
        for (stem, line) in stems.iter().zip(answer.stdout.lines()) {
            let expected = std::fs::read_to_string(file("flat", stem)).unwrap();
            assert_eq!(members(line), members(&expected), "{stem}");
        }
        // One sum for each, and as many paths as the sums say.
        let sums = answer
            .stderr
            .lines()
            .filter(|line| line.contains(" leaves carried, "));
        let lost: Vec<usize> = sums
            .map(|line| {
                let rest = line.split(" leaves carried, ").nth(1).unwrap();
                rest.split(' ').next().unwrap().parse().unwrap()
            })
            .collect();
        assert_eq!(lost.len(), stems.len());
        let paths = answer
            .stderr
            .lines()
            .filter(|line| line.contains(": lost "));
        assert_eq!(paths.count(), lost.iter().sum::<usize>(), "{template}");
    }
}

/// The members of an object with their values: strings decoded, numbers as text.
fn members(text: &str) -> BTreeMap<String, String> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
    let plain = |value: &RawValue| match value.get().as_bytes()[0] {
        b'"' | b'{' | b'[' => serde_json::from_str::<Value>(value.get())
            .unwrap()
            .to_string(),
        _ => value.get().to_owned(),
    };
    members
        .into_iter()
        .map(|(name, value)| (name, plain(value)))
        .collect()
}

/// What the doctor says about FLAT: status and detail.
fn flat_check(answer: &Answer) -> (String, String) {
    let document = answer.json();
    let checks = document["checks"].as_array().unwrap();
    let flat: Vec<&Value> = checks
        .iter()
        .filter(|check| check["check"] == "FLAT")
        .collect();
    let [check] = flat[..] else {
        panic!("{document}")
    };
    let text = |name: &str| check[name].as_str().unwrap().to_owned();
    (text("status"), text("detail"))
}

#[test]
fn the_doctor_compares_flat_or_says_why_not() {
    let server = Server::with(20);
    for (export, arguments, reason) in [
        (
            "export_composition_format = \"canonical\"",
            &["doctor", "--json"][..],
            "`canonical`",
        ),
        ("ids = \"template\"", &["doctor", "--json"], "on purpose"),
        ("", &["doctor", "--json", "--flat-sample", "0"], "no sample"),
    ] {
        let place = Place::for_server(&server, &format!("[export]\n{export}\n"));
        let answer = place.run(arguments);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let (status, detail) = flat_check(&answer);
        assert_eq!(status, "ok");
        assert!(
            detail.contains("not compared") && detail.contains(reason),
            "{detail}"
        );
    }

    // The sample server has no FLAT of its own, and the doctor does not claim that it compared any.
    let answer = Place::for_server(&server, "").run(&["doctor", "--json"]);
    let (status, detail) = flat_check(&answer);
    assert_eq!(status, "warn");
    assert!(detail.contains("gave no FLAT"), "{detail}");
}

#[test]
fn an_export_tells_what_flat_does_not_carry() {
    let server = Server::with(200);
    let place = Place::for_server(&server, "");
    let answer = place.run(&["export"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let document = Place::for_server(&server, "")
        .run(&["export", "--json"])
        .json();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for template in document["templates"].as_array().unwrap() {
        let losses = &template["losses"];
        assert_eq!(losses["looked_at"], template["read"], "{template}");
        for (kind, leaves) in losses["leaves"].as_object().unwrap() {
            *sums.entry(kind).or_default() += leaves.as_u64().unwrap();
        }
    }
    assert!(
        !sums.is_empty(),
        "the sample server's compositions lose nothing"
    );
    let text = answer.stdout.replace(',', "");
    let said = text
        .lines()
        .find(|line| line.starts_with("not in FLAT"))
        .unwrap();
    assert!(said.contains("in 200 compositions looked at"), "{said}");
    for (kind, sum) in sums {
        assert!(said.contains(&format!(" {sum} {kind}")), "{kind}: {said}");
    }
}
