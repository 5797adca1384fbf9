output "work_queue_url" {
  description = "The queue of work."
  value       = aws_sqs_queue.work.url
}

output "dead_queue_url" {
  description = "The queue of what was tried too often."
  value       = aws_sqs_queue.dead.url
}

output "missed_queue_url" {
  description = "The queue of runs of the planner and the report that were given up."
  value       = aws_sqs_queue.missed.url
}

output "function_names" {
  description = "The functions: planner, worker, watermark, export."
  value       = { for key, function in aws_lambda_function.all : key => function.function_name }
}

output "function_urls" {
  description = "Where exports are asked for and the watermark is read; requests are signed (AWS_IAM)."
  value       = { for key, url in aws_lambda_function_url.all : key => url.function_url }
}

output "caller_policy" {
  description = "What a role needs to call the function URLs, as a policy document (JSON)."
  value = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["lambda:InvokeFunctionUrl", "lambda:InvokeFunction"]
        Resource = [for key in keys(aws_lambda_function_url.all) : aws_lambda_function.all[key].arn]
      },
    ]
  })
}

output "log_groups" {
  description = "Where each function logs."
  value       = { for key, group in aws_cloudwatch_log_group.function : key => group.name }
}
