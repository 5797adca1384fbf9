//! The templates of the corpus, and templates made from them.

use super::Result;
use atlas_ehrbase::{EhrBase, ErrorKind, corpus, corpus::Loaded};
use fastrand::Rng;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A composition to start from.
pub(super) struct Base {
    pub(super) template_id: String,
    pub(super) canonical: Value,
}

/// Types of values that an ELEMENT can have, most of them more than the corpus shows.
pub(super) const VALUE_TYPES: [&str; 29] = [
    "DV_TEXT",
    "DV_CODED_TEXT",
    "DV_BOOLEAN",
    "DV_QUANTITY",
    "DV_COUNT",
    "DV_PROPORTION",
    "DV_ORDINAL",
    "DV_SCALE",
    "DV_DATE",
    "DV_TIME",
    "DV_DATE_TIME",
    "DV_DURATION",
    "DV_IDENTIFIER",
    "DV_URI",
    "DV_EHR_URI",
    "DV_PARSABLE",
    "DV_MULTIMEDIA",
    "DV_STATE",
    "DV_PARAGRAPH",
    "DV_GENERAL_TIME_SPECIFICATION",
    "DV_PERIODIC_TIME_SPECIFICATION",
    "DV_INTERVAL<DV_QUANTITY>",
    "DV_INTERVAL<DV_COUNT>",
    "DV_INTERVAL<DV_DATE>",
    "DV_INTERVAL<DV_TIME>",
    "DV_INTERVAL<DV_DATE_TIME>",
    "DV_INTERVAL<DV_DURATION>",
    "DV_INTERVAL<DV_PROPORTION>",
    "DV_INTERVAL<DV_SCALE>",
];

/// A template of the corpus with one ELEMENT that stands alone, and the composition that fills it.
const ONE_ELEMENT: (&str, &str, &str) = (
    "Test_dv_boolean.v0",
    "example__Test_dv_boolean.v0",
    "at0029",
);

/// Templates of the corpus with many siblings, whose labels are made to clash.
const MANY_SIBLINGS: [(&str, &str); 3] = [
    ("Test_all_types_v2", "example__Test_all_types_v2"),
    ("test_all_types.en.v1", "example__test_all_types.en.v1"),
    ("Test_dv_boolean.v0", "example__Test_dv_boolean.v0"),
];

/// How many templates of each with labels that clash.
const CLASHES: u64 = 4;

/// The compositions that the server can read, and one for each template that is made here.
pub(super) async fn load(server: &EhrBase, loaded: &Loaded) -> Result<Vec<Base>> {
    let folder = corpus::folder()?;
    let mut bases = Vec::new();
    for one in loaded.readable() {
        bases.push(Base {
            template_id: one.template_id.clone(),
            canonical: canonical(&folder, &one.stem)?,
        });
    }
    bases.sort_by_cached_key(|base| (base.template_id.clone(), base.canonical.to_string()));
    let corpus_bases = bases.len();
    let (stem, composition, element) = ONE_ELEMENT;
    let opt = fs::read_to_string(folder.join(format!("opt/{stem}.opt")))?;
    for (place, first) in VALUE_TYPES.iter().enumerate() {
        let second = VALUE_TYPES[(place * 7 + 3) % VALUE_TYPES.len()];
        for types in [&[*first][..], &[*first, second]] {
            let id = format!("atlas_fuzz_{}", types.join("_or_")).replace(['<', '>'], "-");
            let Some(opt) = with_values(&opt, element, types) else {
                return Err("the template of the corpus has no such ELEMENT".into());
            };
            let opt = opt.replace(stem, &id);
            add(server, &mut bases, &folder, composition, opt, id).await?;
        }
    }
    for (stem, composition) in MANY_SIBLINGS {
        let opt = fs::read_to_string(folder.join(format!("opt/{stem}.opt")))?;
        for clash in 0..CLASHES {
            let id = format!("atlas_fuzz_clashing_{clash}_{stem}");
            let opt = with_clashing_labels(&opt, clash);
            // The id can be a label, too.
            let opt = replace_template_id(&opt, stem, &id);
            add(server, &mut bases, &folder, composition, opt, id).await?;
        }
    }
    // As often as those of the corpus, although there are fewer.
    let made = bases.split_off(corpus_bases);
    if made.is_empty() {
        return Ok(bases);
    }
    for place in 0..corpus_bases {
        let base = &made[place % made.len()];
        bases.push(Base {
            template_id: base.template_id.clone(),
            canonical: base.canonical.clone(),
        });
    }
    Ok(bases)
}

