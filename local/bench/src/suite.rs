//! The function suite in the Lambda host, with the release programs: a million compositions by continuations, memory of a
//! worker, and the time from start to ready on both clouds. The example `suite` of the scenarios does it.

use crate::{example, kept, program, report};
use xtask::Result;

const PROGRAMS: [&str; 7] = [
    "atlas",
    "atlas-sample-cdr",
    "atlas-planner",
    "atlas-worker",
    "atlas-watermark",
    "atlas-export",
    "atlas-azure",
];

pub(crate) fn run() -> Result<()> {
    program::build(&PROGRAMS)?;
    let mut example = example("atlas-scenarios", "suite");
    example.env("ATLAS_BIN", program::path("atlas"));
    report::write("suite", "The function suite", &kept(example)?)
}
