//! What the Functions host wraps around a trigger.

use std::collections::BTreeMap;
use std::time::Duration;

use atlas_openehr::time::Instant;
use atlas_runtime::wiring::machine_time;
use serde::Deserialize;
use serde_json::Value;

/// The body of an invocation. Each of our functions has one trigger.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope {
    #[serde(rename = "Data", default)]
    data: BTreeMap<String, Value>,
    #[serde(rename = "Metadata", default)]
    metadata: BTreeMap<String, Value>,
}

/// `Next` of a tick lies in the past, or a few milliseconds ahead. Further ahead it is a tick still to come, and a person has
/// started the function.
const AHEAD: Duration = Duration::from_secs(2);
/// A tick without `Next` belongs to the second that begins this soon.
const EARLY: Duration = Duration::from_millis(10);
/// How often a message was delivered, in its metadata.
const COUNT: &str = "DequeueCount";
const SECOND: i64 = 1_000_000;

impl Envelope {
    /// What the trigger brought.
    pub(crate) fn value(&self) -> Option<&Value> {
        self.data.values().next()
    }

    /// The text of a queue message. Hosts encode a string value as JSON inside the string; the documentation shows it bare.
    pub(crate) fn text(&self) -> String {
        match self.value() {
            Some(Value::String(text)) => {
                serde_json::from_str::<String>(text).unwrap_or_else(|_| text.clone())
            }
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// How often a message was delivered, this time included. The host writes the number as text, and lets a member of a message
    /// overwrite it, whatever the case of its letters: `None` then, since no message of ours has such a member.
    pub(crate) fn deliveries(&self) -> Option<u64> {
        let message: Value = serde_json::from_str(&self.text()).unwrap_or_default();
        let mut members = message.as_object().into_iter().flat_map(|all| all.keys());
        if members.any(|name| name.eq_ignore_ascii_case(COUNT)) {
            return None;
        }
        let count = self.metadata.get(COUNT)?;
        match count.as_str() {
            Some(text) => text.trim_matches('"').parse().ok(),
            None => count.as_u64(),
        }
    }

    /// The occurrence of the schedule that a timer stands for: while the function runs, `Next` is the one that is being run.
    /// A person who starts the function means now, and leaves the tick that is still to come alone. The host keeps no `Next` of a
    /// schedule that fires more often than once a minute: there the second counts.
    pub(crate) fn occurrence(&self) -> Instant {
        // By the clock of the host that wrote `Next`.
        let now = self.host_time().unwrap_or_else(machine_time);
        match self.next() {
            Some(next) if next <= now.saturating_add(AHEAD) => next,
            Some(_) => now,
            None => {
                let soon = now.saturating_add(EARLY);
                Instant::from_micros(soon.as_micros() / SECOND * SECOND).unwrap_or(now)
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let next = self.value()?.get("ScheduleStatus")?.get("Next")?.as_str()?;
        // The host writes the first year for "never".
        instant(next).filter(|next| *next > Instant::EPOCH)
    }

    fn host_time(&self) -> Option<Instant> {
        instant(self.metadata.get("sys")?.get("UtcNow")?.as_str()?)
    }
}

fn instant(text: &str) -> Option<Instant> {
    let timestamp: jiff::Timestamp = text.parse().ok()?;
    Instant::from_micros(timestamp.as_microsecond())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn envelope(value: Value) -> Envelope {
        serde_json::from_value(json!({ "Data": { "msg": value }, "Metadata": {} })).unwrap()
    }

    #[test]
    fn a_message_is_read_with_and_without_the_hosts_extra_encoding() {
        let message = r#"{"m":{"v":1,"kind":"plan","run":"r"}}"#;
        assert_eq!(envelope(json!(message)).text(), message);
        let encoded = serde_json::to_string(message).unwrap();
        assert_eq!(envelope(json!(encoded)).text(), message);
        let as_object: Value = serde_json::from_str(message).unwrap();
        let again: Value = serde_json::from_str(&envelope(as_object.clone()).text()).unwrap();
        assert_eq!(again, as_object);
    }

    #[test]
    fn deliveries_are_counted_by_the_host_alone() {
        let plan = r#"{"m":{"v":1,"kind":"plan","run":"r"}}"#;
        for (message, count, expected) in [
            (plan, json!("3"), Some(3)),
            (plan, json!("\"3\""), Some(3)),
            (plan, json!(3), Some(3)),
            ("no JSON", json!("7"), Some(7)),
            ("[1]", json!("7"), Some(7)),
            (plan, json!("many"), None),
            (plan, json!(-1), None),
            (plan, json!(null), None),
            (r#"{"DequeueCount":1}"#, json!("1"), None),
            (r#"{"m":{},"dequeuecount":"1"}"#, json!("1"), None),
        ] {
            for text in [message.to_owned(), json!(message).to_string()] {
                let mut envelope = envelope(json!(text));
                envelope.metadata.insert(COUNT.to_owned(), count.clone());
                assert_eq!(envelope.deliveries(), expected, "{message} {count}");
            }
        }
        assert_eq!(envelope(json!(plan)).deliveries(), None);
    }

    fn occurrence_of(next: &Value, now: &str) -> String {
        let envelope = json!({
            "Data": { "timer": { "ScheduleStatus": next } },
            "Metadata": { "sys": { "UtcNow": now } },
        });
        let envelope: Envelope = serde_json::from_value(envelope).unwrap();
        envelope.occurrence().to_string()
    }

    #[test]
    fn the_occurrence_is_the_one_being_run() {
        let next = json!({ "Next": "2026-11-22T10:15:00+01:00" });
        for now in [
            "2026-11-22T09:14:59.9900000Z",
            "2026-11-22T09:15:00.0024919Z",
            "2026-11-22T09:25:00.0000000Z",
        ] {
            assert_eq!(
                occurrence_of(&next, now),
                "2026-11-22T09:15:00.000000Z",
                "{now}"
            );
        }
    }

    #[test]
    fn a_person_means_now_and_leaves_the_tick_to_come_alone() {
        let next = json!({ "Next": "2026-11-22T09:15:00+00:00" });
        for (now, occurrence) in [
            (
                "2026-11-22T09:14:43.1946163Z",
                "2026-11-22T09:14:43.194616Z",
            ),
            ("2026-11-22T09:14:57.5Z", "2026-11-22T09:14:57.500000Z"),
            ("2026-11-21T09:15:00Z", "2026-11-21T09:15:00.000000Z"),
        ] {
            assert_eq!(occurrence_of(&next, now), occurrence);
        }
    }

    #[test]
    fn without_a_status_the_second_counts() {
        for (now, occurrence) in [
            (
                "2026-11-22T09:15:19.9950000Z",
                "2026-11-22T09:15:20.000000Z",
            ),
            (
                "2026-11-22T09:15:20.0000000Z",
                "2026-11-22T09:15:20.000000Z",
            ),
            (
                "2026-11-22T09:15:20.9000000Z",
                "2026-11-22T09:15:20.000000Z",
            ),
            (
                "2026-11-22T09:15:40.0924526Z",
                "2026-11-22T09:15:40.000000Z",
            ),
        ] {
            for status in [json!(null), json!({ "Next": "0001-01-01T00:00:00+00:00" })] {
                assert_eq!(occurrence_of(&status, now), occurrence);
            }
        }
    }
}
