//! Compositions as canonical JSON text, written straight into a string.
//!
//! A composition is a pure function of the server's seed, its number and its version: everything that
//! varies is drawn from [`Dice`]. People, places and numbers are invented.

use std::fmt::Write as _;

use jiff::{Timestamp, tz::Offset};

use crate::{base::mix, templates::Template};

/// How much each composition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// 2 to 3.5 KB: one entry with few items.
    Compact,
    /// 4 to 17 KB, 9 on average, as compositions of real systems: several entries, events, analytes, comments.
    #[default]
    Full,
}

/// What a composition is about; the rest follows from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) seed: u64,
    pub(crate) number: u64,
    pub(crate) version: u32,
    pub(crate) uid: &'a str,
    pub(crate) template: Template,
    /// Commit time of the first version, microseconds since 1970: what is described happened before.
    pub(crate) committed_us: i64,
}

/// Writes the composition as JSON without white space to the end of `out`.
pub(crate) fn write(out: &mut String, subject: Subject<'_>, profile: Profile) {
    let mut writer = Writer {
        out,
        dice: Dice::new(subject),
        full: profile == Profile::Full,
        committed_us: subject.committed_us,
    };
    writer.composition(subject);
}

/// Repeatable chance.
struct Dice {
    seed: u64,
    throws: u64,
}

