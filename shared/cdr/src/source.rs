//! The port's methods, one by one.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use atlas_engine::checked::is_made_up;
use atlas_engine::model::{Census, Cursor, Meta, Page, Scope, Usage};
use atlas_engine::ports::{Compositions, Definitions, FlatOracle, Source};
use atlas_engine::{Error, ErrorKind, Result};
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::json::{Kind, Tape};
use atlas_openehr::time::Instant;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{StatusCode, Url};
use tracing::debug;

use crate::config::{Config, Vendor, address};
use crate::dialect::{self, Query};
use crate::failure::{Failure, RequestSubject};
use crate::http::{Answer, Body, Call, Http};
use crate::table::{self, Asked};

const JSON: &str = "application/json";
const WEB_TEMPLATE: &str = "application/openehr.wt+json, application/json;q=0.9";
const REST: [&str; 3] = ["rest", "openehr", "v1"];

/// What RFC 3986 does not allow in a segment of a path, and what servers read as more than text in it (`;`, `+`, …).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// The same for a path that a person wrote: it has segments and may be encoded in part.
const PATH: &AsciiSet = &SEGMENT
    .remove(b'/')
    .remove(b'%')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// An openEHR server over REST and AQL.
pub struct Cdr {
    http: Http,
    /// Without `/rest/openehr/v1` and without a slash at the end.
    base: Url,
    /// Rows in one answer at most, as far as the server refused more.
    most_rows: AtomicUsize,
}

/// What a server says about itself, for a person who checks a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// `None` if it does not say.
    pub vendor: Option<Vendor>,
    /// As the server says it; `None` also if that is no version, whatever else it may be.
    pub version: Option<String>,
    /// The server's own clock when it answered, in whole seconds.
    pub server_time: Instant,
}

impl Cdr {
    /// Checks the configuration and reads the files it names. Nothing is sent before the first question.
    ///
    /// # Errors
    /// `Usage`, with the key that is wrong; a vendor whose dialect is not known yet.
    pub fn connect(config: Config) -> Result<Self> {
        dialect::check(config.vendor)?;
        let base = base(&config.base_url)?;
        Ok(Self {
            http: Http::new(&config, &base)?,
            base,
            most_rows: AtomicUsize::new(usize::MAX),
        })
    }

    /// Asks the server who it is, with the configured credentials. One request; two for a server that does not say.
    ///
    /// # Errors
    /// What a [`Source`] answers when the server cannot be reached, refuses the credentials, or is none.
    pub async fn server_info(&self) -> Result<ServerInfo> {
        let call = Call {
            action: "ask the server for its version",
            subject: RequestSubject::Facts,
            url: self.url(&["rest", "status"])?,
            accept: JSON,
            body: None,
        };
        let said = self
            .http
            .try_call(&call, |answer| {
                let tape = Tape::parse(&answer.text).map_err(Failure::json)?;
                let said = tape.root(&answer.text).get("ehrbase_version");
                let said = said.and_then(|version| version.as_str());
                let says_version = said.is_some();
                let version = said.filter(|version| is_version(version)).map(String::from);
                Ok(ServerInfo {
                    vendor: says_version.then_some(Vendor::EhrBase),
                    version,
                    server_time: answer.date.ok_or(Failure::NoDate)?,
                })
            })
            .await;
        match said {
            // Only EHRbase has this address: any openEHR server has templates.
            Err(Failure::Status {
                status: StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED,
                ..
            }) => {
                self.http
                    .call(&self.templates_call()?, |answer| {
                        table::templates(&answer.text)?;
                        Ok(ServerInfo {
                            vendor: None,
                            version: None,
                            server_time: answer.date.ok_or(Failure::NoDate)?,
                        })
                    })
                    .await
            }
            said => said.map_err(|failure| failure.into_error(call.action, call.subject)),
        }
    }

