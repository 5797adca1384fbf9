# The whole suite in an account, from the packages of `cargo xtask package aws`.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

variable "region" {
  description = "Region of AWS."
  type        = string
}

variable "architecture" {
  description = "Processor of the packages: arm64 or x86_64, as the machine that built them."
  type        = string
}

variable "openehr_base_url" {
  description = "The openEHR server."
  type        = string
}

variable "openehr_username" {
  description = "Who Atlas is at the openEHR server."
  type        = string
}

variable "openehr_secret_arn" {
  description = "Secret whose text is the password."
  type        = string
}

variable "postgresql_secret_arn" {
  description = "Secret (JSON) whose member `url` is the connection string."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets from which PostgreSQL and the openEHR server can be reached."
  type        = list(string)
  default     = []
}

variable "security_group_ids" {
  description = "Security groups of the functions."
  type        = list(string)
  default     = []
}

variable "alarm_topic_arns" {
  description = "SNS topics that alarms go to."
  type        = list(string)
  default     = []
}

variable "paused" {
  description = "Stops schedules and deliveries."
  type        = bool
  default     = false
}

variable "export_reserved_concurrency" {
  description = "Most calls of `export` at the same time, reserved for it. -1: none."
  type        = number
  default     = -1
}

variable "kms_key_arn" {
  description = "Key of yours for queues, logs, variables and schedules."
  type        = string
  default     = null
}

provider "aws" {
  region = var.region
}

module "atlas" {
  source = "../.."

  packages     = "${path.root}/../../../../target/package"
  architecture = var.architecture

  settings = {
    ATLAS_OPENEHR_BASE_URL = var.openehr_base_url
    ATLAS_OPENEHR_USERNAME = var.openehr_username
  }

  secrets = {
    ATLAS_OPENEHR_PASSWORD             = { arn = var.openehr_secret_arn }
    ATLAS_POSTGRESQL_CONNECTION_STRING = { arn = var.postgresql_secret_arn, member = "url" }
  }

  subnet_ids         = var.subnet_ids
  security_group_ids = var.security_group_ids
  alarm_actions      = var.alarm_topic_arns
  paused             = var.paused
  kms_key_arn        = var.kms_key_arn

  export_reserved_concurrency = var.export_reserved_concurrency
}

output "atlas" {
  description = "What the module made."
  value       = module.atlas
}
