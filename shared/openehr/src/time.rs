//! Points in time and openEHR's dates.
//!
//! * [`Instant`]: when something was committed. Servers print it with any offset and any number
//!   of digits; here it is one integer, and its text sorts as time does.
//! * [`DateTime`], [`Date`], [`Time`]: clinical values, which may stop at any field (`2026-11`)
//!   and keep what was written. Only their spelling is unified, by `to_extended`.
//!
//! Durations (`P1Y2M`) pass through as text: Atlas does not calculate with them.

use jiff::SignedDuration;
use jiff::civil;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

/// Why a text is not the date or time it should be. Never holds the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimeError {
    /// The text does not have the form of ISO 8601 that openEHR uses.
    #[error("the text is not an openEHR {expected}, such as `{example}`")]
    Malformed {
        /// What was to be read.
        expected: &'static str,
        /// One that would do.
        example: &'static str,
    },
    /// There is no such month, day, hour, minute, second or offset.
    #[error("there is no such {field}")]
    OutOfRange {
        /// The field with the impossible value.
        field: &'static str,
    },
    /// A partial date-time names no point in time.
    #[error(
        "a point in time needs at least a full date, hour and minute; the date-time is partial"
    )]
    Partial,
    /// An instant outside the years 0000 to 9999.
    #[error("the point in time is outside the years 0000 to 9999")]
    BeyondYears,
}

/// A point in time: microseconds since 1970-01-01T00:00:00Z, in the years 0000 to 9999.
///
/// Microseconds are what openEHR servers keep of a commit time. `Display` and serde write RFC
/// 3339 in UTC, always with six digits (`2026-11-23T03:50:12.116601Z`), so that the order of
/// the texts is the order in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(i64);

impl Instant {
    /// 0000-01-01T00:00:00.000000Z
    pub const MIN: Self = Self(-62_167_219_200_000_000);
    /// 9999-12-31T23:59:59.999999Z
    pub const MAX: Self = Self(253_402_300_799_999_999);
    /// 1970-01-01T00:00:00.000000Z
    pub const EPOCH: Self = Self(0);

    /// The instant that many microseconds after 1970-01-01T00:00:00Z, unless it is outside
    /// [`Instant::MIN`] to [`Instant::MAX`].
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0)
            .contains(&micros)
            .then_some(Self(micros))
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970-01-01T00:00:00Z, rounded down.
    pub fn as_seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND)
    }

    /// Reads a date-time with any offset, in basic or extended form. Without an offset it is
    /// UTC, as EHRbase reads it; without seconds it is second 0, as Java leaves them out;
    /// digits after the sixth of a fraction are cut off.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        DateTime::parse(text)?.instant()
    }

    /// The instant that much later.
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let micros = i64::try_from(duration.as_micros()).ok()?;
        Self::from_micros(self.0.checked_add(micros)?)
    }

    /// The instant that much earlier.
    pub fn checked_sub(self, duration: Duration) -> Option<Self> {
        let micros = i64::try_from(duration.as_micros()).ok()?;
        Self::from_micros(self.0.checked_sub(micros)?)
    }

    /// The instant that much later, or [`Instant::MAX`].
    pub fn saturating_add(self, duration: Duration) -> Self {
        self.checked_add(duration).unwrap_or(Self::MAX)
    }

    /// The instant that much earlier, or [`Instant::MIN`].
    pub fn saturating_sub(self, duration: Duration) -> Self {
        self.checked_sub(duration).unwrap_or(Self::MIN)
    }

    /// The next instant, one microsecond later: the end of the half-open interval that ends with this one.
    pub fn successor(self) -> Self {
        self.saturating_add(Duration::from_micros(1))
    }

    /// How much later this is than another instant; zero if it is earlier, as with
    /// [`std::time::Instant`].
    pub fn duration_since(self, earlier: Self) -> Duration {
        // No overflow: both are between MIN and MAX.
        let micros = self.0 - earlier.0;
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

const MICROS_PER_SECOND: i64 = 1_000_000;

fn epoch() -> civil::DateTime {
    civil::date(1970, 1, 1).at(0, 0, 0, 0)
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let civil = epoch()
            .checked_add(SignedDuration::from_micros(self.0))
            // Impossible between MIN and MAX.
            .map_err(|_| fmt::Error)?;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            civil.year(),
            civil.month(),
            civil.day(),
            civil.hour(),
            civil.minute(),
            civil.second(),
            civil.subsec_nanosecond() / 1000,
        )
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instant({self})")
    }
}

