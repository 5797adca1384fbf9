//! SQL names for the keys a template can have, decided once.

use super::leaf::Form;
use super::plan::{Plan, SqlName};
use super::rm::RmType;
use super::walk::Key;
use super::write::{push_number_behind, push_sql_name};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The suffixes that a value of a class can have, the bare key first.
fn suffixes(rm: RmType, form: Form) -> &'static [&'static str] {
    match rm {
        RmType::DvText if form.other => &["other", "formatting"],
        RmType::DvText => &["", "formatting"],
        RmType::DvCodedText if form.other => {
            &["code", "terminology", "value", "formatting", "other"]
        }
        // Servers let plain text pass where a code is asked for.
        RmType::DvCodedText => &["code", "terminology", "value", "formatting", ""],
        RmType::CodePhrase => &["code", "terminology", "preferred_term"],
        RmType::DvQuantity => &[
            "magnitude",
            "precision",
            "unit",
            "units_system",
            "units_display_name",
        ],
        RmType::DvOrdinal => &["code", "value", "ordinal"],
        RmType::DvProportion => &["numerator", "denominator", "type", "precision", ""],
        RmType::DvIdentifier => &["id", "issuer", "assigner", "type"],
        RmType::DvParsable if form.wf_definition => &["value", "formalism"],
        RmType::DvParsable => &["", "formalism"],
        RmType::DvMultimedia => &[
            "",
            "mediatype",
            "compression_algorithm",
            "integrity_check_algorithm",
            "integrity_check",
            "data",
            "size",
            "alternatetext",
        ],
        RmType::PartySelf => &["id", "id_namespace", "id_scheme"],
        RmType::PartyIdentified | RmType::PartyRelated => {
            &["name", "id", "id_namespace", "id_scheme"]
        }
        // All of its keys stand below it.
        RmType::FeederAudit => &[],
        _ => &[""],
    }
}

impl Plan {
    /// Names every key the template can have; of two with one name the later gets a number.
    pub(super) fn decide_sql_names(&mut self) {
        let mut names = Vec::new();
        let mut renamed = HashMap::new();
        let mut taken = BTreeSet::new();
        let mut known = BTreeSet::new();
        let mut twins: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut path = String::new();
        let mut pending = vec![(0, 0)];
        while let Some((index, above)) = pending.pop() {
            let Some(node) = self.nodes.get(index as usize) else {
                continue;
            };
            path.truncate(above);
            if let Some(id) = &node.id {
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(id);
                if node.twin {
                    // Numbered as in a composition that has them all.
                    let classes = twins.entry(path.clone()).or_default();
                    let place = classes.iter().position(|class| *class == node.class);
                    let place = place.unwrap_or_else(|| {
                        classes.push(node.class);
                        classes.len() - 1
                    });
                    if place > 0 {
                        path.push_str(&(place + 1).to_string());
                    }
                }
            }
            let suffixes = if node.leaf {
                suffixes(node.rm, node.form)
            } else {
                &[]
            };
            for suffix in suffixes {
                // Copies of a node for several types have the same keys.
                if !known.insert((node.class, *suffix)) {
                    continue;
                }
                let mut sql = String::new();
                push_sql_name(&mut sql, &path, suffix);
                let plain = sql.len();
                let mut number = 1;
                while !taken.insert(sql.clone()) {
                    number += 1;
                    sql.truncate(plain);
                    push_number_behind(&mut sql, number);
                }
                if number > 1 {
                    renamed.insert((node.class, *suffix), number);
                }
                let flat = if suffix.is_empty() {
                    path.clone()
                } else {
                    format!("{path}|{suffix}")
                };
                names.push(SqlName { flat, sql });
            }
            let members = node
                .groups
                .iter()
                .rev()
                .flat_map(|group| group.members.iter().rev());
            pending.extend(members.map(|member| (*member, path.len())));
        }
        self.sql_names = names;
        self.renamed = renamed;
    }

    /// The number that a key's SQL name needs, where the template decided that.
    pub(super) fn sql_number(&self, key: Key<'_>) -> Option<u32> {
        if self.renamed.is_empty() {
            return None;
        }
        let node = self.nodes.get(key.node.index())?;
        let renamed: &HashMap<(u32, &str), u32> = &self.renamed;
        renamed.get(&(node.class, key.suffix)).copied()
    }
}
