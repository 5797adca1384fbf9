//! A report as Prometheus reads it.

use std::sync::atomic::AtomicU64;

use atlas_engine::suite::report::SliceCounts;
use atlas_engine::{Error, ErrorKind, Result};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::{Messages, Watermark};

/// OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Values = Family<Labels, Gauge<f64, AtomicU64>>;

/// The report as gauges; times are Unix seconds.
///
/// # Errors
/// `Internal` if the text cannot be written.
pub fn exposition(watermark: &Watermark) -> Result<String> {
    let Watermark { report, messages } = watermark;
    let mut registry = Registry::with_prefix("atlas");
    let mut family = |name: &str, help: &str| {
        let values = Values::default();
        registry.register(name, help, values.clone());
        values
    };
    let lag = family(
        "lag_seconds",
        "Age of the oldest watermark, or of the first plan of a template without one",
    );
    let stalled = family(
        "stalled_slice_seconds",
        "How long that slice has not moved that stands still longest; 0 if none does",
    );
    let checked = family(
        "checked_until_seconds",
        "Watermark: everything committed before this was seen",
    );
    let newest = family(
        "newest_data_seconds",
        "Commit time of the newest composition in the store",
    );
    let compositions = family("compositions", "Compositions in the store");
    let quarantined = family("quarantined", "Compositions in quarantine");
    let slices = family("slices", "Slices that are not finished, by state");
    let slots = family(
        "source_slots",
        "Slots of the source: all, allowed now, held now",
    );
    let unreadable = family(
        "unreadable_messages",
        "Messages that nobody could read, so far",
    );
    let unplanned = family(
        "unplanned_ticks",
        "Ticks of the schedule in a row that planned nothing; 0 if the last one planned",
    );
    let queued = family(
        "queue_messages",
        "Messages in the queue of work, and set aside as dead letters",
    );

    let at = |instant: atlas_openehr::time::Instant| instant.as_micros() as f64 / 1e6;
    if let Some(seconds) = report.lag_seconds {
        lag.get_or_create(&Labels::new()).set(seconds);
    }
    stalled
        .get_or_create(&Labels::new())
        .set(report.stalled_slice_seconds);
    for template in &report.templates {
        let labels = || vec![("template_id", template.template_id.as_str().to_owned())];
        if let Some(until) = template.checked_until {
            checked.get_or_create(&labels()).set(at(until));
        }
        if let Some(instant) = template.newest_data {
            newest.get_or_create(&labels()).set(at(instant));
        }
        compositions
            .get_or_create(&labels())
            .set(template.compositions as f64);
        quarantined
            .get_or_create(&labels())
            .set(template.quarantined as f64);
        let SliceCounts {
            waiting,
            in_work,
            failed,
        } = template.slices;
        for (state, count) in [
            ("waiting", waiting),
            ("in_work", in_work),
            ("failed", failed),
        ] {
            let mut labels = labels();
            labels.push(("state", state.to_owned()));
            slices.get_or_create(&labels).set(count as f64);
        }
    }
    let of = &report.slots;
    for (kind, count) in [("all", of.most), ("allowed", of.allowed), ("held", of.held)] {
        slots
            .get_or_create(&vec![("kind", kind.to_owned())])
            .set(count as f64);
    }
    unreadable
        .get_or_create(&Labels::new())
        .set(report.unreadable_messages as f64);
    unplanned
        .get_or_create(&Labels::new())
        .set(report.unplanned_ticks() as f64);
    let Messages { work, dead } = *messages;
    for (queue, count) in [("work", work), ("dead", dead)] {
        if let Some(count) = count {
            queued
                .get_or_create(&vec![("queue", queue.to_owned())])
                .set(count as f64);
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|error| Error::new(ErrorKind::Internal, "write the metrics").because(error))?;
    Ok(text)
}
