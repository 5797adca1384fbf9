#![allow(clippy::unwrap_used)]

use super::*;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

fn canonical(text: &str) -> String {
    let mut out = String::new();
    canonicalize(Tape::parse(text).unwrap().root(text), &mut out);
    out
}

fn minified(text: &str) -> String {
    let mut out = String::new();
    minify(Tape::parse(text).unwrap().root(text), &mut out);
    out
}

fn unstorable(text: &str) -> Option<(UnstorableKind, String)> {
    unstorable_text(Tape::parse(text).unwrap().root(text)).map(|found| (found.kind, found.path))
}

#[test]
fn values_are_read_as_they_were_written() {
    let text = r#" {"n": 1.50e+2, "i": -7, "s": "a\n\u00e9\ud83d\ude00", "t": true, "z": null,
        "l": [1, [], {}, "x"] } "#;
    let tape = Tape::parse(text).unwrap();
    let root = tape.root(text);
    assert_eq!(root.kind(), Kind::Object);
    assert_eq!(root.len(), 6);
    let number = root.get("n").unwrap();
    assert_eq!(
        (number.number(), number.as_f64(), number.as_i64()),
        (Some("1.50e+2"), Some(150.0), None)
    );
    assert_eq!(root.get("i").unwrap().as_i64(), Some(-7));
    let string = root.get("s").unwrap();
    assert_eq!(string.as_str().unwrap(), "a\né😀");
    assert_eq!(string.raw_str(), Some(r"a\n\u00e9\ud83d\ude00"));
    assert!(string.has_escapes() && string.is_str("a\né😀"));
    assert_eq!(root.get("t").unwrap().as_bool(), Some(true));
    assert!(root.get("z").unwrap().is_null());
    let list = root.get("l").unwrap();
    assert_eq!(list.raw(), r#"[1, [], {}, "x"]"#);
    assert_eq!(&text[list.span()], list.raw());
    let kinds: Vec<_> = list.items().map(|item| item.kind()).collect();
    assert_eq!(
        kinds,
        [Kind::Number, Kind::Array, Kind::Object, Kind::String]
    );
    assert!(list.items().nth(1).unwrap().is_empty() && !list.is_empty());
    assert!(matches!(
        list.items().nth(3).unwrap().as_str(),
        Some(Cow::Borrowed("x"))
    ));
    assert_eq!(list.members().count(), 0);
    assert_eq!(tape.node(text, list.id()).raw(), list.raw());
}