impl FromStr for Instant {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        Self::parse(text)
    }
}

impl Serialize for Instant {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// The last field that a date or time knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Precision {
    /// `2026`
    Year,
    /// `2026-11`
    Month,
    /// `2026-11-23`
    Day,
    /// `2026-11-23T03`
    Hour,
    /// `2026-11-23T03:50`
    Minute,
    /// `2026-11-23T03:50:12`
    Second,
    /// `2026-11-23T03:50:12.1`
    Fraction,
}

/// A date that may stop at the year or month.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Date<'a> {
    text: &'a str,
    date: DateFields,
    is_extended: bool,
}

impl<'a> Date<'a> {
    /// Reads `2026-11-23`, `20261123`, `2026-11`, `202611` or `2026`.
    pub fn parse(text: &'a str) -> Result<Self, TimeError> {
        let mut reader = Reader::new(text, "date", "2026-11-23");
        let date = reader.date()?;
        reader.end()?;
        Ok(Self {
            text,
            date,
            is_extended: reader.is_extended,
        })
    }

    /// The text that was read.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// The last field known.
    pub fn precision(&self) -> Precision {
        self.date.precision()
    }

    /// The same value as `2026-11-23`, stopping where the original stops.
    pub fn to_extended(&self) -> Cow<'a, str> {
        extended(self.text, self.is_extended, |out| self.date.push(out))
    }
}

/// A time of day that may stop at the hour or minute, with or without an offset.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Time<'a> {
    text: &'a str,
    time: TimeFields<'a>,
    is_extended: bool,
}

impl<'a> Time<'a> {
    /// Reads `03:50:12.1+01:00`, `035012,1+0100` and everything that stops earlier.
    pub fn parse(text: &'a str) -> Result<Self, TimeError> {
        let mut reader = Reader::new(text, "time", "03:50:12.116+01:00");
        let time = reader.time()?;
        reader.end()?;
        Ok(Self {
            text,
            time,
            is_extended: reader.is_extended,
        })
    }

    /// The text that was read.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// The last field known.
    pub fn precision(&self) -> Precision {
        self.time.precision()
    }

    /// Minutes east of UTC, if the text says.
    pub fn offset_minutes(&self) -> Option<i32> {
        self.time.offset
    }

    /// The same value as `03:50:12.1+01:00`; see [`DateTime::to_extended`].
    pub fn to_extended(&self) -> Cow<'a, str> {
        extended(self.text, self.is_extended, |out| self.time.push(out))
    }

    /// The same value as Java prints it: minutes always, seconds unless they are zero, a fraction
    /// of 3, 6 or 9 digits.
    pub fn to_java(&self) -> String {
        let digits = self.time.fraction.trim_end_matches('0');
        let zeros = digits.len().next_multiple_of(3) - digits.len();
        let fraction = format!("{digits}{}", "0".repeat(zeros));
        let second = self.time.second.unwrap_or(0);
        let mut out = String::with_capacity(self.text.len() + 8);
        let printed = TimeFields {
            hour: self.time.hour,
            minute: Some(self.time.minute.unwrap_or(0)),
            second: (second != 0 || !digits.is_empty()).then_some(second),
            fraction: &fraction,
            offset: self.time.offset,
        };
        printed.push_with(&fraction, &mut out);
        out
    }
}

/// A date, or a date and a time, that may stop at any field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DateTime<'a> {
    text: &'a str,
    date: DateFields,
    time: Option<TimeFields<'a>>,
    is_extended: bool,
}

