//! Random histories against a model of a few lines: pages in any order, repeated, late, under old fences; deletes, and compositions
//! that move to another EHR or template.
#![allow(missing_docs, reason = "the name is the sentence")]

use std::collections::BTreeMap;

use atlas_engine::model::{Committed, Counts, Cursor, DeleteReason, Format, Meta, Slice};
use atlas_openehr::id::{EhrId, ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use fastrand::Rng;

use crate::Probe;
use crate::fixture::{
    Draft, at, filtered, meta, object, page, quarantined, row_of, rows, shown, slice,
};

const OBJECTS: u32 = 12;
const STEPS: u64 = 150;
const CONTENTS: [&str; 2] = [r#"{"systolic":120}"#, r#"{"systolic":121}"#];
const FORMATS: [Format; 2] = [Format::Canonical, Format::Preserve];
const RUNS: [&str; 3] = ["run 1", "run 2", "run 3"];

/// What a store is, as simply as it can be said.
#[derive(Default)]
struct Model {
    rows: BTreeMap<ObjectId, Held>,
    waiting: BTreeMap<ObjectId, Waiting>,
}

#[derive(Clone, PartialEq)]
struct Held {
    meta: Meta,
    format: Format,
    content: &'static str,
    asked: Instant,
    deleted: bool,
}

struct Waiting {
    version: u32,
    tries: u32,
    tried_by: &'static str,
}

/// A page as the model sees it. A row without content is a delete.
struct Plan {
    rows: Vec<(Meta, Option<&'static str>, Instant)>,
    rejected: Vec<Meta>,
    filtered: u64,
    format: Format,
    run: &'static str,
}

impl Model {
    fn apply(&mut self, plan: &Plan) -> Counts {
        let mut counts = Counts {
            filtered: plan.filtered,
            ..Counts::default()
        };
        for meta in &plan.rejected {
            self.reject(meta, plan.run, &mut counts);
        }
        for (meta, content, asked) in &plan.rows {
            match content {
                Some(content) => self.write(meta, content, *asked, plan.format, &mut counts),
                None => self.delete(meta, *asked, &mut counts),
            }
            let (object, version) = (meta.uid.object_id(), meta.uid.version());
            if self
                .waiting
                .get(object)
                .is_some_and(|entry| entry.version <= version)
            {
                self.waiting.remove(object);
            }
        }
        counts.read = counts.written
            + counts.unchanged
            + counts.filtered
            + counts.quarantined
            + counts.deleted;
        counts
    }

    fn write(
        &mut self,
        meta: &Meta,
        content: &'static str,
        asked: Instant,
        format: Format,
        counts: &mut Counts,
    ) {
        let new = Held {
            meta: meta.clone(),
            format,
            content,
            asked,
            deleted: false,
        };
        let Some(old) = self.rows.get_mut(meta.uid.object_id()) else {
            counts.written += 1;
            counts.inserted += 1;
            self.rows.insert(meta.uid.object_id().clone(), new);
            return;
        };
        let (mine, theirs) = (meta.uid.version(), old.meta.uid.version());
        let same = Held {
            asked,
            ..old.clone()
        } == new;
        let wins = if old.deleted {
            asked > old.asked
        } else {
            asked >= old.asked
        };
        if mine == theirs && same {
            counts.unchanged += 1;
            old.asked = old.asked.max(asked);
        } else if mine > theirs || mine == theirs && wins {
            counts.written += 1;
            counts.inserted += u64::from(old.deleted);
            *old = new;
        } else {
            counts.unchanged += 1;
        }
    }

    fn delete(&mut self, meta: &Meta, asked: Instant, counts: &mut Counts) {
        let held = self.rows.get_mut(meta.uid.object_id());
        let named = held.filter(|held| held.meta.uid.version() == meta.uid.version());
        match named {
            Some(held) if held.deleted => {
                held.asked = held.asked.max(asked);
                counts.unchanged += 1;
            }
            Some(held) if asked >= held.asked => {
                (held.deleted, held.asked) = (true, asked);
                counts.deleted += 1;
            }
            _ => counts.unchanged += 1,
        }
    }

    fn reject(&mut self, meta: &Meta, run: &'static str, counts: &mut Counts) {
        let (object, version) = (meta.uid.object_id(), meta.uid.version());
        let overtaken = |held: &Held| held.meta.uid.version() > version;
        if self.rows.get(object).is_some_and(overtaken) {
            counts.unchanged += 1;
            return;
        }
        counts.quarantined += 1;
        match self.waiting.get_mut(object) {
            Some(entry) if entry.version > version => {}
            Some(entry) if entry.version == version => {
                entry.tries += u32::from(entry.tried_by != run);
                entry.tried_by = run;
            }
            _ => {
                let entry = Waiting {
                    version,
                    tries: 1,
                    tried_by: run,
                };
                self.waiting.insert(object.clone(), entry);
            }
        }
    }
}

fn random_plan(rng: &mut Rng, step: u64) -> Plan {
    let mut numbers: Vec<u32> = (0..OBJECTS).collect();
    rng.shuffle(&mut numbers);
    let mut plan = Plan {
        rows: Vec::new(),
        rejected: Vec::new(),
        filtered: rng.u64(0..3),
        format: FORMATS[usize::from(rng.u8(0..5) == 0)],
        run: RUNS[rng.usize(0..RUNS.len())],
    };
    for number in numbers.into_iter().take(rng.usize(0..6)) {
        let mut meta = meta(number, rng.u32(1..5));
        match rng.u8(0..12) {
            0 => meta.ehr = EhrId::new("another EHR"),
            1 => meta.template = TemplateId::new("Laboratory.v2"),
            _ => {}
        }
        // Some answers are from a while ago.
        let asked = at(1000 + step - rng.u64(0..8));
        match rng.u8(0..8) {
            0 | 1 => plan.rejected.push(meta),
            2 | 3 => plan.rows.push((meta, None, asked)),
            _ => {
                let content = CONTENTS[usize::from(rng.u8(0..6) == 0)];
                plan.rows.push((meta, Some(content), asked));
            }
        }
    }
    plan
}

fn draft(probe: &dyn Probe, plan: &Plan, step: u64) -> Draft {
    let mut draft = Draft {
        filtered: filtered(plan.filtered),
        format: plan.format,
        run: plan.run.to_owned(),
        // Each page ends at a place of its own, as the pages of a slice do.
        cursor: Some(Cursor {
            committed: at(1000 + step),
            object: object(0),
            position: step.is_multiple_of(2).then(|| format!("place {step}")),
        }),
        ..page(probe).at(at(step))
    };
    for (meta, content, asked) in &plan.rows {
        let page = draft.asked(*asked);
        draft = match content {
            Some(content) => page.row(meta.clone(), content),
            None => page.delete(meta.clone(), at(step), DeleteReason::Deleted),
        };
    }
    for meta in &plan.rejected {
        draft = draft.reject(meta.clone());
    }
    draft
}

pub async fn random_histories_end_as_the_model_says(probe: &dyn Probe) {
    let seed = match std::env::var("ATLAS_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ATLAS_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    // Printed by the test harness if this test fails, and only then.
    #[allow(clippy::print_stdout)]
    {
        println!("repeat with ATLAS_TEST_SEED={seed}");
    }
    let mut rng = Rng::with_seed(seed);
    let store = probe.store();
    store.prepare().await.unwrap();
    let mut slices: Vec<Slice> = (0..3)
        .map(|number| slice(&format!("slice {number}")))
        .collect();
    store.ledger().add_slices(&slices).await.unwrap();
    let mut model = Model::default();

    for step in 0..STEPS {
        let stands = rng.choice(&mut slices).unwrap();
        let before = stands.clone();
        if rng.u8(0..6) == 0 {
            let taken = Slice {
                fence: before.fence + 1,
                ..before.clone()
            };
            *stands = store
                .ledger()
                .swap_slice(&before, &taken)
                .await
                .unwrap()
                .unwrap();
            let late = draft(probe, &random_plan(&mut rng, step), step);
            let answer = late.try_commit(&*store, &before).await.unwrap();
            assert_eq!(answer, Committed::Lost, "an old fence, step {step}");
            continue;
        }
        let plan = random_plan(&mut rng, step);
        let page = draft(probe, &plan, step);
        let after = page.commit(&*store, &before).await;
        let mut expected = Slice {
            step: before.step + 1,
            page: before.page + 1,
            cursor: page.cursor.clone(),
            lease_until: page.lease_until,
            moved: Some(page.now),
            ..before.clone()
        };
        expected.counts += model.apply(&plan);
        assert_eq!(after, expected, "step {step}");
        if rng.bool() {
            let again = page.commit(&*store, &before).await;
            assert_eq!(again, expected, "the answer got lost, step {step}");
        }
        *stands = after;
    }

    for stands in &slices {
        assert!(stands.counts.conserved());
        assert_eq!(
            store.ledger().slice(&stands.id).await.unwrap().as_ref(),
            Some(stands)
        );
    }
    assert_eq!(rows(probe).await.len(), model.rows.len());
    for number in 0..OBJECTS {
        let Some(held) = model.rows.get(&object(number)) else {
            continue;
        };
        let row = row_of(probe, number).await;
        assert_eq!(row.meta, shown(probe, &held.meta));
        let read = (row.format, row.asked, row.deleted.is_some());
        assert_eq!(
            read,
            (held.format, held.asked, held.deleted),
            "object {number}"
        );
        assert_eq!(row.content.contains("120"), held.content.contains("120"));
    }
    let mut waiting: Vec<_> = quarantined(&*store)
        .await
        .into_iter()
        .map(|entry| {
            let object = entry.meta.uid.object_id().clone();
            (
                object,
                entry.meta.uid.version(),
                entry.tries,
                entry.tried_by,
            )
        })
        .collect();
    waiting.sort();
    let expected: Vec<_> = model
        .waiting
        .iter()
        .map(|(object, entry)| {
            let tried_by = entry.tried_by.to_owned();
            (object.clone(), entry.version, entry.tries, tried_by)
        })
        .collect();
    assert_eq!(waiting, expected);
    let counts = store.ledger().template_counts().await.unwrap();
    let alive = model.rows.values().filter(|held| !held.deleted).count() as u64;
    let counted: u64 = counts.iter().map(|counts| counts.compositions()).sum();
    assert_eq!(counted, alive, "inserted without deleted");
}
