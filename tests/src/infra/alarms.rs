//! When alarms ring: rules as they stand in Terraform and Bicep, over a series that was recorded.
//!
//! ```text
//! alarms.tf ──► state of Terraform ──► aws ───┐
//! main.bicep ─► what would be deployed ► azure ┴─► Rule ──► Rule::rings_at(rows): one evaluator for both clouds
//! ```
//!
//! No cloud rang these alarms. What a cloud itself takes to hand on a number or a line is not in the times here.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::bicep::Deployed;
use super::terraform::Resources;

/// The table of the watermark report, which both clouds read from a log line.
pub const REPORT: &str = "watermark report";

/// A number or a line that was recorded.
#[derive(Debug, Clone)]
pub struct Row {
    /// When, in seconds.
    pub at: u64,
    /// Where it belongs: [`REPORT`], `AppRequests`, `AWS/SQS` or `AWS/Lambda`.
    pub table: &'static str,
    /// What it says.
    pub columns: BTreeMap<String, Value>,
}

impl Row {
    /// A row whose columns are the members of `columns`.
    pub fn new(at: u64, table: &'static str, columns: Value) -> Self {
        let columns = columns.as_object().into_iter().flatten();
        let columns = columns.map(|(name, value)| (name.clone(), value.clone()));
        Self {
            at,
            table,
            columns: columns.collect(),
        }
    }
}

/// What is looked for in a column.
#[derive(Debug, Clone)]
pub enum Condition {
    /// It has this value.
    Is(Value),
    /// It is a number above this.
    Above(f64),
}

/// Rows of a table that meet all conditions.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Table of [`Row`].
    pub table: String,
    /// Column and condition.
    pub conditions: Vec<(String, Condition)>,
}

impl Selection {
    fn takes(&self, row: &Row) -> bool {
        let holds = |(column, condition): &(String, Condition)| {
            let value = row.columns.get(column);
            match condition {
                Condition::Is(wanted) => value == Some(wanted),
                Condition::Above(limit) => {
                    value.and_then(Value::as_f64).is_some_and(|v| v > *limit)
                }
            }
        };
        row.table == self.table && self.conditions.iter().all(holds)
    }
}

/// What is made of the rows in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// The least value.
    Minimum,
    /// The greatest value.
    Maximum,
    /// All values together.
    Sum,
    /// How many there are; no row is no value.
    SampleCount,
    /// How many there are; no row is 0.
    Count,
}

/// The rule of an alarm.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The rows that count.
    pub rows: Selection,
    /// The column with the number; without it a row counts by being there.
    pub value: Option<String>,
    /// Rows of which a window must have none.
    pub without: Option<Selection>,
    /// What is made of them.
    pub statistic: Statistic,
    /// Length of a window, seconds.
    pub window: u64,
    /// How many windows in a row must be bad.
    pub windows: u64,
    /// Time between two evaluations, seconds.
    pub every: u64,
    /// Whether a number above the threshold is bad, or one below.
    pub above: bool,
    /// The threshold.
    pub threshold: f64,
    /// Whether a window without a number is bad.
    pub missing_is_bad: bool,
}

impl Rule {
    /// The first evaluation after `from` and up to `until` at which the alarm rings; all in seconds.
    ///
    /// Evaluations are at multiples of [`every`](Self::every), windows end there. CloudWatch may look oftener; this is the
    /// latest it can be.
    pub fn rings_at(&self, rows: &[Row], from: u64, until: u64) -> Option<u64> {
        let first = from / self.every + 1;
        let evaluations = (first..=until / self.every).map(|step| step * self.every);
        let mut evaluations = evaluations.filter(|now| *now >= self.window * self.windows);
        evaluations.find(|now| {
            (0..self.windows).all(|back| {
                let end = now - back * self.window;
                let start = end - self.window;
                let rows = rows.iter().filter(|row| (start..end).contains(&row.at));
                self.is_bad(&rows.collect::<Vec<_>>())
            })
        })
    }

    fn is_bad(&self, rows: &[&Row]) -> bool {
        if let Some(without) = &self.without
            && rows.iter().any(|row| without.takes(row))
        {
            return false;
        }
        let taken = rows.iter().filter(|row| self.rows.takes(row));
        let numbers: Vec<f64> = taken
            .filter_map(|row| match &self.value {
                Some(column) => row.columns.get(column)?.as_f64(),
                None => Some(1.0),
            })
            .collect();
        let count = numbers.len() as f64;
        let number = match self.statistic {
            Statistic::Count => Some(count),
            _ if numbers.is_empty() => None,
            Statistic::SampleCount => Some(count),
            Statistic::Sum => Some(numbers.iter().sum()),
            Statistic::Minimum => numbers.iter().copied().reduce(f64::min),
            Statistic::Maximum => numbers.iter().copied().reduce(f64::max),
        };
        match number {
            None => self.missing_is_bad,
            Some(number) if self.above => number > self.threshold,
            Some(number) => number < self.threshold,
        }
    }
}

/// The alarms of `infra/aws` by name, without the installation's.
pub fn aws(state: &Resources) -> BTreeMap<String, Rule> {
    let alarms = state
        .iter()
        .filter(|(address, _)| address.starts_with("aws_cloudwatch_metric_alarm."));
    alarms
        .map(|(_, alarm)| {
            let name = words(&alarm["alarm_name"]);
            let short = name.strip_prefix("atlas-").unwrap_or(&name).to_owned();
            (short, cloudwatch(alarm))
        })
        .collect()
}

