//! What openEHR data is, as far as an export has to know it: pure functions over text, no I/O,
//! no async.
//!
//! | module | what it knows |
//! |---|---|
//! | [`json`] | a text and where its values lie, exact to the last digit; canonical form and checksum |
//! | [`number`] | doubles as Java prints them |
//! | [`id`] | version uids, object ids, EHR ids, template ids |
//! | [`webtemplate`] | a served web template as a typed tree |
//! | [`flat`] | canonical JSON to FLAT and to names for SQL, and what gets lost on the way |
//! | [`printable`] | texts of others without what a terminal or a log acts upon |
//! | [`time`] | commit times to the microsecond; openEHR's partial dates, times and date-times |

pub mod flat;
pub mod id;
pub mod json;
pub mod number;
pub mod printable;
pub mod time;
pub mod webtemplate;
