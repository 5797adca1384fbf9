//! A Lambda host: starts the programs that are shipped for Lambda as child processes and speaks only the wire protocol
//! with them.
//!
//! ```text
//! clock, Host::fire ──► schedule ─┐                 ┌─ environment ── runtime_api ◄──► child process
//! HTTP /{function}/… ──► http ────┼──► function ────┤                                     │
//!        ┌─ queue ──► mapping ────┘  (a pool)       └─ environment ── runtime_api ◄──► child process
//!        │                                                                                │
//!        └─ queue_server (queue_store), or whatever speaks SQS, such as moto ◄────────────┘ sends by SDK
//! ```
//!
//! | module | |
//! | --- | --- |
//! | [`options`] | what is run, and how fast the clocks go |
//! | [`host`] | starts everything; what a test holds |
//! | `function`, `environment`, `runtime_api` | processes: a pool, one of them, and the protocol with it |
//! | `mapping`, `schedule`, `http` | what makes events: queues, EventBridge Scheduler, Function URLs |
//! | `queue_server`, `queue_store` | a queue service in this process: the protocol, and what a queue does |
//! | [`faults`] | what can be made to go wrong, and gates that hold an event at a point |
//! | [`history`] | what was invoked and how it ended |
//! | [`command`], `console` | the command line |

pub mod command;
mod console;
mod environment;
pub mod error;
pub mod faults;
mod function;
pub mod history;
pub mod host;
mod http;
mod mapping;
pub mod options;
mod queue_server;
mod queue_store;
mod runtime_api;
mod schedule;

pub use error::HostError;
pub use faults::{Fault, Faults, Gate, Point, Times};
pub use function::Process;
pub use history::{Invocation, Line, Outcome};
pub use host::{Host, Queue};
pub use options::{FunctionSpec, Options, Pace, QueueService, QueueSpec, Redrive, Trigger};
pub use queue_store::{Counts, Watched};
