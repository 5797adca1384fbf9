//! What JSONB cannot hold.

use atlas_openehr::json::{Kind, Node, Tape, unstorable_text};

/// PostgreSQL's limit for the strings and the members of one JSONB value together, in bytes.
const MOST_BYTES: usize = 0x0FFF_FFFF;
/// The most digits of a `numeric` before its point.
const MOST_WHOLE_DIGITS: i64 = 131_072;
/// The most digits of a `numeric` behind its point.
const MOST_FRACTION_DIGITS: i64 = 16_383;

/// From so many digits on, a number is looked at. No number of a record comes near.
const MANY_DIGITS: usize = 1000;
/// From so many arrays and objects in each other on, content is looked at. No record comes near.
const MANY_LEVELS: usize = 500;

/// Why JSONB cannot hold a content, if it cannot. Names a path, never a value.
pub(crate) fn refuses(content: &str) -> Option<String> {
    if content.len() > MOST_BYTES {
        return Some("the content is larger than the 256 MB that JSONB can hold".to_owned());
    }
    if is_plain(content) {
        return None;
    }
    let tape = match Tape::parse(content) {
        Ok(tape) => tape,
        Err(error) => return Some(format!("the content cannot be read: {}", error.kind)),
    };
    let root = tape.root(content);
    if let Some(found) = unstorable_text(root) {
        return Some(format!(
            "{} at {}, which JSONB cannot hold",
            found.kind, found.path
        ));
    }
    has_outsize_number(root)
        .then(|| "a number has more digits than PostgreSQL's numeric can hold".to_owned())
}

/// Whether a content has nothing of what JSONB may not hold: no character written as its number, no exponent, no long number,
/// no great depth. Looks at each byte once.
fn is_plain(content: &str) -> bool {
    let mut bytes = content.bytes();
    let (mut digits, mut levels) = (0, 0_usize);
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                digits = 0;
                loop {
                    match bytes.next() {
                        Some(b'\\') => {
                            if bytes.next() == Some(b'u') {
                                return false;
                            }
                        }
                        Some(b'"') | None => break,
                        Some(_) => {}
                    }
                }
            }
            b'e' | b'E' if digits > 0 => return false,
            b'0'..=b'9' | b'.' => {
                digits += 1;
                if digits >= MANY_DIGITS {
                    return false;
                }
            }
            b'[' | b'{' => {
                digits = 0;
                levels += 1;
                if levels >= MANY_LEVELS {
                    return false;
                }
            }
            b']' | b'}' => {
                digits = 0;
                levels = levels.saturating_sub(1);
            }
            _ => digits = 0,
        }
    }
    true
}

/// JSONB keeps numbers as `numeric`, digit for digit, an exponent written out.
fn has_outsize_number(node: Node<'_>) -> bool {
    match node.kind() {
        Kind::Number => node.number().is_some_and(is_outsize),
        Kind::Array => node.items().any(has_outsize_number),
        Kind::Object => node.members().any(|(_, value)| has_outsize_number(value)),
        Kind::Null | Kind::Bool | Kind::String => false,
    }
}

fn is_outsize(number: &str) -> bool {
    if number.len() < MANY_DIGITS && !number.contains(['e', 'E']) {
        return false;
    }
    let number = number.trim_start_matches('-');
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let Ok(exponent) = exponent.parse::<i32>() else {
        return true;
    };
    let digits = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    let significant = whole.trim_start_matches('0');
    // Below one, zeros behind the point stand where digits could.
    let whole_digits = if significant.is_empty() {
        -digits(&fraction[..fraction.len() - fraction.trim_start_matches('0').len()])
    } else {
        digits(significant)
    };
    whole_digits + i64::from(exponent) > MOST_WHOLE_DIGITS
        || digits(fraction) - i64::from(exponent) > MOST_FRACTION_DIGITS
}
