//! The protocol with a process, and its life.

use std::time::Duration;

use local_hosts::lambda::{Host, HostError, Options, Outcome};
use serde_json::json;

use super::support::{SHORT, answer, function, host, line, starting, state, until, within};

#[tokio::test]
async fn an_answer_comes_back_as_the_function_gave_it() {
    let host = host(vec![function("echo")]).await;
    let event = json!({"text": "ä€😀", "numbers": [1, 2.5, null]});
    let invocation = within(host.invoke("echo", event.to_string()))
        .await
        .unwrap();
    assert_eq!(invocation.outcome, Outcome::Succeeded);
    assert_eq!(answer(&invocation), event);
    assert_eq!(invocation.function, "echo");
    assert!(invocation.ended >= invocation.started);
    assert!(invocation.memory.unwrap() > 1 << 20);
    assert_eq!(host.invocations().len(), 1);
    assert!(host.invocations()[0].answer.is_none());
}

#[tokio::test]
async fn an_error_and_a_panic_fail_the_invocation_and_the_process_lives_on() {
    let host = host(vec![function("echo")]).await;
    let mut processes = Vec::new();
    for (what, text) in [
        ("error", "told to fail"),
        ("panic", "told to panic"),
        ("echo", ""),
    ] {
        let invocation = host
            .invoke("echo", json!({"do": what}).to_string())
            .await
            .unwrap();
        match &invocation.outcome {
            Outcome::Failed(reason) => assert!(reason.contains(text), "{reason}"),
            outcome => assert_eq!((what, outcome), ("echo", &Outcome::Succeeded)),
        }
        processes.push(invocation.process);
    }
    assert!(processes.iter().all(|process| *process == processes[0]));
}

