//! What is deployed: brought up in a private AWS, read back, compared with the numbers of the code, and taken down again.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "infra/alarms.rs"]
mod alarms;
#[path = "infra/guarded.rs"]
mod guarded;
#[path = "infra/names.rs"]
mod names;
#[path = "infra/recorded.rs"]
mod recorded;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use atlas_emulators::Moto;
use atlas_scenarios::infra::agree::Facts;
use atlas_scenarios::infra::terraform::{FUNCTIONS, Resources, Workspace, terraform};
use atlas_scenarios::infra::{output, python, root};
use serde_json::{Value, json};

const REGION: &str = "eu-central-1";
const CDR_SECRET: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:cdr-AbCdEf";
const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234";
const STORE_SECRET: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:store-AbCdEf";

/// Functions that ask the openEHR server: only they get what lets them in there.
const ASKS_OPENEHR: [&str; 2] = ["planner", "worker"];

/// The example of the module, unchanged, brought up once for all tests.
struct Deployment {
    /// What Terraform says it made.
    state: Resources,
    /// What it would make of a pause inside a VPC, with a key of one's own.
    paused_in_vpc: Resources,
    /// What the account says it holds.
    held: Value,
    /// The same after `destroy`.
    left: Value,
}

static DEPLOYMENT: LazyLock<Deployment> = LazyLock::new(|| {
    let moto = Moto::start().unwrap();
    let mut environment = moto.environment().to_vec();
    environment.extend([
        ("TF_VAR_region", REGION),
        ("TF_VAR_architecture", "arm64"),
        ("TF_VAR_openehr_base_url", "https://cdr.example.org/ehrbase"),
        ("TF_VAR_openehr_username", "atlas"),
        ("TF_VAR_openehr_secret_arn", CDR_SECRET),
        ("TF_VAR_postgresql_secret_arn", STORE_SECRET),
        (
            "TF_VAR_alarm_topic_arns",
            r#"["arn:aws:sns:eu-central-1:123456789012:night"]"#,
        ),
    ]);
    let workspace = Workspace::new("examples/complete", &environment);
    let held = || python::script("held.py", &[moto.endpoint(), REGION]).unwrap();
    let quietly = [
        "-auto-approve",
        "-input=false",
        "-no-color",
        "-parallelism=30",
    ];
    let run = |task| workspace.run(&[&[task], &quietly[..]].concat()).unwrap();
    run("apply");
    let (state, up) = (workspace.state(), held());
    let paused_in_vpc = workspace.planned(&[
        "paused=true",
        "export_reserved_concurrency=3",
        r#"subnet_ids=["subnet-1","subnet-2"]"#,
        r#"security_group_ids=["sg-1"]"#,
        &format!("kms_key_arn={KEY}"),
    ]);
    run("destroy");
    Deployment {
        state,
        paused_in_vpc,
        held: up,
        left: held(),
    }
});

fn held(path: &str) -> &'static Value {
    let value = DEPLOYMENT.held.pointer(path);
    value.unwrap_or_else(|| panic!("{path} is missing"))
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn terraform_files_are_formatted() {
    let folder = root().join("infra/aws");
    let check = ["fmt", "-check", "-diff", "-recursive", "-no-color"];
    output(terraform(&folder).args(check)).unwrap();
}

#[test]
fn the_terraform_module_is_valid_by_itself() {
    let workspace = Workspace::new(".", &[]);
    workspace.run(&["validate", "-no-color"]).unwrap();
}

