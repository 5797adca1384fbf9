//! The bare HTTP client that an export is measured against: it downloads the
//! same AQL pages, one after the other, and throws them away, and web templates
//! if it is asked to. Where each page begins is found out beforehand, so that it
//! has nothing to parse.

use std::ops::Add;
use std::time::{Duration, Instant};

use atlas_ehrbase::EhrBase;
use reqwest::RequestBuilder;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use xtask::Result;

/// Compositions in a page.
pub(crate) const FETCH: u32 = 500;
const FROM: &str = "FROM EHR e CONTAINS VERSION v[LATEST_VERSION] CONTAINS COMPOSITION c";
const TIME: &str = "v/commit_audit/time_committed";
const TEMPLATE: &str = "c/archetype_details/template_id/value";
/// Commit time and object id.
const BEFORE_ALL: (&str, &str) = (
    "1970-01-01T00:00:00Z",
    "00000000-0000-0000-0000-000000000000",
);

/// How a server is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One template after the other, each in the order of its commits.
    Templates,
    /// Everything in the order of its commits.
    Commits,
}

/// The pages of everything that a server holds.
pub(crate) struct Pages {
    order: Order,
    parameters: Vec<Value>,
    pub(crate) compositions: usize,
    /// Those that have compositions.
    pub(crate) templates: Vec<String>,
}

/// One complete download.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Download {
    pub(crate) requests: usize,
    pub(crate) time: Duration,
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
struct Answer<Row> {
    rows: Vec<Row>,
}

impl Add for Download {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            time: self.time + other.time,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Pages {
    pub(crate) async fn plan(ehrbase: &EhrBase, order: Order) -> Result<Self> {
        let query = format!("SELECT {TEMPLATE}, COUNT(v/uid/value) {FROM}");
        let text = ehrbase.aql(&query, &json!({}), 100_000).await?;
        let templates: Answer<(String, u64)> = serde_json::from_str(&text)?;
        let mut pages = Self {
            order,
            parameters: Vec::new(),
            compositions: 0,
            templates: templates.rows.into_iter().map(|(id, _)| id).collect(),
        };
        match order {
            Order::Templates => {
                for template in pages.templates.clone() {
                    let named = Map::from_iter([("template".to_owned(), template.into())]);
                    pages.add(ehrbase, named).await?;
                }
            }
            Order::Commits => pages.add(ehrbase, Map::new()).await?,
        }
        Ok(pages)
    }

    /// Finds the pages of a question, all but their places in its parameters.
    async fn add(&mut self, ehrbase: &EhrBase, parameters: Map<String, Value>) -> Result<()> {
        let condition = match self.order {
            Order::Templates => format!("WHERE {TEMPLATE} = $template"),
            Order::Commits => String::new(),
        };
        let query = format!(
            "SELECT v/uid/value, {TIME}/value {FROM} {condition} ORDER BY {TIME}, v/uid/value"
        );
        let text = ehrbase
            .aql(&query, &Value::Object(parameters.clone()), 1_000_000)
            .await?;
        let list: Answer<(String, String)> = serde_json::from_str(&text)?;
        self.compositions += list.rows.len();
        let mut after = BEFORE_ALL;
        for page in list.rows.chunks(FETCH as usize) {
            let (time, uid) = after;
            let mut parameters = parameters.clone();
            parameters.insert("after".to_owned(), time.into());
            parameters.insert("uid".to_owned(), uid.into());
            self.parameters.push(Value::Object(parameters));
            if let Some((uid, time)) = page.last() {
                after = (time, uid.split("::").next().unwrap_or(uid));
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Downloads every page over one connection and drops it.
    pub(crate) async fn download(&self, ehrbase: &EhrBase) -> Result<Download> {
        let condition = match self.order {
            Order::Templates => format!("{TEMPLATE} = $template AND "),
            Order::Commits => String::new(),
        };
        let query = format!(
            "SELECT v/uid/value, {TIME}, e/ehr_id/value, {TEMPLATE}, v/commit_audit/change_type/value, c {FROM} \
             WHERE {condition}{TIME} >= $after AND ({TIME} > $after OR v/uid/value > $uid) \
             ORDER BY {TIME}, v/uid/value"
        );
        let start = Instant::now();
        let mut bytes = 0;
        for parameters in &self.parameters {
            bytes += drained(ehrbase.aql_request(&query, parameters, FETCH)).await?;
        }
        Ok(Download {
            requests: self.parameters.len(),
            time: start.elapsed(),
            bytes,
        })
    }

    /// Downloads the web template of each template once, over one connection, and drops it.
    pub(crate) async fn download_web_templates(&self, ehrbase: &EhrBase) -> Result<Download> {
        let start = Instant::now();
        let mut bytes = 0;
        for template in &self.templates {
            bytes += drained(ehrbase.web_template_request(template)).await?;
        }
        Ok(Download {
            requests: self.templates.len(),
            time: start.elapsed(),
            bytes,
        })
    }
}

/// Reads an answer to its end; says how long it was.
async fn drained(request: RequestBuilder) -> Result<u64> {
    let mut answer = request.send().await?.error_for_status()?;
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await? {
        bytes += chunk.len() as u64;
    }
    Ok(bytes)
}
