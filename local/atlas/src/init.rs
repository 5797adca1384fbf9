//! `atlas init`: a configuration that works, with as few questions as possible.

use std::io::{self, BufRead, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::Path;

use atlas_runtime::Environment;
use atlas_runtime::environment::dotenv_line;
use atlas_runtime::settings::{Settings, holds_secret, suggested_ssl_mode};

use crate::cli::Init;
use crate::failure::{Exit, Failure};
use crate::output;

/// What is asked, at most seven questions for any one person.
struct Answers {
    base_url: String,
    auth: Auth,
    template_ids: Vec<String>,
    store: Store,
}

enum Auth {
    None,
    Basic {
        user: String,
    },
    Bearer,
    Oidc {
        token_url: String,
        client_id: String,
    },
}

enum Store {
    Sqlite { path: String },
    Postgresql { connection: String },
}

const BASE_URL: &str = "http://localhost:8080/ehrbase";
const CONNECTION: &str = "postgresql://atlas:${ATLAS_PG_PASSWORD}@localhost:5432/openehr";
const SQLITE: &str = "atlas.db";
/// Holds a connection string in which somebody typed a secret.
const TYPED_CONNECTION: &str = "ATLAS_PG_CONNECTION";

impl Default for Answers {
    fn default() -> Self {
        Self {
            base_url: BASE_URL.into(),
            auth: Auth::Basic {
                user: "atlas".into(),
            },
            template_ids: Vec::new(),
            store: Store::Sqlite {
                path: SQLITE.into(),
            },
        }
    }
}

pub(crate) fn run(arguments: &Init) -> Result<Exit, Failure> {
    let path = &arguments.output;
    if path.exists() && !arguments.force {
        return Err(exists(path));
    }
    let answers = if io::stdin().is_terminal() && io::stderr().is_terminal() {
        prompt(&mut io::stdin().lock(), &mut io::stderr())
            .map_err(|error| Failure::new(Exit::Usage, "failed to ask").because(error))?
    } else {
        Answers::default()
    };
    save(&answers, arguments)?;
    for variable in answers.variables() {
        output::tell(&format!(
            "set {variable}, or write it into `.env` beside the file"
        ));
    }
    output::tell(&format!("next: atlas doctor -c {}", path.display()));
    Ok(Exit::Complete)
}

/// Writes the file, and what must not stand in it into `.env` beside it.
fn save(answers: &Answers, arguments: &Init) -> Result<(), Failure> {
    let path = &arguments.output;
    let secret = answers.typed_secret()?;
    let text = render(answers, secret, arguments.with_examples);
    // What is written can be used, or is not written.
    Settings::parse(&text, path, &placeholders(secret), &[])?;
    if let Some(secret) = secret {
        let dotenv = path.with_file_name(".env");
        append_private(&dotenv, &dotenv_line(TYPED_CONNECTION, secret))?;
        output::tell(&format!(
            "wrote the connection with its password into `{}`, which only you can read: keep it out of version control",
            dotenv.display()
        ));
    }
    write(path, &text, arguments.force)?;
    output::tell(&format!("wrote `{}`", path.display()));
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::usage(
        format!("`{}` is there already", path.display()),
        "replace it with `--force`, or write elsewhere with `-o FILE`",
    )
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let written = if force {
        atlas_files::write(path, text)
    } else {
        atlas_files::create(path).and_then(|mut file| file.write_all(text.as_bytes()))
    };
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path),
        _ => cannot_write(path, error),
    })
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("failed to write `{}`", path.display()))
        .because(error)
        .fix("write elsewhere with `-o FILE`")
}

/// Adds a line with a secret to a file that nobody else can read, which is made if there is none.
fn append_private(path: &Path, line: &str) -> Result<(), Failure> {
    let open = match atlas_files::create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            atlas_files::options().read(true).append(true).open(path)
        }
        made => made,
    };
    let mut file = open.map_err(|error| cannot_write(path, error))?;
    let about = file.metadata().map_err(|error| cannot_write(path, error))?;
    if atlas_files::is_open_to_others(&about) {
        return Err(Failure::usage(
            format!(
                "failed to write a secret into `{}`, which other users can read or write",
                path.display()
            ),
            format!("run `chmod 600 {}`, then the same again", path.display()),
        ));
    }
    add_line(&mut file, line).map_err(|error| cannot_write(path, error))
}

/// Adds a line after what may lack the end of its last line.
fn add_line(file: &mut (impl Read + Write + Seek), line: &str) -> io::Result<()> {
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let begin = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{begin}{line}").as_bytes())
}

