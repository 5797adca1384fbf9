//! From `atlas.toml` to a wired engine: the only place that knows every part.
//!
//! | module | what |
//! |---|---|
//! | [`environment`] | variables as a value, with those of a `.env` file |
//! | [`cloud`] | queue and secrets of the cloud that the program was built for |
//! | [`function`] | what every function begins with |
//! | [`problem`] | problem details over HTTP |
//! | [`settings`] | file, variables and flags as typed values, or all that is wrong with them |
//! | [`wiring`] | settings to source, store and engine |
//! | [`suite`] | the numbers that the clouds and the code must agree on |
//! | [`telemetry`] | log lines on stderr and in a rotated file |

pub mod cloud;
pub mod environment;
pub mod function;
pub mod problem;
pub mod settings;
pub mod suite;
pub mod telemetry;
pub mod wiring;

pub use cloud::load;
pub use environment::Environment;
pub use settings::Settings;
