//! What the functions of a cloud do, each in a process of its own, over one store and one queue.
//!
//! | module | what |
//! |---|---|
//! | [`planner`] | what the planner does when its timer fires; runs on demand |
//! | [`deliver`] | what a worker does with a message |
//! | [`takeover`] | what a process finds whose predecessor died with the queue inside it |
//! | [`report`] | how far the copy is |

pub mod deliver;
pub mod planner;
pub mod report;
pub mod takeover;
