//! What deployments consist of besides programs, and what reads it back.
//!
//! ```text
//! infra/aws ────────── terraform ──► moto ── held.py ──► what an account would hold
//! infra/azure ──┬───── bicep.py ───┐                      │ state
//!               └───── bicep ──────│──► names and settings for any parameters; with the state of Terraform: alarms
//! functions/azure/app ─ JSON ──────┴──► agree: the same numbers and names everywhere, those of atlas_runtime::suite
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`terraform`] | the example of `infra/aws` in a folder of its own, brought up and taken down |
//! | [`python`] | scripts, with the packages they need |
//! | [`agree`] | the comparison |
//! | [`bicep`] | what the Bicep file makes of parameters |
//! | [`alarms`] | when the alarms of both clouds ring |

pub mod agree;
pub mod alarms;
pub mod bicep;
pub mod python;
pub mod terraform;

use std::path::PathBuf;
use std::process::Command;

/// The root of the workspace.
pub fn root() -> PathBuf {
    atlas_machine::checkout().unwrap()
}

/// Runs a program to its end and answers its standard output.
///
/// # Errors
/// What it printed, if it failed.
pub fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{name} is missing: {error}"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (said, complained) = (text(output.stdout), text(output.stderr));
    match output.status.success() {
        true => Ok(said),
        false => Err(format!(
            "{name} ended with {}\n{said}\n{complained}",
            output.status
        )),
    }
}
