//! What a slice costs, however many there are: the example `slices`, its output kept.

use crate::{example, kept, report};
use xtask::Result;

pub(crate) fn run() -> Result<()> {
    let example = example("atlas-bench", "slices");
    report::write("slices", "Many slices and many workers", &kept(example)?)
}
