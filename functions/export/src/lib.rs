//! Function: export.
