//! What the source counts: a census that is proven by a count, and windows that are halved by counting.

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Census, CensusLine, Scope, Window};
use crate::ports::Source;

/// Counts by template, and proves the answer: a server that cuts answers short would hide whole templates. An empty census
/// needs no proof. One whose lines add up to less than a single count over all of them is asked for once more, since rows become
/// visible at any time.
///
/// # Errors
/// `SourceUntrue` if the census names fewer compositions than the source counts, twice.
pub(super) async fn proven_census(source: &dyn Source, scope: &Scope) -> Result<Census> {
    let mut doubted = false;
    loop {
        let census = source.census(scope).await?;
        let Some(last) = census.lines.iter().map(|line| line.last).max() else {
            return Ok(census);
        };
        let both_bounds = Scope {
            window: Window {
                from: scope.window.from,
                to: last.successor(),
            },
            ..scope.clone()
        };
        let named: u64 = census.lines.iter().map(|line| line.count).sum();
        let counted = source.count(&both_bounds).await?;
        if counted <= named {
            return Ok(census);
        }
        if doubted {
            return Err(Error::new(
                ErrorKind::SourceUntrue,
                format!("count what is new by template: the server's answer names {named} compositions, its own count is {counted}"),
            )
            .fix("does a proxy or the server cut answers short? Nothing was changed; the next run plans it again"));
        }
        doubted = true;
    }
}

/// Halves the time between the first and the last commit until no part holds more than a slice may. `scope` is the window of one
/// template, which the parts cover without a gap.
///
/// # Errors
/// What the source could not do.
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
    // Parts still to be looked at, the earliest on top.
    let mut open = vec![Window {
        from: line.first.max(window.from),
        to: line.last.successor().min(window.to),
    }];
    let mut parts: Vec<(Window, u64)> = Vec::new();
    while let Some(part) = open.pop() {
        let part_scope = Scope {
            window: part,
            ..scope.clone()
        };
        let count = source.count(&part_scope).await?;
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
        } else {
            open.push(Window {
                from: middle,
                to: part.to,
            });
            open.push(Window {
                from: part.from,
                to: middle,
            });
        }
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
