//! What a run looks like while it goes on: bars on a terminal, otherwise a line every 10 seconds.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use atlas_engine::ports::{Event, Observer};
use atlas_openehr::id::TemplateId;
use atlas_runtime::telemetry::REPORT;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::output;

const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR: &str = "{bar:30} {percent:>3} % {msg}";

/// Watches a run. Cheap to clone; all clones show the same.
#[derive(Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    state: Arc<Mutex<State>>,
}

struct State {
    is_terminal: bool,
    all: Part,
    templates: BTreeMap<TemplateId, Part>,
}

/// What is expected and what was read: of all templates, or of one.
struct Part {
    expected: u64,
    read: u64,
    /// When counting began, and how much had been read by then.
    since: Option<(Instant, u64)>,
    /// Of a template: shown from its first page to its last.
    bar: Option<ProgressBar>,
}

impl Part {
    fn new(expected: u64, since: Option<(Instant, u64)>) -> Self {
        Self {
            expected,
            read: 0,
            since,
            bar: None,
        }
    }

    /// Rate and time left, as far as they are known.
    fn pace(&self, now: Instant) -> String {
        let Some((since, before)) = self.since else {
            return String::new();
        };
        let rate = (self.read - before) as f64 / now.duration_since(since).as_secs_f64().max(0.001);
        if rate < 1.0 {
            return String::new();
        }
        let left = self.expected.saturating_sub(self.read) as f64 / rate;
        let (rate, left) = (output::count(rate as u64), output::duration(left as u64));
        format!(", {rate}/s, about {left} left")
    }

    fn line(&self, now: Instant) -> String {
        let (read, expected) = (output::count(self.read), output::count(self.expected));
        format!("{read} of {expected} compositions{}", self.pace(now))
    }

    fn is_read(&self) -> bool {
        self.read >= self.expected
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let target = if is_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let state = State {
            is_terminal,
            all: Part::new(0, None),
            templates: BTreeMap::new(),
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Waits for `work`; without a terminal, tells every 10 seconds how far it is.
    pub(crate) async fn shown_during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(LINE_EVERY) => {
                    let state = self.lock();
                    if !state.is_terminal && state.all.expected > 0 {
                        output::tell(&state.all.line(Instant::now()));
                    }
                }
            }
        }
    }

    /// Takes the bars away, so that the result stands alone.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.templates.clear();
        state.all = Part::new(0, None);
        // A terminal that is gone needs no clearing.
        let _ = self.bars.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self, template: &TemplateId, expected: u64) {
        let mut state = self.lock();
        let before = state
            .templates
            .insert(template.clone(), Part::new(expected, None));
        let all = &mut state.all;
        all.expected += expected;
        all.expected -= before.map_or(0, |before| before.expected);
        all.since.get_or_insert((Instant::now(), 0));
        let length = all.expected;
        all.bar.get_or_insert_with(|| self.bar()).set_length(length);
    }

    fn page(&self, template: &TemplateId, read: u64) {
        let mut state = self.lock();
        let all = &mut state.all;
        all.read += read;
        if let Some(bar) = &all.bar {
            bar.set_position(all.read);
            bar.set_message(all.line(Instant::now()));
        }
        let Some(part) = state.templates.get_mut(template) else {
            return;
        };
        part.read += read;
        // How long the first page took is not known: the rate counts from its end.
        part.since.get_or_insert((Instant::now(), part.read));
        let message = format!("{template}{}", part.pace(Instant::now()));
        let bar = part.bar.get_or_insert_with(|| self.bar());
        bar.set_length(part.expected);
        bar.set_position(part.read);
        bar.set_message(message);
        if part.is_read()
            && let Some(bar) = part.bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn bar(&self) -> ProgressBar {
        let style =
            ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(ProgressBar::new(0).with_style(style))
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Planned { template, expected } => self.planned(template, *expected),
            Event::Page {
                template, counts, ..
            } => self.page(template, counts.read),
            Event::SliceFailed { template, error } => {
                let line = format!("`{template}` cannot go on: {}", error.chain());
                tracing::error!(target: REPORT, template_id = template.as_str(), "{line}");
                self.tell(&line);
            }
            Event::Note(note) => self.tell(note),
            Event::SliceDone { .. } => {}
        }
    }
}

impl Progress {
    /// Tells something without disturbing the bars.
    pub(crate) fn tell(&self, message: &str) {
        self.bars.suspend(|| output::tell(message));
    }
}

/// Log lines go above the bars.
impl<'w> MakeWriter<'w> for Progress {
    type Writer = LogLine<'w>;

    fn make_writer(&'w self) -> Self::Writer {
        LogLine(&self.bars)
    }
}

/// Writes one log line.
pub(crate) struct LogLine<'w>(&'w MultiProgress);

impl Write for LogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_once_there_is_one() {
        let mut part = Part::new(1_000, None);
        let begun = Instant::now();
        assert_eq!(part.line(begun), "0 of 1,000 compositions");
        part.since = Some((begun, 0));
        part.read = 500;
        let now = begun + Duration::from_secs(10);
        assert_eq!(
            part.line(now),
            "500 of 1,000 compositions, 50/s, about 10 s left"
        );
    }
}
