//! What the functions of a cloud do, each in a process of its own, over one store and one queue.
//!
//! | module | what |
//! |---|---|
//! | [`planner`] | what the planner does when its timer fires |
//! | `sweep` | finds what was left undone |
//! | [`runs`] | the life of a run: asked for, planned, worked, ended or cancelled |
//! | [`deliver`] | what a worker does with a message |
//! | [`takeover`] | what a process finds whose predecessor died with the queue inside it |
//! | `pull` | which slices get a message, and which one a worker takes next |
//! | [`report`] | how far the copy is |
//! | [`unplanned`] | ticks that planned nothing |

pub mod deliver;
pub mod planner;
mod pull;
pub mod report;
pub mod runs;
mod sweep;
pub mod takeover;
pub mod unplanned;
