//! How a process of the handler ends, and why an instance starts no other.

/// Why an instance does nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    /// The handler ended with exit code 0.
    #[error("its handler ended with exit code 0, so the host does not start it again")]
    Closed,
    /// The handler failed too often.
    #[error("its handler failed {errors} times, at last it {last}; its lines above say why")]
    Failed {
        /// Failures that were counted.
        errors: u32,
        /// The last one.
        last: End,
    },
    /// It was told to stop.
    #[error("it was stopped")]
    Asked,
}

/// How one process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// By itself.
    #[error("ended with exit code {0}")]
    Exit(i32),
    /// By a signal, or the reason is unknown.
    #[error("was killed")]
    Killed,
    /// It did not answer `GET /` in time.
    #[error("did not listen on FUNCTIONS_CUSTOMHANDLER_PORT in time")]
    NeverReady,
    /// It could not be started.
    #[error(
        "could not be started ({0}); is the executable of host.json in the app folder or on PATH?"
    )]
    NotStarted(std::io::ErrorKind),
    /// By the host, at `functionTimeout`.
    #[error("was killed by the host at functionTimeout")]
    Struck,
    /// By the host, because the instance was told to stop.
    #[error("was stopped")]
    Asked,
}
