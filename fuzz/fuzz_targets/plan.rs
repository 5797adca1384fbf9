//! Any text as a web template: compiled the same way twice, or refused.

#![no_main]

use atlas_openehr::flat::{Ids, Plan};
use atlas_openehr::webtemplate::WebTemplate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(template) = WebTemplate::parse(text) else { return };
    for ids in [Ids::Ehrbase, Ids::Template] {
        assert_eq!(Plan::compile(&template, ids), Plan::compile(&template, ids));
    }
});
