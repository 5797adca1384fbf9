//! `docs/benchmarks.md`: one section for each benchmark, between marker
//! comments, replaced by each run.

use std::path::Path;

use xtask::command::root;
use xtask::{Result, print, say};

const HEAD: &str = "# Benchmarks\n\nWritten by `cargo xtask bench …`; each section is one run on one machine. \
Compare what stands in one section, never across machines.\n";

/// Prints a section and puts it in its place.
pub(crate) fn write(name: &str, title: &str, body: &str) -> Result<()> {
    let section = format!("## {title}\n{}\n\n{}\n", machine()?, body.trim());
    print(&section);
    let path = root().join("docs/benchmarks.md");
    let page = match std::fs::read_to_string(&path) {
        Ok(page) => page,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
        Err(error) => return Err(error.into()),
    };
    Ok(std::fs::write(path, replaced(&page, name, &section))?)
}

/// The page with the section `name` replaced, or appended if it had none.
fn replaced(page: &str, name: &str, section: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin {name} -->"),
        format!("<!-- end {name} -->"),
    );
    let section = format!("{begin}\n{section}{end}");
    let old = page
        .split_once(&begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    match old {
        Some((before, after)) => format!("{before}{section}{after}"),
        None => format!("{}\n\n{section}\n", page.trim_end()),
    }
}

/// When and where.
fn machine() -> Result<String> {
    let field = |file: &str, name: &str| -> Result<Option<String>> {
        let text = std::fs::read_to_string(Path::new("/proc").join(file))?;
        let line = text.lines().find(|line| line.starts_with(name));
        Ok(line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())))
    };
    let model = field("cpuinfo", "model name")?.unwrap_or_else(|| "unknown processor".to_owned());
    let memory = field("meminfo", "MemTotal")?.unwrap_or_default();
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    Ok(format!(
        "{}; {} x {model}; {} GiB memory; {}",
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
        std::thread::available_parallelism()?,
        kib.div_ceil(1 << 20),
        std::env::consts::OS,
    ))
}

/// Says now and then how far the loading of a server is.
pub(crate) fn loaded(compositions: usize) {
    if compositions.is_multiple_of(1_000) {
        say(&format!("{compositions} compositions loaded"));
    }
}

/// Smallest, middle and largest of some measurements.
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0,
            _ => *values.get(middle)?,
        };
        Some(Self {
            min: *values.first()?,
            median,
            max: *values.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_section_replaces_its_predecessor_and_nothing_else() {
        let page = replaced("# Benchmarks\n", "one", "1\n");
        let page = replaced(&page, "two", "2\n");
        let page = replaced(&page, "one", "3\n");
        let expected = "# Benchmarks\n\n<!-- begin one -->\n3\n<!-- end one -->\n\n\
                        <!-- begin two -->\n2\n<!-- end two -->\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn a_spread_has_the_middle_of_odd_and_even_numbers() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.min, even.median, even.max), (1.0, 2.5, 4.0));
        assert!(Spread::of([]).is_none());
    }
}
