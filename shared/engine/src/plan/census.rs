//! What the source counts: a census that is proven by a count, and windows that are halved by counting.

use atlas_openehr::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Census, CensusLine, Scope, Window};
use crate::ports::Source;

/// How often a census is asked for whose lines do not add up.
const TRIES: usize = 2;

/// Counts by template, and proves the answer by one count over all templates: a server that cuts answers short would hide whole
/// templates. `cut` says, by the source's clock, up to where the census will be relied on; the count goes that far, and as far
/// as the lines go. An empty census needs no proof.
///
/// Rows that became visible after the census are no lie: where the count is larger, the templates of the lines are counted
/// alone, afterwards. Only what they do not hold lies in a template that the census hid, or that is new; a new one is in the
/// next census.
///
/// # Errors
/// `SourceUntrue` if the census hides compositions that the source counts, twice.
pub async fn proven_census(
    source: &dyn Source,
    scope: &Scope,
    cut: impl Fn(Instant) -> Instant,
) -> Result<Census> {
    let mut hidden = 0;
    for _ in 0..TRIES {
        let census = source.census(scope).await?;
        let Some(last) = census.lines.iter().map(|line| line.last).max() else {
            return Ok(census);
        };
        let all = Scope {
            window: Window {
                from: scope.window.from,
                to: last.successor().max(cut(census.server_time)),
            },
            ..scope.clone()
        };
        let named: u64 = census.lines.iter().map(|line| line.count).sum();
        let counted = source.count(&all).await?;
        if counted <= named {
            return Ok(census);
        }
        let of_lines = Scope {
            templates: census
                .lines
                .iter()
                .map(|line| line.template.clone())
                .collect(),
            ..all
        };
        hidden = counted.saturating_sub(source.count(&of_lines).await?);
        if hidden == 0 {
            return Ok(census);
        }
    }
    Err(Error::new(
        ErrorKind::SourceUntrue,
        format!("count what is new by template: the source counts {hidden} compositions of templates that its answer does not name"),
    )
    .fix("does a proxy or the server cut answers short? Nothing was changed; the next run plans it again"))
}

/// Halves the time between the first and the last commit until no part holds more than a slice may. `scope` is the window of one
/// template, which the parts cover without a gap.
///
/// # Errors
/// What the source could not do; `SourceUntrue` if parts hold more than the whole.
pub(super) async fn split(
    source: &dyn Source,
    scope: &Scope,
    line: &CensusLine,
    slice_size: u64,
) -> Result<Vec<(Window, u64)>> {
    let window = scope.window;
    if line.count <= slice_size {
        return Ok(vec![(window, line.count)]);
    }
    let count_in = |part: Window| {
        let scope = Scope {
            window: part,
            ..scope.clone()
        };
        async move { source.count(&scope).await }
    };
    let whole = Window {
        from: line.first.max(window.from),
        to: line.last.successor().min(window.to),
    };
    // Parts still to be looked at with what they hold, the earliest on top.
    let all = count_in(whole).await?;
    let mut open = vec![(whole, all)];
    let mut total = all;
    let mut parts: Vec<(Window, u64)> = Vec::new();
    while let Some((part, count)) = open.pop() {
        let middle = part.from.midpoint(part.to);
        if count <= slice_size || middle <= part.from {
            // A neighbour that fits beside it makes one slice of two.
            match parts.last_mut() {
                Some((last, held)) if *held + count <= slice_size => {
                    last.to = part.to;
                    *held += count;
                }
                _ => parts.push((part, count)),
            }
            continue;
        }
        let (early, late) = (
            Window {
                from: part.from,
                to: middle,
            },
            Window {
                from: middle,
                to: part.to,
            },
        );
        let (in_early, in_late) = (count_in(early).await?, count_in(late).await?);
        let in_both = in_early.saturating_add(in_late);
        total = (total - count).saturating_add(in_both);
        // Something becomes visible all the time, but halves that hold much more than the whole never end, and neither do such
        // that hold a little more each time.
        let most = |count: u64| {
            count
                .saturating_add(count / 2)
                .saturating_add(slice_size / 2)
        };
        if in_both > most(count) || total > most(all) {
            return Err(Error::new(
                ErrorKind::SourceUntrue,
                format!(
                    "divide the time of a template by counting: the server counts {count} compositions in the whole, \
                     {in_early} and {in_late} in its halves"
                ),
            )
            .fix("does a cache before the server answer counts without looking at their bounds? Nothing was changed"));
        }
        open.push((late, in_late));
        open.push((early, in_early));
    }
    // The outer parts take the empty ends: slices cover the window without a gap.
    if let Some((first, _)) = parts.first_mut() {
        first.from = window.from;
    }
    if let Some((last, _)) = parts.last_mut() {
        last.to = window.to;
    }
    Ok(parts)
}