#[test]
fn a_variable_that_cannot_be_right_is_refused_with_its_rule() {
    let moto = Moto::start().unwrap();
    let workspace = Workspace::new(".", &moto.environment());
    let packages = format!("packages={}", workspace.packages().display());
    let secrets = r#"secrets={ATLAS_OPENEHR_PASSWORD={arn="hunter2"}}"#;
    let wrong = [
        packages.as_str(),
        "name=Atlas!",
        "architecture=mips",
        r#"settings={OPENEHR="x",ATLAS_QUEUE_URL="x",ATLAS_OPENEHR_PASSWORD="hunter2",ATLAS_X="https://a:b@c"}"#,
        "kms_key_arn=key",
        secrets,
        "slots=0",
        "memory_mb=64",
        "export_reserved_concurrency=-2",
        "plan_schedule=0 */15 * * * *",
        "report_schedule=often",
        r#"subnet_ids=["subnet-1"]"#,
        "log_retention_days=31",
        "lag_alarm_seconds=0",
    ];
    let mut arguments = vec!["plan", "-input=false", "-no-color"];
    arguments.extend(wrong.iter().flat_map(|variable| ["-var", variable]));
    let complaint = workspace.run(&arguments).unwrap_err();
    // Terraform breaks lines where it likes.
    let complaint = complaint.replace(['\n', '│'], " ");
    let complaint = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    for rule in [
        "name: 1 to 30 lower-case letters",
        "architecture: arm64 or x86_64",
        "settings: every name begins with ATLAS_.",
        "settings: ATLAS_OPENEHR_BASE_URL is missing.",
        "settings: the queue and the time-out are set by this module",
        "secrets: ATLAS_POSTGRESQL_CONNECTION_STRING is missing.",
        "secrets: every arn is that of a secret",
        "settings: a password, token, key or connection string is no setting",
        "settings: a value holds a password or a key",
        "kms_key_arn: the ARN of a key in KMS.",
        "slots: a whole number from 1 to 100.",
        "memory_mb: 128 to 10240.",
        "export_reserved_concurrency: -1 for none",
        "plan_schedule: cron(…) or rate(…).",
        "report_schedule: cron(…) or rate(…).",
        "security_group_ids: give them together with subnet_ids",
        "log_retention_days: one of the numbers",
        "lag_alarm_seconds: more than 0.",
    ] {
        assert!(complaint.contains(rule), "`{rule}` is not in {complaint}");
    }
}

#[test]
fn a_message_that_failed_five_times_moves_to_the_dead_queue() {
    let queues = held("/queues");
    assert_eq!(
        keys(queues),
        BTreeSet::from([
            "atlas-export-work",
            "atlas-export-work-poison",
            "atlas-missed"
        ])
    );
    let work = &queues["atlas-export-work"];
    let redrive: Value = serde_json::from_str(work["RedrivePolicy"].as_str().unwrap()).unwrap();
    assert_eq!(
        redrive["deadLetterTargetArn"],
        queues["atlas-export-work-poison"]["QueueArn"]
    );
    assert_eq!(redrive["maxReceiveCount"], 5);
    for (name, queue) in queues.as_object().unwrap() {
        assert_eq!(queue["SqsManagedSseEnabled"], "true", "{name} is encrypted");
        assert_eq!(
            queue["MessageRetentionPeriod"], "1209600",
            "{name} keeps messages for two weeks"
        );
    }
    assert_eq!(work["VisibilityTimeout"], "1800");
    assert_eq!(
        queues["atlas-export-work-poison"]["VisibilityTimeout"],
        "1800"
    );
}

#[test]
fn the_worker_takes_one_message_at_a_time_from_both_queues_and_reports_each_by_itself() {
    let mappings = held("/mappings").as_array().unwrap();
    let sources: BTreeSet<&str> = mappings
        .iter()
        .map(|mapping| mapping["EventSourceArn"].as_str().unwrap())
        .collect();
    let arn = |queue: &str| held(&format!("/queues/{queue}/QueueArn")).as_str().unwrap();
    assert_eq!(
        sources,
        BTreeSet::from([arn("atlas-export-work"), arn("atlas-export-work-poison")])
    );
    for mapping in mappings {
        assert_eq!(
            mapping["FunctionArn"],
            *held("/functions/atlas-worker/FunctionArn")
        );
        assert_eq!(mapping["BatchSize"], 1);
        assert_eq!(
            mapping["FunctionResponseTypes"],
            json!(["ReportBatchItemFailures"])
        );
        assert_eq!(mapping["ScalingConfig"]["MaximumConcurrency"], 2);
        assert_eq!(mapping["State"], "Enabled");
    }
}

