//! The numbers that code, `host.json`, `function.json`, Terraform and Bicep must agree on; a test compares them.

use std::time::Duration;

/// Name of the queue of work, in both clouds.
pub const WORK_QUEUE: &str = "export-work";

/// Name of the queue for what was tried too often: the Functions host makes it up from the queue's name; on AWS it is ours.
pub const DEAD_QUEUE: &str = "export-work-poison";

/// What such a queue is called behind the name of its queue of work.
pub const DEAD_SUFFIX: &str = "-poison";

/// Deliveries of one message before it is set aside.
pub const MAX_RECEIVES: u32 = 5;

/// After this long the Functions host kills the process and all that runs in it.
pub const AZURE_TIMEOUT: Duration = Duration::from_secs(600);

/// After a failure the Functions host shows the message again after this long.
pub const AZURE_RETRY_VISIBILITY: Duration = Duration::from_secs(60);

/// After this long Lambda kills the process.
pub const AWS_TIMEOUT: Duration = Duration::from_secs(300);

/// A message that was taken from SQS and neither deleted nor released comes back after this long: at least six times
/// [`AWS_TIMEOUT`].
pub const AWS_VISIBILITY: Duration = Duration::from_secs(1800);

/// How long a worker goes on with one message before it hands the rest on, unless `functions.slice_seconds` says otherwise.
pub const SLICE_BUDGET: Duration = Duration::from_secs(240);

/// A worker stops at least this long before its platform would kill it.
pub const MARGIN: Duration = Duration::from_secs(15);

/// Messages in one invocation.
pub const BATCH_SIZE: u32 = 1;

/// When the planner runs (six fields, seconds first, UTC), unless `schedule.plan` says otherwise.
pub const PLAN_SCHEDULE: &str = "0 */15 * * * *";

/// When the watermark report is stored, unless `schedule.report` says otherwise.
pub const REPORT_SCHEDULE: &str = "0 */5 * * * *";
