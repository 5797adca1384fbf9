//! What a configuration must not do: take what production refuses, show secrets, trust a `.env` of others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::time::Duration;

use atlas_runtime::environment::DotEnvError;
use atlas_runtime::settings::{Invalid, LogLevel, Settings, Store};
use atlas_runtime::{Environment, wiring};
use atlas_store_postgres::SslMode;

const MINIMAL: &str = "[openehr]\nbase_url = \"http://localhost:8080/ehrbase\"\n";

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Invalid> {
    let environment = variables.iter().copied().collect();
    Settings::parse(text, Path::new("atlas.toml"), &environment, &[])
}

/// A whole file for an environment; `openehr` and `rest` say what is special about it.
fn file(environment: &str, openehr: &str, rest: &str) -> String {
    let base_url = if openehr.contains("base_url") {
        ""
    } else {
        "base_url = \"https://cdr.example.org/ehrbase\"\n"
    };
    let target = if rest.contains("[postgresql]") {
        "postgresql"
    } else {
        "sqlite"
    };
    format!(
        "environment = \"{environment}\"\ndatabase_target = \"{target}\"\n[openehr]\n{base_url}{openehr}\n{rest}\n"
    )
}

const VARIABLES: &[(&str, &str)] = &[
    ("PW", "s3cret-word"),
    ("TOKEN", "9f86d081884c7d659a2feaa0c55ad015"),
    ("SHORT", "9f86d081884c7d65"),
    ("KEY", "a2V5"),
    ("HOST", "host=h "),
    ("CONNECTION", "host=h password=s3cret-word"),
];

/// Production refuses it, naming the key; the others say it once.
fn is_risk(openehr: &str, rest: &str, key: &str) {
    let invalid = parse(&file("production", openehr, rest), VARIABLES)
        .expect_err(&format!("production takes {openehr} {rest}"));
    let keys: Vec<&str> = invalid.problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, [key], "{openehr} {rest}: {invalid}");
    for environment in ["development", "staging"] {
        let settings = parse(&file(environment, openehr, rest), VARIABLES).unwrap();
        let said = settings
            .notices
            .iter()
            .filter(|n| n.contains(&format!("`{key}`")))
            .count();
        assert_eq!(
            said, 1,
            "{environment}: {openehr} {rest}: {:?}",
            settings.notices
        );
    }
}

fn is_fine(openehr: &str, rest: &str) {
    for environment in ["production", "staging", "development"] {
        let settings = parse(&file(environment, openehr, rest), VARIABLES)
            .unwrap_or_else(|invalid| panic!("{environment}: {openehr} {rest}: {invalid}"));
        let told = |word: &str| settings.notices.iter().any(|n| n.contains(word));
        assert!(
            !told("production refuses"),
            "{openehr} {rest}: {:?}",
            settings.notices
        );
    }
}

#[test]
fn http_stays_within_this_machine() {
    for host in [
        "cdr.example.org",
        "10.0.0.1:8080",
        "localhost.example.org",
        "[fe80::1]",
        "0.0.0.0",
    ] {
        is_risk(
            &format!("base_url = \"http://{host}/e\""),
            "",
            "openehr.base_url",
        );
        let oidc = format!(
            "client_id = \"c\"\nclient_secret = \"${{PW}}\"\noidc_token_url = \"http://{host}/t\""
        );
        is_risk(&oidc, "", "openehr.oidc_token_url");
    }
    for host in [
        "localhost",
        "LOCALHOST:8080",
        "127.0.0.1:8080",
        "127.1.2.3",
        "[::1]:8080",
    ] {
        is_fine(&format!("base_url = \"http://{host}/e\""), "");
    }
}

#[test]
fn certificates_are_checked() {
    is_risk("tls_verify = false", "", "openehr.tls_verify");
    is_risk("tls_verify_certificates = false", "", "openehr.tls_verify");
    is_fine("tls_verify = true", "");
}