#[test]
fn each_function_runs_its_own_package_with_settings_and_references_to_secrets() {
    let names = FUNCTIONS.map(|function| format!("atlas-{function}"));
    assert_eq!(
        keys(held("/functions")),
        names.iter().map(String::as_str).collect()
    );
    for (name, function) in held("/functions").as_object().unwrap() {
        assert_eq!(function["Runtime"], "provided.al2023");
        assert_eq!(function["Handler"], "bootstrap");
        assert_eq!(function["Architectures"], json!(["arm64"]));
        assert_eq!(
            (&function["Timeout"], &function["MemorySize"]),
            (&json!(300), &json!(128))
        );
        let variables = &function["Environment"]["Variables"];
        let mut expected = vec![
            ("ATLAS_DATABASE_TARGET", "postgresql".to_owned()),
            ("ATLAS_ENVIRONMENT", "production".to_owned()),
            ("ATLAS_FUNCTIONS_TIMEOUT_SECONDS", "300".to_owned()),
            (
                "ATLAS_OPENEHR_BASE_URL",
                "https://cdr.example.org/ehrbase".to_owned(),
            ),
            ("ATLAS_OPENEHR_QUERY_PARALLEL", "2".to_owned()),
            (
                "ATLAS_POSTGRESQL_CONNECTION_STRING",
                format!("secretsmanager:{STORE_SECRET}#url"),
            ),
            ("ATLAS_POSTGRESQL_MAX_CONNECTIONS", "4".to_owned()),
            ("ATLAS_POSTGRESQL_SSL_MODE", "verify-full".to_owned()),
        ];
        if ASKS_OPENEHR.iter().any(|asks| name.ends_with(asks)) {
            let secret = format!("secretsmanager:{CDR_SECRET}");
            expected.push(("ATLAS_OPENEHR_PASSWORD", secret));
            expected.push(("ATLAS_OPENEHR_USERNAME", "atlas".to_owned()));
        }
        for (name, value) in &expected {
            assert_eq!(variables[name], *value, "{name}");
        }
        let queue = variables["ATLAS_QUEUE_URL"].as_str().unwrap();
        assert!(queue.ends_with("/atlas-export-work"), "{queue}");
        assert_eq!(keys(variables).len(), expected.len() + 1);
    }
    let retention = |group: &Value| group["retentionInDays"].as_u64();
    let groups = held("/log_groups").as_object().unwrap();
    assert_eq!(groups.len(), 4);
    assert!(groups.values().all(|group| retention(group) == Some(30)));
}

#[test]
fn schedules_say_which_tick_they_are_and_give_up_visibly() {
    assert_eq!(
        keys(held("/schedules")),
        BTreeSet::from(["atlas-plan", "atlas-report"])
    );
    for (name, function, cron) in [
        ("plan", "planner", "cron(0/15 * * * ? *)"),
        ("report", "watermark", "cron(0/5 * * * ? *)"),
    ] {
        let schedule = held(&format!("/schedules/atlas-{name}"));
        assert_eq!(schedule["ScheduleExpression"], cron);
        assert_eq!(schedule["State"], "ENABLED");
        let target = &schedule["Target"];
        let function = format!("atlas-{function}");
        assert_eq!(
            target["Arn"],
            *held(&format!("/functions/{function}/FunctionArn"))
        );
        let input = target["Input"].as_str().unwrap();
        assert!(input.contains("<aws.scheduler.scheduled-time>"), "{input}");
        let input: Value = serde_json::from_str(input).unwrap();
        assert_eq!(input["atlas"], name);
        assert_eq!(
            keys(&input),
            BTreeSet::from(["atlas", "attempt", "execution", "scheduled"])
        );
        let missed = held("/queues/atlas-missed/QueueArn");
        assert_eq!(target["DeadLetterConfig"]["Arn"], *missed);
        assert_eq!(target["RetryPolicy"]["MaximumRetryAttempts"], 2);
        let calls = held(&format!("/retries/{function}"));
        assert_eq!(calls["MaximumRetryAttempts"], 2);
        assert_eq!(
            calls["DestinationConfig"]["OnFailure"]["Destination"],
            *missed
        );
    }
}

#[test]
fn addresses_of_functions_ask_for_a_signature() {
    assert_eq!(
        keys(held("/urls")),
        BTreeSet::from(["atlas-export", "atlas-watermark"])
    );
    for url in held("/urls").as_object().unwrap().values() {
        assert_eq!(url["AuthType"], "AWS_IAM");
    }
}

