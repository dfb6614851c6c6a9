//! The loops of one worker process, on a thread of their own: user code that blocks must not cost the lease.
//!
//! A worker lives one or more *lives*: each has an id never used before. When it learns that it was declared dead
//! it drops all that it holds and begins another life.

pub(crate) mod claimer;
pub(crate) mod clock;
pub(crate) mod conclude;
pub(crate) mod control;
pub(crate) mod dispatcher;
pub(crate) mod drain;
pub(crate) mod executor;
pub(crate) mod failpoint;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod keeper;
pub(crate) mod life;
pub(crate) mod look;
pub(crate) mod refusal;
pub(crate) mod rehearse;
pub(crate) mod rest;
pub(crate) mod run;
pub(crate) mod script;
pub(crate) mod sealing;
pub(crate) mod shares;
pub(crate) mod slots;
pub(crate) mod turns;
pub(crate) mod under_way;
pub(crate) mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::waiter::Waiter;
use crate::error::Result;
use crate::store::connect::{Link, Target};
use crate::store::worker::Registration;
use crate::vault::Vault;
use crate::workflow::{Registry, States};
pub(crate) use life::Life;

/// What does not change over a worker's lives.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) target: Arc<Target>,
    pub(crate) registration: Registration,
    /// The weights of the queues; none: no queue has another than 1.
    pub(crate) weights: Option<Vec<(String, u32)>>,
    pub(crate) registry: Registry,
    pub(crate) states: States,
    /// How many runs are in memory at most: each holds its input, history and task.
    pub(crate) max_in_flight: usize,
    /// How many calls a run may record.
    pub(crate) history_max: usize,
    /// How long a claimer that finds nothing sleeps when no notification wakes it.
    pub(crate) poll: Duration,
    /// The database's clock.
    pub(crate) clock: Arc<clock::DatabaseClock>,
    /// The lease in milliseconds, as of the last heartbeat.
    pub(crate) lease_ms: Arc<AtomicI32>,
    /// How long a run waits in memory before it is parked.
    pub(crate) park_after: Duration,
    /// Where user code runs.
    pub(crate) runtime: tokio::runtime::Handle,
    /// Those in this process who wait for outcomes.
    pub(crate) waiter: Arc<Waiter>,
    /// What a test has told this worker to do otherwise.
    pub(crate) rig: script::Rig,
    /// What becomes of payloads.
    pub(crate) vault: Vault,
    /// The present life, once registered.
    pub(crate) life: watch::Sender<Option<Arc<Life>>>,
    /// No more claims, once it is set: finish or hand back, by then at the latest.
    pub(crate) drain_end: watch::Sender<Option<Instant>>,
    /// The end: whatever still runs is handed back.
    pub(crate) stop: CancellationToken,
}

/// How long a worker tries to start while somebody's open transaction holds what it has to write.
const HELD_AT_START: Duration = Duration::from_secs(60);

/// Lives until the engine is stopped. The first registration is made by the caller's own attempt, so that a wrong
/// configuration is an error of `start`, not a loop.
pub(crate) async fn live(engine: Arc<Engine>, first: tokio::sync::oneshot::Sender<Result<()>>) {
    let mut first = Some(first);
    let began = Instant::now();
    tokio::task::spawn_local(drain::end_in_time(engine.clone()));
    let (sender, mut notices) = tokio::sync::mpsc::unbounded_channel();
    let mut control = Link::new(Target::clone(&engine.target), "ambo worker control").with_notices(sender);
    while !engine.stop.is_cancelled() && !engine.rig.is_killed() {
        match life::begin(&engine, &mut control).await {
            Ok(next) => {
                if let Some(first) = first.take() {
                    let _ = first.send(Ok(()));
                }
                control = life::lead(&engine, next, control, &mut notices).await;
            }
            Err(error) => {
                // Somebody's open transaction has created a queue that this worker serves, or holds a table.
                let is_held = error.sqlstate() == Some("55P03") && began.elapsed() < HELD_AT_START;
                if is_held {
                    tracing::warn!(%error, "an open transaction keeps the worker from starting; it tries again");
                } else if let Some(first) = first.take() {
                    let _ = first.send(Err(error));
                    return;
                }
                tokio::select! {
                    () = control.recover(&error) => {}
                    () = engine.stop.cancelled() => {}
                }
            }
        }
    }
}
