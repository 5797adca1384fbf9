//! The rules one by one, on a template and compositions of our own.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, missing_docs)]
#![allow(unreachable_pub)]

mod flat_support;

use atlas_openehr::flat::{
    CompileError, FlatError, FlattenedWriter, Ids, JsonWriter, Loss, LossKind, Plan, Walker,
};
use atlas_openehr::json::Tape;
use atlas_openehr::webtemplate::{WebTemplate, WebTemplateError};
use flat_support::{PULSE, composition, dv_text, element, facts, flat, node, plan, template};
use serde_json::{Value, json};

fn made(ids: Ids, composition: &Value) -> std::collections::BTreeMap<String, String> {
    facts(&flat(
        &plan(&template().to_string(), ids),
        &composition.to_string(),
    ))
}

fn loss(composition: &Value) -> Loss {
    let text = composition.to_string();
    let tape = Tape::parse(&text).unwrap();
    let plan = plan(&template().to_string(), Ids::Ehrbase);
    let mut loss = Loss::with_leaves();
    JsonWriter::new()
        .write_with_loss(&plan, &mut Walker::new(), tape.root(&text), None, &mut loss)
        .unwrap();
    loss
}

fn paths(loss: &Loss, kind: LossKind) -> Vec<&str> {
    loss.leaves()
        .iter()
        .filter(|leaf| leaf.kind == kind)
        .map(|leaf| &*leaf.path)
        .collect()
}

/// A term mapping that FLAT shows under `_mapping`.
fn mapping(code: &str) -> Value {
    json!({ "_type": "TERM_MAPPING", "match": "=",
            "target": { "_type": "CODE_PHRASE", "code_string": code, "terminology_id": { "value": "SNOMED-CT" } } })
}

#[test]
fn an_optional_context_does_not_show_and_the_composer_is_the_one_ctx_key() {
    let made = made(Ids::Ehrbase, &composition(json!([]), json!([])));
    assert_eq!(made["visit/start_time"], "\"2026-11-23T03:50:12Z\"");
    assert_eq!(made["ctx/composer_self"], "true");
    assert!(!made.keys().any(|key| key.contains("context")), "{made:?}");
}

#[test]
fn the_first_of_two_twins_in_a_composition_goes_without_a_number() {
    let second = element("at0011", "Comment", dv_text("second"));
    let only_second = composition(json!([]), json!([second]));
    assert_eq!(
        made(Ids::Ehrbase, &only_second)["visit/pulse:0/comment"],
        "\"second\""
    );
    let stable = made(Ids::Template, &only_second);
    assert_eq!(stable["visit/pulse:0/comment2"], "\"second\"");
    assert_eq!(stable.get("visit/pulse:0/comment"), None);
    let both = composition(
        json!([]),
        json!([second, element("at0012", "Comment", dv_text("first"))]),
    );
    let both = made(Ids::Ehrbase, &both);
    assert_eq!(both["visit/pulse:0/comment"], "\"first\"");
    assert_eq!(both["visit/pulse:0/comment2"], "\"second\"");
}

#[test]
fn a_label_that_looks_like_a_numbered_twin_overwrites_it_only_where_ehrbase_does() {
    let mut template = template();
    let pulse = &mut template["tree"]["children"][2];
    assert_eq!(pulse["rmType"], "OBSERVATION");
    let path = format!("{PULSE}/protocol[at0010]/items[at0013]/value");
    pulse["children"].as_array_mut().unwrap().push(node(
        "Comment2",
        "DV_TEXT",
        (0, 1),
        &path,
        vec![],
    ));
    let comment = |code: &str, text: &str| element(code, "Comment", dv_text(text));
    let protocol = json!([
        comment("at0012", "first"),
        comment("at0011", "second"),
        comment("at0013", "third")
    ]);
    let composition = composition(json!([]), protocol).to_string();
    let keys = |ids: Ids| {
        let made = facts(&flat(&plan(&template.to_string(), ids), &composition));
        ["comment", "comment2", "comment22"]
            .map(|id| made.get(&format!("visit/pulse:0/{id}")).cloned())
    };
    let said = |text: &str| Some(format!("{text:?}"));
    assert_eq!(
        keys(Ids::Template),
        [said("first"), said("second"), said("third")]
    );
    // EHRbase tells them apart by ids, and the second's is that of the third.
    assert_eq!(keys(Ids::Ehrbase), [said("first"), said("third"), None]);
}

