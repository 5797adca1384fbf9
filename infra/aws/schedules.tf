# EventBridge Scheduler hands the event over and is done: whether the function succeeds is Lambda's business. So both
# have a retry policy, and both tell the same queue when they give up.

locals {
  schedules = {
    plan   = { function = "planner", expression = var.plan_schedule }
    report = { function = "watermark", expression = var.report_schedule }
  }
}

resource "aws_scheduler_schedule" "all" {
  for_each = local.schedules

  name                         = "${var.name}-${each.key}"
  schedule_expression          = each.value.expression
  schedule_expression_timezone = "UTC"
  state                        = var.paused ? "DISABLED" : "ENABLED"
  kms_key_arn                  = var.kms_key_arn

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = aws_lambda_function.all[each.value.function].arn
    role_arn = aws_iam_role.scheduler.arn

    # Not jsonencode: it writes `<` as \u003c, and the scheduler would not find what it is to replace.
    input = "{\"atlas\":\"${each.key}\",\"scheduled\":\"<aws.scheduler.scheduled-time>\",\"execution\":\"<aws.scheduler.execution-id>\",\"attempt\":\"<aws.scheduler.attempt-number>\"}"

    retry_policy {
      maximum_retry_attempts       = local.retries
      maximum_event_age_in_seconds = 900
    }

    dead_letter_config {
      arn = aws_sqs_queue.missed.arn
    }
  }

  depends_on = [aws_iam_role_policy.scheduler]
}

resource "aws_lambda_function_event_invoke_config" "scheduled" {
  for_each = local.schedules

  function_name                = aws_lambda_function.all[each.value.function].function_name
  maximum_retry_attempts       = local.retries
  maximum_event_age_in_seconds = 900

  destination_config {
    on_failure {
      destination = aws_sqs_queue.missed.arn
    }
  }
}