    /// Asks for as many rows as the server gives: a refusal because of their number is learnt from, once for all. Whether it is
    /// because of their number, the refusal says, or the same question for a single row.
    async fn query<T>(
        &self,
        action: &'static str,
        subject: RequestSubject,
        query: &Query,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut fetch = query.fetch.min(self.most_rows.load(Ordering::Relaxed));
        let url = self.rest(&["query", "aql"])?;
        let ask = |fetch| Call {
            action,
            subject,
            url: url.clone(),
            accept: JSON,
            body: Some(Body {
                json: query.to_json(fetch),
                fetch,
            }),
        };
        let mut is_learning = false;
        loop {
            let answer = self.http.try_call(&ask(fetch), &read).await;
            let refusal = answer.as_ref().err().and_then(Failure::refusal_of_many);
            let fewer = match refusal {
                Some(refusal) if is_learning || refusal.is_about_rows => Some(refusal.fewer),
                Some(refusal) => {
                    let single = self.http.try_call(&ask(1), |_| Ok(())).await;
                    single.is_ok().then_some(refusal.fewer)
                }
                None => None,
            };
            match fewer {
                Some(fewer) => (fetch, is_learning) = (fewer, true),
                None => {
                    // Any other failure is not about the number of rows.
                    if is_learning && !matches!(answer, Err(Failure::Refused { .. })) {
                        self.most_rows.fetch_min(fetch, Ordering::Relaxed);
                        debug!(
                            rows = fetch,
                            "the server gives at most {fetch} rows in one answer"
                        );
                    }
                    return answer.map_err(|failure| failure.into_error(action, subject));
                }
            }
        }
    }

    /// One answer about some objects.
    async fn fetch_once(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        let asked = Asked {
            scope,
            in_order: false,
            after: None,
        };
        self.query(
            FETCH,
            RequestSubject::Page,
            &dialect::fetch(scope, objects),
            |answer| table::page(answer.text, asked),
        )
        .await
    }

    fn templates_call(&self) -> Result<Call> {
        Ok(Call {
            action: "list the server's templates",
            subject: RequestSubject::Facts,
            url: self.rest(&["definition", "template", "adl1.4"])?,
            accept: JSON,
            body: None,
        })
    }

    fn rest(&self, segments: &[&str]) -> Result<Url> {
        self.url(&[&REST, segments].concat())
    }

    /// Each segment is percent-encoded.
    fn url(&self, segments: &[&str]) -> Result<Url> {
        let mut path = self.base.path().trim_end_matches('/').to_owned();
        for segment in segments {
            // They would climb to another address, encoded or not.
            if matches!(*segment, "" | "." | "..") {
                return Err(Error::new(
                    ErrorKind::UnknownTemplate,
                    "ask for a template by a name that is no segment of a path",
                ));
            }
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        let mut url = self.base.clone();
        url.set_path(&path);
        Ok(url)
    }
}

const FETCH: &str = "read compositions by uid";

#[async_trait]
impl Compositions for Cdr {
    async fn census(&self, scope: &Scope) -> Result<Census> {
        self.query(
            "count new compositions by template",
            RequestSubject::Facts,
            &dialect::census(scope),
            |answer| {
                let census = Census {
                    server_time: answer.date.ok_or(Failure::NoDate)?,
                    lines: table::census(&answer.text)?,
                };
                let last_commits = census.lines.iter().map(|line| line.last);
                self.http.clock().check(census.server_time, last_commits)?;
                Ok(census)
            },
        )
        .await
    }

    async fn count(&self, scope: &Scope) -> Result<u64> {
        if scope.window.is_empty() {
            return Ok(0);
        }
        self.query(
            "count compositions",
            RequestSubject::Facts,
            &dialect::count(scope),
            |answer| table::count(&answer.text),
        )
        .await
    }