#[test]
fn each_role_may_do_what_its_function_does_and_nothing_else() {
    let arn = |queue: &str| {
        held(&format!("/queues/{queue}/QueueArn"))
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (work, dead, missed) = (
        arn("atlas-export-work"),
        arn("atlas-export-work-poison"),
        arn("atlas-missed"),
    );
    let send = |queue: &String| ("sqs:SendMessage".to_owned(), queue.clone());
    let count = |queue: &String| ("sqs:GetQueueAttributes".to_owned(), queue.clone());
    let take = |queue: &String| {
        [
            "ChangeMessageVisibility",
            "DeleteMessage",
            "GetQueueAttributes",
            "ReceiveMessage",
        ]
        .map(|action| (format!("sqs:{action}"), queue.clone()))
    };
    for function in FUNCTIONS {
        let log =
            format!("arn:aws:logs:{REGION}:123456789012:log-group:/aws/lambda/atlas-{function}:*");
        let mut expected: BTreeSet<(String, String)> = [
            ("logs:CreateLogStream", log.as_str()),
            ("logs:PutLogEvents", &log),
            ("secretsmanager:GetSecretValue", STORE_SECRET),
        ]
        .map(|(action, resource)| (action.to_owned(), resource.to_owned()))
        .into();
        if ASKS_OPENEHR.contains(&function) {
            let read = "secretsmanager:GetSecretValue".to_owned();
            expected.insert((read, CDR_SECRET.to_owned()));
        }
        match function {
            "planner" => expected.extend([send(&work), send(&missed)]),
            "export" => expected.extend([send(&work)]),
            "watermark" => expected.extend([send(&missed), count(&work), count(&dead)]),
            _ => {
                expected.extend([send(&work)]);
                expected.extend(take(&work).into_iter().chain(take(&dead)));
            }
        }
        assert_eq!(rights(&format!("atlas-{function}")), expected, "{function}");
    }
    let arn = |name: &str| {
        held(&format!("/functions/atlas-{name}/FunctionArn"))
            .as_str()
            .unwrap()
            .to_owned()
    };
    let invoke = |name: &str| ("lambda:InvokeFunction".to_owned(), arn(name));
    let expected = BTreeSet::from([invoke("planner"), invoke("watermark"), send(&missed)]);
    assert_eq!(rights("atlas-scheduler"), expected);
    assert_eq!(held("/roles").as_object().unwrap().len(), 5);
}

/// Every action that a role's policies allow, with its resource.
fn rights(role: &str) -> BTreeSet<(String, String)> {
    let role = held(&format!("/roles/{role}"));
    assert_eq!(role["attached"], json!([]));
    let texts = |value: &Value| -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        match value {
            Value::Array(values) => values.iter().map(text).collect(),
            one => vec![text(one)],
        }
    };
    let mut rights = BTreeSet::new();
    for statement in role["statements"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        for action in texts(&statement["Action"]) {
            let resources = texts(&statement["Resource"]).into_iter();
            rights.extend(resources.map(|resource| (action.clone(), resource)));
        }
    }
    rights
}

#[test]
fn whatever_goes_wrong_rings_an_alarm_that_somebody_gets() {
    let alarms = held("/alarms").as_object().unwrap();
    for (name, metric) in [
        ("lag", "lag_seconds"),
        ("no-report", "slices_failed"),
        ("slices-failed", "slices_failed"),
        ("slice-stands-still", "stalled_slice_seconds"),
        ("work-is-old", "ApproximateAgeOfOldestMessage"),
        ("set-aside", "NumberOfMessagesReceived"),
        ("set-aside-is-old", "ApproximateAgeOfOldestMessage"),
        ("missed", "ApproximateNumberOfMessagesVisible"),
        ("worker-fails", "Errors"),
        ("planner-is-throttled", "Throttles"),
    ] {
        let alarm = &alarms[&format!("atlas-{name}")];
        assert_eq!(alarm["MetricName"], metric, "{name}");
    }
    assert_eq!(alarms.len(), 8 + 2 * FUNCTIONS.len());
    for alarm in alarms.values() {
        assert_eq!(
            alarm["AlarmActions"],
            json!(["arn:aws:sns:eu-central-1:123456789012:night"])
        );
    }
    assert_eq!(
        alarms["atlas-no-report"]["TreatMissingData"], "breaching",
        "silence is an alarm"
    );
    for filter in held("/metric_filters").as_array().unwrap() {
        assert_eq!(filter["logGroupName"], "/aws/lambda/atlas-watermark");
        let transformation = &filter["metricTransformations"][0];
        let name = transformation["metricName"].as_str().unwrap();
        let alarm = alarms
            .values()
            .find(|alarm| alarm["MetricName"] == name)
            .unwrap();
        assert_eq!(alarm["Namespace"], transformation["metricNamespace"]);
    }
}

