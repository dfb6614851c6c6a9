//! Durable execution, a job queue and an ordered log inside your own PostgreSQL.

pub mod admin;
mod client;
mod context;
mod engine;
mod enqueue;
mod error;
mod handle;
mod id;
mod on;
mod payload;
mod retry;
mod store;
pub mod telemetry;
mod worker;
mod workflow;

pub use admin::Cancelled;
pub use client::Client;
pub use context::transaction::Tx;
pub use context::{Attempt, Ctx, Step, TransactionStep};
pub use engine::failpoint::NAMES as FAILPOINTS;
pub use enqueue::{Enqueue, Enqueued, Untyped, enqueue_all};
pub use error::{ApplicationError, Code, Error, Failure, Result};
pub use handle::Handle;
pub use id::{RunId, WorkerId};
pub use on::{Database, Isolation, On, TokioPostgres};
pub use payload::PAYLOAD_BYTES_MAX;
pub use retry::Retry;
pub use worker::{DRAIN, Worker, WorkerBuilder};
pub use workflow::{Workflow, WorkflowFn};

#[cfg(feature = "macros")]
//pub use ambo_macros::{step, workflow};

/// What the macros need.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "macros")]
    pub use crate::workflow::Registered;
    pub use futures_util::future::BoxFuture;
    #[cfg(feature = "macros")]
    pub use inventory;
}
