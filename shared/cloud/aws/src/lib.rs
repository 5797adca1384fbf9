//! Queue and secrets of AWS.
//!
//! | module | what |
//! |---|---|
//! | `queue` | [`SqsQueue`]: the engine's queue over Amazon SQS |
//! | `secret` | [`ManagedSecrets`]: secrets from AWS Secrets Manager |
//! | `client` | how the SDK connects, and how long it goes on trying |
//! | `failure` | errors of the SDK by type, status and code |
//!
//! Region, credentials and endpoints come from where the SDK looks for them: environment, profile or role. Nothing is
//! looked for before the first call, so that a function is ready at once.

mod client;
mod failure;
mod queue;
mod secret;

pub use queue::SqsQueue;
pub use secret::ManagedSecrets;
