//! Function: planner.
