//! What the Functions host wraps around a trigger.

use std::collections::BTreeMap;

use atlas_openehr::time::Instant;
use atlas_runtime::wiring::machine_time;
use serde::Deserialize;
use serde_json::Value;

/// The body of an invocation. Each of our functions has one trigger.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope {
    #[serde(rename = "Data", default)]
    data: BTreeMap<String, Value>,
}

impl Envelope {
    /// The text of a queue message. Hosts encode a string value as JSON inside the string; the documentation shows it bare.
    pub(crate) fn text(&self) -> String {
        match self.data.values().next() {
            Some(Value::String(text)) => {
                serde_json::from_str::<String>(text).unwrap_or_else(|_| text.clone())
            }
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// The occurrence of the schedule that a timer stands for: while the function runs, `Next` is the one that is being run.
    /// `None` without schedule monitor, and when a person starts the function.
    pub(crate) fn occurrence(&self) -> Option<Instant> {
        let timer = self.data.values().next()?;
        let next = timer.get("ScheduleStatus")?.get("Next")?.as_str()?;
        let timestamp: jiff::Timestamp = next.parse().ok()?;
        // The host writes the first year for "never".
        (timestamp > jiff::Timestamp::UNIX_EPOCH)
            .then(|| Instant::from_micros(timestamp.as_microsecond()))
            .flatten()
    }
}

/// The minute that has begun last: the same for planners that start together.
pub(crate) fn floor_to_minute() -> Instant {
    const MINUTE: i64 = 60_000_000;
    let now = machine_time();
    Instant::from_micros(now.as_micros() / MINUTE * MINUTE).unwrap_or(now)
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
    fn the_occurrence_is_the_one_being_run() {
        let timer = |next: Value| envelope(json!({ "ScheduleStatus": { "Next": next } }));
        let at = timer(json!("2026-11-22T10:15:00+01:00"))
            .occurrence()
            .unwrap();
        assert_eq!(at.to_string(), "2026-11-22T09:15:00.000000Z");
        assert_eq!(timer(json!("0001-01-01T00:00:00+00:00")).occurrence(), None);
        assert_eq!(timer(Value::Null).occurrence(), None);
        assert_eq!(
            envelope(json!({ "ScheduleStatus": null })).occurrence(),
            None
        );
    }
}
