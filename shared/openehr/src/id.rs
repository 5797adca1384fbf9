//! Identifiers, parsed once at the edge.
//!
//! Ids of versions, objects and EHRs lead to a patient: their `Debug` prints no id, and errors
//! never repeat the text. Who needs the text asks for it ([`ObjectId::as_str`] and the like).
//!
//! A version is identified by [`ObjectVersion`], object id and version number. The system id
//! in the middle of a version uid is only the name the server is configured to have, and it
//! changes when the configuration does.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::printable::printable;

/// Why a text is not the version uid of a composition. Never holds the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VersionUidError {
    /// Not three parts.
    #[error("a version uid has three parts, `object_id::system_id::version`; this text has not")]
    Parts,
    /// One of the parts has no text.
    #[error("a part of the version uid `object_id::system_id::version` is empty")]
    EmptyPart,
    /// The version is not a number from 1 to 4294967295.
    #[error("the last part of the version uid is not a version number")]
    Version,
    /// A version such as `1.2.3`, which lies beside the trunk.
    #[error(
        "the version uid names a branch (such as `1.2.3`); Atlas exports trunk versions only, merge the branch in the source"
    )]
    Branch,
}

/// The uid of a version as the server said it: `object_id::system_id::version`.
///
/// `Display` and serde give the original text, `Debug` gives none of it. For identity compare
/// [`VersionUid::identity`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VersionUid {
    text: Box<str>,
    system_start: usize,
    system_end: usize,
    identity: ObjectVersion,
}

impl VersionUid {
    /// Reads a version uid.
    pub fn parse(text: &str) -> Result<Self, VersionUidError> {
        let mut parts = text.split("::");
        let (Some(object), Some(system), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(VersionUidError::Parts);
        };
        if object.is_empty() || system.is_empty() || version.is_empty() {
            return Err(VersionUidError::EmptyPart);
        }
        let is_number =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        if version.contains('.') {
            let is_branch = version.split('.').count() == 3
                && version
                    .split('.')
                    .all(|number| !number.is_empty() && is_number(number));
            return Err(if is_branch {
                VersionUidError::Branch
            } else {
                VersionUidError::Version
            });
        }
        if !is_number(version) {
            return Err(VersionUidError::Version);
        }
        let version = version.parse().map_err(|_| VersionUidError::Version)?;
        let system_start = object.len() + 2;
        Ok(Self {
            text: text.into(),
            system_start,
            system_end: system_start + system.len(),
            identity: ObjectVersion {
                object_id: ObjectId::new(object),
                version,
            },
        })
    }

    /// The text as the server said it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What identifies the version, whatever the server calls itself.
    pub fn identity(&self) -> &ObjectVersion {
        &self.identity
    }

    /// The versioned object the version belongs to.
    pub fn object_id(&self) -> &ObjectId {
        &self.identity.object_id
    }

    /// The name of the system that created the version, or of the server that answers.
    pub fn system_id(&self) -> &str {
        self.text
            .get(self.system_start..self.system_end)
            .unwrap_or_default()
    }

    /// The version number, from 1.
    pub fn version(&self) -> u32 {
        self.identity.version
    }

    /// Identity alone, without the text.
    pub fn into_identity(self) -> ObjectVersion {
        self.identity
    }
}

impl FromStr for VersionUid {
    type Err = VersionUidError;

    fn from_str(text: &str) -> Result<Self, VersionUidError> {
        Self::parse(text)
    }
}

/// The original text.
impl fmt::Display for VersionUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for VersionUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VersionUid(…)")
    }
}

impl Serialize for VersionUid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for VersionUid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// One version of a versioned object, the same under every system id. Ordered by object id,
/// then version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectVersion {
    /// The versioned object.
    pub object_id: ObjectId,
    /// The number of the version, from 1.
    pub version: u32,
}

/// The id of a versioned object. A uuid is kept in lower case, so that its order as text is
/// the order in which the server compares; anything else is kept as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ObjectId(Box<str>);

impl ObjectId {
    /// Takes the text of an object id.
    pub fn new(text: &str) -> Self {
        Self(lower_if_uuid(text))
    }

    /// The id, for a query or a row; never for a log.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of an EHR. A uuid is kept in lower case, anything else as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct EhrId(Box<str>);

impl EhrId {
    /// Takes the text of an EHR id.
    pub fn new(text: &str) -> Self {
        Self(lower_if_uuid(text))
    }

