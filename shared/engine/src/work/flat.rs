//! FLAT as a format of the export: web templates fetched once a day and kept in the store, compiled plans, losses
//! counted by template, and a look at the source's own FLAT before ours is trusted.
//!
//! ```text
//!  template ─► compiled in this process? ─► kept in the store, less than a day old? ─► the source
//!                     ▲                                                                   ▲
//!                     └── a composition holds what the template does not have: once more ─┘
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use atlas_openehr::flat::{
    FlatError, FlattenedWriter, Ids, JsonWriter, Key, Loss, LossKind, Plan, Sink, Value, Walker,
};
use atlas_openehr::id::TemplateId;
use atlas_openehr::json::{self, Checksum, Kind, Node, Tape};
use atlas_openehr::time::Instant;
use atlas_openehr::webtemplate::WebTemplate;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Format, Page, Scope, StoredTemplate, Window};
use crate::ports::{Clock, Event, Observer, Source, Store};
use crate::transform::Transform;
use crate::work::canonical::stored;
use crate::work::convert::{
    Convert, Converter, Converters, Inconvertible, Losses, Out, refuse_source_while_edited,
};

/// So many compositions of each template are looked at for losses in a run, the first ones: looking takes three times as
/// long as writing FLAT.
pub const LOSSES_LOOKED_AT: u64 = 1_000;

/// The converters of `preserve` and `flatten`.
pub struct FlatConverters {
    /// Serves web templates, and FLAT to compare with.
    pub source: Arc<dyn Source>,
    /// Keeps the web templates.
    pub store: Arc<dyn Store>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Is told of changed templates and of differences.
    pub observer: Arc<dyn Observer>,
    /// `Preserve` or `Flatten`.
    pub format: Format,
    /// Which ids paths are made of.
    pub ids: Ids,
    /// Compositions of each template to compare with the source's own FLAT before the first one is written.
    pub verify_sample: usize,
    /// While its stages edit, the source's own FLAT is not used.
    pub transform: Transform,
    /// What was made so far.
    pub cache: ConverterCache,
}

/// A web template that the store keeps is taken for the source's own as long as this.
const TRUSTED: Duration = Duration::from_secs(24 * 60 * 60);

/// One that does not have what a composition holds is asked for again, but not within this time: some compositions hold such
/// things whatever is asked.
const ASKED_AGAIN: Duration = Duration::from_secs(600);

/// Bytes of web templates whose compiled plans stay in memory. A plan takes about six times its text (15 MB for the 2.7 MB of 78
/// templates) and 5 ms to compile, so that those of two shared slices find room.
const CACHED_BYTES: usize = 6 << 20;

/// The converters of a process, by template: the ones that were used last, as many as there is room for.
#[derive(Default)]
pub struct ConverterCache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    converters: HashMap<TemplateId, CachedConverter>,
    /// These stay: a run reports them at its end.
    losses: HashMap<TemplateId, Arc<Mutex<Tally>>>,
    /// Goes up by one with each use.
    uses: u64,
}

struct CachedConverter {
    converter: Converter,
    flat: Arc<Flat>,
    /// Of its web template.
    bytes: usize,
    used: u64,
}

impl ConverterCache {
    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, template: &TemplateId) -> Option<(Converter, Arc<Flat>)> {
        let mut cached = self.cached();
        cached.uses += 1;
        let uses = cached.uses;
        let found = cached.converters.get_mut(template)?;
        found.used = uses;
        Some((found.converter.clone(), Arc::clone(&found.flat)))
    }

    /// What is counted of the compositions of a template, from process start to end.
    fn losses(&self, template: &TemplateId) -> Arc<Mutex<Tally>> {
        let mut cached = self.cached();
        Arc::clone(cached.losses.entry(template.clone()).or_default())
    }

    fn insert(&self, template: &TemplateId, converter: &Converter, flat: Arc<Flat>, bytes: usize) {
        let mut cached = self.cached();
        cached.uses += 1;
        let new = CachedConverter {
            converter: converter.clone(),
            flat,
            bytes,
            used: cached.uses,
        };
        cached.converters.insert(template.clone(), new);
        let held = |cached: &Cached| -> usize {
            let converters = cached.converters.values();
            converters.map(|converter| converter.bytes).sum()
        };
        while cached.converters.len() > 1 && held(&cached) > CACHED_BYTES {
            let oldest = cached
                .converters
                .iter()
                .min_by_key(|(_, cached)| cached.used);
            let Some(oldest) = oldest.map(|(template, _)| template.clone()) else {
                return;
            };
            cached.converters.remove(&oldest);
        }
    }
}

