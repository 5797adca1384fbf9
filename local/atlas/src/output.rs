//! Results on stdout, messages on stderr. Whatever a server put into a name, a terminal gets no control character here.

use std::io::{self, Write};

use atlas_openehr::printable::{printable_json, printable_lines};
use atlas_openehr::time::Instant;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::failure::{Exit, Failure};

/// Prints a result for people.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(&printable_lines(text))
}

/// Prints a result as one JSON document.
pub(crate) fn print_json(document: &serde_json::Value) -> Result<(), Failure> {
    print_json_part(&format!("{document:#}"))
}

/// Prints a piece of a JSON document that is written part by part.
pub(crate) fn print_json_part(text: &str) -> Result<(), Failure> {
    write(&printable_json(text))
}

fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        // Whoever reads has enough, as `head` does.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Internal, "failed to write to stdout").because(error))
        }
        _ => Ok(()),
    }
}

/// Tells something that is no result.
pub(crate) fn tell(message: &str) {
    // Nobody is left to tell when stderr is gone.
    let _ = writeln!(io::stderr(), "{}", printable_lines(message));
}

/// A table whose columns are `left` texts first, then numbers.
pub(crate) fn table(left: usize, header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// `12345` as `12,345`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time to the second, as people read it.
pub(crate) fn time(instant: Option<Instant>) -> String {
    match instant {
        Some(instant) => {
            let text = instant.to_string();
            let seconds = text.split('.').next().unwrap_or(&text);
            format!("{}Z", seconds.replace('T', " "))
        }
        None => "-".to_owned(),
    }
}

/// A duration in its largest two units.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A size in decimal units.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_in_thousands() {
        let grouped: Vec<String> = [0, 999, 1_000, 1_234_567].into_iter().map(count).collect();
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn durations_show_two_units() {
        let shown: Vec<String> = [59, 61, 3_660, 90_000].into_iter().map(duration).collect();
        assert_eq!(shown, ["59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
