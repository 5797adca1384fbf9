//! Canonical JSON as a format of the export. It needs no web template; the store keeps them all the same, for whoever reads the
//! copy.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;
use sha2::{Digest, Sha256};

use crate::error::{ErrorKind, Result};
use crate::model::{Format, StoredTemplate};
use crate::ports::{Clock, Event, Observer, Source, Store};
use crate::work::convert::{Canonical, Converter, Converters};

/// The converters of `canonical`.
pub struct CanonicalConverters {
    /// Serves web templates.
    pub source: Arc<dyn Source>,
    /// Keeps them.
    pub store: Arc<dyn Store>,
    /// Tells when they were fetched.
    pub clock: Arc<dyn Clock>,
    /// Is told of those that could not be had.
    pub observer: Arc<dyn Observer>,
    /// Templates that were looked after.
    pub seen: Mutex<HashSet<TemplateId>>,
}

#[async_trait]
impl Converters for CanonicalConverters {
    fn format(&self) -> Format {
        Format::Canonical
    }

    async fn of(&self, template: &TemplateId) -> Result<Converter> {
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen().contains(template) {
            self.look_after(template).await?;
            seen().insert(template.clone());
        }
        Ok(Converter::Here(Arc::new(Canonical)))
    }
}

impl CanonicalConverters {
    /// Keeps the web template if the store has none. One that cannot be had stops nothing: no content depends on it.
    async fn look_after(&self, template: &TemplateId) -> Result<()> {
        if self.store.templates().template(template).await?.is_some() {
            return Ok(());
        }
        match self.source.web_template(template).await {
            Ok(web_template) => {
                let stored = stored(template, web_template, String::new(), self.clock.as_ref());
                self.store.templates().save_template(&stored).await
            }
            Err(error) if error.kind() == ErrorKind::LostLease => Err(error),
            Err(error) => {
                self.observer.event(&Event::Note(&format!(
                    "the web template of `{template}` is not kept: {}",
                    error.chain()
                )));
                Ok(())
            }
        }
    }
}

/// A web template as the store keeps it.
pub(crate) fn stored(
    template: &TemplateId,
    web_template: String,
    names: String,
    clock: &dyn Clock,
) -> StoredTemplate {
    StoredTemplate {
        template: template.clone(),
        digest: Sha256::digest(web_template.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        web_template,
        names,
        fetched: clock.now(),
    }
}
