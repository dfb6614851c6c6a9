//! The seam: what a durable-execution engine must do here. Scenarios are written against it once, so that
//! every engine does the same work.

pub mod ambo;
pub mod dbos;
pub mod durare;
pub mod waiting;

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The queue of every scenario that has one.
pub const QUEUE: &str = "bench";

/// Connections of each pool, the peers' and the producers': of 8, 16, 32 and 48 the fastest for both peers.
pub const CONNECTIONS: u32 = 16;

/// How an engine is set up.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// What makes this engine fastest.
    Fastest,
    /// What its users get who set nothing.
    Default,
}

/// The workflows of the scenarios. Each returns a number that proves its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workflow {
    /// One step that returns 1; returns the input plus 1.
    OneStep,
    /// Ten steps that return 0 to 9; returns the input plus 45.
    TenSteps,
    /// None; returns the input. Enqueued only.
    Noop,
}

impl Workflow {
    /// The name under which it is registered.
    pub fn name(self) -> &'static str {
        match self {
            Workflow::OneStep => "one_step",
            Workflow::TenSteps => "ten_steps",
            Workflow::Noop => "noop",
        }
    }

    /// What it must return.
    pub fn expected(self, input: i64) -> i64 {
        match self {
            Workflow::OneStep => input + 1,
            Workflow::TenSteps => input + 45,
            Workflow::Noop => input,
        }
    }
}

/// One transaction of pgbench's TPC-B.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Transfer {
    pub aid: i32,
    pub bid: i32,
    pub tid: i32,
    pub delta: i32,
}

/// Runs whose body has ended in this process: the cheap sign that a database may be asked.
static ENDED: AtomicI64 = AtomicI64::new(0);

/// Called at the end of the one-step workflow and of jobs.
pub fn count_ended() {
    ENDED.fetch_add(1, Ordering::Relaxed);
}

/// How many bodies have ended so far.
pub fn ended() -> i64 {
    ENDED.load(Ordering::Relaxed)
}

/// An engine with a worker in this process.
pub trait Engine: Clone + Send + Sync + 'static {
    /// As named in the output.
    const NAME: &'static str;
    /// Counts the runs that succeeded.
    const SUCCEEDED: &'static str;
    /// What enqueues runs for it.
    type Producer: Producer;

    /// Installs the schema, registers workflows and queue, and starts the worker.
    fn launch(url: &str, setting: Setting) -> impl Future<Output = Result<Self>> + Send;
    /// Waits until the queue is served at its full pace, where that takes a while.
    fn settle(&self, _patience: Duration) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
    /// Starts a run directly and awaits its result.
    fn call(&self, workflow: Workflow, input: i64) -> impl Future<Output = Result<i64>> + Send;
    /// Starts a run whose only step is a database transaction, and awaits its result.
    fn transfer(&self, transfer: Transfer) -> impl Future<Output = Result<()>> + Send;
    /// Awaits the result of a run that another process enqueued.
    fn wait(&self, id: &str) -> impl Future<Output = Result<i64>> + Send;
    /// Stops the worker and closes its connections.
    fn stop(self) -> impl Future<Output = Result<()>> + Send;
}

/// A producer: it enqueues and runs nothing. Its clones share one pool.
pub trait Producer: Clone + Send + Sync + 'static {
    /// Connects to a database in which the engine was launched before.
    fn connect(url: &str) -> impl Future<Output = Result<Self>> + Send;
    /// Enqueues a run; durable when it returns. Gives the id.
    fn enqueue(&self, workflow: Workflow, input: i64) -> impl Future<Output = Result<String>> + Send;
    /// Enqueues a one-step run within a user's transaction, where the engine can.
    fn enqueue_in_transaction(&self, input: i64) -> impl Future<Output = Result<String>> + Send {
        self.enqueue(Workflow::OneStep, input)
    }
    /// Closes the connections.
    fn close(self) -> impl Future<Output = ()> + Send;
}