    /// The id, for a query or a row; never for a log.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of a template, such as `vital signs.v1`. Says nothing about a patient, so it may be printed: `Display` gives the text
/// as it may stand in a line of a terminal or a log, [`TemplateId::as_str`] as the server said it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateId(Box<str>);

impl TemplateId {
    /// Takes the text of a template id. Case and blanks matter.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The id as the server said it, for a query, a row or JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TemplateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&printable(&self.0))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectId(…)")
    }
}

impl fmt::Debug for EhrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EhrId(…)")
    }
}

// These four are what `#[serde(from, into)]` asks for.
impl From<String> for ObjectId {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.0.into()
    }
}

impl From<String> for EhrId {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<EhrId> for String {
    fn from(id: EhrId) -> Self {
        id.0.into()
    }
}

fn lower_if_uuid(text: &str) -> Box<str> {
    let is_uuid = text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if is_uuid {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const UUID: &str = "8849182c-82ad-4088-a07f-48ead4180515";

    #[test]
    fn a_version_uid_has_three_parts() {
        let uid = VersionUid::parse(&format!("{UUID}::local.ehrbase.org::12")).unwrap();
        assert_eq!(uid.object_id().as_str(), UUID);
        assert_eq!(uid.system_id(), "local.ehrbase.org");
        assert_eq!(uid.version(), 12);
        assert_eq!(uid.to_string(), format!("{UUID}::local.ehrbase.org::12"));
    }

    #[test]
    fn identity_does_not_depend_on_the_system_or_on_case() {
        let here = VersionUid::parse(&format!("{UUID}::here::2")).unwrap();
        let there = VersionUid::parse(&format!("{}::there::2", UUID.to_uppercase())).unwrap();
        assert_ne!(here, there);
        assert_eq!(here.identity(), there.identity());
        assert_eq!(
            there.to_string(),
            format!("{}::there::2", UUID.to_uppercase())
        );
    }

    #[test]
    fn an_object_id_that_is_no_uuid_keeps_its_case() {
        let uid = VersionUid::parse("1.2.840.Ward::s::1").unwrap();
        assert_eq!(uid.object_id().as_str(), "1.2.840.Ward");
    }

    #[test]
    fn versions_are_ordered_by_object_and_then_by_number() {
        let version = |object: &str, version| ObjectVersion {
            object_id: ObjectId::new(object),
            version,
        };
        assert!(version("a", 9) < version("a", 10));
        assert!(version("a", 10) < version("b", 1));
    }

    #[test]
    fn what_is_no_version_uid_says_why() {
        for (text, error) in [
            ("", VersionUidError::Parts),
            ("a::b", VersionUidError::Parts),
            ("a::b::1::2", VersionUidError::Parts),
            ("::b::1", VersionUidError::EmptyPart),
            ("a::::1", VersionUidError::EmptyPart),
            ("a::b::", VersionUidError::EmptyPart),
            ("a::b::x", VersionUidError::Version),
            ("a::b::0", VersionUidError::Version),
            ("a::b::01", VersionUidError::Version),
            ("a::b::+1", VersionUidError::Version),
            ("a::b::4294967296", VersionUidError::Version),
            ("a::b::1.2", VersionUidError::Version),
            ("a::b::1..3", VersionUidError::Version),
            ("a::b::1.2.3", VersionUidError::Branch),
        ] {
            assert_eq!(VersionUid::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn debug_and_errors_print_no_id() {
        let uid = VersionUid::parse(&format!("{UUID}::secret::1")).unwrap();
        let error = VersionUid::parse("secret::secret").unwrap_err();
        let printed = format!(
            "{uid:?} {:?} {:?} {error} {error:?}",
            uid.identity(),
            EhrId::new(UUID)
        );
        assert!(
            !printed.contains("8849182c") && !printed.contains("secret"),
            "{printed}"
        );
        assert!(printed.contains("ObjectId(…)"));
    }

    #[test]
    fn ids_pass_through_serde_as_text() {
        let uid = VersionUid::parse(&format!("{UUID}::here::2")).unwrap();
        let json = serde_json::to_string(&(&uid, uid.identity())).unwrap();
        assert_eq!(
            json,
            format!(r#"["{UUID}::here::2",{{"object_id":"{UUID}","version":2}}]"#)
        );
        let (back, identity): (VersionUid, ObjectVersion) = serde_json::from_str(&json).unwrap();
        assert_eq!((&back, &identity), (&uid, uid.identity()));
        let error = serde_json::from_str::<VersionUid>("\"secret\"").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
