//! What a key's value is: borrowed from the composition, never copied.

use crate::json::Node;

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
    /// A finite number that Java holds as `double` and prints as such.
    Double(f64),
    /// `true` or `false`.
    Bool(bool),
    /// An object of a class without rules.
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

    /// A double. One beyond all doubles keeps its text, as JSON has no infinity.
    pub(super) fn double(node: Node<'a>) -> Option<Self> {
        let text = node.number()?;
        let data = match node.as_f64() {
            Some(number) if number.is_finite() => Data::Double(number),
            _ => Data::Number(text),
        };
        Some(Self {
            data,
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
