//! `atlas grants`: the SQL for a role that exports and may change no table.

use atlas_runtime::wiring;

use crate::cli::{Global, Grants};
use crate::failure::{Exit, Failure};
use crate::{output, session};

pub(crate) fn run(global: &Global, arguments: &Grants) -> Result<Exit, Failure> {
    let settings = session::settings(global, Vec::new())?;
    let Some(script) = wiring::grant_script(&settings, &arguments.role) else {
        return Err(Failure::usage(
            "only a PostgreSQL store has roles, and `database_target` is another one",
            "set `database_target = \"postgresql\"`",
        ));
    };
    let script = script.map_err(|error| {
        Failure::new(Exit::Usage, "failed to write the rights of this role")
            .because(error)
            .fix("name the role that exports with `--role`, and its own schema in `postgresql.schema`")
    })?;
    output::print(script.trim_end())?;
    Ok(Exit::Complete)
}
