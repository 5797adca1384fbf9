//! The text of a value without the white space that means nothing.

use super::Node;

/// Appends a value without insignificant white space. Number text, escapes and the order of
/// members stay as they are, so the answer parses to the same values.
pub fn minify(node: Node<'_>, out: &mut String) {
    if !node.tape.has_white_space {
        out.push_str(node.raw());
        return;
    }
    let span = node.span();
    let mut copy = Copy {
        text: node.text,
        kept_from: span.start,
        out,
    };
    let mut at = span.start;
    for entry in node.tape.entries_of(node.index) {
        // Brackets stand between the values, where the gaps are looked through anyway.
        if !entry.is_container() {
            copy.gap(at, entry.start as usize);
            at = entry.end as usize;
        }
    }
    copy.gap(at, span.end);
    copy.copy_to(span.end);
}

/// Copies runs as long as they can be: a text without white space is one run.
struct Copy<'a> {
    text: &'a str,
    kept_from: usize,
    out: &'a mut String,
}

impl Copy<'_> {
    /// What stands between two values: brackets, commas, colons and white space.
    fn gap(&mut self, start: usize, end: usize) {
        let bytes = self.text.as_bytes().get(start..end).unwrap_or_default();
        for (offset, byte) in bytes.iter().enumerate() {
            if *byte <= b' ' {
                self.copy_to(start + offset);
                self.kept_from = start + offset + 1;
            }
        }
    }

    fn copy_to(&mut self, end: usize) {
        self.out
            .push_str(self.text.get(self.kept_from..end).unwrap_or_default());
    }
}
