//! What EHRbase's library does where no rule of FLAT says anything: classes without keys, times
//! without post rules, numbers that are not finite, ids that clash. Expected values are what
//! EHRbase 2.16 answered; `cargo xtask fuzz flat` looks for more.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, missing_docs)]
#![allow(unreachable_pub)]

mod flat_support;

use atlas_openehr::flat::{DocumentKind, FlattenedWriter, Ids, JsonWriter, Loss, Plan, Walker};
use atlas_openehr::json::Tape;
use flat_support::{PULSE, composition, dv_text, element, facts, flat, node, plan, template};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const RATE: &str = "visit/pulse:0/any_event:0/rate";
const DIALECTS: [Ids; 2] = [Ids::Ehrbase, Ids::Template];

/// FLAT of a composition whose one ELEMENT `Rate` is of this type, in a template that says so.
fn of_value(ids: Ids, rm_type: &str, value: &Value) -> BTreeMap<String, String> {
    let mut template = template();
    let rate = &mut template["tree"]["children"][2]["children"][0]["children"][0];
    assert_eq!(rate["name"], "Rate");
    rate["rmType"] = rm_type.into();
    if let Some(limit) = rm_type.strip_prefix("DV_INTERVAL<") {
        let limit = limit.trim_end_matches('>');
        let path = rate["aqlPath"].as_str().unwrap().to_owned();
        let limits = ["lower", "upper"]
            .map(|name| node(name, limit, (0, 1), &format!("{path}/{name}"), vec![]));
        rate["children"] = limits.to_vec().into();
    }
    let composition = composition(json!([element("at0004", "Rate", value.clone())]), json!([]));
    // Numbers that the tree cannot hold stand in it as strings.
    let text = composition.to_string();
    let text = text
        .replace("\"1e400\"", "1e400")
        .replace("\"-1e400\"", "-1e400");
    facts(&flat(&plan(&template.to_string(), ids), &text))
}

fn same_json(made: &BTreeMap<String, String>, key: &str, expected: &Value) {
    let expected = facts(&json!({ key: expected }).to_string());
    assert_eq!(made.get(key), expected.get(key), "{key}");
}

fn coded(code: &str) -> Value {
    json!({ "_type": "DV_CODED_TEXT", "value": "s", "defining_code": { "_type": "CODE_PHRASE",
        "terminology_id": { "_type": "TERMINOLOGY_ID", "value": "local" }, "code_string": code } })
}

/// The same as the library prints it.
fn printed(code: &str) -> Value {
    json!({ "value": "s", "mappings": [],
        "defining_code": { "terminology_id": { "value": "local" }, "code_string": code } })
}

