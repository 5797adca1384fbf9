//! The suite of all stores, over the two-phase commit.
#![allow(clippy::unwrap_used, missing_docs)]

use atlas_split_store::{ROWS, SplitStore, split_store};
use atlas_store_suite::files::Files;

async fn split() -> Files<SplitStore> {
    Files::new(ROWS, |folder| split_store(folder).unwrap())
}

atlas_store_suite::store_suite!(split);
