//! Any text: parsed or refused. What parses has the same canonical form after `minify`.

#![no_main]

use atlas_openehr::json::{Tape, canonicalize, minify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(tape) = Tape::parse(text) else { return };
    let (mut small, mut canonical, mut again) = (String::new(), String::new(), String::new());
    minify(tape.root(text), &mut small);
    canonicalize(tape.root(text), &mut canonical);
    let tape = Tape::parse(&small).expect("what minify writes is JSON");
    canonicalize(tape.root(&small), &mut again);
    assert_eq!(canonical, again);
});
