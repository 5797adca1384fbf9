//! A running EHRbase, and what tests ask of it over its REST API.

use std::path::PathBuf;
use std::time::Duration;

use atlas_machine::Jdk;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::error::{Context, Error, ErrorKind, Result, chain};
use crate::launcher;
use crate::postgres::Postgres;
use crate::process::{Guarded, temporary_folder};

const START_LIMIT: Duration = Duration::from_secs(180);
const DATABASE: &str = "ehrbase";
/// Owner of the schema; EHRbase migrates as it.
const OWNER: &str = "ehrbase";
/// What EHRbase works as.
const WORKER: &str = "ehrbase_restricted";
const PASSWORD: &str = "atlas-tests";
/// What is encoded in a segment of a path; the server refuses a dot that is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.');

/// Where a server is and who may ask it. For tests on the loopback interface:
/// the passwords are no secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Access {
    /// Without `/rest/openehr/v1`, such as `http://127.0.0.1:8080/ehrbase`.
    pub base_url: String,
    /// May read and write records.
    pub user: String,
    /// Of `user`.
    pub password: String,
    /// May also erase records.
    pub admin_user: String,
    /// Of `admin_user`.
    pub admin_password: String,
}

/// An EHRbase: one of our own, ended when this is dropped (or this process
/// dies), or one that somebody lent us.
pub struct EhrBase {
    access: Access,
    http: reqwest::Client,
    /// Held to be dropped.
    _own: Option<Guarded>,
}

impl EhrBase {
    /// Starts EHRbase on a free port of the loopback interface, with its data in
    /// the database `ehrbase` of `postgres`, which is made if it is not there.
    /// The first start on a machine builds the program, which takes a minute.
    pub async fn start(postgres: &Postgres) -> Result<Self> {
        let (jdk, jar) = tokio::task::spawn_blocking(|| -> Result<_> {
            let jdk = Jdk::find()?;
            let jar = launcher::jar(&jdk)?;
            Ok((jdk, jar))
        })
        .await
        .context(ErrorKind::System, "build EHRbase")??;
        if !postgres.has_database(DATABASE).await? {
            make_database(postgres).await?;
        }
        let folder = temporary_folder()?;
        let port_file = folder.path().join("port");
        let access = Access {
            base_url: String::new(),
            user: "atlas".to_owned(),
            password: PASSWORD.to_owned(),
            admin_user: "atlas-admin".to_owned(),
            admin_password: PASSWORD.to_owned(),
        };
        let mut arguments = vec![
            "-Xmx1g".to_owned(),
            // Else the Java machine leaves files outside its folder when it is killed.
            "-XX:-UsePerfData".to_owned(),
            format!("-Djava.io.tmpdir={}", folder.path().display()),
            format!("-DPORTFILE={}", port_file.display()),
            "-jar".to_owned(),
            jar.display().to_string(),
        ];
        let datasource = format!("jdbc:postgresql://127.0.0.1:{}/{DATABASE}", postgres.port());
        let settings = [
            ("server.address", "127.0.0.1"),
            ("server.port", "0"),
            ("spring.datasource.url", &datasource),
            ("spring.datasource.username", WORKER),
            ("spring.datasource.password", PASSWORD),
            ("spring.flyway.user", OWNER),
            ("spring.flyway.password", PASSWORD),
            ("security.authType", "BASIC"),
            ("security.authUser", &access.user),
            ("security.authPassword", &access.password),
            ("security.authAdminUser", &access.admin_user),
            ("security.authAdminPassword", &access.admin_password),
            ("admin-api.active", "true"),
        ];
        arguments.extend(settings.map(|(key, value)| format!("--{key}={value}")));
        let server = Guarded::start(folder, "KILL", None, &jdk.java(), &arguments)?;
        let mut ehrbase = Self {
            access,
            http: client()?,
            _own: None,
        };
        ehrbase.wait_until_ready(server, port_file).await?;
        Ok(ehrbase)
    }

    /// Uses a server that runs already.
    pub fn attach(access: Access) -> Result<Self> {
        Ok(Self {
            access,
            http: client()?,
            _own: None,
        })
    }

