//! FLAT of a live EHRbase beside ours, for compositions that are made at random.
//!
//! - [`templates`]: templates of the corpus, and templates made from them: every type of value in
//!   one place, labels that clash.
//! - [`values`]: values of every type, with the attributes that are optional.
//! - [`generate`]: a composition of the corpus with more in it than anyone recorded.
//!
//! A seed says everything: the same seed gives the same composition on every machine.

mod generate;
mod templates;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use atlas_ehrbase::{EhrBase, ErrorKind, Shared, shared};
use atlas_openehr::flat::{Ids, JsonWriter, Plan, Walker};
use atlas_openehr::json::{Kind, Tape, canonicalize};
use atlas_openehr::webtemplate::WebTemplate;
use generate::{Generator, Places};
use templates::Base;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// What a seed showed.
pub(crate) enum Outcome {
    /// Both made the same keys and values.
    Equal,
    /// The server did not take the composition, or cannot read it back.
    Refused,
    /// Some keys are missing, too many or have another value.
    Different {
        /// The template's id.
        template: String,
        /// One line for each key: ours and theirs.
        keys: Vec<String>,
    },
}

/// A server, and what compositions are made from.
pub(crate) struct Campaign {
    server: EhrBase,
    ehr: String,
    bases: Vec<Base>,
    templates: Mutex<HashMap<String, &'static Template>>,
}

struct Template {
    plan: Plan,
    places: Places,
}

impl Campaign {
    /// Finds the server as every test does, and loads the templates that are made here.
    pub(crate) async fn start() -> Result<Self> {
        let Shared { ehrbase, loaded } = shared().await?;
        let bases = templates::load(&ehrbase, &loaded).await?;
        Ok(Self {
            ehr: ehrbase.create_ehr().await?,
            server: ehrbase,
            bases,
            templates: Mutex::default(),
        })
    }

    /// How many compositions there are to start from.
    pub(crate) fn bases(&self) -> usize {
        self.bases.len()
    }

    /// Makes the composition of a seed, stores it and compares.
    pub(crate) async fn run(&self, seed: u64) -> Result<Outcome> {
        let mut generator = Generator::new(seed);
        let base = generator.choose(&self.bases);
        let template = self.template(&base.template_id).await?;
        let sent = generator.composition(&base.canonical, &template.places)?;
        let stored = self.server.post_composition(&self.ehr, &sent).await;
        let uid = match stored {
            Ok(uid) => uid,
            Err(error) if matches!(error.kind(), ErrorKind::Status(_)) => {
                return Ok(Outcome::Refused);
            }
            Err(error) => return Err(error.into()),
        };
        let canonical = self.server.get_canonical(&self.ehr, &uid).await;
        let theirs = self.server.get_flat(&self.ehr, &uid).await;
        let (canonical, theirs) = match (canonical, theirs) {
            (Ok(canonical), Ok(theirs)) => (canonical, theirs),
            (Err(error), _) | (_, Err(error)) => {
                return match error.kind() {
                    ErrorKind::Status(_) => Ok(Outcome::Refused),
                    _ => Err(error.into()),
                };
            }
        };
        let tape = Tape::parse(&canonical)?;
        let mut writer = JsonWriter::new();
        let root = tape.root(&canonical);
        let ours = writer.write(&template.plan, &mut Walker::new(), root, None)?;
        let keys = differences(&facts(ours)?, &facts(&theirs)?);
        Ok(match keys.is_empty() {
            true => Outcome::Equal,
            false => Outcome::Different {
                template: base.template_id.clone(),
                keys,
            },
        })
    }

    /// The template as the server serves it, compiled once.
    async fn template(&self, id: &str) -> Result<&'static Template> {
        let known = |templates: &HashMap<String, &'static Template>| templates.get(id).copied();
        if let Some(template) = self.templates.lock().ok().and_then(|all| known(&all)) {
            return Ok(template);
        }
        let text = templates::served(&self.server, id).await?;
        let template = Template {
            plan: Plan::compile(&WebTemplate::parse(&text)?, Ids::Ehrbase)?,
            places: Places::of(&text)?,
        };
        // Lives as long as the process, which is as long as the campaign.
        let template: &'static Template = Box::leak(Box::new(template));
        if let Ok(mut templates) = self.templates.lock() {
            templates.insert(id.to_owned(), template);
        }
        Ok(template)
    }
}

/// Keys and values, so that spelling of strings and order of members do not count but the text of
/// numbers does.
fn facts(flat: &str) -> Result<BTreeMap<String, String>> {
    let tape = Tape::parse(flat)?;
    let members = tape.root(flat).members().map(|(name, value)| {
        let mut text = String::new();
        match value.kind() {
            Kind::Number => text.push_str(value.raw()),
            _ => canonicalize(value, &mut text),
        }
        (name.as_str().unwrap_or_default().into_owned(), text)
    });
    Ok(members.collect())
}

fn differences(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> Vec<String> {
    let mut keys: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| ours.get(*key) != theirs.get(*key))
        .map(|key| {
            let shown = |found: Option<&String>| found.map_or("absent", |value| value).to_owned();
            format!(
                "{key}: ours {}, theirs {}",
                shown(ours.get(key)),
                shown(theirs.get(key))
            )
        })
        .collect()
}
