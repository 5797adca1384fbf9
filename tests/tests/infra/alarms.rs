//! Alarms over recorded series: the evaluator by itself, then what `docs/deploy` promises of both clouds.

use std::collections::BTreeMap;

use atlas_scenarios::infra::alarms::{self, Condition, REPORT, Row, Rule, Selection, Statistic};
use atlas_scenarios::infra::bicep::File;
use atlas_scenarios::infra::root;
use serde_json::{Value, json};

use super::DEPLOYMENT;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
/// How far the copy may be behind; the default of both clouds.
const LAG: u64 = HOUR;

fn rule(statistic: Statistic, threshold: f64) -> Rule {
    Rule {
        rows: Selection {
            table: REPORT.to_owned(),
            conditions: Vec::new(),
        },
        value: Some("n".to_owned()),
        without: None,
        statistic,
        window: 10 * MINUTE,
        windows: 1,
        every: 10 * MINUTE,
        above: true,
        threshold,
        missing_is_bad: false,
    }
}

/// A report every five minutes; `n` is a function of the minute.
fn reports(n: impl Fn(u64) -> Value) -> Vec<Row> {
    let minutes = (0..6 * 60).step_by(5);
    let row = |minute| Row::new(minute * MINUTE, REPORT, json!({"n": n(minute)}));
    minutes.map(row).collect()
}

fn rings(rule: &Rule, rows: &[Row]) -> Option<u64> {
    rule.rings_at(rows, 0, 6 * HOUR).map(|at| at / MINUTE)
}

#[test]
fn a_number_that_grows_rings_in_the_first_window_that_is_above_and_never_at_the_threshold() {
    let growing = reports(|minute| json!(minute));
    // The window from 30 to 40 has 30 and 35.
    assert_eq!(rings(&rule(Statistic::Maximum, 30.0), &growing), Some(40));
    assert_eq!(rings(&rule(Statistic::Minimum, 30.0), &growing), Some(50));
    assert_eq!(rings(&rule(Statistic::Minimum, 29.0), &growing), Some(40));
    assert_eq!(rings(&rule(Statistic::Sum, 64.0), &growing), Some(40));
    assert_eq!(rings(&rule(Statistic::Sum, 65.0), &growing), Some(50));
    let still = reports(|_| json!(30));
    assert_eq!(rings(&rule(Statistic::Maximum, 30.0), &still), None);
}

#[test]
fn several_windows_must_be_bad_in_a_row() {
    let mut three = rule(Statistic::Maximum, 0.0);
    three.windows = 3;
    let from = |start| reports(move |minute| json!(u64::from(minute >= start)));
    assert_eq!(rings(&three, &from(60)), Some(90));
    let with_a_good_one = reports(|minute| json!(u64::from(minute / 10 % 3 != 0)));
    assert_eq!(rings(&three, &with_a_good_one), None);
    let once = reports(|minute| json!(u64::from(minute == 60)));
    assert_eq!(rings(&three, &once), None);
}

#[test]
fn a_window_without_a_number_is_what_the_rule_says_it_is() {
    let until = |end| {
        let mut rows = reports(|_| json!(0));
        rows.retain(|row| row.at < end * MINUTE);
        rows
    };
    let mut silent = rule(Statistic::SampleCount, 1.0);
    silent.above = false;
    assert_eq!(rings(&silent, &until(60)), None);
    silent.missing_is_bad = true;
    assert_eq!(rings(&silent, &until(60)), Some(70));
    silent.windows = 3;
    assert_eq!(rings(&silent, &until(60)), Some(90));
    let mut counted = rule(Statistic::Count, 1.0);
    counted.above = false;
    assert_eq!(rings(&counted, &until(60)), Some(70));
    // A report without the number says nothing.
    let unknown = reports(|minute| if minute < 60 { json!(5) } else { Value::Null });
    silent.windows = 1;
    assert_eq!(rings(&silent, &unknown), Some(70));
    assert_eq!(rings(&rule(Statistic::Maximum, 9.0), &unknown), None);
}