    async fn page(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Page> {
        if scope.window.is_empty() || limit == 0 {
            return Ok(Page::default());
        }
        self.query(
            "read a page of compositions",
            RequestSubject::Page,
            &dialect::page(scope, after, limit),
            |answer| {
                let in_order = true;
                table::page(
                    answer.text,
                    Asked {
                        scope,
                        in_order,
                        after,
                    },
                )
            },
        )
        .await
    }

    async fn list(&self, scope: &Scope, after: Option<&Cursor>, limit: usize) -> Result<Vec<Meta>> {
        if scope.window.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        self.query(
            "list compositions",
            RequestSubject::Facts,
            &dialect::list(scope, after, limit),
            |answer| {
                let in_order = true;
                table::list(
                    &answer.text,
                    Asked {
                        scope,
                        in_order,
                        after,
                    },
                )
            },
        )
        .await
    }

    async fn fetch(&self, scope: &Scope, objects: &[ObjectId]) -> Result<Page> {
        if objects.is_empty() || scope.window.is_empty() {
            return Ok(Page::default());
        }
        if objects.iter().any(is_made_up) {
            return Err(Error::new(
                ErrorKind::SourceUnreadable,
                "read a composition by uid: the server shows none for it",
            ));
        }
        let mut missing = objects.to_vec();
        let mut pages = Vec::new();
        // Whatever caps answers, a short one says nothing about the rest: only one that has nothing of what was asked for
        // says that it is gone.
        while !missing.is_empty() {
            let size = missing.len().min(self.most_rows.load(Ordering::Relaxed));
            let rest = missing.split_off(size);
            let page = self.fetch_once(scope, &missing).await?;
            let rows = page.rows.iter().map(|row| &row.meta);
            let misfits = page.misfits.iter().map(|misfit| &misfit.meta);
            let found: HashSet<&ObjectId> = rows
                .chain(misfits)
                .map(|meta| meta.uid.object_id())
                .collect();
            missing.retain(|object| !found.contains(object));
            if missing.len() == size {
                missing.clear();
            }
            missing.extend(rest);
            pages.push(page);
        }
        if pages.len() == 1 {
            return Ok(pages.pop().unwrap_or_default());
        }
        let texts: Vec<String> = pages.into_iter().map(|page| page.text).collect();
        let asked = Asked {
            scope,
            in_order: false,
            after: None,
        };
        let bytes = texts.iter().map(String::len).sum();
        self.http
            .check_size(bytes)
            .and_then(|()| table::joined(&texts, asked))
            .map_err(|failure| failure.into_error(FETCH, RequestSubject::Page))
    }
}

#[async_trait]
impl Definitions for Cdr {
    async fn templates(&self) -> Result<Vec<TemplateId>> {
        self.http
            .call(&self.templates_call()?, |answer| {
                table::templates(&answer.text)
            })
            .await
    }