    /// Waits until the server has written its port and its status answers.
    async fn wait_until_ready(&mut self, mut server: Guarded, port_file: PathBuf) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            server.check("EHRbase")?;
            // Not there, or not yet complete: the next round looks again.
            let port = std::fs::read_to_string(&port_file).ok();
            if let Some(port) = port.and_then(|text| text.trim().parse::<u16>().ok()) {
                self.access.base_url = format!("http://127.0.0.1:{port}/ehrbase");
                match self.status().await {
                    Ok(StatusCode::OK) => break,
                    Ok(status) => return Err(server.failure(&format!("status says {status}"))),
                    Err(_) if Instant::now() < deadline => {}
                    Err(error) => return Err(server.failure(&chain(&error))),
                }
            }
            if Instant::now() > deadline {
                return Err(server.failure("EHRbase was not ready in time"));
            }
            sleep(Duration::from_millis(100)).await;
        }
        self._own = Some(server);
        Ok(())
    }

    /// Ends the server, unless it was lent. Dropping it does the same.
    pub fn stop(self) {}

    /// Where the server is and who may ask it.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Without `/rest/openehr/v1`, such as `http://127.0.0.1:8080/ehrbase`.
    pub fn base_url(&self) -> &str {
        &self.access.base_url
    }

    /// May read and write records.
    pub fn user(&self) -> &str {
        &self.access.user
    }

    /// Of [`Self::user`].
    pub fn password(&self) -> &str {
        &self.access.password
    }

    /// A request of the openEHR API by `user`, at a path after `/rest/openehr/v1/`;
    /// for what has no method here.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let Access {
            base_url,
            user,
            password,
            ..
        } = &self.access;
        self.http
            .request(method, format!("{base_url}/rest/openehr/v1/{path}"))
            .basic_auth(user, Some(password))
    }

    /// What the status page answers.
    pub async fn status(&self) -> Result<StatusCode> {
        let Access {
            base_url,
            user,
            password,
            ..
        } = &self.access;
        let answer = self
            .http
            .get(format!("{base_url}/rest/status"))
            .basic_auth(user, Some(password))
            .send()
            .await
            .context(ErrorKind::Connection, "ask EHRbase for its status")?;
        Ok(answer.status())
    }

    /// Loads an operational template (ADL 1.4, XML).
    pub async fn post_template(&self, xml: String) -> Result<()> {
        let request = self
            .request(Method::POST, "definition/template/adl1.4")
            .header(CONTENT_TYPE, "application/xml")
            .body(xml);
        sent(request, "load a template").await?;
        Ok(())
    }

    /// The request of a web template.
    pub fn web_template_request(&self, template_id: &str) -> RequestBuilder {
        let segment = utf8_percent_encode(template_id, SEGMENT);
        self.request(
            Method::GET,
            &format!("definition/template/adl1.4/{segment}"),
        )
        .header("Accept", "application/openehr.wt+json")
    }

    /// Makes an EHR and answers its id.
    pub async fn create_ehr(&self) -> Result<String> {
        let answer = sent(self.request(Method::POST, "ehr"), "make an EHR").await?;
        tag(&answer, "make an EHR")
    }

    /// Stores a composition (canonical JSON without `uid`) and answers its version uid.
    pub async fn post_composition(&self, ehr_id: &str, canonical: &str) -> Result<String> {
        let action = "store a composition";
        let request = self
            .request(Method::POST, &format!("ehr/{ehr_id}/composition"))
            .header(CONTENT_TYPE, "application/json")
            .header("Prefer", "return=minimal")
            .body(canonical.to_owned());
        tag(&sent(request, action).await?, action)
    }

    /// Replaces a composition by a new version and answers that one's version uid.
    pub async fn put_composition(
        &self,
        ehr_id: &str,
        preceding_version_uid: &str,
        canonical: &str,
    ) -> Result<String> {
        let action = "replace a composition";
        let object_id = object_id(preceding_version_uid);
        let request = self
            .request(
                Method::PUT,
                &format!("ehr/{ehr_id}/composition/{object_id}"),
            )
            .header(CONTENT_TYPE, "application/json")
            // Without quotes, against the HTTP standard: EHRbase refuses them.
            .header(IF_MATCH, preceding_version_uid)
            .header("Prefer", "return=minimal")
            .body(canonical.to_owned());
        tag(&sent(request, action).await?, action)
    }

    /// Deletes a composition logically: its history stays.
    pub async fn delete_composition(&self, ehr_id: &str, version_uid: &str) -> Result<()> {
        let path = format!("ehr/{ehr_id}/composition/{version_uid}");
        sent(self.request(Method::DELETE, &path), "delete a composition").await?;
        Ok(())
    }

    /// Removes a composition with its history, as administrator.
    pub async fn erase_composition(&self, ehr_id: &str, version_uid: &str) -> Result<()> {
        let Access {
            base_url,
            admin_user,
            admin_password,
            ..
        } = &self.access;
        let object_id = object_id(version_uid);
        let url = format!("{base_url}/rest/admin/ehr/{ehr_id}/composition/{object_id}");
        let request = self
            .http
            .delete(url)
            .basic_auth(admin_user, Some(admin_password));
        sent(request, "erase a composition").await?;
        Ok(())
    }

    /// One version in canonical JSON, as the server wrote it.
    pub async fn get_canonical(&self, ehr_id: &str, version_uid: &str) -> Result<String> {
        self.get_text(ehr_id, version_uid, "application/json").await
    }

    /// One version in FLAT JSON, as the server wrote it.
    pub async fn get_flat(&self, ehr_id: &str, version_uid: &str) -> Result<String> {
        self.get_text(
            ehr_id,
            version_uid,
            "application/openehr.wt.flat.schema+json",
        )
        .await
    }

    async fn get_text(&self, ehr_id: &str, version_uid: &str, accept: &str) -> Result<String> {
        let action = "read a composition";
        let request = self
            .request(
                Method::GET,
                &format!("ehr/{ehr_id}/composition/{version_uid}"),
            )
            .header("Accept", accept);
        let answer = sent(request, action).await?;
        answer.text().await.context(ErrorKind::Connection, action)
    }

    /// Asks a query and answers what the server wrote: `{"meta", "q", "columns", "rows"}`.
    pub async fn aql(&self, query: &str, parameters: &Value, fetch: u32) -> Result<String> {
        let action = "ask a query";
        let answer = sent(self.aql_request(query, parameters, fetch), action).await?;
        answer.text().await.context(ErrorKind::Connection, action)
    }

    /// The request of a query, for tests that look at status and headers.
    pub fn aql_request(&self, query: &str, parameters: &Value, fetch: u32) -> RequestBuilder {
        self.request(Method::POST, "query/aql").json(&json!({
            "q": query,
            "query_parameters": parameters,
            "fetch": fetch,
        }))
    }
}