#[test]
fn plans_are_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&plan(&template().to_string(), Ids::Ehrbase));
}

/// As deep as the parser lets pass: the walk and the report must not overflow the stack.
#[test]
fn the_deepest_composition_is_walked() {
    let mut media = json!({ "_type": "DV_MULTIMEDIA", "size": 1 });
    for _ in 0..400 {
        media = json!({ "_type": "DV_MULTIMEDIA", "size": 1, "thumbnail": media });
    }
    let deep = composition(json!([element("at0004", "Rate", media)]), json!([]));
    assert!(made_text(&deep).contains("_thumbnail/_thumbnail"));
    assert!(
        loss(&deep).count(LossKind::NoKey) > 300,
        "what lies below the last thumbnail is reported"
    );
    let nested = [vec!["["; 480].concat(), vec!["]"; 480].concat()].concat();
    let deep: Value = serde_json::from_str("{\"_type\":\"COMPOSITION\",\"content\":[]}").unwrap();
    let text = deep.to_string().replace("[]", &nested);
    let tape = Tape::parse(&text).unwrap();
    let plan = plan(&template().to_string(), Ids::Ehrbase);
    let mut loss = Loss::with_leaves();
    JsonWriter::new()
        .write_with_loss(&plan, &mut Walker::new(), tape.root(&text), None, &mut loss)
        .unwrap();
    assert_eq!(loss.lost(), 0);
}

#[test]
fn text_outside_a_value_list_goes_to_other_and_a_choice_shows_its_type() {
    let items = json!([
        element("at0006", "Status", dv_text("else")),
        element("at0007", "Result", dv_text("high"))
    ]);
    let made = made(Ids::Ehrbase, &composition(items, json!([])));
    assert_eq!(made["visit/pulse:0/any_event:0/status|other"], "\"else\"");
    assert_eq!(
        made["visit/pulse:0/any_event:0/result/text_value"],
        "\"high\""
    );
}

#[test]
fn a_doubled_key_keeps_its_first_place_and_its_last_value() {
    let unknown = |code: &str, mapped: &str| {
        json!({ "_type": "ELEMENT", "name": dv_text("x"), "archetype_node_id": code,
                "null_flavour": { "_type": "DV_CODED_TEXT", "value": "unknown", "mappings": [mapping(mapped)] } })
    };
    // Quirk Q6 writes both mappings to the same key of the event as well.
    let composition = composition(
        json!([unknown("at0004", "first"), unknown("at0005", "the second")]),
        json!([]),
    );
    let plan = plan(&template().to_string(), Ids::Ehrbase);
    let text = flat(&plan, &composition.to_string());
    let doubled = "\"visit/pulse:0/any_event:0/_mapping:0/target|code\":\"the second\"";
    let first = text.find(doubled).unwrap();
    assert!(first < text.find("rate/_null_flavour").unwrap());
    let facts = facts(&text);
    assert_eq!(
        facts["visit/pulse:0/any_event:0/rate/_null_flavour/_mapping:0/target|code"],
        "\"first\""
    );
    assert_eq!(
        facts["visit/pulse:0/any_event:0/rate_unit/_null_flavour/_mapping:0/target|code"],
        "\"the second\""
    );
    let loss = loss(&composition);
    // Match, code and terminology of the second; of the first all but the code, which is equal.
    assert_eq!(loss.count(LossKind::Doubled), 5);
    assert_eq!(loss.count(LossKind::Overwritten), 0);
}

