//! Random histories against a model of a few lines: pages in any order, repeated, late, under old fences.
#![allow(missing_docs, reason = "the name is the sentence")]

use std::collections::BTreeMap;

use atlas_engine::model::{
    Committed, Counts, Format, Known, Meta, QuarantineFilter, Slice, SliceState,
};
use atlas_openehr::id::{ObjectId, ObjectVersion};
use fastrand::Rng;

use crate::Probe;
use crate::fixture::{Draft, at, meta, object, slice};

const OBJECTS: u32 = 12;
const STEPS: u64 = 150;
const CONTENTS: [&str; 2] = [r#"{"systolic":120}"#, r#"{"systolic":121}"#];
const FORMATS: [Format; 2] = [Format::Canonical, Format::Preserve];

/// What a store is, as simply as it can be said.
#[derive(Default)]
struct Model {
    rows: BTreeMap<ObjectId, (u32, Format, &'static str)>,
    waiting: BTreeMap<ObjectId, (u32, u32)>,
}

/// A page as the model sees it.
struct Plan {
    rows: Vec<(Meta, &'static str)>,
    rejected: Vec<Meta>,
    filtered: u64,
    format: Format,
}

impl Model {
    fn apply(&mut self, plan: &Plan) -> Counts {
        let mut counts = Counts {
            filtered: plan.filtered,
            ..Counts::default()
        };
        for (meta, content) in &plan.rows {
            let (object, version) = (meta.uid.object_id(), meta.uid.version());
            let new = (version, plan.format, *content);
            match self.rows.get(object) {
                Some(old) if old.0 > version || *old == new => counts.unchanged += 1,
                _ => {
                    self.rows.insert(object.clone(), new);
                    counts.written += 1;
                }
            }
            if self
                .waiting
                .get(object)
                .is_some_and(|(entry, _)| *entry <= version)
            {
                self.waiting.remove(object);
            }
        }
        for meta in &plan.rejected {
            let (object, version) = (meta.uid.object_id(), meta.uid.version());
            counts.quarantined += 1;
            let overtaken = self.rows.get(object).is_some_and(|row| row.0 > version);
            match self.waiting.get_mut(object) {
                _ if overtaken => {}
                Some(entry) if entry.0 > version => {}
                Some(entry) if entry.0 == version => entry.1 += 1,
                _ => {
                    self.waiting.insert(object.clone(), (version, 1));
                }
            }
        }
        counts.read = counts.written + counts.unchanged + counts.filtered + counts.quarantined;
        counts
    }

    fn known(&self) -> BTreeMap<ObjectId, Known> {
        let rows = self.rows.iter().map(|(object, row)| (object, row.0));
        let waiting = self.waiting.iter().map(|(object, entry)| (object, entry.0));
        let mut known: BTreeMap<ObjectId, Known> = BTreeMap::new();
        for (object_id, version) in rows.chain(waiting) {
            let version = ObjectVersion {
                object_id: object_id.clone(),
                version,
            };
            known
                .entry(object_id.clone())
                .and_modify(|known| known.version = version.clone().max(known.version.clone()))
                .or_insert(Known { version });
        }
        known
    }
}

fn random_plan(rng: &mut Rng) -> Plan {
    let mut numbers: Vec<u32> = (0..OBJECTS).collect();
    rng.shuffle(&mut numbers);
    let mut plan = Plan {
        rows: Vec::new(),
        rejected: Vec::new(),
        filtered: rng.u64(0..3),
        format: FORMATS[usize::from(rng.u8(0..5) == 0)],
    };
    for number in numbers.into_iter().take(rng.usize(0..6)) {
        let meta = meta(number, rng.u32(1..5));
        if rng.u8(0..4) == 0 {
            plan.rejected.push(meta);
        } else {
            plan.rows
                .push((meta, CONTENTS[usize::from(rng.u8(0..6) == 0)]));
        }
    }
    plan
}

fn draft(plan: &Plan, step: u64) -> Draft {
    let mut draft = Draft {
        filtered: plan.filtered,
        format: plan.format,
        // Each page ends at a place of its own, as the pages of a slice do.
        cursor: Some(atlas_engine::model::Cursor {
            committed: at(1000 + step),
            object: object(0),
            position: None,
        }),
        state: SliceState::Open,
        ..Draft::new().at(at(step))
    };
    for (meta, content) in &plan.rows {
        draft = draft.row(meta.clone(), content);
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
    store.add_slices(&slices).await.unwrap();
    let mut model = Model::default();

    for step in 0..STEPS {
        let stands = rng.choice(&mut slices).unwrap();
        let before = stands.clone();
        if rng.u8(0..6) == 0 {
            let taken = Slice {
                fence: before.fence + 1,
                ..before.clone()
            };
            *stands = store.swap_slice(&before, &taken).await.unwrap().unwrap();
            let late = draft(&random_plan(&mut rng), step);
            let answer = late.try_commit(&*store, &before).await.unwrap();
            assert_eq!(answer, Committed::Lost, "an old fence, step {step}");
            continue;
        }
        let plan = random_plan(&mut rng);
        let page = draft(&plan, step);
        let after = page.commit(&*store, &before).await;
        let mut expected = Slice {
            step: before.step + 1,
            cursor: page.cursor.clone(),
            lease_until: page.lease_until,
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
            store.slice(&stands.id).await.unwrap().as_ref(),
            Some(stands)
        );
    }
    let rows: Vec<_> = probe
        .rows()
        .await
        .into_iter()
        .map(|row| {
            (
                row.id,
                row.version,
                row.export_mode,
                row.content.contains("120"),
            )
        })
        .collect();
    let expected: Vec<_> = model
        .rows
        .iter()
        .map(|(id, (version, format, content))| {
            (
                id.as_str().to_owned(),
                *version,
                format.name().to_owned(),
                content.contains("120"),
            )
        })
        .collect();
    assert_eq!(rows, expected);
    let mut waiting: Vec<_> = store
        .quarantined(&QuarantineFilter::default())
        .await
        .unwrap()
        .into_iter()
        .map(|entry| {
            (
                entry.meta.uid.object_id().clone(),
                (entry.meta.uid.version(), entry.tries),
            )
        })
        .collect();
    waiting.sort();
    assert_eq!(
        waiting,
        model.waiting.clone().into_iter().collect::<Vec<_>>()
    );
    let all: Vec<ObjectId> = (0..OBJECTS).map(object).collect();
    let known: BTreeMap<_, _> = store.known(&all).await.unwrap().into_iter().collect();
    assert_eq!(known, model.known());
}
