//! What strings say: escapes, and the texts that PostgreSQL cannot store.

use super::{ESCAPED, Node};
use std::fmt::Write as _;

/// Reads what stands between the quotes of a string that parsed. Half a surrogate pair, which
/// is no character, comes as an `Err` with its code unit.
pub(super) fn decoded(raw: &str) -> impl Iterator<Item = Result<char, u16>> {
    Decoder { rest: raw }
}

/// The text of a string; half a surrogate pair becomes U+FFFD.
pub(super) fn decode(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    text.extend(decoded(raw).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)));
    text
}

struct Decoder<'a> {
    rest: &'a str,
}

impl Decoder<'_> {
    /// The code unit of a `\uXXXX` at the start of the rest, which is then behind it.
    fn take_unicode_escape(&mut self) -> Option<u16> {
        let unit = u16::from_str_radix(self.rest.strip_prefix("\\u")?.get(..4)?, 16).ok()?;
        self.rest = self.rest.get(6..)?;
        Some(unit)
    }
}

impl Iterator for Decoder<'_> {
    type Item = Result<char, u16>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(unit) = self.take_unicode_escape() {
            let behind = Decoder { rest: self.rest }.take_unicode_escape();
            let mut pair = char::decode_utf16([unit].into_iter().chain(behind));
            let first = pair.next()?.map_err(|lone| lone.unpaired_surrogate());
            if let Ok('\u{10000}'..) = first {
                self.take_unicode_escape();
            }
            return Some(first);
        }
        let mut chars = self.rest.chars();
        let mut char = chars.next()?;
        if char == '\\' {
            char = match chars.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                quote_or_slash => quote_or_slash,
            };
        }
        self.rest = chars.as_str();
        Some(Ok(char))
    }
}

/// Appends text as it has to stand between quotes, with as few escapes as RFC 8785 allows.
pub fn push_escaped(text: &str, out: &mut String) {
    let mut kept_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let short = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            0x08 => "\\b",
            b'\t' => "\\t",
            b'\n' => "\\n",
            0x0c => "\\f",
            b'\r' => "\\r",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(text.get(kept_from..at).unwrap_or_default());
        kept_from = at + 1;
        if short.is_empty() {
            push_code_unit(u16::from(byte), out);
        } else {
            out.push_str(short);
        }
    }
    out.push_str(text.get(kept_from..).unwrap_or_default());
}

/// Appends `\uXXXX` in lower case.
pub(super) fn push_code_unit(unit: u16, out: &mut String) {
    out.push_str("\\u");
    for shift in [12, 8, 4, 0] {
        out.extend(char::from_digit(u32::from(unit >> shift) & 0xf, 16));
    }
}

/// A string or member name that JSON allows and PostgreSQL JSONB refuses.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{path} holds {kind}, which PostgreSQL cannot store: correct the composition in its source"
)]
pub struct UnstorableText {
    /// What the text holds.
    pub kind: UnstorableKind,
    /// Where it stands: member names and indexes, such as `content[0].name.value`.
    pub path: String,
}

/// What makes a text unstorable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnstorableKind {
    /// `\u0000`
    #[error("the character U+0000")]
    Nul,
    /// One half of a surrogate pair without the other.
    #[error("half a surrogate pair")]
    LoneSurrogate,
}

/// Finds the first string or member name with a U+0000 or half a surrogate pair, which
/// PostgreSQL JSONB refuses. Both can only be written as escapes, so a value without escapes
/// costs no more than a look at its tape.
pub fn unstorable_text(node: Node<'_>) -> Option<UnstorableText> {
    let entries = node.tape.entries_of(node.index);
    entries
        .iter()
        .zip(node.index..)
        .filter(|(entry, _)| entry.link == ESCAPED)
        .find_map(|(_, index)| {
            let string = Node { index, ..node };
            let kind = decoded(string.raw_str()?).find_map(|unit| match unit {
                Ok('\0') => Some(UnstorableKind::Nul),
                Ok(_) => None,
                Err(_) => Some(UnstorableKind::LoneSurrogate),
            })?;
            Some(UnstorableText {
                kind,
                path: path_to(node, index),
            })
        })
}

/// The way from a value down to the entry with an index; that of a member name ends with the name.
pub(super) fn path_to(root: Node<'_>, target: u32) -> String {
    let mut path = String::new();
    let mut node = root;
    while node.index != target {
        let mut items = node.items().enumerate();
        let mut members = node.members();
        if let Some((position, item)) = items.find(|(_, item)| target < item.after()) {
            // Writing to a String cannot fail.
            let _ = write!(path, "[{position}]");
            node = item;
        } else if let Some((name, value)) = members.find(|(_, value)| target < value.after()) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&name.as_str().unwrap_or_default().replace('\0', "\u{fffd}"));
            if target == name.index {
                return path;
            }
            node = value;
        } else {
            break;
        }
    }
    if path.is_empty() {
        path.push_str("the value");
    }
    path
}
