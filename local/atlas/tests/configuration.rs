//! The commands on the way to a configuration: `init`, `validate-config`, `completions`, and what is typed wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of `common`"
)]

mod common;

use common::Place;

#[test]
fn init_writes_a_configuration_that_validates() {
    for extra in [&[][..], &["--with-examples"]] {
        let place = Place::new();
        let written = place.run(&[&["init"], extra].concat());
        assert_eq!(written.code, Some(0), "{written:?}");
        let mut validate = place.command(&["validate-config"]);
        let valid: common::Answer = validate
            .env("ATLAS_OPENEHR_PASSWORD", "x")
            .output()
            .unwrap()
            .into();
        assert_eq!(valid.code, Some(0), "{valid:?}");
        assert!(valid.stdout.contains("`atlas.toml` is valid"), "{valid:?}");
    }
}

#[test]
fn init_replaces_a_file_only_when_it_is_told_to() {
    let place = Place::new();
    place.configure("precious");
    let refused = place.run(&["init"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.text().contains("--force"), "{refused:?}");
    assert_eq!(
        std::fs::read_to_string(place.path("atlas.toml")).unwrap(),
        "precious"
    );
    assert_eq!(place.run(&["init", "--force"]).code, Some(0));
    assert_eq!(place.run(&["init", "-o", "other.toml"]).code, Some(0));
    assert!(place.path("other.toml").exists());
}

#[test]
fn a_wrong_configuration_is_told_with_all_keys_lines_and_fixes() {
    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://x\"\ntimeout_seconds = 0\npassword = \"s3cret\" \n[export]\nmodus = \"full\"\n");
    let answer = place.run(&["validate-config"]);
    assert_eq!(answer.code, Some(2));
    let text = answer.text();
    assert!(text.contains("2 problems"), "{answer:?}");
    assert!(
        text.contains("line 3, column 19: `openehr.timeout_seconds` must be"),
        "{answer:?}"
    );
    assert!(
        text.contains("line 6") && text.contains("did you mean `export.mode`?"),
        "{answer:?}"
    );
    assert!(!text.contains("s3cret"), "{answer:?}");
}

#[test]
fn a_wrong_configuration_is_one_json_document_on_request() {
    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://x\"\ntimeout_seconds = 0\n");
    let answer = place.run(&["validate-config", "--json"]);
    assert_eq!(answer.code, Some(2));
    let document = answer.json();
    assert_eq!(document["valid"], false);
    assert_eq!(document["problems"][0]["key"], "openehr.timeout_seconds");
    assert_eq!(document["problems"][0]["line"], 3);
    place.configure("[openehr]\nbase_url = \"http://x\"\n");
    assert_eq!(
        place.run(&["validate-config", "--json"]).json()["valid"],
        true
    );
}

#[test]
fn a_configuration_that_is_not_there_is_told_with_the_fix() {
    let answer = Place::new().run(&["export"]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.text().contains("atlas init"), "{answer:?}");
}

#[test]
fn global_flags_stand_before_and_after_the_subcommand() {
    let place = Place::new();
    std::fs::write(
        place.path("other.toml"),
        "[openehr]\nbase_url = \"http://x\"\n",
    )
    .unwrap();
    for arguments in [
        &[
            "-c",
            "other.toml",
            "--log-level",
            "debug",
            "validate-config",
        ],
        &[
            "validate-config",
            "--log-level",
            "debug",
            "-c",
            "other.toml",
        ],
    ] {
        let answer = place.run(arguments);
        assert_eq!(answer.code, Some(0), "{answer:?}");
    }
    let mut command = place.command(&["validate-config"]);
    assert_eq!(
        command
            .env("ATLAS_CONFIG", "other.toml")
            .output()
            .unwrap()
            .status
            .code(),
        Some(0)
    );
}

#[test]
fn a_log_level_that_does_not_exist_is_told_with_the_flag() {
    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://x\"\n");
    let answer = place.run(&["validate-config", "--log-level", "loud"]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.text().contains("--log-level"), "{answer:?}");
}

#[test]
fn variables_come_from_a_dotenv_file_beside_the_configuration() {
    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://x\"\nusername = \"u\"\npassword = \"${PW}\"\n");
    assert_eq!(place.run(&["validate-config"]).code, Some(2));
    std::fs::write(place.path(".env"), "PW=secret\n").unwrap();
    assert_eq!(place.run(&["validate-config"]).code, Some(0));
}

#[test]
fn a_dotenv_file_of_another_folder_is_not_looked_at() {
    let place = Place::new();
    let inner = place.path("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(
        inner.join("atlas.toml"),
        "[openehr]\nbase_url = \"http://localhost\"\nusername = \"u\"\npassword = \"${PW}\"\n",
    )
    .unwrap();
    // Neither the current folder nor the one above the configuration.
    std::fs::write(place.path(".env"), "PW=secret\n").unwrap();
    let validate = ["validate-config", "-c", "inner/atlas.toml"];
    assert_eq!(place.run(&validate).code, Some(2));
    std::fs::write(inner.join(".env"), "PW=secret\n").unwrap();
    assert_eq!(place.run(&validate).code, Some(0));
}

#[cfg(unix)]
#[test]
fn a_dotenv_file_that_others_may_write_stops_the_start() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://localhost\"\n");
    std::fs::write(place.path(".env"), "PW=s3cret\n").unwrap();
    let writable = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(place.path(".env"), writable).unwrap();
    let answer = place.run(&["validate-config"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.text().contains("chmod"), "{answer:?}");
    assert!(!answer.text().contains("s3cret"), "{answer:?}");
}

#[test]
fn a_secret_is_masked_wherever_its_value_turns_up() {
    let place = Place::new();
    for (base_url, password) in [
        ("http://localhost/pa55word/x", "pa55word"),
        ("http://localhost/pa%35%35word/x", "pa55word"),
        ("http://localhost/pa%20ss%2Fword/x", "pa ss/word"),
    ] {
        place.configure(&format!(
            "[openehr]\nbase_url = \"{base_url}\"\nusername = \"u\"\npassword = \"{password}\"\ntls_ca_cert = \"/nowhere/{password}.pem\"\n"
        ));
        let wrong = place.run(&["validate-config"]);
        let wrong_json = place.run(&["validate-config", "--json"]);
        assert_eq!(wrong.code, Some(2), "{wrong:?}");
        place.configure(&format!(
            "[openehr]\nbase_url = \"{base_url}\"\nusername = \"u\"\npassword = \"{password}\"\n"
        ));
        let right = place.run(&["validate-config"]);
        assert_eq!(right.code, Some(0), "{right:?}");
        assert!(right.text().contains("http://localhost/***/x"), "{right:?}");
        for answer in [wrong, wrong_json, right] {
            let all = format!("{}{}", answer.stdout, answer.stderr);
            for part in [password, "55word", "%35word", "2Fword"] {
                assert!(!all.contains(part), "{answer:?}");
            }
        }
    }
}

#[test]
fn levels_are_taken_in_any_case_by_every_command_and_others_refused_with_the_list() {
    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://localhost\"\n");
    for (level, code) in [
        ("WARN", 0),
        ("Debug", 0),
        ("", 0),
        ("loud", 2),
        ("warning", 2),
    ] {
        for command in [&["validate-config"][..], &["completions", "bash"]] {
            let with_variable = place
                .command(command)
                .env("ATLAS_LOG_LEVEL", level)
                .output();
            let with_variable: common::Answer = with_variable.unwrap().into();
            let with_flag = place.run(&[command, &["--log-level", level]].concat());
            for answer in [with_variable, with_flag] {
                assert_eq!(answer.code, Some(code), "{level}: {answer:?}");
                let lists = answer.text().contains("error, warn, info, debug or trace");
                assert!(code == 0 || lists, "{level}: {answer:?}");
            }
        }
    }
}

#[test]
fn a_connection_that_cannot_be_read_is_found_offline() {
    let place = Place::new();
    place.configure("database_target = \"postgresql\"\n[openehr]\nbase_url = \"http://x\"\n[postgresql]\nconnection_string = \"postgres://u:s3cret@h:port/d\"\n");
    let answer = place.run(&["validate-config"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(!answer.text().contains("s3cret"), "{answer:?}");
}

#[test]
fn de_identification_is_refused_with_its_reason() {
    let place = Place::new();
    place.configure("[openehr]\nbase_url = \"http://x\"\n");
    for arguments in [
        &["export", "--anonymize"][..],
        &["export", "--anonymize-mode", "strict"],
        &["export", "--anonymize-dry-run"],
    ] {
        let answer = place.run(arguments);
        assert_eq!(answer.code, Some(2));
        assert!(answer.text().contains("does not have yet"), "{answer:?}");
    }
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let answer = Place::new().run(&["completions", shell]);
        assert_eq!(answer.code, Some(0));
        assert!(answer.stdout.contains("validate-config"), "{shell}");
    }
}
