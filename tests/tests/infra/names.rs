//! What Azure would be given for a user's name and settings, computed from `main.bicep`.

use std::collections::BTreeMap;

use atlas_scenarios::infra::bicep::{Declared, File, SUFFIX};
use atlas_scenarios::infra::root;
use serde_json::{Value, json};

fn source() -> String {
    std::fs::read_to_string(root().join("infra/azure/main.bicep")).unwrap()
}

fn file() -> File {
    File::parse(&source()).unwrap()
}

/// Names of 1 to 60 characters, those that people give and those that are hard.
fn users_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "a",
        "7",
        "-",
        ".",
        "ab",
        "atlas",
        "Atlas",
        "ATLAS",
        "atlas-",
        "atlas--",
        "-atlas",
        "--",
        "at.las",
        "a.b.c.",
        "...",
        "at_las",
        "my atlas",
        "1st",
        "2026",
        "kv-",
        "Ärzte",
        "研究",
        "a-b-c-d-e-f-g-h-i-j",
        "Klinik.Nord-West.2026",
        "a--b",
        "atlas/../x",
        "atlas%20",
    ]
    .map(str::to_owned)
    .into();
    for length in [1, 2, 3, 6, 7, 8, 9, 10, 17, 18, 19, 20, 21, 24, 32, 59, 60] {
        for pattern in ["x", "Z", "9", "a-", "-a", "a.", "abcdefg-", "Ab1_"] {
            names.push(pattern.chars().cycle().take(length).collect());
        }
    }
    names
}

/// Least and greatest length, and characters beside lower-case letters and digits; from Microsoft's "Naming rules and
/// restrictions for Azure resources".
fn rule(kind: &str) -> Option<(usize, usize, &'static str)> {
    Some(match kind {
        "Microsoft.Storage/storageAccounts" => (3, 24, ""),
        "Microsoft.KeyVault/vaults" => (3, 24, "-"),
        "Microsoft.Web/sites" => (2, 60, "-"),
        "Microsoft.Web/serverfarms" => (1, 60, "-"),
        "Microsoft.ManagedIdentity/userAssignedIdentities" => (3, 128, "-_"),
        "Microsoft.OperationalInsights/workspaces" => (4, 63, "-"),
        "Microsoft.Insights/components" => (1, 260, "-_.()"),
        "Microsoft.Insights/scheduledQueryRules" => (1, 260, "-_.()"),
        "Microsoft.Network/privateEndpoints" => (2, 64, "-_."),
        _ => return None,
    })
}

/// Kinds whose name needs to be unique within their parent only, or is Azure's own word.
const INNER: [&str; 10] = [
    "Microsoft.Insights/diagnosticSettings",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
    "Microsoft.Authorization/roleAssignments",
    "Microsoft.Storage/storageAccounts/blobServices",
    "Microsoft.Storage/storageAccounts/blobServices/containers",
    "Microsoft.Storage/storageAccounts/queueServices",
    "Microsoft.Storage/storageAccounts/queueServices/queues",
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies",
    "Microsoft.Web/sites/config",
    "Microsoft.Web/sites/functions",
];

fn complaint(made: &Declared) -> Option<String> {
    let name = made.name.as_str();
    let says = |what: &str| Some(format!("{} `{name}`: {what}", made.kind));
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let Some((least, most, others)) = rule(&made.kind) else {
        let is_known = INNER.contains(&made.kind.as_str());
        return match is_known && (3..=63).contains(&name.len()) && !name.contains("--") {
            true => None,
            false => says("no rule is known, or the fixed name breaks it"),
        };
    };
    if !(least..=most).contains(&name.chars().count()) {
        return says("is too short or too long");
    }
    if !name.chars().all(|c| alphanumeric(c) || others.contains(c)) {
        return says("has a character that is not allowed");
    }
    if !name.starts_with(alphanumeric) || !name.ends_with(alphanumeric) || name.contains("--") {
        return says("begins or ends with a hyphen, or has two in a row");
    }
    if made.kind == "Microsoft.KeyVault/vaults" && !name.starts_with(|c: char| c.is_alphabetic()) {
        return says("begins with a digit");
    }
    match name.contains(&SUFFIX[..8]) {
        true => None,
        false => says("has less than 8 characters of the suffix"),
    }
}

