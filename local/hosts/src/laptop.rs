//! What the command line of either host adds, because a host on a laptop is stopped and started again all the time.
//!
//! In a cloud the queue outlives the workers, and a lease that nobody renews is waited for. Here both end with the host. So the
//! queue lies in a file, leases are short, and a host that follows another one lets the planner look at once for what was left
//! undone, and once more when the leases of those who were killed have run out.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keys of the configuration with the variables that go before them, and seconds that suit a laptop.
const LEASE: (&str, &str, u64) = ("lease_seconds", "ATLAS_FUNCTIONS_LEASE_SECONDS", 15);
const SLICE: (&str, &str, u64) = ("slice_seconds", "ATLAS_FUNCTIONS_SLICE_SECONDS", 10);

/// A lease that has just run out is seen as such.
const AFTER: Duration = Duration::from_secs(1);

/// The table of the configuration.
const FUNCTIONS: &str = "functions";

/// What the functions are told about time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    lease: Duration,
    slice: Duration,
}

impl Terms {
    /// What this shell or the configuration says, else what suits a laptop. A configuration that cannot be read says nothing
    /// here: the functions themselves refuse it, with its place and the fix.
    pub(crate) fn read(config: &Path) -> Self {
        let table = std::fs::read_to_string(config)
            .ok()
            .and_then(|text| text.parse::<toml::Table>().ok());
        let seconds = |(key, variable, fallback): (&str, &str, u64)| {
            let in_shell = std::env::var(variable)
                .ok()
                .and_then(|text| text.parse().ok());
            let in_file = || {
                let value = table.as_ref()?.get(FUNCTIONS)?.get(key)?;
                u64::try_from(value.as_integer()?).ok()
            };
            Duration::from_secs(in_shell.or_else(in_file).unwrap_or(fallback))
        };
        Self {
            lease: seconds(LEASE),
            slice: seconds(SLICE),
        }
    }

    /// Variables of the functions.
    pub(crate) fn variables(&self) -> [(String, String); 2] {
        [(LEASE, self.lease), (SLICE, self.slice)]
            .map(|((_, variable, _), time)| (variable.to_owned(), time.as_secs().to_string()))
    }

    /// After this long, nobody whom the last host left behind holds anything any more.
    pub(crate) fn all_leases(&self) -> Duration {
        self.slice + self.lease + AFTER
    }
}

/// The folder of a host's state, beside the configuration whose work it is.
pub(crate) fn state(config: &Path, cloud: &str) -> PathBuf {
    let name = config.file_name().unwrap_or_default().to_string_lossy();
    config.with_file_name(format!(".{name}.hosts")).join(cloud)
}
