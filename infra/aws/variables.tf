variable "name" {
  description = "First part of the names of functions, roles, schedules and alarms."
  type        = string
  default     = "atlas"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,29}$", var.name))
    error_message = "name: 1 to 30 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "packages" {
  description = "Folder that holds aws-planner.zip, aws-worker.zip, aws-watermark.zip and aws-export.zip, as `cargo xtask package aws` makes them."
  type        = string
}

variable "architecture" {
  description = "Processor that the packages were built for: arm64 or x86_64."
  type        = string

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "architecture: arm64 or x86_64, as the packages were built."
  }
}

variable "settings" {
  description = "Settings of Atlas as ATLAS_<SECTION>_<KEY> (docs/configuration.md), ATLAS_OPENEHR_BASE_URL above all. No secrets: these are shown by the console and kept in the state."
  type        = map(string)

  validation {
    condition     = alltrue([for name, value in var.settings : startswith(name, "ATLAS_")])
    error_message = "settings: every name begins with ATLAS_."
  }

  validation {
    condition = alltrue([
      for name in keys(var.settings) : !can(regex("PASSWORD|SECRET|TOKEN$|CONNECTION_STRING|CREDENTIAL|(COSMOSDB|ACCESS|ACCOUNT|API|SHARED)_?KEY|SAS$", name))
    ])
    error_message = "settings: a password, token, key or connection string is no setting; name its secret in `secrets`."
  }

  validation {
    condition     = alltrue([for value in values(var.settings) : !can(regex("://[^/@]*:[^/@]*@|[?&]sig=|(AccountKey|SharedAccessSignature|(?i:password|pwd))\\s*=", value))])
    error_message = "settings: a value holds a password or a key; name its secret in `secrets`."
  }

  validation {
    condition     = contains(keys(var.settings), "ATLAS_OPENEHR_BASE_URL")
    error_message = "settings: ATLAS_OPENEHR_BASE_URL is missing."
  }

  validation {
    condition = length(setintersection(keys(var.settings), [
      "ATLAS_FUNCTIONS_TIMEOUT_SECONDS", "ATLAS_OPENEHR_QUERY_PARALLEL", "ATLAS_QUEUE_URL",
    ])) == 0
    error_message = "settings: the queue and the time-out are set by this module, ATLAS_OPENEHR_QUERY_PARALLEL by `slots`."
  }
}

variable "secrets" {
  description = "Settings whose value lies in Secrets Manager: name of the variable to the secret's ARN and, for a secret that is JSON, its member. Each function may read those that it needs and no other: of the openEHR server, only the planner and the worker."
  type = map(object({
    arn    = string
    member = optional(string)
  }))

  validation {
    condition     = contains(keys(var.secrets), "ATLAS_POSTGRESQL_CONNECTION_STRING")
    error_message = "secrets: ATLAS_POSTGRESQL_CONNECTION_STRING is missing."
  }

  validation {
    condition     = alltrue([for secret in var.secrets : can(regex("^arn:[a-z-]+:secretsmanager:", secret.arn))])
    error_message = "secrets: every arn is that of a secret in Secrets Manager."
  }
}

variable "secrets_kms_key_arn" {
  description = "Key that the secrets are encrypted with, if it is one of yours."
  type        = string
  default     = null
}

variable "kms_key_arn" {
  description = "Key of yours for what lies in this account: queues, logs, variables of functions, schedules. Its policy lets logs.REGION.amazonaws.com use it. Null: keys of AWS."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:", var.kms_key_arn))
    error_message = "kms_key_arn: the ARN of a key in KMS."
  }
}

variable "slots" {
  description = "Most readers of the openEHR server at the same time, over all functions."
  type        = number
  default     = 2

  validation {
    condition     = var.slots >= 1 && var.slots <= 100 && floor(var.slots) == var.slots
    error_message = "slots: a whole number from 1 to 100."
  }
}

variable "memory_mb" {
  description = "Memory of each function in MB. More memory is also more processor."
  type        = number
  default     = 128

  validation {
    condition     = var.memory_mb >= 128 && var.memory_mb <= 10240
    error_message = "memory_mb: 128 to 10240."
  }
}

variable "export_reserved_concurrency" {
  description = "Most calls of `export` at the same time, reserved for it in the account. -1: no limit and no reservation of its own; 0: no calls."
  type        = number
  default     = -1

  validation {
    condition     = var.export_reserved_concurrency >= -1 && floor(var.export_reserved_concurrency) == var.export_reserved_concurrency
    error_message = "export_reserved_concurrency: -1 for none, or a whole number from 0."
  }
}

variable "plan_schedule" {
  description = "When the planner runs: EventBridge cron or rate, in UTC."
  type        = string
  default     = "cron(0/15 * * * ? *)"

  validation {
    condition     = can(regex("^(cron|rate)\\(.+\\)$", var.plan_schedule))
    error_message = "plan_schedule: cron(…) or rate(…)."
  }
}

variable "report_schedule" {
  description = "When the watermark report is made: EventBridge cron or rate, in UTC. At least every ten minutes: an alarm rings without reports."
  type        = string
  default     = "cron(0/5 * * * ? *)"

  validation {
    condition     = can(regex("^(cron|rate)\\(.+\\)$", var.report_schedule))
    error_message = "report_schedule: cron(…) or rate(…)."
  }
}

variable "paused" {
  description = "Stops schedules and deliveries; what is in the queue stays there."
  type        = bool
  default     = false
}

variable "subnet_ids" {
  description = "Private subnets that the functions run in, to reach PostgreSQL and the openEHR server. Empty: outside of any VPC."
  type        = list(string)
  default     = []
}

variable "security_group_ids" {
  description = "Security groups of the functions; needed with subnet_ids."
  type        = list(string)
  default     = []

  validation {
    condition     = (length(var.subnet_ids) == 0) == (length(var.security_group_ids) == 0)
    error_message = "security_group_ids: give them together with subnet_ids, or neither."
  }
}

variable "layers" {
  description = "Lambda layers for files that settings name, such as the certificates of RDS (unpacked under /opt)."
  type        = list(string)
  default     = []
}

variable "log_retention_days" {
  description = "How long log lines are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days: one of the numbers that CloudWatch Logs knows, such as 30, 90 or 365."
  }
}

variable "alarm_actions" {
  description = "What alarms notify: ARNs of SNS topics. Empty: alarms are only shown."
  type        = list(string)
  default     = []
}

variable "lag_alarm_seconds" {
  description = "The copy may be this far behind the openEHR server before an alarm rings."
  type        = number
  default     = 3600

  validation {
    condition     = var.lag_alarm_seconds > 0
    error_message = "lag_alarm_seconds: more than 0."
  }
}
