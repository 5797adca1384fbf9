//! What travels over a queue: which slice may go on, and nothing about its content.
//!
//! ```json
//! {"m":{"v":1,"kind":"slice","run":"…","slice":"…","seq":7,"waits":0,"sent":"2026-11-25T09:15:00Z","tp":"00-…-01"}}
//! ```
//! One top-level member, because the Functions host copies top-level members into its metadata, where an `id` of ours would
//! replace its own. No data, no cursor, no secret, no id of a patient; below 1 KiB.

use atlas_openehr::time::Instant;
use serde::{Deserialize, Serialize};

/// The version that this program writes.
pub const VERSION: u64 = 1;

/// Asks a worker to go on with a slice. The slice's record decides whether that is still wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The run that planned the slice.
    pub run: String,
    /// The slice.
    pub slice: String,
    /// The step of the slice that this message may start: [`Slice::seq`](crate::model::Slice::seq).
    pub seq: u64,
    /// How often it was put back because another worker held the slice.
    #[serde(default)]
    pub waits: u32,
    /// When it was sent, by the sender's clock; informative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Instant>,
    /// W3C `traceparent` of whoever sent it.
    #[serde(default, rename = "tp", skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// Why a text is no message that this program understands. It is set aside: trying again would not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON, or not `{"m":{…}}`, or a member is missing or of the wrong type.
    #[error("the message is not `{{\"m\":{{…}}}}` with run, slice and seq")]
    Malformed,
    /// Written by another version of Atlas.
    #[error("the message has version {0}; this program understands {VERSION}")]
    Version(u64),
    /// Of the right version, about something that this program does not know.
    #[error("the message is of a kind that this program does not know")]
    Kind,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    m: T,
}

#[derive(Deserialize)]
struct Head {
    v: u64,
    kind: String,
}

#[derive(Serialize)]
struct Body<'a> {
    v: u64,
    kind: &'static str,
    #[serde(flatten)]
    message: &'a Message,
}

impl Message {
    /// As it goes over the queue.
    #[must_use]
    pub fn to_json(&self) -> String {
        let body = Body {
            v: VERSION,
            kind: "slice",
            message: self,
        };
        serde_json::json!(Envelope { m: body }).to_string()
    }

    /// Reads what came over the queue; members that this program does not know are ignored.
    ///
    /// # Errors
    /// Why it cannot be understood, without any of its text.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        let head: Envelope<Head> = serde_json::from_str(text).map_err(|_| Unreadable::Malformed)?;
        if head.m.v != VERSION {
            return Err(Unreadable::Version(head.m.v));
        }
        if head.m.kind != "slice" {
            return Err(Unreadable::Kind);
        }
        let body: Envelope<Self> = serde_json::from_str(text).map_err(|_| Unreadable::Malformed)?;
        Ok(body.m)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            run: "timer/2026-11-25T09:15:00.000000Z".to_owned(),
            slice: "preserve-0123456789abcdef/Vital signs.v1/a/b".to_owned(),
            seq: 7,
            waits: 2,
            sent: Instant::parse("2026-11-25T09:15:00Z").ok(),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was_sent_under_one_top_level_member() {
        let text = message().to_json();
        assert!(text.len() < 1024);
        assert_eq!(Message::parse(&text), Ok(message()));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["m"]);
    }

    #[test]
    fn unknown_members_are_ignored_and_optional_ones_may_be_missing() {
        let parsed = Message::parse(
            r#"{"m":{"v":1,"kind":"slice","run":"r","slice":"s","seq":0,"new":[]},"x":1}"#,
        )
        .unwrap();
        assert_eq!((parsed.waits, parsed.sent, parsed.trace), (0, None, None));
    }

    #[test]
    fn what_is_no_message_says_why() {
        let of = |text| Message::parse(text).unwrap_err();
        assert_eq!(
            of(r#"{"m":{"v":9,"kind":"slice"}}"#),
            Unreadable::Version(9)
        );
        assert_eq!(of(r#"{"m":{"v":1,"kind":"erase"}}"#), Unreadable::Kind);
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"m":1}"#,
            r#"{"m":{"v":"1","kind":"slice"}}"#,
            "\u{0}",
            "{\"m\":",
        ] {
            assert_eq!(of(text), Unreadable::Malformed, "{text}");
        }
        assert_eq!(
            of(r#"{"m":{"v":1,"kind":"slice","run":"r","slice":"s","seq":-1}}"#),
            Unreadable::Malformed
        );
    }
}
