//! What is made at random, compared with a real server.
//!
//! - [`campaign`]: FLAT of compositions made at random, beside that of a live EHRbase.

pub mod campaign;

/// The answer of a step; its error is for the person at the terminal.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
