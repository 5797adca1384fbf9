//! Objects of classes that FLAT has no rule for, such as DV_SCALE or DV_PARAGRAPH: EHRbase writes
//! what its library prints for the Java object, as a JSON object. That is not the canonical JSON:
//! the library writes the attributes that the class has and no others, empty lists and flags
//! included, and names a class only where the attribute's declared class has classes below it.

use super::value::{double, push_double};
use crate::json::{Kind, Node, minify};

/// What an attribute holds.
#[derive(Clone, Copy)]
enum Holds {
    /// Text, or anything else that is written as it is.
    Plain,
    Double,
    /// A flag with a value of its own where the object has none.
    Flag(bool),
    /// An object of exactly this class, which therefore does not name it.
    Of(&'static str),
    /// An object of this class or one below it.
    Below(&'static str),
    /// Objects of exactly this class.
    ListOf(&'static str),
    /// Objects of this class or one below it.
    ListBelow(&'static str),
    /// A limit of a range. Of the classes here only DV_SCALE has ranges.
    Limit,
}
use Holds::{Below, Double, Flag, Limit, ListBelow, ListOf, Of, Plain};

/// An attribute: its name in the library's JSON and in canonical JSON, and what it holds.
type Attribute = (&'static str, &'static str, Holds);

const TEXT: [Attribute; 6] = [
    ("value", "value", Plain),
    ("hyperlink", "hyperlink", Below("DV_URI")),
    ("formatting", "formatting", Plain),
    ("mappings", "mappings", ListOf("TERM_MAPPING")),
    ("language", "language", Of("CODE_PHRASE")),
    ("encoding", "encoding", Of("CODE_PHRASE")),
];
const TIME_SPECIFICATION: [Attribute; 1] = [("value", "value", Of("DV_PARSABLE"))];
const ID: [Attribute; 1] = [("value", "value", Plain)];
const OBJECT_REF: [Attribute; 3] = [
    ("namespace", "namespace", Plain),
    ("type", "type", Plain),
    ("id", "id", Below("OBJECT_ID")),
];

/// The attributes of a class, in pieces; `None` for a class that no one can meet here.
fn attributes(class: &str) -> Option<[&'static [Attribute]; 2]> {
    Some(match class {
        "DV_SCALE" => [
            &[
                ("normal_status", "normal_status", Of("CODE_PHRASE")),
                ("normal_range", "normal_range", Of("DV_INTERVAL")),
                (
                    "other_reference_ranges",
                    "other_reference_ranges",
                    ListOf("REFERENCE_RANGE"),
                ),
            ],
            &[
                ("symbol", "symbol", Of("DV_CODED_TEXT")),
                ("value", "value", Double),
            ],
        ],
        "DV_INTERVAL" => [
            &[("lower", "lower", Limit), ("upper", "upper", Limit)],
            &[
                ("lower_unbounded", "lower_unbounded", Flag(false)),
                ("upper_unbounded", "upper_unbounded", Flag(false)),
                ("lower_included", "lower_included", Flag(true)),
                ("upper_included", "upper_included", Flag(true)),
            ],
        ],
        "REFERENCE_RANGE" => [
            &[
                ("range", "range", Of("DV_INTERVAL")),
                ("meaning", "meaning", Below("DV_TEXT")),
            ],
            &[],
        ],
        "DV_PARAGRAPH" => [&[("items", "items", ListBelow("DV_TEXT"))], &[]],
        "DV_STATE" => [
            &[
                ("value", "value", Of("DV_CODED_TEXT")),
                // Java's name for the getter `isTerminal`.
                ("terminal", "is_terminal", Flag(false)),
            ],
            &[],
        ],
        "DV_GENERAL_TIME_SPECIFICATION" | "DV_PERIODIC_TIME_SPECIFICATION" => {
            [&TIME_SPECIFICATION, &[]]
        }
        "DV_TEXT" => [&TEXT, &[]],
        "DV_CODED_TEXT" => [
            &TEXT,
            &[("defining_code", "defining_code", Of("CODE_PHRASE"))],
        ],
        "TERM_MAPPING" => [
            &[
                ("match", "match", Plain),
                ("purpose", "purpose", Of("DV_CODED_TEXT")),
                ("target", "target", Of("CODE_PHRASE")),
            ],
            &[],
        ],
        "CODE_PHRASE" => [
            &[
                ("terminology_id", "terminology_id", Of("TERMINOLOGY_ID")),
                ("code_string", "code_string", Plain),
                ("preferred_term", "preferred_term", Plain),
            ],
            &[],
        ],
        "DV_PARSABLE" => [
            &[
                ("charset", "charset", Of("CODE_PHRASE")),
                ("language", "language", Of("CODE_PHRASE")),
                ("value", "value", Plain),
                ("formalism", "formalism", Plain),
            ],
            &[],
        ],
        "LINK" => [
            &[
                ("meaning", "meaning", Below("DV_TEXT")),
                ("type", "type", Below("DV_TEXT")),
                ("target", "target", Of("DV_EHR_URI")),
            ],
            &[],
        ],
        "OBJECT_REF" | "PARTY_REF" => [&OBJECT_REF, &[]],
        "LOCATABLE_REF" => [&OBJECT_REF, &[("path", "path", Plain)]],
        "GENERIC_ID" => [&ID, &[("scheme", "scheme", Plain)]],
        "DV_URI" | "DV_EHR_URI" | "TERMINOLOGY_ID" | "HIER_OBJECT_ID" | "OBJECT_VERSION_ID"
        | "ARCHETYPE_ID" | "TEMPLATE_ID" => [&ID, &[]],
        _ => return None,
    })
}

/// Writes an object as the library does; one of a class that is not known here, as it is.
pub(super) fn push_object(object: Node<'_>, out: &mut String) {
    let class = object.get("_type").and_then(|class| class.as_str());
    push_of_class(object, class.as_deref().unwrap_or_default(), None, out);
}

/// `named` is the class to name.
/// Recursion follows the document, whose depth the JSON parser limits.
fn push_of_class(object: Node<'_>, class: &str, named: Option<&str>, out: &mut String) {
    let Some(pieces) = attributes(class).filter(|_| object.kind() == Kind::Object) else {
        return minify(object, out);
    };
    out.push('{');
    let start = out.len();
    if let Some(name) = named {
        push_name("_type", start, out);
        out.push('"');
        out.push_str(name);
        out.push('"');
    }
    for (written, name, holds) in pieces.into_iter().flatten() {
        let value = object.get(name).filter(|value| !value.is_null());
        match (value, holds) {
            (Some(value), holds) => {
                push_name(written, start, out);
                push_value(value, *holds, out);
            }
            (None, Flag(usual)) => {
                push_name(written, start, out);
                out.push_str(if *usual { "true" } else { "false" });
            }
            (None, ListOf(_) | ListBelow(_)) => {
                push_name(written, start, out);
                out.push_str("[]");
            }
            (None, _) => {}
        }
    }
    out.push('}');
}

fn push_value(value: Node<'_>, holds: Holds, out: &mut String) {
    let stated = value.get("_type").and_then(|class| class.as_str());
    let stated = stated.as_deref();
    match holds {
        Plain | Flag(_) => minify(value, out),
        Double => match double(value) {
            Some(number) => push_double(number, out),
            None => minify(value, out),
        },
        Of(class) => push_of_class(value, class, None, out),
        Below(class) => {
            let class = stated.unwrap_or(class);
            push_of_class(value, class, Some(class), out);
        }
        Limit => push_of_class(value, stated.unwrap_or("DV_SCALE"), None, out),
        ListOf(_) | ListBelow(_) => {
            out.push('[');
            let start = out.len();
            for item in value.items() {
                if out.len() > start {
                    out.push(',');
                }
                let each = match holds {
                    ListBelow(class) => Below(class),
                    ListOf(class) => Of(class),
                    _ => Plain,
                };
                push_value(item, each, out);
            }
            out.push(']');
        }
    }
}

fn push_name(name: &str, start: usize, out: &mut String) {
    out.push_str(if out.len() > start { ",\"" } else { "\"" });
    out.push_str(name);
    out.push_str("\":");
}
