//! Values of every type, with the attributes that the reference model leaves optional.

use super::generate::Generator;
use serde_json::{Value, json};

/// Marks a number that `serde_json` cannot hold; [`Generator::composition`] writes it bare.
pub(super) const NUMBER: &str = "@number ";

const TERMS: [&str; 4] = ["A1", "at0005", "73211009", "B 2"];
const TERMINOLOGIES: [&str; 3] = ["SNOMED-CT", "local", "LOINC(2.65)"];
const DATES: [&str; 5] = ["2020-02-29", "2020-02", "2020", "0987-01-01", "1999-12-31"];
const TIMES: [&str; 10] = [
    "05:06:07",
    "05:06:00",
    "05:06",
    "05",
    "05:06:07.5",
    "05:06:07.123456789",
    "23:59:59.100Z",
    "09:00:00Z",
    "09:00+02:00",
    "09:00:00.000-03:30",
];
const DATE_TIMES: [&str; 12] = [
    "2020-01-02T03:04:05Z",
    "2020-01-02T03:04:00",
    "2020-01-02T03:04",
    "2020-01-02T03",
    "2020-01-02",
    "2020-01",
    "2020",
    "2020-01-02T03:04:05.5+02:00",
    "2020-01-02T03:04:05.123400Z",
    "2020-01-02T00:00:00",
    "2020-01-02T03:04:05,25",
    "20200102T030405Z",
];
const DURATIONS: [&str; 9] = [
    "P1Y2M3DT4H5M6S",
    "PT0S",
    "PT36H",
    "P2W",
    "-P1D",
    "PT0.5S",
    "P1M",
    "PT90M",
    "P1DT0.25S",
];
const TEXTS: [&str; 6] = [
    "v",
    "two words",
    "ä \"q\" \\ /",
    "line\nline\ttab",
    "😀",
    "<a & b>",
];
const NUMBERS: [f64; 10] = [
    0.0,
    1.0,
    -1.5,
    37.5,
    0.001,
    0.00012,
    1e7,
    123_456_789.125,
    1e22,
    0.1,
];

impl Generator {
    fn code(&mut self) -> Value {
        let mut phrase = json!({ "_type": "CODE_PHRASE", "code_string": self.one(&TERMS),
            "terminology_id": { "_type": "TERMINOLOGY_ID", "value": self.one(&TERMINOLOGIES) } });
        if self.maybe(4) {
            phrase["preferred_term"] = self.one(&TEXTS).into();
        }
        phrase
    }

    pub(super) fn language(&mut self) -> Value {
        phrase("ISO_639-1", self.one(&["en", "fr", "de"]))
    }

    pub(super) fn character_set(&mut self) -> Value {
        phrase(
            "IANA_character-sets",
            self.one(&["UTF-8", "ISO-10646-UTF-1"]),
        )
    }

    fn mapping(&mut self) -> Value {
        let mut mapping = json!({ "_type": "TERM_MAPPING", "match": self.one(&["=", ">", "<", "?"]), "target": self.code() });
        if self.maybe(3) {
            mapping["purpose"] = json!({ "_type": "DV_CODED_TEXT", "value": "billing",
                "defining_code": phrase("openehr", self.one(&["669", "670", "671"])) });
        }
        mapping
    }

    /// A text, often with more than its value.
    pub(super) fn text(&mut self) -> Value {
        let mut text = match self.maybe(2) {
            true => json!({ "_type": "DV_TEXT", "value": self.one(&TEXTS) }),
            false => self.coded_text(),
        };
        self.add_to_text(&mut text);
        text
    }

    fn coded_text(&mut self) -> Value {
        json!({ "_type": "DV_CODED_TEXT", "value": self.one(&TEXTS), "defining_code": self.code() })
    }

    pub(super) fn add_to_text(&mut self, text: &mut Value) {
        if self.maybe(3) {
            let count = self.up_to(2);
            text["mappings"] = self.many(count, Self::mapping);
        }
        if self.maybe(4) {
            text["language"] = self.language();
        }
        if self.maybe(4) {
            text["encoding"] = self.character_set();
        }
        if self.maybe(6) {
            text["formatting"] = "markdown".into();
        }
        if self.maybe(6) {
            let class = self.one(&["DV_URI", "DV_EHR_URI"]);
            text["hyperlink"] = json!({ "_type": class, "value": "ehr://a/b" });
        }
    }

