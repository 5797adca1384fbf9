//! The Functions host against a real handler process: the requirements AZ-1 to AZ-15, and what the tests of the suite
//! rely on. Queue behaviour itself is in `azure_queue.rs`, against the in-process service and Azurite.
//!
//! | | test |
//! | --- | --- |
//! | AZ-1 | `app_folders_are_read_and_refused_as_the_real_host_does` |
//! | AZ-2 | `the_handler_finds_its_variables_arguments_and_folder_and_its_lines_are_ranked` |
//! | AZ-3 | `any_answer_makes_a_handler_ready_and_none_in_time_is_an_error` (and a 404 in every other test) |
//! | AZ-4 | `exit_code_0_is_the_end`, `exit_code_200_is_a_restart_that_counts_for_nothing`, `the_third_failure_stops_the_instance` |
//! | AZ-5 | `a_request_is_chunked_with_three_headers_and_no_deadline` |
//! | AZ-6 | `values_are_encoded_twice_and_members_of_a_message_overwrite_metadata`, `the_documented_encoding_is_there_too` |
//! | AZ-7 | `what_is_no_answer_fails_or_hangs`, `outputs_are_read_as_the_real_host_reads_them` |
//! | AZ-8 | `the_timeout_kills_the_process_and_all_that_runs_in_it` |
//! | AZ-9 | `a_message_is_hidden_as_long_as_it_is_in_work`, `a_message_that_failed_too_often_is_set_aside`, `a_message_taken_too_often_is_never_run`, `a_failed_message_waits_for_the_visibility_timeout`, `a_failed_poison_message_stays_hidden`, `a_missing_queue_is_an_empty_one`, `text_that_is_not_base64_is_set_aside_and_none_takes_it_as_it_is`, `batch_and_threshold_bound_what_runs_at_once` |
//! | AZ-10 | `a_message_is_deleted_only_after_its_outputs_are_sent` |
//! | AZ-11 | `a_schedule_runs_without_overlap`, `a_missed_occurrence_is_made_up_for_once`, `a_failed_timer_is_retried_with_its_context`, `a_timer_that_is_fired_never_repeats_an_occurrence` |
//! | AZ-12 | `requests_need_their_route_their_method_and_their_key`, `an_envelope_carries_the_request_and_the_answer`, `raw_requests_keep_their_path_and_answers_are_streamed`, `the_load_balancer_gives_up_before_the_function_does` |
//! | AZ-13 | `instances_share_a_queue_and_survive_kills_and_freezes`, `each_fault_brings_the_message_back_or_loses_it_as_it_should` |
//! | AZ-14 | `scale_in_waits_and_then_kills_without_a_word`, `a_terminating_signal_is_an_option` |
//! | AZ-15 | `functions_are_started_by_hand_with_the_master_key` |
//!
//! Gates, order, bad texts and a queue service that is down are in `faults.rs`, the command line is in `console.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod app;
mod console;
mod faults;
mod front;
mod handler;
mod queues;
mod recorded;
mod timers;