/// Stand-ins for the variables a fresh configuration asks for, and the connection that was typed.
fn placeholders(connection: Option<&str>) -> Environment {
    [
        "ATLAS_OPENEHR_PASSWORD",
        "ATLAS_OPENEHR_TOKEN",
        "ATLAS_OPENEHR_CLIENT_SECRET",
        "ATLAS_PG_PASSWORD",
    ]
    .into_iter()
    .map(|name| (name, "placeholder"))
    .chain(connection.map(|typed| (TYPED_CONNECTION, typed)))
    .collect()
}

impl Answers {
    /// The connection string, if a secret was typed into it: the file gets a variable instead, and `.env` the whole text, as it is.
    fn typed_secret(&self) -> Result<Option<&str>, Failure> {
        let Store::Postgresql { connection } = &self.store else {
            return Ok(None);
        };
        let holds_secret = holds_secret(connection).map_err(|error| {
            Failure::new(Exit::Usage, "failed to read the connection that was typed")
                .because(error)
                .fix(format!("write it as `{CONNECTION}`"))
        })?;
        if !holds_secret {
            return Ok(None);
        }
        if connection.contains("${") {
            return Err(Failure::usage(
                "the connection holds a secret beside a variable",
                format!(
                    "write `${{NAME}}` for each secret, as in `{CONNECTION}`, or all of it without variables"
                ),
            ));
        }
        Ok(Some(connection))
    }

    fn variables(&self) -> impl Iterator<Item = &'static str> {
        let source = match self.auth {
            Auth::None => None,
            Auth::Basic { .. } => Some("ATLAS_OPENEHR_PASSWORD"),
            Auth::Bearer => Some("ATLAS_OPENEHR_TOKEN"),
            Auth::Oidc { .. } => Some("ATLAS_OPENEHR_CLIENT_SECRET"),
        };
        let store = match &self.store {
            Store::Postgresql { connection } if connection.contains("${ATLAS_PG_PASSWORD}") => {
                Some("ATLAS_PG_PASSWORD")
            }
            _ => None,
        };
        source.into_iter().chain(store)
    }
}

fn prompt(answers: &mut impl BufRead, questions: &mut impl Write) -> io::Result<Answers> {
    let mut one = |question: &str, default: &str| -> io::Result<String> {
        write!(questions, "{question} [{default}]: ")?;
        questions.flush()?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let answer = line.trim();
        Ok(if answer.is_empty() { default } else { answer }.to_owned())
    };
    let base_url = one("Address of the openEHR server", BASE_URL)?;
    let auth = match one("Authentication: basic, bearer, oidc or none", "basic")?.as_str() {
        "none" => Auth::None,
        "bearer" => Auth::Bearer,
        "oidc" => Auth::Oidc {
            token_url: one(
                "Address of the token endpoint",
                "https://login.example.org/token",
            )?,
            client_id: one("Client id", "atlas")?,
        },
        _ => Auth::Basic {
            user: one("User name (its password stays outside the file)", "atlas")?,
        },
    };
    let templates = one("Templates, separated by commas", "all")?;
    let template_ids = match templates.as_str() {
        "all" => Vec::new(),
        list => list
            .split(',')
            .map(|id| id.trim().to_owned())
            .filter(|id| !id.is_empty())
            .collect(),
    };
    let store = match one("Store: sqlite or postgresql", "sqlite")?.as_str() {
        "postgresql" | "postgres" => Store::Postgresql {
            connection: one("Connection", CONNECTION)?,
        },
        _ => Store::Sqlite {
            path: one("Database file", SQLITE)?,
        },
    };
    Ok(Answers {
        base_url,
        auth,
        template_ids,
        store,
    })
}

/// The file. `secret` is what was typed and must not stand in it.
fn render(answers: &Answers, secret: Option<&str>, with_examples: bool) -> String {
    let target = match answers.store {
        Store::Sqlite { .. } => "sqlite",
        Store::Postgresql { .. } => "postgresql",
    };
    let auth = match &answers.auth {
        Auth::None => "auth_type = \"none\"\n".to_owned(),
        Auth::Basic { user } => format!(
            "auth_type = \"basic\"\nusername = {}\npassword = \"${{ATLAS_OPENEHR_PASSWORD}}\"\n",
            quoted(user)
        ),
        Auth::Bearer => "auth_type = \"bearer\"\ntoken = \"${ATLAS_OPENEHR_TOKEN}\"\n".to_owned(),
        Auth::Oidc {
            token_url,
            client_id,
        } => format!(
            "auth_type = \"oidc\"\noidc_token_url = {}\nclient_id = {}\nclient_secret = \"${{ATLAS_OPENEHR_CLIENT_SECRET}}\"\n",
            quoted(token_url),
            quoted(client_id)
        ),
    };
    let templates = serde_json::Value::from(answers.template_ids.clone());
    let store = match &answers.store {
        Store::Sqlite { path } => format!("[sqlite]\npath = {}\n", quoted(path)),
        Store::Postgresql { connection } => {
            let written = match secret {
                Some(_) => format!("${{{TYPED_CONNECTION}}}"),
                None => connection.clone(),
            };
            format!(
                "[postgresql]\nconnection_string = {}\n{}",
                quoted(&written),
                ssl_mode(connection)
            )
        }
    };
    let mut text = format!(
        "\
# Configuration of Atlas. Secrets stay outside: ${{NAME}} is replaced by an environment variable,
# or by a line of the file `.env` beside this one. Try it with `atlas doctor`.

# production refuses plain http and unverified TLS to other hosts, secrets in this file and short tokens; the others say so.
environment = \"development\"
# sqlite or postgresql
database_target = \"{target}\"

[openehr]
base_url = {}
{auth}
[openehr.query]
# Empty means all templates of the server; `atlas discover` lists them.
template_ids = {templates}
# Queries at the same time, of all processes together: 2 take most of what a server can give away.
parallel = 2

[export]
# incremental reads what is new, full everything again.
mode = \"incremental\"
export_composition_format = \"canonical\"

{store}",
        quoted(&answers.base_url)
    );
    if with_examples {
        text.push_str(EXAMPLES);
    }
    text
}

