//! Numbers as text: doubles as Java prints them, and decimals in one exact form for checksums.

use std::fmt::{self, Write as _};

/// Appends a double as Java's `Double.toString` prints it since JDK 19: `5.0`, `0.001`,
/// `1.0E7`, `1.2E-4`, `-0.0`, `4.9E-324`, `NaN`, `Infinity`. EHRbase writes every double of
/// FLAT this way.
pub fn java_double(value: f64, out: &mut String) {
    if value.is_nan() {
        return out.push_str("NaN");
    }
    if value.is_sign_negative() {
        out.push('-');
    }
    let value = value.abs();
    if value.is_infinite() {
        return out.push_str("Infinity");
    }
    if value == 0.0 {
        return out.push_str("0.0");
    }
    let mut text = Scientific::new(format_args!("{value:e}"));
    if text.parts().rest.is_empty() {
        // Java prints two digits at least and takes the nearest such number: 4.9E-324, not 5E-324.
        text = Scientific::new(format_args!("{value:.1e}"));
    }
    let decimal = text.parts();
    if (1e-3..1e7).contains(&value) {
        decimal.push_plain(out);
        if decimal.is_whole() {
            out.push_str(".0");
        }
    } else {
        out.push_str(decimal.first);
        out.push('.');
        out.push_str(if decimal.rest.is_empty() {
            "0"
        } else {
            decimal.rest
        });
        out.push('E');
        out.push_str(decimal.exponent_text);
    }
}

/// Appends the text of a JSON number in its one normal form, which depends on the value alone and
/// keeps every digit: digits without zeros at either end, laid out as ECMAScript lays out doubles
/// (`5`, `0.000001`, `1e-7`, `100000000000000000000`, `1e+21`, `0` for any zero).
pub(crate) fn push_exact(text: &str, out: &mut String) {
    if !push_plain_decimal(text, out) {
        push_any_decimal(text, out);
    }
}

/// Digits before the point from which on the form with an exponent is used, as in ECMAScript.
const PLAIN_DIGITS: usize = 21;

/// Nearly all numbers: no exponent, and a size at which the normal form has none either. Answers
/// whether this was one.
fn push_plain_decimal(text: &str, out: &mut String) -> bool {
    let bytes = text.as_bytes();
    let plain = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'.');
    if bytes.len() > PLAIN_DIGITS || !bytes.iter().all(plain) {
        return false;
    }
    let number = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    };
    // What is left of zero, or is so small that it has an exponent.
    let digits = number.strip_prefix('-').unwrap_or(number);
    if digits == "0" || digits.starts_with("0.000000") {
        return false;
    }
    out.push_str(number);
    true
}

fn push_any_decimal(text: &str, out: &mut String) {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => ("-", unsigned),
        None => ("", text),
    };
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_zero = |byte: u8| byte == b'0';
    let leading = whole
        .bytes()
        .chain(fraction.bytes())
        .take_while(|digit| is_zero(*digit));
    let leading = leading.count();
    if leading == whole.len() + fraction.len() {
        return out.push('0');
    }
    // The digits that count, in two pieces as the point may lie between them.
    let first = whole.get(leading..).unwrap_or_default();
    let second = fraction
        .get(leading.saturating_sub(whole.len())..)
        .unwrap_or_default();
    let (first, second) = match second.trim_end_matches('0') {
        "" => (first.trim_end_matches('0'), ""),
        second => (first, second),
    };
    out.push_str(sign);
    let digits = first.len() + second.len();
    let digit = |place: usize| {
        let piece = place.checked_sub(first.len());
        let byte = match piece {
            Some(place) => second.as_bytes().get(place),
            None => first.as_bytes().get(place),
        };
        byte.map_or('0', |byte| char::from(*byte))
    };
    // Where the point stands behind the first digit.
    let shift = whole.len() as i128 - leading as i128 - 1;
    let Some(exponent) = sum(exponent, shift) else {
        // No server or store computes with such an exponent, so its spelling is its form.
        return out.push_str(unsigned);
    };
    match usize::try_from(exponent) {
        Ok(exponent) if exponent < PLAIN_DIGITS => {
            out.extend((0..digits.max(exponent + 1)).flat_map(|place| {
                [(place == exponent + 1).then_some('.'), Some(digit(place))]
                    .into_iter()
                    .flatten()
            }));
        }
        _ if (-6..0).contains(&exponent) => {
            out.push_str("0.");
            out.extend(std::iter::repeat_n(
                '0',
                exponent.unsigned_abs() as usize - 1,
            ));
            out.extend((0..digits).map(digit));
        }
        _ => {
            out.push(digit(0));
            if digits > 1 {
                out.push('.');
                out.extend((1..digits).map(digit));
            }
            // Writing to a String cannot fail.
            let _ = write!(out, "e{exponent:+}");
        }
    }
}