#[test]
fn values_of_classes_without_keys_are_what_the_library_prints() {
    let mapped = json!({ "_type": "DV_TEXT", "value": "t", "formatting": "plain",
        "hyperlink": { "_type": "DV_EHR_URI", "value": "ehr://a" },
        "language": { "_type": "CODE_PHRASE", "terminology_id": { "_type": "TERMINOLOGY_ID", "value": "x" }, "code_string": "en" },
        "mappings": [{ "_type": "TERM_MAPPING", "match": "=", "purpose": coded("p"),
            "target": { "_type": "CODE_PHRASE", "terminology_id": { "value": "x" }, "code_string": "c", "preferred_term": "d" } }] });
    let specification = |class: &str| json!({ "_type": class, "value": { "_type": "DV_PARSABLE", "value": "v", "formalism": "HL7:PIVL" } });
    let time = json!({ "value": { "value": "v", "formalism": "HL7:PIVL" } });
    for (class, value, expected) in [
        (
            "DV_SCALE",
            json!({ "_type": "DV_SCALE", "value": 1, "symbol": coded("at1") }),
            json!({ "other_reference_ranges": [], "value": 1.0, "symbol": printed("at1") }),
        ),
        (
            "DV_SCALE",
            json!({ "_type": "DV_SCALE", "value": 10000000, "symbol": coded("at1"), "normal_range": {
                "_type": "DV_INTERVAL", "lower": { "_type": "DV_SCALE", "value": 0.5, "symbol": coded("at2") },
                "upper_unbounded": true } }),
            json!({ "other_reference_ranges": [], "value": 1.0e7, "symbol": printed("at1"), "normal_range": {
                "lower": { "other_reference_ranges": [], "value": 0.5, "symbol": printed("at2") },
                "lower_unbounded": false, "upper_unbounded": true, "lower_included": true, "upper_included": true } }),
        ),
        (
            "DV_PARAGRAPH",
            json!({ "_type": "DV_PARAGRAPH", "items": [dv_text("a"), coded("c"), mapped] }),
            json!({ "items": [
                { "_type": "DV_TEXT", "value": "a", "mappings": [] },
                { "_type": "DV_CODED_TEXT", "value": "s", "mappings": [], "defining_code": printed("c")["defining_code"] },
                { "_type": "DV_TEXT", "value": "t", "formatting": "plain",
                  "hyperlink": { "_type": "DV_EHR_URI", "value": "ehr://a" },
                  "language": { "terminology_id": { "value": "x" }, "code_string": "en" },
                  "mappings": [{ "match": "=", "purpose": printed("p"),
                      "target": { "terminology_id": { "value": "x" }, "code_string": "c", "preferred_term": "d" } }] },
            ] }),
        ),
        (
            "DV_STATE",
            json!({ "_type": "DV_STATE", "value": coded("s"), "is_terminal": true }),
            json!({ "value": printed("s"), "terminal": true }),
        ),
        (
            "DV_GENERAL_TIME_SPECIFICATION",
            specification("DV_GENERAL_TIME_SPECIFICATION"),
            time.clone(),
        ),
        (
            "DV_PERIODIC_TIME_SPECIFICATION",
            specification("DV_PERIODIC_TIME_SPECIFICATION"),
            time,
        ),
    ] {
        for ids in DIALECTS {
            let made = of_value(ids, class, &value);
            if class == "DV_SCALE" && value["value"] == 10_000_000 {
                // A double beyond 10 million has an exponent.
                assert!(made[RATE].contains("1.0E7"), "{}", made[RATE]);
                continue;
            }
            same_json(&made, RATE, &expected);
        }
    }
    let scale = |value: f64| json!({ "_type": "DV_SCALE", "value": value, "symbol": coded("at1") });
    let interval = json!({ "_type": "DV_INTERVAL", "lower": scale(1.0), "upper": scale(2.5) });
    let made = of_value(Ids::Ehrbase, "DV_INTERVAL<DV_SCALE>", &interval);
    for (limit, value) in [("lower", 1.0), ("upper", 2.5)] {
        let expected =
            json!({ "other_reference_ranges": [], "value": value, "symbol": printed("at1") });
        same_json(&made, &format!("{RATE}/{limit}"), &expected);
    }
}

#[test]
fn numbers_beyond_all_doubles_are_the_texts_that_java_has_for_them() {
    let quantity =
        json!({ "_type": "DV_QUANTITY", "magnitude": "1e400", "units": "1", "accuracy": "-1e400" });
    let made = of_value(Ids::Ehrbase, "DV_QUANTITY", &quantity);
    assert_eq!(made[&format!("{RATE}|magnitude")], "\"Infinity\"");
    assert_eq!(made[&format!("{RATE}|accuracy")], "\"-Infinity\"");
    for (numerator, denominator, value) in [
        (json!("1e400"), json!(2), "\"Infinity\""),
        (json!("-1e400"), json!(2), "\"-Infinity\""),
        (json!(1), json!("1e400"), "0.0"),
        (json!("1e400"), json!("1e400"), "\"NaN\""),
        (json!(1e300), json!(1e-300), "\"Infinity\""),
        (json!("1e400"), json!(0), "1.7976931348623157E308"),
        (json!(1), json!(4), "0.25"),
    ] {
        let proportion = json!({ "_type": "DV_PROPORTION", "numerator": numerator, "denominator": denominator, "type": 0 });
        let made = of_value(Ids::Ehrbase, "DV_PROPORTION", &proportion);
        assert_eq!(made[RATE], value, "{numerator} / {denominator}");
    }
    // The server's own canonical JSON has them as strings.
    for (text, quotient) in [
        ("Infinity", "\"Infinity\""),
        ("-Infinity", "\"-Infinity\""),
        ("NaN", "\"NaN\""),
    ] {
        let quantity = json!({ "_type": "DV_QUANTITY", "magnitude": text, "units": "1" });
        let made = of_value(Ids::Ehrbase, "DV_QUANTITY", &quantity);
        assert_eq!(made[&format!("{RATE}|magnitude")], format!("{text:?}"));
        let proportion =
            json!({ "_type": "DV_PROPORTION", "numerator": text, "denominator": 2, "type": 0 });
        let made = of_value(Ids::Ehrbase, "DV_PROPORTION", &proportion);
        assert_eq!(made[RATE], quotient);
        assert_eq!(made[&format!("{RATE}|numerator")], format!("{text:?}"));
    }
    let scale = json!({ "_type": "DV_SCALE", "value": "1e400", "symbol": coded("at1") });
    assert!(of_value(Ids::Ehrbase, "DV_SCALE", &scale)[RATE].contains("Infinity"));
}

