//! JSON as the tests judge it: number text kept, members in no order.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// A JSON value whose numbers are the text they were written as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// Members by name.
    Object(BTreeMap<String, Tree>),
    /// Items in their order.
    Array(Vec<Tree>),
    /// A string, decoded.
    Text(String),
    /// A number, `true`, `false` or `null`, as it stands.
    Token(String),
}

/// Reads a text that has to be JSON.
pub fn parse(text: &str) -> Tree {
    let text = text.trim();
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            let parsed = members
                .into_iter()
                .map(|(name, value)| (name, parse(value.get())));
            Tree::Object(parsed.collect())
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            Tree::Array(items.into_iter().map(|item| parse(item.get())).collect())
        }
        Some(b'"') => Tree::Text(serde_json::from_str(text).unwrap()),
        _ => {
            serde_json::from_str::<&RawValue>(text).unwrap();
            Tree::Token(text.to_owned())
        }
    }
}

impl Tree {
    /// The same with every number as its decimal value: `1.50`, `1.5` and `15e-1` are one.
    pub fn decimals(&self) -> Self {
        match self {
            Self::Object(members) => Self::Object(
                members
                    .iter()
                    .map(|(name, value)| (name.clone(), value.decimals()))
                    .collect(),
            ),
            Self::Array(items) => Self::Array(items.iter().map(Self::decimals).collect()),
            Self::Token(token) if is_number(token) => Self::Token(decimal(token)),
            other => other.clone(),
        }
    }

    /// SHA-256 of the RFC 8785 form, hexadecimal.
    pub fn checksum(&self) -> String {
        let mut form = String::new();
        self.write_canonical(&mut form);
        Sha256::digest(form)
            .iter()
            .fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").unwrap();
                hex
            })
    }

    fn write_canonical(&self, out: &mut String) {
        match self {
            Self::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_key(|(name, _)| name.encode_utf16().collect::<Vec<_>>());
                out.push('{');
                for (place, (name, value)) in members.into_iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    // Escapes exactly what the RFC wants escaped, in its way.
                    out.push_str(&serde_json::to_string(name).unwrap());
                    out.push(':');
                    value.write_canonical(out);
                }
                out.push('}');
            }
            Self::Array(items) => {
                out.push('[');
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    item.write_canonical(out);
                }
                out.push(']');
            }
            Self::Text(text) => out.push_str(&serde_json::to_string(text).unwrap()),
            Self::Token(token) if is_number(token) => out.push_str(&ecmascript(token)),
            Self::Token(token) => out.push_str(token),
        }
    }
}

fn is_number(token: &str) -> bool {
    token.starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// `-12.50e1` as `-125e0`: digits without zeros at either end, and the power of ten behind them.
fn decimal(token: &str) -> String {
    let (sign, token) = match token.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", token),
    };
    let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let digits = all.trim_end_matches('0');
    let exponent = exponent.parse::<i64>().unwrap() - fraction.len() as i64
        + (all.len() - digits.len()) as i64;
    match digits.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => format!("{sign}{digits}e{exponent}"),
    }
}

/// A number as ECMAScript prints the double it denotes.
fn ecmascript(token: &str) -> String {
    let value: f64 = token.parse().unwrap();
    if value == 0.0 {
        return "0".to_owned();
    }
    // The shortest digits that lead back to the double, as `d.ddde-7`.
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap();
    let digits = mantissa.replace('.', "");
    let point = exponent.parse::<i32>().unwrap() + 1;
    let length = digits.len() as i32;
    let text = match point {
        ..-5 | 22.. => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            format!("{first}{dot}{rest}e{:+}", point - 1)
        }
        -5..=0 => format!("0.{}{digits}", "0".repeat(point.unsigned_abs() as usize)),
        _ if point >= length => format!("{digits}{}", "0".repeat((point - length) as usize)),
        _ => {
            let (whole, fraction) = digits.split_at(point as usize);
            format!("{whole}.{fraction}")
        }
    };
    if value < 0.0 {
        format!("-{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_equal_whatever_their_spelling() {
        for (a, b) in [
            ("1.50", "15e-1"),
            ("1.0E7", "10000000"),
            ("-0.0", "0"),
            ("100", "1E+2"),
        ] {
            assert_eq!(decimal(a), decimal(b));
        }
        for (a, b) in [("1", "-1"), ("1.5", "15"), ("0.1", "0.10000000000000001")] {
            assert_ne!(decimal(a), decimal(b));
        }
    }

    #[test]
    fn numbers_are_printed_as_ecmascript_does() {
        for (token, printed) in [
            ("1.0E7", "10000000"),
            ("1e21", "1e+21"),
            ("123456789012345680000", "123456789012345680000"),
            ("0.000001", "0.000001"),
            ("1.5e-7", "1.5e-7"),
            ("-12.50", "-12.5"),
            ("-0.0", "0"),
        ] {
            assert_eq!(ecmascript(token), printed);
        }
    }

    #[test]
    fn number_text_counts_and_the_order_of_members_does_not() {
        assert_eq!(
            parse(r#"{"a":1.0,"b":[]}"#),
            parse(r#"{ "b": [], "a": 1.0 }"#)
        );
        assert_ne!(parse("1.0"), parse("1.00"));
    }
}
