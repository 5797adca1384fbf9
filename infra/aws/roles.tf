# One role per function, one for the scheduler. Nothing here can read or write data: the openEHR server and PostgreSQL
# are reached with their own credentials, which lie in Secrets Manager.

locals {
  sends_work   = ["planner", "worker", "export"]
  is_scheduled = [for schedule in local.schedules : schedule.function]
}

data "aws_iam_policy_document" "lambda_assumes" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "function" {
  for_each = local.functions

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.lambda_assumes.json
}

data "aws_iam_policy_document" "function" {
  for_each = local.functions

  statement {
    sid       = "WriteOwnLog"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.function[each.key].arn}:*"]
  }

  # Where each.key == "watermark" or "export", the secrets of the openEHR server are not among them.
  statement {
    sid       = "ReadNamedSecrets"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = distinct([for secret in local.secrets[each.key] : secret.arn])
  }

  dynamic "statement" {
    for_each = var.secrets_kms_key_arn == null ? [] : [var.secrets_kms_key_arn]

    content {
      sid       = "DecryptSecrets"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]

      condition {
        test     = "StringLike"
        variable = "kms:ViaService"
        values   = ["secretsmanager.*.amazonaws.com"]
      }
    }
  }

  # Whoever sends to a queue or takes from it needs the key of its messages.
  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]

    content {
      sid       = "UseKeyOfQueues"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]

      condition {
        test     = "StringLike"
        variable = "kms:ViaService"
        values   = ["sqs.*.amazonaws.com"]
      }
    }
  }

  dynamic "statement" {
    for_each = contains(local.sends_work, each.key) ? [1] : []

    content {
      sid       = "SendWork"
      actions   = ["sqs:SendMessage"]
      resources = [aws_sqs_queue.work.arn]
    }
  }

  dynamic "statement" {
    for_each = each.key == "worker" ? [1] : []

    content {
      sid = "TakeWork"
      actions = [
        "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage",
      ]
      resources = [aws_sqs_queue.work.arn, aws_sqs_queue.dead.arn]
    }
  }

  dynamic "statement" {
    for_each = each.key == "watermark" ? [1] : []

    content {
      sid       = "CountWork"
      actions   = ["sqs:GetQueueAttributes"]
      resources = [aws_sqs_queue.work.arn, aws_sqs_queue.dead.arn]
    }
  }

  dynamic "statement" {
    for_each = contains(local.is_scheduled, each.key) ? [1] : []

    content {
      sid       = "TellMissed"
      actions   = ["sqs:SendMessage"]
      resources = [aws_sqs_queue.missed.arn]
    }
  }

  # Lambda makes the network interfaces of a VPC with the rights of the role; EC2 knows no narrower resource for it.
  dynamic "statement" {
    for_each = length(var.subnet_ids) == 0 ? [] : [1]

    content {
      sid = "JoinVpc"
      actions = [
        "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
      ]
      resources = ["*"]
    }
  }

  # The program itself is not to have those rights.
  dynamic "statement" {
    for_each = length(var.subnet_ids) == 0 ? [] : [1]

    content {
      sid       = "CodeNeverTouchesVpc"
      effect    = "Deny"
      actions   = ["ec2:*"]
      resources = ["*"]

      condition {
        test     = "ArnLike"
        variable = "lambda:SourceFunctionArn"
        values   = ["arn:*:lambda:*:${data.aws_caller_identity.current.account_id}:function:${var.name}-${each.key}"]
      }
    }
  }
}

resource "aws_iam_role_policy" "function" {
  for_each = local.functions

  name   = "atlas"
  role   = aws_iam_role.function[each.key].id
  policy = data.aws_iam_policy_document.function[each.key].json
}

data "aws_iam_policy_document" "scheduler_assumes" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

resource "aws_iam_role" "scheduler" {
  name               = "${var.name}-scheduler"
  assume_role_policy = data.aws_iam_policy_document.scheduler_assumes.json
}

data "aws_iam_policy_document" "scheduler" {
  statement {
    sid       = "InvokeScheduled"
    actions   = ["lambda:InvokeFunction"]
    resources = [for schedule in local.schedules : aws_lambda_function.all[schedule.function].arn]
  }

  statement {
    sid       = "TellMissed"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.missed.arn]
  }

  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]

    content {
      sid       = "UseKeyOfQueues"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]
    }
  }
}

resource "aws_iam_role_policy" "scheduler" {
  name   = "atlas"
  role   = aws_iam_role.scheduler.id
  policy = data.aws_iam_policy_document.scheduler.json
}
