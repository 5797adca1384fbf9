//! Queue, secrets and identity of Azure.
