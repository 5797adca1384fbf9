//! The bare HTTP client that an export is measured against: it downloads the
//! same AQL pages, one after the other, and throws them away. Where each page
//! begins is found out beforehand, so that it has nothing to parse.

use std::time::{Duration, Instant};

use atlas_ehrbase::EhrBase;
use serde::Deserialize;
use serde_json::{Value, json};

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

/// The pages of everything that a server holds, template by template.
pub(crate) struct Pages {
    parameters: Vec<Value>,
    pub(crate) compositions: usize,
}

/// One complete download.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Download {
    pub(crate) time: Duration,
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
struct Answer<Row> {
    rows: Vec<Row>,
}

impl Pages {
    pub(crate) async fn plan(ehrbase: &EhrBase) -> Result<Self> {
        let query = format!("SELECT {TEMPLATE}, COUNT(v/uid/value) {FROM}");
        let text = ehrbase.aql(&query, &json!({}), 100_000).await?;
        let templates: Answer<(String, u64)> = serde_json::from_str(&text)?;
        let mut pages = Self {
            parameters: Vec::new(),
            compositions: 0,
        };
        for (template, _) in templates.rows {
            let query = format!(
                "SELECT v/uid/value, {TIME}/value {FROM} WHERE {TEMPLATE} = $template \
                 ORDER BY {TIME}, v/uid/value"
            );
            let text = ehrbase
                .aql(&query, &json!({ "template": template }), 1_000_000)
                .await?;
            let list: Answer<(String, String)> = serde_json::from_str(&text)?;
            pages.compositions += list.rows.len();
            let mut after = BEFORE_ALL;
            for page in list.rows.chunks(FETCH as usize) {
                let (time, uid) = after;
                pages
                    .parameters
                    .push(json!({ "template": template, "after": time, "uid": uid }));
                if let Some((uid, time)) = page.last() {
                    after = (time, uid.split("::").next().unwrap_or(uid));
                }
            }
        }
        Ok(pages)
    }

    pub(crate) fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Downloads every page over one connection and drops it.
    pub(crate) async fn download(&self, ehrbase: &EhrBase) -> Result<Download> {
        let query = format!(
            "SELECT v/uid/value, {TIME}, e/ehr_id/value, {TEMPLATE}, v/commit_audit/change_type/value, c {FROM} \
             WHERE {TEMPLATE} = $template AND {TIME} >= $after AND ({TIME} > $after OR v/uid/value > $uid) \
             ORDER BY {TIME}, v/uid/value"
        );
        let start = Instant::now();
        let mut bytes = 0;
        for parameters in &self.parameters {
            let request = ehrbase.aql_request(&query, parameters, FETCH);
            let mut answer = request.send().await?.error_for_status()?;
            while let Some(chunk) = answer.chunk().await? {
                bytes += chunk.len() as u64;
            }
        }
        Ok(Download {
            time: start.elapsed(),
            bytes,
        })
    }
}
