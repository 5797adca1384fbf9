//! Alarms over series that were recorded from runs of the shipped programs on the hosts of this machine: the rules as they are deployed,
//! the times that `docs/deploy` promises, and a copy that is complete after the cure without a hand.
//!
//! | fault | host | a minute lasts |
//! |---|---|---|
//! | the source takes requests and never answers | Azure | 200 ms |
//! | the source takes most of the time that it has for a page, and some compositions cannot be read | Lambda | 200 ms |
//! | the source is off for 8 hours | Azure | 40 ms |
//! | the store takes longer than a statement may | Lambda | 200 ms |
//!
//! All run at once, when the first test asks for its own: they wait most of the time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use atlas_emulators::Door;
use atlas_sample_cdr::{Clock, Fault, Handle, On, Running, Template};
use atlas_scenarios::assert_copy;
use atlas_scenarios::hosted::recorded::Recorder;
use atlas_scenarios::hosted::{Cloud, Queues, Wanted};
use atlas_scenarios::infra::alarms::{self, Row, Rule};
use atlas_scenarios::source::{object_id, of_sample, sample};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::DEPLOYMENT;
use super::alarms::{azure, promised};

/// How long a minute lasts: a part and a request, which are set in whole seconds, last for about four of them as in reality.
const MINUTE: Duration = Duration::from_millis(200);
/// The same for what takes hours.
const SHORT_MINUTE: Duration = Duration::from_millis(40);
/// Between two ticks of the planner.
const PLAN: u64 = 15;
/// What an operator may wait for after the cure: a slice that has failed is tried again after an hour, by the next tick.
const PATIENCE: u64 = 60 + 2 * PLAN + 30;
/// Slices that a worker has begun.
const BEGUN: &str = "SELECT count(*) FROM atlas_slices WHERE state = 'open' AND moved IS NOT NULL";
const HANGS: Fault = Fault::Latency { millis: 3_600_000 };

/// A run with a fault.
struct Recorded {
    cloud: Cloud,
    rows: Vec<Row>,
    /// The minute of the fault.
    fault: u64,
    /// The minute of the cure.
    cure: u64,
}

/// What runs, and what is recorded.
struct Watched {
    _server: Running,
    cdr: Handle,
    door: Door,
    recorder: Recorder,
}

impl Watched {
    /// A suite that has copied everything there was, and finds news at the tick that comes now.
    async fn with_news(cloud: Cloud, minute: Duration) -> Self {
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
        let server = sample(30).clock(Clock::Fixed(now)).start().await.unwrap();
        let cdr = server.handle();
        let mut seen: reqwest::Url = server.base_url().parse().unwrap();
        let address = (Ipv4Addr::LOCALHOST, seen.port().unwrap()).into();
        let door = Door::start(address).await.unwrap();
        seen.set_port(Some(door.address().port())).unwrap();
        let minutes = |count: u32| (minute * count).as_secs().max(1).to_string();
        let hosted = Wanted::new(cloud, Queues::InProcess, seen.as_str())
            .await
            .minute(minute)
            .with("ATLAS_OPENEHR_TIMEOUT_SECONDS", "1")
            // As much as the four tries of a minute each that fill a part.
            .with("ATLAS_OPENEHR_RETRY_MAX_RETRIES", "0")
            .with("ATLAS_EXPORT_RETRY_BACKOFF_MS", "[4, 8, 16]")
            .with("ATLAS_POSTGRESQL_STATEMENT_TIMEOUT_SECONDS", "1")
            .with("ATLAS_FUNCTIONS_SLICE_SECONDS", "1")
            .with("ATLAS_FUNCTIONS_LEASE_SECONDS", "2")
            .with("ATLAS_FUNCTIONS_ORPHAN_SECONDS", &minutes(30))
            .with("ATLAS_FUNCTIONS_REVIVE_SECONDS", &minutes(60))
            .start()
            .await;
        hosted.tick_and_work().await;
        let source = cdr.clone();
        let source = move |passed| source.advance(passed);
        let mut watched = Self {
            _server: server,
            cdr,
            door,
            recorder: Recorder::start(hosted, minute, now, source).await,
        };
        watched.recorder.pass(PLAN).await;
        for number in 0..150 {
            watched.cdr.commit(match number % 3 {
                0 => Template::VitalSigns,
                1 => Template::MedicationOrder,
                _ => Template::LaboratoryReport,
            });
        }
        watched
    }

    /// The tick that comes now has found the news, and a worker has begun with them.
    async fn begin(&mut self) {
        self.recorder.skip_a_second().await;
        self.recorder.pass_when(BEGUN).await;
    }

    /// Lets minutes pass after the cure until the copy is complete, without a hand.
    async fn heal(mut self, cloud: Cloud, fault: u64, unreadable: &[u64]) -> Recorded {
        let cure = self.recorder.now();
        let done = self.recorder.pass_until_done(PATIENCE).await;
        let hosted = self.recorder.hosted();
        assert!(done, "not complete {PATIENCE} minutes after the cure");
        let mut expected = of_sample(&self.cdr);
        let aside: Vec<String> = unreadable
            .iter()
            .map(|number| self.cdr.version_uid(*number).unwrap())
            .collect();
        let quarantined = hosted.store().quarantined().await;
        assert_eq!(quarantined.len(), aside.len());
        for uid in aside {
            assert!(quarantined.contains(&uid));
            expected.remove(object_id(&uid));
        }
        assert_copy(hosted.store(), &expected).await;
        hosted.assert_settled().await;
        Recorded {
            cloud,
            rows: self.recorder.rows().to_vec(),
            fault,
            cure,
        }
    }
}

