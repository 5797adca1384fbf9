//! What holds for every composition and every template, tried on many.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, missing_docs)]
#![allow(unreachable_pub)]

mod flat_support;

use atlas_openehr::flat::{
    FlattenedWriter, Ids, JsonWriter, Key, Loss, LossKind, Plan, Sink, Walker,
};
use atlas_openehr::json::{Kind, Node, Tape};
use atlas_openehr::webtemplate::WebTemplate;
use flat_support::{composition, corpus, disguise, dv_text, element, facts, flat, plan, template};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;

fn example() -> String {
    let items = json!([
        element("at0004", "Rate", json!({ "_type": "DV_QUANTITY", "magnitude": 72, "units": "/min", "precision": 0 })),
        element("at0005", "Rate unit", dv_text("per minute")),
        element("at0006", "Status", dv_text("free text")),
        element("at0007", "Renamed", json!({ "_type": "DV_CODED_TEXT", "value": "normal",
            "defining_code": { "code_string": "at0020", "terminology_id": { "value": "local" } },
            "mappings": [{ "match": "=", "target": { "code_string": "1", "terminology_id": { "value": "SNOMED-CT" } } }] })),
        { "_type": "CLUSTER", "name": dv_text("Left"), "archetype_node_id": "at0008", "items": [
            element("at0009", "Comment", dv_text("first \"quoted\"\n")), element("at0009", "Comment", dv_text("second")) ] },
        { "_type": "CLUSTER", "name": dv_text("Right"), "archetype_node_id": "at0008", "items": [
            element("at0009", "Comment", dv_text("dropped")) ] }
    ]);
    composition(
        items,
        json!([element("at0011", "Comment", dv_text("twin"))]),
    )
    .to_string()
}

static PLAN: LazyLock<Plan> = LazyLock::new(|| plan(&template().to_string(), Ids::Ehrbase));

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_guise_of_the_json_changes_nothing(seed: u64) {
        let disguised = disguise(&example(), &mut fastrand::Rng::with_seed(seed));
        prop_assert_eq!(facts(&flat(&PLAN, &disguised)), facts(&flat(&PLAN, &example())));
    }

    #[test]
    fn compiling_depends_on_what_the_template_says_alone(seed: u64) {
        let disguised = disguise(&template().to_string(), &mut fastrand::Rng::with_seed(seed));
        prop_assert_eq!(&plan(&disguised, Ids::Ehrbase), &*PLAN);
    }

    #[test]
    fn any_json_is_walked_or_refused(json in any_json()) {
        let text = json.to_string();
        walk_all_ways(&PLAN, &text);
    }

    #[test]
    fn any_json_in_place_of_a_part_is_walked(json in any_json(), place: u16) {
        let mut whole: Value = serde_json::from_str(&example()).unwrap();
        replace(&mut whole, usize::from(place), &json);
        walk_all_ways(&PLAN, &whole.to_string());
    }

    #[test]
    fn any_json_in_place_of_a_part_is_compiled_or_refused(json in any_json(), place: u16) {
        let mut whole = template();
        replace(&mut whole, usize::from(place), &json);
        compile_and_walk(&whole.to_string());
    }
}

/// JSON whose strings are such as the walk looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "_type",
        "COMPOSITION",
        "OBSERVATION",
        "ELEMENT",
        "DV_TEXT",
        "DV_CODED_TEXT",
        "DV_QUANTITY",
        "DV_INTERVAL",
        "DV_MULTIMEDIA",
        "DV_PROPORTION",
        "PARTY_RELATED",
        "at0001",
        "at0004",
        "name",
        "value",
        "items",
        "content",
        "data",
        "events",
        "links",
        "feeder_audit",
        "mappings",
        "thumbnail",
        "magnitude",
        "children",
        "aqlPath",
        "rmType",
        "tree",
        "id",
        "/items[at0001]/value",
        "/content[",
        "2026-11",
        "",
    ]);
    let text = prop_oneof![words.prop_map(str::to_owned), any::<String>()];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(text.clone(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Puts JSON where the value with this number (in any order that stays the same) stands.
fn replace(whole: &mut Value, place: usize, json: &Value) {
    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(count).sum(),
            Value::Object(members) => members.values().map(count).sum(),
            _ => 0,
        }
    }
    fn put(value: &mut Value, left: &mut usize, json: &Value) {
        if *left == 0 {
            *value = json.clone();
        }
        *left = left.wrapping_sub(1);
        match value {
            _ if *left > 1 << 20 => {}
            Value::Array(items) => items.iter_mut().for_each(|item| put(item, left, json)),
            Value::Object(members) => members
                .values_mut()
                .for_each(|member| put(member, left, json)),
            _ => {}
        }
    }
    let mut left = place % count(whole);
    put(whole, &mut left, json);
}

