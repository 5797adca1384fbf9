//! Rows whose ledger is elsewhere: a page lands once, and tells what it did when it is asked for again.

use atlas_engine::model::{LandAnswer, Landed, LandedPage, Landing, Slice, Way, counts_of};
use deadpool_postgres::Pool;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::Failure;
use crate::land::{self, Outcome};
use crate::records::{self, Time};
use crate::session::{Names, Session, Statement};

type Result<T> = std::result::Result<T, Failure>;

/// Keeps older fences out from here on, and others from landing a page of this slice until the transaction ends.
const TAKE: &str = "
    INSERT INTO {schema}.atlas_landed AS l (slice, fence) VALUES ($1, $2)
    ON CONFLICT (slice) DO UPDATE SET fence = greatest(l.fence, excluded.fence)
    RETURNING *";

/// The same, of a slice that is not in the ledger of this schema.
const TAKE_FOREIGN: &str = "
    INSERT INTO {schema}.atlas_landed AS l (slice, fence)
    SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM {schema}.atlas_slices WHERE id {=} $1)
    ON CONFLICT (slice) DO UPDATE SET fence = greatest(l.fence, excluded.fence)
    RETURNING *";

const NOTE: &str = "
    UPDATE {schema}.atlas_landed SET
        (page, landed_fence, cursor_committed, cursor_object, cursor_position, counts, ways) = ($2, $3, $4, $5, $6, $7, $8)
    WHERE slice {=} $1
    RETURNING slice";

/// What is known of the pages of a slice.
struct Pages {
    /// Nothing is landed under a lower one.
    fence: u64,
    last: Option<Last>,
}

struct Last {
    page: LandedPage,
    fence: u64,
    ways: Vec<Way>,
}

/// See [`Rows::land`](atlas_engine::ports::Rows::land).
pub(crate) async fn land(pool: &Pool, names: &Names, landing: &Landing<'_>) -> Result<LandAnswer> {
    let mut session = Session::new(pool, names).await?;
    let objects = landing.batch.rows.iter().map(|row| &row.key.object);
    let found = session
        .query_all(&[take(TAKE, landing.slice)?, land::find_held(objects)])
        .await?;
    let [taken, held] = found.as_slice() else {
        return Err(Failure::Ended);
    };
    let pages = taken.first().ok_or(Failure::LeftOut).and_then(pages)?;
    if let Some(answer) = answered_before(pages, landing) {
        session.commit().await?;
        return Ok(answer);
    }
    let landed = match land::land_rows(&mut session, landing, land::held(held)?).await? {
        Outcome::Landed(landed) => landed,
        Outcome::Refused(refused) => {
            session.roll_back().await?;
            return Ok(LandAnswer::Refused(refused));
        }
    };
    let rows = landing.batch.rows.iter().zip(&landed);
    let ways: Vec<Way> = rows.map(|(row, landed)| landed.way(row)).collect();
    let cursor = landing.cursor;
    let note = Statement::new(NOTE)
        .with(&landing.slice.id, Type::TEXT)
        .with(i64::try_from(landing.page)?, Type::INT8)
        .with(i64::try_from(landing.slice.fence)?, Type::INT8)
        .with(
            cursor.map(|cursor| Time(cursor.committed)),
            Type::TIMESTAMPTZ,
        )
        .with(cursor.map(|cursor| cursor.object.as_str()), Type::TEXT)
        .with(
            cursor.and_then(|cursor| cursor.position.as_deref()),
            Type::TEXT,
        )
        .with(
            serde_json::to_string(&counts_of(landing, &landed))?,
            Type::TEXT,
        )
        .with(serde_json::to_string(&ways)?, Type::TEXT);
    records::require_changed(&session.commit_after(&[note]).await?)?;
    Ok(LandAnswer::Landed(landed))
}

/// Why a page may not land, or what it did when it landed before. `None` = it is new.
fn answered_before(pages: Pages, landing: &Landing<'_>) -> Option<LandAnswer> {
    let fence = landing.slice.fence;
    if fence < pages.fence {
        return Some(LandAnswer::Superseded);
    }
    let last = pages.last.filter(|last| last.page.page >= landing.page)?;
    let this_very_page = (last.fence, last.page.page) == (fence, landing.page);
    Some(if this_very_page {
        LandAnswer::Landed(last.ways.into_iter().map(Landed::Again).collect())
    } else {
        LandAnswer::Superseded
    })
}

/// See [`Rows::landed`](atlas_engine::ports::Rows::landed). With the ledger in this schema, a page lands together with its
/// checkpoint, which guards the fence.
pub(crate) async fn landed(
    pool: &Pool,
    names: &Names,
    slice: &Slice,
) -> Result<Option<LandedPage>> {
    let session = Session::new(pool, names).await?;
    let answers = session.commit_after(&[take(TAKE_FOREIGN, slice)?]).await?;
    let Some(taken) = answers.first().and_then(|rows| rows.first()) else {
        return Ok(None);
    };
    Ok(pages(taken)?.last.map(|last| last.page))
}

fn take<'a>(template: &'static str, slice: &'a Slice) -> Result<Statement<'a>> {
    Ok(Statement::new(template)
        .with(&slice.id, Type::TEXT)
        .with(i64::try_from(slice.fence)?, Type::INT8))
}

fn pages(row: &Row) -> Result<Pages> {
    let page: Option<i64> = row.try_get("page")?;
    let last = match page {
        None => None,
        Some(_) => Some(Last {
            page: LandedPage {
                page: records::number(row, "page")?,
                cursor: records::cursor(row)?,
                counts: records::from_json(row, "counts")?,
            },
            fence: records::number(row, "landed_fence")?,
            ways: records::from_json(row, "ways")?,
        }),
    };
    Ok(Pages {
        fence: records::number(row, "fence")?,
        last,
    })
}