async fn add(
    server: &EhrBase,
    bases: &mut Vec<Base>,
    folder: &Path,
    composition: &str,
    opt: String,
    template_id: String,
) -> Result<()> {
    match server.post_template(opt).await {
        Ok(()) => {}
        // Of an earlier run.
        Err(error) if error.kind() == ErrorKind::Status(409) => {}
        // Not a template for this server.
        Err(error) if matches!(error.kind(), ErrorKind::Status(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // The server takes some that it cannot serve.
    if served(server, &template_id).await.is_err() {
        return Ok(());
    }
    let mut canonical = canonical(folder, composition)?;
    canonical["archetype_details"]["template_id"]["value"] = template_id.clone().into();
    bases.push(Base {
        template_id,
        canonical,
    });
    Ok(())
}

fn canonical(folder: &Path, stem: &str) -> Result<Value> {
    let text = fs::read_to_string(folder.join(format!("canonical/{stem}.json")))?;
    let mut canonical: Value = serde_json::from_str(&text)?;
    if let Some(members) = canonical.as_object_mut() {
        members.remove("uid");
    }
    Ok(canonical)
}

/// The web template of a template.
pub(super) async fn served(server: &EhrBase, id: &str) -> Result<String> {
    let path = format!("definition/template/adl1.4/{}", id.replace(' ', "%20"));
    let request = server.request("GET".parse()?, &path);
    let answer = request
        .header("Accept", "application/openehr.wt+json")
        .send()
        .await?;
    if !answer.status().is_success() {
        return Err(format!("the server does not serve `{id}`: {}", answer.status()).into());
    }
    Ok(answer.text().await?)
}

/// The template with other types for the value of an ELEMENT, which can occur often.
fn with_values(opt: &str, element: &str, types: &[&str]) -> Option<String> {
    let node = opt.find(&format!("<node_id>{element}</node_id>"))?;
    let upper = opt.get(..node)?.rfind("<occurrences>")?;
    let attribute = node
        + opt
            .get(node..)?
            .find("<rm_attribute_name>value</rm_attribute_name>")?;
    let children = attribute + opt.get(attribute..)?.find("<children")?;
    let mut depth = 1;
    let mut end = children;
    while depth > 0 {
        let rest = opt.get(end + 1..)?;
        let close = rest.find("</attributes>")?;
        match rest.find("<attributes").filter(|open| *open < close) {
            Some(open) => {
                depth += 1;
                end += 1 + open;
            }
            None => {
                depth -= 1;
                end += 1 + close;
            }
        }
    }
    let flags = |unbounded: bool, upper: &str| {
        format!(
            "<occurrences><lower_included>true</lower_included><upper_included>{}</upper_included>\
             <lower_unbounded>false</lower_unbounded><upper_unbounded>{unbounded}</upper_unbounded>\
             <lower>0</lower>{upper}</occurrences>",
            !unbounded
        )
    };
    let values: String = types
        .iter()
        .map(|rm_type| {
            let rm_type = rm_type.replace('<', "&lt;").replace('>', "&gt;");
            format!(
                "<children xsi:type=\"C_COMPLEX_OBJECT\"><rm_type_name>{rm_type}</rm_type_name>{}<node_id></node_id></children>",
                flags(false, "<upper>1</upper>")
            )
        })
        .collect();
    Some(format!(
        "{}{}{}{values}{}",
        opt.get(..upper)?,
        flags(true, ""),
        opt.get(node..children)?,
        opt.get(end..)?
    ))
}

/// Labels that give equal ids, ids that look numbered, and ids that differ in case only.
const LABELS: [&str; 10] = [
    "same", "same", "Same", "SAME", "same2", "Same 2", "same3", "İs", "is", "24 h",
];

/// Gives most nodes one of these labels; codes of values keep theirs, as the server checks them.
fn with_clashing_labels(opt: &str, clash: u64) -> String {
    const TEXT: &str = "<items id=\"text\">";
    let mut rng = Rng::with_seed(clash);
    let mut out = String::new();
    for (place, piece) in opt.split("<term_definitions code=\"").enumerate() {
        if place == 0 {
            out.push_str(piece);
            continue;
        }
        out.push_str("<term_definitions code=\"");
        let code = piece.split('"').next().unwrap_or_default();
        let is_node = opt.contains(&format!("<node_id>{code}</node_id>"));
        let is_value = opt.contains(&format!("<code_list>{code}</code_list>"))
            || opt.contains(&format!("<code_string>{code}</code_string>"));
        let label = piece.split_once(TEXT).and_then(|(before, behind)| {
            let (_, rest) = behind.split_once("</items>")?;
            Some((before, rest))
        });
        match label {
            Some((before, rest)) if is_node && !is_value && rng.u8(..4) > 0 => {
                let label = LABELS[rng.usize(..LABELS.len())];
                out.push_str(&format!("{before}{TEXT}{label}</items>{rest}"));
            }
            _ => out.push_str(piece),
        }
    }
    out
}

/// Only where it is the id: inside `template_id`.
fn replace_template_id(opt: &str, from: &str, to: &str) -> String {
    let mut out = String::new();
    for (place, piece) in opt.split("<template_id>").enumerate() {
        if place > 0 {
            out.push_str("<template_id>");
            out.push_str(&piece.replacen(from, to, 1));
        } else {
            out.push_str(piece);
        }
    }
    out
}