    fn number(&mut self) -> Value {
        match self.up_to(14) {
            1 => format!("{NUMBER}1e400").into(),
            2 => format!("{NUMBER}-1e400").into(),
            3 => format!("{NUMBER}12345678901234567890.123").into(),
            _ => self.one(&NUMBERS).into(),
        }
    }

    /// A value of a type without more than it needs.
    pub(super) fn plain_value(&mut self, rm_type: &str) -> Option<Value> {
        let (outer, inner) = match rm_type.split_once('<') {
            Some((outer, inner)) => (outer, inner.trim_end_matches('>')),
            None => (rm_type, ""),
        };
        Some(match outer {
            "DV_TEXT" => json!({ "_type": outer, "value": self.one(&TEXTS) }),
            "DV_CODED_TEXT" => self.coded_text(),
            "DV_BOOLEAN" => json!({ "_type": outer, "value": self.maybe(2) }),
            "DV_QUANTITY" => {
                json!({ "_type": outer, "magnitude": self.number(), "units": self.one(&["mm[Hg]", "1", "kg"]) })
            }
            "DV_COUNT" => {
                json!({ "_type": outer, "magnitude": self.one(&[0, 7, -3, 9_007_199_254_740_993_i64]) })
            }
            "DV_PROPORTION" => {
                let (numerator, denominator) = (self.number(), self.number());
                json!({ "_type": outer, "numerator": numerator, "denominator": denominator, "type": 0 })
            }
            "DV_ORDINAL" => {
                json!({ "_type": outer, "value": self.one(&[0, 1, 5]), "symbol": self.coded_text() })
            }
            "DV_SCALE" => {
                let mut symbol = self.coded_text();
                self.add_to_text(&mut symbol);
                json!({ "_type": outer, "value": self.number(), "symbol": symbol })
            }
            "DV_DATE" => json!({ "_type": outer, "value": self.one(&DATES) }),
            "DV_TIME" => json!({ "_type": outer, "value": self.one(&TIMES) }),
            "DV_DATE_TIME" => self.date_time(),
            "DV_DURATION" => json!({ "_type": outer, "value": self.one(&DURATIONS) }),
            "DV_IDENTIFIER" => self.identifier(),
            "DV_URI" => json!({ "_type": outer, "value": "https://example.org/a?b=c%20d#e" }),
            "DV_EHR_URI" => json!({ "_type": outer, "value": "ehr://a/b/c" }),
            "DV_PARSABLE" => {
                json!({ "_type": outer, "value": self.one(&TEXTS), "formalism": "text/plain" })
            }
            "DV_MULTIMEDIA" => self.multimedia(1),
            "DV_STATE" => {
                let mut value = self.coded_text();
                self.add_to_text(&mut value);
                json!({ "_type": outer, "value": value, "is_terminal": self.maybe(2) })
            }
            "DV_PARAGRAPH" => {
                let count = self.up_to(3);
                json!({ "_type": outer, "items": self.many(count, Self::text) })
            }
            "DV_GENERAL_TIME_SPECIFICATION" | "DV_PERIODIC_TIME_SPECIFICATION" => {
                let mut value = json!({ "_type": "DV_PARSABLE", "value": "[200004181100;200004181110]/(7d)@DW", "formalism": "HL7:PIVL" });
                self.add_to_parsable(&mut value);
                json!({ "_type": outer, "value": value })
            }
            "DV_INTERVAL" => self.range(if inner.is_empty() { "DV_COUNT" } else { inner })?,
            _ => return None,
        })
    }

    /// A value of a type, often with more than it needs.
    pub(super) fn value(&mut self, rm_type: &str) -> Option<Value> {
        let mut value = self.plain_value(rm_type)?;
        self.add_to_value(&mut value);
        Some(value)
    }