fn cloudwatch(alarm: &Value) -> Rule {
    let namespace = words(&alarm["namespace"]);
    let table = match namespace.starts_with("Atlas/") {
        true => REPORT.to_owned(),
        false => namespace,
    };
    let dimensions = alarm["dimensions"].as_object().into_iter().flatten();
    let conditions = dimensions.map(|(name, value)| (name.clone(), Condition::Is(value.clone())));
    let number = |member: &str| alarm[member].as_f64().unwrap();
    // Without `datapoints_to_alarm` every window must be bad.
    assert!(matches!(
        alarm["datapoints_to_alarm"].as_u64(),
        None | Some(0)
    ));
    Rule {
        rows: Selection {
            table,
            conditions: conditions.collect(),
        },
        value: Some(words(&alarm["metric_name"])),
        without: None,
        statistic: match words(&alarm["statistic"]).as_str() {
            "Minimum" => Statistic::Minimum,
            "Maximum" => Statistic::Maximum,
            "Sum" => Statistic::Sum,
            "SampleCount" => Statistic::SampleCount,
            other => panic!("the statistic `{other}` is not known here"),
        },
        window: number("period") as u64,
        windows: number("evaluation_periods") as u64,
        every: number("period") as u64,
        above: match words(&alarm["comparison_operator"]).as_str() {
            "GreaterThanThreshold" => true,
            "LessThanThreshold" => false,
            other => panic!("the comparison `{other}` is not known here"),
        },
        threshold: number("threshold"),
        missing_is_bad: match words(&alarm["treat_missing_data"]).as_str() {
            "breaching" => true,
            "notBreaching" => false,
            other => panic!("missing data as `{other}` are not known here"),
        },
    }
}

/// The alerts of `infra/azure` by name, without the installation's.
pub fn azure(deployed: &Deployed<'_>) -> BTreeMap<String, Rule> {
    let reports = words(&deployed.variable("reports"));
    let resources = deployed.resources().into_iter();
    let rules =
        resources.filter(|resource| resource.kind == "Microsoft.Insights/scheduledQueryRules");
    rules
        .map(|rule| {
            let shown = words(&rule.body["properties"]["displayName"]);
            let (_, name) = shown.split_once(' ').unwrap();
            (
                name.to_owned(),
                log_search(&rule.body["properties"], &reports),
            )
        })
        .collect()
}

fn log_search(rule: &Value, reports: &str) -> Rule {
    let criterion = &rule["criteria"]["allOf"][0];
    let periods = &criterion["failingPeriods"];
    assert_eq!(criterion["timeAggregation"], "Count");
    assert_eq!(
        periods["numberOfEvaluationPeriods"],
        periods["minFailingPeriodsToAlert"]
    );
    let query = words(&criterion["query"]);
    let (rows, without) = selections(&query, reports);
    Rule {
        rows,
        value: None,
        without,
        statistic: Statistic::Count,
        window: duration(&rule["windowSize"]),
        windows: periods["numberOfEvaluationPeriods"].as_u64().unwrap(),
        every: duration(&rule["evaluationFrequency"]),
        above: match words(&criterion["operator"]).as_str() {
            "GreaterThan" => true,
            "LessThan" => false,
            other => panic!("the comparison `{other}` is not known here"),
        },
        threshold: criterion["threshold"].as_f64().unwrap(),
        missing_is_bad: false,
    }
}

/// The rows that a query finds, and those that must not be there: `let worked = toscalar(… | count); … and worked == 0`.
fn selections(query: &str, reports: &str) -> (Selection, Option<Selection>) {
    let (without, query) = match query.strip_prefix("let worked = toscalar(") {
        Some(rest) => {
            let (inner, outer) = rest.split_once(" | count); ").unwrap();
            let outer = outer.strip_suffix(" and worked == 0").unwrap();
            (Some(selection(inner, reports)), outer)
        }
        None => (None, query),
    };
    (selection(query, reports), without)
}

fn selection(query: &str, reports: &str) -> Selection {
    let (table, rest) = match query.strip_prefix(reports) {
        Some(rest) => (REPORT, rest),
        None => query.split_at(query.find(" | ").unwrap_or(query.len())),
    };
    let steps = rest.split(" | ").filter(|step| !step.is_empty());
    let conditions = steps.flat_map(|step| {
        let conditions = step.strip_prefix("where ");
        let conditions = conditions.unwrap_or_else(|| panic!("`{step}` is not known here"));
        conditions.split(" and ").map(condition)
    });
    Selection {
        table: table.to_owned(),
        conditions: conditions.collect(),
    }
}

/// `to…(report.COLUMN) > NUMBER`, `COLUMN == VALUE`, or a column that is true.
fn condition(text: &str) -> (String, Condition) {
    if let Some((column, value)) = text.split_once(" == ") {
        let value = serde_json::from_str(value).unwrap_or_else(|_| panic!("`{text}`"));
        return (column.to_owned(), Condition::Is(value));
    }
    if let Some((column, limit)) = text.split_once(" > ") {
        let column = column.split_once("(report.").map(|(_, column)| column);
        let column = column.and_then(|column| column.strip_suffix(')'));
        let column = column.unwrap_or_else(|| panic!("`{text}` is not known here"));
        return (column.to_owned(), Condition::Above(limit.parse().unwrap()));
    }
    assert!(text.chars().all(char::is_alphabetic), "`{text}`");
    (text.to_owned(), Condition::Is(json!(true)))
}

/// `PT…M` or `PT…H` in seconds.
fn duration(value: &Value) -> u64 {
    let text = words(value);
    let amount = text.strip_prefix("PT").unwrap();
    let (amount, unit) = amount.split_at(amount.len() - 1);
    let unit = match unit {
        "M" => 60,
        "H" => 3600,
        _ => panic!("`{text}` is not known here"),
    };
    amount.parse::<u64>().unwrap() * unit
}

fn words(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
