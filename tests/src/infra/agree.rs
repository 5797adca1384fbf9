//! The numbers and names of `atlas_runtime::suite`, looked for wherever else they stand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atlas_runtime::suite;
use serde_json::{Value, json};

use super::terraform::{FUNCTIONS, Resources};
use super::{python, root};

/// What stands in the files. Public, so that a test can falsify it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// [`Workspace::state`](super::terraform::Workspace::state) of `infra/aws`.
    pub aws: Resources,
    /// `infra/azure/main.bicep`, parsed.
    pub bicep: Value,
    /// `functions/azure/app/host.json`.
    pub host: Value,
    /// `function.json` of each folder in `functions/azure/app`.
    pub functions: BTreeMap<String, Value>,
}

impl Facts {
    /// Reads the files; `aws` is what Terraform made of its own.
    pub fn read(aws: Resources) -> Self {
        let app = root().join("functions/azure/app");
        let json = |path: std::path::PathBuf| -> Value {
            let text = std::fs::read_to_string(&path).unwrap();
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let folders = std::fs::read_dir(&app).unwrap().map(|entry| entry.unwrap());
        let functions = folders
            .filter(|entry| entry.path().is_dir())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, json(entry.path().join("function.json")))
            })
            .collect();
        let bicep = root().join("infra/azure/main.bicep");
        Self {
            aws,
            bicep: python::script("bicep.py", &[bicep.to_str().unwrap()]).unwrap(),
            host: json(app.join("host.json")),
            functions,
        }
    }

    /// Every place that says something else than the suite, as sentences; empty if all agree.
    pub fn disagreements(&self) -> Vec<String> {
        let mut all = Differences::default();
        self.aws_queues(&mut all);
        self.aws_functions(&mut all);
        self.aws_schedules(&mut all);
        self.azure_host(&mut all);
        self.azure_functions(&mut all);
        self.azure_app(&mut all);
        self.reported(&mut all);
        all.0
    }

    fn resource(&self, address: &str) -> &Value {
        self.aws.get(address).unwrap_or(&Value::Null)
    }

    fn aws_queues(&self, all: &mut Differences) {
        let (work, dead) = (
            self.resource("aws_sqs_queue.work"),
            self.resource("aws_sqs_queue.dead"),
        );
        let planner = self.resource("aws_lambda_function.all[\"planner\"]");
        let planner = planner["function_name"].as_str().unwrap_or_default();
        let installation = planner.strip_suffix("planner").unwrap_or_default();
        let named = |queue: &str| format!("{installation}{queue}");
        all.equal("aws: work queue", &work["name"], named(suite::WORK_QUEUE));
        all.equal("aws: dead queue", &dead["name"], named(suite::DEAD_QUEUE));
        let visibility = suite::AWS_VISIBILITY.as_secs();
        for (place, queue) in [("work", work), ("dead", dead)] {
            let place = format!("aws: visibility of the {place} queue");
            all.equal(&place, &queue["visibility_timeout_seconds"], visibility);
        }
        let redrive = work["redrive_policy"].as_str().unwrap_or("null");
        let redrive: Value = serde_json::from_str(redrive).unwrap_or_default();
        all.equal(
            "aws: dead letters of the work queue",
            &redrive["deadLetterTargetArn"],
            dead["arn"].clone(),
        );
        all.equal(
            "aws: maxReceiveCount",
            &redrive["maxReceiveCount"],
            suite::MAX_RECEIVES,
        );
        let worker = self.resource("aws_lambda_function.all[\"worker\"]");
        let slots = &worker["environment"][0]["variables"]["ATLAS_OPENEHR_QUERY_PARALLEL"];
        let slots: u64 = slots.as_str().and_then(|s| s.parse().ok()).unwrap_or(0);
        all.holds(
            "aws: slots",
            slots >= 1,
            "the worker is told how many readers there may be",
        );
        for (name, queue) in [("work", work), ("dead", dead)] {
            let mapping = self.resource(&format!(
                "aws_lambda_event_source_mapping.worker[\"{name}\"]"
            ));
            let place = |what| format!("aws: {what} of the mapping of the {name} queue");
            all.equal(
                &place("source"),
                &mapping["event_source_arn"],
                queue["arn"].clone(),
            );
            all.equal(
                &place("function"),
                &mapping["function_arn"],
                worker["arn"].clone(),
            );
            all.equal(
                &place("batch size"),
                &mapping["batch_size"],
                suite::BATCH_SIZE,
            );
            all.equal(
                &place("response types"),
                &mapping["function_response_types"],
                json!(["ReportBatchItemFailures"]),
            );
            all.equal(
                &place("concurrency"),
                &mapping["scaling_config"][0]["maximum_concurrency"],
                slots.max(2),
            );
        }
    }

    fn aws_functions(&self, all: &mut Differences) {
        let timeout = suite::AWS_TIMEOUT.as_secs();
        for name in FUNCTIONS {
            let function = self.resource(&format!("aws_lambda_function.all[\"{name}\"]"));
            let place = |what| format!("aws: {what} of {name}");
            all.equal(&place("time-out"), &function["timeout"], timeout);
            let variables = &function["environment"][0]["variables"];
            all.equal(
                &place("ATLAS_FUNCTIONS_TIMEOUT_SECONDS"),
                &variables["ATLAS_FUNCTIONS_TIMEOUT_SECONDS"],
                timeout.to_string(),
            );
            all.equal(
                &place("ATLAS_QUEUE_URL"),
                &variables["ATLAS_QUEUE_URL"],
                self.resource("aws_sqs_queue.work")["url"].clone(),
            );
            let seconds = function["timeout"].as_u64().unwrap_or(0);
            let slice = (suite::SLICE_BUDGET + suite::MARGIN).as_secs();
            all.holds(
                &place("time-out"),
                slice < seconds,
                "a slice and its margin fit into it",
            );
            let visibility =
                self.resource("aws_sqs_queue.work")["visibility_timeout_seconds"].as_u64();
            all.holds(
                &place("time-out"),
                visibility >= Some(6 * seconds),
                "the visibility of messages is at least six times as long",
            );
        }
    }

    fn aws_schedules(&self, all: &mut Differences) {
        let retries = self
            .functions
            .get("planner")
            .map(|f| f["retry"]["maxRetryCount"].clone());
        let retries = retries.unwrap_or_default();
        let missed = &self.resource("aws_sqs_queue.missed")["arn"];
        for (name, function, schedule) in [
            ("plan", "planner", suite::PLAN_SCHEDULE),
            ("report", "watermark", suite::REPORT_SCHEDULE),
        ] {
            let place = |what| format!("aws: {what} of the schedule {name}");
            let rule = self.resource(&format!("aws_scheduler_schedule.all[\"{name}\"]"));
            all.equal(
                &place("expression"),
                &rule["schedule_expression"],
                eventbridge(schedule),
            );
            all.equal(&place("zone"), &rule["schedule_expression_timezone"], "UTC");
            let target = &rule["target"][0];
            let called = self.resource(&format!("aws_lambda_function.all[\"{function}\"]"));
            all.equal(&place("target"), &target["arn"], called["arn"].clone());
            all.equal(
                &place("input"),
                &target["input"],
                format!(
                    "{{\"atlas\":\"{name}\",\"scheduled\":\"<aws.scheduler.scheduled-time>\",\
                     \"execution\":\"<aws.scheduler.execution-id>\",\
                     \"attempt\":\"<aws.scheduler.attempt-number>\"}}"
                ),
            );
            all.equal(
                &place("dead letters"),
                &target["dead_letter_config"][0]["arn"],
                missed.clone(),
            );
            let policy = &target["retry_policy"][0]["maximum_retry_attempts"];
            all.equal(&place("retries"), policy, retries.clone());
            let invoke = self.resource(&format!(
                "aws_lambda_function_event_invoke_config.scheduled[\"{name}\"]"
            ));
            let place = |what| format!("aws: {what} of calls of {function}");
            all.equal(
                &place("retries"),
                &invoke["maximum_retry_attempts"],
                retries.clone(),
            );
            all.equal(
                &place("dead letters"),
                &invoke["destination_config"][0]["on_failure"][0]["destination"],
                missed.clone(),
            );
        }
    }

    fn azure_host(&self, all: &mut Differences) {
        let queues = &self.host["extensions"]["queues"];
        all.equal(
            "host.json: functionTimeout",
            &self.host["functionTimeout"],
            clock(suite::AZURE_TIMEOUT),
        );
        all.holds(
            "host.json: functionTimeout",
            suite::SLICE_BUDGET + suite::MARGIN < suite::AZURE_TIMEOUT,
            "a slice and its margin fit into it",
        );
        all.equal(
            "host.json: batchSize",
            &queues["batchSize"],
            suite::BATCH_SIZE,
        );
        all.equal(
            "host.json: newBatchThreshold",
            &queues["newBatchThreshold"],
            0,
        );
        all.equal(
            "host.json: maxDequeueCount",
            &queues["maxDequeueCount"],
            suite::MAX_RECEIVES,
        );
        all.equal(
            "host.json: visibilityTimeout",
            &queues["visibilityTimeout"],
            clock(suite::AZURE_RETRY_VISIBILITY),
        );
        all.equal(
            "host.json: messageEncoding",
            &queues["messageEncoding"],
            "base64",
        );
        let handler = &self.host["customHandler"];
        all.equal(
            "host.json: program",
            &handler["description"]["defaultExecutablePath"],
            "handler",
        );
        // The first is the new name of the second, which is all that some hosts know.
        for flag in ["enableForwardingHttpRequest", "enableProxyingHttpRequest"] {
            all.equal("host.json: HTTP", &handler[flag], true);
        }
        // The alerts count requests and read the report in a trace.
        all.equal(
            "host.json: types that are never sampled",
            &self.host["logging"]["applicationInsights"]["samplingSettings"]["excludedTypes"],
            "Request;Trace",
        );
    }

    fn azure_functions(&self, all: &mut Differences) {
        let names: Vec<&str> = self.functions.keys().map(String::as_str).collect();
        all.equal(
            "app: functions",
            &json!(names),
            json!([
                "deadletter",
                "export",
                "planner",
                "report",
                "watermark",
                "worker"
            ]),
        );
        let function = |name: &str| self.functions.get(name).cloned().unwrap_or_default();
        for (name, queue) in [
            ("worker", suite::WORK_QUEUE),
            ("deadletter", suite::DEAD_QUEUE),
        ] {
            let trigger = &function(name)["bindings"][0];
            all.equal(
                &format!("app: trigger of {name}"),
                &trigger["type"],
                "queueTrigger",
            );
            all.equal(
                &format!("app: queue of {name}"),
                &trigger["queueName"],
                queue,
            );
        }
        for (name, variable) in [
            ("planner", "ATLAS_SCHEDULE_PLAN"),
            ("report", "ATLAS_SCHEDULE_REPORT"),
        ] {
            let function = function(name);
            let trigger = &function["bindings"][0];
            all.equal(
                &format!("app: trigger of {name}"),
                &trigger["type"],
                "timerTrigger",
            );
            all.equal(
                &format!("app: schedule of {name}"),
                &trigger["schedule"],
                format!("%{variable}%"),
            );
            all.equal(
                &format!("app: retries of {name}"),
                &function["retry"]["maxRetryCount"],
                self.resource("aws_lambda_function_event_invoke_config.scheduled[\"plan\"]")
                    ["maximum_retry_attempts"]
                    .clone(),
            );
        }
        for (name, methods) in [
            ("export", json!(["get", "post", "delete"])),
            ("watermark", json!(["get"])),
        ] {
            let trigger = &function(name)["bindings"][0];
            all.equal(
                &format!("app: trigger of {name}"),
                &trigger["type"],
                "httpTrigger",
            );
            all.equal(
                &format!("app: key of {name}"),
                &trigger["authLevel"],
                "function",
            );
            all.equal(
                &format!("app: methods of {name}"),
                &trigger["methods"],
                methods,
            );
        }
    }

    fn azure_app(&self, all: &mut Differences) {
        let queues: BTreeSet<String> = self
            .bicep_resources("Microsoft.Storage/storageAccounts/queueServices/queues")
            .map(|queue| self.bicep_text(&queue["config"]["name"]))
            .collect();
        let wanted = [suite::WORK_QUEUE, suite::DEAD_QUEUE];
        all.equal("bicep: queues", &json!(queues), json!(wanted));

        let default = |parameter: &str| self.bicep["parameters"][parameter]["default"].clone();
        all.equal(
            "bicep: planSchedule",
            &default("planSchedule"),
            suite::PLAN_SCHEDULE,
        );
        all.equal(
            "bicep: reportSchedule",
            &default("reportSchedule"),
            suite::REPORT_SCHEDULE,
        );
        all.equal(
            "bicep: timeoutSeconds",
            &self.bicep["variables"]["timeoutSeconds"]["value"],
            suite::AZURE_TIMEOUT.as_secs(),
        );

        let app = &self.bicep["resources"]["appSettings"]["config"];
        all.equal("bicep: settings of the app", &app["name"], "appsettings");
        // The last one counts.
        let parts = &app["properties"]["function"]["parameters"];
        all.equal("bicep: settings", &parts["arg_4"], "ownSettings");

        let settings = self.bicep_settings();
        let text = |name: &str| settings.get(name).cloned().unwrap_or_default();
        for (name, source) in [
            ("ATLAS_SCHEDULE_PLAN", "planSchedule"),
            ("ATLAS_SCHEDULE_REPORT", "reportSchedule"),
        ] {
            all.equal(&format!("bicep: {name}"), &text(name), source);
        }
        for (name, source) in [
            ("ATLAS_FUNCTIONS_TIMEOUT_SECONDS", "timeoutSeconds"),
            ("ATLAS_OPENEHR_QUERY_PARALLEL", "slots"),
        ] {
            let value = text(name)["function"]["parameters"]["value_to_convert"].clone();
            all.equal(&format!("bicep: {name}"), &value, source);
        }
        all.holds(
            "bicep: ATLAS_QUEUE_URL",
            text("ATLAS_QUEUE_URL")
                .as_str()
                .is_some_and(|url| url.ends_with("${workQueue}")),
            "it is the work queue",
        );
        for name in self.needed_settings() {
            all.holds(
                &format!("bicep: {name}"),
                settings.contains_key(&name),
                "the app needs this setting",
            );
        }
        for storage in self.bicep_resources("Microsoft.Storage/storageAccounts") {
            let properties = &storage["config"]["properties"];
            for (name, value) in [
                ("allowBlobPublicAccess", json!(false)),
                ("allowSharedKeyAccess", json!(false)),
                ("minimumTlsVersion", json!("TLS1_2")),
                ("supportsHttpsTrafficOnly", json!(true)),
            ] {
                all.equal(
                    &format!("bicep: {name} of the storage account"),
                    &properties[name],
                    value,
                );
            }
        }
    }

    /// The settings that `function.json` files refer to: `%NAME%`, and connections by identity.
    fn needed_settings(&self) -> BTreeSet<String> {
        let bindings = self
            .functions
            .values()
            .filter_map(|f| f["bindings"].as_array());
        let mut needed = BTreeSet::new();
        for binding in bindings.flatten() {
            let schedule = binding["schedule"]
                .as_str()
                .and_then(|s| s.strip_prefix('%'));
            needed.extend(
                schedule
                    .and_then(|s| s.strip_suffix('%'))
                    .map(str::to_owned),
            );
            if let Some(connection) = binding["connection"].as_str() {
                let parts = ["queueServiceUri", "credential", "clientId"];
                needed.extend(parts.map(|part| format!("{connection}__{part}")));
            }
        }
        needed
    }

    /// What alarms look for must be what `atlas_watermark::save_report` logs.
    fn reported(&self, all: &mut Differences) {
        let line = json!({"message": "watermark report", "lag_seconds": 61.5, "slices_failed": 1, "slices_waiting": 2,
            "stalled_slice_seconds": 30, "dead_letters": 0});
        for name in ["lag_seconds", "slices_failed", "stalled_slice_seconds"] {
            let filter = self.resource(&format!(
                "aws_cloudwatch_log_metric_filter.report[\"{name}\"]"
            ));
            let place = format!("aws: metric filter of {name}");
            let pattern = filter["pattern"].as_str().unwrap_or_default();
            let selected = selector(pattern);
            all.equal(
                &place,
                &filter["metric_transformation"][0]["value"],
                json!(selected),
            );
            let found = selected.and_then(|path| line.pointer(&path[1..].replace('.', "/")));
            all.equal(&place, &json!(found), line[name].clone());
        }
        let query = self.bicep["variables"]["reports"].to_string();
        let message = line["message"].as_str().unwrap_or_default();
        all.holds(
            "bicep: reports",
            query.contains(message),
            "they are found by their message",
        );
        let queries = self.bicep["variables"]["alerts"].to_string();
        let members = line.as_object().into_iter().flatten();
        for name in members
            .map(|(name, _)| name)
            .filter(|name| *name != "message")
        {
            let member = format!("report.{name}");
            all.holds(
                "bicep: alerts",
                queries.contains(&member),
                &format!("they look at {member}"),
            );
        }
        let poison = "OperationName == \\\"deadletter\\\"";
        all.holds(
            "bicep: alerts",
            queries.contains(poison),
            "they look at dead letters",
        );
    }

    fn bicep_resources(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let resources = self.bicep["resources"].as_object();
        resources
            .into_iter()
            .flat_map(|all| all.values())
            .filter(move |resource| resource["type"] == kind)
    }

    /// A text, or the variable it names: the parser writes both alike.
    fn bicep_text(&self, value: &Value) -> String {
        let text = value.as_str().unwrap_or_default();
        let variable = &self.bicep["variables"][text]["value"];
        variable.as_str().unwrap_or(text).to_owned()
    }

    /// The settings that the file gives the app itself, whatever a deployment gives.
    fn bicep_settings(&self) -> BTreeMap<String, Value> {
        let own = self.bicep["variables"]["ownSettings"]["value"].as_object();
        own.cloned().into_iter().flatten().collect()
    }
}