async fn hangs(cloud: Cloud) -> Recorded {
    let mut watched = Watched::with_news(cloud, MINUTE).await;
    let fault = watched.recorder.now();
    // The tick still finds the news.
    watched.cdr.inject(HANGS.always().on(On::AqlPages));
    watched.begin().await;
    watched.cdr.inject(HANGS.always());
    watched.recorder.pass(44).await;
    watched.cdr.clear_faults();
    watched.heal(cloud, fault, &[]).await
}

async fn is_slow_with_unreadable_compositions(cloud: Cloud) -> Recorded {
    let mut watched = Watched::with_news(cloud, MINUTE).await;
    let fault = watched.recorder.now();
    let news = watched.cdr.numbers() - 150..watched.cdr.numbers();
    let unreadable: Vec<u64> = news.step_by(40).collect();
    for number in &unreadable {
        watched.cdr.set_unreadable(*number, true);
    }
    let slow = Fault::Latency { millis: 700 };
    watched.cdr.inject(slow.always().on(On::AqlPages));
    watched.begin().await;
    watched.recorder.pass(104).await;
    watched.cdr.clear_faults();
    watched.heal(cloud, fault, &unreadable).await
}

async fn is_off_for_eight_hours(cloud: Cloud) -> Recorded {
    let mut watched = Watched::with_news(cloud, SHORT_MINUTE).await;
    let fault = watched.recorder.now();
    let hosted = watched.recorder.hosted();
    // Nobody can read it, and no function ever gets it: it lies among the dead letters until it expires.
    hosted.put_raw("this is no base64").await;
    watched.door.set_open(false);
    watched.recorder.pass(8 * 60).await;
    watched.door.set_open(true);
    watched.heal(cloud, fault, &[]).await
}

async fn store_is_slow(cloud: Cloud) -> Recorded {
    let mut watched = Watched::with_news(cloud, MINUTE).await;
    let fault = watched.recorder.now();
    let store = watched.recorder.hosted().store().clone();
    store
        .execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_sleep(2); RETURN NULL; END $$",
        )
        .await;
    store
        .execute(
            "CREATE TRIGGER slowly BEFORE INSERT ON compositions
                 FOR EACH STATEMENT EXECUTE FUNCTION slowly()",
        )
        .await;
    watched.begin().await;
    watched.recorder.pass(44).await;
    store.execute("DROP TRIGGER slowly ON compositions").await;
    watched.heal(cloud, fault, &[]).await
}

type Under = Mutex<Option<JoinHandle<Recorded>>>;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static RUNS: LazyLock<[Under; 4]> = LazyLock::new(|| {
    // What the rules are read from keeps this machine busy; it is there before anything is timed.
    LazyLock::force(&DEPLOYMENT);
    let begin = |run: JoinHandle<Recorded>| Mutex::new(Some(run));
    [
        begin(RUNTIME.spawn(hangs(Cloud::Azure))),
        begin(RUNTIME.spawn(is_slow_with_unreadable_compositions(Cloud::Lambda))),
        begin(RUNTIME.spawn(is_off_for_eight_hours(Cloud::Azure))),
        begin(RUNTIME.spawn(store_is_slow(Cloud::Lambda))),
    ]
});

/// A run that has ended, by its place.
fn recorded(place: usize) -> Recorded {
    let run = RUNS[place]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    RUNTIME.block_on(run.unwrap()).unwrap()
}

impl Recorded {
    /// The minute in which each alarm rings first after the fault, if it does before the cure.
    fn rung(&self) -> BTreeMap<String, u64> {
        let rules: BTreeMap<String, Rule> = match self.cloud {
            Cloud::Azure => azure(),
            Cloud::Lambda => alarms::aws(&DEPLOYMENT.state),
        };
        let (fault, cure) = (self.fault * 60, self.cure * 60);
        let rung = rules.into_iter().filter_map(|(name, rule)| {
            let early = rule.rings_at(&self.rows, 0, fault);
            assert_eq!(early, None, "`{name}` rings without a reason");
            let at = rule.rings_at(&self.rows, fault, cure)?;
            Some((name, at.div_ceil(60) - self.fault))
        });
        rung.collect()
    }

    /// An alarm rang as soon as its page promises, `after` so many minutes more.
    fn assert_rang(&self, alarm: &str, after: u64) {
        let page = match self.cloud {
            Cloud::Azure => "azure.md",
            Cloud::Lambda => "aws.md",
        };
        let most = promised(page)[alarm] + after;
        let rung = self.rung();
        let rang = rung.get(alarm);
        assert!(
            rang.is_some_and(|rang| *rang <= most),
            "`{alarm}` was to ring within {most} min; what rang: {rung:?}"
        );
    }
}

#[test]
fn a_source_that_hangs_rings_in_time_and_the_copy_heals_by_itself() {
    let recorded = recorded(0);
    recorded.assert_rang("slice-stands-still", 0);
}

#[test]
fn a_slow_source_with_unreadable_compositions_rings_in_time_and_the_copy_heals_by_itself() {
    // It goes on, by pages of one composition: what rings is how far the copy is behind.
    let recorded = recorded(1);
    recorded.assert_rang("lag", 60);
}

#[test]
fn a_source_that_is_off_for_eight_hours_rings_in_time_and_the_copy_heals_by_itself() {
    let recorded = recorded(2);
    recorded.assert_rang("set-aside-is-old", 0);
    recorded.assert_rang("planner-fails", 0);
    recorded.assert_rang("lag", 60);
}

#[test]
fn a_store_that_is_slow_rings_in_time_and_the_copy_heals_by_itself() {
    let recorded = recorded(3);
    recorded.assert_rang("slice-stands-still", 0);
}
