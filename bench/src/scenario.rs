//! The scenarios by name, in the order in which `all` runs them.

pub mod alone;
pub mod children;
pub mod deep;
pub mod enqueue_tx;
pub mod fair;
pub mod fleet;
pub mod idle;
pub mod jobs;
pub mod latency;
pub mod limit;
pub mod pinned;
pub mod runs;
pub mod search;
pub mod signals;
pub mod sleepers;
pub mod start;
pub mod steps;
pub mod transaction;
pub mod wal;

use anyhow::Result;
use clap::ValueEnum;

use crate::bench::Bench;
use crate::report::Line;

/// What `ambo-bench` can be asked for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub enum Name {
    /// 1,000 concurrent runs of ten no-op steps.
    Steps,
    /// The same checkpoint rows by bare inserts.
    Limit,
    /// One-step runs, 64 callers that await results.
    Start,
    /// An enqueue in the user's transaction against the transaction alone.
    EnqueueTx,
    /// One-step runs through a queue, 200 producers.
    Runs,
    /// Ten-step runs, one at a time.
    Alone,
    /// From the enqueue in another process to the result, on an idle system.
    Latency,
    /// Transaction steps with pgbench's statements.
    Transaction,
    /// WAL, commits and statements of a queued run.
    Wal,
    /// Commits of an idle worker.
    Idle,
    /// Sleeping runs: the worker's memory, its restart, and many due at once.
    Sleepers,
    /// A signal and its answer, in memory and parked.
    Signals,
    /// Fan out and gather.
    Children,
    /// Plain no-op jobs through a queue, 200 producers.
    Jobs,
    /// The same with limits that hold nothing up.
    Limited,
    /// One tenant with a million waiting, and a hundred with one each.
    Fair,
    /// Claims from a queue that is ten million deep.
    Deep,
    /// Sixteen worker processes against four.
    Fleet,
    /// A steady load while nothing can be vacuumed. Minutes long; not part of `all`.
    Pinned,
    /// A page of runs by each of their properties, out of ten million.
    Search,
    /// Every scenario but `pinned`.
    All,
}

impl Name {
    /// What `all` stands for.
    pub const EACH: [Name; 19] = [
        Name::Steps,
        Name::Limit,
        Name::Start,
        Name::EnqueueTx,
        Name::Runs,
        Name::Alone,
        Name::Latency,
        Name::Transaction,
        Name::Wal,
        Name::Idle,
        Name::Sleepers,
        Name::Signals,
        Name::Children,
        Name::Jobs,
        Name::Limited,
        Name::Fair,
        Name::Deep,
        Name::Fleet,
        Name::Search,
    ];

    /// Measures one scenario.
    pub async fn run(self, bench: &Bench) -> Result<Vec<Line>> {
        match self {
            Name::Steps => steps::run(bench).await,
            Name::Limit => limit::run(bench).await,
            Name::Start => start::run(bench).await,
            Name::EnqueueTx => enqueue_tx::run(bench).await,
            Name::Runs => runs::run(bench).await,
            Name::Alone => alone::run(bench).await,
            Name::Latency => latency::run(bench).await,
            Name::Transaction => transaction::run(bench).await,
            Name::Wal => wal::run(bench).await,
            Name::Idle => idle::run(bench).await,
            Name::Sleepers => sleepers::run(bench).await,
            Name::Signals => signals::run(bench).await,
            Name::Children => children::run(bench).await,
            Name::Pinned => pinned::run(bench).await,
            Name::Jobs => jobs::jobs(bench).await,
            Name::Limited => jobs::limited(bench).await,
            Name::Fair => fair::run(bench).await,
            Name::Deep => deep::run(bench).await,
            Name::Fleet => fleet::run(bench).await,
            Name::Search => search::run(bench).await,
            Name::All => unreachable!("`all` is expanded by main"),
        }
    }
}
