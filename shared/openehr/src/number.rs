//! Doubles as text, in the two spellings that Atlas needs.
//!
//! Both start from the shortest digits that read back as the same double, which the standard
//! library finds; they differ in where the exponent begins.

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

/// Appends a finite double as ECMAScript's `Number::toString` prints it, which is the number
/// form of RFC 8785: `5`, `0.000001`, `1e-7`, `100000000000000000000`, `1e+21`, `0` for -0.
pub(crate) fn ecmascript_double(value: f64, out: &mut String) {
    if value == 0.0 {
        return out.push('0');
    }
    if value < 0.0 {
        out.push('-');
    }
    let value = value.abs();
    let shortest = Scientific::new(format_args!("{value:e}"));
    let decimal = shortest.parts();
    if (-6..21).contains(&decimal.exponent) {
        decimal.push_plain(out);
        return;
    }
    out.push_str(decimal.first);
    if !decimal.rest.is_empty() {
        out.push('.');
        out.push_str(decimal.rest);
    }
    out.push_str(if decimal.exponent < 0 { "e" } else { "e+" });
    out.push_str(decimal.exponent_text);
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

    fn ecmascript(value: f64) -> String {
        let mut out = String::new();
        ecmascript_double(value, &mut out);
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

    /// Values of appendix B of RFC 8785 and the borders of the plain form.
    #[test]
    fn doubles_print_as_ecmascript_prints_them() {
        for (bits, text) in [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
        ] {
            assert_eq!(ecmascript(f64::from_bits(bits)), text);
        }
        for (value, text) in [
            (1e-7, "1e-7"),
            (1e20, "100000000000000000000"),
            (1.5, "1.5"),
            (-12.0, "-12"),
        ] {
            assert_eq!(ecmascript(value), text);
        }
    }

    proptest! {
        #[test]
        fn every_double_reads_back_from_both_spellings(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(java(value).parse::<f64>().unwrap().to_bits(), bits);
            prop_assert_eq!(ecmascript(value).parse::<f64>().unwrap(), value);
        }

        #[test]
        fn decimals_of_daily_life_read_back(digits in 0_i64..100_000_000_000, power in -12_i32..6) {
            let value: f64 = format!("{digits}e{power}").parse().unwrap();
            prop_assert_eq!(java(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
            prop_assert_eq!(ecmascript(value).parse::<f64>().unwrap(), value);
        }
    }
}
