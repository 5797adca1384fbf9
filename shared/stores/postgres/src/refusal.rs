//! What JSONB cannot hold.

use atlas_openehr::json::{Kind, Node, unstorable_text};

/// PostgreSQL's limit for the strings and the members of one JSONB value together, in bytes.
const MOST_BYTES: usize = 0x0FFF_FFFF;
/// The most digits of a `numeric` before its point.
const MOST_WHOLE_DIGITS: i64 = 131_072;
/// The most digits of a `numeric` behind its point.
const MOST_FRACTION_DIGITS: i64 = 16_383;

/// Why JSONB cannot hold a content, if it cannot. Names a path, never a value.
pub(crate) fn refuses(content: Node<'_>) -> Option<String> {
    if content.raw().len() > MOST_BYTES {
        return Some("the content is larger than the 256 MB that JSONB can hold".to_owned());
    }
    if let Some(found) = unstorable_text(content) {
        return Some(format!(
            "{} at {}, which JSONB cannot hold",
            found.kind, found.path
        ));
    }
    has_outsize_number(content)
        .then(|| "a number has more digits than PostgreSQL's numeric can hold".to_owned())
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
    // No number of a record comes near: three digits of exponent are more than a double has.
    if number.len() < 1000 && !number.contains(['e', 'E']) {
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
