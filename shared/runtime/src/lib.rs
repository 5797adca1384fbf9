//! From `atlas.toml` to a wired engine: the only place that knows every part.
//!
//! | module | what |
//! |---|---|
//! | [`environment`] | variables as a value, with those of a `.env` file |
//! | [`settings`] | file, variables and flags as typed values, or all that is wrong with them |
//! | [`wiring`] | settings to source, store and engine |
//! | [`suite`] | the numbers that the clouds and the code must agree on |
//! | [`telemetry`] | log lines on stderr and in a rotated file |

pub mod environment;
pub mod settings;
pub mod suite;
pub mod telemetry;
pub mod wiring;

pub use environment::Environment;
pub use settings::Settings;
