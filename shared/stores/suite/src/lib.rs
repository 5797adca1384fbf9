//! The tests that every store passes: the sentences of the [`Store`] port's comments, one function each.
//!
//! | module | what |
//! |---|---|
//! | [`sentences`] | the tests; [`store_suite!`] makes a `#[tokio::test]` of each |
//! | [`random`] | random histories against a simple model |
//! | [`fixture`] | metas, slices and pages to write |
//! | [`value`] | whether two JSON texts hold the same values, numbers compared as decimals |
//!
//! A store's own tests implement [`Probe`] and write `atlas_store_suite::store_suite!(make);` where `make` is an async
//! function that answers an empty store of its own for each call.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation is what a test is for"
)]

pub mod fixture;
pub mod random;
pub mod sentences;
pub mod value;

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::ports::Store;
use atlas_openehr::id::ObjectId;
use atlas_openehr::time::Instant;

/// An empty store under test, and what the suite has to see of it beside the port. Ends with the value.
#[async_trait]
pub trait Probe: Send + Sync {
    /// The store; not prepared yet.
    fn store(&self) -> Arc<dyn Store>;

    /// A second handle to the same data, as another process has one.
    async fn another(&self) -> Arc<dyn Store>;

    /// Every composition, tombstones included, ordered by object id.
    async fn rows(&self) -> Vec<StoredRow>;

    /// Makes a tombstone of a composition, as reconcile does. `false` = this store has no tombstones.
    async fn tombstone(&self, object: &ObjectId, at: Instant) -> bool;
}

/// A composition as it lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// Object id.
    pub id: String,
    /// Full version uid.
    pub composition_uid: String,
    /// Version number.
    pub version: u32,
    /// JSON text, as the store gives it back.
    pub content: String,
    /// Hexadecimal.
    pub checksum: String,
    /// Name of the format.
    pub export_mode: String,
    /// Commit time.
    pub time_committed: Instant,
    /// Set in a tombstone.
    pub deleted_at: Option<Instant>,
}

/// Makes a `#[tokio::test]` of every sentence. `$make` is the path of an `async fn() -> impl Probe`.
#[macro_export]
macro_rules! store_suite {
    ($make:path) => {
        $crate::store_suite! { $make:
            sentences::preparing_is_safe_at_any_time_and_by_several_at_once,
            sentences::an_older_version_never_replaces_a_newer_one,
            sentences::a_newer_version_replaces_an_older_one,
            sentences::the_same_version_again_is_unchanged,
            sentences::the_same_version_with_another_content_or_format_is_replaced,
            sentences::a_tombstone_gives_way_to_newer_versions_only,
            sentences::a_commit_moves_its_slice,
            sentences::an_empty_page_moves_its_slice_too,
            sentences::the_same_commit_again_counts_nothing_twice,
            sentences::a_commit_under_an_old_fence_leaves_nothing,
            sentences::a_commit_at_an_old_step_leaves_nothing,
            sentences::a_commit_for_a_slice_that_is_gone_is_lost,
            sentences::counts_are_conserved,
            sentences::a_row_ends_the_quarantine_of_its_object,
            sentences::a_row_leaves_the_quarantine_of_a_newer_version,
            sentences::a_rejected_row_is_counted_up_under_its_first_date,
            sentences::a_rejected_row_replaces_the_entry_of_an_older_version_only,
            sentences::a_rejected_row_that_the_store_has_overtaken_leaves_no_entry,
            sentences::the_quarantine_is_filtered_and_the_longest_untried_come_first,
            sentences::a_second_hold_is_refused_until_the_first_ends,
            sentences::holds_of_different_names_do_not_meet,
            sentences::watermarks_never_go_back,
            sentences::a_forgotten_watermark_is_gone_and_the_others_stay,
            sentences::the_watermarks_and_slices_of_another_format_are_forgotten,
            sentences::watermarks_of_different_selections_are_apart,
            sentences::a_slice_that_is_there_is_not_added_again,
            sentences::slices_come_by_template_and_window,
            sentences::a_slice_comes_back_as_it_was_added,
            sentences::a_swap_of_a_slice_that_moved_on_is_refused,
            sentences::a_swap_repeated_after_a_lost_answer_answers_the_same,
            sentences::of_many_workers_one_gets_the_slice,
            sentences::only_finished_slices_are_removed,
            sentences::known_is_the_newest_of_store_and_quarantine,
            sentences::holdings_count_by_template,
            sentences::runs_come_newest_first_and_are_replaced,
            sentences::a_run_is_added_once_and_found_by_its_id,
            sentences::unfinished_runs_come_by_origin_oldest_first,
            sentences::slices_of_a_cancelled_run_are_dropped_whatever_their_state,
            sentences::a_control_record_is_changed_by_whoever_saw_it_last,
            sentences::of_many_workers_one_gets_a_control_record,
            sentences::the_clock_of_a_store_is_the_same_for_every_process,
            sentences::web_templates_come_back_as_they_were_saved,
            sentences::content_comes_back_value_for_value,
            sentences::ids_of_any_text_are_kept,
            sentences::pages_of_500_large_rows_arrive_whole,
            sentences::parallel_commits_on_different_slices_all_arrive,
            sentences::parallel_commits_of_the_same_objects_keep_the_newest,
            sentences::what_is_committed_is_there_for_every_other_process,
            random::random_histories_end_as_the_model_says
        }
    };
    ($make:path: $($module:ident::$name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let probe = $make().await;
                $crate::$module::$name(&probe).await;
            }
        )+
    };
}