#[test]
fn another_host_is_reached_with_a_checked_certificate() {
    let section = |connection: &str, mode: &str| {
        format!("[postgresql]\nconnection_string = \"{connection}\"\n{mode}")
    };
    let far = [
        "postgresql://atlas:${PW}@db.example.org/atlas",
        "host=10.0.0.1 password=${PW}",
        "postgresql://localhost,db.example.org/d",
        "postgresql://localhost/d?host=db",
        "host=localhost hostaddr=10.0.0.1",
    ];
    let near = [
        "postgresql://atlas:${PW}@localhost/atlas",
        "postgresql://[::1]:5432,127.0.0.1/d",
        "host=/var/run/postgresql dbname=d",
        "postgresql://%2Ftmp/d",
    ];
    for mode in ["disable", "allow", "prefer", "require"] {
        let line = format!("ssl_mode = \"{mode}\"");
        for connection in far {
            is_risk("", &section(connection, &line), "postgresql.ssl_mode");
            let with_mode = if connection.contains("://") {
                format!(
                    "{connection}{}sslmode={mode}",
                    if connection.contains('?') { "&" } else { "?" }
                )
            } else {
                format!("{connection} sslmode = '{mode}'")
            };
            is_risk("", &section(&with_mode, ""), "postgresql.connection_string");
        }
        for connection in near {
            is_fine("", &section(connection, &line));
        }
    }
    for connection in far.iter().chain(&near) {
        for line in ["", "ssl_mode = \"verify-ca\"", "ssl_mode = \"verify-full\""] {
            is_fine("", &section(connection, line));
        }
    }
}

#[test]
fn a_connection_string_that_the_store_cannot_use_is_a_problem_of_its_key() {
    for (connection, mode, named) in [
        ("postgresql://u:s3cret@h/d?passfile=/x", "", "`passfile`"),
        ("postgresql://u:s3cret@h:x/d", "", "`port`"),
        (
            "host=h sslmode=require",
            "ssl_mode = \"verify-full\"",
            "`sslmode`",
        ),
        ("postgresql:///d", "", "no host"),
        ("s3cret", "", "key=value"),
    ] {
        let section = format!("[postgresql]\nconnection_string = \"{connection}\"\n{mode}");
        let invalid = parse(&file("development", "", &section), VARIABLES).unwrap_err();
        let problem = &invalid.problems[0];
        assert_eq!(problem.key, "postgresql.connection_string");
        assert!(problem.rule.contains(named), "{}", problem.rule);
        assert!(problem.fix.is_some());
        assert!(!invalid.to_string().contains("s3cret"), "{invalid}");
        // A store that is not used may wait for its server.
        let unused = format!("database_target = \"sqlite\"\n{MINIMAL}{section}\n");
        assert!(parse(&unused, VARIABLES).is_ok());
    }
}

