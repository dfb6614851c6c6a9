//! Durable execution and a job queue inside your own PostgreSQL: both or neither.
//!
//! A change to your tables, the work it triggers and the steps of that work commit together. There is no broker and no
//! orchestrator: Postgres is the only server.
//!
//! # The guarantee, asserted
//!
//! An order and its run are enqueued in one transaction; a run whose transaction was rolled back does not exist; a step is
//! recorded once, whatever is asked how often.
//!
//! ```no_run
//! use std::sync::atomic::{AtomicU32, Ordering};
//!
//! use ambo::{Client, Ctx, Result, Worker};
//!
//! static CHARGED: AtomicU32 = AtomicU32::new(0);
//!
//! #[ambo::workflow]
//! async fn fulfil(cx: Ctx, order: u64) -> Result<u64> {
//!     let receipt = cx.step("charge", || async move {
//!         CHARGED.fetch_add(1, Ordering::SeqCst);
//!         Ok::<_, ambo::Error>(order * 10)
//!     });
//!     Ok(receipt.await?)
//! }
//!
//! # async fn example(url: &str, mut shop: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(url).await?;
//! let _worker = Worker::builder(&client).workflow::<fulfil>().start().await?;
//!
//! let tx = shop.transaction().await?;
//! tx.execute("insert into orders (id) values (1001)", &[]).await?;
//! let run = fulfil::enqueue(1001).key("order-1001").on(&tx).await?;
//! tx.commit().await?;
//!
//! let tx = shop.transaction().await?;
//! let none = fulfil::enqueue(1002).on(&tx).await?;
//! tx.rollback().await?;
//!
//! // The same key again, from anywhere: the same run.
//! let again = fulfil::enqueue(1001).key("order-1001").on(&client).await?;
//! assert!(again.run == run.run && !again.is_new);
//!
//! assert_eq!(client.handle::<fulfil>(run.run).result().await?, 10010);
//! assert_eq!(CHARGED.load(Ordering::SeqCst), 1);
//! let gone = client.handle::<fulfil>(none.run).result().await.unwrap_err();
//! assert!(gone.to_string().starts_with("AMBO033"));
//! # Ok(()) }
//! ```
//!
//! # Layout, in reading order
//!
//! [`Enqueue`] puts a run into the queue, in a transaction of the caller's ([`On`]) or through the [`Client`]. A [`Worker`] claims and
//! executes it; its body sees a [`Ctx`] and builds [`Step`]s and [`TransactionStep`]s from it. A [`Handle`] awaits the result. What
//! goes wrong is an [`Error`] with a [`Code`].
//!
//! # What a workflow must do
//!
//! A run that is interrupted is *replayed*: its body is called again, and every durable call that was recorded answers from
//! its record. So a body makes the same durable calls, in the same places, every time; whatever it decides by (time, randomness,
//! the outside) belongs into a step. Code that makes another call at a recorded position, or ends before it, is found out (`AMBO021`) and the run
//! waits, with its history, for code that fits.
//!
//! # Features
//!
//! | feature | what | default |
//! |---|---|---|
//! | `macros` | `#[ambo::workflow]`, `#[ambo::graph]`, `#[ambo::step]` | yes |
//! | `tls` | TLS with rustls and the system's roots | yes |
//! | `sqlx`, `diesel-async`, `sea-orm` | enqueue and transaction steps on that driver | no |
//! | `testing` | [`testing`]: a PostgreSQL of a test's own, time that is skipped, steps that are answered for, crashes | no |
//! | `encryption` | payloads encrypted, with a ring of keys | no |
//! | `object-store` | large payloads in an object store | no |
//! | `failpoints` | points at which crash tests end the process | no |

pub mod admin;
mod batch;
mod client;
mod context;
mod engine;
mod enqueue;
mod error;
mod fan_in;
#[cfg(test)]
mod fuzz;
mod graph;
mod handle;
mod id;
mod on;
mod payload;
mod queue;
pub mod replay_check;
mod retention;
mod retry;
mod schedule;
mod signal;
mod store;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod vault;
mod worker;
mod workflow;

pub use admin::{Cancel, Cancelled};
pub use batch::{Batch, BatchItem};
pub use client::Client;
pub use context::transaction::Tx;
pub use context::witness::{WITNESS_SQL, install_witness};
pub use context::{
    Attempt, Child, ChildResult, Ctx, Either, Event, Race, Signal, Sleep, StartChild, Step, TransactionStep,
    Update,
};
pub use engine::failpoint::NAMES as FAILPOINTS;
pub use enqueue::{Enqueue, Enqueued, Untyped, enqueue_all};
pub use error::{ApplicationError, Code, Error, Failure, Result};
pub use fan_in::{FanIn, FanInThen, FannedIn};
pub use graph::{Graph, Inputs, Node, Plan, Shape, ShapeKind, ShapeNode};
pub use handle::Handle;
pub use id::{RunId, WorkerId};
pub use on::{CachingClient, Database, Isolation, On, TokioPostgres};
pub use payload::PAYLOAD_BYTES_MAX;
pub use queue::{BlockedGroup, Ordered, QueueSettings, Rate};
pub use retention::Retention;
pub use retry::Retry;
pub use schedule::{Overlap, Schedule, ScheduleSummary};
pub use signal::SendSignal;
#[cfg(feature = "encryption")]
pub use vault::Keyring;
pub use vault::{OBJECT_BYTES_MAX, Vault};
pub use worker::{DRAIN, Worker, WorkerBuilder};
pub use workflow::{Workflow, WorkflowFn};

#[cfg(feature = "macros")]
pub use ambo_macros::{graph, job, step, workflow};

/// What the macros need.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "macros")]
    pub use crate::graph::{Part, planned};
    #[cfg(feature = "macros")]
    pub use crate::workflow::{Registered, Returns};
    pub use futures_util::future::BoxFuture;
    #[cfg(feature = "macros")]
    pub use inventory;
}

/// What the README and the guide show is compiled.
#[cfg(all(doctest, feature = "sqlx"))]
mod shown {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/guide/waiting.md")]
    struct Waiting;
    #[doc = include_str!("../../../docs/guide/at-once.md")]
    struct AtOnce;
    #[doc = include_str!("../../../docs/guide/graphs.md")]
    struct Graphs;
    #[doc = include_str!("../../../docs/guide/sagas.md")]
    struct Sagas;
    #[doc = include_str!("../../../docs/guide/retries.md")]
    struct Retries;
    #[doc = include_str!("../../../docs/guide/changes.md")]
    struct Changes;
    #[cfg(feature = "testing")]
    #[doc = include_str!("../../../docs/guide/testing.md")]
    struct Testing;
    #[doc = include_str!("../../../docs/guide/schedules.md")]
    struct Schedules;
    #[doc = include_str!("../../../docs/guide/queues.md")]
    struct Queues;
    #[doc = include_str!("../../../docs/guide/operate.md")]
    struct Operate;
    #[doc = include_str!("../../../docs/guide/observe.md")]
    struct Observe;
    #[cfg(all(feature = "encryption", feature = "object-store"))]
    #[doc = include_str!("../../../docs/guide/payloads.md")]
    struct Payloads;
}
