//! What it costs to find the compositions that a source cannot read.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use atlas_engine::ErrorKind;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::model::{Reason, SelectionKey, Slice, SliceKind, Window};
use atlas_engine::ports::Source;
use atlas_engine::transform::Transform;
use atlas_engine::work::Budget;
use atlas_engine::work::page::{Next, PageTerms, Parts, Reader};
use atlas_openehr::time::Instant;
use support::{BEGIN, World, template_id};

fn slice(expected: u64) -> Slice {
    let window = Window {
        from: Instant::EPOCH,
        to: Instant::MAX,
    };
    Slice {
        expected,
        ..Slice::new(
            "slice".to_owned(),
            "run".to_owned(),
            SelectionKey("selection".to_owned()),
            template_id(0),
            SliceKind::Read,
            window,
            Instant::EPOCH,
        )
    }
}

struct Cost {
    requests: u64,
    rows: u64,
    rejected: Vec<Reason>,
    largest: usize,
}

fn reader(world: &Arc<World>, expected: u64, page: usize) -> Reader {
    let parts = Parts {
        source: Arc::clone(world) as Arc<dyn Source>,
        store: Arc::new(MemoryStore::new(Commits::InOneTransaction)),
        transform: Transform::default(),
        clock: Arc::new(world.clock()),
    };
    Reader::new(
        parts,
        &slice(expected),
        Vec::new(),
        PageTerms {
            first: page,
            most: page,
            ..PageTerms::default()
        },
        Instant::EPOCH,
    )
}

async fn read(world: &Arc<World>, expected: u64, page: usize) -> Cost {
    let mut reader = reader(world, expected, page);
    let mut cost = Cost {
        requests: 0,
        rows: 0,
        rejected: Vec::new(),
        largest: 0,
    };
    while let Next::Portion(portion) = reader.next(&Budget::default()).await.unwrap() {
        cost.rows += portion.page.rows.len() as u64;
        cost.largest = cost.largest.max(portion.page.rows.len());
        cost.rejected
            .extend(portion.rejected.iter().map(|rejected| rejected.reason));
    }
    cost.requests = world.requests();
    cost
}

fn world(objects: u64, unreadable: impl Fn(u64) -> bool) -> Arc<World> {
    let world = World::new(1, 2);
    let begin = Instant::parse(BEGIN)
        .unwrap()
        .saturating_sub(Duration::from_secs(90_000));
    for object in 0..objects {
        let committed = begin.saturating_add(Duration::from_secs(object));
        world.put(object, 0, committed, Duration::ZERO, unreadable(object));
        // Of another template, for the source to show that it can read at all.
        world.put(1_000_000 + object, 1, committed, Duration::ZERO, false);
    }
    world
}

#[tokio::test(start_paused = true)]
async fn a_sound_slice_costs_one_request_a_page() {
    let cost = read(&world(1000, |_| false), 1000, 100).await;
    assert_eq!((cost.rows, cost.rejected.len()), (1000, 0));
    assert!(cost.requests <= 11, "{}", cost.requests);
}

#[tokio::test(start_paused = true)]
async fn one_unreadable_composition_costs_at_most_two_log_of_the_page() {
    for culprit in [0, 1, 255, 256, 300, 510, 511] {
        let cost = read(&world(512, |object| object == culprit), 512, 512).await;
        assert_eq!((cost.rows, cost.rejected), (511, vec![Reason::Unreadable]));
        // One page without a culprit, then 2 log2(512) more.
        assert!(cost.requests <= 2 + 2 * 9, "{culprit}: {}", cost.requests);
    }
}

#[tokio::test(start_paused = true)]
async fn eighty_unreadable_compositions_of_one_template_cost_far_less_than_eighty_searches() {
    let cost = read(&world(80, |_| true), 80, 500).await;
    assert_eq!((cost.rows, cost.rejected.len()), (0, 80));
    assert!(cost.requests <= 3 * 80 + 24, "{}", cost.requests);

    let scattered = read(&world(800, |object| object % 10 == 3), 800, 500).await;
    assert_eq!((scattered.rows, scattered.rejected.len()), (720, 80));
    assert!(scattered.requests < 80 * 10, "{}", scattered.requests);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_on_everything_puts_nothing_into_quarantine() {
    let world = world(100, |_| false);
    world.too_large_above(0);
    let mut reader = reader(&world, 100, 500);
    let error = reader.next(&Budget::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnreachable);
    // That of the cause: the limit is too small for all of them.
    assert_eq!(error.help(), Some("Raise the limit."));
    assert!(world.requests() < 40, "{}", world.requests());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_is_asked_for_in_smaller_pages() {
    let world = world(300, |_| false);
    world.too_large_above(40);
    let cost = read(&world, 300, 256).await;
    assert_eq!((cost.rows, cost.rejected.len()), (300, 0));
    assert!(cost.largest <= 40);
}

#[tokio::test(start_paused = true)]
async fn a_composition_that_is_too_large_by_itself_goes_to_quarantine() {
    let world = world(3, |_| false);
    world.too_large_of(0);
    let cost = read(&world, 3, 2).await;
    assert_eq!((cost.rows, cost.rejected), (0, vec![Reason::TooLarge; 3]));
}
