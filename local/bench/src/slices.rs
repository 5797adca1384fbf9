//! What a slice costs, however many there are: the example `slices`, its output kept.

use crate::{kept, report};
use xtask::Result;
use xtask::command::cargo;

pub(crate) fn run() -> Result<()> {
    let example = cargo(&[
        "run",
        "--release",
        "--quiet",
        "--package=atlas-bench",
        "--example=slices",
    ]);
    report::write("slices", "Many slices and many workers", &kept(example)?)
}