/// Makes FLAT of the compositions of one template.
pub struct Flat {
    plan: Plan,
    format: Format,
    /// Buffers of conversions that are not running.
    idle: Mutex<Vec<Buffers>>,
    losses: Arc<Mutex<Tally>>,
    /// When the source gave the web template; `None` = nobody looks.
    fetched: Option<Instant>,
    /// Whether a composition held what the template does not have.
    is_doubted: AtomicBool,
}

#[derive(Default)]
struct Tally {
    looked_at: u64,
    /// In the order of [`LossKind::ALL`].
    leaves: [u64; LossKind::ALL.len()],
}

#[derive(Default)]
struct Buffers {
    walker: Walker,
    preserve: JsonWriter,
    flatten: FlattenedWriter,
    tape: Tape,
}

impl Flat {
    /// Compiles a web template.
    ///
    /// # Errors
    /// `SourceUnsupported` if the web template cannot be understood.
    pub fn compile(
        template: &TemplateId,
        web_template: &str,
        format: Format,
        ids: Ids,
    ) -> Result<Self> {
        let refuse = |cause: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(
                ErrorKind::SourceUnsupported,
                format!("compile the web template of `{template}`"),
            )
            .because(cause)
            .fix("export this template with export_composition_format = \"canonical\" and report the template")
        };
        let web_template =
            WebTemplate::parse(web_template).map_err(|error| refuse(error.into()))?;
        let plan = Plan::compile(&web_template, ids).map_err(|error| refuse(error.into()))?;
        Ok(Self {
            plan,
            format,
            idle: Mutex::default(),
            losses: Arc::default(),
            fetched: None,
            is_doubted: AtomicBool::new(false),
        })
    }

    /// FLAT path and SQL name of everything the template can have, as one JSON object.
    #[must_use]
    pub fn names(&self) -> String {
        let names: BTreeMap<&str, &str> = self
            .plan
            .name_map()
            .iter()
            .map(|name| (name.flat.as_str(), name.sql.as_str()))
            .collect();
        serde_json::json!(names).to_string()
    }

    fn buffers(&self) -> Buffers {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop().unwrap_or_default()
    }

    fn give_back(&self, buffers: Buffers) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(buffers);
    }

    fn write(
        &self,
        buffers: &mut Buffers,
        uid: &str,
        composition: Node<'_>,
        out: &mut String,
    ) -> std::result::Result<Checksum, FlatError> {
        let Buffers {
            walker,
            preserve,
            flatten,
            tape,
        } = buffers;
        if self.looks_for_losses() {
            let mut loss = Loss::counting();
            self.plan
                .walk_with_loss(walker, composition, Some(uid), &mut Nothing, &mut loss)?;
            self.count(&loss);
            let is_unknown = |(kind, count): (LossKind, u64)| {
                count > 0 && matches!(kind, LossKind::NotInTemplate | LossKind::UnexpectedType)
            };
            if loss.counts().any(is_unknown) {
                self.is_doubted.store(true, Ordering::Relaxed);
            }
        }
        let text = match self.format {
            Format::Flatten => flatten.write(&self.plan, walker, composition, Some(uid))?,
            Format::Preserve | Format::Canonical => {
                preserve.write(&self.plan, walker, composition, Some(uid))?
            }
        };
        // Our own output is JSON; if it ever were not, the row is rejected by itself.
        tape.reparse(text).map_err(|_| FlatError::NotAComposition)?;
        out.push_str(text);
        Ok(json::checksum(tape.root(text)))
    }

    /// Readers ask at the same time: a few compositions more can be looked at, and are counted as such.
    fn looks_for_losses(&self) -> bool {
        self.tally().looked_at < LOSSES_LOOKED_AT
    }

    fn count(&self, loss: &Loss) {
        let mut tally = self.tally();
        tally.looked_at += 1;
        for (total, (_, count)) in tally.leaves.iter_mut().zip(loss.counts()) {
            *total += count;
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink for a walk that is made for its loss report only.
struct Nothing;

impl Sink for Nothing {
    fn emit(&mut self, _key: Key<'_>, _value: Value<'_>) {}
}

impl Convert for Flat {
    fn convert(
        &self,
        uid: &str,
        composition: Node<'_>,
        out: &mut Out<'_>,
    ) -> std::result::Result<Checksum, Inconvertible> {
        let mut buffers = self.buffers();
        let checksum = self.write(&mut buffers, uid, composition, out.content);
        self.give_back(buffers);
        checksum.map_err(|error| Inconvertible(error.to_string()))
    }
}

#[async_trait]
impl Converters for FlatConverters {
    fn format(&self) -> Format {
        self.format
    }

    async fn of(&self, template: &TemplateId) -> Result<Converter> {
        if let Some((converter, _)) = self.cache.get(template) {
            return Ok(converter);
        }
        let kept = self.store.templates().template(template).await?;
        let trusted = kept.as_ref().filter(|kept| {
            kept.fetched.saturating_add(TRUSTED) > self.clock.now() && self.has_names(kept)
        });
        match trusted {
            Some(kept) => {
                let flat = self.compile(template, &kept.web_template)?;
                self.make(template, flat, kept).await
            }
            None => Ok(self.fetch(template, kept.as_ref()).await?.0),
        }
    }

    async fn refresh(&self, template: &TemplateId) -> Result<bool> {
        let Some((_, flat)) = self.cache.get(template) else {
            return Ok(false);
        };
        let again = flat
            .fetched
            .map(|fetched| fetched.saturating_add(ASKED_AGAIN));
        let is_due = again.is_some_and(|again| again < self.clock.now());
        if !is_due || !flat.is_doubted.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        let kept = self.store.templates().template(template).await?;
        Ok(self.fetch(template, kept.as_ref()).await?.1)
    }

    fn losses(&self, template: &TemplateId) -> Losses {
        let losses = self.cache.losses(template);
        let tally = losses.lock().unwrap_or_else(PoisonError::into_inner);
        Losses {
            looked_at: tally.looked_at,
            leaves: LossKind::ALL
                .into_iter()
                .zip(tally.leaves)
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| (kind.name(), count))
                .collect(),
        }
    }
}

impl FlatConverters {
    /// A web template that was kept by another format has no names.
    fn has_names(&self, kept: &StoredTemplate) -> bool {
        self.format != Format::Flatten || !kept.names.is_empty()
    }

    fn compile(&self, template: &TemplateId, web_template: &str) -> Result<Flat> {
        Flat::compile(template, web_template, self.format, self.ids)
    }

    /// Asks the source for a web template, keeps it, and makes its converter. Answers whether it is another one than was kept.
    async fn fetch(
        &self,
        template: &TemplateId,
        kept: Option<&StoredTemplate>,
    ) -> Result<(Converter, bool)> {
        let web_template = match self.source.web_template(template).await {
            Ok(web_template) => web_template,
            Err(error) => return Err(self.without_web_template(template, error).await),
        };
        let flat = self.compile(template, &web_template)?;
        let names = match (self.format, kept) {
            (Format::Flatten, _) => flat.names(),
            // Rows of an earlier run can still have these names.
            (Format::Preserve | Format::Canonical, Some(kept)) => kept.names.clone(),
            (Format::Preserve | Format::Canonical, None) => String::new(),
        };
        let stored = stored(template, web_template, names, self.clock.as_ref());
        let converter = self.make(template, flat, &stored).await?;
        let is_new = kept.is_none_or(|kept| kept.digest != stored.digest);
        if is_new && kept.is_some() {
            self.observer.event(&Event::Note(&format!(
                "the template `{template}` has changed since it was last exported; what is in the store keeps its \
                 keys until `atlas export --mode full`"
            )));
        }
        self.store.templates().save_template(&stored).await?;
        Ok((converter, is_new))
    }

    /// Makes the converter of a web template that was compiled.
    async fn make(
        &self,
        template: &TemplateId,
        flat: Flat,
        stored: &StoredTemplate,
    ) -> Result<Converter> {
        let flat = Arc::new(Flat {
            losses: self.cache.losses(template),
            fetched: Some(stored.fetched),
            ..flat
        });
        // Other ids differ from the source's on purpose.
        let verifies = self.verify_sample > 0 && self.ids == Ids::Ehrbase;
        let converter = if !verifies || self.matches_source(template, &flat).await? {
            Converter::Here(Arc::clone(&flat) as Arc<dyn Convert>)
        } else {
            self.fall_back(template)?
        };
        self.cache
            .insert(template, &converter, flat, stored.web_template.len());
        Ok(converter)
    }

    /// The source shows compositions of the template, so nobody asked for a name that does not exist: where the source answers
    /// other questions, this template cannot go on, and the others can.
    async fn without_web_template(&self, template: &TemplateId, error: Error) -> Error {
        let is_of_the_template = match error.kind() {
            ErrorKind::UnknownTemplate => true,
            ErrorKind::SourceUnreachable => self.source.templates().await.is_ok(),
            _ => false,
        };
        if !is_of_the_template {
            return error;
        }
        Error::new(
            ErrorKind::SourceUnsupported,
            format!("make FLAT of `{template}`: the source does not give its web template"),
        )
        .because(error)
        .fix("Ask the server for this web template yourself, and see its log. The format `canonical` needs none.")
    }

    async fn matches_source(&self, template: &TemplateId, flat: &Flat) -> Result<bool> {
        let compared = compare(
            self.source.as_ref(),
            template,
            flat.plan.ids(),
            flat,
            self.verify_sample,
        )
        .await?;
        if compared == Compared::default() {
            self.observer.event(&Event::Note(&format!(
                "the source gave no FLAT of `{template}` that ours could be compared with; ours is used"
            )));
        }
        Ok(compared.differing == 0)
    }

    fn fall_back(&self, template: &TemplateId) -> Result<Converter> {
        if self.format == Format::Flatten {
            return Err(Error::new(
                ErrorKind::SourceUnsupported,
                format!("make FLAT of `{template}` as the source does: a sampled composition differs"),
            )
            .fix("`flatten` is made here only: export this template with `preserve`, and report the template"));
        }
        refuse_source_while_edited(template, &self.transform)?;
        self.observer.event(&Event::Note(&format!(
            "our FLAT of `{template}` differs from the source's in the sample: its compositions are asked for one by \
             one, which is slow; please report the template"
        )));
        Ok(Converter::Source(Arc::clone(&self.source)))
    }
}

/// What a comparison with the source's own FLAT showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Compositions compared.
    pub compared: u64,
    /// Of these, how many differ in keys, values or number text.
    pub differing: u64,
}

