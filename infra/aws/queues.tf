# export-work ──(5 deliveries failed)──► export-work-poison ──► worker marks the slice failed
# schedules, planner and report ──(retries failed)──► <name>-missed

resource "aws_sqs_queue" "work" {
  name                       = "export-work"
  visibility_timeout_seconds = local.visibility_seconds
  message_retention_seconds  = local.retention_seconds
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = 5
  })
}

resource "aws_sqs_queue" "dead" {
  name                       = "export-work-poison"
  visibility_timeout_seconds = local.visibility_seconds
  message_retention_seconds  = local.retention_seconds
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = true
}

resource "aws_sqs_queue" "missed" {
  name                      = "${var.name}-missed"
  message_retention_seconds = local.retention_seconds
  sqs_managed_sse_enabled   = true
}

resource "aws_lambda_event_source_mapping" "worker" {
  for_each = { work = aws_sqs_queue.work.arn, dead = aws_sqs_queue.dead.arn }

  event_source_arn        = each.value
  function_name           = aws_lambda_function.all["worker"].arn
  enabled                 = !var.paused
  batch_size              = 1
  function_response_types = ["ReportBatchItemFailures"]

  scaling_config {
    # The least that AWS takes is 2. More workers than slots would only wait for each other.
    maximum_concurrency = max(2, var.slots)
  }

  depends_on = [aws_iam_role_policy.function]
}