#[test]
fn of_two_members_with_one_name_the_last_counts() {
    let text = r#"{"a": {"b": 1}, "\u0061": {"b": 2}}"#;
    let tape = Tape::parse(text).unwrap();
    assert_eq!(tape.root(text).at(&["a", "b"]).unwrap().raw(), "2");
    assert_eq!(tape.root(text).at(&["a", "c"]).map(|node| node.id()), None);
    assert_eq!(canonical(text), r#"{"a":{"b":2}}"#);
}

#[test]
fn a_tape_is_used_again_for_the_next_text() {
    let mut tape = Tape::parse("[1,2,3]").unwrap();
    tape.reparse("{}").unwrap();
    assert!(tape.root("{}").is_empty());
    tape.reparse("[1,").unwrap_err();
    assert!(tape.root("[1,").is_null());
}

#[test]
fn what_is_not_json_is_refused_where_it_goes_wrong() {
    use JsonErrorKind::*;
    for (text, kind, offset) in [
        ("", UnexpectedEnd, 0),
        (" ", UnexpectedEnd, 1),
        ("[1", UnexpectedEnd, 2),
        ("{\"a\"", UnexpectedEnd, 4),
        ("\"a", UnexpectedEnd, 2),
        ("\"\\u12", UnexpectedEnd, 5),
        ("tru", UnexpectedEnd, 3),
        ("-", UnexpectedEnd, 1),
        ("1.", UnexpectedEnd, 2),
        ("trux", ExpectedValue, 3),
        ("[1,]", ExpectedValue, 3),
        ("\u{feff}{}", ExpectedValue, 0),
        ("[NaN]", ExpectedValue, 1),
        ("{\"a\":1,}", ExpectedName, 7),
        ("{a:1}", ExpectedName, 1),
        ("{\"a\" 1}", ExpectedColon, 5),
        ("[1 2]", ExpectedCommaOrEnd, 3),
        ("[1}", ExpectedCommaOrEnd, 2),
        ("01", InvalidNumber, 1),
        ("-x", InvalidNumber, 1),
        ("1.e5", InvalidNumber, 2),
        ("1e+]", InvalidNumber, 3),
        ("\"\\x\"", InvalidEscape, 2),
        ("\"\\u12g4\"", InvalidEscape, 5),
        ("\"a\u{1}\"", ControlCharacter, 2),
        ("\"0123456789\n\"", ControlCharacter, 11),
        ("{} x", TrailingText, 3),
        ("1 2", TrailingText, 2),
    ] {
        assert_eq!(
            Tape::parse(text).unwrap_err(),
            JsonError { kind, offset },
            "{text}"
        );
    }
}

#[test]
fn every_control_character_is_refused_wherever_it_stands() {
    for length in 0..20 {
        for control in '\0'..' ' {
            let text = format!(
                "\"{}{control}{}\"",
                "a".repeat(length),
                "b".repeat(19 - length)
            );
            let error = JsonError {
                kind: JsonErrorKind::ControlCharacter,
                offset: length + 1,
            };
            assert_eq!(Tape::parse(&text).unwrap_err(), error);
        }
        for fine in [' ', '!', '#', '[', ']', '\u{7f}', '\u{80}', 'é', '€', '😀'] {
            let text = format!("\"{}{fine}\"", "a".repeat(length));
            assert!(Tape::parse(&text).is_ok(), "{fine:?} after {length}");
        }
    }
}

#[test]
fn depth_is_limited_and_costs_no_stack() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let deep = nested(MAX_DEPTH);
    assert_eq!(canonical(&deep), deep);
    assert_eq!(minified(&deep), deep);
    let error = Tape::parse(&nested(MAX_DEPTH + 1)).unwrap_err();
    assert_eq!(
        error,
        JsonError {
            kind: JsonErrorKind::TooDeep,
            offset: MAX_DEPTH
        }
    );
    assert_eq!(
        Tape::parse(&"{\"a\":[".repeat(1_000_000)).unwrap_err().kind,
        JsonErrorKind::TooDeep
    );
    // Wide is not deep.
    assert!(Tape::parse(&format!("[{}[]]", "[],".repeat(10_000))).is_ok());
}

#[test]
fn no_piece_of_the_text_is_in_errors_and_debug() {
    let text = r#"{"secret": "secret" secret"#;
    let error = Tape::parse(text).unwrap_err();
    let whole = r#"["secret"]"#;
    let tape = Tape::parse(whole).unwrap();
    let printed = format!("{error} {error:?} {:?} {tape:?}", tape.root(whole));
    assert!(!printed.contains("secret"), "{printed}");
    assert_eq!(
        error.to_string(),
        "the text is not JSON that Atlas can read: a comma or the end of the array or object was expected at byte 20"
    );
}

#[test]
#[should_panic(expected = "a tape is read with the text it was parsed from")]
fn a_tape_refuses_another_text() {
    Tape::parse("[1,2,3]").unwrap().root("[1]");
}

#[test]
fn minify_keeps_numbers_escapes_and_order() {
    let text =
        "\n{ \"b\" : [ 1.0 , 1E+2,\t-0 ] ,\r\n \"a\\/ \" :\" \\u0041 \", \"c\": { } , \"d\":[ ]}\n";
    assert_eq!(
        minified(text),
        r#"{"b":[1.0,1E+2,-0],"a\/ ":" \u0041 ","c":{},"d":[]}"#
    );
    assert_eq!(minified(" 5 "), "5");
    let tape = Tape::parse(text).unwrap();
    let mut out = String::from("> ");
    minify(tape.root(text).get("b").unwrap(), &mut out);
    assert_eq!(out, "> [1.0,1E+2,-0]");
}