#[test]
fn without_a_mode_tcp_is_checked_and_a_socket_needs_nothing() {
    for (connection, expected) in [
        ("postgresql://db/d", SslMode::VerifyFull),
        ("postgresql://localhost/d", SslMode::VerifyFull),
        ("host=/tmp dbname=d", SslMode::Disable),
        ("postgresql:///d?host=/tmp", SslMode::Disable),
        ("postgresql://localhost/d?sslmode=prefer", SslMode::Prefer),
    ] {
        let rest = format!("[postgresql]\nconnection_string = \"{connection}\"");
        match parse(&file("development", "", &rest), &[]).unwrap().store {
            Store::Postgresql(config) => {
                for endpoint in config.endpoints().unwrap() {
                    assert_eq!(endpoint.ssl_mode, expected, "{connection}");
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn no_form_of_password_stands_in_the_file() {
    for connection in [
        "postgresql://u:sec@h1:5432,h2:5432/d",
        "postgresql://u:sec@[::1],h2/d",
        "postgresql://u:sec@h/d",
        "postgres://${PW}:sec@h/d",
        "postgresql://u:${PW}sec@h/d",
        "postgresql://u@h/d?password=sec",
        "postgresql://u@h/d?%70assword=sec",
        "host=h password=sec",
        "host=h password = 'sec'",
        "${HOST}password=sec",
        "host=h user='${PW}' password='s e c'",
    ] {
        let rest = format!("[postgresql]\nconnection_string = \"{connection}\"");
        is_risk("", &rest, "postgresql.connection_string");
    }
    // Not supported, and a secret all the same.
    let rest = "[postgresql]\nconnection_string = \"postgresql://u@h/d?sslpassword=sec\"";
    let invalid = parse(&file("production", "", rest), VARIABLES).unwrap_err();
    let said = invalid.to_string();
    assert!(said.contains("must not stand in the file"), "{said}");
    assert!(said.contains("`sslpassword`"), "{said}");
    for connection in [
        "postgresql://u:${PW}@h1:5432,h2:5432/d",
        "postgresql://u@h/d?password=${PW}",
        "host=h password='${PW}'",
        "postgresql://password@h/password",
        "env:CONNECTION",
        "${CONNECTION}",
    ] {
        is_fine(
            "",
            &format!("[postgresql]\nconnection_string = \"{connection}\""),
        );
    }
    for key in ["password", "token", "client_secret"] {
        for value in ["sec", "${PW}sec", "sec${PW}"] {
            let openehr = format!("username = \"u\"\nauth_type = \"none\"\n{key} = \"{value}\"");
            is_risk(&openehr, "", &format!("openehr.{key}"));
        }
        for value in ["${PW}", "${PW}${TOKEN}", "env:PW"] {
            is_fine(&format!("auth_type = \"none\"\n{key} = \"{value}\""), "");
        }
    }
    let queue = "https://a.queue.core.windows.net/q?sv=1&sig=";
    is_risk(
        "",
        &format!("[queue]\nurl = \"{queue}abcdef\""),
        "queue.url",
    );
    is_fine("", &format!("[queue]\nurl = \"{queue}${{PW}}\""));
    let account = "AccountName=a;AccountKey=";
    is_risk(
        "",
        &format!("[queue]\nconnection_string = \"{account}a2V5\""),
        "queue.connection_string",
    );
    is_fine(
        "",
        &format!("[queue]\nconnection_string = \"{account}${{KEY}}\""),
    );
    is_risk("", "[cosmosdb]\nkey = \"sec\"", "cosmosdb.key");
}

#[test]
fn a_token_at_an_open_port_is_long() {
    let serve =
        |listen: &str, token: &str| format!("[serve]\nlisten = \"{listen}\"\ntoken = \"{token}\"");
    for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80"] {
        is_risk("", &serve(listen, "${SHORT}"), "serve.token");
        is_risk("", &serve(listen, "${SHORT}${SHORT}"), "serve.token");
        is_fine("", &serve(listen, "${TOKEN}"));
    }
    is_fine("", &serve("127.0.0.1:8080", "${SHORT}"));
}

#[test]
fn no_secret_is_shown_whatever_is_wrong() {
    const SECRET: &str = "SECRETzq99";
    let base = "[openehr]\nbase_url = \"http://127.0.0.1:9/x\"\n";
    for text in [
        format!("{base}# password = \"{SECRET}\"\nauth_type = \"bsic\"\n"),
        format!("{base}password = 5 # {SECRET}\n"),
        format!("{base}auth_type = \"bsic\" # {SECRET}\n"),
        format!("{base}[deid]\nkey = \"{SECRET}\"\n"),
        format!("[openehr]\nbase_url = [\"http://u:{SECRET}@127.0.0.1/x\"]\n"),
        format!("{base}[anonymization]\nsalt = \"{SECRET}\"\n"),
        format!("{base}[[serve]]\ntoken = \"{SECRET}\"\n"),
        format!("{base}[[serve]]\ntoken = \"\"\"\n{SECRET}\n\"\"\"\n"),
        format!("{base}[[postgresql]]\nconnection_string = \"postgresql://u:{SECRET}@h/d\"\n"),
        format!("{base}[[openehr.query]]\nehr_ids = [\"{SECRET}\"]\n"),
        format!("{base}[openehr.query]\ntemplate_ids = [ # {SECRET}\n 1 ]\n"),
        format!("[openehr]\nbase_url = \"http://127.0.0.1:9/x?apikey={SECRET}\"\n"),
        format!("[openehr]\nbase_url = \"http://u:{SECRET}%40127.0.0.1:9/x\"\n"),
        format!("[openehr]\nbase_url = \"http://127.0.0.1:9/x#{SECRET}\"\n"),
        format!("[openehr]\nbase_url = \"ftp://u:{SECRET}/x\"\n"),
        format!("{base}pasword = \"{SECRET}\"\n"),
        format!("{base}auth_type = \"{SECRET}\"\npassword = \"{SECRET}\"\n"),
        format!("{base}vendor = \"%53ECRETzq99\"\ntoken = \"{SECRET}\"\n"),
        format!(
            "{base}vendor = \"{SECRET}-and-so-on-for-more-than-forty-signs\"\npassword = \"{SECRET}-and-so-on-for-more-than-forty-signs\"\n"
        ),
        format!("{base}auth_type = \"${{S}}\"\n"),
        format!("{base}[openehr.query]\ntime_range_start = \"x${{S}}\"\n"),
        format!(
            "{base}vendor = \"{SECRET}\"\n[postgresql]\nconnection_string = \"postgresql://u:{SECRET}@h/d\"\n"
        ),
        format!(
            "{base}vendor = \"{SECRET}\"\n[queue]\nconnection_string = \"AccountName=a;AccountKey={SECRET}\"\n"
        ),
        format!(
            "{base}vendor = \"{SECRET}\"\n[queue]\nurl = \"https://a.queue.core.windows.net/q?sig={SECRET}\"\n"
        ),
    ] {
        let invalid = parse(&text, &[("S", SECRET)]).expect_err(&text);
        let shown = format!(
            "{invalid}\n{invalid:?}\n{}",
            invalid.excerpt.as_deref().unwrap_or_default()
        );
        for part in [SECRET, "ECRETzq99"] {
            assert!(!shown.contains(part), "{text}\n{shown}");
        }
        assert_eq!(
            invalid.excerpt.map(|excerpt| excerpt.len()),
            Some(text.len()),
            "{text}"
        );
    }
}

#[test]
fn what_is_wrong_is_still_seen() {
    let text = "# a comment\n[openehr]\nbase_url = \"http://x/e\"\n[openehr.retry] # more\nmax_retries = 99 # why\n[openehr.query]\ntemplate_ids = [\"a\", \"b\"]\n";
    let excerpt = parse(text, &[]).unwrap_err().excerpt.unwrap();
    for seen in [
        "[openehr]\nbase_url = \"http://x/e\"\n",
        "[openehr.retry] *",
        "\nmax_retries = 99 *",
        "[openehr.query]\ntemplate_ids = [\"a\"* \"b\"]\n",
    ] {
        assert!(excerpt.contains(seen), "{excerpt}");
    }
    for hidden in ["comment", "more", "why"] {
        assert!(!excerpt.contains(hidden), "{excerpt}");
    }
}

#[test]
fn a_secret_inside_another_value_is_masked_in_what_is_said() {
    let text = format!("{MINIMAL}username = \"u\"\npassword = \"pa ss/w\u{f6}rd\"\n");
    let mask = parse(&text, &[]).unwrap().mask;
    for shown in [
        "http://h/pa ss/w\u{f6}rd/x",
        "http://h/pa%20ss%2fw%C3%B6rd/x",
        "http://h/pa+ss%2Fw%c3%b6rd/x",
    ] {
        assert_eq!(mask.apply(shown), "http://h/***/x");
    }
    assert!(!format!("{mask:?}").contains("ss"));
}

#[test]
fn a_dotenv_file_is_taken_literally_and_from_its_folder_alone() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(
        folder.path().join(".env"),
        "\u{feff}# x\r\nexport A=\"abc$def%x\"\r\nB=pa$$word # c\r\nC='${A}'\r\n",
    )
    .unwrap();
    let environment = Environment::default().with_dotenv(folder.path()).unwrap();
    assert_eq!(environment.get("A"), Some("abc$def%x"));
    assert_eq!(environment.get("B"), Some("pa$$word"));
    assert_eq!(environment.get("C"), Some("${A}"));
    let environment = Environment::default().with_dotenv(&inner).unwrap();
    assert_eq!(environment.get("A"), None);
}

#[cfg(unix)]
#[test]
fn a_dotenv_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    std::fs::write(&path, "PW=s3cret\n").unwrap();
    for (mode, is_taken) in [
        (0o600, true),
        (0o400, true),
        (0o644, true),
        (0o664, false),
        (0o660, false),
        (0o606, false),
        (0o622, false),
        (0o666, false),
    ] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match Environment::default().with_dotenv(folder.path()) {
            Ok(environment) => {
                assert!(is_taken, "{mode:o}");
                assert_eq!(environment.get("PW"), Some("s3cret"));
            }
            Err(error) => {
                assert!(!is_taken, "{mode:o}: {error}");
                assert!(matches!(error, DotEnvError::Writable { .. }), "{error:?}");
                assert!(error.to_string().contains("chmod"), "{error}");
            }
        }
    }
    // The rights of the file behind a link are what counts.
    let linked = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&path, linked.path().join(".env")).unwrap();
    assert!(Environment::default().with_dotenv(linked.path()).is_err());
    // Only root can give a file away.
    if std::os::unix::fs::chown(&path, Some(4_711), None).is_ok() {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let error = Environment::default()
            .with_dotenv(folder.path())
            .unwrap_err();
        assert!(
            matches!(error, DotEnvError::Foreign { owner: 4_711, .. }),
            "{error:?}"
        );
    }
}

