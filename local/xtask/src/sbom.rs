//! `cargo xtask sbom`: what the shipped programs consist of, as CycloneDX 1.5 (JSON).
//!
//! ```text
//! cargo metadata ─► what each program needs, directly or not ─┐
//! Cargo.lock ─────► digests ──────────────────────────────────┴─► target/package/atlas.cdx.json
//! ```
//! It names no time and no machine, so that it is the same wherever it is made from one lock file. Dependencies of builds belong to it:
//! they run code on the machine that makes the programs. Those of tests do not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use xtask::command::{cargo, root, target};
use xtask::{Result, print};

/// The packages of shipped programs.
const PROGRAMS: [&str; 6] = [
    "atlas",
    "atlas-azure",
    "atlas-export",
    "atlas-planner",
    "atlas-watermark",
    "atlas-worker",
];

/// Writes the bill of materials; the last line says where it lies.
pub(crate) fn run() -> Result<()> {
    let bill = bill(
        &metadata()?,
        &std::fs::read_to_string(root().join("Cargo.lock"))?,
    )?;
    let folder = target().join("package");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("atlas.cdx.json");
    std::fs::write(&path, serde_json::to_string_pretty(&bill)? + "\n")?;
    let components = bill["components"].as_array().map_or(0, Vec::len);
    print(&format!("{components} components: {}", path.display()));
    Ok(())
}

fn metadata() -> Result<Value> {
    let all = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--all-features",
    ];
    let output = cargo(&all).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The document, from what cargo knows and the lock file.
fn bill(metadata: &Value, lock: &str) -> Result<Value> {
    let packages = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let digests = digests(lock);
    let mut open: Vec<&str> = packages
        .iter()
        .filter(|(_, package)| {
            let is_ours = package["source"].is_null();
            is_ours && PROGRAMS.contains(&text(&package["name"]))
        })
        .map(|(id, _)| *id)
        .collect();
    if open.len() != PROGRAMS.len() {
        return Err("a shipped program is not in the workspace; see PROGRAMS in sbom.rs".into());
    }
    let mut needs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    while let Some(id) = open.pop() {
        if needs.contains_key(id) {
            continue;
        }
        let node = nodes
            .get(id)
            .ok_or("cargo names a package that it does not resolve")?;
        let direct: BTreeSet<&str> = list(&node["deps"])
            .filter(|need| list(&need["dep_kinds"]).any(|kind| kind["kind"] != "dev"))
            .map(|need| text(&need["pkg"]))
            .collect();
        open.extend(&direct);
        needs.insert(id, direct);
    }
    let package = |id: &&str| packages.get(*id).copied().unwrap_or(&Value::Null);
    let reference = |id: &&str| reference(package(id));
    let mut components: Vec<Value> = needs
        .keys()
        .map(|id| component(package(id), &digests))
        .collect();
    components.sort_by(|a, b| text(&a["bom-ref"]).cmp(text(&b["bom-ref"])));
    let mut edges: BTreeMap<String, BTreeSet<String>> = needs
        .iter()
        .map(|(id, direct)| (reference(id), direct.iter().map(reference).collect()))
        .collect();
    let programs = needs
        .keys()
        .filter(|id| is_program(package(id)))
        .map(reference);
    edges.insert(ALL.to_owned(), programs.collect());
    let version = package(
        &needs
            .keys()
            .find(|id| is_program(package(id)))
            .copied()
            .unwrap_or(""),
    );
    let edges = edges
        .into_iter()
        .map(|(of, on)| json!({ "ref": of, "dependsOn": on }));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": ALL, "name": "Atlas", "version": version["version"],
            },
        },
        "components": components,
        "dependencies": edges.collect::<Vec<_>>(),
    }))
}

/// The reference of all programs together.
const ALL: &str = "all-of-atlas";

fn component(package: &Value, digests: &BTreeMap<(&str, &str), &str>) -> Value {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let mut component = json!({
        "type": if is_program(package) { "application" } else { "library" },
        "bom-ref": reference(package),
        "name": name,
        "version": version,
    });
    if let Some(license) = package["license"].as_str() {
        // The old form of a choice is no expression of SPDX.
        let license = license.replace('/', " OR ");
        component["licenses"] = json!([{ "expression": license }]);
    }
    if !package["source"].is_null() {
        component["purl"] = json!(reference(package));
    }
    if let Some(digest) = digests.get(&(name, version)) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": digest }]);
    }
    component
}

/// Unique in the document: the address in the registry, or the name of what is ours.
fn reference(package: &Value) -> String {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    match package["source"].is_null() {
        true => format!("{name}@{version}"),
        false => format!("pkg:cargo/{name}@{version}"),
    }
}