#[test]
fn post_rules_of_hidden_attributes_write_to_the_container() {
    let mut template = template();
    let path = "/content[openEHR-EHR-INSTRUCTION.order.v1]";
    let children = template["tree"]["children"].as_array_mut().unwrap();
    children.push(node("Order", "INSTRUCTION", (0, 1), path, vec![]));
    let mut ordered = composition(json!([]), json!([]));
    let status = json!({ "_type": "CODE_PHRASE", "code_string": "H" });
    ordered["content"][0]["data"]["period"] =
        json!({ "_type": "DV_DURATION", "value": "PT1H", "normal_status": status });
    let language = json!({ "_type": "CODE_PHRASE", "code_string": "de" });
    let workflow =
        json!({ "_type": "DV_PARSABLE", "value": "a", "formalism": "b", "language": language });
    ordered["content"].as_array_mut().unwrap().push(json!({
        "_type": "INSTRUCTION", "name": dv_text("Order"), "wf_definition": workflow,
        "archetype_node_id": "openEHR-EHR-INSTRUCTION.order.v1"
    }));
    let made = facts(&flat(
        &plan(&template.to_string(), Ids::Ehrbase),
        &ordered.to_string(),
    ));
    assert_eq!(made["visit/order/_wf_definition|value"], "\"a\"");
    assert_eq!(made["visit/order/_wf_definition/_language|code"], "\"de\"");
    assert_eq!(made["visit/order/_language|code"], "\"de\"", "quirk Q6");
    assert_eq!(made["visit/pulse:0|normal_status"], "\"H\"");
    assert!(!made.values().any(|value| value.contains("PT1H")));
}

#[test]
fn a_party_that_turns_out_to_be_related_shows_its_relationship() {
    let mut template = template();
    let composer = &mut template["tree"]["children"].as_array_mut().unwrap()[4];
    assert_eq!(composer["id"], "composer");
    composer["rmType"] = json!("PARTY_IDENTIFIED");
    let mut related = composition(json!([]), json!([]));
    related["composer"] = json!({ "_type": "PARTY_RELATED", "name": "A. Example",
        "relationship": { "_type": "DV_CODED_TEXT", "value": "mother", "defining_code": { "code_string": "10" } } });
    let made = facts(&flat(
        &plan(&template.to_string(), Ids::Ehrbase),
        &related.to_string(),
    ));
    assert_eq!(made["visit/composer|name"], "\"A. Example\"");
    assert_eq!(made["visit/composer/relationship|code"], "\"10\"");
}

#[test]
fn a_single_event_of_either_type_does_not_show() {
    let mut template = template();
    let event = &mut template["tree"]["children"][2]["children"][0];
    assert_eq!(event["rmType"], "EVENT");
    event["max"] = json!(1);
    event["rmType"] = json!("POINT_EVENT");
    let mut other = event.clone();
    other["rmType"] = json!("INTERVAL_EVENT");
    template["tree"]["children"][2]["children"]
        .as_array_mut()
        .unwrap()
        .push(other);
    let composition = composition(
        json!([element("at0005", "Rate unit", dv_text("x"))]),
        json!([]),
    );
    let made = facts(&flat(
        &plan(&template.to_string(), Ids::Ehrbase),
        &composition.to_string(),
    ));
    assert_eq!(made["visit/pulse:0/rate_unit"], "\"x\"");
}

#[test]
fn an_action_loses_keys_named_like_its_instruction_details() {
    let mut care = composition(json!([]), json!([]));
    care["content"] = json!([{
        "_type": "ACTION", "name": dv_text("Care"), "archetype_node_id": "openEHR-EHR-ACTION.care.v1",
        "instruction_details": { "_type": "INSTRUCTION_DETAILS", "activity_id": "activities[at0001]" },
        "description": { "_type": "ITEM_TREE", "name": dv_text("Tree"), "archetype_node_id": "at0001", "items": [
            element("at0003", "Note", dv_text("kept")) ] }
    }]);
    let made = made(Ids::Ehrbase, &care);
    assert_eq!(made["visit/care/note"], "\"kept\"");
    assert_eq!(
        made["visit/care/_instruction_details|activity_id"],
        "\"activities[at0001]\""
    );
    assert_eq!(made.get("visit/care/activity_id"), None);
    care["content"][0]["description"]["items"][0] =
        element("at0002", "Activity id", dv_text("vanishes"));
    assert!(!made_text(&care).contains("vanishes"));
    assert_eq!(
        paths(&loss(&care), LossKind::Hidden),
        ["/content[0,openEHR-EHR-ACTION.care.v1]/description/items[0,at0002]/value/value"]
    );
}

fn made_text(composition: &Value) -> String {
    flat(
        &plan(&template().to_string(), Ids::Ehrbase),
        &composition.to_string(),
    )
}

