//! The overlap: rows become visible after their commit time, so its uids are compared again.

use std::collections::BTreeMap;

use atlas_openehr::id::TemplateId;

use crate::error::Result;
use crate::listing::Listing;
use crate::model::{Meta, Scope, Watermark, Window};
use crate::ports::{Source, Store};
use crate::quarantine::missing;
use crate::transform::Transform;

/// What is compared again: from where late rows were looked for, up to the watermark.
pub(super) fn unchecked_late(watermark: &Watermark) -> Window {
    Window {
        from: watermark.late_checked_until,
        to: watermark.until,
    }
}

/// How many uids the store lacks, by template, in the windows of their overlap. `scope` has the templates and EHRs of the run.
///
/// # Errors
/// What source or store could not do.
pub(super) async fn lacking(
    source: &dyn Source,
    store: &dyn Store,
    transform: &Transform,
    scope: &Scope,
    compared: &[&Watermark],
    list: usize,
) -> Result<BTreeMap<TemplateId, u64>> {
    let mut lacking = BTreeMap::new();
    let windows: BTreeMap<&TemplateId, Window> = compared
        .iter()
        .map(|watermark| (&watermark.template, unchecked_late(watermark)))
        .collect();
    let (Some(from), Some(to)) = (
        windows.values().map(|window| window.from).min(),
        windows.values().map(|window| window.to).max(),
    ) else {
        return Ok(lacking);
    };
    let scope = Scope {
        window: Window { from, to },
        ..scope.clone()
    };
    let mut listing = Listing::new(source, &scope, list);
    while let Some(listed) = listing.next().await? {
        let in_window: Vec<Meta> = listed
            .into_iter()
            .filter(|meta| {
                windows
                    .get(&meta.template)
                    .is_some_and(|window| window.contains(meta.committed))
            })
            .collect();
        for meta in missing(store, transform, in_window).await? {
            *lacking.entry(meta.template).or_insert(0) += 1;
        }
    }
    Ok(lacking)
}
