# <name>-export-work ──(5 deliveries failed)──► <name>-export-work-poison ──► worker marks the slice failed
# schedules, planner and report ──(retries failed)──► <name>-missed

resource "aws_sqs_queue" "work" {
  name                       = "${var.name}-export-work"
  visibility_timeout_seconds = local.visibility_seconds
  message_retention_seconds  = local.retention_seconds
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  kms_master_key_id          = var.kms_key_arn

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = 5
  })
}

resource "aws_sqs_queue" "dead" {
  name                       = "${var.name}-export-work-poison"
  visibility_timeout_seconds = local.visibility_seconds
  message_retention_seconds  = local.retention_seconds
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  kms_master_key_id          = var.kms_key_arn
}

resource "aws_sqs_queue" "missed" {
  name                      = "${var.name}-missed"
  message_retention_seconds = local.retention_seconds
  sqs_managed_sse_enabled   = var.kms_key_arn == null ? true : null
  kms_master_key_id         = var.kms_key_arn
}

# Rights are given by the roles of this account. The policies take the right of whoever does not come by TLS.
data "aws_iam_policy_document" "queue" {
  for_each = { work = aws_sqs_queue.work.arn, dead = aws_sqs_queue.dead.arn, missed = aws_sqs_queue.missed.arn }

  statement {
    sid       = "OnlyTls"
    effect    = "Deny"
    actions   = ["sqs:*"]
    resources = [each.value]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_sqs_queue_policy" "all" {
  for_each = { work = aws_sqs_queue.work.url, dead = aws_sqs_queue.dead.url, missed = aws_sqs_queue.missed.url }

  queue_url = each.value
  policy    = data.aws_iam_policy_document.queue[each.key].json
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