#[test]
fn inside_a_vpc_lambda_may_join_it_and_the_program_may_not_touch_it() {
    let planned = &DEPLOYMENT.paused_in_vpc;
    for function in FUNCTIONS {
        let vpc = &planned[&format!("aws_lambda_function.all[\"{function}\"]")]["vpc_config"][0];
        assert_eq!(vpc["subnet_ids"], json!(["subnet-1", "subnet-2"]));
        assert_eq!(vpc["security_group_ids"], json!(["sg-1"]));
        let policy = &planned[&format!("data.aws_iam_policy_document.function[\"{function}\"]")];
        let statement = |sid: &str| {
            let mut statements = policy["statement"].as_array().unwrap().iter();
            statements
                .find(|statement| statement["sid"] == sid)
                .unwrap()
        };
        // What is not said is allowed.
        assert_eq!(statement("JoinVpc")["effect"], Value::Null);
        let denied = statement("CodeNeverTouchesVpc");
        assert_eq!(
            (&denied["effect"], &denied["actions"]),
            (&json!("Deny"), &json!(["ec2:*"]))
        );
        let condition = &denied["condition"][0];
        assert_eq!(condition["variable"], "lambda:SourceFunctionArn");
        let only = condition["values"][0].as_str().unwrap();
        assert!(
            only.ends_with(&format!(":function:atlas-{function}")),
            "{only}"
        );
    }
}

#[test]
fn only_export_has_the_concurrency_that_a_variable_reserves() {
    let reserved = |resources: &Resources, function: &str| {
        let function = &resources[&format!("aws_lambda_function.all[\"{function}\"]")];
        function["reserved_concurrent_executions"].as_i64()
    };
    for function in FUNCTIONS {
        assert_eq!(reserved(&DEPLOYMENT.state, function), Some(-1));
        let wanted = if function == "export" { 3 } else { -1 };
        assert_eq!(
            reserved(&DEPLOYMENT.paused_in_vpc, function),
            Some(wanted),
            "{function}"
        );
    }
}

#[test]
fn every_configuration_of_terraform_names_its_provider_and_one_version() {
    for folder in ["infra/aws", "infra/aws/examples/complete"] {
        let files = std::fs::read_dir(root().join(folder)).unwrap();
        let texts = files
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "tf"))
            .map(|path| std::fs::read_to_string(path).unwrap());
        let text: String = texts.collect();
        let (_, required) = text.split_once("required_providers {").unwrap();
        let version = required.split("version = \"").nth(1).unwrap();
        let version = version.split('"').next().unwrap();
        assert_eq!(version, "5.100.0", "{folder}");
    }
}

#[test]
fn a_pause_stops_schedules_and_deliveries() {
    let planned = &DEPLOYMENT.paused_in_vpc;
    for queue in ["work", "dead"] {
        let mapping = &planned[&format!("aws_lambda_event_source_mapping.worker[\"{queue}\"]")];
        assert_eq!(mapping["enabled"], false);
    }
    for schedule in ["plan", "report"] {
        let schedule = &planned[&format!("aws_scheduler_schedule.all[\"{schedule}\"]")];
        assert_eq!(schedule["state"], "DISABLED");
    }
}

