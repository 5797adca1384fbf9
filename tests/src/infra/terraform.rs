//! Terraform, on copies: nothing of a run is left in the sources.

use std::collections::BTreeMap;
use std::fs::{File, create_dir_all, read_dir};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{output, root};

/// The functions that are packaged for Lambda.
pub const FUNCTIONS: [&str; 4] = ["export", "planner", "watermark", "worker"];

/// A copy of `infra/aws` with packages where the example expects them.
pub struct Workspace {
    folder: TempDir,
    module: PathBuf,
    environment: Vec<(String, String)>,
}

impl Workspace {
    /// Copies, and installs the provider. `module` is the folder to work in, below `infra/aws`.
    pub fn new(module: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("infra/aws");
        copy_folder(&root().join("infra/aws"), &copy);
        let packages = folder.path().join("target/package");
        create_dir_all(&packages).unwrap();
        for function in FUNCTIONS {
            package(&packages.join(format!("aws-{function}.zip")));
        }
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let workspace = Self {
            module: copy.join(module),
            folder,
            environment: environment.iter().map(own).collect(),
        };
        let plugins = format!("-plugin-dir={}", plugins().display());
        workspace
            .run(&["init", "-input=false", "-no-color", &plugins])
            .unwrap();
        workspace
    }

    /// Where the packages lie.
    pub fn packages(&self) -> PathBuf {
        self.folder.path().join("target/package")
    }

    /// Runs Terraform in the module.
    ///
    /// # Errors
    /// What it printed, if it failed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let environment = self.environment.iter().map(|(n, v)| (n, v));
        output(terraform(&self.module).args(arguments).envs(environment))
    }

    /// What Terraform makes of an expression whose value is a text.
    pub fn evaluated(&self, expression: &str) -> String {
        let mut console = terraform(&self.module);
        let environment = self.environment.iter().map(|(n, v)| (n, v));
        console.arg("console").envs(environment);
        let mut asked = console
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut question = asked.stdin.take().unwrap();
        writeln!(question, "{expression}").unwrap();
        drop(question);
        let answer = asked.wait_with_output().unwrap().stdout;
        serde_json::from_slice(&answer).unwrap()
    }

    /// What Terraform says it made: the values of each resource of the module `atlas`, by its address there.
    pub fn state(&self) -> Resources {
        resources(&self.run(&["show", "-json"]).unwrap(), "values")
    }

    /// The same as it would be with other values of variables.
    pub fn planned(&self, variables: &[&str]) -> Resources {
        let mut plan = vec!["plan", "-input=false", "-no-color", "-out=plan"];
        plan.extend(variables.iter().flat_map(|variable| ["-var", variable]));
        self.run(&plan).unwrap();
        resources(
            &self.run(&["show", "-json", "plan"]).unwrap(),
            "planned_values",
        )
    }
}

/// Values of resources by address.
pub type Resources = BTreeMap<String, Value>;

fn resources(document: &str, member: &str) -> Resources {
    let document: Value = serde_json::from_str(document).unwrap();
    let resources = &document[member]["root_module"]["child_modules"][0]["resources"];
    let named = |resource: &Value| {
        let address = resource["address"].as_str().unwrap();
        let address = address.trim_start_matches("module.atlas.");
        (address.to_owned(), resource["values"].clone())
    };
    resources.as_array().unwrap().iter().map(named).collect()
}

/// Terraform in a folder, asking nobody and nothing but what the test gives.
pub fn terraform(folder: &Path) -> Command {
    let mut command = Command::new("terraform");
    command
        .current_dir(folder)
        .env("TF_CLI_CONFIG_FILE", "/dev/null")
        .env("CHECKPOINT_DISABLE", "1")
        .env("TF_IN_AUTOMATION", "1");
    command
}

/// Where the provider lies, so that no registry is asked.
fn plugins() -> PathBuf {
    let named = std::env::var_os("ATLAS_TF_PLUGINS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| PathBuf::from("/opt/tf-plugins"));
    let provider = "registry.terraform.io/hashicorp/aws/5.100.0";
    assert!(
        folder.join(provider).is_dir(),
        "{provider} is missing in {}; set ATLAS_TF_PLUGINS to a folder made by `terraform providers mirror`",
        folder.display()
    );
    folder
}

fn copy_folder(from: &Path, to: &Path) {
    create_dir_all(to).unwrap();
    for entry in read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => drop(std::fs::copy(from, to).unwrap()),
        }
    }
}

/// A package that nobody runs.
fn package(path: &Path) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let mode = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
    zip.start_file("bootstrap", mode).unwrap();
    zip.write_all(b"#!/bin/sh\n").unwrap();
    zip.finish().unwrap();
}