/// The line, and what it means.
fn ssl_mode(connection: &str) -> String {
    let Some(mode) = suggested_ssl_mode(connection) else {
        return String::new();
    };
    let reason = match mode.name() {
        "disable" => {
            "A server on this machine needs no TLS. Remove this line for one on another host: then its certificate is checked."
        }
        _ => {
            "The server's certificate is checked; `ssl_root_cert` names the authority that signed it, if the system does not know it."
        }
    };
    format!("# {reason}\nssl_mode = \"{}\"\n", mode.name())
}

/// A TOML string: what JSON escapes, TOML reads the same.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Everything else, with its default.
const EXAMPLES: &str = "
# ---- Everything below is optional and shows the defaults or an example. ----

# [application]
# log_level = \"info\"

# [openehr] also has:
# vendor = \"ehrbase\"                 # ehrbase, better or ocean; probed when absent
# tls_verify = true
# tls_ca_cert = \"/etc/atlas/ca.pem\"
# tls_client_cert = \"/etc/atlas/client.pem\"
# tls_client_key = \"/etc/atlas/client.key\"
# timeout_seconds = 60

# [openehr.retry]
# max_retries = 3
# initial_delay_ms = 1000
# max_delay_ms = 30000
# backoff_multiplier = 2.0

# [openehr.query] also has:
# ehr_ids = []
# time_range_start = \"2024-01-01\"    # commit times
# time_range_end = \"2025-01-01T00:00:00Z\"
# batch_size = 1000

# [export] also has:
# max_retries = 3
# retry_backoff_ms = [1000, 2000, 4000]
# shutdown_timeout_secs = 30
# dry_run = false
# safety_lag_seconds = 60
# overlap_seconds = 900
# slice_size = 20000
# memory_mb = 64
# max_composition_mb = 24

# [state]
# lease_seconds = 15
# heartbeat_seconds = 3
# keep_runs_days = 90

# [postgresql] also has:
# max_connections = 20
# connection_timeout_seconds = 30
# statement_timeout_seconds = 60
# ssl_root_cert = \"/etc/atlas/ca.pem\"
# schema = \"openehr\"

