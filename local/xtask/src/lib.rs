//! What `cargo xtask` and the benchmarks share: how they run other programs, and what they say.
//!
//! - [`command`]: cargo and others, as processes in the root of the workspace.
//! - [`say`] and [`print()`]: messages and results.

pub mod command;

/// The answer of a task; its error is for the person at the terminal.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Tells the person at the terminal something; standard output is for results.
#[expect(clippy::print_stderr, reason = "this is where messages go")]
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints a line of the result.
#[expect(clippy::print_stdout, reason = "this is where results go")]
pub fn print(line: &str) {
    println!("{line}");
}
