"""Prints what an AWS endpoint holds of the suite, as one JSON document, asked by the public API."""

import json
import sys

import boto3

ENDPOINT, REGION = sys.argv[1:]
ACCESS = dict(
    endpoint_url=ENDPOINT,
    region_name=REGION,
    aws_access_key_id="testing",
    aws_secret_access_key="testing",
)


def pages(client, operation, member):
    """All entries of a list that comes in pages."""
    return [entry for page in client.get_paginator(operation).paginate() for entry in page.get(member, [])]


def clean(answer):
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


sqs = boto3.client("sqs", **ACCESS)
functions = boto3.client("lambda", **ACCESS)
scheduler = boto3.client("scheduler", **ACCESS)
iam = boto3.client("iam", **ACCESS)
logs = boto3.client("logs", **ACCESS)
cloudwatch = boto3.client("cloudwatch", **ACCESS)

queues = {}
for url in sqs.list_queues().get("QueueUrls", []):
    queues[url.rsplit("/", 1)[1]] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]

names = [function["FunctionName"] for function in pages(functions, "list_functions", "Functions")]
urls, retries = {}, {}
for name in names:
    try:
        urls[name] = clean(functions.get_function_url_config(FunctionName=name))
    except functions.exceptions.ResourceNotFoundException:
        pass
    try:
        retries[name] = clean(functions.get_function_event_invoke_config(FunctionName=name))
    except functions.exceptions.ResourceNotFoundException:
        pass

roles = {}
for role in [role["RoleName"] for role in pages(iam, "list_roles", "Roles")]:
    inline = [
        iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
        for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    attached = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    roles[role] = {
        "assumed": iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"],
        "attached": attached,
        "statements": [statement for document in inline for statement in document["Statement"]],
    }

held = {
    "queues": queues,
    "functions": {name: clean(functions.get_function_configuration(FunctionName=name)) for name in names},
    "urls": urls,
    "retries": retries,
    "mappings": [
        clean(functions.get_event_source_mapping(UUID=mapping["UUID"]))
        for mapping in pages(functions, "list_event_source_mappings", "EventSourceMappings")
    ],
    "schedules": {
        schedule["Name"]: clean(scheduler.get_schedule(Name=schedule["Name"]))
        for schedule in pages(scheduler, "list_schedules", "Schedules")
    },
    "roles": roles,
    "log_groups": {group["logGroupName"]: group for group in pages(logs, "describe_log_groups", "logGroups")},
    "metric_filters": pages(logs, "describe_metric_filters", "metricFilters"),
    "alarms": {alarm["AlarmName"]: alarm for alarm in pages(cloudwatch, "describe_alarms", "MetricAlarms")},
}
print(json.dumps(held, default=str))
