//! The copy in memory.

use std::collections::HashMap;

use async_trait::async_trait;
use atlas_openehr::id::{EhrId, ObjectId, TemplateId};
use atlas_openehr::time::Instant;

use super::{Appended, Commits, Fault, MemoryStore, Stored, Tables, injected};
use crate::error::Result;
use crate::model::{
    Body, Held, Known, LandAnswer, Landed, LandedPage, Landing, Meta, NewRow, Reason, RowKey, Scan,
    Slice, StoredRow, Way, counts_of, judge,
};
use crate::ports::{Index, Rows};
use crate::seeded::{Bug, planted};

/// What landed a row: a store without transactions tells by it what a page that is landed again has done before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LandedBefore {
    slice: String,
    page: u64,
    way: Way,
}

/// The last page of a slice, and who may land the next one.
#[derive(Debug, Default)]
pub(super) struct SlicePages {
    /// Nothing is landed under a lower one.
    fence: u64,
    last: Option<LastPage>,
}

/// The last page of a slice, and what to answer whoever brings it again.
#[derive(Debug)]
struct LastPage {
    page: LandedPage,
    /// The fence under which it landed.
    fence: u64,
    ways: Vec<Way>,
}

impl Stored {
    fn held(&self) -> Held {
        Held {
            known: self.known(),
            committed: self.meta.committed,
            format: self.format,
        }
    }

    fn known(&self) -> Known {
        Known {
            version: self.meta.uid.version(),
            checksum: Some(self.checksum),
            ehr: self.meta.ehr.clone(),
            template: self.meta.template.clone(),
            asked: self.asked,
            deleted: self.deleted.is_some(),
        }
    }
}

impl Tables {
    /// Lands all rows of a page, whatever page it is.
    pub(super) fn land_rows(&mut self, landing: &Landing<'_>, keeps_content: bool) -> LandAnswer {
        let rows = &landing.batch.rows;
        LandAnswer::Landed(
            rows.iter()
                .map(|row| self.land_row(landing, row, keeps_content))
                .collect(),
        )
    }

    fn land_row(&mut self, landing: &Landing<'_>, row: &NewRow, keeps_content: bool) -> Landed {
        let object = &row.key.object;
        let held = self.compositions.get_mut(object);
        let landed = judge(
            held.as_ref().map(|held| held.held()).as_ref(),
            row,
            landing.format,
        );
        let before = LandedBefore {
            slice: landing.slice.id.clone(),
            page: landing.page,
            way: landed.way(row),
        };
        match (&landed, &row.body, held) {
            (Landed::New | Landed::Replaced(_), Body::Content { checksum, .. }, _) => {
                let content = landing.batch.content(row);
                let stored = Stored {
                    meta: Meta {
                        uid: row.uid.clone(),
                        ehr: row.key.ehr.clone(),
                        template: row.key.template.clone(),
                        position: None,
                        ..row.meta.clone()
                    },
                    content: if keeps_content {
                        content.to_owned()
                    } else {
                        String::new()
                    },
                    checksum: *checksum,
                    format: landing.format,
                    asked: row.asked,
                    deleted: None,
                    side_rows: landing.batch.side_rows(row).to_vec(),
                    run: landing.run.to_owned(),
                    landed: before,
                };
                self.compositions.insert(object.clone(), stored);
            }
            (Landed::Replaced(_), Body::Deleted(deleted), Some(held)) => {
                held.deleted = Some(*deleted);
                held.asked = row.asked;
                held.side_rows.clear();
                held.run = landing.run.to_owned();
                held.landed = before;
            }
            (Landed::Unchanged, _, Some(held)) => held.asked = held.asked.max(row.asked),
            _ => {}
        }
        landed
    }

    /// What became of a row that this very page landed before.
    fn landed_before(&self, landing: &Landing<'_>, row: &NewRow) -> Option<Landed> {
        let held = self.compositions.get(&row.key.object)?;
        let same = held.landed.slice == landing.slice.id
            && held.landed.page == landing.page
            && held.meta.uid.version() == row.uid.version();
        same.then_some(Landed::Again(held.landed.way))
    }

    /// Why a page may not land, or what it did when it landed before. `None` = it is new.
    fn page_before(&mut self, landing: &Landing<'_>) -> Option<LandAnswer> {
        let pages = self.landed.entry(landing.slice.id.clone()).or_default();
        if planted(Bug::PageLandedTwice) {
            pages.fence = 0;
            return None;
        }
        let fence = landing.slice.fence;
        if fence < pages.fence {
            return Some(LandAnswer::Superseded);
        }
        pages.fence = fence;
        let last = pages.last.as_ref()?;
        if last.page.page < landing.page {
            return None;
        }
        let this_very_page = (last.fence, last.page.page) == (fence, landing.page);
        Some(if this_very_page {
            LandAnswer::Landed(last.ways.iter().copied().map(Landed::Again).collect())
        } else {
            LandAnswer::Superseded
        })
    }
}

