//! The tests that every store passes: the sentences of the comments of [`Store`], [`Rows`](atlas_engine::ports::Rows),
//! [`Index`](atlas_engine::ports::Index), [`Ledger`](atlas_engine::ports::Ledger) and
//! [`Templates`](atlas_engine::ports::Templates), one function each.
//!
//! | module | what |
//! |---|---|
//! | [`rows`] | what commits leave in the copy, and how it is read back; also run with keys that are not the source's ids ([`Tokens`]) |
//! | [`landing`] | pages that land without their checkpoint |
//! | [`slices`] | commits and swaps: steps, fences, leases, counts |
//! | [`quarantine`] | what could not be copied |
//! | [`ledger`] | watermarks, runs, control records, holds |
//! | [`random`] | random histories against a simple model |
//! | [`fixture`] | metas, slices and pages to write |
//! | [`files`] | a store under test whose rows lie in an SQLite file |
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

pub mod files;
pub mod fixture;
pub mod landing;
pub mod ledger;
pub mod quarantine;
pub mod random;
pub mod rows;
pub mod slices;
pub mod value;

use std::sync::Arc;

use async_trait::async_trait;
use atlas_engine::model::{Meta, RowKey};
use atlas_engine::ports::Store;
use atlas_engine::transform::{Keys, SourceKeys};
use atlas_openehr::id::{EhrId, ObjectId, VersionUid};

/// An empty store under test. Ends with the value.
#[async_trait]
pub trait Probe: Send + Sync {
    /// The store; not prepared yet.
    fn store(&self) -> Arc<dyn Store>;

    /// A second handle to the same data, as another process has one.
    async fn another(&self) -> Arc<dyn Store>;

    /// From now on the store refuses each row of this object of the copy, as a trigger of its owner would. `false` = it cannot.
    async fn refuse_object(&self, _object: &ObjectId) -> bool {
        false
    }

    /// Under which keys rows are written.
    fn keys(&self) -> Arc<dyn Keys> {
        Arc::new(SourceKeys)
    }
}

/// A store whose copy shows tokens in place of the ids of objects and EHRs.
pub struct Tokens<P>(pub P);

#[async_trait]
impl<P: Probe> Probe for Tokens<P> {
    fn store(&self) -> Arc<dyn Store> {
        self.0.store()
    }

    async fn another(&self) -> Arc<dyn Store> {
        self.0.another().await
    }

    async fn refuse_object(&self, object: &ObjectId) -> bool {
        self.0.refuse_object(object).await
    }

    fn keys(&self) -> Arc<dyn Keys> {
        Arc::new(TokenKeys)
    }
}

/// Tokens are ids written backwards, so that they come in another order.
struct TokenKeys;

fn token(id: &str) -> String {
    let backwards: String = id.chars().rev().collect();
    format!("token {backwards}")
}

impl Keys for TokenKeys {
    fn key(&self, meta: &Meta) -> RowKey {
        RowKey {
            object: ObjectId::new(&token(meta.uid.object_id().as_str())),
            ehr: EhrId::new(&token(meta.ehr.as_str())),
            template: meta.template.clone(),
        }
    }

    fn uid(&self, meta: &Meta) -> VersionUid {
        let object = token(meta.uid.object_id().as_str());
        VersionUid::parse(&format!("{object}::tokens::{}", meta.uid.version())).unwrap()
    }
}

