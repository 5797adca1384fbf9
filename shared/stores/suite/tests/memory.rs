//! The twin in memory passes the suite of the real stores in each of its modes, or it would be no twin; and so does a store that is
//! asked again.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use atlas_engine::memory::{Commits, MemoryStore};
use atlas_engine::ports::Store;
use atlas_engine::retrying::RetryingStore;
use atlas_store_suite::Probe;

struct Memory(Arc<dyn Store>);

#[async_trait]
impl Probe for Memory {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.0)
    }

    async fn another(&self) -> Arc<dyn Store> {
        Arc::clone(&self.0)
    }
}

fn memory(commits: Commits) -> Memory {
    Memory(Arc::new(MemoryStore::new(commits)))
}

/// Asked again so often that a store which fails at every fifth step by chance seems sound.
fn retrying(store: MemoryStore) -> Memory {
    let pauses = vec![Duration::ZERO; 100];
    Memory(Arc::new(RetryingStore::new(Arc::new(store), pauses)))
}

mod in_one_transaction {
    use super::*;

    async fn make() -> Memory {
        memory(Commits::InOneTransaction)
    }

    atlas_store_suite::store_suite!(make);
}

mod in_two_phases {
    use super::*;

    async fn make() -> Memory {
        memory(Commits::InTwoPhases)
    }

    atlas_store_suite::store_suite!(make);
}

mod by_appending {
    use super::*;

    async fn make() -> Memory {
        memory(Commits::ByAppending)
    }

    atlas_store_suite::store_suite!(make);
}

mod asked_again {
    use super::*;

    async fn make() -> Memory {
        retrying(MemoryStore::new(Commits::InOneTransaction))
    }

    atlas_store_suite::store_suite!(make);
}

#[tokio::test]
async fn random_histories_end_the_same_when_steps_fail_and_are_repeated() {
    for commits in Commits::ALL {
        let store = MemoryStore::new(commits);
        store.fail_by_chance(20, 7);
        let probe = retrying(store);
        atlas_store_suite::random::random_histories_end_as_the_model_says(&probe).await;
    }
}