#[test]
fn times_without_post_rules_are_as_java_prints_them() {
    let time = |value: &str| json!({ "_type": "DV_TIME", "value": value });
    for (stored, java) in [
        ("05:06:07.5Z", "05:06:07.500Z"),
        ("05:06:07.1234Z", "05:06:07.123400Z"),
        ("05:06:07.1234567", "05:06:07.123456700"),
        ("05:06:00+02:00", "05:06+02:00"),
        ("05:06:00.000", "05:06"),
        ("05:06:07", "05:06:07"),
        ("05:00:00.25-03:30", "05:00:00.250-03:30"),
        ("05", "05:00"),
    ] {
        let interval =
            json!({ "_type": "DV_INTERVAL", "lower": time(stored), "upper": time(stored) });
        let made = of_value(Ids::Ehrbase, "DV_INTERVAL<DV_TIME>", &interval);
        for limit in ["lower", "upper"] {
            assert_eq!(made[&format!("{RATE}/{limit}")], format!("{java:?}"));
        }
        let mut ranged = time("01:00:00");
        ranged["normal_range"] = interval.clone();
        ranged["other_reference_ranges"] = json!([{ "meaning": dv_text("m"), "range": interval }]);
        let made = of_value(Ids::Ehrbase, "DV_TIME", &ranged);
        for place in ["_normal_range", "_other_reference_ranges:0"] {
            assert_eq!(made[&format!("{RATE}/{place}/lower")], format!("{java:?}"));
        }
        // A value in its own place has post rules.
        let own = of_value(Ids::Ehrbase, "DV_TIME", &time(stored));
        assert_ne!(own[RATE], format!("{:?}", "05:00"));
        assert_eq!(made[RATE], "\"01:00:00\"");
    }
}

#[test]
fn a_lone_year_has_its_zeros_only_where_post_rules_run() {
    let early = json!({ "_type": "DV_DATE", "value": "0800" });
    let interval = json!({ "_type": "DV_INTERVAL", "lower": early, "upper": { "_type": "DV_DATE", "value": "0800-01" } });
    let made = of_value(Ids::Ehrbase, "DV_INTERVAL<DV_DATE>", &interval);
    assert_eq!(made[&format!("{RATE}/lower")], "\"800\"");
    assert_eq!(made[&format!("{RATE}/upper")], "\"0800-01\"");
    assert_eq!(of_value(Ids::Ehrbase, "DV_DATE", &early)[RATE], "\"0800\"");
}

/// An origin is left out if it says what the earliest event says; what a time leaves out is zero.
#[test]
fn an_origin_is_compared_with_partial_times_by_their_first_second() {
    for (origin, event, is_written) in [
        ("2020-01-01T00:00:00Z", "2020-01-01", false),
        ("2020-01-01", "2020-01-01T00:00:00", false),
        ("2020", "2020-01", false),
        ("2020-01-01", "2020-01-02", true),
        ("2020-01-01T10", "2020-01-01T10:00:00Z", false),
        ("2020-01-01T00:00:00+01:00", "2020-01-01", true),
        ("2020-01-01T01:00:00+01:00", "2020", false),
        ("2020-01-01T00:00:00.9", "2020", false),
    ] {
        let mut composition = composition(json!([]), json!([]));
        let history = &mut composition["content"][0]["data"];
        history["origin"]["value"] = origin.into();
        history["events"][0]["time"]["value"] = event.into();
        let made = facts(&flat(
            &plan(&template().to_string(), Ids::Ehrbase),
            &composition.to_string(),
        ));
        let is_there = made.contains_key("visit/pulse:0/history_origin");
        assert_eq!(is_there, is_written, "{origin} and {event}");
    }
}