    /// Adds attributes that the value's class leaves optional.
    pub(super) fn add_to_value(&mut self, value: &mut Value) {
        let Some(class) = value
            .get("_type")
            .and_then(Value::as_str)
            .map(str::to_owned)
        else {
            return;
        };
        match &*class {
            "DV_TEXT" | "DV_CODED_TEXT" => self.add_to_text(value),
            "DV_PARSABLE" => self.add_to_parsable(value),
            "DV_QUANTITY" | "DV_COUNT" | "DV_PROPORTION" | "DV_DURATION" => {
                self.add_to_ordered(value, &class);
                if self.maybe(3) {
                    value["magnitude_status"] = self.one(&["<", ">=", "~", "="]).into();
                }
                if self.maybe(3) {
                    value["accuracy"] = self.one(&[0.5, 2.0, 0.0]).into();
                    value["accuracy_is_percent"] = self.maybe(2).into();
                }
                if class == "DV_QUANTITY" {
                    for (name, of) in [
                        ("units_system", "http://unitsofmeasure.org"),
                        ("units_display_name", "kilo"),
                    ] {
                        if self.maybe(4) {
                            value[name] = of.into();
                        }
                    }
                }
                if matches!(&*class, "DV_QUANTITY" | "DV_PROPORTION") && self.maybe(3) {
                    value["precision"] = self.one(&[1, 3, -1]).into();
                }
            }
            "DV_ORDINAL" | "DV_SCALE" => self.add_to_ordered(value, &class),
            "DV_DATE" | "DV_TIME" | "DV_DATE_TIME" => {
                self.add_to_ordered(value, &class);
                if self.maybe(3) {
                    value["magnitude_status"] = "~".into();
                }
                if self.maybe(3) {
                    value["accuracy"] =
                        json!({ "_type": "DV_DURATION", "value": self.one(&DURATIONS) });
                }
            }
            _ => {}
        }
    }

    fn add_to_ordered(&mut self, value: &mut Value, class: &str) {
        match self.up_to(4) {
            1 => {
                if let Some(range) = self.range(class) {
                    value["normal_range"] = range;
                }
            }
            2 => {
                value["normal_status"] =
                    phrase("openehr_normal_statuses", self.one(&["N", "H", "LL"]))
            }
            _ => {}
        }
        if self.maybe(3) {
            let count = self.up_to(2);
            let class = class.to_owned();
            value["other_reference_ranges"] = self.many(count, |generator| {
                json!({ "_type": "REFERENCE_RANGE", "meaning": generator.text(), "range": generator.range(&class) })
            });
        }
    }

    fn add_to_parsable(&mut self, value: &mut Value) {
        if self.maybe(3) {
            value["charset"] = self.character_set();
        }
        if self.maybe(3) {
            value["language"] = self.language();
        }
    }

    /// An interval; the limits keep their order where that is easy to see to.
    fn range(&mut self, class: &str) -> Option<Value> {
        let mut limits = match class {
            "DV_QUANTITY" => [1.5, 1e7].map(|magnitude| json!({ "_type": class, "magnitude": magnitude, "units": "kg" })),
            "DV_COUNT" => [-1, 10].map(|magnitude| json!({ "_type": class, "magnitude": magnitude })),
            "DV_PROPORTION" => [1.0, 2.0].map(|numerator| {
                json!({ "_type": class, "numerator": numerator, "denominator": 3.0, "type": 0 })
            }),
            "DV_ORDINAL" => [1, 2].map(|value| json!({ "_type": class, "value": value, "symbol": self.coded_text() })),
            "DV_SCALE" => [0.5, 1e8].map(|value| json!({ "_type": class, "value": value, "symbol": self.coded_text() })),
            // The server compares limits, and refuses partial ones unless they are alone.
            "DV_DATE" => {
                let partial = self.maybe(8);
                let lower = self.one(if partial { &["0800-01", "0800"] } else { &["0800-01-01"] });
                let upper = self.one(if partial { &DATES } else { &["2020-02-29", "1999-12-31"] });
                [lower, upper].map(|value| json!({ "_type": class, "value": value }))
            }
            "DV_TIME" => {
                let lower = self.one(&["05:06:07", "05:06:00", "05:06", "05", "05:06:07.5", "05:06:07.123456789"]);
                let zoned = self.one(&[["05:06:00Z", "23:59:59.123456Z"], ["09:00+02:00", "23:00:00.000+02:00"]]);
                let upper = self.one(&["23:59:59.5", "23:59:00", "23:59", "23"]);
                let plain = [lower, upper];
                self.one(&[plain, zoned]).map(|value| json!({ "_type": class, "value": value }))
            }
            "DV_DATE_TIME" => {
                let partial = self.maybe(8);
                let lower = self.one(if partial { &["0800", "0800-02"] } else { &["0999-01-01T00:00:00Z", "1000-01-01T00:00:00.100Z"] });
                let upper = self.one(if partial { &DATE_TIMES } else { &["2020-01-02T03:04:05Z", "2020-01-02T03:04:00.120+02:00"] });
                [lower, upper].map(|value| json!({ "_type": class, "value": value }))
            }
            "DV_DURATION" => ["PT1S", "PT100H"].map(|value| json!({ "_type": class, "value": value })),
            _ => return None,
        };
        for limit in &mut limits {
            if self.maybe(5) && matches!(class, "DV_DATE" | "DV_TIME" | "DV_DATE_TIME") {
                limit["magnitude_status"] = "~".into();
            }
        }
        let [lower, upper] = limits;
        let mut range = json!({ "_type": "DV_INTERVAL", "lower": lower, "upper": upper,
            "lower_unbounded": false, "upper_unbounded": false, "lower_included": true, "upper_included": true });
        for (limit, included, unbounded) in [
            ("lower", "lower_included", "lower_unbounded"),
            ("upper", "upper_included", "upper_unbounded"),
        ] {
            match self.up_to(5) {
                1 => range[included] = false.into(),
                2 => {
                    range[unbounded] = true.into();
                    range[included] = false.into();
                    if let Some(range) = range.as_object_mut() {
                        range.remove(limit);
                    }
                }
                _ => {}
            }
        }
        Some(range)
    }

