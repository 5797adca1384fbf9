//! What the source counts: a census that is proven by a count, and windows that are divided by counting.

use std::time::Duration;

use atlas_openehr::time::Instant;
use futures::{StreamExt, TryStreamExt, stream};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Census, CensusLine, Scope, Window};
use crate::ports::Source;
use crate::work::Budget;

/// How often a census is asked for whose lines do not add up.
const TRIES: usize = 2;

/// A part that holds far more than a slice is divided into so many pieces first: a plan that is stopped has asked few questions in
/// vain.
const MOST_PIECES: u64 = 16;

/// Counts that are asked for at once; the slots that are held bound them further.
const QUESTIONS: usize = 8;

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

/// Divides the window of one template by counting, from the earliest part to the latest: a piece of time that holds too much is
/// divided into pieces of equal length, as many as would each fit into a slice if compositions were spread evenly.
///
/// Parts are handed out as they are found, so that a plan that is stopped loses only the questions of its last piece.
pub(super) struct Splitter<'a> {
    source: &'a dyn Source,
    /// Looked at before each question.
    budget: &'a Budget,
    scope: Scope,
    slice_size: u64,
    /// Parts still to be looked at with what they hold, the earliest on top.
    open: Vec<(Window, u64)>,
    /// The latest part that was found; one that fits beside it makes one slice of two.
    last: Option<(Window, u64)>,
    /// What the whole window holds, as it was counted first, and as its pieces say so far.
    whole: (u64, u64),
}

impl<'a> Splitter<'a> {
    /// For the window of a scope, of one template. `line` is what the census said of it.
    ///
    /// # Errors
    /// What the source could not do; `Interrupted` at the end of the budget.
    pub(super) async fn new(
        source: &'a dyn Source,
        budget: &'a Budget,
        scope: Scope,
        line: &CensusLine,
        slice_size: u64,
    ) -> Result<Self> {
        let window = scope.window;
        let mut splitter = Self {
            source,
            budget,
            scope,
            slice_size,
            open: Vec::new(),
            last: None,
            whole: (0, 0),
        };
        let whole = Window {
            from: line.first.max(window.from),
            to: line.last.successor().min(window.to),
        };
        let count = splitter.count_in(whole).await?;
        splitter.open.push((whole, count));
        splitter.whole = (count, count);
        Ok(splitter)
    }

    /// The next parts with what they hold: all that are known before the next question. Together the parts cover the window without
    /// a gap.
    ///
    /// # Errors
    /// What the source could not do; `SourceUntrue` if pieces hold more than the whole; `Interrupted` at the end of the budget.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<(Window, u64)>>> {
        let mut parts = Vec::new();
        while let Some((part, count)) = self.open.pop() {
            let pieces = pieces(part, count, self.slice_size);
            if pieces.len() < 2 {
                parts.extend(self.put(part, count));
                continue;
            }
            if !parts.is_empty() {
                // Kept before anything else is asked.
                self.open.push((part, count));
                return Ok(Some(parts));
            }
            let questions: Vec<_> = pieces.iter().map(|piece| self.count_in(*piece)).collect();
            let counts: Vec<u64> = stream::iter(questions)
                .buffered(QUESTIONS)
                .try_collect()
                .await?;
            self.refuse_more_than_the_whole(count, &counts)?;
            self.open.extend(pieces.into_iter().zip(counts).rev());
        }
        if let Some((mut last, held)) = self.last.take() {
            // The outer parts take the empty ends.
            last.to = self.scope.window.to;
            parts.push((last, held));
        }
        Ok(Some(parts).filter(|parts| !parts.is_empty()))
    }

    /// Takes a part that fits into a slice; answers the one before it, if this one does not fit beside it.
    fn put(&mut self, part: Window, count: u64) -> Option<(Window, u64)> {
        match &mut self.last {
            Some((last, held)) if *held + count <= self.slice_size => {
                last.to = part.to;
                *held += count;
                None
            }
            Some(_) => self.last.replace((part, count)),
            None => {
                let from = self.scope.window.from;
                self.last = Some((Window { from, ..part }, count));
                None
            }
        }
    }

    async fn count_in(&self, window: Window) -> Result<u64> {
        let scope = Scope {
            window,
            ..self.scope.clone()
        };
        in_time(self.budget, self.source.count(&scope)).await
    }

    /// Something becomes visible all the time, but pieces that hold much more than the whole never end, and neither do such that
    /// hold a little more each time.
    fn refuse_more_than_the_whole(&mut self, count: u64, pieces: &[u64]) -> Result<()> {
        let sum = pieces
            .iter()
            .fold(0, |sum: u64, count| sum.saturating_add(*count));
        let (whole, total) = &mut self.whole;
        *total = total.saturating_sub(count).saturating_add(sum);
        let slice_size = self.slice_size;
        let most = |count: u64| {
            count
                .saturating_add(count / 2)
                .saturating_add(slice_size / 2)
        };
        if sum <= most(count) && *total <= most(*whole) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::SourceUntrue,
            format!(
                "divide the time of a template by counting: the server counts {count} compositions in a part, and {sum} in its {} \
                 pieces together",
                pieces.len()
            ),
        )
        .fix("does a cache before the server answer counts without looking at their bounds? Nothing was changed"))
    }
}

/// The pieces of equal length into which a part is divided; itself if it fits into a slice, or cannot be divided.
fn pieces(part: Window, count: u64, slice_size: u64) -> Vec<Window> {
    let length = u64::try_from(part.to.duration_since(part.from).as_micros()).unwrap_or(u64::MAX);
    if count <= slice_size || length < 2 {
        return vec![part];
    }
    let slices = count.div_ceil(slice_size.max(1));
    // A little more than would fit exactly: where compositions are spread evenly, about half the pieces would hold too much.
    let wanted = match slices.saturating_add(slices / 8) {
        wanted if wanted > MOST_PIECES * 2 => MOST_PIECES,
        wanted => wanted,
    };
    let number = wanted.clamp(2, length);
    let at = |index: u64| {
        let offset = u128::from(length) * u128::from(index) / u128::from(number);
        part.from.saturating_add(Duration::from_micros(
            u64::try_from(offset).unwrap_or(length),
        ))
    };
    (0..number)
        .map(|index| Window {
            from: at(index),
            to: at(index + 1),
        })
        .collect()
}

/// A question to the source, unless time is over.
///
/// # Errors
/// `Interrupted` at the end of the budget; else what the source could not do.
pub(super) async fn in_time<T>(
    budget: &Budget,
    question: impl Future<Output = Result<T>>,
) -> Result<T> {
    let answer = match budget.is_spent() {
        true => None,
        false => budget.stop.run_until_cancelled(question).await,
    };
    answer.unwrap_or_else(|| {
        Err(Error::new(
            ErrorKind::Interrupted,
            "plan a run: its time was over before the plan was whole",
        )
        .fix("what is planned so far is kept; the next one goes on from there"))
    })
}