impl<'a> DateTime<'a> {
    /// Reads `2026-11-23T03:50:12.1+01:00`, `20261123T035012,1+0100` and everything that stops
    /// earlier.
    pub fn parse(text: &'a str) -> Result<Self, TimeError> {
        let mut reader = Reader::new(text, "date-time", "2026-11-23T03:50:12.116+01:00");
        let date = reader.date()?;
        let mut time = None;
        if date.precision() == Precision::Day && reader.take(b'T') {
            time = Some(reader.time()?);
        }
        reader.end()?;
        Ok(Self {
            text,
            date,
            time,
            is_extended: reader.is_extended,
        })
    }

    /// The text that was read.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// The last field known.
    pub fn precision(&self) -> Precision {
        self.time
            .map_or(self.date.precision(), |time| time.precision())
    }

    /// Minutes east of UTC, if the text says.
    pub fn offset_minutes(&self) -> Option<i32> {
        self.time?.offset
    }

    /// The same value as EHRbase writes it: extended form, `.` before the fraction, no zeros at
    /// its end, `Z` for a zero offset. No field is added and none is lost.
    pub fn to_extended(&self) -> Cow<'a, str> {
        extended(self.text, self.is_extended, |out| {
            self.date.push(out);
            if let Some(time) = self.time {
                out.push('T');
                time.push(out);
            }
        })
    }

    /// The point in time; UTC if there is no offset, second 0 if it stops at the minute.
    pub fn instant(&self) -> Result<Instant, TimeError> {
        match self.precision() {
            Precision::Minute | Precision::Second | Precision::Fraction => self.earliest(),
            _ => Err(TimeError::Partial),
        }
    }

    /// The first point in time that the value can mean: what it leaves out is January, day 1, hour 0,
    /// minute 0, second 0. UTC if there is no offset.
    pub fn earliest(&self) -> Result<Instant, TimeError> {
        let date = self.date;
        let midnight = TimeFields {
            hour: 0,
            minute: None,
            second: None,
            fraction: "",
            offset: None,
        };
        let time = self.time.unwrap_or(midnight);
        let seconds = civil::Date::new(date.year, date.month.unwrap_or(1), date.day.unwrap_or(1))
            .map_err(|_| TimeError::OutOfRange { field: "day" })?
            .at(
                time.hour,
                time.minute.unwrap_or(0),
                time.second.unwrap_or(0),
                0,
            )
            .duration_since(epoch())
            .as_secs()
            - i64::from(time.offset.unwrap_or(0)) * 60;
        Instant::from_micros(seconds * MICROS_PER_SECOND + time.micros())
            .ok_or(TimeError::BeyondYears)
    }
}

/// The text itself if it already has the form, so that the usual case allocates nothing.
fn extended<'a>(text: &'a str, is_extended: bool, push: impl FnOnce(&mut String)) -> Cow<'a, str> {
    if is_extended {
        return Cow::Borrowed(text);
    }
    // Basic form gains at most two dashes, four colons and two digits of an offset.
    let mut out = String::with_capacity(text.len() + 8);
    push(&mut out);
    Cow::Owned(out)
}

// Clinical dates are content: their Debug shows none of it.
impl fmt::Debug for Date<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Date({:?})", self.precision())
    }
}

impl fmt::Debug for Time<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Time({:?})", self.precision())
    }
}

impl fmt::Debug for DateTime<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DateTime({:?})", self.precision())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct DateFields {
    year: i16,
    month: Option<i8>,
    day: Option<i8>,
}

impl DateFields {
    fn precision(&self) -> Precision {
        match (self.month, self.day) {
            (None, _) => Precision::Year,
            (_, None) => Precision::Month,
            _ => Precision::Day,
        }
    }