#[test]
fn a_dotenv_folder_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(".env")).unwrap();
    let error = Environment::default()
        .with_dotenv(folder.path())
        .unwrap_err();
    assert!(matches!(error, DotEnvError::NotAFile { .. }), "{error:?}");
}

#[cfg(unix)]
#[test]
fn one_file_under_two_names_is_one_store() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |path: &Path| {
        let variables = [("ATLAS_SQLITE_PATH", path.to_str().unwrap())];
        match parse(MINIMAL, &variables).unwrap().store {
            Store::Sqlite { path } => path,
            other => panic!("{other:?}"),
        }
    };
    std::fs::create_dir(at("data")).unwrap();
    symlink(at("data"), at("folder")).unwrap();
    symlink("data/copy.db", at("alias.db")).unwrap();
    symlink("alias.db", at("alias-of-alias.db")).unwrap();
    let names = [
        "data/copy.db",
        "folder/copy.db",
        "alias.db",
        "alias-of-alias.db",
        "data/../alias.db",
        "./data/./copy.db",
    ];
    let expected = std::fs::canonicalize(folder.path())
        .unwrap()
        .join("data/copy.db");
    for is_made in [false, true] {
        if is_made {
            std::fs::write(&expected, "").unwrap();
        }
        for name in names {
            assert_eq!(path(&at(name)), expected, "{name}");
        }
    }
    // What leads nowhere is left for the store to refuse.
    assert_eq!(path(&at("nowhere/copy.db")), at("nowhere/copy.db"));
    symlink("loop.db", at("loop.db")).unwrap();
    assert!(path(&at("loop.db")).ends_with("loop.db"));
}

