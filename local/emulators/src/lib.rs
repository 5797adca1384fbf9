//! The clouds on this machine, for tests: each on a free port of the loopback device, ended when it is dropped.
//!
//! | part | stands for | what it is |
//! |---|---|---|
//! | [`Azurite`] | queues and blobs of an Azure storage account | the emulator, from npm |
//! | [`Moto`] | SQS, Secrets Manager and the rest of AWS | the emulator, from PyPI |
//! | [`Lambda`] | what Lambda is to one of our programs | ours |
//! | [`Identity`] | who gives out tokens in Azure | ours |
//! | [`Vault`] | an Azure Key Vault | ours |
//! | [`Authority`] | whom the clients of the https ones trust | ours |
//! | [`Scripted`], [`Relay`], [`Door`] | a server that misbehaves, or is off | ours |
//! | [`in_child`] | a test that needs environment variables | runs it again with them |
//!
//! `tool` installs a program once into the cache folder, `process` starts and ends it, `server` serves what is ours.

mod authority;
mod azurite;
mod child;
mod identity;
mod lambda;
mod moto;
mod process;
mod server;
pub mod tool;
mod vault;
mod wire;

pub use authority::Authority;
pub use azurite::{ACCOUNT, Azurite, KEY, Taken};
pub use child::in_child;
pub use identity::Identity;
pub use lambda::{Invoked, Lambda};
pub use moto::Moto;
pub use vault::Vault;
pub use wire::{Door, Relay, Scripted};

/// The answer of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An emulator that could not be installed, started or asked. The debugging text of a test shows the cause.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct Error {
    action: String,
    #[source]
    source: Cause,
}

impl Error {
    fn new(action: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// Names the action in the error of a call that failed.
trait Context<T> {
    fn context(self, action: &str) -> Result<T>;
}

impl<T, E: Into<Cause>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &str) -> Result<T> {
        self.map_err(|error| Error::new(action, error))
    }
}