/// A template of an ACTION whose transition is served, as EHRbase does with its containers dropped.
fn with_action(children: Vec<Value>) -> Value {
    let mut template = template();
    let nodes = template["tree"]["children"].as_array_mut().unwrap();
    let action = nodes
        .iter_mut()
        .find(|node| node["rmType"] == "ACTION")
        .unwrap();
    action["children"].as_array_mut().unwrap().extend(children);
    template
}

#[test]
fn additions_to_the_state_of_an_action_are_not_looked_for() {
    let path = |name: &str| format!("/content[openEHR-EHR-ACTION.care.v1]/ism_transition/{name}");
    let served = ["current_state", "careflow_step", "transition"]
        .map(|name| node(name, "DV_CODED_TEXT", (0, 1), &path(name), vec![]));
    let template = with_action(served.to_vec());
    let mut state = coded("245");
    state["mappings"] = json!([{ "match": "=", "target": { "terminology_id": { "value": "x" }, "code_string": "c" } }]);
    state["language"] = json!({ "terminology_id": { "value": "ISO_639-1" }, "code_string": "fr" });
    state["encoding"] = json!({ "terminology_id": { "value": "x" }, "code_string": "UTF-8" });
    let mut whole = composition(json!([]), json!([]));
    let action = json!({ "_type": "ACTION", "name": dv_text("Care"), "archetype_node_id": "openEHR-EHR-ACTION.care.v1",
        "ism_transition": { "_type": "ISM_TRANSITION", "current_state": state, "careflow_step": state, "transition": state,
            "reason": [dv_text("because")] } });
    whole["content"].as_array_mut().unwrap().push(action);
    for ids in DIALECTS {
        let made = facts(&flat(&plan(&template.to_string(), ids), &whole.to_string()));
        for name in ["current_state", "careflow_step", "transition"] {
            assert_eq!(made[&format!("visit/care/{name}|code")], "\"245\"");
            let added: Vec<_> = made
                .keys()
                .filter(|key| key.starts_with(&format!("visit/care/{name}/_")))
                .collect();
            assert!(added.is_empty(), "{added:?}");
        }
        assert_eq!(made["visit/care/_reason:0"], "\"because\"");
    }
}

#[test]
fn what_a_template_says_of_an_attribute_without_places_of_its_own_makes_no_keys() {
    let at = |path: &str| format!("/content[openEHR-EHR-ACTION.care.v1]/{path}");
    let mut template = with_action(vec![
        node(
            "function",
            "DV_TEXT",
            (1, 1),
            &at("other_participations/function"),
            vec![],
        ),
        node("meaning", "DV_TEXT", (1, 1), &at("links/meaning"), vec![]),
        node("id", "STRING", (1, 1), &at("workflow_id/id"), vec![]),
    ]);
    let context = &mut template["tree"]["children"][1]["children"];
    context.as_array_mut().unwrap().push(node(
        "function",
        "DV_TEXT",
        (1, 1),
        "/context/participations/function",
        vec![],
    ));
    let mut whole = composition(json!([]), json!([]));
    let participation = json!([{ "_type": "PARTICIPATION", "function": dv_text("requester"),
        "performer": { "_type": "PARTY_IDENTIFIED", "name": "n" } }]);
    whole["context"]["participations"] = participation.clone();
    whole["content"].as_array_mut().unwrap().push(json!({ "_type": "ACTION", "name": dv_text("Care"),
        "archetype_node_id": "openEHR-EHR-ACTION.care.v1", "other_participations": participation }));
    for ids in DIALECTS {
        let made = facts(&flat(&plan(&template.to_string(), ids), &whole.to_string()));
        assert_eq!(made["visit/_participation:0|function"], "\"requester\"");
        assert_eq!(
            made["visit/care/_other_participation:0|function"],
            "\"requester\""
        );
        for key in [
            "visit/function",
            "visit/care/function",
            "visit/care/meaning",
            "visit/care/id",
        ] {
            assert_eq!(made.get(key), None, "{key}");
        }
    }
}