#[test]
fn destroy_leaves_nothing_behind() {
    for (kind, left) in DEPLOYMENT.left.as_object().unwrap() {
        let empty = match left {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        assert!(empty, "{kind}: {left}");
    }
}

#[test]
fn every_place_agrees_with_the_numbers_of_the_code() {
    let facts = Facts::read(DEPLOYMENT.state.clone());
    assert_eq!(facts.disagreements(), Vec::<String>::new());
}

#[test]
fn a_wrong_number_is_found_wherever_it_stands() {
    let right = Facts::read(DEPLOYMENT.state.clone());
    let planner = r#"aws_lambda_function.all["planner"]"#;
    let mapping = r#"aws_lambda_event_source_mapping.worker["dead"]"#;
    let schedule = r#"aws_scheduler_schedule.all["plan"]"#;
    let calls = r#"aws_lambda_function_event_invoke_config.scheduled["report"]"#;
    let filter = r#"aws_cloudwatch_log_metric_filter.report["lag_seconds"]"#;
    let aws = [
        (
            "aws_sqs_queue.work",
            "/name",
            json!("work"),
            "aws: work queue",
        ),
        (
            "aws_sqs_queue.dead",
            "/name",
            json!("dead"),
            "aws: dead queue",
        ),
        (
            "aws_sqs_queue.work",
            "/visibility_timeout_seconds",
            json!(1799),
            "aws: visibility of the work queue",
        ),
        (
            "aws_sqs_queue.dead",
            "/visibility_timeout_seconds",
            json!(30),
            "aws: visibility of the dead queue",
        ),
        (
            "aws_sqs_queue.work",
            "/redrive_policy",
            json!(""),
            "aws: dead letters of the work queue",
        ),
        (
            "aws_sqs_queue.work",
            "/redrive_policy",
            json!(r#"{"maxReceiveCount":4}"#),
            "aws: maxReceiveCount",
        ),
        (planner, "/timeout", json!(301), "aws: time-out of planner"),
        (
            planner,
            "/timeout",
            json!(255),
            "a slice and its margin fit",
        ),
        (planner, "/timeout", json!(400), "at least six times"),
        (
            planner,
            "/environment/0/variables/ATLAS_FUNCTIONS_TIMEOUT_SECONDS",
            json!("600"),
            "aws: ATLAS_FUNCTIONS_TIMEOUT_SECONDS of planner",
        ),
        (
            planner,
            "/environment/0/variables/ATLAS_QUEUE_URL",
            json!("https://x"),
            "aws: ATLAS_QUEUE_URL of planner",
        ),
        (
            mapping,
            "/batch_size",
            json!(10),
            "aws: batch size of the mapping of the dead queue",
        ),
        (
            mapping,
            "/function_response_types",
            json!([]),
            "aws: response types of the mapping",
        ),
        (
            mapping,
            "/scaling_config/0/maximum_concurrency",
            json!(1),
            "aws: concurrency of the mapping",
        ),
        (
            mapping,
            "/event_source_arn",
            json!("arn"),
            "aws: source of the mapping",
        ),
        (
            mapping,
            "/function_arn",
            json!("arn"),
            "aws: function of the mapping",
        ),
        (
            schedule,
            "/schedule_expression",
            json!("cron(0/20 * * * ? *)"),
            "aws: expression of the schedule plan",
        ),
        (
            schedule,
            "/schedule_expression_timezone",
            json!("Europe/Berlin"),
            "aws: zone of the schedule",
        ),
        (
            schedule,
            "/target/0/arn",
            json!("arn"),
            "aws: target of the schedule",
        ),
        (
            schedule,
            "/target/0/input",
            json!(
                "{\"atlas\":\"plan\",\"scheduled\":\"\\u003caws.scheduler.scheduled-time\\u003e\"}"
            ),
            "aws: input of the schedule",
        ),
        (
            schedule,
            "/target/0/dead_letter_config",
            json!([]),
            "aws: dead letters of the schedule plan",
        ),
        (
            schedule,
            "/target/0/retry_policy/0/maximum_retry_attempts",
            json!(185),
            "aws: retries of the schedule plan",
        ),
        (
            calls,
            "/maximum_retry_attempts",
            json!(0),
            "aws: retries of calls of watermark",
        ),
        (
            calls,
            "/destination_config",
            json!([]),
            "aws: dead letters of calls of watermark",
        ),
        (
            filter,
            "/pattern",
            json!("{ $.lag >= 0 }"),
            "aws: metric filter of lag_seconds",
        ),
        (
            filter,
            "/pattern",
            json!("{ $.lag_seconds >= }"),
            "aws: metric filter of lag_seconds",
        ),
    ];
    for (address, pointer, wrong, complaint) in aws {
        let mut facts = right.clone();
        falsify(facts.aws.get_mut(address).unwrap(), pointer, wrong);
        assert_found(&facts, complaint);
    }

    let host = [
        (
            "/functionTimeout",
            json!("00:05:00"),
            "host.json: functionTimeout",
        ),
        (
            "/extensions/queues/batchSize",
            json!(16),
            "host.json: batchSize",
        ),
        (
            "/extensions/queues/newBatchThreshold",
            json!(1),
            "host.json: newBatchThreshold",
        ),
        (
            "/extensions/queues/maxDequeueCount",
            json!(3),
            "host.json: maxDequeueCount",
        ),
        (
            "/extensions/queues/visibilityTimeout",
            json!("00:00:00"),
            "host.json: visibilityTimeout",
        ),
        (
            "/extensions/queues/messageEncoding",
            json!("none"),
            "host.json: messageEncoding",
        ),
        (
            "/customHandler/description/defaultExecutablePath",
            json!("atlas"),
            "host.json: program",
        ),
        (
            "/customHandler/enableProxyingHttpRequest",
            json!(false),
            "host.json: HTTP",
        ),
        (
            "/customHandler/enableForwardingHttpRequest",
            json!(false),
            "host.json: HTTP",
        ),
        (
            "/logging/applicationInsights/samplingSettings/excludedTypes",
            json!("Request"),
            "host.json: types",
        ),
    ];
    for (pointer, wrong, complaint) in host {
        let mut facts = right.clone();
        falsify(&mut facts.host, pointer, wrong);
        assert_found(&facts, complaint);
    }

    let functions = [
        (
            "worker",
            "/bindings/0/queueName",
            json!("work"),
            "app: queue of worker",
        ),
        (
            "deadletter",
            "/bindings/0/queueName",
            json!("export-work"),
            "app: queue of deadletter",
        ),
        (
            "worker",
            "/bindings/0/connection",
            json!("Other"),
            "bicep: Other__queueServiceUri",
        ),
        (
            "planner",
            "/bindings/0/schedule",
            json!("0 0 * * * *"),
            "app: schedule of planner",
        ),
        (
            "report",
            "/retry/maxRetryCount",
            json!(-1),
            "app: retries of report",
        ),
        (
            "export",
            "/bindings/0/authLevel",
            json!("anonymous"),
            "app: key of export",
        ),
        (
            "watermark",
            "/bindings/0/methods",
            json!(["get", "post"]),
            "app: methods of watermark",
        ),
    ];
    for (name, pointer, wrong, complaint) in functions {
        let mut facts = right.clone();
        falsify(facts.functions.get_mut(name).unwrap(), pointer, wrong);
        assert_found(&facts, complaint);
    }
    let mut facts = right.clone();
    facts.functions.remove("deadletter");
    assert_found(&facts, "app: functions");

    let bicep = [
        ("/variables/workQueue/value", json!("work"), "bicep: queues"),
        (
            "/variables/timeoutSeconds/value",
            json!(300),
            "bicep: timeoutSeconds",
        ),
        (
            "/parameters/planSchedule/default",
            json!("0 0 * * * *"),
            "bicep: planSchedule",
        ),
        (
            "/parameters/reportSchedule/default",
            json!("0 0 * * * *"),
            "bicep: reportSchedule",
        ),
        (
            "/resources/storage/config/properties/allowSharedKeyAccess",
            json!(true),
            "bicep: allowSharedKeyAccess",
        ),
        (
            "/resources/storage/config/properties/minimumTlsVersion",
            json!("TLS1_0"),
            "bicep: minimumTlsVersion",
        ),
        (
            "/resources/appSettings/config/properties/function/parameters/arg_4",
            json!("settings"),
            "bicep: settings",
        ),
        ("/variables/alerts", json!({}), "bicep: alerts"),
        ("/variables/reports", json!({}), "bicep: reports"),
    ];
    for (pointer, wrong, complaint) in bicep {
        let mut facts = right.clone();
        falsify(&mut facts.bicep, pointer, wrong);
        assert_found(&facts, complaint);
    }
    let mut facts = right;
    falsify(&mut facts.bicep, "/variables/ownSettings/value", json!({}));
    for name in [
        "ATLAS_SCHEDULE_PLAN",
        "ATLAS_QUEUE_URL",
        "ATLAS_FUNCTIONS_TIMEOUT_SECONDS",
        "WorkStorage__credential",
    ] {
        assert_found(&facts, &format!("bicep: {name}"));
    }
}

fn falsify(value: &mut Value, pointer: &str, wrong: Value) {
    let place = value.pointer_mut(pointer);
    *place.unwrap_or_else(|| panic!("nothing stands at {pointer}")) = wrong;
}

fn assert_found(facts: &Facts, complaint: &str) {
    let found = facts.disagreements();
    assert!(
        found
            .iter()
            .any(|difference| difference.contains(complaint)),
        "`{complaint}` is not in {found:#?}"
    );
}

#[test]
fn a_syntax_error_in_bicep_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.bicep");
    let text = std::fs::read_to_string(root().join("infra/azure/main.bicep")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let line = lines
        .iter()
        .position(|line| line.starts_with("resource storage"))
        .unwrap();
    let text = text.replacen("resource storage '", "resource storage = '", 1);
    std::fs::write(&broken, text).unwrap();
    let complaint = python::script("bicep.py", &[broken.to_str().unwrap()]).unwrap_err();
    assert!(
        complaint.contains(&format!("at line {}", line + 1)),
        "{complaint}"
    );
}
