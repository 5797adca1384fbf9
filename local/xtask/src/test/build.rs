//! The one build of a run. Everything that tests run comes from it: a second cargo command with other packages would
//! choose other features, and compile half of the dependencies again.

use std::path::{Path, PathBuf};

use serde_json::Value;
use xtask::command::{cargo, stream};
use xtask::{Result, print};

use super::groups::Group;

/// The package of the scenarios.
const SCENARIOS: &str = "atlas-scenarios";
/// The program that starts the servers.
const SERVERS: &str = "atlas-test-servers";

/// What was built.
#[derive(Debug, Default)]
pub(crate) struct Built {
    tests: Vec<TestProgram>,
    servers: Option<PathBuf>,
}

/// A program of tests.
#[derive(Debug, Clone)]
pub(crate) struct TestProgram {
    /// Such as `atlas-cdr tests/wire`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The folder of its package.
    pub(crate) package: PathBuf,
    group: Group,
}

impl Built {
    /// The tests of a group, sorted by name.
    pub(crate) fn tests(&self, group: Group) -> impl Iterator<Item = &TestProgram> {
        self.tests.iter().filter(move |test| test.group == group)
    }

    /// The program that starts the servers.
    pub(crate) fn servers(&self) -> Result<&Path> {
        let path = self.servers.as_deref();
        path.ok_or_else(|| format!("{SERVERS} was not built").into())
    }

    /// Takes in one line of cargo's messages.
    fn look(&mut self, line: &str) -> Result<()> {
        // Programs of build scripts may print what is no message.
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            print(line);
            return Ok(());
        };
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        let (Some("compiler-artifact"), Some(executable)) = (text("/reason"), text("/executable"))
        else {
            return Ok(());
        };
        let missing = |what: &str| format!("cargo did not say the {what} of {executable}");
        let name = text("/target/name").ok_or_else(|| missing("name"))?;
        let is_test = message.pointer("/profile/test") == Some(&Value::Bool(true));
        if !is_test {
            if name == SERVERS {
                self.servers = Some(executable.into());
            }
            return Ok(());
        }
        let manifest = text("/manifest_path").ok_or_else(|| missing("package"))?;
        let package = Path::new(manifest).parent();
        let package = package.ok_or_else(|| missing("folder"))?.to_owned();
        let id = text("/package_id").ok_or_else(|| missing("package"))?;
        let package_name = package_name(id).ok_or_else(|| missing("package"))?;
        self.tests.push(TestProgram {
            name: match text("/target/kind/0") {
                Some("test") => format!("{package_name} tests/{name}"),
                Some("bin") => format!("{package_name} bin {name}"),
                _ => package_name.to_owned(),
            },
            path: executable.into(),
            package,
            group: match package_name == SCENARIOS {
                true => Group::Scenarios,
                false => Group::Unit,
            },
        });
        Ok(())
    }
}

/// Builds libraries, programs, tests and examples of the whole workspace; `None` if something does not compile, which
/// cargo has said.
pub(crate) fn build() -> Result<Option<Built>> {
    let mut built = Built::default();
    let mut looked = Ok(());
    let command = cargo(&[
        "build",
        "--workspace",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
        "--message-format=json-render-diagnostics",
    ]);
    let status = stream(command, None, |line| {
        if looked.is_ok() {
            looked = built.look(line);
        }
    })?;
    looked?;
    built.tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(status.success().then_some(built))
}

/// The name in a package id such as `path+file:///x/shared/cdr#atlas-cdr@0.1.0` or, where the folder has that name
/// already, `path+file:///x/local/atlas#0.1.0`.
fn package_name(id: &str) -> Option<&str> {
    let (path, version) = id.rsplit_once('#')?;
    match version.split_once('@') {
        Some((name, _)) => Some(name),
        None => path.rsplit('/').next(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn packages_are_named_whatever_their_folder_is_called() {
        let named = "path+file:///x/shared/cdr#atlas-cdr@0.1.0";
        assert_eq!(package_name(named), Some("atlas-cdr"));
        assert_eq!(
            package_name("path+file:///x/local/atlas#0.1.0"),
            Some("atlas")
        );
        assert_eq!(package_name("atlas 0.1.0"), None);
    }

    #[test]
    fn tests_and_the_program_of_the_servers_are_taken_from_the_messages() {
        let message = |id: &str, kind: &str, name: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact",
                "package_id": format!("path+file:///x/{id}#{id}@0.1.0"),
                "manifest_path": format!("/x/{id}/Cargo.toml"),
                "target": {"kind": [kind], "name": name},
                "profile": {"test": test},
                "executable": format!("/target/{name}"),
            })
            .to_string()
        };
        let mut built = Built::default();
        for line in [
            message("atlas-cdr", "test", "wire", true),
            message("atlas-scenarios", "test", "kill", true),
            message("atlas-ehrbase", "bin", SERVERS, false),
            message("atlas", "bin", "atlas", true),
            r#"{"reason":"compiler-artifact","executable":null}"#.to_owned(),
            "a line of a build script".to_owned(),
        ] {
            built.look(&line).unwrap();
        }
        let names = |group| -> Vec<&str> { built.tests(group).map(|test| &*test.name).collect() };
        assert_eq!(
            names(Group::Unit),
            ["atlas-cdr tests/wire", "atlas bin atlas"]
        );
        assert_eq!(names(Group::Scenarios), ["atlas-scenarios tests/kill"]);
        assert_eq!(
            built.servers().unwrap(),
            Path::new("/target/atlas-test-servers")
        );
    }
}