    fn push(&self, out: &mut String) {
        push_formatted(out, format_args!("{:04}", self.year));
        for field in [self.month, self.day].into_iter().flatten() {
            push_formatted(out, format_args!("-{field:02}"));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct TimeFields<'a> {
    hour: i8,
    minute: Option<i8>,
    second: Option<i8>,
    /// The digits behind the point, at least one if there is a point.
    fraction: &'a str,
    /// Minutes east of UTC.
    offset: Option<i32>,
}

impl TimeFields<'_> {
    fn precision(&self) -> Precision {
        match (self.minute, self.second, self.fraction) {
            (None, ..) => Precision::Hour,
            (_, None, _) => Precision::Minute,
            (.., "") => Precision::Second,
            _ => Precision::Fraction,
        }
    }

    fn micros(&self) -> i64 {
        let digits = self.fraction.bytes().chain(std::iter::repeat(b'0')).take(6);
        digits.fold(0, |micros, digit| micros * 10 + i64::from(digit - b'0'))
    }

    fn push(&self, out: &mut String) {
        self.push_with(self.fraction.trim_end_matches('0'), out);
    }

    fn push_with(&self, fraction: &str, out: &mut String) {
        push_formatted(out, format_args!("{:02}", self.hour));
        for field in [self.minute, self.second].into_iter().flatten() {
            push_formatted(out, format_args!(":{field:02}"));
        }
        if !fraction.is_empty() {
            out.push('.');
            out.push_str(fraction);
        }
        match self.offset {
            None => {}
            Some(0) => out.push('Z'),
            Some(offset) => {
                let sign = if offset < 0 { '-' } else { '+' };
                let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
                push_formatted(out, format_args!("{sign}{hours:02}:{minutes:02}"));
            }
        }
    }
}

fn push_formatted(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

/// Reads the fields of one text from left to right.
struct Reader<'a> {
    rest: &'a str,
    malformed: TimeError,
    /// Whether everything so far is already written as `to_extended` would.
    is_extended: bool,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, expected: &'static str, example: &'static str) -> Self {
        Self {
            rest: text,
            malformed: TimeError::Malformed { expected, example },
            is_extended: true,
        }
    }

    fn date(&mut self) -> Result<DateFields, TimeError> {
        let year = i16::from(self.two_digits()?) * 100 + i16::from(self.two_digits()?);
        let mut date = DateFields {
            year,
            month: None,
            day: None,
        };
        let Some(separator) = self.separator(b'-') else {
            return Ok(date);
        };
        let month = self.two_digits()?;
        date.month = Some(in_range(month, 1..=12, "month")?);
        let more = match separator {
            Separator::Written => self.take(b'-'),
            Separator::LeftOut => self.starts_with_digit(),
        };
        if more {
            let day = self.two_digits()?;
            civil::Date::new(year, month, day)
                .map_err(|_| TimeError::OutOfRange { field: "day" })?;
            date.day = Some(day);
        }
        Ok(date)
    }

