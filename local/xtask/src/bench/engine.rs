//! The engine alone: the example `engine` of this package, its output kept.

use super::{kept, report};
use crate::Result;
use crate::command::cargo;

pub(crate) async fn run() -> Result<()> {
    let example = cargo(&[
        "run",
        "--release",
        "--quiet",
        "--package=xtask",
        "--example=engine",
    ]);
    report::write("engine", "The engine alone", &kept(example).await?)
}
