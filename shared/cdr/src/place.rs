//! The place of a row in the server's order, as finely as the server says it: an [`Instant`] ends at the microsecond, servers
//! may not. What is finer stays the server's own text, in [`Cursor::position`].
//!
//! A position is the text of the commit time, or that text, `|` and an object id, of which the latter may be empty: the place
//! behind a row whose own uid cannot be read.

use atlas_engine::checked::is_made_up;
use atlas_engine::model::Cursor;
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;

const BETWEEN: char = '|';

/// A commit time to the last digit. Ordered by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExactTime {
    /// Down to the microsecond.
    pub(crate) instant: Instant,
    /// The digits of the fraction behind the sixth, without zeros at the end.
    beyond: String,
}

impl ExactTime {
    /// Reads a date-time with a fraction of any length; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let instant = Instant::parse(text).ok()?;
        let digits = text.split(['.', ',']).nth(1).unwrap_or_default();
        let digits: String = digits
            .chars()
            .take_while(char::is_ascii_digit)
            .skip(6)
            .collect();
        Some(Self {
            instant,
            beyond: digits.trim_end_matches('0').to_owned(),
        })
    }

    /// Whether an [`Instant`] is too coarse for it.
    pub(crate) fn is_finer_than_micros(&self) -> bool {
        !self.beyond.is_empty()
    }
}

impl From<Instant> for ExactTime {
    fn from(instant: Instant) -> Self {
        Self {
            instant,
            beyond: String::new(),
        }
    }
}

/// What a cursor means to the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    /// The commit time as a parameter.
    pub(crate) time: String,
    pub(crate) exact: ExactTime,
    /// `None` = behind everything that was committed at that time.
    pub(crate) object: Option<ObjectId>,
}

impl Behind {
    pub(crate) fn of(cursor: &Cursor) -> Self {
        let position = cursor.position.as_deref().unwrap_or_default();
        let (time, named) = position.split_once(BETWEEN).unwrap_or((position, ""));
        let object = match is_made_up(&cursor.object) {
            false => Some(cursor.object.clone()),
            true => (!named.is_empty()).then(|| ObjectId::new(named)),
        };
        match ExactTime::parse(time) {
            Some(exact) => Self {
                time: time.to_owned(),
                exact,
                object,
            },
            None => Self {
                time: cursor.committed.to_string(),
                exact: cursor.committed.into(),
                object,
            },
        }
    }
}

/// The position of a row without a uid of its own: behind `object`, the last one of the same commit time in its answer, or
/// behind all of that time.
pub(crate) fn position_without_object(time: &str, object: Option<&ObjectId>) -> String {
    let object = object.map_or("", ObjectId::as_str);
    format!("{time}{BETWEEN}{object}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn exact(text: &str) -> ExactTime {
        ExactTime::parse(text).unwrap()
    }

    #[test]
    fn times_are_compared_to_the_last_digit_whatever_their_width_and_zone() {
        let in_order = [
            "2025-01-01T00:00:00Z",
            "2025-01-01T00:00:00.000000001Z",
            "2025-01-01T00:00:00.00000001Z",
            "2025-01-01T00:00:00.0000001Z",
            "2025-01-01T00:00:00.000001Z",
            "2025-01-01T05:30:00.123456789+05:30",
            "2025-01-01T00:00:00.1234567890123Z",
            "2025-01-01T00:00:00,12345679Z",
            "20250101T000000.1234568Z",
            "2025-01-01T00:00:00.123457Z",
        ];
        for pair in in_order.windows(2) {
            assert!(exact(pair[0]) < exact(pair[1]), "{pair:?}");
        }
        for (one, other) in [
            ("2025-01-01T00:00:00.5Z", "2025-01-01T00:00:00.500000000Z"),
            (
                "2025-01-01T00:00:00.1234567Z",
                "2024-12-31T23:00:00.123456700-01:00",
            ),
        ] {
            assert_eq!(exact(one), exact(other));
        }
        assert!(!exact("2025-01-01T00:00:00.123456000Z").is_finer_than_micros());
        assert!(exact("1969-12-31T23:59:59.1234561Z").is_finer_than_micros());
        assert_eq!(ExactTime::parse("yesterday"), None);
    }

    #[test]
    fn a_cursor_without_a_position_is_the_microsecond_and_the_object() {
        let committed = Instant::parse("2025-01-01T00:00:00.5Z").unwrap();
        let cursor = |object: &str, position: Option<&str>| Cursor {
            committed,
            object: ObjectId::new(object),
            position: position.map(str::to_owned),
        };
        for (cursor, time, object) in [
            (cursor("a", None), "2025-01-01T00:00:00.500000Z", Some("a")),
            (
                cursor("a", Some("2025-01-01T00:00:00.5000001Z")),
                "2025-01-01T00:00:00.5000001Z",
                Some("a"),
            ),
            (
                cursor("unreadable-0", Some("2025-01-01T00:00:00.5Z|b")),
                "2025-01-01T00:00:00.5Z",
                Some("b"),
            ),
            (
                cursor("unreadable-0", Some("2025-01-01T00:00:00.5Z|")),
                "2025-01-01T00:00:00.5Z",
                None,
            ),
            (
                cursor("unreadable-0", None),
                "2025-01-01T00:00:00.500000Z",
                None,
            ),
            (
                cursor("a", Some("of another source")),
                "2025-01-01T00:00:00.500000Z",
                Some("a"),
            ),
        ] {
            let behind = Behind::of(&cursor);
            assert_eq!(behind.time, time);
            assert_eq!(behind.object.as_ref().map(ObjectId::as_str), object);
        }
    }
}