#[test]
fn levels_are_read_in_upper_and_lower_case_and_others_refused_with_the_list() {
    for (text, level) in [
        ("WARN", LogLevel::Warn),
        ("Warn", LogLevel::Warn),
        (" error ", LogLevel::Error),
        ("INFO", LogLevel::Info),
        ("dEbUg", LogLevel::Debug),
        ("TRACE", LogLevel::Trace),
    ] {
        assert_eq!(text.parse(), Ok(level), "{text}");
        let file = format!("{MINIMAL}[application]\nlog_level = \"{text}\"\n");
        assert_eq!(parse(&file, &[]).unwrap().log_level, level, "{text}");
        let settings = parse(MINIMAL, &[("ATLAS_APPLICATION_LOG_LEVEL", text)]).unwrap();
        assert_eq!(settings.log_level, level, "{text}");
    }
    for text in ["loud", "warning", "off", "2", "atlas=debug"] {
        let error = text.parse::<LogLevel>().unwrap_err().to_string();
        let invalid = parse(MINIMAL, &[("ATLAS_APPLICATION_LOG_LEVEL", text)]).unwrap_err();
        for level in LogLevel::ALL {
            assert!(error.contains(level.name()), "{error}");
            assert!(invalid.to_string().contains(level.name()), "{invalid}");
        }
    }
}