/// Compares our FLAT of the first compositions of a template with the source's own, whatever the format of the export.
/// Compositions that the source cannot give, or not as FLAT, are left out.
///
/// # Errors
/// What the source could not do otherwise.
pub async fn compare(
    source: &dyn Source,
    template: &TemplateId,
    ids: Ids,
    flat: &Flat,
    sample: usize,
) -> Result<Compared> {
    let mut compared = Compared::default();
    // Only EHRbase's own ids can be compared with EHRbase.
    if ids != Ids::Ehrbase || sample == 0 {
        return Ok(compared);
    }
    let mut walker = Walker::new();
    let mut writer = JsonWriter::new();
    for page in first_readable(source, template, sample).await? {
        for row in &page.rows {
            let theirs = match source.flat(&row.meta).await {
                Ok(theirs) => theirs,
                Err(error) if error.kind().bisects() => continue,
                Err(error) => return Err(error),
            };
            if is_canonical(&theirs) {
                continue;
            }
            compared.compared += 1;
            let equal = writer
                .write(
                    &flat.plan,
                    &mut walker,
                    page.content(row),
                    Some(row.meta.uid.as_str()),
                )
                .is_ok_and(|ours| same(ours, &theirs));
            if !equal {
                compared.differing += 1;
            }
        }
    }
    Ok(compared)
}

