//! Compositions with more in them than anyone recorded.

use super::Result;
use super::values::{NUMBER, phrase};
use fastrand::Rng;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a template allows where: the types of a value by the path of its ELEMENT, and how often a
/// node may occur. Paths go without names.
pub(super) struct Places {
    values: BTreeMap<String, Vec<String>>,
    most: BTreeMap<String, i64>,
    /// The paths at which an event of either class may stand. A template that is served hides the
    /// class of a lone event, and the server takes either there, whatever the template said.
    events: BTreeSet<String>,
}

impl Places {
    pub(super) fn of(web_template: &str) -> Result<Self> {
        let template: Value = serde_json::from_str(web_template)?;
        let mut places = Self {
            values: BTreeMap::new(),
            most: BTreeMap::new(),
            events: BTreeSet::new(),
        };
        places.add(&template["tree"]);
        Ok(places)
    }

    fn add(&mut self, node: &Value) {
        let text = |name: &str| node[name].as_str().unwrap_or_default();
        let path = without_names(text("aqlPath"));
        let rm_type = text("rmType").trim().to_owned();
        let most = node["max"].as_i64().unwrap_or(1);
        if let Some(element) = path.strip_suffix("/value") {
            self.values
                .entry(element.to_owned())
                .or_default()
                .push(rm_type.clone());
            self.most.entry(element.to_owned()).or_insert(most);
        }
        if rm_type == "EVENT" {
            self.events.insert(path.clone());
        }
        self.most.entry(path).or_insert(most);
        for child in node["children"].as_array().into_iter().flatten() {
            self.add(child);
        }
    }

    /// The types that a value may have.
    fn types(&self, path: &str) -> Vec<String> {
        self.values.get(path).cloned().unwrap_or_default()
    }

    fn is_repeatable(&self, path: &str) -> bool {
        self.most.get(path).is_some_and(|most| *most != 1)
    }
}

/// `[code and name/value='…']` as `[code]`.
fn without_names(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, behind)) = rest.split_once(" and name/value='") {
        out.push_str(before);
        rest = behind.split_once("']").map_or("", |(_, behind)| behind);
        out.push(']');
    }
    out.push_str(rest);
    out
}