#[test]
fn a_run_is_held_as_the_state_section_says() {
    let state = |section: &str| {
        parse(&format!("{MINIMAL}[state]\n{section}\n"), &[])
            .map(|s| (s.state.lease, s.state.heartbeat))
    };
    let seconds = Duration::from_secs;
    assert_eq!(state("").unwrap(), (seconds(15), seconds(3)));
    assert_eq!(
        state("lease_seconds = 30").unwrap(),
        (seconds(30), seconds(3))
    );
    assert_eq!(
        state("lease_seconds = 6").unwrap(),
        (seconds(6), seconds(2))
    );
    assert_eq!(
        state("lease_seconds = 1").unwrap(),
        (seconds(1), seconds(1) / 3)
    );
    assert_eq!(
        state("lease_seconds = 3\nheartbeat_seconds = 1").unwrap(),
        (seconds(3), seconds(1))
    );
    assert_eq!(
        state("heartbeat_seconds = 5").unwrap(),
        (seconds(15), seconds(5))
    );
    for wrong in [
        "heartbeat_seconds = 6",
        "lease_seconds = 2\nheartbeat_seconds = 1",
        "lease_seconds = 8\nheartbeat_seconds = 3",
    ] {
        let invalid = state(wrong).unwrap_err();
        assert_eq!(
            invalid.problems[0].key, "state.heartbeat_seconds",
            "{wrong}"
        );
    }
}

#[test]
fn pages_share_the_memory_of_the_process_and_not_the_slots_of_the_source() {
    let settings = |query: &str, export: &str| {
        parse(
            &format!("{MINIMAL}[openehr.query]\n{query}\n[export]\n{export}\n"),
            &[],
        )
        .unwrap()
    };
    let full = wiring::pages(&settings("", ""), 1);
    assert_eq!((full.bytes, full.first, full.most), (2 << 20, 200, 1_000));
    // One message at a time, however many slots the source has.
    let slots = wiring::pages(&settings("parallel = 20", ""), 1);
    assert_eq!((slots.bytes, slots.first), (full.bytes, full.first));
    let shared = wiring::pages(&settings("", ""), 4);
    assert_eq!((shared.bytes, shared.first), (512 << 10, 50));
    let half = wiring::pages(&settings("", "memory_mb = 32"), 1);
    assert_eq!((half.bytes, half.first), (1 << 20, 100));
    let large = wiring::pages(&settings("", "memory_mb = 4095"), 1);
    assert_eq!((large.bytes, large.first), (4_095 << 15, 1_000));
    let small = wiring::pages(&settings("batch_size = 5", "memory_mb = 1"), 100);
    assert!(
        small.bytes > 0 && (1..=5).contains(&small.first) && small.most == 5,
        "{small:?}"
    );
}

#[test]
fn the_largest_composition_is_the_largest_answer() {
    let limit = |export: &str| {
        let settings = parse(&format!("{MINIMAL}[export]\n{export}\n"), &[]).unwrap();
        settings.openehr.body_limit
    };
    assert_eq!(limit(""), 24 << 20);
    assert_eq!(limit("max_composition_mb = 100"), 100 << 20);
}
