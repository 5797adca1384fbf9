//! What a key's value is: borrowed from the composition, never copied.

use crate::json::Node;
use crate::number::java_double;

/// The value of one FLAT key.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a> {
    /// What to write.
    pub data: Data<'a>,
    /// The canonical leaf it was read from; `None` for what the rules add themselves.
    pub source: Option<Node<'a>>,
}

/// The kinds of values that FLAT has.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    /// A string as it stands in the canonical JSON, between its quotes, escapes untouched;
    /// `source` decodes it.
    Raw(&'a str),
    /// A string as it is.
    Text(&'a str),
    /// The text of a JSON number, as it is.
    Number(&'a str),
    /// A whole number that was written in another form.
    Integer(i64),
    /// A number that Java holds as `double` and prints as such; what is beyond all doubles, or no
    /// number at all, as a string: `"Infinity"`, `"NaN"`.
    Double(f64),
    /// `true` or `false`.
    Bool(bool),
    /// An object of a class without rules, such as DV_SCALE: written as EHRbase's library does.
    Json(Node<'a>),
}

/// Shows the kind only: the value may be a patient's.
impl std::fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw(_) => "Raw",
            Self::Text(_) => "Text",
            Self::Number(_) => "Number",
            Self::Integer(_) => "Integer",
            Self::Double(_) => "Double",
            Self::Bool(_) => "Bool",
            Self::Json(_) => "Json",
        })
    }
}

impl<'a> Value<'a> {
    /// What the rules add themselves.
    pub(super) fn added(data: Data<'a>) -> Self {
        Self { data, source: None }
    }

    /// A text. Numbers and booleans are taken as their text, as Java does.
    pub(super) fn text(node: Node<'a>) -> Option<Self> {
        let data = match node.raw_str() {
            Some(raw) => Data::Raw(raw),
            None if node.number().is_some() || node.as_bool().is_some() => Data::Text(node.raw()),
            None => return None,
        };
        Some(Self {
            data,
            source: Some(node),
        })
    }

    /// A whole number; a fraction is cut off, as Java does.
    pub(super) fn integer(node: Node<'a>) -> Option<Self> {
        let text = node.number()?;
        let plain = text.strip_prefix('-').unwrap_or(text);
        let data = if plain != "0" && plain.bytes().all(|byte| byte.is_ascii_digit()) {
            Data::Number(text)
        } else {
            // The bounds are where every double still is one integer.
            let number = node.as_f64().filter(|number| number.abs() < 9e15)?;
            Data::Integer(number.trunc() as i64)
        };
        Some(Self {
            data,
            source: Some(node),
        })
    }

    /// A double; see [`double`].
    pub(super) fn double(node: Node<'a>) -> Option<Self> {
        Some(Self {
            data: Data::Double(double(node)?),
            source: Some(node),
        })
    }

    pub(super) fn bool(node: Node<'a>) -> Option<Self> {
        Some(Self {
            data: Data::Bool(node.as_bool()?),
            source: Some(node),
        })
    }
}

/// What Java reads as a double: a number, infinite where it is beyond all doubles, or one of the
/// strings by which the canonical JSON of a server says that it is none.
pub(super) fn double(node: Node<'_>) -> Option<f64> {
    node.as_f64().or_else(|| match node.raw_str()? {
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => None,
    })
}

/// Writes a double as JSON, which has no number that is not finite.
pub(super) fn push_double(number: f64, out: &mut String) {
    if number.is_finite() {
        return java_double(number, out);
    }
    out.push('"');
    java_double(number, out);
    out.push('"');
}