#[test]
fn the_report_tells_why_a_leaf_is_lost() {
    let cluster = |name: &str| {
        json!({ "_type": "CLUSTER", "name": dv_text(name), "archetype_node_id": "at0008",
                "items": [element("at0009", "Comment", dv_text("x"))] })
    };
    let rate = || json!({ "_type": "DV_QUANTITY", "magnitude": 72, "units": "/min", "property": { "code_string": "382" } });
    let items = json!([
        element("at0004", "Rate", rate()),
        element("at0004", "Rate", rate()),
        cluster("Left"),
        cluster("Right"),
        element("at0099", "origin", dv_text("hidden")),
        element("at0098", "New", dv_text("not there")),
    ]);
    let mut lossy = composition(items, json!([]));
    lossy["content"][0]["encoding"]["code_string"] = json!("ISO-8859-1");
    let loss = loss(&lossy);
    let items = "/content[0,openEHR-EHR-OBSERVATION.pulse.v1]/data/events[0,at0002]/data/items";
    assert_eq!(
        paths(&loss, LossKind::NoKey),
        [format!("{items}[0,at0004]/value/property/code_string")]
    );
    assert!(
        paths(&loss, LossKind::Surplus).contains(&&*format!("{items}[1,at0004]/value/magnitude"))
    );
    assert!(
        paths(&loss, LossKind::Renamed)
            .contains(&&*format!("{items}[3,at0008]/items[0,at0009]/value/value"))
    );
    assert!(paths(&loss, LossKind::Hidden).contains(&&*format!("{items}[4,at0099]/value/value")));
    assert!(
        paths(&loss, LossKind::NotInTemplate).contains(&&*format!("{items}[5,at0098]/value/value"))
    );
    assert_eq!(
        paths(&loss, LossKind::Encoding),
        ["/content[0,openEHR-EHR-OBSERVATION.pulse.v1]/encoding/code_string"]
    );
    assert!(
        paths(&loss, LossKind::Container)
            .iter()
            .all(|path| path.ends_with("/name/value"))
    );
}

#[test]
fn a_clash_of_sql_names_is_decided_by_the_template() {
    let plan = plan(&template().to_string(), Ids::Ehrbase);
    let sql = |flat: &str| {
        plan.name_map()
            .iter()
            .find(|name| name.flat == flat)
            .map(|name| name.sql.as_str())
    };
    assert_eq!(
        sql("visit/pulse/any_event/rate|magnitude"),
        Some("visit__pulse__any_event__rate_magnitude")
    );
    assert_eq!(
        sql("visit/pulse/any_event/rate|unit"),
        Some("visit__pulse__any_event__rate_unit")
    );
    assert_eq!(
        sql("visit/pulse/any_event/rate_unit"),
        Some("visit__pulse__any_event__rate_unit_2")
    );
    // Only the text is there: it keeps the number it has in every composition.
    let composition = composition(
        json!([element("at0005", "Rate unit", dv_text("per minute"))]),
        json!([]),
    );
    let text = composition.to_string();
    let tape = Tape::parse(&text).unwrap();
    let mut writer = FlattenedWriter::new();
    let made = facts(
        writer
            .write(&plan, &mut Walker::new(), tape.root(&text), None)
            .unwrap(),
    );
    assert_eq!(
        made["visit__pulse_0__any_event_0__rate_unit_2"],
        "\"per minute\""
    );
    assert_eq!(writer.renamed(), []);
}

