//! What a run looks like while it goes on: bars on a terminal, otherwise a line every 10 seconds.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use atlas_engine::ports::{Event, Observer};
use atlas_openehr::id::TemplateId;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::output;

const LINE_EVERY: Duration = Duration::from_secs(10);
const TOTAL: &str = "{bar:30} {percent:>3} % {human_pos} of {human_len}, {per_sec}, {eta} left";
const TEMPLATE: &str = "{bar:30} {percent:>3} % {msg}, {per_sec}, {eta} left";

/// Watches a run. Cheap to clone; all clones show the same.
#[derive(Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    state: Arc<Mutex<State>>,
}

struct State {
    is_terminal: bool,
    total: Option<ProgressBar>,
    templates: BTreeMap<TemplateId, Template>,
    expected: u64,
    read: u64,
    begun: Instant,
}

struct Template {
    expected: u64,
    read: u64,
    /// Shown from its first page to its last.
    bar: Option<ProgressBar>,
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
            total: None,
            templates: BTreeMap::new(),
            expected: 0,
            read: 0,
            begun: Instant::now(),
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
                    if !state.is_terminal && state.expected > 0 {
                        output::tell(&state.line());
                    }
                }
            }
        }
    }

    /// Takes the bars away, so that the result stands alone.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.templates.clear();
        state.total = None;
        state.expected = 0;
        state.read = 0;
        state.begun = Instant::now();
        // A terminal that is gone needs no clearing.
        let _ = self.bars.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self, template: &TemplateId, expected: u64) {
        let mut state = self.lock();
        let planned = Template {
            expected,
            read: 0,
            bar: None,
        };
        let before = state.templates.insert(template.clone(), planned);
        state.expected += expected;
        state.expected -= before.map_or(0, |before| before.expected);
        let length = state.expected;
        let total = state.total.get_or_insert_with(|| self.bar(TOTAL, length));
        total.set_length(length);
    }

    fn page(&self, template: &TemplateId, read: u64) {
        let mut state = self.lock();
        state.read += read;
        let done = state.read;
        if let Some(total) = &state.total {
            total.set_position(done);
        }
        if let Some(template_state) = state.templates.get_mut(template) {
            template_state.read += read;
            let expected = template_state.expected;
            let bar = template_state.bar.get_or_insert_with(|| {
                self.bar(TEMPLATE, expected)
                    .with_message(template.as_str().to_owned())
            });
            bar.set_position(template_state.read);
            if template_state.read >= expected
                && let Some(bar) = template_state.bar.take()
            {
                bar.finish_and_clear();
            }
        }
    }

    fn bar(&self, style: &str, length: u64) -> ProgressBar {
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(ProgressBar::new(length).with_style(style))
    }
}

impl State {
    fn line(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = self.read as f64 / seconds;
        let left = self.expected.saturating_sub(self.read) as f64 / rate.max(0.001);
        let percent = 100 * self.read / self.expected.max(1);
        format!(
            "{} of {} compositions ({percent} %), {}/s, about {} left",
            output::count(self.read),
            output::count(self.expected),
            output::count(rate as u64),
            output::duration(left as u64),
        )
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
                self.tell(&format!("`{template}` cannot go on: {}", error.chain()));
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