/// Everything that is done with a document; what comes out must be JSON without doubled keys.
fn walk_all_ways(plan: &Plan, text: &str) {
    let tape = Tape::parse(text).unwrap();
    let root = tape.root(text);
    let mut walker = Walker::new();
    let mut writer = JsonWriter::new();
    let Ok(made) = writer.write(plan, &mut walker, root, None) else {
        return;
    };
    let keys = facts(made).len();
    let mut flattened = FlattenedWriter::new();
    assert_eq!(
        facts(flattened.write(plan, &mut walker, root, None).unwrap()).len(),
        keys
    );
    let again = writer
        .write_with_loss(plan, &mut walker, root, None, &mut Loss::with_leaves())
        .unwrap();
    assert_eq!(facts(again).len(), keys);
}

fn compile_and_walk(template: &str) {
    let Ok(template) = WebTemplate::parse(template) else {
        return;
    };
    for ids in [Ids::Ehrbase, Ids::Template] {
        if let Ok(plan) = Plan::compile(&template, ids) {
            walk_all_ways(&plan, &example());
        }
    }
}

#[test]
fn the_guise_of_the_corpus_changes_nothing() {
    let Some(corpus) = corpus() else { return };
    let plans = corpus.plans(Ids::Ehrbase);
    let mut random = fastrand::Rng::with_seed(1);
    for pair in corpus.pairs() {
        let disguised = disguise(&pair.canonical, &mut random);
        assert_eq!(
            facts(&flat(&plans[&pair.template], &disguised)),
            facts(&pair.flat),
            "{}",
            pair.name
        );
    }
}

#[test]
fn compiling_the_corpus_depends_on_what_the_templates_say_alone() {
    let Some(corpus) = corpus() else { return };
    let mut random = fastrand::Rng::with_seed(2);
    let templates: BTreeSet<_> = corpus
        .pairs()
        .into_iter()
        .map(|pair| pair.template)
        .collect();
    for template in templates {
        let text = corpus.template(&template);
        for ids in [Ids::Ehrbase, Ids::Template] {
            assert_eq!(
                plan(&disguise(&text, &mut random), ids),
                plan(&text, ids),
                "{template}"
            );
        }
    }
}

/// Sets each text of a composition to a marker in turn: FLAT shows it, or the report names it.
#[test]
fn every_text_of_the_corpus_is_in_flat_or_in_the_loss_report() {
    let Some(corpus) = corpus() else { return };
    let plans = corpus.plans(Ids::Ehrbase);
    let mut random = fastrand::Rng::with_seed(3);
    let (mut shown, mut lost) = (0, 0);
    for pair in corpus.pairs().into_iter().chain(corpus.mutants()) {
        let plan = &plans[&pair.template];
        let tape = Tape::parse(&pair.canonical).unwrap();
        let mut texts = Vec::new();
        texts_of(tape.root(&pair.canonical), &mut String::new(), &mut texts);
        // A few of each composition keep the test short; the seed is fixed.
        random.shuffle(&mut texts);
        for (path, text) in texts.into_iter().take(12) {
            let marked = [
                &pair.canonical[..text.start],
                "\"MARKER\"",
                &pair.canonical[text.end..],
            ]
            .concat();
            let tape = Tape::parse(&marked).unwrap();
            let (mut writer, mut loss) = (JsonWriter::new(), Loss::with_leaves());
            let made = writer
                .write_with_loss(
                    plan,
                    &mut Walker::new(),
                    tape.root(&marked),
                    None,
                    &mut loss,
                )
                .unwrap();
            let is_shown = made.contains("MARKER");
            let is_lost = loss.leaves().iter().any(|leaf| leaf.path == path);
            assert!(
                is_shown || is_lost,
                "{}: {path} is neither in FLAT nor reported",
                pair.name
            );
            assert!(
                !(is_shown && is_lost),
                "{}: {path} is in FLAT and reported as lost",
                pair.name
            );
            shown += usize::from(is_shown);
            lost += usize::from(is_lost);
        }
    }
    println!("{shown} texts shown, {lost} lost");
    assert!(
        shown > 1000 && lost > 100,
        "the test has become weak: {shown} shown, {lost} lost"
    );
}