impl Dice {
    fn new(subject: Subject<'_>) -> Self {
        Self {
            seed: mix(
                mix(subject.seed, subject.number),
                u64::from(subject.version),
            ),
            throws: 0,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.throws += 1;
        mix(self.seed, self.throws) % limit
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn one_of<T: Copy, const N: usize>(&mut self, items: [T; N]) -> T {
        items[self.below(N as u64) as usize]
    }
}

const CLINICIANS: [&str; 6] = [
    "Dr. Ada Beispiel",
    "Dr. Jan Vzorový",
    "Nurse Kim Placeholder",
    "Dr. Zoë Testcase",
    "Nurse Noël Dummy",
    "Dr. Mio Sample",
];

const COMMENTS: [&str; 6] = [
    "Measured again after five minutes of rest.",
    "Patient says \"a little dizzy\" when standing up.",
    "Cuff slipped once,\nsecond reading taken.",
    "Wert vor der Visite erhoben, kein Einfluss durch Nahrung.",
    "Values below 5 µg/l are not reported; see C:\\lab\\limits.",
    "No remarks.",
];

const DIRECTIONS: [&str; 4] = [
    "One dose before meals, with water.",
    "Give slowly; \"stop\" at the first sign of a rash.",
    "Nicht zusammen mit Milch einnehmen.",
    "As on the drug chart.",
];

/// Name, unit, lowest and highest usual value, digits behind the point.
const ANALYTES: [(&str, &str, u64, u64, u32); 10] = [
    ("Sodium", "mmol/l", 135, 145, 0),
    ("Potassium", "mmol/l", 35, 50, 1),
    ("Creatinine", "umol/l", 50, 110, 0),
    ("Glucose", "mmol/l", 39, 61, 1),
    ("Haemoglobin", "g/l", 120, 175, 0),
    ("Leukocytes", "10*9/l", 4000, 11000, 3),
    ("Thrombocytes", "10*9/l", 150, 400, 0),
    ("C-reactive protein", "mg/l", 1, 50, 1),
    ("Troponin T", "ng/l", 30, 140, 1),
    ("TSH", "m[iU]/l", 400, 4000, 3),
];

const MEDICINES: [(&str, &str, u64); 6] = [
    ("Placebolol 50 mg tablet", "mg", 50),
    ("Samplicillin 1 g vial", "mg", 1000),
    ("Testaparin 4000 IU syringe", "[iU]", 4000),
    ("Dummypril 5 mg tablet", "mg", 5),
    ("Mockformin 850 mg tablet", "mg", 850),
    ("Exemplozine 2 mg/ml syrup", "ml", 10),
];

struct Writer<'a> {
    out: &'a mut String,
    dice: Dice,
    full: bool,
    committed_us: i64,
}

impl Writer<'_> {
    fn composition(&mut self, subject: Subject<'_>) {
        let template = subject.template;
        self.put(r#"{"_type":"COMPOSITION","name":{"_type":"DV_TEXT","value":""#);
        self.put(template.concept());
        self.put(r#""},"archetype_details":{"archetype_id":{"value":""#);
        self.put(template.root_archetype());
        self.put(r#""},"template_id":{"value":""#);
        self.put(template.id());
        self.put(r#""},"rm_version":"1.0.4"},"language":"#);
        self.code_phrase("ISO_639-1", "en");
        self.put(r#","territory":"#);
        let territory = self.dice.one_of(["DE", "NL", "NO"]);
        self.code_phrase("ISO_3166-1", territory);
        self.put(r#","category":"#);
        self.coded_text("event", "openehr", "433");
        self.put(r#","composer":{"_type":"PARTY_IDENTIFIED","name":""#);
        let composer = self.dice.one_of(CLINICIANS);
        self.put(composer);
        self.put(r#""},"context":{"_type":"EVENT_CONTEXT","start_time":"#);
        self.date_time_before(3600);
        self.put(r#","setting":"#);
        self.coded_text("secondary medical care", "openehr", "232");
        if self.full {
            self.put(r#","health_care_facility":{"_type":"PARTY_IDENTIFIED","name":"Sample Hospital"},"participations":[{"_type":"PARTICIPATION","function":{"_type":"DV_TEXT","value":"witness"},"performer":{"_type":"PARTY_IDENTIFIED","name":""#);
            let witness = self.dice.one_of(CLINICIANS);
            self.put(witness);
            self.put(r#""}}]"#);
        }
        match template {
            Template::VitalSigns if self.full => self.ward(),
            Template::LaboratoryReport if self.full => self.report_number(subject.number),
            _ => {}
        }
        self.put(r#"},"content":["#);
        match template {
            Template::VitalSigns => self.vital_signs(),
            Template::LaboratoryReport => self.laboratory_results(),
            Template::MedicationOrder => self.medication_orders(),
        }
        self.put(r#"],"archetype_node_id":""#);
        self.put(template.root_archetype());
        self.put(r#"","uid":{"_type":"OBJECT_VERSION_ID","value":""#);
        self.put(subject.uid);
        self.put(r#""}}"#);
    }

    fn ward(&mut self) {
        self.put(r#","other_context":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#);
        let ward = self.dice.one_of(["Ward 1 North", "Ward 2 (Süd)", "ICU"]);
        self.element("Ward", "at0002", |w| w.text(ward));
        self.put(r#"],"archetype_node_id":"at0001"}"#);
    }

    fn report_number(&mut self, number: u64) {
        self.put(r#","other_context":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#);
        self.element("Report number", "at0002", |w| {
            w.text(&format!("R-{number:09}"))
        });
        self.put(",");
        self.element("Report status", "at0005", Self::result_status);
        self.put(r#"],"archetype_node_id":"at0001"}"#);
    }

    fn vital_signs(&mut self) {
        self.entry_start(
            "OBSERVATION",
            "Blood pressure",
            "openEHR-EHR-OBSERVATION.atlas_blood_pressure.v1",
        );
        if self.full {
            self.put(r#","protocol":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#);
            self.element("Cuff", "at0021", |w| w.text("Adult"));
            self.put(r#"],"archetype_node_id":"at0020"}"#);
        }
        self.history_start();
        let readings = if self.full {
            self.dice.between(2, 4)
        } else {
            1
        };
        for reading in 0..readings {
            self.separate(reading);
            self.blood_pressure_reading();
        }
        self.history_end("openEHR-EHR-OBSERVATION.atlas_blood_pressure.v1");
        if self.full {
            self.put(",");
            self.pulse();
            self.put(",");
            self.oxygen_saturation();
        }
    }

    fn blood_pressure_reading(&mut self) {
        self.event_start("Any reading");
        let systolic = self.dice.between(95, 178);
        let diastolic = self.dice.between(55, 94);
        self.element("Systolic", "at0004", |w| w.quantity(systolic, 0, "mm[Hg]"));
        self.put(",");
        self.element("Diastolic", "at0005", |w| {
            w.quantity(diastolic, 0, "mm[Hg]")
        });
        if !self.full {
            self.event_end();
            return;
        }
        self.put(",");
        self.comment("Comment", "at0006");
        self.put(r#"],"archetype_node_id":"at0003"},"state":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#);
        let (position, code) = self.dice.one_of([
            ("Sitting", "at0010"),
            ("Lying", "at0011"),
            ("Standing", "at0012"),
        ]);
        self.element("Position", "at0008", |w| {
            w.coded_text(position, "local", code)
        });
        self.put(r#"],"archetype_node_id":"at0007"},"archetype_node_id":"at0002"}"#);
    }

    fn pulse(&mut self) {
        self.entry_start(
            "OBSERVATION",
            "Pulse",
            "openEHR-EHR-OBSERVATION.atlas_pulse.v1",
        );
        self.history_start();
        self.event_start("Any event");
        let rate = self.dice.between(48, 132);
        self.element("Rate", "at0004", |w| w.quantity(rate, 0, "/min"));
        self.put(",");
        let regular = self.dice.below(5) > 0;
        self.element("Regular", "at0005", |w| w.boolean(regular));
        self.event_end();
        self.history_end("openEHR-EHR-OBSERVATION.atlas_pulse.v1");
    }

    fn oxygen_saturation(&mut self) {
        self.entry_start(
            "OBSERVATION",
            "Oxygen saturation",
            "openEHR-EHR-OBSERVATION.atlas_oxygen_saturation.v1",
        );
        self.history_start();
        self.event_start("Any event");
        let percent = self.dice.between(880, 1000);
        self.element("Saturation", "at0004", |w| {
            w.put(r#"{"_type":"DV_PROPORTION","numerator":"#);
            w.decimal(percent, 1);
            w.put(r#","denominator":100.0,"type":2,"precision":1}"#);
        });
        self.event_end();
        self.history_end("openEHR-EHR-OBSERVATION.atlas_oxygen_saturation.v1");
    }

    fn laboratory_results(&mut self) {
        let most = if self.full { 6 } else { 2 };
        let analytes = self.dice.between(most / 2, most);
        self.laboratory_result(analytes);
        if self.full && self.dice.below(6) == 0 {
            self.put(",");
            self.laboratory_result(1);
        }
    }

    fn laboratory_result(&mut self, analytes: u64) {
        const ARCHETYPE: &str = "openEHR-EHR-OBSERVATION.atlas_laboratory_result.v1";
        self.entry_start("OBSERVATION", "Laboratory result", ARCHETYPE);
        if self.full {
            self.put(r#","protocol":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#);
            let method = self
                .dice
                .one_of(["Photometry", "Immunoassay", "Flow cytometry"]);
            self.element("Method", "at0031", |w| w.text(method));
            self.put(r#"],"archetype_node_id":"at0030"}"#);
        }
        self.history_start();
        self.event_start("Any event");
        let test = self
            .dice
            .one_of(["Basic panel", "Blood count", "Emergency panel"]);
        self.element("Test name", "at0004", |w| w.text(test));
        if self.full {
            self.put(",");
            self.specimen();
        }
        let first = self.dice.below(ANALYTES.len() as u64);
        for line in 0..analytes {
            self.put(",");
            self.analyte(((first + line) % ANALYTES.len() as u64) as usize, line + 1);
        }
        if self.full {
            self.put(",");
            self.comment("Conclusion", "at0057");
        }
        self.event_end();
        self.history_end(ARCHETYPE);
    }

    fn specimen(&mut self) {
        self.cluster_start("Specimen", Some("openEHR-EHR-CLUSTER.atlas_specimen.v1"));
        let material = self
            .dice
            .one_of(["Venous blood", "Serum", "Citrate plasma"]);
        self.element("Material", "at0002", |w| w.text(material));
        self.put(",");
        let number = self.dice.below(100_000_000);
        self.element("Specimen number", "at0003", |w| {
            let _ = write!(w.out, r#"{{"_type":"DV_IDENTIFIER","issuer":"Sample Laboratory","assigner":"Sample Laboratory","id":"{number:08}","type":"specimen"}}"#);
        });
        self.put(",");
        self.element("Collected", "at0004", |w| w.date_time_before(7200));
        self.put(r#"],"archetype_node_id":"openEHR-EHR-CLUSTER.atlas_specimen.v1"}"#);
    }

    fn analyte(&mut self, which: usize, line: u64) {
        const ARCHETYPE: &str = "openEHR-EHR-CLUSTER.atlas_analyte.v1";
        let (name, units, low, high, digits) = ANALYTES[which];
        self.cluster_start("Analyte", Some(ARCHETYPE));
        self.element("Analyte name", "at0024", |w| w.text(name));
        self.put(",");
        if self.dice.below(12) == 0 {
            self.element("Result", "at0001", |w| w.text("Not enough material"));
        } else {
            let spread = (high - low).max(4);
            let value = self
                .dice
                .between(low.saturating_sub(spread / 4), high + spread / 2);
            self.element("Result", "at0001", |w| match w.full {
                true => w.quantity_in_range(value, low, high, digits, units),
                false => w.quantity(value, digits, units),
            });
        }
        if self.full {
            self.put(",");
            self.element("Result status", "at0005", Self::result_status);
            self.put(",");
            self.element("Position on the report", "at0006", |w| {
                let _ = write!(w.out, r#"{{"_type":"DV_COUNT","magnitude":{line}}}"#);
            });
        }
        self.put(r#"],"archetype_node_id":""#);
        self.put(ARCHETYPE);
        self.put(r#""}"#);
    }

    fn result_status(&mut self) {
        let (status, code) = self.dice.one_of([
            ("Final", "at0011"),
            ("Final", "at0011"),
            ("Preliminary", "at0010"),
            ("Corrected", "at0012"),
        ]);
        self.coded_text(status, "local", code);
    }

    fn medication_orders(&mut self) {
        const ARCHETYPE: &str = "openEHR-EHR-INSTRUCTION.atlas_medication_order.v1";
        let instructions = if self.full {
            self.dice.between(1, 2)
        } else {
            1
        };
        for instruction in 0..instructions {
            self.separate(instruction);
            self.entry_start("INSTRUCTION", "Medication order", ARCHETYPE);
            self.put(r#","narrative":"#);
            self.text("As ordered on the ward round");
            self.put(r#","activities":["#);
            let orders = if self.full {
                self.dice.between(2, 3)
            } else {
                1
            };
            for order in 0..orders {
                self.separate(order);
                self.medicine();
            }
            self.put(r#"],"archetype_node_id":""#);
            self.put(ARCHETYPE);
            self.put(r#""}"#);
        }
    }

    fn medicine(&mut self) {
        let (medicine, units, dose) = self.dice.one_of(MEDICINES);
        self.put(r#"{"_type":"ACTIVITY","name":{"_type":"DV_TEXT","value":"Order"},"description":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#);
        self.element("Medicine", "at0070", |w| w.text(medicine));
        self.put(",");
        self.cluster_start("Dosage", None);
        self.element("Dose", "at0051", |w| w.quantity(dose, 0, units));
        if self.full {
            self.put(",");
            let as_required = self.dice.below(4) == 0;
            self.element("As required", "at0052", |w| w.boolean(as_required));
            self.put(",");
            let days = self.dice.between(3, 14);
            self.element("Duration", "at0053", |w| {
                let _ = write!(w.out, r#"{{"_type":"DV_DURATION","value":"P{days}D"}}"#);
            });
        }
        self.put(r#"],"archetype_node_id":"at0050"},"#);
        let (route, code) = self.dice.one_of([
            ("Oral", "at0092"),
            ("Intravenous", "at0093"),
            ("Subcutaneous", "at0094"),
        ]);
        self.element("Route", "at0091", |w| w.coded_text(route, "local", code));
        if self.full {
            self.put(",");
            let directions = self.dice.one_of(DIRECTIONS);
            self.element("Directions", "at0009", |w| w.text(directions));
            self.put(",");
            let date = zoned(self.committed_us, 0).date();
            self.element("Start date", "at0012", |w| {
                let _ = write!(w.out, r#"{{"_type":"DV_DATE","value":"{date}"}}"#);
            });
        }
        let timing = self.dice.one_of(["R/PT8H", "R/PT12H", "R/P1D"]);
        self.put(r#"],"archetype_node_id":"at0002"},"timing":{"_type":"DV_PARSABLE","value":""#);
        self.put(timing);
        self.put(r#"","formalism":"ISO8601"},"action_archetype_id":"openEHR-EHR-ACTION\\.atlas_medication\\.v1","archetype_node_id":"at0001"}"#);
    }

    fn entry_start(&mut self, rm_type: &str, name: &str, archetype: &str) {
        self.put(r#"{"_type":""#);
        self.put(rm_type);
        self.put(r#"","name":{"_type":"DV_TEXT","value":""#);
        self.put(name);
        self.put(r#""},"archetype_details":{"archetype_id":{"value":""#);
        self.put(archetype);
        self.put(r#""},"rm_version":"1.0.4"},"language":"#);
        self.code_phrase("ISO_639-1", "en");
        self.put(r#","encoding":"#);
        self.code_phrase("IANA_character-sets", "UTF-8");
        self.put(r#","subject":{"_type":"PARTY_SELF"}"#);
    }

    fn history_start(&mut self) {
        self.put(r#","data":{"_type":"HISTORY","name":{"_type":"DV_TEXT","value":"Event series"},"origin":"#);
        self.date_time_before(3600);
        self.put(r#","events":["#);
    }

    fn history_end(&mut self, archetype: &str) {
        self.put(r#"],"archetype_node_id":"at0001"},"archetype_node_id":""#);
        self.put(archetype);
        self.put(r#""}"#);
    }

    fn event_start(&mut self, name: &str) {
        self.put(r#"{"_type":"POINT_EVENT","name":{"_type":"DV_TEXT","value":""#);
        self.put(name);
        self.put(r#""},"time":"#);
        self.date_time_before(1800);
        self.put(
            r#","data":{"_type":"ITEM_TREE","name":{"_type":"DV_TEXT","value":"Tree"},"items":["#,
        );
    }

    fn event_end(&mut self) {
        self.put(r#"],"archetype_node_id":"at0003"},"archetype_node_id":"at0002"}"#);
    }

    fn cluster_start(&mut self, name: &str, archetype: Option<&str>) {
        self.put(r#"{"_type":"CLUSTER","name":{"_type":"DV_TEXT","value":""#);
        self.put(name);
        self.put(r#""},"#);
        if let Some(archetype) = archetype {
            self.put(r#""archetype_details":{"archetype_id":{"value":""#);
            self.put(archetype);
            self.put(r#""},"rm_version":"1.0.4"},"#);
        }
        self.put(r#""items":["#);
    }

    fn element(&mut self, name: &str, node: &str, value: impl FnOnce(&mut Self)) {
        self.put(r#"{"_type":"ELEMENT","name":{"_type":"DV_TEXT","value":""#);
        self.put(name);
        self.put(r#""},"value":"#);
        value(self);
        self.put(r#","archetype_node_id":""#);
        self.put(node);
        self.put(r#""}"#);
    }

    fn comment(&mut self, name: &str, node: &str) {
        let comment = self.dice.one_of(COMMENTS);
        self.element(name, node, |w| w.text(comment));
    }

    fn text(&mut self, text: &str) {
        self.put(r#"{"_type":"DV_TEXT","value":""#);
        for c in text.chars() {
            match c {
                '"' => self.put("\\\""),
                '\\' => self.put("\\\\"),
                '\n' => self.put("\\n"),
                c => self.out.push(c),
            }
        }
        self.put(r#""}"#);
    }

    fn boolean(&mut self, value: bool) {
        self.put(r#"{"_type":"DV_BOOLEAN","value":"#);
        self.put(if value { "true" } else { "false" });
        self.put("}");
    }

    fn coded_text(&mut self, text: &str, terminology: &str, code: &str) {
        self.put(r#"{"_type":"DV_CODED_TEXT","value":""#);
        self.put(text);
        self.put(r#"","defining_code":"#);
        self.code_phrase(terminology, code);
        self.put("}");
    }

    fn code_phrase(&mut self, terminology: &str, code: &str) {
        self.put(r#"{"_type":"CODE_PHRASE","terminology_id":{"_type":"TERMINOLOGY_ID","value":""#);
        self.put(terminology);
        self.put(r#""},"code_string":""#);
        self.put(code);
        self.put(r#""}"#);
    }

    fn quantity(&mut self, value: u64, digits: u32, units: &str) {
        self.put(r#"{"_type":"DV_QUANTITY","units":""#);
        self.put(units);
        self.put(r#"","magnitude":"#);
        self.decimal(value, digits);
        self.put("}");
    }

    fn quantity_in_range(&mut self, value: u64, low: u64, high: u64, digits: u32, units: &str) {
        self.put(r#"{"_type":"DV_QUANTITY","normal_range":{"_type":"DV_INTERVAL","lower":"#);
        self.quantity(low, digits, units);
        self.put(r#","upper":"#);
        self.quantity(high, digits, units);
        self.put(r#","lower_included":true,"upper_included":true,"lower_unbounded":false,"upper_unbounded":false}"#);
        if value < low || value > high {
            self.put(r#","normal_status":"#);
            self.code_phrase(
                "openehr_normal_statuses",
                if value < low { "L" } else { "H" },
            );
        }
        self.put(r#","units":""#);
        self.put(units);
        let _ = write!(self.out, r#"","precision":{digits},"magnitude":"#);
        self.decimal(value, digits);
        self.put("}");
    }

    /// `value` / 10^`digits` as Java prints a double in this range: no trailing zeros, at least one digit.
    fn decimal(&mut self, value: u64, digits: u32) {
        let scale = 10_u64.pow(digits);
        let _ = write!(self.out, "{}.", value / scale);
        let (mut rest, mut width) = (value % scale, digits as usize);
        while width > 1 && rest % 10 == 0 {
            rest /= 10;
            width -= 1;
        }
        let _ = write!(self.out, "{rest:0width$}");
    }

    /// A DV_DATE_TIME up to `seconds` before the commit.
    fn date_time_before(&mut self, seconds: u64) {
        let before = self.dice.below(seconds).cast_signed() * 1_000_000;
        let hours = self.dice.one_of([0, 1, 2]);
        let at = zoned(self.committed_us.saturating_sub(before), hours);
        self.put(r#"{"_type":"DV_DATE_TIME","value":""#);
        let _ = write!(
            self.out,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            at.year(),
            at.month(),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        );
        match hours {
            0 => self.put("Z"),
            hours => {
                let _ = write!(self.out, "+0{hours}:00");
            }
        }
        self.put(r#""}"#);
    }

    fn separate(&mut self, place: u64) {
        if place > 0 {
            self.put(",");
        }
    }

    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }
}

fn zoned(us: i64, hours: i8) -> jiff::civil::DateTime {
    let at = Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
    Offset::constant(hours).to_datetime(at)
}

/// The same JSON as Jackson's pretty printer lays it out, which is how EHRbase 2.16 prints compositions inside rows:
/// a line for each member, the items of a list side by side.
pub(crate) fn pretty(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 2);
    // Whether each open bracket is an object's, and how many of them are.
    let (mut open, mut objects) = (Vec::new(), 0);
    let line = |out: &mut String, objects: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", objects));
    };
    let mut rest = compact;
    while let Some(at) = rest.find(['{', '}', '[', ']', ',', ':', '"']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if from.starts_with('"') {
            let (text, behind) = from.split_at(string_length(from));
            out.push_str(text);
            rest = behind;
            continue;
        }
        let (mark, behind) = from.split_at(1);
        rest = behind;
        match mark {
            "{" => {
                open.push(true);
                objects += 1;
                out.push_str(mark);
                line(&mut out, objects);
            }
            "}" => {
                open.pop();
                objects -= 1;
                line(&mut out, objects);
                out.push_str(mark);
            }
            "[" => {
                open.push(false);
                out.push_str("[ ");
            }
            "]" => {
                open.pop();
                out.push_str(" ]");
            }
            "," if open.last() == Some(&false) => out.push_str(", "),
            "," => {
                out.push_str(mark);
                line(&mut out, objects);
            }
            _ => out.push_str(" : "),
        }
    }
    out.push_str(rest);
    out
}

/// Bytes of the JSON string at the start of `text`, with its quotes.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    fn composition(template: Template, number: u64, version: u32, profile: Profile) -> String {
        let mut text = String::new();
        let subject = Subject {
            seed: 7,
            number,
            version,
            uid: "11111111-2222-4333-8444-555555555555::sample.atlas::1",
            template,
            committed_us: 1_740_000_000_000_000,
        };
        write(&mut text, subject, profile);
        text
    }

    /// RM types of the nodes of a web template by their path.
    fn nodes(template: Template) -> BTreeMap<String, Vec<(String, String)>> {
        fn collect(node: &Value, nodes: &mut BTreeMap<String, Vec<(String, String)>>) {
            let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
            let entry = nodes.entry(text("aqlPath")).or_default();
            entry.push((text("rmType"), text("name")));
            for child in node["children"].as_array().into_iter().flatten() {
                collect(child, nodes);
            }
        }
        let template: Value = serde_json::from_str(template.web_template()).unwrap();
        let mut found = BTreeMap::new();
        collect(&template["tree"], &mut found);
        found
    }

    /// Every ELEMENT under `value`, with its path.
    fn elements<'a>(value: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
        let members = value.as_object().into_iter().flatten();
        for (attribute, member) in members {
            let several = member
                .as_array()
                .map_or(std::slice::from_ref(member), Vec::as_slice);
            for item in several {
                let path = match item["archetype_node_id"].as_str() {
                    Some(code) => format!("{path}/{attribute}[{code}]"),
                    None => format!("{path}/{attribute}"),
                };
                if item["_type"] == "ELEMENT" {
                    found.push((path, item));
                } else if item.is_object() {
                    elements(item, &path, found);
                }
            }
        }
    }

    #[test]
    fn compositions_hold_what_their_web_template_describes() {
        for template in Template::ALL {
            let nodes = nodes(template);
            for number in 0..200 {
                let text = composition(template, number, 1, Profile::Full);
                let value: Value = serde_json::from_str(&text).unwrap();
                let mut found = Vec::new();
                elements(&value, "", &mut found);
                assert!(found.len() > 3);
                for (path, element) in found {
                    let described = nodes
                        .get(&format!("{path}/value"))
                        .unwrap_or_else(|| panic!("{path} is not in the template"));
                    let rm_type = element["value"]["_type"].as_str().unwrap();
                    let name = element["name"]["value"].as_str().unwrap();
                    assert!(
                        described.contains(&(rm_type.to_owned(), name.to_owned())),
                        "{path}: {rm_type} {name}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_described_element_occurs_in_some_composition() {
        for template in Template::ALL {
            let mut missing = nodes(template);
            for number in 0..200 {
                let text = composition(template, number, 1, Profile::Full);
                let value: Value = serde_json::from_str(&text).unwrap();
                let mut found = Vec::new();
                elements(&value, "", &mut found);
                for (path, _) in found {
                    missing.remove(&format!("{path}/value"));
                }
            }
            missing.retain(|path, _| path.ends_with("]/value"));
            assert_eq!(missing, BTreeMap::new(), "{template:?}");
        }
    }

    #[test]
    fn the_same_number_and_version_is_the_same_composition() {
        for template in Template::ALL {
            let one = composition(template, 5, 1, Profile::Full);
            assert_eq!(one, composition(template, 5, 1, Profile::Full));
            assert_ne!(one, composition(template, 5, 2, Profile::Full));
            assert_ne!(one, composition(template, 6, 1, Profile::Full));
        }
    }

    #[test]
    fn profiles_keep_to_their_sizes() {
        for template in Template::ALL {
            for number in 0..500 {
                let compact = composition(template, number, 1, Profile::Compact).len();
                assert!((2_000..3_500).contains(&compact), "{template:?} {compact}");
                let full = composition(template, number, 1, Profile::Full).len();
                assert!((3_500..17_500).contains(&full), "{template:?} {full}");
            }
        }
    }

    #[test]
    fn pretty_printing_changes_white_space_only() {
        for template in Template::ALL {
            for number in 0..50 {
                let compact = composition(template, number, 1, Profile::Full);
                let pretty = pretty(&compact);
                assert!(
                    pretty.starts_with("{\n  \"_type\" : \"COMPOSITION\",\n  \"name\" : {\n    ")
                );
                let value: Value = serde_json::from_str(&pretty).unwrap();
                assert_eq!(value, serde_json::from_str::<Value>(&compact).unwrap());
            }
        }
    }

    #[test]
    fn decimals_are_printed_as_java_does() {
        let printed = |value, digits| {
            let mut out = String::new();
            let subject = Subject {
                seed: 0,
                number: 0,
                version: 1,
                uid: "",
                template: Template::VitalSigns,
                committed_us: 0,
            };
            let mut writer = Writer {
                out: &mut out,
                dice: Dice::new(subject),
                full: false,
                committed_us: 0,
            };
            writer.decimal(value, digits);
            out
        };
        for (value, digits, text) in [
            (120, 0, "120.0"),
            (45, 1, "4.5"),
            (40, 1, "4.0"),
            (1005, 3, "1.005"),
            (1500, 3, "1.5"),
            (7000, 3, "7.0"),
        ] {
            assert_eq!(printed(value, digits), text);
        }
    }
}
