//! `atlas flat`: canonical JSON to FLAT without any server, one document a line.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use atlas_openehr::flat::{FlattenedWriter, Ids, JsonWriter, Key, Loss, Plan, Sink, Value, Walker};
use atlas_openehr::json::{Node, Tape};
use atlas_openehr::webtemplate::WebTemplate;

use crate::cli::Flat;
use crate::failure::{Exit, Failure};
use crate::output;

pub(crate) fn run(arguments: &Flat) -> Result<Exit, Failure> {
    let plan = compile(&arguments.web_template, arguments.ids.into())?;
    let mut converter = Converter {
        plan,
        flatten: arguments.flatten,
        report: arguments.loss,
        walker: Walker::new(),
        preserve: JsonWriter::new(),
        flattened: FlattenedWriter::new(),
        tape: Tape::new(),
    };
    let mut exit = Exit::Complete;
    let mut one = |name: &str, text: Result<&str, &io::Error>| -> Result<(), Failure> {
        let converted = match text {
            Ok(text) => converter.convert(name, text)?,
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        if let Err(problem) = converted {
            output::tell(&format!("{name}: {problem}"));
            exit = Exit::Partial;
        }
        Ok(())
    };
    if arguments.compositions.is_empty() {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::new(Exit::Usage, "failed to read stdin").because(error))?;
        for (name, text) in documents(&text) {
            one(&name, Ok(text))?;
        }
    }
    for path in &arguments.compositions {
        let text = fs::read_to_string(path);
        one(&path.display().to_string(), text.as_deref())?;
    }
    Ok(exit)
}

fn compile(path: &Path, ids: Ids) -> Result<Plan, Failure> {
    let failed = || format!("failed to use the web template `{}`", path.display());
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, failed()).because(error))?;
    let template = WebTemplate::parse(&text)
        .map_err(|error| Failure::new(Exit::Usage, failed()).because(error))?;
    Plan::compile(&template, ids)
        .map_err(|error| Failure::new(Exit::Usage, failed()).because(error))
}

/// One document, however many lines it has, or one on each line.
fn documents(text: &str) -> Vec<(String, &str)> {
    if Tape::parse(text).is_ok() {
        return vec![("stdin".to_owned(), text)];
    }
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| (format!("stdin, line {}", number + 1), line))
        .collect()
}

struct Converter {
    plan: Plan,
    flatten: bool,
    report: bool,
    walker: Walker,
    preserve: JsonWriter,
    flattened: FlattenedWriter,
    tape: Tape,
}

impl Converter {
    /// Prints one document. What is wrong with it is the inner error, and no reason to stop.
    fn convert(&mut self, name: &str, text: &str) -> Result<Result<(), String>, Failure> {
        if let Err(error) = self.tape.reparse(text) {
            return Ok(Err(error.to_string()));
        }
        let composition = self.tape.root(text);
        let written = match self.flatten {
            true => self
                .flattened
                .write(&self.plan, &mut self.walker, composition),
            false => self
                .preserve
                .write(&self.plan, &mut self.walker, composition),
        };
        match written {
            Ok(flat) => output::print(flat)?,
            Err(error) => return Ok(Err(error.to_string())),
        }
        if self.report {
            report(name, &self.plan, &mut self.walker, composition);
        }
        Ok(Ok(()))
    }
}

/// What FLAT does not carry: each leaf with its path and the reason, then the sum.
fn report(name: &str, plan: &Plan, walker: &mut Walker, composition: Node<'_>) {
    let mut loss = Loss::with_leaves();
    if plan
        .walk_with_loss(walker, composition, &mut Nothing, &mut loss)
        .is_err()
    {
        // Told already, by the conversion.
        return;
    }
    let mut stderr = io::stderr().lock();
    for leaf in loss.leaves() {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(stderr, "{name}: lost {}: {}", leaf.kind.name(), leaf.path);
    }
    let _ = writeln!(
        stderr,
        "{name}: {} leaves carried, {} lost",
        loss.carried(),
        loss.lost()
    );
}

/// A sink for a walk that is made for its report.
struct Nothing;

impl Sink for Nothing {
    fn emit(&mut self, _key: Key<'_>, _value: Value<'_>) {}
}