#[test]
fn only_rows_that_are_looked_for_count() {
    let row = |minute: u64, queue: &str| {
        Row::new(
            minute * MINUTE,
            "AWS/SQS",
            json!({"QueueName": queue, "n": 1}),
        )
    };
    let mut of_one = rule(Statistic::Sum, 0.0);
    of_one.rows.table = "AWS/SQS".to_owned();
    let named = Condition::Is(json!("poison"));
    of_one.rows.conditions = vec![("QueueName".to_owned(), named)];
    let rows = [row(1, "work"), row(25, "poison")];
    assert_eq!(rings(&of_one, &rows), Some(30));
    assert_eq!(rings(&of_one, &rows[..1]), None);
    of_one.without = Some(Selection {
        table: "AWS/SQS".to_owned(),
        conditions: vec![("QueueName".to_owned(), Condition::Is(json!("work")))],
    });
    assert_eq!(rings(&of_one, &rows), Some(30));
    assert_eq!(rings(&of_one, &[row(21, "work"), row(25, "poison")]), None);
}

/// Between two occurrences of the planner's schedule.
const PLAN: u64 = 15 * MINUTE;
/// Minutes after one in which it is tried, if it fails.
const PLANNED: [u64; 3] = [0, 1, 3];

/// What is recorded of an installation on both clouds, in which something goes wrong at `start`. All is well before.
fn recorded(fault: &str, start: u64) -> Vec<Row> {
    let end = start + 2 * HOUR;
    let mut rows = Vec::new();
    for at in (0..end).step_by(60) {
        let wrong = at >= start;
        let since = |what: &str| {
            if wrong && fault == what {
                at - start
            } else {
                0
            }
        };
        let one = |what: &str| u64::from(wrong && fault == what);
        let mut queue = |name: &str, column: &str, value: u64| {
            let columns = json!({"QueueName": name, column: value});
            rows.push(Row::new(at, "AWS/SQS", columns));
        };
        let age = "ApproximateAgeOfOldestMessage";
        queue("atlas-export-work", age, since("work-is-old"));
        queue("atlas-export-work-poison", age, since("set-aside-is-old"));
        let received = u64::from(fault == "set-aside" && wrong && at < start + 60);
        queue(
            "atlas-export-work-poison",
            "NumberOfMessagesReceived",
            received,
        );
        let visible = "ApproximateNumberOfMessagesVisible";
        queue("atlas-missed", visible, one("missed"));
        for function in super::FUNCTIONS {
            let errors = match function {
                "planner" => u64::from(PLANNED.contains(&(at % PLAN / MINUTE))) * one("fails"),
                _ => one("fails"),
            };
            let columns = json!({
                "FunctionName": format!("atlas-{function}"),
                "Errors": errors, "Throttles": one("is-throttled"),
            });
            rows.push(Row::new(at, "AWS/Lambda", columns));
        }
        let mut called = |operation: &str, success: bool| {
            let columns = json!({"OperationName": operation, "Success": success});
            rows.push(Row::new(at, "AppRequests", columns));
        };
        let fails = wrong && fault == "fails";
        if PLANNED.contains(&(at % PLAN / MINUTE)) && (fails || at % PLAN == 0) {
            called("planner", !fails);
        }
        if !(wrong && fault == "work-is-old") {
            called("worker", !fails);
        }
        if received > 0 {
            called("deadletter", true);
        }
        if at % (5 * MINUTE) == 0 && !(wrong && fault == "no-report") {
            let lag = if wrong && fault == "lag" {
                LAG + at - start
            } else {
                LAG
            };
            let columns = json!({
                "lag_seconds": lag,
                "slices_failed": one("slices-failed"),
                "slices_waiting": 1,
                "stalled_slice_seconds": since("slice-stands-still"),
                "dead_letters": one("set-aside-is-old"),
            });
            rows.push(Row::new(at, REPORT, columns));
        }
    }
    rows
}

/// The fault that an alarm is for.
fn fault_of(alarm: &str) -> &str {
    match alarm {
        "failures" => "fails",
        _ => ["fails", "is-throttled"]
            .into_iter()
            .find(|end| alarm.ends_with(&format!("-{end}")))
            .unwrap_or(alarm),
    }
}

