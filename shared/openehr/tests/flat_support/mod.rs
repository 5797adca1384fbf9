//! What the FLAT tests share: the corpus, a small template of our own, and ways to read FLAT.

use atlas_openehr::flat::{Ids, JsonWriter, Plan, Walker};
use atlas_openehr::json::{Kind, Node, Tape};
use atlas_openehr::webtemplate::WebTemplate;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The corpus, or `None` (said aloud) where it is not laid out; under CI that is a failure.
pub fn corpus() -> Option<Corpus> {
    let folder = atlas_machine::corpus().unwrap();
    if folder.join("pairs.tsv").is_file() {
        return Some(Corpus::new(folder));
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "the corpus is not where ATLAS_CORPUS says"
    );
    println!("skipped: no corpus; set ATLAS_CORPUS to its folder");
    None
}

/// The conformance corpus: compositions with the FLAT that EHRbase made of them.
pub struct Corpus {
    folder: PathBuf,
    /// The template of each pair and the number of its FLAT keys, by the pair's stem.
    templates: BTreeMap<String, (String, usize)>,
}

/// One composition of the corpus.
pub struct Pair {
    pub name: String,
    pub template: String,
    pub canonical: String,
    pub flat: String,
}

impl Corpus {
    fn new(folder: PathBuf) -> Self {
        let table = fs::read_to_string(folder.join("pairs.tsv")).unwrap();
        let templates = table.lines().skip(1).map(|row| {
            let row: Vec<_> = row.split('\t').collect();
            (
                row[0].to_owned(),
                (row[1].to_owned(), row[3].parse().unwrap()),
            )
        });
        Self {
            templates: templates.collect(),
            folder,
        }
    }

    /// The pairs that `pairs.tsv` lists.
    pub fn pairs(&self) -> Vec<Pair> {
        let pairs = self.templates.iter().map(|(stem, (template, keys))| {
            let pair = self.pair(&self.folder, stem, template);
            assert_eq!(
                facts(&pair.flat).len(),
                *keys,
                "{stem} has another number of keys than the list says"
            );
            pair
        });
        pairs.collect()
    }