/// The examples of RFC 8785, sections 3.2.2 and 3.2.3; but the number that is no double keeps its
/// digits, where the RFC rounds it to 333333333.3333333.
#[test]
fn canonical_form_is_that_of_rfc_8785_with_exact_numbers() {
    let text = r#"{
        "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"#;
    assert_eq!(
        canonical(text),
        r#"{"literals":[null,true,false],"numbers":[333333333.33333329,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#
    );
    let text = r#"{"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\ud83d\ude00": 5, "\u0080": 6, "\u00f6": 7}"#;
    assert_eq!(
        canonical(text),
        "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
    );
    assert_eq!(
        canonical(r#""\b\t\f\u007f\u001F ""#),
        "\"\\b\\t\\f\u{7f}\\u001f \""
    );
}

#[test]
fn names_sort_by_utf_16_whether_escaped_or_not() {
    // U+1F600 starts with the surrogate U+D83D: before U+E000 in UTF-16, behind it in UTF-8.
    let sorted = "{\"a\":0,\"a\u{d7ff}\":0,\"a😀\":0,\"a😀b\":0,\"a\u{e000}\":0,\"b\":0}";
    assert_eq!(
        canonical("{\"b\":0,\"a\u{e000}\":0,\"a😀b\":0,\"a😀\":0,\"a\u{d7ff}\":0,\"a\":0}"),
        sorted
    );
    assert_eq!(
        canonical(r#"{"b":0,"a\ue000":0,"a\ud83d\ude00b":0,"a\ud83d\ude00":0,"a\ud7ff":0,"a":0}"#),
        sorted
    );
}

#[test]
fn canonical_numbers_keep_every_digit_and_have_one_spelling() {
    assert_eq!(
        canonical(
            "[1.0, -0, 10e-1, 9007199254740993, 1e21, 1e-7, 5e-324, 1e-400, 1e400, -1E+400, 12345678901234567890.10]"
        ),
        "[1,0,1,9007199254740993,1e+21,1e-7,5e-324,1e-400,1e+400,-1e+400,12345678901234567890.1]"
    );
}

/// What PostgreSQL 15 gives back for a JSONB value (`SELECT '…'::jsonb::text`).
#[test]
fn the_checksum_is_that_of_what_jsonb_gives_back() {
    let of = |text: &str| checksum(Tape::parse(text).unwrap().root(text));
    let sent =
        r#"{"b":[1e3,1.10,-0,-0.0,1E-7,12345678901234567890.10,0.00012e2,1.5e22],"a":"\u0041\/"}"#;
    let back = r#"{"a": "A/", "b": [1000, 1.10, 0, 0.0, 0.0000001, 12345678901234567890.10, 0.012, 15000000000000000000000]}"#;
    assert_eq!(of(sent), of(back));
    assert_ne!(of(sent), of(&back.replace("890.10", "890.11")));
}

#[test]
fn an_object_that_names_a_member_twice_is_found() {
    let found = |text: &str| doubled_member(Tape::parse(text).unwrap().root(text));
    let many: Vec<String> = (0..40)
        .map(|place| format!("\"member {place}\": 0"))
        .collect();
    let many = many.join(", ");
    for (text, path) in [
        (r#"{"a": 1, "a": 1}"#, Some("the value")),
        (r#"{"a": 1, "b": {"a": 1, "aa": 2}}"#, None),
        (
            r#"{"content": [{}, {"name": {"value": 1, "x": 0, "value": 2}}]}"#,
            Some("content[1].name"),
        ),
        (r#"{"a": {"k": 1, "\u006b": 2}}"#, Some("a")),
        (r#"{"a": {"\u006b": 1, "k2": 2}}"#, None),
        (r#"{"a": {"\ud800": 1, "\ud801": 2}}"#, None),
        (r#"{"a": {"": 1, "": 2}}"#, Some("a")),
        (r#"[{"a": 1}, {"a": 1}]"#, None),
        (
            r#"[[{"archetype_node_id": 1, "archetype_details": 2}], {"b": 1, "c": 2, "b": 3}]"#,
            Some("[1]"),
        ),
        (r#"{"12345678X12345678": 1, "12345678Y12345678": 2}"#, None),
        (r#"{"x": {"z": 1, "z": 1}, "x": 2}"#, Some("the value")),
        (r#""text""#, None),
    ] {
        assert_eq!(found(text).as_deref(), path, "{text}");
    }
    assert_eq!(found(&format!("{{{many}}}")), None);
    assert_eq!(
        found(&format!("{{{many}, \"member 7\": 1}}")).as_deref(),
        Some("the value")
    );
}

fn with_edits(text: &str, edits: &[(&[&str], Option<&str>)]) -> Result<String, JsonError> {
    let tape = Tape::parse(text).unwrap();
    let root = tape.root(text);
    let mut all = Edits::new();
    for (path, replacement) in edits {
        let node = path.iter().fold(root, |node, step| match step.parse() {
            Ok(place) => node.items().nth(place).unwrap(),
            Err(_) => node.get(step).unwrap(),
        });
        match replacement {
            Some(json) => all.replace(node.id(), *json),
            None => all.drop_node(node.id()),
        }
    }
    assert_eq!(all.is_empty(), edits.is_empty());
    let mut out = "before".to_owned();
    let written = edited(root, &all, &mut out);
    let out = out.strip_prefix("before").unwrap();
    assert!(
        written.is_ok() || out.is_empty(),
        "an error leaves a piece behind"
    );
    written.map(|()| out.to_owned())
}

#[test]
fn what_is_dropped_goes_with_its_comma_and_what_is_replaced_stays_in_place() {
    let text = r#" { "a" : [ 1 , { "b" : 2.0 } , "x" ] , "c" : null , "d\n" : { } } "#;
    for (edits, expected) in [
        (&[][..], r#"{"a":[1,{"b":2.0},"x"],"c":null,"d\n":{}}"#),
        (&[(&["a"][..], None)], r#"{"c":null,"d\n":{}}"#),
        (&[(&["c"], None)], r#"{"a":[1,{"b":2.0},"x"],"d\n":{}}"#),
        (&[(&["d\n"], None)], r#"{"a":[1,{"b":2.0},"x"],"c":null}"#),
        (
            &[(&["a", "0"], None)],
            r#"{"a":[{"b":2.0},"x"],"c":null,"d\n":{}}"#,
        ),
        (
            &[(&["a", "2"], None)],
            r#"{"a":[1,{"b":2.0}],"c":null,"d\n":{}}"#,
        ),
        (
            &[(&["a", "1", "b"], None)],
            r#"{"a":[1,{},"x"],"c":null,"d\n":{}}"#,
        ),
        (
            &[
                (&["a", "0"], None),
                (&["a", "1"], None),
                (&["a", "2"], None),
            ],
            r#"{"a":[],"c":null,"d\n":{}}"#,
        ),
        (&[(&["a"], None), (&["c"], None), (&["d\n"], None)], "{}"),
        (
            &[(&["c"], Some(" { \"e\" : 1e400 } "))],
            r#"{"a":[1,{"b":2.0},"x"],"c":{"e":1e400},"d\n":{}}"#,
        ),
        (
            &[(&["a", "1"], Some("7")), (&["a", "1", "b"], None)],
            r#"{"a":[1,7,"x"],"c":null,"d\n":{}}"#,
        ),
        (
            &[(&["a"], None), (&["a", "1", "b"], Some("7"))],
            r#"{"c":null,"d\n":{}}"#,
        ),
        (
            &[(&["c"], None), (&["c"], Some("1"))],
            r#"{"a":[1,{"b":2.0},"x"],"c":1,"d\n":{}}"#,
        ),
        (&[(&[], Some("[ ]")), (&["c"], None)], "[]"),
    ] {
        assert_eq!(
            with_edits(text, edits).as_deref(),
            Ok(expected),
            "{edits:?}"
        );
    }
}

#[test]
fn edits_that_leave_no_json_are_errors() {
    let text = r#"{"a": [1, 2]}"#;
    let kind =
        |edits: &[(&[&str], Option<&str>)]| with_edits(text, edits).map_err(|error| error.kind);
    assert_eq!(kind(&[(&[], None)]), Err(JsonErrorKind::RootDropped));
    for broken in ["", "{", "1 2", "nul", "{\"a\":}", "'x'"] {
        assert!(kind(&[(&["a", "0"], Some(broken))]).is_err(), "{broken}");
        assert!(
            kind(&[(&["a"], None), (&["a", "0"], Some(broken))]).is_err(),
            "{broken}"
        );
    }
    let tape = Tape::parse(text).unwrap();
    let root = tape.root(text);
    let mut edits = Edits::new();
    edits.drop_node(root.members().next().unwrap().0.id());
    let refused = edited(root, &edits, &mut String::new()).map_err(|error| error.kind);
    assert_eq!(refused, Err(JsonErrorKind::NameEdited));
    // What lies outside the value is none of its business.
    let inner = root.get("a").unwrap();
    let mut edits = Edits::new();
    edits.drop_node(root.id());
    let mut out = String::new();
    edited(inner, &edits, &mut out).unwrap();
    assert_eq!(out, "[1,2]");
    edits.replace(root.id(), "\"secret\"");
    assert_eq!(format!("{edits:?}"), "Edits(1)");
}

/// Makes the same edits on a tree of another library. `None` stands for what was dropped.
fn edited_tree(
    value: &serde_json::Value,
    place: &mut usize,
    edits: &BTreeMap<usize, Option<serde_json::Value>>,
) -> Option<serde_json::Value> {
    let own = *place;
    *place += 1;
    let made = match value {
        serde_json::Value::Array(items) => items
            .iter()
            .filter_map(|item| edited_tree(item, place, edits))
            .collect(),
        serde_json::Value::Object(members) => {
            let members = members.iter().filter_map(|(name, value)| {
                Some((name.clone(), edited_tree(value, place, edits)?))
            });
            serde_json::Value::Object(members.collect())
        }
        other => other.clone(),
    };
    match edits.get(&own) {
        Some(edit) => edit.clone(),
        None => Some(made),
    }
}

/// The values of a text in its order, members by name as the other library has them.
fn nodes<'a>(node: Node<'a>, out: &mut Vec<Node<'a>>) {
    out.push(node);
    let mut members: Vec<_> = node.members().collect();
    members.sort_by_key(|(name, _)| name.as_str().unwrap().into_owned());
    let members = members.into_iter().map(|(_, value)| value);
    for inner in node.items().chain(members) {
        nodes(inner, out);
    }
}

#[test]
fn checksum_is_sha_256_in_hexadecimal() {
    let of = |text: &str| checksum(Tape::parse(text).unwrap().root(text));
    assert_eq!(
        of(" { } ").to_string(),
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    );
    assert_eq!(
        of(r#"{"a":1,"b":[10]}"#),
        of(r#"{ "b" : [1e1], "\u0061": 1.0 }"#)
    );
    assert_eq!(Checksum::from_hex(&of("{}").to_string()), Some(of("{}")));
    for wrong in [
        "",
        "44136f",
        &"g".repeat(64),
        &"A".repeat(64),
        &"é".repeat(32),
    ] {
        assert_eq!(Checksum::from_hex(wrong), None);
    }
    assert_ne!(of(r#"{"a":1}"#), of(r#"{"a":"1"}"#));
    assert_ne!(of(r#"["\ud800"]"#), of(r#"["\ud801"]"#));
}

#[test]
fn texts_that_postgresql_refuses_are_found() {
    assert_eq!(
        unstorable(r#"{"a": ["\\u0000", "\n", "\ud83d\ude00"]}"#),
        None
    );
    assert_eq!(
        unstorable(r#"{"x": 1, "content": [{}, {"name": {"value": "a\u0000"}}]}"#),
        Some((UnstorableKind::Nul, "content[1].name.value".to_owned()))
    );
    for (text, path) in [
        (r#"{"a": "\ud83d"}"#, "a"),
        (r#"{"a": {"b": ["x", "\ud83d\u0041"]}}"#, "a.b[1]"),
        (r#"{"a": "\udc00\ud83d"}"#, "a"),
        (r#""\ud83dx""#, "the value"),
        (r#"[[], [{"k\ud83d": 1}]]"#, "[1][0].k\u{fffd}"),
        (r#"{"a": {"b\ud83d": {"c": 1}}}"#, "a.b\u{fffd}"),
    ] {
        assert_eq!(
            unstorable(text),
            Some((UnstorableKind::LoneSurrogate, path.to_owned())),
            "{text}"
        );
    }
    let text = r#"{"a": {"bad": "\u0000"}, "good": 1}"#;
    let tape = Tape::parse(text).unwrap();
    let found = unstorable_text(tape.root(text).get("a").unwrap()).unwrap();
    assert_eq!(
        found.to_string(),
        "bad holds the character U+0000, which PostgreSQL cannot store: correct the composition in its source"
    );
    assert_eq!(unstorable_text(tape.root(text).get("good").unwrap()), None);
}

#[test]
fn half_a_surrogate_pair_reads_as_a_replacement_character() {
    let text = r#""\ud83d\ud83d\ude00\u0041\ude00""#;
    let tape = Tape::parse(text).unwrap();
    assert_eq!(tape.root(text).as_str().unwrap(), "\u{fffd}😀A\u{fffd}");
    assert_eq!(canonical(text), r#""\ud83d😀A\ude00""#);
}

/// A value to be written in many ways.
#[derive(Clone, Debug)]
enum Json {
    Literal(&'static str),
    Integer(i32),
    Number(f64),
    String(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

fn json() -> impl Strategy<Value = Json> {
    let string = "[a-e \"\\\\/\\n\\t\u{1}\u{7f}é€\u{e000}\u{fb33}😀]{0,12}";
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "true", "false"]).prop_map(Json::Literal),
        any::<i32>().prop_map(Json::Integer),
        any::<f64>()
            .prop_filter("JSON has finite numbers only", |n| n.is_finite())
            .prop_map(Json::Number),
        string.prop_map(Json::String),
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(Json::Array),
            btree_map(string, inner, 0..8).prop_map(Json::Object),
        ]
    })
}

/// Choices of a writer; without any left, the plainest way is taken.
struct Style<'a>(&'a [u8]);

impl Style<'_> {
    fn choose(&mut self, ways: u8) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first % ways
    }

    fn space(&mut self, out: &mut String) {
        out.push_str(["", " ", "\n  ", "\t\r\n"][usize::from(self.choose(4))]);
    }

    fn value(&mut self, value: &Json, out: &mut String) {
        self.space(out);
        match value {
            Json::Literal(word) => out.push_str(word),
            Json::Integer(n) => match self.choose(4) {
                0 => out.push_str(&n.to_string()),
                1 => out.push_str(&format!("{n}.0")),
                2 => out.push_str(&format!("{n}E+00")),
                _ => out.push_str(&format!("{n}0e-1")),
            },
            Json::Number(n) if self.choose(2) == 0 => out.push_str(&format!("{n:e}")),
            Json::Number(n) => out.push_str(&format!("{n:?}")),
            Json::String(text) => self.string(text, out),
            Json::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    self.value(item, out);
                }
                self.space(out);
                out.push(']');
            }
            Json::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                let turn = usize::from(self.choose(8)).min(members.len());
                members.rotate_left(turn);
                if self.choose(2) == 1 {
                    members.reverse();
                }
                out.push('{');
                for (at, (name, value)) in members.into_iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    self.space(out);
                    self.string(name, out);
                    self.space(out);
                    out.push(':');
                    self.value(value, out);
                }
                self.space(out);
                out.push('}');
            }
        }
        self.space(out);
    }

    fn string(&mut self, text: &str, out: &mut String) {
        out.push('"');
        for char in text.chars() {
            if self.choose(4) == 1 {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            } else {
                push_escaped(&char.to_string(), out);
            }
        }
        out.push('"');
    }
}

fn written(value: &Json, style: &[u8]) -> String {
    let mut out = String::new();
    Style(style).value(value, &mut out);
    out
}

/// White space outside strings removed by a machine with two states.
fn stripped(text: &str) -> String {
    let (mut inside, mut escaped) = (false, false);
    let keep = |char: &char| {
        if inside {
            inside = *char != '"' || escaped;
            escaped = *char == '\\' && !escaped;
            true
        } else {
            inside = *char == '"';
            !char.is_ascii_whitespace()
        }
    };
    text.chars().filter(keep).collect()
}

/// Numbers as doubles, so that spelling does not count.
fn with_doubles(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Number(n) => n.as_f64().into(),
        serde_json::Value::Array(items) => items.into_iter().map(with_doubles).collect(),
        serde_json::Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| (name, with_doubles(value)))
            .collect(),
        other => other,
    }
}

proptest! {
    #[test]
    fn minify_removes_white_space_and_nothing_else(value in json(), style in vec(any::<u8>(), 0..200)) {
        let text = written(&value, &style);
        let short = minified(&text);
        prop_assert_eq!(&short, &stripped(&text));
        prop_assert_eq!(&minified(&short), &short);
    }

    #[test]
    fn edits_do_what_they_do_to_a_tree(
        value in json(),
        style in vec(any::<u8>(), 0..100),
        chosen in vec((any::<prop::sample::Index>(), prop::option::of(json())), 0..6),
    ) {
        let text = written(&value, &style);
        let tape = Tape::parse(&text).unwrap();
        let mut all = Vec::new();
        nodes(tape.root(&text), &mut all);
        let (mut edits, mut expected) = (Edits::new(), BTreeMap::new());
        for (index, replacement) in chosen {
            let place = index.index(all.len());
            let id = all[place].id();
            let replacement = replacement.map(|json| written(&json, &style));
            match &replacement {
                Some(json) => edits.replace(id, json.as_str()),
                None => edits.drop_node(id),
            }
            expected.insert(place, replacement.map(|json| serde_json::from_str(&json).unwrap()));
        }
        let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = edited_tree(&tree, &mut 0, &expected);
        let mut out = String::new();
        let made = edited(tape.root(&text), &edits, &mut out);
        prop_assert_eq!(made.is_ok(), expected.is_some());
        if let Some(expected) = expected {
            prop_assert_eq!(&minified(&out), &out);
            let made: serde_json::Value = serde_json::from_str(&out).unwrap();
            prop_assert_eq!(with_doubles(made), with_doubles(expected));
        }
    }

    /// The tree of the other library has no doubled member; one that is added is found where it is.
    #[test]
    fn a_doubled_member_is_found_wherever_it_is(value in json(), style in vec(any::<u8>(), 0..100), index: prop::sample::Index) {
        let text = written(&value, &style);
        let tape = Tape::parse(&text).unwrap();
        let root = tape.root(&text);
        prop_assert_eq!(doubled_member(root), None);
        let mut all = Vec::new();
        nodes(root, &mut all);
        let objects: Vec<_> = all.into_iter().filter(|node| node.kind() == Kind::Object && !node.is_empty()).collect();
        if objects.is_empty() {
            return Ok(());
        }
        let object = objects[index.index(objects.len())];
        let name = object.members().nth(index.index(object.len())).unwrap().0;
        let mut doubled = text.clone();
        doubled.insert_str(object.span().end - 1, &format!(",{}:0", name.raw()));
        let tape = Tape::parse(&doubled).unwrap();
        prop_assert!(doubled_member(tape.root(&doubled)).is_some());
    }

    #[test]
    fn canonical_form_does_not_depend_on_spelling(
        value in json(),
        one in vec(any::<u8>(), 0..200),
        other in vec(any::<u8>(), 0..200),
    ) {
        let form = canonical(&written(&value, &one));
        prop_assert_eq!(&form, &canonical(&written(&value, &other)));
        prop_assert_eq!(&form, &canonical(&form));
    }

    #[test]
    fn canonical_form_says_the_same_to_another_parser(value in json(), style in vec(any::<u8>(), 0..200)) {
        let text = written(&value, &style);
        let before: serde_json::Value = serde_json::from_str(&text).unwrap();
        let after: serde_json::Value = serde_json::from_str(&canonical(&text)).unwrap();
        prop_assert_eq!(with_doubles(before), with_doubles(after));
    }

    #[test]
    fn strings_read_as_another_parser_reads_them(text in "\\PC{0,40}", style in vec(any::<u8>(), 0..40)) {
        let written = written(&Json::String(text.clone()), &style);
        let tape = Tape::parse(&written).unwrap();
        prop_assert_eq!(tape.root(&written).as_str().unwrap(), text.as_str());
        prop_assert!(tape.root(&written).is_str(&text));
    }

    #[test]
    fn what_is_accepted_is_what_another_strict_parser_accepts(
        value in json(),
        style in vec(any::<u8>(), 0..100),
        changes in vec((any::<prop::sample::Index>(), 0..3, "[\\]\\[{}:,\"\\\\0-9eE+.uatrfls \n\u{1}é-]"), 1..4),
    ) {
        let mut chars: Vec<char> = written(&value, &style).chars().collect();
        for (place, what, piece) in changes {
            let at = place.index(chars.len() + 1);
            let change = piece.chars().filter(|_| what > 0);
            let removed = if what < 2 { (at + 1).min(chars.len()) } else { at };
            chars.splice(at..removed, change);
        }
        let text: String = chars.into_iter().collect();
        let theirs = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        prop_assert_eq!(Tape::parse(&text).is_ok(), theirs, "{}", text);
    }

    #[test]
    fn no_text_makes_anything_panic(text in "[\\]\\[{}:,\"\\\\0-9eE+.uatrfls \n\u{1}é-]{0,40}") {
        if let Ok(tape) = Tape::parse(&text) {
            let _ = (minified(&text), checksum(tape.root(&text)), unstorable_text(tape.root(&text)));
        }
    }
}

#[test]
fn a_long_text_of_hardly_anything_but_values_is_refused() {
    const LONG: usize = 5 << 20;
    for unit in [
        "1,",
        "[],",
        "{},",
        "\"\",",
        "[1],",
        "{\"a\":1},",
        "null,",
        " 1 ,",
    ] {
        let dense = format!("[{}1]", unit.repeat(LONG / unit.len()));
        let error = Tape::parse(&dense).unwrap_err();
        assert_eq!(error.kind, JsonErrorKind::TooDense, "{unit}");
        // A short one is what it is.
        let short = format!("[{}1]", unit.repeat(1_000));
        assert_eq!(Tape::parse(&short).unwrap().root(&short).len(), 1_001);
    }
    // Marks within texts are no values, and what is wrong at the beginning is still said.
    let unit = r#"{"name":"a, b: [c] {d} \"e\" \\","value":72.5},"#;
    let text = format!("[{}1]", unit.repeat(LONG / unit.len()));
    assert_eq!(
        Tape::parse(&text).unwrap().root(&text).len(),
        LONG / unit.len() + 1
    );
    let wrong = format!("[1;{}1]", "1,".repeat(LONG / 2));
    let error = Tape::parse(&wrong).unwrap_err();
    assert_eq!(error.kind, JsonErrorKind::ExpectedCommaOrEnd);
}
