//! What a plan costs, up to a hundred million compositions: the example `plan`, once for each size in a process of its own.

use serde::Deserialize;
use tokio::process::Command;

use crate::{program, report};
use xtask::command::{cargo, command, must};
use xtask::{Result, say};

const MILLIONS: [u64; 3] = [1, 10, 100];
/// How commits lie in time, as the example knows them and as the page says it.
const SHAPES: [(&str, &str); 2] = [
    ("even", "evenly in ten years"),
    ("imported", "nine tenths within the first day"),
];

/// What the example prints.
#[derive(Deserialize)]
struct Planned {
    slices: u64,
    requests: u64,
    seconds: f64,
    ticks: u64,
}

pub(crate) async fn run() -> Result<()> {
    let build = [
        "build",
        "--release",
        "--package=atlas-bench",
        "--example=plan",
    ];
    must(cargo(&build), "build the example")?;
    let mut lines = vec![
        "A full plan with slices of the default size, 40 templates. The source counts by arithmetic and answers at once; \
         PostgreSQL without durability holds the plan. Ticks = calls of the planner until the run is planned. Memory is \
         that of the planner's process. Target: requests and time at most linear."
            .to_owned(),
        String::new(),
        "| commits | compositions | slices | requests | a slice | plan s | ms a slice | ticks | peak memory MiB |".to_owned(),
        "|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for (shape, name) in SHAPES {
        for millions in MILLIONS {
            let compositions = (millions * 1_000_000).to_string();
            let example = command(program::path("examples/plan"), &[&compositions, shape]);
            let run = program::measured(Command::from(example)).await?;
            let planned: Planned = serde_json::from_str(&run.output)?;
            let slices = planned.slices as f64;
            let line = format!(
                "| {name} | {compositions} | {} | {} | {:.2} | {:.2} | {:.2} | {} | {:.1} |",
                planned.slices,
                planned.requests,
                planned.requests as f64 / slices,
                planned.seconds,
                planned.seconds * 1_000.0 / slices,
                planned.ticks,
                run.peak_bytes as f64 / f64::from(1 << 20)
            );
            say(&line);
            lines.push(line);
        }
    }
    report::write("plan", "A plan of many compositions", &lines.join("\n"))
}
