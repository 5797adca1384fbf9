//! What keeps others out of a deployment, of both clouds: facts of what would be made, not words of the files.

use std::panic::catch_unwind;

use atlas_emulators::Moto;
use atlas_scenarios::infra::bicep::{Declared, File};
use atlas_scenarios::infra::root;
use atlas_scenarios::infra::terraform::{FUNCTIONS, Workspace};
use serde_json::{Value, json};

use super::{DEPLOYMENT, KEY, held};

fn bicep() -> File {
    let text = std::fs::read_to_string(root().join("infra/azure/main.bicep")).unwrap();
    File::parse(&text).unwrap()
}

/// Resources of a kind with these parameters.
fn made(kind: &str, parameters: &[(&str, Value)]) -> Vec<Declared> {
    let all = bicep().deployed(parameters).resources().into_iter();
    all.filter(|made| made.kind == kind).collect()
}

/// Every setting of the reference page as a variable, and whether it is marked as a secret.
fn documented() -> Vec<(String, bool)> {
    let page = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let (key, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let variable = key.replace('.', "_").to_uppercase();
        Some((format!("ATLAS_{variable}"), rest.contains("**secret**")))
    });
    rows.filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect()
}

#[test]
fn every_name_of_an_installation_on_aws_holds_its_own() {
    for kind in ["queues", "functions", "schedules", "roles", "alarms"] {
        for name in held(&format!("/{kind}")).as_object().unwrap().keys() {
            assert!(name.starts_with("atlas-"), "{kind}: {name}");
        }
    }
    for name in held("/log_groups").as_object().unwrap().keys() {
        assert!(name.starts_with("/aws/lambda/atlas-"), "{name}");
    }
    for filter in held("/metric_filters").as_array().unwrap() {
        let name = filter["filterName"].as_str().unwrap();
        assert!(name.starts_with("atlas-"), "{name}");
    }
}

#[test]
fn nobody_reaches_a_queue_of_aws_without_tls() {
    for (name, queue) in held("/queues").as_object().unwrap() {
        let policy: Value = serde_json::from_str(queue["Policy"].as_str().unwrap()).unwrap();
        let statements = policy["Statement"].as_array().map(Vec::as_slice);
        let [statement] = statements.unwrap() else {
            panic!("{name} lets somebody in: {policy}");
        };
        assert_eq!(statement["Effect"], "Deny", "{name}");
        assert_eq!(statement["Action"], "sqs:*");
        assert_eq!(statement["Resource"], queue["QueueArn"]);
        let everybody = [json!("*"), json!({"AWS": "*"})];
        assert!(everybody.contains(&statement["Principal"]), "{policy}");
        let condition = &statement["Condition"]["Bool"]["aws:SecureTransport"];
        assert_eq!(*condition, "false");
    }
}

#[test]
fn a_key_of_ones_own_protects_all_that_lies_in_the_account() {
    let mut places: Vec<(String, &str)> = Vec::new();
    for queue in ["work", "dead", "missed"] {
        places.push((format!("aws_sqs_queue.{queue}"), "kms_master_key_id"));
    }
    for function in FUNCTIONS {
        let group = format!("aws_cloudwatch_log_group.function[\"{function}\"]");
        places.push((group, "kms_key_id"));
        let function = format!("aws_lambda_function.all[\"{function}\"]");
        places.push((function, "kms_key_arn"));
    }
    for schedule in ["plan", "report"] {
        let schedule = format!("aws_scheduler_schedule.all[\"{schedule}\"]");
        places.push((schedule, "kms_key_arn"));
    }
    for (address, member) in places {
        let with = &DEPLOYMENT.paused_in_vpc[&address][member];
        assert_eq!(*with, KEY, "{address}");
        let without = &DEPLOYMENT.state[&address][member];
        let is_none = without.is_null() || *without == "";
        assert!(is_none, "{address}: {without}");
    }
    for function in FUNCTIONS {
        let policy = format!("data.aws_iam_policy_document.function[\"{function}\"]");
        let statements = DEPLOYMENT.paused_in_vpc[&policy]["statement"].as_array();
        let uses = statements
            .unwrap()
            .iter()
            .find(|one| one["sid"] == "UseKeyOfQueues");
        assert_eq!(uses.unwrap()["resources"], json!([KEY]), "{function}");
    }
}