/// Makes everything that a seed says.
pub(super) struct Generator {
    rng: Rng,
    /// One chance in so many for each addition that a place allows.
    rarely: usize,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rarely = [6, 25, 80][rng.usize(..3)];
        Self { rng, rarely }
    }

    pub(super) fn choose<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.rng.usize(..all.len())]
    }

    pub(super) fn one<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.rng.usize(..all.len())]
    }

    /// True once in so many times.
    pub(super) fn maybe(&mut self, times: usize) -> bool {
        self.rng.usize(..times) == 0
    }

    /// 1 to `most`.
    pub(super) fn up_to(&mut self, most: usize) -> usize {
        1 + self.rng.usize(..most)
    }

    pub(super) fn many(&mut self, count: usize, mut make: impl FnMut(&mut Self) -> Value) -> Value {
        (0..count).map(|_| make(self)).collect()
    }

    fn adds(&mut self) -> bool {
        let rarely = self.rarely;
        self.maybe(rarely)
    }

    /// The text of a composition made from another one.
    pub(super) fn composition(&mut self, base: &Value, places: &Places) -> Result<String> {
        let mut composition = base.clone();
        if let Some(members) = composition.as_object_mut() {
            self.object(members, "", places);
        }
        let text = serde_json::to_string(&composition)?;
        // Numbers that the tree cannot hold were put in as strings.
        let mut out = String::new();
        let mark = format!("\"{NUMBER}");
        let mut rest = &*text;
        while let Some((before, behind)) = rest.split_once(&mark) {
            let (number, behind) = behind.split_once('"').ok_or("a number without an end")?;
            out.push_str(before);
            out.push_str(number);
            rest = behind;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Goes through an object at a path and adds to it.
    fn object(&mut self, object: &mut Map<String, Value>, path: &str, places: &Places) {
        let class = object
            .get("_type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        for name in ["content", "items", "events", "activities", "rows"] {
            if let Some(Value::Array(items)) = object.get_mut(name) {
                self.list(items, &format!("{path}/{name}"), places);
            }
        }
        for name in [
            "data",
            "state",
            "protocol",
            "description",
            "other_context",
            "context",
            "item",
        ] {
            if let Some(Value::Object(inner)) = object.get_mut(name) {
                let below = place(path, name, inner.get("archetype_node_id"));
                self.object(inner, &below, places);
            }
        }
        // EHRbase's examples leave out the class of a history.
        let is_history = object.contains_key("origin");
        if object.contains_key("archetype_node_id") {
            self.locatable(object, &class);
        }
        match &*class {
            "COMPOSITION" => {
                if self.adds() {
                    object.insert("composer".to_owned(), self.party());
                }
                if self.adds() {
                    object.insert("language".to_owned(), self.language());
                }
            }
            "EVENT_CONTEXT" => self.context(object),
            "OBSERVATION" | "EVALUATION" | "INSTRUCTION" | "ACTION" | "ADMIN_ENTRY" => {
                self.entry(object, &class)
            }
            "ACTIVITY" if self.adds() => {
                object.insert("timing".to_owned(), self.value("DV_PARSABLE").into());
            }
            "POINT_EVENT" | "INTERVAL_EVENT" => {
                let may_last = class == "INTERVAL_EVENT" || places.events.contains(path);
                self.event(object, may_last);
            }
            "ELEMENT" => self.element(object, path, places),
            _ if is_history => {
                if self.adds() {
                    object.insert("origin".to_owned(), self.date_time());
                }
                for name in ["period", "duration"] {
                    if self.adds() {
                        object.insert(name.to_owned(), self.duration());
                    }
                }
            }
            _ => {}
        }
    }

    fn list(&mut self, items: &mut Vec<Value>, path: &str, places: &Places) {
        if !items.is_empty() && self.adds() {
            let place_of = self.rng.usize(..items.len());
            let one = items[place_of].clone();
            let below = format!("{path}[{}]", code(&one));
            match self.up_to(4) {
                1 if items.len() > 1 => {
                    items.remove(place_of);
                }
                2 if items.len() > 1 => self.rng.shuffle(items),
                _ if places.is_repeatable(&below) => items.push(one),
                _ => {}
            }
        }
        for item in items {
            let below = format!("{path}[{}]", code(item));
            if let Some(item) = item.as_object_mut() {
                self.object(item, &below, places);
            }
        }
    }

    fn locatable(&mut self, object: &mut Map<String, Value>, class: &str) {
        if class != "COMPOSITION" && self.adds() {
            let uid = json!({ "_type": "HIER_OBJECT_ID", "value": "6d4f1b2a-0000-4000-8000-000000000002" });
            object.insert("uid".to_owned(), uid);
        }
        if self.adds() {
            let count = self.up_to(2);
            let links = self.many(count, |generator| {
                json!({ "_type": "LINK", "meaning": generator.text(), "type": generator.text(),
                    "target": { "_type": "DV_EHR_URI", "value": "ehr://target/1" } })
            });
            object.insert("links".to_owned(), links);
        }
        if self.adds() {
            let audit = self.feeder_audit();
            object.insert("feeder_audit".to_owned(), audit);
        }
        if self.adds()
            && let Some(name) = object.get_mut("name")
        {
            match self.up_to(3) {
                1 => self.add_to_text(name),
                2 => name["value"] = "renamed".into(),
                _ => {
                    let value = name["value"].clone();
                    *name = self.text();
                    name["value"] = value;
                }
            }
        }
    }

    fn feeder_audit(&mut self) -> Value {
        let mut audit = json!({ "_type": "FEEDER_AUDIT", "originating_system_audit": self.feeder_audit_details() });
        if self.maybe(2) {
            audit["feeder_system_audit"] = self.feeder_audit_details();
        }
        for name in ["originating_system_item_ids", "feeder_system_item_ids"] {
            if self.maybe(2) {
                let count = self.up_to(2);
                audit[name] = self.many(count, Self::identifier);
            }
        }
        match self.up_to(3) {
            1 => audit["original_content"] = self.value("DV_PARSABLE").into(),
            2 => audit["original_content"] = self.multimedia(1),
            _ => {}
        }
        audit
    }

    fn feeder_audit_details(&mut self) -> Value {
        let mut details = json!({ "_type": "FEEDER_AUDIT_DETAILS", "system_id": "feeder" });
        if self.maybe(2) {
            details["time"] = self.date_time();
        }
        if self.maybe(2) {
            details["version_id"] = "final".into();
        }
        for name in ["location", "provider"] {
            if self.maybe(3) {
                details[name] = self.identified();
            }
        }
        if self.maybe(3) {
            details["subject"] = self.party();
        }
        details
    }

    fn participations(&mut self) -> Value {
        let count = self.up_to(2);
        self.many(count, |generator| {
            let mut participation = json!({ "_type": "PARTICIPATION", "function": generator.function(), "performer": generator.party() });
            if generator.maybe(2) {
                let code = generator.one(&["193", "216", "223"]);
                let mut mode = json!({ "_type": "DV_CODED_TEXT", "value": "not specified", "defining_code": phrase("openehr", code) });
                generator.add_to_text(&mut mode);
                participation["mode"] = mode;
            }
            if generator.maybe(3) {
                participation["time"] = json!({ "_type": "DV_INTERVAL", "lower": generator.date_time(),
                    "lower_unbounded": false, "upper_unbounded": true, "lower_included": true, "upper_included": false });
            }
            participation
        })
    }

    /// A code has to be one of openEHR's, and there is one only.
    fn function(&mut self) -> Value {
        let mut function = self.text();
        if function["_type"] == "DV_CODED_TEXT" {
            function["defining_code"] = phrase("openehr", "253");
        }
        function
    }

    fn context(&mut self, context: &mut Map<String, Value>) {
        if self.adds() {
            context.insert("start_time".to_owned(), self.date_time());
        }
        if self.adds() {
            context.insert("end_time".to_owned(), self.date_time());
        }
        if self.adds() {
            context.insert("location".to_owned(), "room 1".into());
        }
        if self.adds() {
            context.insert("health_care_facility".to_owned(), self.identified());
        }
        if self.adds() {
            context.insert("participations".to_owned(), self.participations());
        }
        if self.adds()
            && let Some(setting) = context.get_mut("setting")
        {
            self.add_to_text(setting);
        }
    }

    fn entry(&mut self, entry: &mut Map<String, Value>, class: &str) {
        if self.adds() {
            entry.insert("provider".to_owned(), self.party());
        }
        if self.adds() {
            entry.insert("subject".to_owned(), self.party());
        }
        if self.adds() {
            entry.insert("other_participations".to_owned(), self.participations());
        }
        if self.adds() {
            entry.insert(
                "workflow_id".to_owned(),
                self.reference("OBJECT_REF", "ANY"),
            );
        }
        if self.adds() {
            entry.insert("encoding".to_owned(), self.character_set());
        }
        if class != "ADMIN_ENTRY" && self.adds() {
            entry.insert(
                "guideline_id".to_owned(),
                self.reference("OBJECT_REF", "ANY"),
            );
        }
        match class {
            "ACTION" => {
                if self.adds() {
                    entry.insert("time".to_owned(), self.value("DV_DATE_TIME").into());
                }
                if self.adds() {
                    let details = json!({ "_type": "INSTRUCTION_DETAILS", "activity_id": "activities[at0001]",
                        "instruction_id": { "_type": "LOCATABLE_REF", "namespace": "local", "type": "INSTRUCTION",
                            "id": { "_type": "OBJECT_VERSION_ID", "value": "6d4f1b2a-0000-4000-8000-000000000003::a.b::1" },
                            "path": "/content[0]" } });
                    entry.insert("instruction_details".to_owned(), details);
                }
                if let Some(Value::Object(transition)) = entry.get_mut("ism_transition") {
                    self.transition(transition);
                }
            }
            "INSTRUCTION" => {
                if self.adds() {
                    entry.insert("wf_definition".to_owned(), self.value("DV_PARSABLE").into());
                }
                if self.adds() {
                    entry.insert("expiry_time".to_owned(), self.value("DV_DATE_TIME").into());
                }
                if self.adds() {
                    entry.insert("narrative".to_owned(), self.text());
                }
            }
            _ => {}
        }
    }

    fn transition(&mut self, transition: &mut Map<String, Value>) {
        for name in ["current_state", "careflow_step", "transition"] {
            if self.adds()
                && let Some(text) = transition.get_mut(name)
            {
                self.add_to_text(text);
            }
        }
        if self.adds() {
            let code = self.one(&["535", "536", "537"]);
            let mut text = json!({ "_type": "DV_CODED_TEXT", "value": "start", "defining_code": phrase("openehr", code) });
            self.add_to_text(&mut text);
            transition.insert("transition".to_owned(), text);
        }
        if self.adds() {
            let count = self.up_to(2);
            let reasons = self.many(count, Self::text);
            transition.insert("reason".to_owned(), reasons);
        }
    }

    fn event(&mut self, event: &mut Map<String, Value>, may_last: bool) {
        if self.adds() {
            event.insert("time".to_owned(), self.value("DV_DATE_TIME").into());
        }
        if may_last && self.adds() {
            event.insert("_type".to_owned(), "INTERVAL_EVENT".into());
            event.insert("width".to_owned(), self.value("DV_DURATION").into());
            let mut function = json!({ "_type": "DV_CODED_TEXT", "value": "mean", "defining_code": phrase("openehr", "146") });
            self.add_to_text(&mut function);
            event.insert("math_function".to_owned(), function);
            if self.maybe(2) {
                event.insert("sample_count".to_owned(), 5.into());
            }
        }
    }

    fn element(&mut self, element: &mut Map<String, Value>, path: &str, places: &Places) {
        let types = places.types(path);
        // A value that the template leaves no choice of keeps what it says.
        let stays = |value: &Value| {
            matches!(
                value["_type"].as_str(),
                Some("DV_CODED_TEXT" | "DV_ORDINAL" | "DV_QUANTITY")
            )
        };
        let made_here = element.get("value").is_none_or(|value| !stays(value));
        if !types.is_empty() && (made_here || types.len() > 1) && self.maybe(2) {
            let rm_type = self.choose(&types).clone();
            if let Some(value) = self.value(&rm_type) {
                element.insert("value".to_owned(), value);
            }
        } else if self.adds()
            && let Some(value) = element.get_mut("value")
        {
            self.add_to_value(value);
        }
        if self.adds() {
            // The server takes the one or the other.
            element.remove("value");
            let mut flavour = json!({ "_type": "DV_CODED_TEXT", "value": "unknown", "defining_code": phrase("openehr", "253") });
            self.add_to_text(&mut flavour);
            element.insert("null_flavour".to_owned(), flavour);
            if self.maybe(2) {
                element.insert("null_reason".to_owned(), self.text());
            }
        }
    }
}

fn place(path: &str, name: &str, code: Option<&Value>) -> String {
    match code.and_then(Value::as_str) {
        Some(code) => format!("{path}/{name}[{code}]"),
        None => format!("{path}/{name}"),
    }
}

fn code(item: &Value) -> &str {
    item["archetype_node_id"].as_str().unwrap_or_default()
}