/// Siblings in the protocol with these labels and served ids, each filled with its place.
fn with_siblings(
    ids: Ids,
    siblings: &[(&str, &str)],
    filled: &[usize],
) -> BTreeMap<String, String> {
    let mut template = template();
    let pulse = template["tree"]["children"][2]["children"]
        .as_array_mut()
        .unwrap();
    pulse.retain(|node| node["name"] != "Comment");
    for (place, (label, id)) in siblings.iter().enumerate() {
        let path = format!("{PULSE}/protocol[at0010]/items[at01{place:02}]/value");
        let mut sibling = node(label, "DV_TEXT", (0, 1), &path, vec![]);
        sibling["id"] = (*id).into();
        pulse.push(sibling);
    }
    let items: Value = filled
        .iter()
        .map(|place| {
            element(
                &format!("at01{place:02}"),
                siblings[*place].0,
                dv_text(&place.to_string()),
            )
        })
        .collect();
    let made = flat(
        &plan(&template.to_string(), ids),
        &composition(json!([]), items).to_string(),
    );
    let prefix = "visit/pulse:0/";
    facts(&made)
        .into_iter()
        .filter_map(|(key, value)| {
            let key = key.strip_prefix(prefix)?;
            key.starts_with(['s', 'i']).then(|| (key.to_owned(), value))
        })
        .filter(|(key, _)| !key.starts_with("subject"))
        .collect()
}

#[test]
fn siblings_whose_ids_clash_are_numbered_by_their_ids() {
    let says = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), format!("{value:?}")));
        pairs.collect()
    };
    let clash = [("same", "same"), ("same", "same2"), ("same2", "same2")];
    // The second and the third have one id, so the third takes the second's key.
    assert_eq!(
        with_siblings(Ids::Ehrbase, &clash, &[0, 1, 2]),
        says(&[("same", "0"), ("same2", "2")])
    );
    assert_eq!(
        with_siblings(Ids::Ehrbase, &clash, &[1]),
        says(&[("same", "1")])
    );
    assert_eq!(
        with_siblings(Ids::Ehrbase, &clash, &[0, 2]),
        says(&[("same", "0"), ("same2", "2")])
    );
    // A key of the other dialect always stands for one node.
    assert_eq!(
        with_siblings(Ids::Template, &clash, &[0, 1, 2]),
        says(&[("same", "0"), ("same2", "1"), ("same22", "2")])
    );
    let case = [("Same", "same"), ("SAME", "same2"), ("same", "same3")];
    for ids in DIALECTS {
        assert_eq!(
            with_siblings(ids, &case, &[0, 1, 2]),
            says(&[("same", "0"), ("same2", "1"), ("same3", "2")])
        );
    }
    assert_eq!(
        with_siblings(Ids::Ehrbase, &case, &[2]),
        says(&[("same", "2")])
    );
    assert_eq!(
        with_siblings(Ids::Template, &case, &[2]),
        says(&[("same3", "2")])
    );
}

#[test]
fn the_version_uid_of_the_caller_wins_over_the_compositions_own() {
    let plan = plan(&template().to_string(), Ids::Ehrbase);
    for own in [None, Some("6d4f1b2a-0000-4000-8000-000000000001")] {
        let mut whole = composition(json!([]), json!([]));
        if let Some(own) = own {
            whole["uid"] = json!({ "_type": "HIER_OBJECT_ID", "value": own });
            whole["content"][0]["uid"] = whole["uid"].clone();
        }
        let text = whole.to_string();
        let tape = Tape::parse(&text).unwrap();
        let (root, mut walker) = (tape.root(&text), Walker::new());
        for known in [None, Some("6d4f1b2a-0000-4000-8000-000000000002::a::3")] {
            let expected = known.or(own).map(|uid| format!("{uid:?}"));
            let made = facts(
                JsonWriter::new()
                    .write(&plan, &mut walker, root, known)
                    .unwrap(),
            );
            assert_eq!(made.get("visit/_uid"), expected.as_ref());
            let of_entry = own.map(|uid| format!("{uid:?}"));
            assert_eq!(made.get("visit/pulse:0/_uid"), of_entry.as_ref());
            let made = facts(
                FlattenedWriter::new()
                    .write(&plan, &mut walker, root, known)
                    .unwrap(),
            );
            assert_eq!(made.get("visit___uid"), expected.as_ref());
            let mut loss = Loss::with_leaves();
            let made = JsonWriter::new()
                .write_with_loss(&plan, &mut walker, root, known, &mut loss)
                .map(facts)
                .unwrap();
            assert_eq!(made.get("visit/_uid"), expected.as_ref());
            assert!(loss.leaves().iter().all(|leaf| leaf.path != "/uid/value"));
        }
    }
}

