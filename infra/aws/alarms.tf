# The report is one line of JSON in the log of the watermark function; metric filters make numbers of members of it. No report for half an hour is an alarm as well: silence is not health.

locals {
  reported = toset(["lag_seconds", "slices_failed", "stalled_slice_seconds"])

  report_alarms = {
    # Without a value as long as some template has never been read to its end: the first export takes its time.
    lag = {
      metric  = "lag_seconds", statistic = "Minimum", operator = "GreaterThanThreshold", threshold = var.lag_alarm_seconds
      missing = "notBreaching", periods = 3
      text    = "The copy is too far behind the openEHR server."
    }
    no-report = {
      metric  = "slices_failed", statistic = "SampleCount", operator = "LessThanThreshold", threshold = 1
      missing = "breaching", periods = 3
      text    = "The watermark report has not been made for half an hour: schedule, store or logs do not work."
    }
    slices-failed = {
      metric  = "slices_failed", statistic = "Maximum", operator = "GreaterThanThreshold", threshold = 0
      missing = "notBreaching", periods = 1
      text    = "Part of the copy was given up until someone, or the next revival, tries it again."
    }
    slice-stands-still = {
      metric  = "stalled_slice_seconds", statistic = "Maximum", operator = "GreaterThanThreshold", threshold = 1800
      missing = "notBreaching", periods = 1
      text    = "A slice has not moved for half an hour: what it reads hangs, or fails again and again."
    }
  }

  queue_alarms = {
    work-is-old = {
      queue = aws_sqs_queue.work.name, metric = "ApproximateAgeOfOldestMessage", statistic = "Maximum", above = 3600
      text  = "A message has waited for an hour: workers fail, are stopped, or are too few."
    }
    set-aside = {
      queue = aws_sqs_queue.dead.name, metric = "NumberOfMessagesReceived", statistic = "Sum", above = 0
      text  = "A message was tried too often and set aside; its slice is marked failed."
    }
    set-aside-is-old = {
      queue = aws_sqs_queue.dead.name, metric = "ApproximateAgeOfOldestMessage", statistic = "Maximum", above = 1800
      text  = "A message that was set aside has lain there for half an hour: it cannot be noted in the store either."
    }
    missed = {
      queue = aws_sqs_queue.missed.name, metric = "ApproximateNumberOfMessagesVisible", statistic = "Maximum", above = 0
      text  = "A run of the planner or of the report was given up."
    }
  }

  function_alarms = merge([
    for function in local.functions : {
      "${function}-fails" = {
        # The planner is called once in a quarter of an hour, and as often again as it is retried: no short window has an error each time.
        function = function, metric = "Errors", above = function == "planner" ? local.retries : 0
        period   = function == "planner" ? 900 : 300, periods = function == "planner" ? 1 : 3
        text     = function == "planner" ? "A run of the planner has failed each time it was tried." : "The function has failed for a quarter of an hour."
      }
      "${function}-is-throttled" = {
        function = function, metric = "Throttles", above = 0, period = 300, periods = 3
        text     = "Lambda has refused calls for a quarter of an hour: the account's concurrency is used up."
      }
    }
  ]...)
}

resource "aws_cloudwatch_log_metric_filter" "report" {
  for_each = local.reported

  name           = "${var.name}-${each.key}"
  log_group_name = aws_cloudwatch_log_group.function["watermark"].name
  pattern        = "{ $.${each.key} >= 0 }"

  metric_transformation {
    namespace = "Atlas/${var.name}"
    name      = each.key
    value     = "$.${each.key}"
  }
}

resource "aws_cloudwatch_metric_alarm" "report" {
  for_each = local.report_alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.text
  namespace           = "Atlas/${var.name}"
  metric_name         = aws_cloudwatch_log_metric_filter.report[each.value.metric].metric_transformation[0].name
  statistic           = each.value.statistic
  period              = 600
  evaluation_periods  = each.value.periods
  comparison_operator = each.value.operator
  threshold           = each.value.threshold
  treat_missing_data  = each.value.missing
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "queue" {
  for_each = local.queue_alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.text
  namespace           = "AWS/SQS"
  metric_name         = each.value.metric
  dimensions          = { QueueName = each.value.queue }
  statistic           = each.value.statistic
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.above
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "function" {
  for_each = local.function_alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.text
  namespace           = "AWS/Lambda"
  metric_name         = each.value.metric
  dimensions          = { FunctionName = aws_lambda_function.all[each.value.function].function_name }
  statistic           = "Sum"
  period              = each.value.period
  evaluation_periods  = each.value.periods
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.above
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
}