/// Waits as long as EHRbase can need for a large answer; never asks a proxy.
fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(300))
        .build()
        .context(ErrorKind::System, "make an HTTP client")
}

/// The answer of a request that has to succeed. Errors hold the status only:
/// what a server says may name ids and content.
async fn sent(request: RequestBuilder, action: &'static str) -> Result<Response> {
    let answer = request
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .context(ErrorKind::Connection, action)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    Err(Error::new(ErrorKind::Status(status.as_u16()), action).because(format!("status {status}")))
}

/// The id of what was just made, as `ETag` has it.
fn tag(answer: &Response, action: &'static str) -> Result<String> {
    answer
        .headers()
        .get(ETAG)
        .map(HeaderValue::to_str)
        .and_then(std::result::Result::ok)
        .map(|tag| tag.trim_matches('"').to_owned())
        .ok_or_else(|| Error::new(ErrorKind::Connection, action).because("the answer has no ETag"))
}

fn object_id(version_uid: &str) -> &str {
    version_uid.split("::").next().unwrap_or(version_uid)
}

/// The roles, schemas and settings that EHRbase expects to find.
async fn make_database(postgres: &Postgres) -> Result<()> {
    let roles = format!(
        "CREATE ROLE {OWNER} LOGIN SUPERUSER PASSWORD '{PASSWORD}';
         CREATE ROLE {WORKER} LOGIN PASSWORD '{PASSWORD}';"
    );
    postgres.execute("postgres", &roles).await?;
    postgres.create_database(DATABASE).await?;
    let schemas = format!(
        "ALTER DATABASE {DATABASE} OWNER TO {OWNER};
         ALTER DATABASE {DATABASE} SET search_path TO ext;
         ALTER DATABASE {DATABASE} SET intervalstyle = 'iso_8601';
         SET ROLE {OWNER};
         CREATE SCHEMA ehr;
         CREATE SCHEMA ext;
         CREATE EXTENSION \"uuid-ossp\" SCHEMA ext;
         GRANT USAGE ON SCHEMA ehr, ext TO {WORKER};
         ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA ehr
             GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {WORKER};"
    );
    postgres.execute(DATABASE, &schemas).await
}