    async fn web_template(&self, template: &TemplateId) -> Result<String> {
        let call = Call {
            action: "read a web template",
            subject: RequestSubject::Template,
            url: self.rest(&["definition", "template", "adl1.4", template.as_str()])?,
            accept: WEB_TEMPLATE,
            body: None,
        };
        self.http.call(&call, object).await
    }
}

#[async_trait]
impl FlatOracle for Cdr {
    async fn flat(&self, meta: &Meta) -> Result<String> {
        let mut url = self.rest(&["ehr", meta.ehr.as_str(), "composition", meta.uid.as_str()])?;
        url.query_pairs_mut().append_pair("format", "FLAT");
        let call = Call {
            action: "read a composition as FLAT",
            subject: RequestSubject::Composition,
            url,
            accept: JSON,
            body: None,
        };
        // No content: deleted since it was listed.
        self.http.call(&call, object).await
    }
}

impl Source for Cdr {
    fn usage(&self) -> Usage {
        self.http.usage()
    }
}

/// The text of an answer that is one JSON object.
fn object(answer: Answer) -> Result<String, Failure> {
    if answer.status == StatusCode::NO_CONTENT {
        return Err(Failure::Status {
            status: answer.status,
            retry_after: None,
        });
    }
    let tape = Tape::parse(&answer.text).map_err(Failure::json)?;
    match tape.root(&answer.text).kind() {
        Kind::Object => Ok(answer.text),
        _ => Err(Failure::Shape("a JSON object was expected")),
    }
}

/// Whether a text has the form of a version, such as `2.16.0` or `1.0.0-SNAPSHOT+b7`: no other text of a server is shown.
fn is_version(text: &str) -> bool {
    const LONGEST: usize = 40;
    text.len() <= LONGEST
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-+_".contains(&byte))
}

/// Cuts what users add to the address, and it becomes one that path segments can be put behind.
fn base(text: &str) -> Result<Url> {
    let mut url = address(text, "openehr.base_url")?;
    let path = url.path().trim_end_matches('/');
    let path = path
        .strip_suffix("/rest/openehr/v1")
        .unwrap_or(path)
        .trim_end_matches('/');
    let path = utf8_percent_encode(path, PATH).to_string();
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cdr(base_url: &str) -> Cdr {
        Cdr::connect(Config::new(base_url)).unwrap()
    }

    #[test]
    fn the_address_may_come_with_and_without_the_path_of_the_api() {
        for (given, expected) in [
            (
                "http://h/ehrbase",
                "http://h/ehrbase/rest/openehr/v1/query/aql",
            ),
            (
                "http://h/ehrbase/",
                "http://h/ehrbase/rest/openehr/v1/query/aql",
            ),
            (
                "http://h:8080/ehrbase/rest/openehr/v1",
                "http://h:8080/ehrbase/rest/openehr/v1/query/aql",
            ),
            (
                "http://h/ehrbase/rest/openehr/v1/",
                "http://h/ehrbase/rest/openehr/v1/query/aql",
            ),
            ("http://h", "http://h/rest/openehr/v1/query/aql"),
            (
                "http://h/rest/openehr/v1",
                "http://h/rest/openehr/v1/query/aql",
            ),
        ] {
            assert_eq!(
                cdr(given).rest(&["query", "aql"]).unwrap().as_str(),
                expected
            );
        }
    }

    #[test]
    fn a_template_name_becomes_one_segment_of_the_path() {
        let url = cdr("http://h/e")
            .rest(&["template", "Vital signs/é?#%41"])
            .unwrap();
        assert_eq!(
            url.as_str(),
            "http://h/e/rest/openehr/v1/template/Vital%20signs%2F%C3%A9%3F%23%2541"
        );
    }

    #[test]
    fn every_segment_follows_rfc_3986() {
        let printable: String = (' '..='~').collect();
        for (name, expected) in [
            ("Vitals [draft]", "Vitals%20%5Bdraft%5D"),
            ("a|b", "a%7Cb"),
            ("x^y", "x%5Ey"),
            ("a`b{c}<d>\"e\\f", "a%60b%7Bc%7D%3Cd%3E%22e%5Cf"),
            ("a;b=c+d&e", "a%3Bb%3Dc%2Bd%26e"),
            ("%41%", "%2541%25"),
            ("...", "..."),
            ("naïve\u{7f}\n", "na%C3%AFve%7F%0A"),
            ("uuid::sys.org::1", "uuid::sys.org::1"),
        ] {
            let url = cdr("http://h/e").rest(&["template", name]).unwrap();
            let path = format!("/e/rest/openehr/v1/template/{expected}");
            assert_eq!(url.path(), path);
        }
        let url = cdr("http://h/e").rest(&["template", &printable]).unwrap();
        let segment = url.path().rsplit('/').next().unwrap();
        assert!(
            segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._~:%".contains(&byte)),
            "{segment}"
        );
        let decoded = percent_encoding::percent_decode_str(segment);
        assert_eq!(decoded.decode_utf8().unwrap(), printable);
    }

    #[test]
    fn a_name_that_climbs_in_the_path_reaches_no_other_address() {
        for name in [".", "..", ""] {
            let error = cdr("http://h/e").rest(&["template", name]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownTemplate);
        }
    }

    #[test]
    fn the_path_of_the_address_is_encoded_as_well() {
        for (given, path) in [
            ("http://h/a b/[x]|y", "/a%20b/%5Bx%5D%7Cy/rest/status"),
            ("http://h/a%20b/%5Bx%5D", "/a%20b/%5Bx%5D/rest/status"),
            ("http://h/~user/v1;x=1/", "/~user/v1;x=1/rest/status"),
        ] {
            assert_eq!(cdr(given).url(&["rest", "status"]).unwrap().path(), path);
        }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_at_once() {
        for wrong in [
            "",
            "cdr.example.org/ehrbase",
            "ftp://h/ehrbase",
            "http://user:secret@h/ehrbase",
            "http://h/ehrbase?x=1",
            "http://h/#x",
        ] {
            let error = Cdr::connect(Config::new(wrong)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.help().is_some());
            assert!(!error.chain().contains("secret"));
        }
    }

    #[test]
    fn a_vendor_whose_dialect_was_never_tried_is_refused() {
        for vendor in [Vendor::Better, Vendor::Ocean] {
            let error = Cdr::connect(Config {
                vendor: Some(vendor),
                ..Config::new("http://h/ehrbase")
            })
            .err()
            .unwrap();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains("not yet"));
        }
    }
}