/// The texts that are recorded facts, with the paths the report would give them.
fn texts_of(value: Node<'_>, path: &mut String, found: &mut Vec<(String, std::ops::Range<usize>)>) {
    let start = path.len();
    match value.kind() {
        Kind::Object => {
            for (key, value) in value.members() {
                let name = key.as_str().unwrap();
                // A changed type or code makes another object of it; bytes are shown decoded.
                let kept = [
                    "_type",
                    "archetype_node_id",
                    "archetype_details",
                    "integrity_check",
                ];
                if !kept.contains(&&*name) {
                    path.push_str(&format!("/{name}"));
                    texts_of(value, path, found);
                    path.truncate(start);
                }
            }
        }
        Kind::Array => {
            for (index, item) in value.items().enumerate() {
                let code = item
                    .get("archetype_node_id")
                    .map(|code| format!(",{}", code.as_str().unwrap()));
                path.push_str(&format!("[{index}{}]", code.unwrap_or_default()));
                texts_of(item, path, found);
                path.truncate(start);
            }
        }
        Kind::String => found.push((path.clone(), value.span())),
        _ => {}
    }
}

/// Keeps each key that is a node's own, without its indexes.
#[derive(Default)]
struct Own(BTreeSet<String>);

impl Sink for Own {
    fn emit(&mut self, key: Key<'_>, _: atlas_openehr::flat::Value<'_>) {
        let segments = key
            .path
            .split('/')
            .map(|segment| segment.split_once(':').map_or(segment, |(id, _)| id));
        let path = segments.collect::<Vec<_>>().join("/");
        if key.own {
            self.0.insert(if key.suffix.is_empty() {
                path
            } else {
                format!("{path}|{}", key.suffix)
            });
        }
    }
}

#[test]
fn served_ids_and_sql_names_lose_nothing_and_the_name_map_knows_them() {
    let Some(corpus) = corpus() else { return };
    let (exact, stable) = (corpus.plans(Ids::Ehrbase), corpus.plans(Ids::Template));
    let (mut walker, mut writer) = (Walker::new(), FlattenedWriter::new());
    let mut names = (0, 0);
    for pair in corpus.pairs().into_iter().chain(corpus.mutants()) {
        let plan = &stable[&pair.template];
        let mut expected: Vec<_> = facts(&pair.flat).into_values().collect();
        expected.sort();
        let values = |text: &str| {
            let mut values: Vec<_> = facts(text).into_values().collect();
            values.sort();
            values
        };
        assert_eq!(
            values(&flat(plan, &pair.canonical)),
            expected,
            "{}",
            pair.name
        );

        let tape = Tape::parse(&pair.canonical).unwrap();
        let root = tape.root(&pair.canonical);
        for plan in [plan, &exact[&pair.template]] {
            assert_eq!(
                values(writer.write(plan, &mut walker, root, None).unwrap()),
                expected,
                "{}",
                pair.name
            );
        }
        let mut own = Own::default();
        plan.walk(&mut walker, root, None, &mut own).unwrap();
        let known: BTreeSet<_> = plan
            .name_map()
            .iter()
            .map(|name| name.flat.clone())
            .collect();
        names.1 += own.0.difference(&known).count();
        names.0 += own.0.len();
    }
    // A few compositions have values of another type than their template asks for.
    println!("{} keys, {} of them not in the name map", names.0, names.1);
    assert!(names.1 * 200 < names.0, "the name map knows too little");
    for plan in exact.values().chain(stable.values()) {
        let names: BTreeSet<_> = plan.name_map().iter().map(|name| &name.sql).collect();
        assert_eq!(
            names.len(),
            plan.name_map().len(),
            "{}: two columns with one name",
            plan.template_id()
        );
    }
}

#[test]
fn a_report_accounts_for_every_leaf_and_changes_nothing_in_flat() {
    let Some(corpus) = corpus() else { return };
    let plans = corpus.plans(Ids::Ehrbase);
    let mut walker = Walker::new();
    let mut total = Loss::counting();
    for pair in corpus.pairs().into_iter().chain(corpus.mutants()) {
        let plan = &plans[&pair.template];
        let tape = Tape::parse(&pair.canonical).unwrap();
        let root = tape.root(&pair.canonical);
        let (mut writer, mut loss) = (JsonWriter::new(), Loss::with_leaves());
        let made = writer
            .write_with_loss(plan, &mut walker, root, None, &mut loss)
            .unwrap();
        assert_eq!(facts(made), facts(&pair.flat), "{}", pair.name);
        assert_eq!(loss.leaves().len() as u64, loss.lost());
        writer
            .write_with_loss(plan, &mut walker, root, None, &mut total)
            .unwrap();
    }
    println!(
        "carried {}, {:?}",
        total.carried(),
        total.counts().collect::<Vec<_>>()
    );
    assert_eq!(total.leaves(), []);
    for kind in [
        LossKind::Encoding,
        LossKind::Doubled,
        LossKind::Surplus,
        LossKind::Renamed,
        LossKind::NoPostRules,
    ] {
        assert!(total.count(kind) > 0, "the mutants have {kind:?}");
    }
}
