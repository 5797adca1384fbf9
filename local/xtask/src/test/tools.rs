//! Cargo's own tools that the checks run: from the path, or installed once into the cache folder. They are compiled from
//! source, without optimisation, at the lowest priority and one after the other, while the workspace is built.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};

use atlas_machine::cache_folder;
use xtask::command::{cargo, command, must};
use xtask::{Result, say};

use super::groups::Group;

/// A program that a check runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Deny,
    Machete,
    Typos,
}

const ALL: [Tool; 3] = [Tool::Deny, Tool::Machete, Tool::Typos];

impl Tool {
    fn group(self) -> Group {
        match self {
            Self::Deny => Group::Deny,
            Self::Machete => Group::Unused,
            Self::Typos => Group::Typos,
        }
    }

    /// The package, its version and its program.
    fn package(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Deny => ("cargo-deny", "0.20.2", "cargo-deny"),
            Self::Machete => ("cargo-machete", "0.9.2", "cargo-machete"),
            Self::Typos => ("typos-cli", "1.52.0", "typos"),
        }
    }
}

/// Tools on their way.
pub(crate) struct Tools {
    arriving: Receiver<(Tool, Result<PathBuf>)>,
    here: Vec<(Tool, Result<PathBuf>)>,
}

impl Tools {
    /// Begins to install what these groups need.
    pub(crate) fn install(groups: &[Group]) -> Self {
        let needed: Vec<Tool> = ALL
            .into_iter()
            .filter(|tool| groups.contains(&tool.group()))
            .collect();
        let (sender, arriving) = channel();
        std::thread::spawn(move || {
            for tool in needed {
                // Nobody listens any more once the run is over.
                let _ = sender.send((tool, find_or_install(tool)));
            }
        });
        Self {
            arriving,
            here: Vec::new(),
        }
    }

    /// Where a tool lies; waits until it is installed.
    pub(crate) fn get(&mut self, wanted: Tool) -> Result<PathBuf> {
        loop {
            if let Some(at) = self.here.iter().position(|(tool, _)| *tool == wanted) {
                return self.here.swap_remove(at).1;
            }
            self.here.push(self.arriving.recv()?);
        }
    }
}

fn find_or_install(tool: Tool) -> Result<PathBuf> {
    let (package, version, program) = tool.package();
    if runs(program, &["--version"]) {
        return Ok(program.into());
    }
    // One folder for each version: a new one here is installed, not looked past.
    let tools = cache_folder()?.join("tools");
    let folder = tools.join(format!("{package}-{version}"));
    let installed = folder.join("bin").join(program);
    if !installed.is_file() {
        say(&format!(
            "tools: {package} is compiled into the cache, once"
        ));
        let cargo = cargo(&[]);
        let mut install = command("nice", &["-n", "19"]);
        install
            .arg(cargo.get_program())
            .args(["install", "--locked", "--debug", "--quiet", "--jobs=1"])
            .arg(format!("{package}@{version}"))
            .arg("--root")
            .arg(&folder)
            // Its own: two builds in one folder wait for each other.
            .arg("--target-dir")
            .arg(folder.join("target"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        must(install, &format!("install {package}"))?;
        std::fs::remove_dir_all(folder.join("target"))?;
        say(&format!("tools: {package} is ready"));
    }
    Ok(installed)
}

/// Whether a program can be started and succeeds.
pub(crate) fn runs(program: &str, arguments: &[&str]) -> bool {
    let run = command(program, arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    run.is_ok_and(|status| status.success())
}