/// Minutes between a fault and its alarm at the worst, over starts in each of so many minutes that after those every rule looks
/// at the same moments again, and the planner is called at the same ones.
fn worst(rule: &Rule, name: &str) -> u64 {
    let fault = fault_of(name);
    let starts = (0..if name == "planner-fails" { 30 } else { 10 })
        .map(|minute| 2 * HOUR + minute * MINUTE + 1);
    let delays = starts.map(|start| {
        let rows = recorded(fault, start);
        // Silence before the first report is no fault.
        let early = rule.rings_at(&rows, HOUR, start);
        assert_eq!(early, None, "{fault}: rings without a reason");
        let at = rule.rings_at(&rows, start, start + 2 * HOUR);
        at.unwrap_or_else(|| panic!("{fault}: never rings")) - start
    });
    delays.max().unwrap().div_ceil(MINUTE)
}

/// `| alarm | rings within | …`: what a page promises, in minutes by alarm.
pub(super) fn promised(page: &str) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(root().join("docs/deploy").join(page)).unwrap();
    let lines = text
        .lines()
        .skip_while(|line| !line.contains("| rings within |"));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let promises = rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let minutes = cells[2].strip_suffix(" min").unwrap();
        (
            cells[1].trim_matches('`').to_owned(),
            minutes.parse().unwrap(),
        )
    });
    promises.collect()
}

pub(super) fn azure() -> BTreeMap<String, Rule> {
    let text = std::fs::read_to_string(root().join("infra/azure/main.bicep")).unwrap();
    alarms::azure(&File::parse(&text).unwrap().deployed(&[]))
}

/// The rules under the names that a page gives them: one line for all functions.
fn as_documented(rules: &BTreeMap<String, Rule>) -> BTreeMap<String, u64> {
    let named = rules.iter().map(|(name, rule)| {
        let fault = fault_of(name);
        let shown = match (name.as_str(), fault) {
            ("failures" | "planner-fails", _) => name.clone(),
            (_, "fails" | "is-throttled") => format!("…-{fault}"),
            _ => name.clone(),
        };
        (shown, worst(rule, name))
    });
    let mut documented = BTreeMap::new();
    for (shown, minutes) in named {
        let before = documented.insert(shown.clone(), minutes);
        assert!(
            before.is_none_or(|before| before == minutes),
            "{shown} is several alarms, which ring at different times"
        );
    }
    documented
}

#[test]
fn each_alarm_rings_within_the_time_that_the_pages_promise() {
    let aws = as_documented(&alarms::aws(&DEPLOYMENT.state));
    assert_eq!(aws, promised("aws.md"), "docs/deploy/aws.md");
    let azure = as_documented(&azure());
    assert_eq!(azure, promised("azure.md"), "docs/deploy/azure.md");
    for page in ["aws.md", "azure.md"] {
        let text = std::fs::read_to_string(root().join("docs/deploy").join(page)).unwrap();
        assert!(text.contains("No cloud rang"), "{page} says who rang them");
    }
}

#[test]
fn a_fault_rings_its_own_alarms_and_a_healthy_installation_none() {
    let start = 2 * HOUR;
    let aws = alarms::aws(&DEPLOYMENT.state);
    let azure = azure();
    for (fault, expected) in [
        ("none", vec![]),
        ("slice-stands-still", vec!["slice-stands-still"]),
        ("set-aside-is-old", vec!["set-aside-is-old"]),
        ("lag", vec!["lag"]),
        ("no-report", vec!["no-report"]),
    ] {
        let rows = recorded(fault, start);
        for rules in [&aws, &azure] {
            let rung = rules
                .iter()
                .filter(|(_, rule)| rule.rings_at(&rows, HOUR, start + 2 * HOUR).is_some());
            let rung: Vec<&str> = rung.map(|(name, _)| name.as_str()).collect();
            assert_eq!(rung, expected, "{fault}");
        }
    }
}