#[test]
fn settings_of_aws_refuse_every_documented_secret_and_nothing_else() {
    let moto = Moto::start().unwrap();
    let workspace = Workspace::new(".", &moto.environment());
    let text = std::fs::read_to_string(root().join("infra/aws/variables.tf")).unwrap();
    let (_, rule) = text
        .split_once("for name in keys(var.settings) : !can(")
        .unwrap();
    let (rule, _) = rule.split_once(")\n    ])").unwrap();
    let documented = documented();
    let names: Vec<&str> = documented.iter().map(|(name, _)| name.as_str()).collect();
    let expression = format!("jsonencode([for name in {} : can({rule})])", json!(names));
    let answer = workspace.evaluated(&expression);
    let refused: Vec<bool> = serde_json::from_str(&answer).unwrap();
    let mut secrets = 0;
    for ((name, is_secret), refused) in documented.iter().zip(refused) {
        // The module sets it itself and refuses it by its name.
        if name != "ATLAS_QUEUE_URL" {
            assert_eq!(refused, *is_secret, "{name}");
            secrets += u32::from(refused);
        }
    }
    assert!(secrets >= 8, "{documented:?}");
}

#[test]
fn settings_of_azure_refuse_every_documented_secret_and_nothing_else() {
    let mut secrets = 0;
    for (name, is_secret) in documented() {
        if name == "ATLAS_QUEUE_URL" {
            continue;
        }
        for name in [name.clone(), name.to_lowercase()] {
            let settings = json!({"ATLAS_APPLICATION_LOG_LEVEL": "info", name.as_str(): "x"});
            let deployed = catch_unwind(|| {
                bicep()
                    .deployed(&[("settings", settings)])
                    .variable("plainSettings")
            });
            assert_eq!(deployed.is_err(), is_secret, "{name}");
        }
        secrets += u32::from(is_secret);
    }
    assert!(secrets >= 8);
}

#[test]
fn who_reads_the_vault_and_writes_the_queues_is_logged() {
    let audits = made("Microsoft.Insights/diagnosticSettings", &[]);
    let of = |scope: &str| {
        let mut audits = audits.iter();
        audits.find(|audit| audit.body["scope"] == format!("<{scope}>"))
    };
    for scope in ["vault", "queues", "blobs", "app"] {
        let audit = of(scope).unwrap_or_else(|| panic!("{scope} is not audited"));
        let properties = &audit.body["properties"];
        assert_eq!(properties["workspaceId"], "<logs.id>", "{scope}");
        let logs = properties["logs"].as_array().unwrap();
        assert!(logs.iter().all(|log| log["enabled"] == true));
        if scope != "app" {
            assert_eq!(logs[0]["categoryGroup"], "audit", "{scope}");
        }
    }
}