/// A written exponent moved by so many places; `None` beyond 38 digits.
fn sum(written: &str, shift: i128) -> Option<i128> {
    written.parse::<i128>().ok()?.checked_add(shift)
}

/// A positive number as the standard library's `{:e}` prints it, such as `1.25e-7`, on the stack.
struct Scientific {
    bytes: [u8; Self::LONGEST],
    len: usize,
}

impl Scientific {
    /// 17 digits, the point and `e-324`, rounded up.
    const LONGEST: usize = 24;

    fn new(number: fmt::Arguments<'_>) -> Self {
        let mut text = Self {
            bytes: [0; Self::LONGEST],
            len: 0,
        };
        // Fails only if the number is longer than any double is.
        let written = text.write_fmt(number);
        debug_assert!(
            written.is_ok(),
            "a double takes at most {} bytes",
            Self::LONGEST
        );
        text
    }

    fn parts(&self) -> Decimal<'_> {
        let text = self.bytes.get(..self.len).unwrap_or_default();
        let text = std::str::from_utf8(text).unwrap_or_default();
        let (digits, exponent_text) = text.split_once('e').unwrap_or((text, "0"));
        let (first, rest) = digits.split_once('.').unwrap_or((digits, ""));
        Decimal {
            first,
            rest: rest.trim_end_matches('0'),
            exponent: exponent_text.parse().unwrap_or_default(),
            exponent_text,
        }
    }
}

impl fmt::Write for Scientific {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let end = self.len + piece.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        place.copy_from_slice(piece.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// The number `first.rest` x 10^`exponent`, without zeros at the end of `rest`.
struct Decimal<'a> {
    first: &'a str,
    rest: &'a str,
    exponent: i32,
    exponent_text: &'a str,
}

impl Decimal<'_> {
    fn is_whole(&self) -> bool {
        usize::try_from(self.exponent).is_ok_and(|exponent| exponent >= self.rest.len())
    }