#[tokio::test]
async fn an_unknown_invocation_is_refused_with_400_and_one_that_ended_with_403() {
    let host = host(vec![starting("raw", "raw")]).await;
    let mut lines = host.lines();
    host.invoke("raw", "{}").await.unwrap();
    assert_eq!(line(&mut lines, "posted").await, r#"202 {"status":"OK"}"#);
    let probe = host.invoke("raw", r#"{"do":"probe"}"#).await.unwrap();
    let probe = answer(&probe);
    assert_eq!(probe["unknown"], 400);
    assert_eq!(probe["ended"], 403);
    assert_eq!(probe["again"], 403);
}

#[tokio::test]
async fn an_extension_that_wants_no_events_is_registered_before_the_first_event() {
    let host = host(vec![starting("raw", "raw")]).await;
    let probe = answer(&host.invoke("raw", r#"{"do":"probe"}"#).await.unwrap());
    assert_eq!(probe["registered"], 200);
    assert_eq!(probe["identifier"], true);
    assert_eq!(probe["events"], 403);
    assert_eq!(probe["late"], 403);
}

#[tokio::test]
async fn an_event_carries_its_id_its_real_deadline_its_function_and_a_trace() {
    let mut options = Options::new(vec![function("echo"), starting("raw", "raw")]);
    options.functions[0].timeout = Some(Duration::from_secs(40));
    let host = Host::start(options).await.unwrap();
    let invocation = host.invoke("echo", r#"{"do":"context"}"#).await.unwrap();
    let context = answer(&invocation);
    assert_eq!(context["id"], invocation.id);
    let left = context["left_ms"].as_i64().unwrap();
    assert!((1..=40_000).contains(&left), "{left}");
    assert_eq!(
        context["arn"],
        "arn:aws:lambda:eu-west-1:000000000000:function:echo"
    );
    assert!(context["trace"].as_str().unwrap().starts_with("Root=1-"));

    let headers = answer(&host.invoke("raw", r#"{"do":"headers"}"#).await.unwrap());
    assert_eq!(headers["content-type"], "application/json");
}

#[tokio::test]
async fn a_process_gets_the_variables_of_lambda_and_nothing_of_this_machines_account() {
    let mut options = Options::new(vec![function("echo")]);
    options
        .environment
        .insert("OWN".to_owned(), "at {queue_endpoint}".to_owned());
    let host = Host::start(options).await.unwrap();
    let variables = answer(
        &host
            .invoke("echo", r#"{"do":"environment"}"#)
            .await
            .unwrap(),
    );
    let api = variables["AWS_LAMBDA_RUNTIME_API"].as_str().unwrap();
    assert!(api.starts_with("127.0.0.1:"), "{api}");
    let root = super::support::echo();
    for (name, value) in [
        ("AWS_LAMBDA_FUNCTION_NAME", "echo"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "512"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("_HANDLER", "bootstrap"),
        ("LAMBDA_TASK_ROOT", root.parent().unwrap().to_str().unwrap()),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_ENDPOINT_URL", host.queue_endpoint()),
        ("OWN", &format!("at {}", host.queue_endpoint())),
    ] {
        assert_eq!(variables[name], value, "{name}");
    }
}

#[tokio::test]
async fn a_process_takes_one_event_at_a_time_and_events_at_once_get_processes_of_their_own() {
    let host = host(vec![function("echo")]).await;
    let wait = json!({"do": "wait", "ms": 1500}).to_string();
    let (one, two) = futures::join!(host.invoke("echo", wait.clone()), host.invoke("echo", wait));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.process, two.process);
    assert!(one.init.is_some() && two.init.is_some());
    assert_eq!(host.processes("echo").len(), 2);
    for _ in 0..3 {
        let next = host.invoke("echo", "{}").await.unwrap();
        assert!([one.process, two.process].contains(&next.process));
        assert!(next.init.is_none());
    }
    assert!(host.processes("echo").iter().all(|process| process.idle));
}

#[tokio::test]
async fn at_its_deadline_a_process_is_killed_and_the_next_event_gets_a_new_one() {
    let mut options = Options::new(vec![function("echo")]);
    options.pace.timeout = SHORT;
    let host = Host::start(options).await.unwrap();
    let hung = within(host.invoke("echo", r#"{"do":"hang"}"#))
        .await
        .unwrap();
    assert_eq!(hung.outcome, Outcome::TimedOut);
    assert!(hung.duration >= SHORT && hung.memory.is_some());
    assert_eq!(state(hung.process.unwrap()), None);
    let next = host.invoke("echo", "{}").await.unwrap();
    assert_ne!(next.process, hung.process);
    assert_eq!(next.outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_process_that_exits_loses_its_invocation() {
    let host = host(vec![function("echo")]).await;
    for code in [0, 1, 200] {
        let event = json!({"do": "exit", "code": code}).to_string();
        let lost = within(host.invoke("echo", event)).await.unwrap();
        assert_eq!(lost.outcome, Outcome::Lost, "{code}");
    }
    assert!(host.processes("echo").is_empty());
    assert_eq!(
        host.invoke("echo", "{}").await.unwrap().outcome,
        Outcome::Succeeded
    );
}

#[tokio::test]
async fn between_events_a_process_is_frozen() {
    let host = host(vec![function("echo")]).await;
    for _ in 0..3 {
        let invocation = within(host.invoke("echo", "{}")).await.unwrap();
        let process = invocation.process.unwrap();
        until(async || state(process) == Some('T')).await;
        assert!(invocation.outcome == Outcome::Succeeded);
    }
    let mut options = Options::new(vec![function("echo")]);
    options.freeze = false;
    let host = Host::start(options).await.unwrap();
    let process = host.invoke("echo", "{}").await.unwrap().process.unwrap();
    assert_ne!(state(process), Some('T'));
}

#[tokio::test]
async fn a_process_with_an_extension_is_asked_to_end_before_it_is_killed() {
    let host = host(vec![starting("graceful", "graceful"), function("echo")]).await;
    let mut lines = host.lines();
    let graceful = host
        .invoke("graceful", "{}")
        .await
        .unwrap()
        .process
        .unwrap();
    let echo = host.invoke("echo", "{}").await.unwrap().process.unwrap();
    within(host.retire("graceful")).await.unwrap();
    line(&mut lines, "shut down in order").await;
    within(host.retire("echo")).await.unwrap();
    until(async || state(graceful).is_none() && state(echo).is_none()).await;
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_when_its_time_is_over() {
    let mut options = Options::new(vec![starting("stubborn", "stubborn")]);
    options.pace.shutdown = Duration::from_millis(200);
    let host = Host::start(options).await.unwrap();
    let process = host
        .invoke("stubborn", "{}")
        .await
        .unwrap()
        .process
        .unwrap();
    within(host.stop()).await;
    assert_eq!(state(process), None);
}

#[tokio::test]
async fn a_start_that_fails_fails_the_invocation_with_its_reason() {
    let mut options = Options::new(vec![
        starting("exit", "exit"),
        starting("hang", "hang"),
        starting("error", "error"),
    ]);
    options.pace.init = Duration::from_secs(3);
    let host = Host::start(options).await.unwrap();
    for (name, reason) in [
        (
            "exit",
            "Runtime.ExitError: the process ended with exit status: 3",
        ),
        (
            "hang",
            "Sandbox.Timedout: no request for an event within 3.00 seconds",
        ),
        ("error", "Echo.NoConfig: "),
    ] {
        let invocation = within(host.invoke(name, "{}")).await.unwrap();
        assert_eq!(invocation.outcome, Outcome::Failed(reason.to_owned()));
        assert!(host.processes(name).is_empty());
    }
}

#[tokio::test]
async fn a_slow_start_is_part_of_the_first_invocation_only() {
    let host = host(vec![starting("slow", "slow")]).await;
    let first = host.invoke("slow", "{}").await.unwrap();
    assert!(first.init.unwrap() >= Duration::from_millis(300));
    assert!(host.invoke("slow", "{}").await.unwrap().init.is_none());
}

#[tokio::test]
async fn chunked_answers_and_errors_that_are_only_a_header_are_accepted() {
    let host = host(vec![starting("raw", "raw")]).await;
    let chunked = host.invoke("raw", r#"{"do":"chunked"}"#).await.unwrap();
    assert_eq!(answer(&chunked), json!({"chunked": true}));
    let kind = host.invoke("raw", r#"{"do":"kind"}"#).await.unwrap();
    assert_eq!(kind.outcome, Outcome::Failed("Echo.Kind: ".to_owned()));
}

#[tokio::test]
async fn an_answer_above_6_mib_fails_the_invocation() {
    let host = host(vec![function("echo")]).await;
    let long = within(host.invoke("echo", r#"{"do":"long"}"#))
        .await
        .unwrap();
    let Outcome::Failed(reason) = long.outcome else {
        panic!("{:?}", long.outcome);
    };
    assert!(
        reason.starts_with("Function.ResponseSizeTooLarge"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_host_that_is_dropped_takes_its_processes_along() {
    let host = host(vec![function("echo")]).await;
    let process = host.invoke("echo", "{}").await.unwrap().process.unwrap();
    drop(host);
    until(async || state(process).is_none()).await;
}

#[tokio::test]
async fn options_that_lambda_would_refuse_are_refused() {
    let missing = Options::new(vec![local_hosts::lambda::FunctionSpec::new(
        "a", "/no/such",
    )]);
    assert!(matches!(
        Host::start(missing).await,
        Err(HostError::NoProgram(_))
    ));

    let twice = Options::new(vec![function("a"), function("a")]);
    assert!(matches!(
        Host::start(twice).await,
        Err(HostError::Options(_))
    ));

    let mut work = super::support::Work::new(local_hosts::lambda::QueueService::InProcess, 1, 1);
    work.options.pace.timeout = work.options.pace.visibility + Duration::from_secs(1);
    let Err(HostError::Options(why)) = Host::start(work.options.clone()).await else {
        panic!("a visibility shorter than the time limit was accepted");
    };
    assert!(why.contains("visibility"), "{why}");

    work.options.queues.clear();
    assert!(matches!(
        Host::start(work.options).await,
        Err(HostError::NoQueue(_))
    ));
}
