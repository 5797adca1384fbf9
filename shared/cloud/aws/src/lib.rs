//! Queue, secrets and events of AWS.
