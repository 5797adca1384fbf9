//! The lambda host.
