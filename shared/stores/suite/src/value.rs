//! Whether two JSON texts hold the same values. Members may change places and numbers their way of writing, as in
//! PostgreSQL's JSONB; nothing may be rounded.

use atlas_openehr::json::{Kind, Node, Tape};

/// Whether the values of two JSON texts are equal.
#[must_use]
pub fn equal_texts(left: &str, right: &str) -> bool {
    let (left_tape, right_tape) = (Tape::parse(left).unwrap(), Tape::parse(right).unwrap());
    equal(left_tape.root(left), right_tape.root(right))
}

fn equal(left: Node<'_>, right: Node<'_>) -> bool {
    if left.kind() != right.kind() {
        return false;
    }
    match left.kind() {
        Kind::Null => true,
        Kind::Bool => left.as_bool() == right.as_bool(),
        Kind::String => left.as_str() == right.as_str(),
        Kind::Number => decimal(left.raw()) == decimal(right.raw()),
        Kind::Array => {
            left.items().count() == right.items().count()
                && left.items().zip(right.items()).all(|(a, b)| equal(a, b))
        }
        Kind::Object => contains(left, right) && contains(right, left),
    }
}

/// Whether `outer` has every member of `inner` with an equal value; of a doubled name the last one counts.
fn contains(outer: Node<'_>, inner: Node<'_>) -> bool {
    inner.members().all(|(key, _)| {
        let name = key.as_str().unwrap();
        let (a, b) = (outer.get(&name), inner.get(&name));
        a.zip(b).is_some_and(|(a, b)| equal(a, b))
    })
}

/// Sign, digits without zeros around them, and the power of ten of the last one: equal exactly for equal numbers.
fn decimal(text: &str) -> (bool, String, i64) {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let trimmed = digits.trim_end_matches('0');
    let dropped = i64::try_from(digits.len() - trimmed.len()).unwrap();
    let exponent: i64 = exponent.parse().unwrap();
    let exponent = exponent - i64::try_from(fraction.len()).unwrap() + dropped;
    match trimmed.trim_start_matches('0') {
        "" => (false, String::new(), 0),
        digits => (negative, digits.to_owned(), exponent),
    }
}

#[cfg(test)]
mod tests {
    use super::equal_texts;

    #[test]
    fn equal_numbers_may_be_written_differently_and_close_ones_are_not_equal() {
        assert!(equal_texts(
            "[1.50, -0.0, 1e3, 12]",
            "[1.5, 0, 1000, 1.2e1]"
        ));
        assert!(!equal_texts("0.1000000000000000055", "0.1"));
        assert!(!equal_texts("9007199254740993", "9007199254740992"));
        assert!(!equal_texts("1", "-1"));
    }

    #[test]
    fn members_may_change_places_and_must_all_be_there() {
        assert!(equal_texts(r#"{"a":1,"b":[{}]}"#, r#"{"b":[{}],"a":1}"#));
        assert!(!equal_texts(r#"{"a":1}"#, r#"{"a":1,"b":null}"#));
        assert!(!equal_texts(r#"{"a":1,"b":null}"#, r#"{"a":1}"#));
    }
}
