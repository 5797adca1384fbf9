//! Keys that have nothing of the source's ids, as de-identification makes them.

use atlas_engine::model::{Meta, RowKey};
use atlas_engine::transform::Keys;
use atlas_openehr::id::{EhrId, ObjectId, VersionUid};

/// Every object and every EHR under a token of its own.
pub struct Tokens;

impl Tokens {
    /// The token of an object.
    pub fn of(object: &ObjectId) -> ObjectId {
        ObjectId::new(&format!("t-{}", scrambled(object.as_str())))
    }
}

impl Keys for Tokens {
    fn key(&self, meta: &Meta) -> RowKey {
        RowKey {
            object: Self::of(meta.uid.object_id()),
            ehr: EhrId::new(&format!("t-{}", scrambled(meta.ehr.as_str()))),
            template: meta.template.clone(),
        }
    }

    fn uid(&self, meta: &Meta) -> VersionUid {
        let token = Self::of(meta.uid.object_id());
        let uid = format!("{}::copy::{}", token.as_str(), meta.uid.version());
        VersionUid::parse(&uid).unwrap()
    }
}

/// Another order and no common prefix: whoever mixes up the two ids finds nothing.
fn scrambled(id: &str) -> String {
    id.chars().rev().collect()
}
