//! Function: worker.