    /// The mutated compositions; a mutant is named after its origin, with a number behind.
    pub fn mutants(&self) -> Vec<Pair> {
        let folder = self.folder.join("mutants");
        let files = fs::read_dir(folder.join("canonical")).unwrap();
        let mut stems: Vec<_> = files
            .map(|file| {
                file.unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        stems.sort();
        let template = |stem: &str| &self.templates[stem.rsplit_once('_').unwrap().0].0;
        stems
            .iter()
            .map(|stem| self.pair(&folder, stem, template(stem)))
            .collect()
    }

    fn pair(&self, folder: &Path, stem: &str, template: &str) -> Pair {
        let read = |side: &str| {
            fs::read_to_string(folder.join(side).join(format!("{stem}.json"))).unwrap()
        };
        Pair {
            name: stem.to_owned(),
            template: template.to_owned(),
            canonical: read("canonical"),
            flat: read("flat"),
        }
    }

    /// The text of a web template.
    pub fn template(&self, stem: &str) -> String {
        fs::read_to_string(self.folder.join(format!("webtemplate/{stem}.json"))).unwrap()
    }

    /// The plans of all templates that pairs have.
    pub fn plans(&self, ids: Ids) -> HashMap<String, Plan> {
        self.templates
            .values()
            .map(|(stem, _)| (stem.clone(), plan(&self.template(stem), ids)))
            .collect()
    }
}

/// The plan of a web template that is known to have one.
pub fn plan(template: &str, ids: Ids) -> Plan {
    Plan::compile(&WebTemplate::parse(template).unwrap(), ids).unwrap()
}

/// The FLAT text of a composition that is known to have one.
pub fn flat(plan: &Plan, canonical: &str) -> String {
    let tape = Tape::parse(canonical).unwrap();
    JsonWriter::new()
        .write(plan, &mut Walker::new(), tape.root(canonical), None)
        .unwrap()
        .to_owned()
}

/// What a FLAT object says: each key with its value, numbers as their text.
pub fn facts(text: &str) -> BTreeMap<String, String> {
    let tape = Tape::parse(text).unwrap();
    let mut facts = BTreeMap::new();
    for (key, value) in tape.root(text).members() {
        let doubled = facts.insert(key.as_str().unwrap().into_owned(), fact(value));
        assert!(doubled.is_none(), "a key is there twice");
    }
    facts
}

/// A value as text that depends neither on member order nor on escapes.
fn fact(value: Node<'_>) -> String {
    match value.kind() {
        Kind::String => format!("{:?}", value.as_str().unwrap()),
        Kind::Object => {
            let members = value
                .members()
                .map(|(key, value)| (key.as_str().unwrap().into_owned(), fact(value)));
            format!("{:?}", members.collect::<BTreeMap<_, _>>())
        }
        Kind::Array => format!("{:?}", value.items().map(fact).collect::<Vec<_>>()),
        _ => value.raw().to_owned(),
    }
}

/// The same JSON in another guise: members permuted, white space strewn in, characters escaped.
pub fn disguise(text: &str, random: &mut fastrand::Rng) -> String {
    let tape = Tape::parse(text).unwrap();
    let mut out = String::new();
    disguise_value(tape.root(text), random, &mut out);
    out
}

fn disguise_value(value: Node<'_>, random: &mut fastrand::Rng, out: &mut String) {
    blank(random, out);
    match value.kind() {
        Kind::Object => {
            let mut members: Vec<_> = value.members().collect();
            random.shuffle(&mut members);
            out.push('{');
            for (place, (key, value)) in members.into_iter().enumerate() {
                out.push_str(if place > 0 { "," } else { "" });
                disguise_value(key, random, out);
                out.push(':');
                disguise_value(value, random, out);
            }
            out.push('}');
        }
        Kind::Array => {
            out.push('[');
            for (place, item) in value.items().enumerate() {
                out.push_str(if place > 0 { "," } else { "" });
                disguise_value(item, random, out);
            }
            out.push(']');
        }
        Kind::String => {
            let escaped = random.u8(..) < 40;
            out.push('"');
            for char in value.as_str().unwrap().chars() {
                let must = char < ' ' || matches!(char, '"' | '\\');
                if must || (escaped && random.u8(..) < 80) {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                } else {
                    out.push(char);
                }
            }
            out.push('"');
        }
        _ => out.push_str(value.raw()),
    }
    blank(random, out);
}

fn blank(random: &mut fastrand::Rng, out: &mut String) {
    if random.u8(..) < 40 {
        out.push_str(["  ", "\n", "\t", "\r\n "][random.usize(..4)]);
    }
}

/// A served node of our own template.
pub fn node(
    name: &str,
    rm_type: &str,
    occurs: (i64, i64),
    path: &str,
    children: Vec<Value>,
) -> Value {
    let id = name.to_lowercase().replace(' ', "_");
    json!({ "id": id, "name": name, "rmType": rm_type, "min": occurs.0, "max": occurs.1,
            "aqlPath": path, "children": children })
}

pub const PULSE: &str = "/content[openEHR-EHR-OBSERVATION.pulse.v1]";
const EVENT: &str = "/content[openEHR-EHR-OBSERVATION.pulse.v1]/data[at0001]/events[at0002]";

/// A template as it would be served: containers dropped, twins, a choice, a slot for one name.
pub fn template() -> Value {
    let at = |place: &str| format!("{EVENT}{place}");
    let protocol = |place: &str| format!("{PULSE}/protocol[at0010]{place}");
    let action = |place: &str| format!("/content[openEHR-EHR-ACTION.care.v1]{place}");
    let mut second_comment = node(
        "Comment",
        "DV_TEXT",
        (0, 1),
        &protocol("/items[at0011]/value"),
        vec![],
    );
    second_comment["id"] = json!("comment2");
    let mut status = node(
        "Status",
        "DV_CODED_TEXT",
        (0, 1),
        &at("/data[at0003]/items[at0006]/value"),
        vec![],
    );
    status["inputs"] =
        json!([{ "suffix": "code", "type": "CODED_TEXT" }, { "suffix": "other", "type": "TEXT" }]);
    let result = at("/data[at0003]/items[at0007]");
    let mut quantity = node(
        "Result",
        "DV_QUANTITY",
        (0, 1),
        &format!("{result}/value"),
        vec![],
    );
    quantity["id"] = json!("quantity_value");
    let mut text = node(
        "Result",
        "DV_TEXT",
        (0, 1),
        &format!("{result}/value"),
        vec![],
    );
    text["id"] = json!("text_value");
    let observation = node(
        "Pulse",
        "OBSERVATION",
        (0, -1),
        PULSE,
        vec![
            node(
                "Any event",
                "EVENT",
                (0, -1),
                EVENT,
                vec![
                    node(
                        "Rate",
                        "DV_QUANTITY",
                        (0, 1),
                        &at("/data[at0003]/items[at0004]/value"),
                        vec![],
                    ),
                    node(
                        "Rate unit",
                        "DV_TEXT",
                        (0, 1),
                        &at("/data[at0003]/items[at0005]/value"),
                        vec![],
                    ),
                    status,
                    node("Result", "ELEMENT", (0, 1), &result, vec![quantity, text]),
                    node(
                        "Left",
                        "CLUSTER",
                        (0, 1),
                        &at("/data[at0003]/items[at0008 and name/value='Left']"),
                        vec![node(
                            "Comment",
                            "DV_TEXT",
                            (0, -1),
                            &at(
                                "/data[at0003]/items[at0008 and name/value='Left']/items[at0009]/value",
                            ),
                            vec![],
                        )],
                    ),
                    node("time", "DV_DATE_TIME", (1, 1), &at("/time"), vec![]),
                ],
            ),
            node(
                "Comment",
                "DV_TEXT",
                (0, 1),
                &protocol("/items[at0012]/value"),
                vec![],
            ),
            second_comment,
            node(
                "encoding",
                "CODE_PHRASE",
                (1, 1),
                &format!("{PULSE}/encoding"),
                vec![],
            ),
            node(
                "subject",
                "PARTY_PROXY",
                (1, 1),
                &format!("{PULSE}/subject"),
                vec![],
            ),
        ],
    );
    let care = node(
        "Care",
        "ACTION",
        (0, 1),
        &action(""),
        vec![
            node(
                "Activity id",
                "DV_TEXT",
                (0, 1),
                &action("/description[at0001]/items[at0002]/value"),
                vec![],
            ),
            node(
                "Note",
                "DV_TEXT",
                (0, 1),
                &action("/description[at0001]/items[at0003]/value"),
                vec![],
            ),
            node(
                "activity_id",
                "STRING",
                (1, 1),
                &action("/instruction_details/activity_id"),
                vec![],
            ),
        ],
    );
    let mut root = node(
        "Visit",
        "COMPOSITION",
        (1, 1),
        "",
        vec![
            node("category", "DV_CODED_TEXT", (1, 1), "/category", vec![]),
            node(
                "context",
                "EVENT_CONTEXT",
                (0, 1),
                "/context",
                vec![node(
                    "start_time",
                    "DV_DATE_TIME",
                    (1, 1),
                    "/context/start_time",
                    vec![],
                )],
            ),
            observation,
            care,
            node("composer", "PARTY_PROXY", (1, 1), "/composer", vec![]),
        ],
    );
    root["nodeId"] = json!("openEHR-EHR-COMPOSITION.visit.v1");
    json!({ "templateId": "Visit", "version": "2.3", "defaultLanguage": "en", "tree": root })
}

pub fn dv_text(value: &str) -> Value {
    json!({ "_type": "DV_TEXT", "value": value })
}

pub fn element(code: &str, name: &str, value: Value) -> Value {
    json!({ "_type": "ELEMENT", "name": dv_text(name), "archetype_node_id": code, "value": value })
}

/// A composition with one observation, of these items in one event and those in the protocol.
pub fn composition(items: Value, protocol: Value) -> Value {
    let time = json!({ "_type": "DV_DATE_TIME", "value": "2026-11-23T03:50:12Z" });
    let tree = |code: &str, items: Value| json!({ "_type": "ITEM_TREE", "name": dv_text("Tree"), "archetype_node_id": code, "items": items });
    json!({
        "_type": "COMPOSITION", "name": dv_text("Visit"),
        "archetype_node_id": "openEHR-EHR-COMPOSITION.visit.v1",
        "composer": { "_type": "PARTY_SELF" },
        "context": { "_type": "EVENT_CONTEXT", "start_time": time },
        "content": [{
            "_type": "OBSERVATION", "name": dv_text("Pulse"),
            "archetype_node_id": "openEHR-EHR-OBSERVATION.pulse.v1",
            "encoding": { "_type": "CODE_PHRASE", "terminology_id": { "value": "IANA_character-sets" }, "code_string": "UTF-8" },
            "subject": { "_type": "PARTY_SELF" },
            "data": { "_type": "HISTORY", "name": dv_text("History"), "archetype_node_id": "at0001", "origin": time,
                "events": [{ "_type": "POINT_EVENT", "name": dv_text("Any event"), "archetype_node_id": "at0002",
                    "time": time, "data": tree("at0003", items) }] },
            "protocol": tree("at0010", protocol),
        }]
    })
}
