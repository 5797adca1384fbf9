//! Everything the server knows about its compositions, apart from their text: the generated [`Base`] and,
//! over it, the few compositions that were changed or added since.
//!
//! A query works on an [`Arc`](std::sync::Arc) of a `World`, so that an answer that is still being sent does
//! not see later changes: the same as a snapshot in a database. What is visible also depends on the time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use crate::{
    base::{Base, mix},
    templates::Template,
};

/// One visible composition: the latest version of its object, as a row of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) number: u64,
    pub(crate) committed_us: i64,
    pub(crate) object_id: u128,
    pub(crate) version: u32,
    pub(crate) change: Change,
    pub(crate) template: Template,
    pub(crate) patient: u64,
}

/// What a commit did to a composition, with openEHR's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Creation,
    Modification,
    Deleted,
}

impl Change {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creation => "creation",
            Self::Modification => "modification",
            Self::Deleted => "deleted",
        }
    }

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Creation => "249",
            Self::Modification => "251",
            Self::Deleted => "523",
        }
    }
}

/// One commit to an object. Its number is its place in the list of versions, from 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    pub(crate) committed_us: i64,
    /// When readers begin to see it: later than the commit time for a commit that took long.
    pub(crate) visible_us: i64,
    pub(crate) change: Change,
}

/// A composition that is not, or no longer, what the base says.
#[derive(Debug, Clone)]
struct Object {
    id: u128,
    template: Template,
    patient: u64,
    versions: Vec<Version>,
    erased: bool,
}

/// What a reader of one object finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is no such object or version, or it was physically deleted.
    Nothing,
    /// The version is, or the latest version is, a logical delete.
    Deleted,
    Composition(Row),
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    base: Base,
    objects: BTreeMap<u64, Object>,
    added: HashMap<u128, u64>,
    next: u64,
    unreadable: BTreeSet<u64>,
}

impl World {
    pub(crate) fn new(base: Base) -> Self {
        Self {
            next: base.size(),
            base,
            objects: BTreeMap::new(),
            added: HashMap::new(),
            unreadable: BTreeSet::new(),
        }
    }

    pub(crate) fn base(&self) -> &Base {
        &self.base
    }

    /// How many numbers are in use: those of the base, then those of added compositions.
    pub(crate) fn numbers(&self) -> u64 {
        self.next
    }

    pub(crate) fn object_id(&self, number: u64) -> u128 {
        match self.objects.get(&number) {
            Some(object) => object.id,
            None => self.base.object_id(number),
        }
    }

    pub(crate) fn template(&self, number: u64) -> Template {
        match self.objects.get(&number) {
            Some(object) => object.template,
            None => self.base.template(number),
        }
    }

    pub(crate) fn find(&self, object_id: u128) -> Option<u64> {
        self.added
            .get(&object_id)
            .copied()
            .or_else(|| self.base.find(object_id))
    }

    /// Commit time of version 1, which the content of every version refers to.
    pub(crate) fn created_us(&self, number: u64) -> i64 {
        self.objects
            .get(&number)
            .and_then(|object| object.versions.first())
            .map_or_else(|| self.base.committed_us(number), |v| v.committed_us)
    }

    /// The versions that are visible at `now_us`; none if the object was physically deleted.
    pub(crate) fn versions(&self, number: u64, now_us: i64) -> Vec<Version> {
        match self.objects.get(&number) {
            Some(object) if object.erased => Vec::new(),
            Some(object) => object.visible(now_us).to_vec(),
            None => vec![self.first_version(number)],
        }
    }

    /// The latest version of `number`, or the one asked for.
    pub(crate) fn look_up(&self, number: u64, version: Option<u32>, now_us: i64) -> Found {
        let versions = self.versions(number, now_us);
        let place = match version {
            Some(version) => version as usize,
            None => versions.len(),
        };
        let Some(found) = place.checked_sub(1).and_then(|at| versions.get(at)) else {
            return Found::Nothing;
        };
        if found.change == Change::Deleted {
            return Found::Deleted;
        }
        Found::Composition(Row {
            number,
            committed_us: found.committed_us,
            object_id: self.object_id(number),
            version: place as u32,
            change: found.change,
            template: self.template(number),
            patient: self.patient(number),
        })
    }