/// Makes a `#[tokio::test]` of every sentence. `$make` is the name of an `async fn() -> impl Probe` in reach.
#[macro_export]
macro_rules! store_suite {
    ($make:ident) => {
        $crate::store_suite! { @of_the_copy $make }
        $crate::store_suite! { $make:
            rows::preparing_is_safe_at_any_time_and_by_several_at_once,
            rows::web_templates_come_back_as_they_were_saved,
            slices::a_commit_moves_its_slice,
            slices::an_empty_page_moves_its_slice_too,
            slices::the_same_commit_again_counts_nothing_twice,
            slices::a_commit_under_an_old_fence_leaves_nothing,
            slices::a_commit_at_an_old_step_leaves_nothing,
            slices::a_commit_for_a_slice_that_is_gone_is_lost,
            slices::a_page_counts_for_each_template_that_shares_its_slice,
            slices::a_template_is_taken_out_of_a_slice_with_what_it_counted,
            slices::counts_are_conserved,
            slices::a_slice_that_is_there_is_not_added_again,
            slices::slices_come_by_template_and_window,
            slices::slices_are_found_by_what_is_to_be_done_with_them,
            slices::slices_are_counted_by_how_they_stand,
            slices::a_slice_comes_back_as_it_was_added,
            slices::a_swap_of_a_slice_that_moved_on_is_refused,
            slices::a_swap_repeated_after_a_lost_answer_answers_the_same,
            slices::of_many_workers_one_gets_the_slice,
            slices::only_finished_slices_are_removed,
            slices::slices_of_a_cancelled_run_are_dropped_whatever_their_state,
            slices::the_watermarks_and_slices_of_another_format_are_forgotten,
            slices::the_next_page_has_the_next_number_whatever_else_moves_the_step,
            slices::counts_survive_the_removal_of_their_slices,
            slices::counts_tell_how_many_compositions_the_copy_has,
            ledger::a_second_hold_is_taken_until_the_first_ends,
            ledger::holds_of_different_names_do_not_meet,
            ledger::watermarks_never_go_back,
            ledger::a_forgotten_watermark_is_gone_and_the_others_stay,
            ledger::watermarks_of_different_selections_are_apart,
            ledger::runs_come_newest_first_and_are_replaced,
            ledger::a_run_is_added_once_and_found_by_its_id,
            ledger::the_record_of_a_run_is_changed_by_whoever_knows_how_it_stands,
            ledger::unfinished_runs_come_by_origin_oldest_first,
            ledger::records_of_runs_go_when_they_are_old_and_nothing_speaks_of_them,
            ledger::a_control_record_is_changed_by_whoever_saw_it_last,
            ledger::of_many_workers_one_gets_a_control_record,
            ledger::the_clock_of_a_store_is_the_same_for_every_process
        }
        /// The copy shows tokens, ledger and quarantine the source's ids.
        mod with_tokens {
            async fn make() -> impl $crate::Probe {
                $crate::Tokens(super::$make().await)
            }
            $crate::store_suite! { @of_the_copy make }
        }
    };
    // Under whatever keys the rows lie.
    (@of_the_copy $make:ident) => {
        $crate::store_suite! { $make:
            rows::an_older_version_never_replaces_a_newer_one,
            rows::a_newer_version_replaces_an_older_one,
            rows::the_same_version_again_is_unchanged,
            rows::content_comes_back_value_for_value,
            rows::ids_of_any_text_are_kept,
            rows::pages_of_500_large_rows_arrive_whole,
            rows::parallel_commits_on_different_slices_all_arrive,
            rows::parallel_commits_of_the_same_objects_keep_the_newest,
            rows::what_is_committed_is_there_for_every_other_process,
            rows::a_tombstone_lands_only_on_the_version_it_names,
            rows::at_an_equal_version_the_later_asked_wins,
            rows::a_page_in_flight_never_revives_and_what_is_alive_again_comes_back,
            rows::a_newer_version_takes_the_place_of_a_tombstone,
            rows::a_tombstone_again_keeps_the_first_reason_and_the_later_asked,
            rows::a_tombstone_says_when_and_why,
            rows::what_differs_at_the_same_version_is_replaced,
            rows::what_is_the_same_keeps_the_later_asked_and_its_run,
            rows::known_says_what_the_copy_holds_of_an_object,
            rows::rows_are_read_back_in_the_order_of_their_objects,
            rows::the_newest_composition_of_a_template_is_found,
            rows::an_erased_ehr_leaves_no_row,
            landing::landing_answers_for_each_row_in_its_place,
            landing::the_same_page_again_changes_nothing,
            landing::an_older_fence_lands_nothing,
            landing::who_asks_what_landed_shuts_out_older_fences,
            landing::a_page_of_an_older_fence_is_superseded_once_a_newer_one_asked,
            landing::a_page_that_landed_without_its_checkpoint_is_adopted,
            landing::rows_that_cannot_land_are_named_and_nothing_lands,
            quarantine::a_row_ends_the_quarantine_of_its_object,
            quarantine::a_row_leaves_the_quarantine_of_a_newer_version,
            quarantine::tries_count_runs_under_the_first_date,
            quarantine::the_last_reason_stands_with_the_first_date,
            quarantine::a_rejected_row_replaces_the_entry_of_an_older_version_only,
            quarantine::a_rejected_row_that_the_store_has_overtaken_leaves_no_entry,
            quarantine::the_quarantine_is_filtered_and_the_longest_untried_come_first,
            quarantine::the_quarantine_comes_page_by_page,
            quarantine::the_quarantine_is_counted_by_template_and_reason,
            quarantine::objects_in_quarantine_are_found_with_their_version,
            quarantine::entries_end_with_their_version_or_a_newer_one,
            quarantine::a_tombstone_ends_the_quarantine_of_its_version,
            quarantine::rows_that_the_store_refuses_go_into_quarantine_alone,
            random::random_histories_end_as_the_model_says
        }
    };
    ($make:ident: $($module:ident::$name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let probe = $make().await;
                $crate::$module::$name(&probe).await;
            }
        )+
    };
}
