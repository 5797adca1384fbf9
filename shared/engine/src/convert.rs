//! A page of the source becomes a batch of the store.

use std::collections::HashMap;

use atlas_openehr::id::TemplateId;
use atlas_openehr::json::{self, Checksum, Node};

use crate::model::{Batch, Format, NewRow, Page, Reason, Rejected, Row};
use crate::ports::Store;

/// Why a composition cannot be converted: a path of member names, at-codes and indexes, and what is wrong there.
/// No content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Inconvertible(pub String);

/// Makes the content of the store from canonical JSON. Pure: the same composition gives the same content.
pub trait Convert: Send + Sync {
    /// What it makes.
    fn format(&self) -> Format;

    /// Appends the content to `out` and answers the checksum of what was appended.
    /// After an error `out` may hold a part of it; the caller cuts that off.
    fn convert(&self, composition: Node<'_>, out: &mut String) -> Result<Checksum, Inconvertible>;
}

/// Canonical JSON, value for value: only insignificant white space goes.
#[derive(Debug, Clone, Copy)]
pub struct Canonical;

impl Convert for Canonical {
    fn format(&self) -> Format {
        Format::Canonical
    }

    fn convert(&self, composition: Node<'_>, out: &mut String) -> Result<Checksum, Inconvertible> {
        json::minify(composition, out);
        Ok(json::checksum(composition))
    }
}

/// What became of a page: each of its rows is in exactly one of the three.
#[derive(Debug, Default)]
pub struct Converted {
    /// For the store.
    pub batch: Batch,
    /// For quarantine.
    pub rejected: Vec<Rejected>,
    /// Rows of an object of which the page holds a newer version.
    pub filtered: u64,
}

/// Converts each row of a page. What cannot be converted, or not be stored, is rejected by itself.
#[must_use]
pub fn convert_page(page: &Page, converter: &dyn Convert, store: &dyn Store) -> Converted {
    let mut converted = Converted {
        batch: Batch {
            text: String::with_capacity(page.text.len()),
            rows: Vec::with_capacity(page.rows.len()),
        },
        ..Converted::default()
    };
    let newest = newest_versions(page);
    for row in &page.rows {
        if newest.get(row.meta.uid.object_id().as_str()) != Some(&row.meta.uid.version()) {
            converted.filtered += 1;
            continue;
        }
        match convert_row(page, row, converter, store, &mut converted.batch.text) {
            Ok(new) => converted.batch.rows.push(new),
            Err(rejected) => converted.rejected.push(*rejected),
        }
    }
    converted
}

fn newest_versions(page: &Page) -> HashMap<&str, u32> {
    let mut newest = HashMap::with_capacity(page.rows.len());
    for row in &page.rows {
        let version = newest.entry(row.meta.uid.object_id().as_str()).or_insert(0);
        *version = row.meta.uid.version().max(*version);
    }
    newest
}

fn convert_row(
    page: &Page,
    row: &Row,
    converter: &dyn Convert,
    store: &dyn Store,
    text: &mut String,
) -> Result<NewRow, Box<Rejected>> {
    let reject = |reason, detail| {
        Box::new(Rejected {
            meta: row.meta.clone(),
            reason,
            detail,
        })
    };
    let composition = page.content(row);
    if let Some((reason, detail)) = store.refuses(composition) {
        return Err(reject(reason, detail));
    }
    let start = text.len();
    match converter.convert(composition, text) {
        Ok(checksum) => Ok(NewRow {
            meta: row.meta.clone(),
            content: start..text.len(),
            checksum,
        }),
        Err(error) => {
            text.truncate(start);
            Err(reject(Reason::Inconvertible, error.to_string()))
        }
    }
}

/// Gives the converter of a template; formats that need its web template get it here.
#[async_trait::async_trait]
pub trait Converters: Send + Sync {
    /// What all of them make.
    fn format(&self) -> Format;

    /// The converter of a template.
    async fn of(&self, template: &TemplateId) -> crate::Result<std::sync::Arc<dyn Convert>>;
}

#[async_trait::async_trait]
impl Converters for Canonical {
    fn format(&self) -> Format {
        Format::Canonical
    }

    async fn of(&self, _template: &TemplateId) -> crate::Result<std::sync::Arc<dyn Convert>> {
        Ok(std::sync::Arc::new(*self))
    }
}