    /// The row of `number` in queries at `now_us`.
    pub(crate) fn row(&self, number: u64, now_us: i64) -> Option<Row> {
        match self.look_up(number, None, now_us) {
            Found::Composition(row) => Some(row),
            Found::Nothing | Found::Deleted => None,
        }
    }

    /// The row of a composition that nobody has changed; `None` for one that is in [`Self::changed_rows`].
    pub(crate) fn base_row(&self, number: u64) -> Option<Row> {
        (!self.objects.contains_key(&number)).then(|| Row {
            number,
            committed_us: self.base.committed_us(number),
            object_id: self.base.object_id(number),
            version: 1,
            change: Change::Creation,
            template: self.base.template(number),
            patient: self.base.patient(number),
        })
    }

    /// The rows, at `now_us`, of everything that was changed or added.
    pub(crate) fn changed_rows(&self, now_us: i64) -> impl Iterator<Item = Row> {
        self.objects
            .keys()
            .filter_map(move |number| self.row(*number, now_us))
    }

    /// The compositions of the base in `range` that are in [`Self::changed_rows`] instead.
    pub(crate) fn changed_in(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let range = range.start..range.end.max(range.start);
        self.objects.range(range).map(|(number, _)| *number)
    }

    pub(crate) fn is_unreadable(&self, number: u64) -> bool {
        self.unreadable.contains(&number)
    }

    pub(crate) fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    pub(crate) fn set_unreadable(&mut self, number: u64, unreadable: bool) {
        if unreadable {
            self.unreadable.insert(number);
        } else {
            self.unreadable.remove(&number);
        }
    }

    /// Adds a new composition and returns its number.
    pub(crate) fn add(&mut self, template: Template, committed_us: i64, visible_us: i64) -> u64 {
        let number = self.next;
        self.next += 1;
        let id = self.id_of_added(number);
        self.added.insert(id, number);
        let version = Version {
            committed_us,
            visible_us,
            change: Change::Creation,
        };
        self.objects.insert(
            number,
            Object {
                id,
                template,
                patient: self.base.patient(number),
                versions: vec![version],
                erased: false,
            },
        );
        number
    }

    /// Adds a version to `number`, which must be in use and not erased: otherwise nothing happens and `false` is returned.
    pub(crate) fn commit(&mut self, number: u64, version: Version) -> bool {
        match self.touch(number) {
            Some(object) if !object.erased => {
                object.versions.push(version);
                true
            }
            _ => false,
        }
    }

    /// Deletes `number` physically.
    pub(crate) fn erase(&mut self, number: u64) -> bool {
        match self.touch(number) {
            Some(object) => !std::mem::replace(&mut object.erased, true),
            None => false,
        }
    }

    fn touch(&mut self, number: u64) -> Option<&mut Object> {
        if number >= self.next {
            return None;
        }
        if !self.objects.contains_key(&number) {
            let object = Object {
                id: self.base.object_id(number),
                template: self.base.template(number),
                patient: self.base.patient(number),
                versions: vec![self.first_version(number)],
                erased: false,
            };
            self.objects.insert(number, object);
        }
        self.objects.get_mut(&number)
    }

    fn first_version(&self, number: u64) -> Version {
        let committed_us = self.base.committed_us(number);
        Version {
            committed_us,
            visible_us: committed_us,
            change: Change::Creation,
        }
    }

    fn patient(&self, number: u64) -> u64 {
        match self.objects.get(&number) {
            Some(object) => object.patient,
            None => self.base.patient(number),
        }
    }

    pub(crate) fn ehr_id(&self, number: u64) -> u128 {
        self.base.ehr_id(self.patient(number))
    }

    fn id_of_added(&self, number: u64) -> u128 {
        let seed = self.base.seed();
        let random = u128::from(mix(seed ^ 0x6164_6465, number)) << 64
            | u128::from(mix(seed ^ 0x6461_6464, number));
        uuid::Builder::from_random_bytes(random.to_be_bytes())
            .into_uuid()
            .as_u128()
    }
}

impl Object {
    /// Versions up to the last one that is visible. They become visible in their order, as the version before is locked.
    fn visible(&self, now_us: i64) -> &[Version] {
        let hidden = self
            .versions
            .iter()
            .position(|version| version.visible_us > now_us)
            .unwrap_or(self.versions.len());
        &self.versions[..hidden]
    }
}
