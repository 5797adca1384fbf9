//! What travels over a queue: which slice may go on, and nothing about its content.
//!
//! ```json
//! {"m":{"v":1,"kind":"slice","run":"…","slice":"…","part":7,"waits":0}}
//! {"m":{"v":1,"kind":"plan","run":"…"}}
//! ```
//! One top-level member, because the Functions host copies top-level members into its metadata, where an `id` of ours would
//! replace its own. No data, no cursor, no secret, no id of a patient; below 1 KiB.

use serde::{Deserialize, Serialize};

use crate::model::Slice;

/// The version that this program writes.
pub const VERSION: u64 = 1;

const SLICE: &str = "slice";
const PLAN: &str = "plan";

/// Asks a worker for something. The records in the store decide whether it is still wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The run that it belongs to.
    pub run: String,
    /// What is asked for.
    pub task: Task,
    /// How often it was put back because another worker held the slice.
    pub waits: u32,
}

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Go on with a slice.
    Slice {
        /// Its id.
        id: String,
        /// The part of it that this message may start: [`Slice::part`](crate::model::Slice::part).
        part: u64,
    },
    /// Plan the run, which somebody asked for on demand.
    Plan,
}

/// Why a text is no message that this program understands. It is set aside: trying again would not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON, or not `{"m":{…}}`, or a member is missing or of the wrong type.
    #[error("the message is not `{{\"m\":{{…}}}}` with the members of its kind")]
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

#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(default)]
    v: u64,
    #[serde(default)]
    kind: String,
    run: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slice: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<u64>,
    #[serde(default)]
    waits: u32,
}

impl Message {
    /// Asks for the part of a slice that is due.
    #[must_use]
    pub fn of(slice: &Slice) -> Self {
        Self {
            run: slice.run.clone(),
            task: Task::Slice {
                id: slice.id.clone(),
                part: slice.part,
            },
            waits: 0,
        }
    }

    /// Asks for the plan of a run.
    #[must_use]
    pub fn plan(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            task: Task::Plan,
            waits: 0,
        }
    }

    /// As it goes over the queue.
    #[must_use]
    pub fn to_json(&self) -> String {
        let (kind, slice, part) = match &self.task {
            Task::Slice { id, part } => (SLICE, Some(id.clone()), Some(*part)),
            Task::Plan => (PLAN, None, None),
        };
        serde_json::json!(Envelope {
            m: Body {
                v: VERSION,
                kind: kind.to_owned(),
                run: self.run.clone(),
                slice,
                part,
                waits: self.waits,
            }
        })
        .to_string()
    }

    /// Reads what came over the queue; members that this program does not know are ignored.
    ///
    /// # Errors
    /// Why it cannot be understood, without any of its text.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        let malformed = |_| Unreadable::Malformed;
        let Envelope { m: head } =
            serde_json::from_str::<Envelope<Head>>(text).map_err(malformed)?;
        if head.v != VERSION {
            return Err(Unreadable::Version(head.v));
        }
        let Envelope { m: body } =
            serde_json::from_str::<Envelope<Body>>(text).map_err(malformed)?;
        let task = match (head.kind.as_str(), body.slice, body.part) {
            (SLICE, Some(id), Some(part)) => Task::Slice { id, part },
            (SLICE, _, _) => return Err(Unreadable::Malformed),
            (PLAN, _, _) => Task::Plan,
            _ => return Err(Unreadable::Kind),
        };
        Ok(Self {
            run: body.run,
            task,
            waits: body.waits,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            run: "timer/2026-11-25T09:15:00.000000Z".to_owned(),
            task: Task::Slice {
                id: "preserve-0123456789abcdef/Vital signs.v1/a/b".to_owned(),
                part: 7,
            },
            waits: 2,
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was_sent_under_one_top_level_member() {
        for message in [
            message(),
            Message::plan("0f8fad5b-d9cb-469f-a165-70867728950e"),
        ] {
            let text = message.to_json();
            assert!(text.len() < 1024);
            assert_eq!(Message::parse(&text), Ok(message));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["m"]);
        }
    }

    #[test]
    fn unknown_members_are_ignored_and_optional_ones_may_be_missing() {
        let text = r#"{"m":{"v":1,"kind":"slice","run":"r","slice":"s","part":0,"new":[]},"x":1}"#;
        let parsed = Message::parse(text).unwrap();
        assert_eq!(parsed.waits, 0);
    }

    #[test]
    fn what_is_no_message_says_why() {
        let of = |text| Message::parse(text).unwrap_err();
        assert_eq!(
            of(r#"{"m":{"v":9,"kind":"slice"}}"#),
            Unreadable::Version(9)
        );
        assert_eq!(
            of(r#"{"m":{"v":1,"kind":"erase","run":"r"}}"#),
            Unreadable::Kind
        );
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"m":1}"#,
            r#"{"m":{"v":"1","kind":"slice"}}"#,
            "\u{0}",
            "{\"m\":",
            r#"{"m":{"v":1,"kind":"slice","run":"r","part":1}}"#,
            r#"{"m":{"v":1,"kind":"slice","run":"r","slice":"s","part":-1}}"#,
        ] {
            assert_eq!(of(text), Unreadable::Malformed, "{text}");
        }
    }
}