#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn equal(&mut self, place: &str, is: &Value, must: impl Into<Value>) {
        let must = must.into();
        if *is != must || is.is_null() {
            self.0.push(format!("{place}: is {is}, must be {must}"));
        }
    }

    fn holds(&mut self, place: &str, holds: bool, rule: &str) {
        if !holds {
            self.0.push(format!("{place}: does not hold that {rule}"));
        }
    }
}

/// A length of time as `host.json` writes it: `hh:mm:ss`.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// A six-field schedule as EventBridge writes it: no seconds, a year, `?` for the day that is not looked at.
fn eventbridge(schedule: &str) -> String {
    let fields: Vec<&str> = schedule.split(' ').collect();
    let [seconds, minutes, hours, day, month, weekday] = fields[..] else {
        panic!("`{schedule}` has not six fields");
    };
    assert_eq!(seconds, "0", "EventBridge knows no seconds");
    assert_eq!(weekday, "*", "a weekday needs a rule of its own here");
    let from_zero = |field: &str| field.replace("*/", "0/");
    let (minutes, hours) = (from_zero(minutes), from_zero(hours));
    format!("cron({minutes} {hours} {day} {month} ? *)")
}

/// The selector of a JSON filter pattern of the form `{ $.a.b >= 0 }`, which is all that is used here.
fn selector(pattern: &str) -> Option<&str> {
    let condition = pattern.strip_prefix("{ ")?.strip_suffix(" }")?;
    let selector = condition.strip_suffix(" >= 0")?;
    let members = selector.strip_prefix("$.")?;
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    members.split('.').all(is_name).then_some(selector)
}
