//! The Lambda host with real child processes (`examples/echo_lambda.rs`), its own queue, and moto.
//!
//! | requirement | tests |
//! | --- | --- |
//! | LA-1 | `runtime::an_answer_comes_back_as_the_function_gave_it`, `runtime::an_unknown_invocation_is_refused_with_400_and_one_that_ended_with_403` |
//! | LA-2 | `runtime::an_event_carries_its_id_its_real_deadline_its_function_and_a_trace` |
//! | LA-3 | `runtime::a_process_gets_the_variables_of_lambda_and_nothing_of_this_machines_account` |
//! | LA-4 | `runtime::an_extension_that_wants_no_events_is_registered_before_the_first_event`, `runtime::a_process_with_an_extension_is_asked_to_end_before_it_is_killed` |
//! | LA-5 | `runtime::a_process_takes_one_event_at_a_time_and_events_at_once_get_processes_of_their_own` |
//! | LA-6 | `runtime::at_its_deadline_a_process_is_killed_and_the_next_event_gets_a_new_one`, `mapping::the_message_of_a_killed_process_comes_back_when_its_visibility_ends` |
//! | LA-7 | `runtime::between_events_a_process_is_frozen`, `runtime::a_process_with_an_extension_is_asked_to_end_before_it_is_killed` |
//! | LA-8 | `runtime::a_start_that_fails_fails_the_invocation_with_its_reason`, `runtime::chunked_answers_and_errors_that_are_only_a_header_are_accepted` |
//! | LA-9 | all of `mapping`, against the queue of this process and against moto |
//! | LA-10 | `triggers::a_schedule_replaces_what_its_input_asks_for`, `triggers::a_scheduled_event_that_failed_is_delivered_again_with_the_same_id`, `triggers::a_schedule_can_fire_twice`, `triggers::a_schedule_fires_by_the_clock` |
//! | LA-11 | `triggers` from `a_request_becomes_an_event_of_version_2` on |
//!
//! `queue` is one suite of what a queue does, against both; `simulator` compares the Runtime API with `lambda-simulator`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "lambda/command.rs"]
mod command;
#[path = "lambda/faults.rs"]
mod faults;
#[path = "lambda/mapping.rs"]
mod mapping;
#[path = "lambda/queue.rs"]
mod queue;
#[path = "lambda/runtime.rs"]
mod runtime;
#[path = "lambda/simulator.rs"]
mod simulator;
#[path = "lambda/support.rs"]
mod support;
#[path = "lambda/triggers.rs"]
mod triggers;
