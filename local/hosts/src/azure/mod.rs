//! The azure host.
