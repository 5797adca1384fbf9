use std::sync::Arc;
use std::time::Duration;

use atlas_engine::{Error, ErrorKind, Result};
use azure_core::http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport};

/// Limit of a call with all its tries. The SDK's own is a minute, for which a worker would hold its slice.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(10);
const TRY_LIMIT: Duration = Duration::from_secs(4);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const RETRIES: u32 = 2;

/// One set of connections, and the TLS configuration behind it, for a queue or vault and the identity it needs.
pub(crate) fn options() -> Result<ClientOptions> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .timeout(TRY_LIMIT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "set up HTTP and TLS for Azure")
                .because(error)
                .fix("Look at the certificates of this machine, and at `SSL_CERT_FILE` and the proxy variables.")
        })?;
    Ok(ClientOptions {
        retry: RetryOptions::exponential(ExponentialRetryOptions {
            max_retries: RETRIES,
            ..ExponentialRetryOptions::default()
        }),
        transport: Some(Transport::new(Arc::new(client))),
        ..ClientOptions::default()
    })
}
