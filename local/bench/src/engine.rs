//! The engine alone: the example `engine` beside it, its output kept.

use crate::{kept, report};
use xtask::Result;
use xtask::command::cargo;

pub(crate) fn run() -> Result<()> {
    let example = cargo(&[
        "run",
        "--release",
        "--quiet",
        "--package=atlas-bench",
        "--example=engine",
    ]);
    report::write("engine", "The engine alone", &kept(example)?)
}
