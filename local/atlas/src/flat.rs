//! `atlas flat`: canonical JSON to FLAT without any server, one document a line.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::str::Utf8Error;

use atlas_openehr::flat::{
    DocumentKind, FlatError, FlattenedWriter, Ids, JsonWriter, Key, Loss, OtherTemplate, Plan,
    Sink, Value, Walker,
};
use atlas_openehr::json::{JsonError, Tape};
use atlas_openehr::webtemplate::WebTemplate;

use crate::cli::Flat;
use crate::failure::{Exit, Failure};
use crate::output;

/// Bytes of the largest document that is read: no composition comes near, and memory must not follow the input.
const LARGEST: usize = 64 << 20;

/// Why a document has no line in the output.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("failed to read it: {0}")]
    Read(io::Error),
    #[error("it is larger than {} MiB, which no composition is", LARGEST >> 20)]
    TooLarge,
    #[error("it is not UTF-8: {0}")]
    Text(#[from] Utf8Error),
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error(transparent)]
    Flat(#[from] FlatError),
    #[error("this is {0}")]
    NotAComposition(DocumentKind),
    #[error("this is {0}")]
    OtherTemplate(#[from] OtherTemplate),
    /// Not the document's fault: nothing more can be written.
    #[error("failed to write to stdout: {0}")]
    Write(io::Error),
}

impl Problem {
    /// Whether the document is another than the command takes, not a broken one.
    fn is_wrong_kind(&self) -> bool {
        matches!(self, Self::NotAComposition(_) | Self::OtherTemplate(_))
    }
}

/// What came of the documents so far.
#[derive(Default)]
struct Outcome {
    converted: bool,
    failed: bool,
    /// A document of another kind than the command takes was among them.
    wrong_kind: bool,
}

impl Outcome {
    fn add_failure(&mut self, problem: &Problem) {
        self.failed = true;
        self.wrong_kind |= problem.is_wrong_kind();
    }

    /// Nothing but documents of the wrong kind is wrong usage; beside others it is one that failed.
    fn exit(&self) -> Exit {
        match (self.converted, self.failed, self.wrong_kind) {
            (false, _, true) => Exit::Usage,
            (_, true, _) => Exit::Partial,
            _ => Exit::Complete,
        }
    }
}

pub(crate) fn run(arguments: &Flat) -> Result<Exit, Failure> {
    let mut converter = Converter {
        plan: compile(&arguments.web_template, arguments.ids.into())?,
        flatten: arguments.flatten,
        report: arguments.loss,
        walker: Walker::new(),
        preserve: JsonWriter::new(),
        flattened: FlattenedWriter::new(),
        tape: Tape::new(),
    };
    let mut outcome = Outcome::default();
    if arguments.compositions.is_empty() {
        let mut documents = Documents::of(io::stdin().lock());
        while let Some(line) = documents
            .advance()
            .map_err(|error| Failure::new(Exit::Partial, "failed to read stdin").because(error))?
        {
            let converted = documents
                .text()
                .and_then(|text| converter.convert(&Name::Line(line), text));
            if !is_told(&Name::Line(line), converted, &mut outcome)? {
                return Ok(outcome.exit());
            }
        }
    }
    for path in &arguments.compositions {
        let name = Name::File(path);
        let converted = read(path).and_then(|text| converter.convert(&name, &text));
        if !is_told(&name, converted, &mut outcome)? {
            return Ok(outcome.exit());
        }
    }
    Ok(outcome.exit())
}

/// Tells what is wrong with a document; answers whether anyone wants the next one.
fn is_told(
    name: &Name<'_>,
    converted: Result<(), Problem>,
    outcome: &mut Outcome,
) -> Result<bool, Failure> {
    match converted {
        Ok(()) => {
            outcome.converted = true;
            Ok(true)
        }
        // Whoever reads has enough, as `head` does.
        Err(Problem::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(Problem::Write(error)) => {
            Err(Failure::new(Exit::Internal, "failed to write to stdout").because(error))
        }
        Err(problem) => {
            output::tell(&format!("{name}: {problem}"));
            outcome.add_failure(&problem);
            Ok(true)
        }
    }
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

/// Where a document came from.
enum Name<'a> {
    File(&'a Path),
    /// The line of stdin on which it begins, from 1.
    Line(u64),
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Line(number) => write!(f, "stdin, line {number}"),
        }
    }
}

fn read(path: &Path) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(Problem::Read)?;
    if bytes.len() > LARGEST {
        return Err(Problem::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| error.utf8_error().into())
}

/// Splits a stream into documents, one in memory at a time. A line is a document; a line with nothing but `{` begins one
/// that goes on to the next line with nothing but `}`, as formatters print it.
struct Documents<R> {
    input: R,
    /// Of the line that was read last, from 1.
    number: u64,
    line: Vec<u8>,
    document: Vec<u8>,
    too_large: bool,
}

impl<R: BufRead> Documents<R> {
    fn of(input: R) -> Self {
        Self {
            input,
            number: 0,
            line: Vec::new(),
            document: Vec::new(),
            too_large: false,
        }
    }

    /// Goes to the next document; answers the number of its first line, or `None` at the end.
    fn advance(&mut self) -> io::Result<Option<u64>> {
        self.document.clear();
        self.too_large = false;
        loop {
            if !self.read_line()? {
                return Ok(None);
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let first = self.number;
        self.take_line();
        if self.line.trim_ascii_end() == b"{" {
            while self.read_line()? {
                self.take_line();
                if self.line.trim_ascii_end() == b"}" {
                    break;
                }
            }
        }
        Ok(Some(first))
    }

    fn text(&self) -> Result<&str, Problem> {
        if self.too_large {
            return Err(Problem::TooLarge);
        }
        Ok(std::str::from_utf8(&self.document)?)
    }

    /// Reads a line, or as much of it as is too much; answers whether there was one.
    fn read_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        let most = LARGEST as u64 + 1;
        (&mut self.input)
            .take(most)
            .read_until(b'\n', &mut self.line)?;
        if self.line.len() > LARGEST && !self.line.ends_with(b"\n") {
            self.input.skip_until(b'\n')?;
        }
        self.number += 1;
        Ok(!self.line.is_empty())
    }

    fn take_line(&mut self) {
        self.too_large |= self.document.len() + self.line.len() > LARGEST;
        if !self.too_large {
            self.document.extend_from_slice(&self.line);
        }
    }
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
    /// Prints the FLAT of one document and, if that is wanted, tells what it lost.
    fn convert(&mut self, name: &Name<'_>, text: &str) -> Result<(), Problem> {
        self.tape.reparse(text)?;
        let composition = self.tape.root(text);
        match DocumentKind::of(composition) {
            DocumentKind::Composition => self.plan.accepts(composition)?,
            other => return Err(Problem::NotAComposition(other)),
        }
        let flat = match self.flatten {
            true => self
                .flattened
                .write(&self.plan, &mut self.walker, composition, None)?,
            false => self
                .preserve
                .write(&self.plan, &mut self.walker, composition, None)?,
        };
        writeln!(io::stdout(), "{flat}").map_err(Problem::Write)?;
        if self.report {
            let mut loss = Loss::with_leaves();
            self.plan.walk_with_loss(
                &mut self.walker,
                composition,
                None,
                &mut Nothing,
                &mut loss,
            )?;
            tell_losses(name, &loss);
        }
        Ok(())
    }
}

/// What FLAT does not carry: each leaf with the reason and its path, then the sum.
fn tell_losses(name: &Name<'_>, loss: &Loss) {
    for leaf in loss.leaves() {
        output::tell(&format!("{name}: lost {}: {}", leaf.kind.name(), leaf.path));
    }
    let counts = loss.counts().filter(|(_, count)| *count > 0);
    let counts: Vec<String> = counts
        .map(|(kind, count)| format!("{} {count}", kind.name()))
        .collect();
    let kinds = match counts.is_empty() {
        true => String::new(),
        false => format!(" ({})", counts.join(", ")),
    };
    output::tell(&format!(
        "{name}: {} leaves carried, {} lost{kinds}",
        loss.carried(),
        loss.lost()
    ));
}

/// A sink for a walk that is made for its report.
struct Nothing;

impl Sink for Nothing {
    fn emit(&mut self, _key: Key<'_>, _value: Value<'_>) {}
}
