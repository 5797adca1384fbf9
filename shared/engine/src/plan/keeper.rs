//! Where a plan is kept while it is made, so that a planner that is stopped has not counted in vain.

use async_trait::async_trait;
use atlas_openehr::id::TemplateId;

use crate::error::Result;
use crate::model::{Cut, Slice};

/// Keeps a plan while it is made: first its cut, then what is forgotten, then its slices, some at a time.
#[async_trait]
pub trait PlanKeeper: Send + Sync {
    /// Fixes the cut of the run, unless somebody did before; answers the one that stands.
    async fn fix_cut(&self, cut: Cut) -> Result<Cut>;

    /// Forgets watermarks, and removes finished slices that nothing waits for. Called once, before the first slice.
    async fn forget(&self, watermarks: &[TemplateId], slices: &[String]) -> Result<()>;

    /// Adds slices.
    async fn add_slices(&self, slices: &[Slice]) -> Result<()>;
}

/// Keeps nothing: for those who want to see what a run would do.
pub struct Unkept;

#[async_trait]
impl PlanKeeper for Unkept {
    async fn fix_cut(&self, cut: Cut) -> Result<Cut> {
        Ok(cut)
    }

    async fn forget(&self, _watermarks: &[TemplateId], _slices: &[String]) -> Result<()> {
        Ok(())
    }

    async fn add_slices(&self, _slices: &[Slice]) -> Result<()> {
        Ok(())
    }
}
