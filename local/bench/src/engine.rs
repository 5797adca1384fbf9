//! The engine alone: the example `engine` beside it, its output kept.

use crate::{example, kept, report};
use xtask::Result;

pub(crate) fn run() -> Result<()> {
    let example = example("atlas-bench", "engine");
    report::write("engine", "The engine alone", &kept(example)?)
}
