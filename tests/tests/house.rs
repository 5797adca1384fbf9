//! The house keeps its order: names that were given up stay away, and the engine's files depend on each other one way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Names that openEHR and its field do not know, as the words of code in which they would come back.
const GIVEN_UP: &[&[&str]] = &[
    &["Frontier"],
    &["Seat"],
    &["Guest"],
    &["Gated"],
    &["struct", "Patient"],
    &["Made"],
    &["Bench"],
    &["Divide"],
    &["About"],
    &["fn", "bury"],
    &["fn", "tick"],
    &["fn", "ask"],
    &["fn", "keep"],
    &["fn", "sit"],
    &["told", ":"],
    &["settled", ":"],
];

#[test]
fn names_that_were_given_up_do_not_come_back() {
    let mut found = Vec::new();
    for file in rust_files(&root()) {
        let text = read_to_string(&file).unwrap();
        let words = words(&text);
        for (at, (line, _)) in words.iter().enumerate() {
            let here = &words[at..];
            for name in GIVEN_UP.iter().filter(|name| begins(here, name)) {
                let file = file.strip_prefix(root()).unwrap().display();
                found.push(format!("{file}:{line}: {}", name.join(" ")));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Every test that the threat model names.
#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let model = read_to_string(root().join("SECURITY.md")).unwrap();
    let quoted = model.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = quoted
        .filter(|name| {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            name.chars().all(is_name) && name.matches('_').count() >= 2
        })
        .collect();
    assert!(named.len() > 30, "{named:?}");
    let files = rust_files(&root()).into_iter();
    let texts: Vec<String> = files.map(|file| read_to_string(file).unwrap()).collect();
    let missing: Vec<&str> = named
        .into_iter()
        .filter(|name| {
            let declared = format!("fn {name}(");
            !texts.iter().any(|text| text.contains(&declared))
        })
        .collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    // A row without a test is an opinion.
    let rows = model.lines().filter(|line| line.starts_with("| "));
    let from_where = rows.filter(|row| row.matches(" | ").count() == 3);
    for row in from_where.skip(1) {
        assert!(row.matches('`').count() >= 2, "{row}");
    }
}

/// Ways to make a file or a folder as the umask lets it.
const MADE_FOR_ALL: &[&[&str]] = &[
    &["fs", "::", "write"],
    &["File", "::", "create"],
    &["File", "::", "create_new"],
    &["OpenOptions", "::", "new"],
    &["DirBuilder"],
    &["create_dir"],
    &["create_dir_all"],
];

#[test]
fn what_is_shipped_makes_files_in_one_place_which_makes_them_private() {
    let folders = ["shared", "functions", "local/atlas", "local/hosts"];
    let mut found = Vec::new();
    for file in folders
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
    {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        if !name.contains("/src/") || name.starts_with("shared/files/") {
            continue;
        }
        let text = read_to_string(&file).unwrap();
        let shipped = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let words = words(shipped);
        for (at, (line, _)) in words.iter().enumerate() {
            let way = MADE_FOR_ALL.iter().find(|way| begins(&words[at..], way));
            found.extend(way.map(|way| format!("{name}:{line}: {}", way.concat())));
        }
    }
    assert!(found.is_empty(), "use `atlas_files`:\n{}", found.join("\n"));
}

fn begins(words: &[(usize, &str)], name: &[&str]) -> bool {
    words.len() >= name.len() && words.iter().zip(name).all(|((_, word), name)| word == name)
}

#[test]
fn names_are_looked_for_in_code_only() {
    let text = "// Seat\nlet x = \"Seat \\\" Seat\"; /* Seat /* Seat */ Seat */ let y = r#\"Seat\" Seat\"#;\n\
                let c = '\"'; fn f<'a>(told: &'a str) {}\nSeat::told();";
    let words = words(text);
    let seats: Vec<usize> = words
        .iter()
        .filter(|(_, word)| *word == "Seat")
        .map(|(line, _)| *line)
        .collect();
    assert_eq!(seats, [4]);
    let told = (0..words.len()).filter(|at| begins(&words[*at..], &["told", ":"]));
    assert_eq!(told.count(), 1, "a path is no field: {words:?}");
}

#[test]
fn no_two_files_of_the_engine_need_each_other() {
    let source = root().join("shared/engine/src");
    let circles = circles(&uses(&source));
    let circles: Vec<String> = circles.iter().map(|circle| circle.join(" ─ ")).collect();
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

#[test]
fn circles_are_found_through_folders_groups_and_names_that_are_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod one;\npub mod two;\nmod three;\n");
    write("one.rs", "use crate::{two::Passed, three};\n");
    write("two/mod.rs", "mod inner;\npub use inner::Passed;\n");
    write("two/inner.rs", "use super::super::one::Thing;\n");
    write(
        "three.rs",
        "// use crate::one;\nmod tests {\n    use crate::one;\n}\n",
    );
    assert_eq!(circles(&uses(folder.path())), [["one.rs", "two/inner.rs"]]);
    write("two/inner.rs", "");
    assert!(circles(&uses(folder.path())).is_empty());
}

fn root() -> PathBuf {
    atlas_machine::checkout().unwrap()
}

/// The Rust files below a folder, without what cargo built.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "no Rust file in {}", folder.display());
    files
}

/// Words and signs of code with their lines; comments, strings and characters are left out. `::` is one sign.
fn words(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            words.push((line, &rest[..length]));
            length
        } else {
            let length = match rest.starts_with("::") {
                true => 2,
                false => first.len_utf8(),
            };
            if !first.is_whitespace() {
                words.push((line, &rest[..length]));
            }
            length
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    words
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the block comment at the beginning, with those inside it.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        (depth, at) = match (rest.starts_with(b"/*"), rest.starts_with(b"*/")) {
            (true, _) => (depth + 1, at + 2),
            (_, true) => (depth - 1, at + 2),
            _ => (depth, at + 1),
        };
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the string or character at the beginning; `None` if there is none. A lifetime is none.
fn literal(text: &str) -> Option<usize> {
    let after = text.trim_start_matches(['b', 'c']);
    if text.len() - after.len() > 1 {
        return None;
    }
    if let Some(raw) = after.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let inside = raw[hashes..].strip_prefix('"')?;
        return Some(text.len() - inside.len() + inside.find(&end)? + end.len());
    }
    let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inside = &after[1..];
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        if !escaped && c == quote && (quote == '"' || at > 0) {
            return Some(text.len() - inside.len() + at + 1);
        }
        // `'a` is a lifetime when no quote follows its first character.
        let is_character = at == 0 || inside.starts_with('\\');
        if quote == '\'' && !is_character {
            return None;
        }
        escaped = !escaped && c == '\\';
    }
    None
}

/// Which files each file of a crate names in its `use` lines; paths are relative to the folder of the sources.
fn uses(source: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let texts: BTreeMap<String, String> = rust_files(source)
        .into_iter()
        .map(|path| {
            let name = path
                .strip_prefix(source)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            (name, read_to_string(path).unwrap())
        })
        .collect();
    let modules: BTreeMap<Vec<String>, &str> = texts
        .keys()
        .map(|file| (module(file), file.as_str()))
        .collect();
    let mut graph = BTreeMap::new();
    for (file, text) in &texts {
        let mut named = BTreeSet::new();
        for path in imports(text) {
            let Some(path) = absolute(&module(file), &path) else {
                continue;
            };
            named.extend(target(&modules, &texts, &path));
        }
        named.remove(file);
        graph.insert(file.clone(), named);
    }
    graph
}

/// The module that a file is: `plan/mod.rs` and `plan.rs` are `plan`.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    match path {
        "lib" | "main" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// The paths of the `use` items at the left margin, one for each name. Those in functions and test modules are indented.
fn imports(text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some(line_end) = rest.find('\n').or((!rest.is_empty()).then_some(rest.len())) {
        let visible =
            rest.starts_with("use ") || rest.starts_with("pub ") || rest.starts_with("pub(");
        let begin = rest[..line_end].find("use ").filter(|_| visible);
        let end = begin.and_then(|_| rest.find(';'));
        match (begin, end) {
            (Some(begin), Some(end)) if rest[..begin].split_whitespace().count() <= 1 => {
                let words = words(&rest[begin + 3..end]);
                let words: Vec<&str> = words.into_iter().map(|(_, word)| word).collect();
                tree(&words, &[], &mut paths);
                rest = &rest[end + 1..];
            }
            _ => rest = &rest[(line_end + 1).min(rest.len())..],
        }
    }
    paths
}

/// Spreads `a::{b, c::{d, e}}` into its paths.
fn tree(words: &[&str], before: &[String], paths: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    let mut at = 0;
    while at < words.len() {
        match words[at] {
            "::" => {}
            "as" => at += 1,
            "{" => {
                let (mut depth, mut from) = (0, at + 1);
                for (end, word) in words.iter().enumerate().skip(at) {
                    match *word {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 || (depth == 1 && *word == ",") {
                        if from < end {
                            tree(&words[from..end], &path, paths);
                        }
                        from = end + 1;
                    }
                    if depth == 0 {
                        return;
                    }
                }
                return;
            }
            word => path.push(word.to_owned()),
        }
        at += 1;
    }
    paths.push(path);
}

/// A path from the root of the crate; `None` if it leads into another crate or only into a module below.
fn absolute(here: &[String], path: &[String]) -> Option<Vec<String>> {
    let (mut base, mut rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "super" | "self" => (here.to_vec(), path),
        _ => return None,
    };
    while let Some(word @ ("super" | "self")) = rest.first().map(String::as_str) {
        if word == "super" {
            base.pop();
        }
        rest = &rest[1..];
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// The file in which a path ends. A name that a module only passes on (`pub use`) ends where it comes from.
fn target(
    modules: &BTreeMap<Vec<String>, &str>,
    texts: &BTreeMap<String, String>,
    path: &[String],
) -> Option<String> {
    let depth = (0..=path.len())
        .rev()
        .find(|depth| modules.contains_key(&path[..*depth]))?;
    let (module, file) = modules.get_key_value(&path[..depth])?;
    let passed_on = path.get(depth).and_then(|name| {
        let imports = imports(&texts[*file]);
        let from = imports.into_iter().find(|from| from.last() == Some(name))?;
        let from = match from.first()?.as_str() {
            "crate" | "super" | "self" => absolute(module, &from)?,
            _ => [module.clone(), from].concat(),
        };
        let lies_below = modules.contains_key(&from[..from.len() - 1]);
        (lies_below && from != path).then(|| target(modules, texts, &from))?
    });
    passed_on.or_else(|| Some((*file).to_owned()))
}

/// The groups of files that reach each other, each sorted.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = graph
        .keys()
        .map(|file| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![file.as_str()]);
            while let Some(next) = open.pop() {
                for named in graph.get(next).into_iter().flatten() {
                    if seen.insert(named.as_str()) {
                        open.push(named);
                    }
                }
            }
            (file.as_str(), seen)
        })
        .collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (file, seen) in reached.iter().filter(|(file, seen)| seen.contains(*file)) {
        let back = seen.iter().filter(|other| reached[*other].contains(file));
        circles.insert(back.map(|file| (*file).to_owned()).collect());
    }
    circles.into_iter().collect()
}