    fn time(&mut self) -> Result<TimeFields<'a>, TimeError> {
        let hour = in_range(self.two_digits()?, 0..=23, "hour")?;
        let mut time = TimeFields {
            hour,
            minute: None,
            second: None,
            fraction: "",
            offset: None,
        };
        if let Some(separator) = self.separator(b':') {
            time.minute = Some(in_range(self.two_digits()?, 0..=59, "minute")?);
            let more = match separator {
                Separator::Written => self.take(b':'),
                Separator::LeftOut => self.starts_with_digit(),
            };
            if more {
                time.second = Some(in_range(self.two_digits()?, 0..=59, "second")?);
                time.fraction = self.fraction()?;
            }
        }
        time.offset = self.offset()?;
        Ok(time)
    }

    fn fraction(&mut self) -> Result<&'a str, TimeError> {
        if self.take(b',') {
            self.is_extended = false;
        } else if !self.take(b'.') {
            return Ok("");
        }
        let behind = self
            .rest
            .trim_start_matches(|char: char| char.is_ascii_digit());
        let (digits, rest) = self.rest.split_at(self.rest.len() - behind.len());
        if digits.is_empty() {
            return Err(self.malformed);
        }
        self.is_extended &= !digits.ends_with('0');
        self.rest = rest;
        Ok(digits)
    }

    fn offset(&mut self) -> Result<Option<i32>, TimeError> {
        let sign = if self.take(b'Z') {
            return Ok(Some(0));
        } else if self.take(b'+') {
            1
        } else if self.take(b'-') {
            -1
        } else {
            return Ok(None);
        };
        // What Java reads, and more than any place on earth uses.
        let hours = in_range(self.two_digits()?, 0..=18, "offset")?;
        let mut minutes = 0;
        match self.separator(b':') {
            Some(_) => minutes = in_range(self.two_digits()?, 0..=59, "offset")?,
            None => self.is_extended = false,
        }
        let offset = sign * (i32::from(hours) * 60 + i32::from(minutes));
        self.is_extended &= offset != 0;
        Ok(Some(offset))
    }

    fn end(&self) -> Result<(), TimeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed)
        }
    }

    /// How the next field is set apart, if there is a next field.
    fn separator(&mut self, separator: u8) -> Option<Separator> {
        if self.take(separator) {
            Some(Separator::Written)
        } else if self.starts_with_digit() {
            self.is_extended = false;
            Some(Separator::LeftOut)
        } else {
            None
        }
    }

    fn two_digits(&mut self) -> Result<i8, TimeError> {
        let digits = self
            .rest
            .get(..2)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits
            .and_then(|text| text.parse().ok())
            .ok_or(self.malformed)?;
        self.rest = self.rest.get(2..).unwrap_or_default();
        Ok(number)
    }

    fn take(&mut self, byte: u8) -> bool {
        let taken = self.rest.strip_prefix(char::from(byte));
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    fn starts_with_digit(&self) -> bool {
        self.rest.starts_with(|char: char| char.is_ascii_digit())
    }
}

/// How two fields are set apart: extended or basic form.
#[derive(Clone, Copy)]
enum Separator {
    Written,
    LeftOut,
}