# [logging]
# local_enabled = true
# local_path = \"logs\"
# local_rotation = \"daily\"
# local_max_size_mb = 100
# local_max_files = 30
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The answers to what a person typed, and how many questions there were.
    fn answered(typed: &str) -> (Answers, usize) {
        let mut questions = Vec::new();
        let answers = prompt(&mut typed.as_bytes(), &mut questions).unwrap();
        (
            answers,
            String::from_utf8(questions).unwrap().matches("]: ").count(),
        )
    }

    #[test]
    fn what_is_written_loads_whatever_was_answered() {
        for typed in [
            "",
            "https://cdr.example.org/ehrbase\nnone\nall\nsqlite\ncopy \"1\".db\n",
            "\nbearer\na, b\npostgresql\n\n",
            "\noidc\nhttps://login.example.org/t\nclient\n\npostgresql\n\n",
            "\nnone\nall\npostgresql\npostgresql://atlas:${ATLAS_PG_PASSWORD}@db.example.org/d\n",
            "\nnone\nall\npostgresql\nhost=/var/run/postgresql dbname=d\n",
            "\nnone\nall\npostgresql\npostgresql://atlas@localhost/d?sslmode=require\n",
        ] {
            let (answers, questions) = answered(typed);
            assert!(questions <= 7, "{questions}");
            for with_examples in [false, true] {
                let secret = answers.typed_secret().ok().unwrap();
                let text = render(&answers, secret, with_examples);
                let environment = placeholders(secret);
                let parsed = Settings::parse(&text, Path::new("atlas.toml"), &environment, &[]);
                assert!(parsed.is_ok(), "{}\n{text}", parsed.unwrap_err());
                assert!(parsed.unwrap().notices.is_empty());
            }
        }
    }

    /// Saves the answers in a folder; whether that worked.
    fn saved(folder: &Path, connection: &str) -> bool {
        let (answers, _) = answered(&format!("\nnone\nall\npostgresql\n{connection}\n"));
        let arguments = Init {
            output: folder.join("atlas.toml"),
            with_examples: false,
            force: true,
        };
        save(&answers, &arguments).is_ok()
    }

    #[test]
    fn a_secret_that_was_typed_is_in_the_private_file_only() {
        use std::os::unix::fs::PermissionsExt;

        for connection in [
            "postgresql://atlas:TYPEDSECRET@db:5432/x",
            "postgres://atlas:TYPED'SECRET%40@localhost/d?sslmode=disable",
            "postgresql:///d?host=db&user=atlas&password=TYPEDSECRET",
            "host=db user=atlas dbname=d password='TYPED SECRET'",
            "postgresql://a:TYPEDSECRET@one,two/d",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let dotenv = folder.path().join(".env");
            atlas_files::write(&dotenv, "FIRST=1").unwrap();
            assert!(saved(folder.path(), connection), "{connection}");
            let text = std::fs::read_to_string(folder.path().join("atlas.toml")).unwrap();
            assert!(!text.contains("TYPED"), "{text}");
            let environment = Environment::default().with_dotenv(folder.path()).unwrap();
            assert_eq!(environment.get(TYPED_CONNECTION), Some(connection));
            assert_eq!(environment.get("FIRST"), Some("1"));
            Settings::parse(&text, Path::new("atlas.toml"), &environment, &[]).unwrap();

            // The second answer counts, unless others could read it.
            let again = connection.replace("TYPED", "TYPED2");
            assert!(saved(folder.path(), &again));
            let environment = Environment::default().with_dotenv(folder.path()).unwrap();
            assert_eq!(environment.get(TYPED_CONNECTION), Some(again.as_str()));
            std::fs::set_permissions(&dotenv, PermissionsExt::from_mode(0o640)).unwrap();
            assert!(!saved(folder.path(), connection));
        }
    }

    #[test]
    fn what_is_no_secret_or_cannot_be_read_goes_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        for connection in [
            "postgresql://atlas:${ATLAS_PG_PASSWORD}@db/d",
            "postgresql://atlas@db/d",
            "host=db dbname=d password=${ATLAS_PG_PASSWORD}",
        ] {
            assert!(saved(folder.path(), connection), "{connection}");
        }
        for connection in [
            "postgresql://atlas:TYPED@:badport/x",
            "host=db password=TYPED TYPED",
            "mysql://atlas:TYPED@db/d",
            "postgresql://atlas:TYPED@db/${ATLAS_PG_PASSWORD}",
        ] {
            let other = tempfile::tempdir().unwrap();
            assert!(!saved(other.path(), connection), "{connection}");
            assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
        }
        assert!(!folder.path().join(".env").exists());
    }

    #[test]
    fn a_local_server_needs_no_tls_and_any_other_is_checked() {
        for (connection, mode) in [
            ("", "disable"),
            ("postgresql://atlas@127.0.0.1/d", "disable"),
            ("host=/var/run/postgresql", "disable"),
            ("postgresql://atlas@db.example.org/d", "verify-full"),
            ("postgresql://atlas@localhost,db/d", "verify-full"),
        ] {
            let (answers, _) = answered(&format!("\nnone\nall\npostgresql\n{connection}\n"));
            let text = render(&answers, None, false);
            let line = format!("\nssl_mode = \"{mode}\"\n");
            assert!(text.contains(&line), "{connection}: {text}");
        }
    }

    #[test]
    fn every_example_line_names_a_key_that_exists() {
        let mut text = render(&Answers::default(), None, false);
        // The sections that are there already are continued, the others begun.
        for block in EXAMPLES
            .split("\n\n")
            .filter(|block| block.starts_with("# ["))
        {
            let lines: Vec<&str> = block
                .lines()
                .map(|line| line.trim_start_matches("# "))
                .collect();
            let (section, is_more) = match lines[0].strip_suffix(" also has:") {
                Some(section) => (section, true),
                None => (lines[0], false),
            };
            let keys = lines[1..].join("\n");
            if is_more && text.contains(&format!("{section}\n")) {
                text = text.replace(&format!("{section}\n"), &format!("{section}\n{keys}\n"));
            } else {
                text.push_str(&format!("\n{section}\n{keys}\n"));
            }
        }
        let parsed = Settings::parse(&text, Path::new("atlas.toml"), &placeholders(None), &[]);
        assert!(parsed.is_ok(), "{}\n{text}", parsed.unwrap_err());
    }
}
