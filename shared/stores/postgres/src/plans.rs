//! What is asked often costs the same at any number of rows: by an index, without a sort, without reading a table through.
#![allow(
    clippy::unwrap_used,
    reason = "a failed expectation is what a test is for"
)]

use atlas_ehrbase::shared_postgres;
use atlas_engine::model::{QuarantineFilter, QuarantinePlace, SelectionKey, SliceFilter};
use atlas_engine::ports::Store;
use atlas_openehr::id::{ObjectId, TemplateId};
use atlas_openehr::time::Instant;
use tokio_postgres::types::Type;

use crate::records::storable;
use crate::session::{Session, Statement};
use crate::{Config, PostgresStore, SslMode, land, quarantine, rows, slices};

/// Many rows of two templates, of which one is rare, and as many entries of the quarantine.
const FILL: &str = "
    INSERT INTO compositions
        (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, export_mode, checksum, exported_at,
         run_id, atlas_version, asked, content)
    SELECT n, n || '::a::1', 1, n % 500, CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'usual' END,
        'epoch'::timestamptz + n * interval '1 minute', 'creation', 'canonical', '', now(), 'run', '1', now(), '{}'
    FROM generate_series(1, 30000) AS n;
    INSERT INTO atlas_quarantine
        (id, composition_uid, version, ehr_id, template_id, time_committed, change_type, reason, detail, run_id, since, tried,
         tries, tried_by)
    SELECT n, n || '::a::1', 1, n % 500, CASE WHEN n % 1000 = 0 THEN 'rare' ELSE 'usual' END, now(), 'creation',
        'unreadable', '', 'run', now(), 'epoch'::timestamptz + n * interval '1 minute', 1, 'run'
    FROM generate_series(1, 30000) AS n;
    INSERT INTO atlas_slices
        (id, run_id, selection, template_id, kind, window_from, window_to, planned, expected, state, step, page, fence, part,
         sent_part, count_read, count_written, count_inserted, count_unchanged, count_filtered, count_quarantined, count_deleted)
    SELECT n, 'run', 'selection', 'usual', 'read', 'epoch'::timestamptz + n * interval '1 minute',
        'epoch'::timestamptz + (n + 1) * interval '1 minute', now(), 1,
        CASE WHEN n % 1000 = 0 THEN 'failed' WHEN n < 15000 THEN 'done' ELSE 'open' END, 1, 0, 0, 1,
        CASE WHEN n % 1000 = 1 THEN 1 ELSE 0 END, 0, 0, 0, 0, 0, 0, 0
    FROM generate_series(1, 30000) AS n;
    ANALYZE";

async fn plan(store: &PostgresStore, statement: Statement<'_>) -> String {
    let session = Session::new(&store.pool, store.usable().await.unwrap()).await;
    let statements = [statement.explained()];
    let answers = session.unwrap().commit_after(&statements).await.unwrap();
    let lines = answers.iter().flatten();
    let lines: Vec<String> = lines.map(|line| line.get(0)).collect();
    lines.join("\n")
}

#[tokio::test]
async fn what_is_asked_often_is_found_by_an_index() {
    let cluster = shared_postgres().await.unwrap();
    let url = cluster.fresh_database().await.unwrap();
    let store = PostgresStore::new(&Config {
        ssl_mode: Some(SslMode::Disable),
        ..Config::new(url.as_str().into())
    })
    .unwrap();
    Store::prepare(&store).await.unwrap();
    let database = url.rsplit('/').next().unwrap();
    cluster.execute(database, FILL).await.unwrap();

    let objects = ["7", "29000", "none"].map(ObjectId::new);
    let place = QuarantinePlace {
        tried: Instant::from_micros(900_000_000_000).unwrap(),
        object: ObjectId::new("15000"),
    };
    let after = QuarantineFilter {
        after: Some(place),
        ..QuarantineFilter::default()
    };
    let of_a_template = |template| QuarantineFilter {
        template: Some(TemplateId::new(template)),
        ..after.clone()
    };
    let (usual, rare) = (of_a_template("usual"), of_a_template("rare"));
    let templates = vec![storable("rare"), storable("usual")];
    let newest = Statement::new(rows::NEWEST).with(templates, Type::TEXT_ARRAY);
    let (selection, template) = (
        SelectionKey("selection".to_owned()),
        TemplateId::new("usual"),
    );
    let slices = |filter| slices::find(&filter, 2).unwrap();
    let waiting = SliceFilter::Waiting {
        run: "run",
        now: Instant::MAX,
    };
    let failed = SliceFilter::Failed {
        selection: &selection,
    };
    let read = SliceFilter::Read {
        selection: &selection,
        template: &template,
        beyond: Instant::EPOCH,
    };
    let together = SliceFilter::ReadTogether {
        selection: &selection,
        beyond: Instant::EPOCH,
    };
    for (what, statement, index, may_sort) in [
        ("newest", newest, "compositions_by_template_time", false),
        (
            "held",
            land::find_held(objects.iter()),
            "compositions_id_key",
            true,
        ),
        (
            "a page of the quarantine",
            quarantine::entries(&after, 100).unwrap(),
            "atlas_quarantine_by_tried",
            false,
        ),
        (
            "of a template",
            quarantine::entries(&usual, 100).unwrap(),
            "atlas_quarantine_by_t",
            false,
        ),
        (
            "of a rare template",
            quarantine::entries(&rare, 100).unwrap(),
            "atlas_quarantine_by_template_tried",
            false,
        ),
        ("waiting", slices(waiting), "atlas_slices_waiting", false),
        (
            "under way",
            slices(SliceFilter::UnderWay { now: Instant::MAX }),
            "atlas_slices_under_way",
            false,
        ),
        ("failed", slices(failed), "atlas_slices_failed", false),
        ("read", slices(read), "atlas_slices_read", false),
        (
            "read together",
            slices(together),
            "atlas_slices_read_together",
            false,
        ),
    ] {
        let plan = plan(&store, statement).await;
        assert!(plan.contains(index), "{what}: {plan}");
        assert!(!plan.contains("Seq Scan"), "{what}: {plan}");
        assert!(may_sort || !plan.contains("Sort"), "{what}: {plan}");
    }
    drop(store);
    let sql = format!("DROP DATABASE \"{database}\" WITH (FORCE)");
    cluster.execute("postgres", &sql).await.unwrap();
}