#[test]
fn what_is_no_composition_of_the_template_has_a_name() {
    for (document, kind) in [
        (json!({ "_type": "COMPOSITION" }), DocumentKind::Composition),
        (
            json!({ "archetype_node_id": "x", "content": [] }),
            DocumentKind::Composition,
        ),
        (
            json!({ "error": "Not Found", "message": "x" }),
            DocumentKind::ErrorBody,
        ),
        (
            json!({ "timestamp": 1, "status": 404, "path": "/x" }),
            DocumentKind::ErrorBody,
        ),
        (
            json!({ "message": "x", "code": 4 }),
            DocumentKind::ErrorBody,
        ),
        (json!({ "errors": [] }), DocumentKind::ErrorBody),
        (
            json!({ "columns": [], "rows": [[{}]] }),
            DocumentKind::AqlResult,
        ),
        (
            json!({ "meta": {}, "q": "SELECT", "rows": [] }),
            DocumentKind::AqlResult,
        ),
        (json!({ "resultSet": [] }), DocumentKind::AqlResult),
        (json!({ "_type": "EHR", "ehr_id": {} }), DocumentKind::Ehr),
        (
            json!({ "ehr_id": { "value": "x" }, "ehr_status": {} }),
            DocumentKind::Ehr,
        ),
        (
            json!({ "ehr_id": "x", "composition": {} }),
            DocumentKind::Wrapped,
        ),
        (
            json!({ "_type": "ORIGINAL_VERSION", "data": {} }),
            DocumentKind::Version,
        ),
        (json!([{ "_type": "COMPOSITION" }]), DocumentKind::List),
        (json!([]), DocumentKind::List),
        (json!({ "visit/category|code": "433" }), DocumentKind::Flat),
        (json!({ "ctx/language": "en" }), DocumentKind::Flat),
        (json!({ "visit__category_code": "433" }), DocumentKind::Flat),
        (
            json!({ "ctx": { "language": "en" }, "visit": {} }),
            DocumentKind::Structured,
        ),
        (
            json!({ "templateId": "x", "tree": {} }),
            DocumentKind::WebTemplate,
        ),
        (json!({ "_type": "OBSERVATION" }), DocumentKind::OtherClass),
        (json!({}), DocumentKind::Unknown),
        (json!({ "a": 1 }), DocumentKind::Unknown),
        (json!("text"), DocumentKind::SingleValue),
        (Value::Null, DocumentKind::SingleValue),
    ] {
        let text = document.to_string();
        let tape = Tape::parse(&text).unwrap();
        assert_eq!(DocumentKind::of(tape.root(&text)), kind, "{text}");
    }
    let plan: Plan = plan(&template().to_string(), Ids::Ehrbase);
    let details = |id: &str| json!({ "template_id": { "value": id } });
    for (document, accepted) in [
        (json!({ "archetype_details": details("Visit") }), true),
        (json!({ "archetype_details": details("Visit 2") }), false),
        (json!({ "archetype_details": details("visit") }), false),
        (
            json!({ "archetype_node_id": "openEHR-EHR-COMPOSITION.visit.v1" }),
            true,
        ),
        (
            json!({ "archetype_node_id": "openEHR-EHR-COMPOSITION.report.v1" }),
            false,
        ),
        (
            json!({ "archetype_node_id": "openEHR-EHR-COMPOSITION.report.v1", "archetype_details": details("Visit") }),
            true,
        ),
        (json!({}), true),
    ] {
        let text = document.to_string();
        let tape = Tape::parse(&text).unwrap();
        assert_eq!(plan.accepts(tape.root(&text)).is_ok(), accepted, "{text}");
    }
}
