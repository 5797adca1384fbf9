//! Queue, secrets and identity of Azure.
//!
//! | module | what |
//! |---|---|
//! | `queue` | [`StorageQueue`]: the engine's queue over a queue of a storage account |
//! | `vault` | [`Vaults`]: secrets from Key Vault |
//! | `identity` | who this program is in Entra ID |
//! | `shared_key` | signs requests with the key of a storage account, which the SDK does not |
//! | `client` | how the SDK connects, and how long it goes on trying |
//! | `failure` | errors of the SDK by status and code, without the addresses that they hold |
//!
//! An address can hold a signature that opens the queue, and the errors of the SDK hold the address. So no error of the
//! SDK leaves this crate.

mod client;
mod failure;
mod identity;
mod queue;
mod shared_key;
mod vault;

pub use queue::{Access, StorageQueue};
pub use vault::Vaults;