fn complaints(text: &str) -> Vec<String> {
    let file = File::parse(text).unwrap();
    let names = users_names();
    let made = names
        .iter()
        .flat_map(|name| file.deployed(&[("name", json!(name))]).resources());
    made.filter_map(|made| complaint(&made)).collect()
}

#[test]
fn every_name_is_one_that_azure_takes_whatever_the_user_is_called() {
    let file = file();
    assert_eq!(file.bound("name", "minLength"), Some(1));
    assert_eq!(file.bound("name", "maxLength"), Some(60));
    assert_eq!(complaints(&source()), Vec::<String>::new());
    let made = file.deployed(&[]).resources();
    let kinds = made.iter().filter(|made| rule(&made.kind).is_some());
    assert!(kinds.count() >= 8 + 7, "resources are missing: {made:#?}");
}

#[test]
fn a_name_that_azure_refuses_is_found_in_any_kind_of_resource() {
    for (right, wrong) in [
        (
            "'kv-${take(stem, 7)}-${suffix}'",
            "take('kv-${name}-${suffix}', 24)",
        ),
        (
            "'kv-${take(stem, 7)}-${suffix}'",
            "'${take(stem, 7)}-${suffix}'",
        ),
        (
            "'kv-${take(stem, 7)}-${suffix}'",
            "'kv-${take(stem, 8)}-${suffix}'",
        ),
        (
            "'st${take(stem, 9)}${suffix}'",
            "'st-${take(stem, 8)}${suffix}'",
        ),
        (
            "'st${take(stem, 9)}${suffix}'",
            "take('st${letters}${suffix}', 24)",
        ),
        ("name: '${unique}-identity'", "name: '${name}-identity'"),
        ("name: '${unique}-logs'", "name: '${stem}-logs'"),
        (
            "name: '${unique}-plan'",
            "name: '${stem}-${name}-${suffix}'",
        ),
        (
            "name: '${unique}-${alert.name}'",
            "name: '${name}-${suffix}-${alert.name}'",
        ),
        ("empty(letters) ? 'atlas' : letters", "letters"),
    ] {
        let text = source();
        assert!(text.contains(right), "{right}");
        assert_ne!(
            complaints(&text.replace(right, wrong)),
            Vec::<String>::new(),
            "{wrong}"
        );
    }
}

/// The settings of the app, and how often each stands there.
fn settings(parameters: &[(&str, Value)]) -> BTreeMap<String, Value> {
    let file = file();
    let made = file.deployed(parameters).resources();
    let mut objects = made
        .iter()
        .filter(|made| made.kind == "Microsoft.Web/sites/config" && made.name == "appsettings");
    let object = objects.next().unwrap();
    assert!(objects.next().is_none(), "settings stand in two places");
    for site in made
        .iter()
        .filter(|made| made.kind == "Microsoft.Web/sites")
    {
        assert_eq!(
            site.body["properties"]["siteConfig"]["appSettings"],
            Value::Null
        );
    }
    let members = object.body["properties"].as_object().unwrap();
    members.clone().into_iter().collect()
}