#[test]
fn with_private_endpoints_nothing_answers_on_a_public_address() {
    let zones = json!({"blob": "zone-b", "queue": "zone-q", "vault": "zone-v"});
    let private = [
        ("privateEndpointSubnetId", json!("subnet")),
        ("privateDnsZoneIds", zones),
        ("appPublicNetworkAccess", json!("Disabled")),
    ];
    for (parameters, access, action, count) in [
        (&private[..], "Disabled", "Deny", 3),
        (&[], "Enabled", "Allow", 0),
    ] {
        for kind in [
            "Microsoft.Storage/storageAccounts",
            "Microsoft.KeyVault/vaults",
        ] {
            let all = made(kind, parameters);
            assert_eq!(all.len(), 1);
            let properties = &all[0].body["properties"];
            assert_eq!(properties["publicNetworkAccess"], access, "{kind}");
            assert_eq!(properties["networkAcls"]["defaultAction"], action, "{kind}");
        }
        let app = made("Microsoft.Web/sites", parameters);
        assert_eq!(app[0].body["properties"]["publicNetworkAccess"], access);
        let endpoints = made("Microsoft.Network/privateEndpoints", parameters);
        assert_eq!(endpoints.len(), count);
        let names = made(
            "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
            parameters,
        );
        assert_eq!(names.len(), count);
        for (endpoint, zone) in endpoints.iter().zip(names) {
            let properties = &endpoint.body["properties"];
            assert_eq!(properties["subnet"]["id"], "subnet");
            let connection = &properties["privateLinkServiceConnections"][0]["properties"];
            let group = connection["groupIds"][0].as_str().unwrap();
            let target = match group {
                "vault" => "<vault.id>",
                _ => "<storage.id>",
            };
            assert_eq!(connection["privateLinkServiceId"], target);
            let zones = &zone.body["properties"]["privateDnsZoneConfigs"][0];
            assert_eq!(zones["name"], group);
            let id = &zones["properties"]["privateDnsZoneId"];
            assert_eq!(*id, format!("zone-{}", &group[..1]));
            assert_eq!(zone.name, format!("{}/default", endpoint.name));
        }
    }
}

#[test]
fn with_an_application_of_entra_id_no_call_is_let_in_without_its_token() {
    let sign_in = |parameters: &[(&str, Value)]| {
        let mut all = made("Microsoft.Web/sites/config", parameters).into_iter();
        all.find(|config| config.name == "authsettingsV2")
            .unwrap()
            .body["properties"]
            .clone()
    };
    let with = sign_in(&[
        ("entraClientId", json!("client")),
        ("entraPrincipalIds", json!(["person"])),
    ]);
    assert_eq!(with["platform"]["enabled"], true);
    let validation = &with["globalValidation"];
    assert_eq!(validation["requireAuthentication"], true);
    assert_eq!(validation["unauthenticatedClientAction"], "Return401");
    assert_eq!(validation["excludedPaths"], Value::Null);
    let entra = &with["identityProviders"]["azureActiveDirectory"];
    assert_eq!(entra["enabled"], true);
    assert_eq!(entra["registration"]["clientId"], "client");
    let audiences = &entra["validation"]["allowedAudiences"];
    assert_eq!(*audiences, json!(["api://client", "client"]));
    let policy = &entra["validation"]["defaultAuthorizationPolicy"];
    assert_eq!(policy["allowedPrincipals"]["identities"], json!(["person"]));
    assert_eq!(sign_in(&[])["platform"]["enabled"], false);
}

#[test]
fn both_clouds_check_who_answers_as_postgresql() {
    let settings = made("Microsoft.Web/sites/config", &[]);
    let settings = settings.iter().find(|config| config.name == "appsettings");
    let name = "ATLAS_POSTGRESQL_SSL_MODE";
    assert_eq!(settings.unwrap().body["properties"][name], "verify-full");
    for function in held("/functions").as_object().unwrap().values() {
        assert_eq!(function["Environment"]["Variables"][name], "verify-full");
    }
}

#[test]
fn every_finding_of_checkov_that_is_left_has_its_reason() {
    let triage = std::fs::read_to_string(root().join("infra/.checkov.yaml")).unwrap();
    let (_, skipped) = triage.split_once("skip-check:\n").unwrap();
    let mut reasons = 0;
    for line in skipped.lines() {
        let (check, reason) = line.split_once("  # ").unwrap_or((line, ""));
        assert!(check.trim_start().starts_with("- CKV_"), "{line}");
        assert!(reason.len() > 20, "{line} has no reason");
        reasons += 1;
    }
    assert!(reasons > 10);
}
