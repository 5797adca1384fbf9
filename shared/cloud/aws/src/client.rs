use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};

const TRIES: u32 = 3;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const TRY_LIMIT: Duration = Duration::from_secs(4);
/// Limit of a call with all its tries, for which a worker holds its slice.
const CALL_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn config() -> SdkConfig {
    let limits = TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .operation_attempt_timeout(TRY_LIMIT)
        .operation_timeout(CALL_LIMIT)
        .build();
    aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
        .timeout_config(limits)
        .load()
        .await
}