#[test]
fn a_clash_of_sql_names_that_only_a_composition_shows_is_told() {
    let mut template = template();
    let children = template["tree"]["children"].as_array_mut().unwrap();
    let name = "Pulse 0 subject";
    children.push(node(
        name,
        "SECTION",
        (0, 1),
        "/content[openEHR-EHR-SECTION.adhoc.v1]",
        vec![node(
            "x",
            "EVALUATION",
            (0, 1),
            "/content[openEHR-EHR-SECTION.adhoc.v1]/items[openEHR-EHR-EVALUATION.x.v1]",
            vec![],
        )],
    ));
    children.push(node(
        "Pulse 0",
        "SECTION",
        (0, 1),
        "/content[openEHR-EHR-SECTION.other.v1]",
        vec![node(
            "comment",
            "EVALUATION",
            (0, 1),
            "/content[openEHR-EHR-SECTION.other.v1]/items[openEHR-EHR-EVALUATION.comment.v1]",
            vec![],
        )],
    ));
    let plan = plan(&template.to_string(), Ids::Ehrbase);
    let mut clashing = composition(
        json!([]),
        json!([element("at0012", "Comment", dv_text("text"))]),
    );
    clashing["content"][0]["provider"] =
        json!({ "_type": "PARTY_IDENTIFIED", "name": "of the observation" });
    let evaluation = json!({ "_type": "EVALUATION", "name": dv_text("comment"), "archetype_node_id": "openEHR-EHR-EVALUATION.comment.v1" });
    let section = json!({ "_type": "SECTION", "name": dv_text("Pulse 0"), "archetype_node_id": "openEHR-EHR-SECTION.other.v1",
                          "items": [evaluation], "uid": { "value": "of the section" } });
    clashing["content"].as_array_mut().unwrap().push(section);
    clashing["content"][0]["uid"] = json!({ "value": "of the observation" });
    let text = clashing.to_string();
    let tape = Tape::parse(&text).unwrap();
    let mut writer = FlattenedWriter::new();
    let made = facts(
        writer
            .write(&plan, &mut Walker::new(), tape.root(&text), None)
            .unwrap(),
    );
    assert_eq!(made["visit__pulse_0___uid"], "\"of the observation\"");
    assert_eq!(made["visit__pulse_0___uid_2"], "\"of the section\"");
    let renamed = writer.renamed().first().unwrap();
    assert_eq!(
        (&*renamed.flat, &*renamed.sql),
        ("visit/pulse_0/_uid", "visit__pulse_0___uid_2")
    );
}

#[test]
fn numbers_and_times_are_written_as_java_writes_them() {
    let rate = json!({ "_type": "DV_QUANTITY", "magnitude": 10_000_000, "units": "/min", "precision": 1.0 });
    let mut composition = composition(json!([element("at0004", "Rate", rate)]), json!([]));
    composition["context"]["start_time"]["value"] = json!("20261123T035012,100+0000");
    let made = made(Ids::Ehrbase, &composition);
    assert_eq!(made["visit/pulse:0/any_event:0/rate|magnitude"], "1.0E7");
    assert_eq!(made["visit/pulse:0/any_event:0/rate|precision"], "1");
    assert_eq!(made["visit/start_time"], "\"2026-11-23T03:50:12.1Z\"");
}

#[test]
fn a_document_that_is_no_composition_is_refused() {
    let plan = plan(&template().to_string(), Ids::Ehrbase);
    for text in [
        "[]",
        "null",
        "\"COMPOSITION\"",
        "{\"_type\":\"EHR_STATUS\"}",
    ] {
        let tape = Tape::parse(text).unwrap();
        let refused = JsonWriter::new()
            .write(&plan, &mut Walker::new(), tape.root(text), None)
            .map(str::to_owned);
        assert_eq!(refused, Err(FlatError::NotAComposition), "{text}");
    }
}

#[test]
fn an_error_names_the_place_in_the_template() {
    let mut broken = template();
    broken["tree"]["children"][0]["rmType"] = json!(7);
    let error = WebTemplate::parse(&broken.to_string()).unwrap_err();
    assert!(
        error.to_string().contains("`tree.children[0].rmType`"),
        "{error}"
    );
    assert!(matches!(
        WebTemplate::parse("{"),
        Err(WebTemplateError::Json(_))
    ));

    let compile = |template: &Value| {
        Plan::compile(
            &WebTemplate::parse(&template.to_string()).unwrap(),
            Ids::Ehrbase,
        )
    };
    let mut broken = template();
    broken["tree"]["children"][0]["aqlPath"] = json!("/content[");
    assert!(matches!(compile(&broken), Err(CompileError::Path { id, .. }) if id == "category"));
    broken["tree"]["children"][0]["aqlPath"] = json!("");
    assert!(matches!(compile(&broken), Err(CompileError::NotBelow { id, .. }) if id == "category"));
    broken["tree"]["children"][0] = node("a\"b", "CLUSTER", (0, 1), PULSE, vec![]);
    assert_eq!(compile(&broken), Err(CompileError::Id));
}