/// So many times the sample are tried where the source cannot read each composition.
const TRIES: usize = 10;

/// The first `sample` compositions that the source can read.
async fn first_readable(
    source: &dyn Source,
    template: &TemplateId,
    sample: usize,
) -> Result<Vec<Page>> {
    let scope = Scope {
        templates: vec![template.clone()],
        ehrs: Vec::new(),
        window: Window::EVER,
    };
    match source.page(&scope, None, sample).await {
        Err(error) if error.kind().bisects() => {}
        answer => return answer.map(|page| vec![page]),
    }
    let mut pages = Vec::new();
    for meta in source
        .list(&scope, None, sample.saturating_mul(TRIES))
        .await?
    {
        if pages.len() == sample {
            break;
        }
        match source.fetch(&scope, &[meta.uid.object_id().clone()]).await {
            Ok(page) => pages.push(page),
            Err(error) if error.kind().bisects() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pages)
}

/// Whether a server without FLAT answered as it always does.
fn is_canonical(answer: &str) -> bool {
    Tape::parse(answer).is_ok_and(|tape| tape.root(answer).get("_type").is_some())
}

/// Whether two FLAT documents have the same keys with the same values, number text included.
fn same(ours: &str, theirs: &str) -> bool {
    let (Ok(our_tape), Ok(their_tape)) = (Tape::parse(ours), Tape::parse(theirs)) else {
        return false;
    };
    equal(our_tape.root(ours), their_tape.root(theirs))
}

fn equal(a: Node<'_>, b: Node<'_>) -> bool {
    if a.kind() != b.kind() || a.len() != b.len() {
        return false;
    }
    match a.kind() {
        Kind::Object => a.members().all(|(name, value)| {
            name.as_str()
                .and_then(|name| b.get(&name))
                .is_some_and(|other| equal(value, other))
        }),
        Kind::Array => a.items().zip(b.items()).all(|(a, b)| equal(a, b)),
        Kind::String => a.as_str() == b.as_str(),
        Kind::Number | Kind::Bool | Kind::Null => a.raw() == b.raw(),
    }
}
