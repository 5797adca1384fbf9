//! A slice with what it is worked with, for a task of its own.

use std::sync::Arc;

use atlas_openehr::id::EhrId;

use crate::error::Result;
use crate::model::Slice;
use crate::work::convert::Converters;
use crate::work::{Budget, Progress, Task, Worker};

/// What slices are worked with. Owned, so that several can be worked by tasks of their own.
#[derive(Clone)]
pub(crate) struct SliceJob {
    pub(crate) converters: Arc<dyn Converters>,
    pub(crate) worker: Worker,
    /// EHRs of the selection; empty = all.
    pub(crate) ehrs: Vec<EhrId>,
    /// The run in which it is worked.
    pub(crate) run: String,
}

impl SliceJob {
    /// Works a slice.
    pub(crate) async fn work(self, slice: Slice, budget: &Budget) -> Worked {
        let (id, store) = (slice.id.clone(), Arc::clone(&self.worker.store));
        let task = Task {
            run: self.run,
            ehrs: self.ehrs,
            converters: self.converters,
            slice,
        };
        let result = self.worker.work(task, budget).await;
        match store.ledger().slice(&id).await {
            Ok(after) => Worked { result, after },
            Err(error) => Worked {
                result: result.and(Err(error)),
                after: None,
            },
        }
    }
}

/// How one slice was worked.
pub(crate) struct Worked {
    pub(crate) result: Result<Progress>,
    /// As it stands now; `None` if it is gone.
    pub(crate) after: Option<Slice>,
}