    /// Appends the number without exponent, and without a point if it is whole.
    fn push_plain(&self, out: &mut String) {
        let zeros = |count: usize| std::iter::repeat_n('0', count);
        let Ok(exponent) = usize::try_from(self.exponent) else {
            out.push_str("0.");
            out.extend(zeros(self.exponent.unsigned_abs() as usize - 1));
            out.push_str(self.first);
            out.push_str(self.rest);
            return;
        };
        out.push_str(self.first);
        match self.rest.split_at_checked(exponent) {
            Some((whole, fraction)) => {
                out.push_str(whole);
                if !fraction.is_empty() {
                    out.push('.');
                    out.push_str(fraction);
                }
            }
            None => {
                out.push_str(self.rest);
                out.extend(zeros(exponent - self.rest.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn java(value: f64) -> String {
        let mut out = String::new();
        java_double(value, &mut out);
        out
    }

    fn exact(text: &str) -> String {
        let mut out = String::new();
        push_exact(text, &mut out);
        out
    }

    #[test]
    fn doubles_print_as_java_prints_them() {
        for (value, text) in [
            (5.0, "5.0"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (-37.5, "-37.5"),
            (0.001, "0.001"),
            (0.00099, "9.9E-4"),
            (1.2e-4, "1.2E-4"),
            (100.0, "100.0"),
            (120.25, "120.25"),
            (9_999_999.0, "9999999.0"),
            (1e7, "1.0E7"),
            (99_999_999.0, "9.9999999E7"),
            (123_456_789.125, "1.23456789125E8"),
            (2e23, "2.0E23"),
            (f64::MAX, "1.7976931348623157E308"),
            (f64::MIN_POSITIVE, "2.2250738585072014E-308"),
            (5e-324, "4.9E-324"),
            (1e-323, "9.9E-324"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(java(value), text);
        }
    }

    #[test]
    fn a_number_has_one_form_whatever_its_spelling() {
        for (form, spellings) in [
            (
                "0",
                &["0", "-0", "0.0", "-0.000", "0e5", "-0E-400", "0.0e99999"][..],
            ),
            (
                "1",
                &["1", "1.0", "1e0", "10e-1", "0.1e1", "1E+00", "100.00e-2"],
            ),
            ("-1", &["-1", "-1.0", "-10e-1"]),
            ("0.1", &["0.1", "0.10", "1e-1", "0.01e1", "10.0e-2"]),
            ("1000", &["1000", "1e3", "1000.0", "0.001e6"]),
            ("1.1", &["1.1", "1.10", "11e-1", "0.11e1"]),
            (
                "12345678901234567890.1",
                &[
                    "12345678901234567890.1",
                    "12345678901234567890.100",
                    "123456789012345678901e-1",
                ],
            ),
            (
                "9007199254740993",
                &["9007199254740993", "9007199254740993.0"],
            ),
            (
                "100000000000000000000",
                &["100000000000000000000", "1e20", "100000000000000000000.0"],
            ),
            (
                "1e+21",
                &[
                    "1e21",
                    "1000000000000000000000",
                    "1000000000000000000000.00",
                    "0.1e22",
                ],
            ),
            ("1.5e+21", &["1500000000000000000000", "15e20"]),
            ("0.000001", &["0.000001", "1e-6", "0.0000010"]),
            ("0.0000012", &["0.0000012", "1.2e-6"]),
            ("1e-7", &["1e-7", "0.0000001", "0.00000010"]),
            ("1.23e-7", &["0.000000123", "123e-9"]),
            ("1e+400", &["1e400", "10e399", "0.1E+401"]),
            ("-1e-400", &["-1e-400", "-0.1e-399"]),
            (
                "1e+99999999999999999999",
                &["1e99999999999999999999", "10e99999999999999999998"],
            ),
            (
                "1.2345678901234567890123e+22",
                &["12345678901234567890123", "1234567890123456789012.3e1"],
            ),
        ] {
            for spelling in spellings {
                assert_eq!(exact(spelling), form, "{spelling}");
                assert_eq!(exact(form), form, "the form of the form of {spelling}");
            }
        }
        let vast = "9".repeat(60);
        assert_eq!(exact(&format!("1e{vast}")), exact(&format!("1e{vast}")));
        assert_ne!(exact(&format!("1e{vast}")), exact(&format!("2e{vast}")));
        assert_ne!(exact(&format!("1e{vast}")), exact(&format!("1e-{vast}")));
    }

    /// The layout is RFC 8785's: numbers that a double holds look as its appendix B prints them.
    #[test]
    fn the_shortest_digits_of_a_double_look_as_in_rfc_8785() {
        for text in [
            "5e-324",
            "-5e-324",
            "1.7976931348623157e+308",
            "9007199254740992",
            "-9007199254740992",
            "295147905179352830000",
            "9.999999999999997e+22",
            "1e+23",
            "1.0000000000000001e+23",
            "999999999999999700000",
            "999999999999999900000",
            "1e+21",
            "9.999999999999997e-7",
            "0.000001",
            "333333333.3333332",
            "333333333.33333343",
        ] {
            assert_eq!(exact(text), text);
        }
    }

    proptest! {
        #[test]
        fn every_double_reads_back_from_both_spellings(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(java(value).parse::<f64>().unwrap().to_bits(), bits);
        }

        #[test]
        fn decimals_of_daily_life_read_back(digits in 0_i64..100_000_000_000, power in -12_i32..6) {
            let value: f64 = format!("{digits}e{power}").parse().unwrap();
            prop_assert_eq!(java(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
        }

        /// As PostgreSQL's numeric writes it, as it was sent, and with the point anywhere.
        #[test]
        fn the_form_of_a_number_is_that_of_its_value(
            digits in "[1-9][0-9]{0,40}", power in -60_i32..60, zeros in 0_usize..5, moved in 0_usize..30, minus: bool,
        ) {
            let sign = if minus { "-" } else { "" };
            let form = exact(&format!("{sign}{digits}e{power}"));
            let padded = format!("{sign}{digits}{}e{}", "0".repeat(zeros), power - zeros as i32);
            prop_assert_eq!(exact(&padded), form.as_str());
            let small = format!("{sign}0.{}{digits}E{:+}", "0".repeat(moved), power + (moved + digits.len()) as i32);
            prop_assert_eq!(exact(&small), form.as_str());
            let expanded = if power >= 0 {
                format!("{sign}{digits}{}", "0".repeat(power as usize))
            } else {
                let all = format!("{}{digits}", "0".repeat(61));
                let (whole, fraction) = all.split_at(all.len() - power.unsigned_abs() as usize);
                let whole = whole.trim_start_matches('0');
                format!("{sign}{}.{fraction}{}", if whole.is_empty() { "0" } else { whole }, "0".repeat(zeros))
            };
            prop_assert_eq!(exact(&expanded), form.as_str());
            prop_assert_eq!(exact(&form), form.as_str());
            prop_assert_ne!(exact(&format!("{sign}{digits}1e{power}")), form.as_str());
            prop_assert_ne!(exact(&format!("{sign}{digits}e{}", power + 1)), form.as_str());
        }
    }
}