fn in_range(
    value: i8,
    range: std::ops::RangeInclusive<i8>,
    field: &'static str,
) -> Result<i8, TimeError> {
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(TimeError::OutOfRange { field })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn instant(text: &str) -> Instant {
        Instant::parse(text).unwrap()
    }

    #[test]
    fn an_instant_prints_six_digits_in_utc_whatever_was_read() {
        for (text, printed) in [
            ("2026-11-23T03:50:12.116601Z", "2026-11-23T03:50:12.116601Z"),
            (
                "2026-11-23T09:33:12.575334+05:30",
                "2026-11-23T04:03:12.575334Z",
            ),
            ("2026-11-23T03:50:17.63105Z", "2026-11-23T03:50:17.631050Z"),
            ("2026-11-23T03:50:17Z", "2026-11-23T03:50:17.000000Z"),
            ("2026-11-23T03:50Z", "2026-11-23T03:50:00.000000Z"),
            (
                "2026-11-23T03:50:17.907999999Z",
                "2026-11-23T03:50:17.907999Z",
            ),
            ("20261123T035051.536907Z", "2026-11-23T03:50:51.536907Z"),
            ("20261123T035051,5-0130", "2026-11-23T05:20:51.500000Z"),
            ("2026-11-23T00:30:00+01", "2026-11-22T23:30:00.000000Z"),
            ("2026-11-23T03:50:51.536907", "2026-11-23T03:50:51.536907Z"),
            ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999999Z"),
            ("2024-02-29T23:59:59-00:01", "2024-03-01T00:00:59.000000Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(instant(text).to_string(), printed);
        }
        assert_eq!(instant("1969-12-31T23:59:59.999999Z").as_micros(), -1);
        assert_eq!(instant("1969-12-31T23:59:59.999999Z").as_seconds(), -1);
        assert_eq!(Instant::MIN.to_string(), "0000-01-01T00:00:00.000000Z");
        assert_eq!(Instant::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn what_is_no_point_in_time_says_why() {
        let malformed = TimeError::Malformed {
            expected: "date-time",
            example: "2026-11-23T03:50:12.116+01:00",
        };
        for (text, error) in [
            ("", malformed),
            ("2026-11-23 03:50:12Z", malformed),
            ("2026-11-23t03:50:12Z", malformed),
            ("2026-11-23T03:50:12z", malformed),
            ("2026-11-23T03:50:12.Z", malformed),
            ("2026-11-23T03:50:12Z ", malformed),
            ("2026-11-23T0350:12Z", malformed),
            ("2026-1123T03:50:12Z", malformed),
            ("2026-11T03:50:12Z", malformed),
            ("+2026-11-23T03:50:12Z", malformed),
            ("２０２６-11-23T03:50:12Z", malformed),
            ("2026-11-23T+3:50:12Z", malformed),
            (
                "2026-13-23T03:50:12Z",
                TimeError::OutOfRange { field: "month" },
            ),
            (
                "2026-02-30T03:50:12Z",
                TimeError::OutOfRange { field: "day" },
            ),
            (
                "2026-11-23T24:00:00Z",
                TimeError::OutOfRange { field: "hour" },
            ),
            (
                "2026-11-23T03:60:12Z",
                TimeError::OutOfRange { field: "minute" },
            ),
            (
                "2026-11-23T03:50:60Z",
                TimeError::OutOfRange { field: "second" },
            ),
            (
                "2026-11-23T03:50:12+19:00",
                TimeError::OutOfRange { field: "offset" },
            ),
            ("2026-11-23", TimeError::Partial),
            ("2026", TimeError::Partial),
            ("2026-11-23T03Z", TimeError::Partial),
            ("0000-01-01T00:00:00+00:01", TimeError::BeyondYears),
            ("9999-12-31T23:59:59-00:01", TimeError::BeyondYears),
        ] {
            assert_eq!(Instant::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn arithmetic_stays_inside_the_years() {
        let noon = instant("2026-11-23T12:00:00Z");
        let later = noon.checked_add(Duration::from_micros(1)).unwrap();
        assert_eq!(later.to_string(), "2026-11-23T12:00:00.000001Z");
        assert_eq!(later.checked_sub(Duration::from_micros(1)), Some(noon));
        assert_eq!(later.duration_since(noon), Duration::from_micros(1));
        assert_eq!(noon.duration_since(later), Duration::ZERO);
        assert_eq!(Instant::MAX.checked_add(Duration::from_micros(1)), None);
        assert_eq!(Instant::MIN.checked_sub(Duration::from_micros(1)), None);
        assert_eq!(noon.checked_add(Duration::MAX), None);
        assert!(Instant::MAX.duration_since(Instant::MIN) > Duration::ZERO);
    }

    #[test]
    fn saturating_arithmetic_stops_at_the_first_and_last_instant() {
        let second = Duration::from_secs(1);
        assert_eq!(Instant::EPOCH.saturating_add(second).as_micros(), 1_000_000);
        assert_eq!(
            Instant::EPOCH.saturating_sub(second).as_micros(),
            -1_000_000
        );
        assert_eq!(Instant::MAX.saturating_add(second), Instant::MAX);
        assert_eq!(Instant::MIN.saturating_sub(second), Instant::MIN);
        assert_eq!(Instant::EPOCH.successor().as_micros(), 1);
    }

    #[test]
    fn an_instant_passes_through_serde_as_text() {
        let noon = instant("2026-11-23T12:00:00+01:00");
        let json = serde_json::to_string(&noon).unwrap();
        assert_eq!(json, r#""2026-11-23T11:00:00.000000Z""#);
        assert_eq!(serde_json::from_str::<Instant>(&json).unwrap(), noon);
    }

    #[test]
    fn date_times_are_spelled_as_ehrbase_spells_them() {
        for (text, spelled, precision) in [
            ("2026", "2026", Precision::Year),
            ("2026-11", "2026-11", Precision::Month),
            ("202611", "2026-11", Precision::Month),
            ("20261123", "2026-11-23", Precision::Day),
            ("20261123T03", "2026-11-23T03", Precision::Hour),
            ("2026-11-23T03:50", "2026-11-23T03:50", Precision::Minute),
            (
                "20261123T0350+0100",
                "2026-11-23T03:50+01:00",
                Precision::Minute,
            ),
            (
                "2026-11-23T03:50:00",
                "2026-11-23T03:50:00",
                Precision::Second,
            ),
            (
                "2026-11-23T03:50:00,120",
                "2026-11-23T03:50:00.12",
                Precision::Fraction,
            ),
            (
                "2026-11-23T03:50:00.000Z",
                "2026-11-23T03:50:00Z",
                Precision::Fraction,
            ),
            (
                "2026-11-23T03:50:00+00:00",
                "2026-11-23T03:50:00Z",
                Precision::Second,
            ),
            (
                "2026-11-23T03:50:00-00",
                "2026-11-23T03:50:00Z",
                Precision::Second,
            ),
            (
                "2026-11-23T03:50:00-03",
                "2026-11-23T03:50:00-03:00",
                Precision::Second,
            ),
            (
                "2026-11-23T03:50:00-0930",
                "2026-11-23T03:50:00-09:30",
                Precision::Second,
            ),
        ] {
            let value = DateTime::parse(text).unwrap();
            assert_eq!(value.to_extended(), spelled);
            assert_eq!(value.precision(), precision, "{text}");
            assert_eq!(value.as_str(), text);
        }
    }

    #[test]
    fn dates_and_times_stop_where_they_stopped() {
        assert_eq!(Date::parse("202611").unwrap().to_extended(), "2026-11");
        assert_eq!(Date::parse("19991231").unwrap().to_extended(), "1999-12-31");
        assert!(Date::parse("2026-11-23T03").is_err());
        assert_eq!(Time::parse("0350").unwrap().to_extended(), "03:50");
        assert_eq!(
            Time::parse("035012,50-0330").unwrap().to_extended(),
            "03:50:12.5-03:30"
        );
        assert_eq!(Time::parse("03Z").unwrap().to_extended(), "03Z");
        assert_eq!(
            Time::parse("03:50+05:30").unwrap().offset_minutes(),
            Some(330)
        );
        assert_eq!(Time::parse("03:50").unwrap().offset_minutes(), None);
        assert!(Time::parse("2026-11-23").is_err());
    }

    #[test]
    fn what_is_spelled_right_is_borrowed() {
        let value = DateTime::parse("2026-11-23T03:50:12.116601+01:00").unwrap();
        assert!(matches!(value.to_extended(), Cow::Borrowed(_)));
    }

    #[test]
    fn debug_prints_no_clinical_date() {
        let value = DateTime::parse("1953-04-05T03:50").unwrap();
        assert_eq!(format!("{value:?}"), "DateTime(Minute)");
    }

    proptest! {
        #[test]
        fn an_instant_reads_back_and_sorts_as_text(
            a in Instant::MIN.0..=Instant::MAX.0,
            b in Instant::MIN.0..=Instant::MAX.0,
        ) {
            let (a, b) = (Instant::from_micros(a).unwrap(), Instant::from_micros(b).unwrap());
            prop_assert_eq!(Instant::parse(&a.to_string()).unwrap(), a);
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        /// Whatever is borrowed must be what would have been written.
        #[test]
        fn spelling_is_stable(text in "[0-9]{4}(-?[01][0-9](-?[0-3][0-9](T[012][0-9](:?[0-5][0-9](:?[0-5][0-9]([.,][0-9]{1,9})?)?)?(Z|[+-][01][0-9](:?[0-5][0-9])?)?)?)?)?") {
            if let Ok(value) = DateTime::parse(&text) {
                let spelled = value.to_extended().into_owned();
                let again = DateTime::parse(&spelled).unwrap();
                prop_assert!(again.is_extended);
                let mut written = String::new();
                again.date.push(&mut written);
                if let Some(time) = again.time {
                    written.push('T');
                    time.push(&mut written);
                }
                prop_assert_eq!(&written, &spelled);
                prop_assert_eq!(again.instant(), value.instant());
            }
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,30}") {
            let _ = (Instant::parse(&text), Date::parse(&text), Time::parse(&text));
        }
    }
}
