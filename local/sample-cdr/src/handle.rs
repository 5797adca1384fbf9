//! What a test or the demo can do to a running server.
//!
//! Compositions are addressed by number: those the server was started with from 0 in the order of their
//! commits, then those added later. A number that is not in use changes nothing.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock::Ticking,
    counters::{Counters, Tally},
    faults::{Rule, Script},
    query::{self, Style},
    quirks::Quirks,
    templates::Template,
    world::{Change, Version, World},
};

/// The state of a running server.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) world: RwLock<Arc<World>>,
    pub(crate) clock: Ticking,
    pub(crate) tally: Arc<Tally>,
    pub(crate) script: Mutex<Script>,
    pub(crate) style: Style,
    pub(crate) quirks: RwLock<Arc<Quirks>>,
    /// The `Authorization` header that is let in; `None` lets everyone in.
    pub(crate) authorization: Option<String>,
    pub(crate) gzip: bool,
    pub(crate) stopping: CancellationToken,
}

impl App {
    /// The world as it is now; later changes do not show in it.
    pub(crate) fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The ways of the server as they are now.
    pub(crate) fn quirks(&self) -> Arc<Quirks> {
        Arc::clone(&self.quirks.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut world))
    }

    pub(crate) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a commit happened. The time is taken as a request starts; a long one shows its rows later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The commit time that readers see.
    pub committed: Timestamp,
    /// When readers begin to see it.
    pub visible: Timestamp,
}

/// Changes a running server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    app: Arc<App>,
}

impl Handle {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    /// What the server was asked so far.
    pub fn counters(&self) -> Counters {
        self.app.tally.read()
    }

    /// The server's time.
    pub fn now(&self) -> Timestamp {
        timestamp(self.app.clock.now_us())
    }

    /// Moves a [`crate::Clock::Fixed`] clock forward; a real one goes by itself.
    pub fn advance(&self, by: Duration) {
        self.app.clock.advance(by);
    }

    /// Adds a rule for answers to come.
    pub fn inject(&self, rule: Rule) {
        self.app.script().add(rule);
    }

    /// Ends all faults. Unreadable compositions stay unreadable.
    pub fn clear_faults(&self) {
        self.app.script().clear();
    }

    /// Replaces the ways of the server; the default has none.
    pub fn set_quirks(&self, quirks: Quirks) {
        *self
            .app
            .quirks
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(quirks);
    }

    /// How many numbers are in use, deleted compositions included.
    pub fn numbers(&self) -> u64 {
        self.app.world().numbers()
    }

    /// The template of composition `number`.
    pub fn template(&self, number: u64) -> Template {
        self.app.world().template(number)
    }

    /// The version uid of the latest visible version of `number`; `None` if it was deleted.
    pub fn version_uid(&self, number: u64) -> Option<String> {
        self.read(number, |row, _| {
            query::version_uid(row.object_id, row.version)
        })
    }

    /// Commit time of the latest visible version of `number`; `None` if it was deleted.
    pub fn committed(&self, number: u64) -> Option<Timestamp> {
        self.read(number, |row, _| timestamp(row.committed_us))
    }

    /// The EHR that composition `number` belongs to; `None` if it was deleted.
    pub fn ehr_id(&self, number: u64) -> Option<String> {
        self.read(number, |row, world| {
            Uuid::from_u128(world.base().ehr_id(row.patient)).to_string()
        })
    }

    /// The latest visible version of `number` as the server prints it; `None` if it was deleted.
    pub fn content(&self, number: u64) -> Option<String> {
        self.read(number, |row, world| {
            let mut text = String::new();
            query::write_composition(&mut text, row, world, self.app.style);
            text
        })
    }

    /// Commits a new composition now, about a patient of the server's choice, and returns its number.
    pub fn commit(&self, template: Template) -> u64 {
        self.commit_at(template, self.at_once())
    }

    /// Commits a new composition at another time, for late arrivals.
    pub fn commit_at(&self, template: Template, when: Commit) -> u64 {
        let (committed_us, visible_us) = micros(when);
        self.app
            .change(|world| world.add(template, committed_us, visible_us))
    }

    /// Commits a new version of `number` with other values: its row moves to the end. Also brings a deleted one back.
    pub fn update(&self, number: u64) -> bool {
        self.update_at(number, self.at_once())
    }

    /// Commits a new version at another time.
    pub fn update_at(&self, number: u64, when: Commit) -> bool {
        self.add_version(number, Change::Modification, when)
    }

    /// Deletes `number` logically: queries no longer show it, its history does.
    pub fn delete(&self, number: u64) -> bool {
        self.add_version(number, Change::Deleted, self.at_once())
    }

    /// Deletes `number` physically: nothing remains.
    pub fn erase(&self, number: u64) -> bool {
        self.app.change(|world| world.erase(number))
    }

    /// Makes every read of the content of `number` fail, as EHRbase does with data it cannot read back.
    pub fn set_unreadable(&self, number: u64, unreadable: bool) {
        self.app
            .change(|world| world.set_unreadable(number, unreadable));
    }

    fn add_version(&self, number: u64, change: Change, when: Commit) -> bool {
        let (committed_us, visible_us) = micros(when);
        self.app.change(|world| {
            world.commit(
                number,
                Version {
                    committed_us,
                    visible_us,
                    change,
                },
            )
        })
    }

    fn at_once(&self) -> Commit {
        let now = self.now();
        Commit {
            committed: now,
            visible: now,
        }
    }

    fn read<T>(
        &self,
        number: u64,
        what: impl FnOnce(&crate::world::Row, &World) -> T,
    ) -> Option<T> {
        let world = self.app.world();
        if number >= world.numbers() {
            return None;
        }
        let row = world.row(number, self.app.clock.now_us())?;
        Some(what(&row, &world))
    }
}

fn micros(when: Commit) -> (i64, i64) {
    (
        when.committed.as_microsecond(),
        when.visible.as_microsecond(),
    )
}

fn timestamp(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or(Timestamp::MIN)
}
