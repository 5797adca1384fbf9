locals {
  # These numbers also stand in shared/runtime/src/suite.rs; tests/tests/infra.rs compares them.
  timeout_seconds    = 300
  visibility_seconds = 1800
  retention_seconds  = 14 * 24 * 3600
  retries            = 2

  functions = toset(["planner", "worker", "watermark", "export"])

  # Who asks the openEHR server. The others get nothing with which they could.
  asks_openehr = ["planner", "worker"]
  credentials = [
    "ATLAS_OPENEHR_AUTH_TYPE", "ATLAS_OPENEHR_CLIENT_ID", "ATLAS_OPENEHR_CLIENT_SECRET", "ATLAS_OPENEHR_OIDC_TOKEN_URL",
    "ATLAS_OPENEHR_PASSWORD", "ATLAS_OPENEHR_SCOPE", "ATLAS_OPENEHR_TOKEN", "ATLAS_OPENEHR_USERNAME",
  ]
  settings = {
    for function in local.functions : function => {
      for name, value in var.settings : name => value
      if contains(local.asks_openehr, function) || !contains(local.credentials, name)
    }
  }
  secrets = {
    for function in local.functions : function => {
      for name, secret in var.secrets : name => secret
      if contains(local.asks_openehr, function) || !contains(local.credentials, name)
    }
  }

  environment = {
    for function in local.functions : function => merge(
      {
        ATLAS_DATABASE_TARGET            = "postgresql"
        ATLAS_ENVIRONMENT                = "production"
        ATLAS_POSTGRESQL_MAX_CONNECTIONS = "4"
        ATLAS_POSTGRESQL_SSL_MODE        = "verify-full"
      },
      local.settings[function],
      {
        for name, secret in local.secrets[function] :
        name => "secretsmanager:${secret.arn}${secret.member == null ? "" : "#${secret.member}"}"
      },
      {
        ATLAS_FUNCTIONS_TIMEOUT_SECONDS = tostring(local.timeout_seconds)
        ATLAS_OPENEHR_QUERY_PARALLEL    = tostring(var.slots)
        ATLAS_QUEUE_URL                 = aws_sqs_queue.work.url
      },
    )
  }
}

resource "aws_cloudwatch_log_group" "function" {
  for_each = local.functions

  name              = "/aws/lambda/${var.name}-${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_lambda_function" "all" {
  for_each = local.functions

  function_name    = "${var.name}-${each.key}"
  role             = aws_iam_role.function[each.key].arn
  runtime          = "provided.al2023"
  architectures    = [var.architecture]
  handler          = "bootstrap"
  filename         = "${var.packages}/aws-${each.key}.zip"
  source_code_hash = filebase64sha256("${var.packages}/aws-${each.key}.zip")
  memory_size      = var.memory_mb
  timeout          = local.timeout_seconds
  layers           = var.layers
  kms_key_arn      = var.kms_key_arn

  # -1 is no limit of its own.
  reserved_concurrent_executions = each.key == "export" ? var.export_reserved_concurrency : -1

  environment {
    variables = local.environment[each.key]
  }

  logging_config {
    # The programs write JSON themselves.
    log_format = "Text"
    log_group  = aws_cloudwatch_log_group.function[each.key].name
  }

  dynamic "vpc_config" {
    for_each = length(var.subnet_ids) == 0 ? [] : [1]

    content {
      subnet_ids         = var.subnet_ids
      security_group_ids = var.security_group_ids
    }
  }

  # With a VPC, Lambda makes network interfaces with the rights of the function.
  depends_on = [aws_iam_role_policy.function]
}

resource "aws_lambda_function_url" "all" {
  for_each = toset(["export", "watermark"])

  function_name      = aws_lambda_function.all[each.key].function_name
  authorization_type = "AWS_IAM"
}
