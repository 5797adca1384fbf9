use std::process::{Command, Stdio};

use crate::{Context, Error, Result};

/// Runs a test of the calling program in a process of its own that has these variables, because a process cannot safely
/// change its own. `test` is its name as the test harness prints it; the test finds out by one of the variables which of
/// the two it is.
///
/// # Errors
/// What the other process wrote if it failed.
pub fn in_child<N: AsRef<str>, V: AsRef<str>>(
    test: &str,
    variables: impl IntoIterator<Item = (N, V)>,
) -> Result<()> {
    let action = format!("run `{test}` in a process of its own");
    let program = std::env::current_exe().context(&action)?;
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]);
    command.stdin(Stdio::null());
    for (name, value) in variables {
        command.env(name.as_ref(), value.as_ref());
    }
    let output = command.output().context(&action)?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stdout = said(&output.stdout);
    // A name that fits no test would end well, too.
    if output.status.success() && stdout.contains("1 passed") {
        return Ok(());
    }
    let cause = format!("{}\n{stdout}\n{}", output.status, said(&output.stderr));
    Err(Error::new(action, cause))
}