fn is_program(package: &Value) -> bool {
    package["source"].is_null() && PROGRAMS.contains(&text(&package["name"]))
}

/// Name and version to the digest that the lock file holds.
fn digests(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter_map(|package| {
            let member = |name: &str| {
                let mut lines = package.lines();
                lines.find_map(|line| {
                    line.strip_prefix(name)?
                        .strip_prefix(" = \"")?
                        .strip_suffix('"')
                })
            };
            Some(((member("name")?, member("version")?), member("checksum")?))
        })
        .collect()
}

fn by_id(values: &Value) -> BTreeMap<&str, &Value> {
    list(values)
        .map(|value| (text(&value["id"]), value))
        .collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bill_of_materials_is_complete_and_refers_to_nothing_else() {
        let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
        let metadata = metadata().unwrap();
        let bill = bill(&metadata, &lock).unwrap();
        assert_eq!(bill, super::bill(&metadata, &lock).unwrap());
        assert_eq!(
            (&bill["bomFormat"], &bill["specVersion"]),
            (&json!("CycloneDX"), &json!("1.5"))
        );

        let mut known = BTreeSet::from([ALL]);
        for component in list(&bill["components"]) {
            let name = text(&component["name"]);
            assert!(
                known.insert(text(&component["bom-ref"])),
                "{name} stands twice"
            );
            assert!(!text(&component["version"]).is_empty(), "{name}");
            let license = text(&component["licenses"][0]["expression"]);
            assert!(
                !license.is_empty() && !license.contains('/'),
                "{name}: {license}"
            );
            // What came from a registry can be looked up there and compared.
            if let Some(purl) = component["purl"].as_str() {
                assert_eq!(purl, component["bom-ref"], "{name}");
                let digest = text(&component["hashes"][0]["content"]);
                let is_hex = digest.chars().all(|c| c.is_ascii_hexdigit());
                assert!(digest.len() == 64 && is_hex, "{name}: {digest}");
            }
        }
        let mut explained = BTreeSet::new();
        for edges in list(&bill["dependencies"]) {
            assert!(explained.insert(text(&edges["ref"])));
            for on in list(&edges["dependsOn"]) {
                assert!(known.contains(text(on)), "{on} is no component");
            }
        }
        assert_eq!(known, explained);

        let names: BTreeSet<&str> = list(&bill["components"])
            .map(|one| text(&one["name"]))
            .collect();
        for name in PROGRAMS
            .into_iter()
            .chain(["atlas-engine", "tokio", "rustls", "serde_json"])
        {
            assert!(names.contains(name), "{name} is missing");
        }
        for name in [
            "atlas-emulators",
            "atlas-ehrbase",
            "lambda-simulator",
            "local-hosts",
        ] {
            assert!(!names.contains(name), "{name} is shipped nowhere");
        }
    }

    #[test]
    fn a_dependency_of_tests_alone_is_left_out_and_one_of_builds_is_not() {
        let package = |name: &str| {
            let source = (!PROGRAMS.contains(&name)).then_some("registry");
            json!({ "id": name, "name": name, "version": "1.0.0", "source": source, "license": "MIT/Apache-2.0" })
        };
        let needs =
            |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let mut packages: Vec<Value> = PROGRAMS.into_iter().map(package).collect();
        let mut nodes: Vec<Value> = PROGRAMS
            .into_iter()
            .map(|name| json!({ "id": name, "deps": [needs("used", Value::Null), needs("tried", json!("dev"))] }))
            .collect();
        for (name, deps) in [
            ("used", vec![needs("built", json!("build"))]),
            ("built", vec![]),
            ("tried", vec![]),
        ] {
            packages.push(package(name));
            nodes.push(json!({ "id": name, "deps": deps }));
        }
        let metadata = json!({ "packages": packages, "resolve": { "nodes": nodes } });
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n";
        let bill = bill(&metadata, lock).unwrap();
        let names: Vec<&str> = list(&bill["components"])
            .map(|one| text(&one["name"]))
            .collect();
        assert!(
            names.contains(&"used") && names.contains(&"built"),
            "{names:?}"
        );
        assert!(!names.contains(&"tried"), "{names:?}");
        let mut components = list(&bill["components"]);
        let used = components.find(|one| one["name"] == "used").unwrap();
        assert_eq!(used["hashes"][0]["content"], "ab");
        assert_eq!(used["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let none = json!({ "packages": [], "resolve": { "nodes": [] } });
        assert!(super::bill(&none, lock).is_err());
    }
}
