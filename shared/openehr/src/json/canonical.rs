//! The canonical form and its SHA-256: equal values have equal checksums, whatever white space,
//! escapes, order of members or spelling of numbers a store or server gives back.

use super::text::{decoded, push_code_unit, push_escaped};
use super::{Kind, Node};
use crate::number::push_exact;
use sha2::{Digest as _, Sha256};
use std::cmp::Ordering;
use std::fmt;

/// Appends the canonical form of a value: members sorted by the UTF-16 code units of their
/// names and no escape that is not needed, as in RFC 8785; numbers as exact decimals.
///
/// RFC 8785 makes a double of every number, which drops digits. Here a number keeps its value to
/// the last digit, in the layout that ECMAScript gives doubles: `120` for `120.0` and `1.2e2`,
/// `0` for `-0.0`, `12345678901234567890.1` as it is, `1e+400` for `1e400`; plain from 1e-6 to
/// below 1e21, else one digit, the rest and an exponent. A number that a double holds to its
/// shortest digits looks as in the RFC, and what PostgreSQL's JSONB gives back for a number
/// (`1000` for `1e3`, `1.10` with its zero) looks like the number.
///
/// Where the RFC gives no answer: of members with the same name the last one stands, as in
/// JSONB; half a surrogate pair stays an escape.
pub fn canonicalize(node: Node<'_>, out: &mut String) {
    push_value(node, &mut Vec::new(), out);
}

/// `names` is one stack of member names for all objects: each sorts what it put there and then
/// takes it back. Recursion is no danger, the parser has limited the depth.
fn push_value(node: Node<'_>, names: &mut Vec<u32>, out: &mut String) {
    match node.kind() {
        Kind::Null | Kind::Bool => out.push_str(node.raw()),
        Kind::Number => push_exact(node.raw(), out),
        Kind::String => push_string(node, out),
        Kind::Array => {
            out.push('[');
            let mut separator = "";
            for item in node.items() {
                out.push_str(separator);
                separator = ",";
                push_value(item, names, out);
            }
            out.push(']');
        }
        Kind::Object => {
            out.push('{');
            let base = names.len();
            names.extend(node.members().map(|(name, _)| name.index));
            let entry = |index: u32| Node { index, ..node };
            if let Some(own) = names.get_mut(base..) {
                own.sort_by(|a, b| compare_names(entry(*a), entry(*b)));
            }
            let mut separator = "";
            let mut at = base;
            while let Some(name) = names.get(at).copied() {
                at += 1;
                // The sort is stable: of equal names the last in the text is the last here.
                let next = names.get(at).copied();
                if next.is_some_and(|next| compare_names(entry(name), entry(next)).is_eq()) {
                    continue;
                }
                out.push_str(separator);
                separator = ",";
                push_string(entry(name), out);
                out.push(':');
                // A value comes right behind its name.
                push_value(entry(name + 1), names, out);
            }
            names.truncate(base);
            out.push('}');
        }
    }
}

pub(super) fn compare_names(a: Node<'_>, b: Node<'_>) -> Ordering {
    let (raw_a, raw_b) = (
        a.raw_str().unwrap_or_default(),
        b.raw_str().unwrap_or_default(),
    );
    let first_difference = raw_a.bytes().zip(raw_b.bytes()).find(|(a, b)| a != b);
    match first_difference {
        _ if a.has_escapes() || b.has_escapes() => code_units(raw_a).cmp(code_units(raw_b)),
        // U+E000 to U+FFFF begin with 0xEE or 0xEF and what lies beyond with 0xF0 or more: UTF-16 sorts these the other
        // way round. Everywhere else the order of bytes is the order of code units.
        Some((0xee.., 0xee..)) => code_units(raw_a).cmp(code_units(raw_b)),
        Some((a, b)) => a.cmp(&b),
        None => raw_a.len().cmp(&raw_b.len()),
    }
}

fn code_units(raw: &str) -> impl Iterator<Item = u16> {
    decoded(raw).flat_map(|unit| {
        let mut buffer = [0; 2];
        let count = match unit {
            Ok(char) => char.encode_utf16(&mut buffer).len(),
            Err(lone) => {
                buffer[0] = lone;
                1
            }
        };
        buffer.into_iter().take(count)
    })
}

fn push_string(node: Node<'_>, out: &mut String) {
    let raw = node.raw_str().unwrap_or_default();
    out.push('"');
    if node.has_escapes() {
        for unit in decoded(raw) {
            match unit {
                Ok(char) => push_escaped(char.encode_utf8(&mut [0; 4]), out),
                Err(lone) => push_code_unit(lone, out),
            }
        }
    } else {
        out.push_str(raw);
    }
    out.push('"');
}

/// The SHA-256 of a value's canonical form. Prints as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum([u8; 32]);

/// The checksum of a value; see [`canonicalize`] for what is equal.
pub fn checksum(node: Node<'_>) -> Checksum {
    let mut canonical = String::with_capacity(node.raw().len());
    canonicalize(node, &mut canonical);
    Checksum(Sha256::digest(canonical.as_bytes()).into())
}

impl Checksum {
    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads what `Display` wrote: 64 lower-case hexadecimal digits. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({self})")
    }
}
