//! Any text as a composition of one of the corpus's templates (`ATLAS_CORPUS`): FLAT is JSON, with
//! SQL names there are as many members, and the report accounts for every lost leaf.

#![no_main]

use atlas_openehr::flat::{FlattenedWriter, Ids, JsonWriter, Loss, Plan, Walker};
use atlas_openehr::json::Tape;
use atlas_openehr::webtemplate::WebTemplate;
use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::LazyLock;

static PLANS: LazyLock<HashMap<String, Plan>> = LazyLock::new(|| {
    let corpus = PathBuf::from(std::env::var_os("ATLAS_CORPUS").expect("ATLAS_CORPUS is the corpus's folder"));
    let files = std::fs::read_dir(corpus.join("webtemplate")).expect("the corpus has web templates");
    let plans = files.map(|file| {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("a readable file");
        let plan = Plan::compile(&WebTemplate::parse(&text).expect("a template"), Ids::Ehrbase).expect("a plan");
        (plan.template_id().to_owned(), plan)
    });
    plans.collect()
});

fuzz_target!(|text: &str| {
    let Ok(tape) = Tape::parse(text) else { return };
    let root = tape.root(text);
    let id = root.at(&["archetype_details", "template_id", "value"]).and_then(|id| id.as_str());
    let named = id.and_then(|id| PLANS.get(&*id));
    let Some(plan) = named.or_else(|| PLANS.values().min_by_key(|plan| plan.template_id())) else { return };
    let members = |text: &str| Tape::parse(text).expect("FLAT is JSON").root(text).len();
    let mut walker = Walker::new();
    let Ok(keys) = JsonWriter::new().write(plan, &mut walker, root, None).map(members) else { return };
    let mut writer = FlattenedWriter::new();
    assert_eq!(writer.write(plan, &mut walker, root, None).map(members), Ok(keys));
    let mut loss = Loss::with_leaves();
    assert_eq!(JsonWriter::new().write_with_loss(plan, &mut walker, root, None, &mut loss).map(members), Ok(keys));
    assert_eq!(loss.leaves().len() as u64, loss.lost());
});
