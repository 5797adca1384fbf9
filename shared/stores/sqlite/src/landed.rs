//! Rows whose ledger is elsewhere: a page lands once, and tells what it did when it is asked for again.

use atlas_engine::model::{LandAnswer, Landed, LandedPage, Landing, Slice, Way, counts_of};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use crate::land;
use crate::records::{self, Time, from_json, json};

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
pub(crate) fn land(connection: &mut Connection, landing: &Landing<'_>) -> Result<LandAnswer> {
    match try_land(connection, landing) {
        Err(error) => land::refused(connection, landing, error).map(LandAnswer::Refused),
        answer => answer,
    }
}

fn try_land(connection: &mut Connection, landing: &Landing<'_>) -> Result<LandAnswer> {
    let transaction = records::begin(connection)?;
    let fence = landing.slice.fence;
    if let Some(pages) = read(&transaction, &landing.slice.id)? {
        if fence < pages.fence {
            return Ok(LandAnswer::Superseded);
        }
        if let Some(last) = pages.last
            && last.page.page >= landing.page
        {
            let this_very_page = (last.fence, last.page.page) == (fence, landing.page);
            return Ok(if this_very_page {
                LandAnswer::Landed(last.ways.into_iter().map(Landed::Again).collect())
            } else {
                LandAnswer::Superseded
            });
        }
    }
    let landed = land::land_rows(&transaction, landing)?;
    let rows = landing.batch.rows.iter().zip(&landed);
    let ways: Vec<Way> = rows.map(|(row, landed)| landed.way(row)).collect();
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO atlas_landed
                 (slice, fence, page, landed_fence, cursor_committed, cursor_object, cursor_position, counts, ways)
             VALUES (?1, ?2, ?3, ?2, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            landing.slice.id,
            fence,
            landing.page,
            landing.cursor.map(|cursor| Time(cursor.committed)),
            landing.cursor.map(|cursor| cursor.object.as_str()),
            landing.cursor.and_then(|cursor| cursor.position.as_deref()),
            json(&counts_of(landing, &landed))?,
            json(&ways)?,
        ])?;
    transaction.commit()?;
    Ok(LandAnswer::Landed(landed))
}

/// See [`Rows::landed`](atlas_engine::ports::Rows::landed).
pub(crate) fn landed(connection: &mut Connection, slice: &Slice) -> Result<Option<LandedPage>> {
    // With the ledger in this file, a page lands together with its checkpoint, which guards the fence.
    if records::read_slice(connection, &slice.id)?.is_some() {
        return Ok(None);
    }
    let transaction = records::begin(connection)?;
    transaction
        .prepare_cached(
            "INSERT INTO atlas_landed AS l (slice, fence) VALUES (?1, ?2)
             ON CONFLICT (slice) DO UPDATE SET fence = max(l.fence, excluded.fence)",
        )?
        .execute(params![slice.id, slice.fence])?;
    let pages = read(&transaction, &slice.id)?;
    transaction.commit()?;
    Ok(pages.and_then(|pages| pages.last).map(|last| last.page))
}

fn read(connection: &Connection, slice: &str) -> Result<Option<Pages>> {
    connection
        .prepare_cached(
            "SELECT fence, page, landed_fence, cursor_committed, cursor_object, cursor_position, counts, ways
             FROM atlas_landed WHERE slice = ?1",
        )?
        .query_row([slice], |row| {
            Ok(Pages {
                fence: row.get("fence")?,
                last: last(row)?,
            })
        })
        .optional()
}

fn last(row: &Row<'_>) -> Result<Option<Last>> {
    let Some(page) = row.get("page")? else {
        return Ok(None);
    };
    Ok(Some(Last {
        page: LandedPage {
            page,
            cursor: records::cursor(row)?,
            counts: from_json(row, "counts")?,
        },
        fence: row.get("landed_fence")?,
        ways: from_json(row, "ways")?,
    }))
}
