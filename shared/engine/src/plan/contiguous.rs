//! How far finished slices carry a watermark.

use std::time::Duration;

use atlas_openehr::id::TemplateId;
use atlas_openehr::time::Instant;

use crate::model::{Slice, SliceKind, SliceState, Watermark, Window};
use crate::seeded::{Bug, planted};

/// Whether a slice is finished and no watermark waits for it: its record is of no more use.
pub(crate) fn is_behind(slice: &Slice, watermarks: &[Watermark]) -> bool {
    slice.state == SliceState::Done
        && (slice.kind != SliceKind::Read || is_covered(slice, watermarks))
}

/// Whether a slice reads only what the watermarks of its templates have passed.
pub(crate) fn is_covered(slice: &Slice, watermarks: &[Watermark]) -> bool {
    slice.kind == SliceKind::Read
        && slice.templates().all(|template| {
            watermarks.iter().any(|watermark| {
                &watermark.template == template && slice.window.to <= watermark.until
            })
        })
}

/// Follows `windows` from `start` as far as they leave no gap. Sorts them.
pub(super) fn contiguous(start: Instant, windows: &mut [Window]) -> Instant {
    windows.sort_unstable_by_key(|window| (window.from, window.to));
    windows.iter().fold(start, |reached, window| {
        if window.from <= reached {
            reached.max(window.to)
        } else {
            reached
        }
    })
}

/// The watermark that finished slices allow: the end of their prefix without a gap, from the watermark so far
/// (promise P7: it never passes what is durable). `None` if they do not move it.
#[must_use]
pub fn watermark(
    template: &TemplateId,
    slices: &[Slice],
    so_far: Option<&Watermark>,
    origin: Instant,
    overlap: Duration,
) -> Option<Watermark> {
    let mut done: Vec<(Window, Instant)> = slices
        .iter()
        .filter(|slice| {
            slice.reads(template)
                && (slice.state == SliceState::Done || planted(Bug::WatermarkOverOpenSlice))
        })
        .map(|slice| (slice.window, slice.planned))
        .collect();
    done.sort_unstable_by_key(|(window, _)| (window.from, window.to));
    let start = so_far.map_or(origin, |watermark| watermark.until);
    let mut reached = Watermark {
        template: template.clone(),
        until: start,
        late_checked_until: so_far.map_or(origin, |watermark| watermark.late_checked_until),
        position: so_far.and_then(|watermark| watermark.position.clone()),
    };
    for (window, planned) in done {
        if window.from <= reached.late_checked_until {
            let old_enough = planned.saturating_sub(overlap).min(window.to);
            reached.late_checked_until = reached.late_checked_until.max(old_enough);
        }
        if window.from <= reached.until {
            reached.until = reached.until.max(window.to);
        }
    }
    (reached.until > start).then_some(reached)
}