#[test]
fn a_setting_of_the_file_stands_once_and_as_the_file_has_it_whatever_is_given_beside_it() {
    let plain = settings(&[]);
    let defaults = [
        "ATLAS_DATABASE_TARGET",
        "ATLAS_ENVIRONMENT",
        "ATLAS_POSTGRESQL_MAX_CONNECTIONS",
        "ATLAS_POSTGRESQL_SSL_MODE",
    ];
    assert!(plain.len() > 15, "{plain:?}");
    for name in plain.keys() {
        let is_default = defaults.contains(&name.as_str());
        let is_secret = name == "ATLAS_POSTGRESQL_CONNECTION_STRING";
        // What sounds like a secret is refused among them.
        let words = ["CONNECTION_STRING", "CREDENTIAL"];
        if !words.iter().any(|word| name.to_uppercase().contains(word)) {
            let again = settings(&[("settings", json!({name.as_str(): "mine", "ATLAS_X": "1"}))]);
            match is_default {
                true => assert_eq!(again[name], "mine"),
                false => assert_eq!(again[name], plain[name], "{name}"),
            }
            assert_eq!(again["ATLAS_X"], "1");
            assert_eq!(again.len(), plain.len() + 1, "{name}");
        }

        let vault = json!({name.as_str(): "secret", "ATLAS_POSTGRESQL_CONNECTION_STRING": "url"});
        let again = settings(&[("vaultSettings", vault)]);
        match is_default {
            true => assert!(again[name].as_str().unwrap().ends_with("/secrets/secret")),
            false if is_secret => assert!(again[name].as_str().unwrap().ends_with("/secrets/url")),
            false => assert_eq!(again[name], plain[name], "{name}"),
        }
        assert_eq!(again.len(), plain.len(), "{name}");
    }
}

#[test]
fn a_deployment_without_secrets_or_with_several_has_the_settings_it_names() {
    let none = settings(&[("vaultSettings", json!({}))]);
    assert!(!none.contains_key("ATLAS_POSTGRESQL_CONNECTION_STRING"));
    let two =
        json!({"ATLAS_OPENEHR_PASSWORD": "cdr", "ATLAS_POSTGRESQL_CONNECTION_STRING": "store"});
    let two = settings(&[("vaultSettings", two), ("name", json!("Klinik.Nord-"))]);
    let vault = format!("keyvault:https://kv-klinikn-{SUFFIX}");
    for (name, secret) in [
        ("ATLAS_OPENEHR_PASSWORD", "/secrets/cdr"),
        ("ATLAS_POSTGRESQL_CONNECTION_STRING", "/secrets/store"),
    ] {
        let value = two[name].as_str().unwrap();
        assert!(
            value.starts_with(&vault) && value.ends_with(secret),
            "{value}"
        );
    }
}

#[test]
fn interfaces_are_those_that_were_tried_and_ftp_is_off() {
    for resource in &file().resources {
        let kind = resource.kind.as_str();
        let version = match kind {
            "Microsoft.ManagedIdentity/userAssignedIdentities" => "2024-11-30",
            "Microsoft.KeyVault/vaults" => "2025-05-01",
            "Microsoft.OperationalInsights/workspaces" => "2025-07-01",
            "Microsoft.Insights/scheduledQueryRules" => "2026-03-01",
            "Microsoft.Insights/components" => "2020-02-02",
            "Microsoft.Authorization/roleAssignments" => "2022-04-01",
            // Not tried with the compiler; the versions that Microsoft's own examples use.
            "Microsoft.Insights/diagnosticSettings" => "2021-05-01-preview",
            _ if kind.starts_with("Microsoft.Network/") => "2024-05-01",
            _ if kind.starts_with("Microsoft.Storage/") => "2025-06-01",
            _ if kind.starts_with("Microsoft.Web/") => "2025-03-01",
            _ => panic!("no version of {kind} was tried"),
        };
        assert_eq!(resource.version, version, "{kind}");
    }
    let made = file().deployed(&[]).resources();
    for site in made
        .iter()
        .filter(|made| made.kind == "Microsoft.Web/sites")
    {
        assert_eq!(
            site.body["properties"]["siteConfig"]["ftpsState"],
            "Disabled"
        );
    }
    let page = std::fs::read_to_string(root().join("docs/deploy/azure.md")).unwrap();
    assert!(page.contains("0.49.2"), "the page names the compiler");
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line() {
    for (text, complaint) in [
        ("var a = 'x\n", "line 1: `'` is expected"),
        ("\nvar a = {\n  b 1\n}", "line 3: `:` is expected"),
        ("var a = [\n  1\n", "line 3: a name is expected"),
        ("// why\nresource a 'x' = {}", "line 2: `@` is expected"),
        ("value a = 1", "line 1: `value` is no declaration"),
    ] {
        assert_eq!(File::parse(text).unwrap_err(), complaint);
    }
}