    pub(super) fn date_time(&mut self) -> Value {
        json!({ "_type": "DV_DATE_TIME", "value": self.one(&DATE_TIMES) })
    }

    pub(super) fn duration(&mut self) -> Value {
        json!({ "_type": "DV_DURATION", "value": self.one(&DURATIONS) })
    }

    pub(super) fn identifier(&mut self) -> Value {
        let mut identifier = json!({ "_type": "DV_IDENTIFIER", "id": self.one(&TEXTS) });
        for name in ["issuer", "assigner", "type"] {
            if self.maybe(2) {
                identifier[name] = self.one(&TEXTS).into();
            }
        }
        identifier
    }

    pub(super) fn multimedia(&mut self, thumbnails: usize) -> Value {
        let mut media = json!({ "_type": "DV_MULTIMEDIA", "media_type": phrase("IANA_media-types", "image/png"), "size": 3 });
        let contents = self.up_to(3);
        if contents != 1 {
            media["uri"] = json!({ "_type": "DV_URI", "value": "https://example.org/x.png" });
        }
        if contents != 2 {
            media["data"] = "AAECAwQFBgcICQ==".into();
        }
        if self.maybe(3) {
            media["alternate_text"] = self.one(&TEXTS).into();
        }
        if self.maybe(3) {
            media["integrity_check"] = "YWJj".into();
            media["integrity_check_algorithm"] =
                phrase("openehr_integrity_check_algorithms", "SHA-1");
        }
        if self.maybe(3) {
            media["compression_algorithm"] = phrase("openehr_compression_algorithms", "gzip");
        }
        if self.maybe(3) {
            media["charset"] = self.character_set();
        }
        if self.maybe(3) {
            media["language"] = self.language();
        }
        if thumbnails > 0 && self.maybe(3) {
            media["thumbnail"] = self.multimedia(thumbnails - 1);
        }
        media
    }

    pub(super) fn party(&mut self) -> Value {
        let class = self.one(&["PARTY_SELF", "PARTY_IDENTIFIED", "PARTY_RELATED"]);
        let mut party = json!({ "_type": class });
        if self.maybe(3) {
            party["external_ref"] = self.reference("PARTY_REF", "PERSON");
        }
        if class != "PARTY_SELF" {
            party["name"] = self.one(&TEXTS).into();
            if self.maybe(2) {
                let count = self.up_to(2);
                party["identifiers"] = self.many(count, Self::identifier);
            }
        }
        if class == "PARTY_RELATED" {
            let (code, value) = self.one(&[("10", "mother"), ("9", "father"), ("3", "foetus")]);
            let mut relationship = json!({ "_type": "DV_CODED_TEXT", "value": value, "defining_code": phrase("openehr", code) });
            self.add_to_text(&mut relationship);
            party["relationship"] = relationship;
        }
        party
    }

    pub(super) fn identified(&mut self) -> Value {
        loop {
            let party = self.party();
            if party["_type"] != "PARTY_SELF" {
                return party;
            }
        }
    }

    pub(super) fn reference(&mut self, class: &str, kind: &str) -> Value {
        let id = match self.maybe(2) {
            true => json!({ "_type": "GENERIC_ID", "value": "g1", "scheme": "scheme" }),
            false => {
                json!({ "_type": "HIER_OBJECT_ID", "value": "6d4f1b2a-0000-4000-8000-000000000001" })
            }
        };
        json!({ "_type": class, "namespace": "demographic", "type": kind, "id": id })
    }
}

pub(super) fn phrase(terminology: &str, code: &str) -> Value {
    json!({ "_type": "CODE_PHRASE", "code_string": code,
        "terminology_id": { "_type": "TERMINOLOGY_ID", "value": terminology } })
}