#[async_trait]
impl Index for MemoryStore {
    async fn known(&self, keys: &[RowKey]) -> Result<HashMap<ObjectId, Known>> {
        let tables = self.tables();
        Ok(keys
            .iter()
            .filter_map(|key| {
                let held = tables.compositions.get(&key.object)?;
                Some((key.object.clone(), held.known()))
            })
            .collect())
    }
}

#[async_trait]
impl Rows for MemoryStore {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn prepare(&self) -> Result<()> {
        Ok(())
    }

    fn refuses(&self, _content: &str) -> Option<(Reason, String)> {
        None
    }

    async fn land(&self, landing: &Landing<'_>) -> Result<LandAnswer> {
        let mut tables = self.tables();
        let fault = tables.next_fault();
        if let Some(Fault::Refuse(kind)) = fault {
            return Err(injected(kind));
        }
        if let Some(answer) = tables.page_before(landing) {
            return Ok(answer);
        }
        let whole = self.commits != Commits::InTwoPhases;
        if let (Some(Fault::DieBetween(kind)), true) = (fault, whole) {
            return Err(injected(kind));
        }
        let mut landed = Vec::new();
        for (index, row) in landing.batch.rows.iter().enumerate() {
            if let Some(Fault::DieBetween(kind)) = fault
                && index * 2 >= landing.batch.rows.len()
            {
                return Err(injected(kind));
            }
            let before = tables.landed_before(landing, row);
            let row_landed = match before.filter(|_| !planted(Bug::PageLandedTwice)) {
                Some(again) => again,
                None => tables.land_row(landing, row, self.keeps_content),
            };
            if self.commits == Commits::ByAppending
                && matches!(row_landed, Landed::New | Landed::Replaced(_))
            {
                tables.appended.push(Appended {
                    slice: landing.slice.id.clone(),
                    page: landing.page,
                    object: row.key.object.clone(),
                    version: row.uid.version(),
                });
            }
            landed.push(row_landed);
        }
        let page = LandedPage {
            page: landing.page,
            cursor: landing.cursor.cloned(),
            counts: counts_of(landing, &landed),
        };
        let ways = landing.batch.rows.iter().zip(&landed);
        let ways = ways.map(|(row, landed)| landed.way(row)).collect();
        if let Some(pages) = tables.landed.get_mut(&landing.slice.id) {
            pages.last = Some(LastPage {
                page,
                fence: landing.slice.fence,
                ways,
            });
        }
        match fault {
            Some(Fault::LoseAnswer(kind)) => Err(injected(kind)),
            _ => Ok(LandAnswer::Landed(landed)),
        }
    }

    async fn landed(&self, slice: &Slice) -> Result<Option<LandedPage>> {
        if self.commits == Commits::InOneTransaction {
            return Ok(None);
        }
        let mut tables = self.tables();
        let pages = tables.landed.entry(slice.id.clone()).or_default();
        pages.fence = pages.fence.max(slice.fence);
        Ok(pages.last.as_ref().map(|last| last.page.clone()))
    }

    async fn scan(&self, scan: &Scan) -> Result<Vec<StoredRow>> {
        let tables = self.tables();
        Ok(tables
            .compositions
            .values()
            .filter(|held| {
                let meta = &held.meta;
                scan.template
                    .as_ref()
                    .is_none_or(|template| template == &meta.template)
                    && scan
                        .window
                        .is_none_or(|window| window.contains(meta.committed))
                    && scan
                        .after
                        .as_ref()
                        .is_none_or(|after| after < meta.uid.object_id())
            })
            .take(scan.limit)
            .map(|held| StoredRow {
                meta: held.meta.clone(),
                content: held.content.clone(),
                checksum: held.checksum,
                format: held.format,
                asked: held.asked,
                deleted: held.deleted,
                run: held.run.clone(),
            })
            .collect())
    }

    async fn newest(&self, templates: &[TemplateId]) -> Result<HashMap<TemplateId, Instant>> {
        let mut newest = HashMap::new();
        for held in self.tables().compositions.values() {
            let meta = &held.meta;
            if held.deleted.is_none() && templates.contains(&meta.template) {
                let at = newest
                    .entry(meta.template.clone())
                    .or_insert(meta.committed);
                *at = meta.committed.max(*at);
            }
        }
        Ok(newest)
    }

    async fn erase(&self, ehr: &EhrId) -> Result<u64> {
        let mut tables = self.tables();
        let before = tables.compositions.len();
        tables.compositions.retain(|_, held| &held.meta.ehr != ehr);
        Ok((before - tables.compositions.len()) as u64)
    }
}
