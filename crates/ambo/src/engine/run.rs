//! A run in memory: what it has recorded, what of that is durable, and what ends it from outside.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::clock;
use super::history::{Continued, History};
use super::journal::{Fact, Journal};
use super::refusal::Refusal;
use super::script::Rig;
use super::sealing::{self, Staged};
use super::slots::Slot;
use super::wait::{MOMENT, Waits};
use crate::client::waiter::Waiter;
use crate::context::compensate::Compensation;
use crate::context::{child, event, signal};
use crate::error::{Code, Error};
use crate::payload::Json;
use crate::store::claim::{self, Checkpoint};
use crate::store::connect::Session;
use crate::store::flush::NewCheckpoint;
use crate::telemetry::WorkflowMeters;
use crate::vault::Vault;
use crate::workflow::States;

/// Why a run is taken from its body.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Another worker owns it, or may: nothing is recorded.
    Fenced,
    /// The worker stops: the run is given back.
    HandBack,
    /// It ends as dead: its code does not fit its history, or what it did cannot be recorded.
    Dead(Error),
    /// The database refused a child that it had started: it goes on from its checkpoints, and the call fails.
    Refused(Box<NewCheckpoint>),
    /// It begins anew, with what it takes along.
    Continue(String),
    /// A transaction of its body has ended it, with this output: that is durable.
    Completed(Json),
    /// Its time was up, its code did not come back to hear of it, and its end was recorded meanwhile.
    Overdue,
    /// As before, but it was given back to be undone by whoever claims it next: what its code records is not.
    GivenBack,
}

/// A run in execution.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: Uuid,
    pub(crate) attempt: i32,
    pub(crate) workflow: String,
    pub(crate) queue: String,
    pub(crate) key: Option<String>,
    /// The run that waits for this one.
    pub(crate) parent: Option<Uuid>,
    /// When its time is up, in the database's time.
    pub(crate) deadline: Option<jiff::Timestamp>,
    /// It was claimed after the time by which it had to start.
    pub(crate) too_late: bool,
    /// What it takes of the limits of its queue.
    pub(crate) slot: Option<Slot>,
    /// Of the input and the records that it came with.
    pub(crate) bytes: usize,
    pub(crate) worker: i64,
    pub(crate) journal: Journal,
    pub(crate) states: States,
    pub(crate) meters: Arc<WorkflowMeters>,
    pub(crate) target: Arc<crate::store::connect::Target>,
    /// How long a transaction of this run may be idle.
    pub(crate) lease_ms: Arc<AtomicI32>,
    pub(crate) clock: Arc<clock::DatabaseClock>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) rig: Rig,
    /// Those in this process who wait for outcomes and events.
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) vault: Vault,
    pub(crate) runtime: tokio::runtime::Handle,
    /// The worker's session for questions; `None` while it is cut.
    sessions: watch::Receiver<Option<Session>>,
    /// The signals that were consumed, by their numbers.
    consumed: Mutex<Vec<i64>>,
    /// The number of the last value that was published, by key.
    pub(super) published: Mutex<HashMap<String, i32>>,
    /// It has started children, or may have.
    pub(crate) has_children: AtomicBool,
    /// What undoes the steps that have succeeded, in their order.
    compensations: Mutex<Vec<Compensation>>,
    pub(super) refusal: Refusal,
    /// Recorded failures that are not answered yet, and races whose losers come through their record: see `rest.rs`.
    pub(super) held_back: AtomicUsize,
    pub(crate) history: History,
    /// How many calls it may record.
    history_max: usize,
    pending: Mutex<Pending>,
    /// How many facts were recorded, and how many of them are durable.
    sent: AtomicU64,
    durable: AtomicU64,
    moved: Notify,
    ended: AtomicBool,
    stop: OnceLock<Stop>,
    stopped: Notify,
    /// Since when the body has been polled without coming back, in milliseconds of the process clock; 0: it is not.
    busy_since: AtomicU64,
    /// How often the body was polled.
    polls: AtomicU64,
    reported: AtomicBool,
    /// Commits on their way whose step was dropped.
    undecided: AtomicUsize,
    /// The database was told that it only waits.
    rests: AtomicBool,
}

/// What was recorded during the present poll of the body: it goes to the journal as one, so that the last checkpoint of a
/// run and its outcome share a commit.
#[derive(Debug, Default)]
struct Pending {
    polling: bool,
    facts: Vec<Fact>,
    staged: Staged,
}

/// What the run does not go past until it is dropped: a commit on its way whose step was dropped.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Run>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.undecided.fetch_sub(1, Ordering::AcqRel);
        self.0.moved.notify_waiters();
    }
}

/// What identifies a run and where its facts go.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: Uuid,
    pub(crate) attempt: i32,
    pub(crate) workflow: String,
    pub(crate) queue: String,
    pub(crate) key: Option<String>,
    pub(crate) parent: Option<Uuid>,
    pub(crate) deadline: Option<jiff::Timestamp>,
    pub(crate) too_late: bool,
    pub(crate) slot: Option<Slot>,
    pub(crate) bytes: usize,
}

impl Run {
    pub(crate) fn new(
        identity: Identity,
        history: Vec<Checkpoint>,
        cancelled: bool,
        life: &super::Life,
        engine: &super::Engine,
    ) -> Self {
        let known = engine.registry.get(&identity.workflow);
        let meters = known
            .map_or_else(|| Arc::new(WorkflowMeters::new(&identity.workflow)), |known| known.meters.clone());
        let is_late = identity.deadline.is_some_and(|deadline| engine.clock.until(deadline).is_zero());
        Run {
            meters,
            id: identity.id,
            attempt: identity.attempt,
            workflow: identity.workflow,
            queue: identity.queue,
            key: identity.key,
            parent: identity.parent,
            deadline: identity.deadline,
            too_late: identity.too_late,
            slot: identity.slot,
            bytes: identity.bytes,
            worker: life.worker,
            journal: life.journal.clone(),
            states: engine.states.clone(),
            target: engine.target.clone(),
            lease_ms: engine.lease_ms.clone(),
            clock: engine.clock.clone(),
            waits: Arc::new(Waits::new(engine.park_after)),
            rig: engine.rig.clone(),
            waiter: engine.waiter.clone(),
            vault: engine.vault.clone(),
            runtime: engine.runtime.clone(),
            sessions: life.control.subscribe(),
            consumed: Mutex::new(history.iter().filter_map(signal::consumed).collect()),
            published: Mutex::new(last_numbers(&history)),
            history_max: engine.history_max,
            has_children: AtomicBool::new(history.iter().any(may_have_children)),
            compensations: Mutex::default(),
            refusal: Refusal::new(cancelled, is_late),
            held_back: AtomicUsize::new(0),
            history: History::new(history),
            pending: Mutex::default(),
            sent: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            moved: Notify::new(),
            ended: AtomicBool::new(false),
            stop: OnceLock::new(),
            stopped: Notify::new(),
            busy_since: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            reported: AtomicBool::new(false),
            undecided: AtomicUsize::new(0),
            rests: AtomicBool::new(false),
        }
    }

    /// Polls the body, and leaves a mark while it does: code that does not come back is found by it. What it recorded
    /// goes to the journal afterwards, or with what ends the run.
    pub(crate) fn watch_poll<T>(self: &Arc<Self>, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        self.busy_since.store(clock::monotonic_ms(), Ordering::Relaxed);
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.pending().polling = true;
        let polled = poll();
        self.pending().polling = false;
        if polled.is_pending() {
            self.send_pending();
        }
        self.busy_since.store(0, Ordering::Relaxed);
        polled
    }

    /// How often the body was polled.
    pub(crate) fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what was recorded to the journal.
    pub(crate) fn send_pending(self: &Arc<Self>) {
        let mut pending = self.pending();
        if !self.vault.is_empty() {
            let facts = std::mem::take(&mut pending.facts);
            if !facts.is_empty() {
                sealing::stage(self, facts, &mut pending.staged);
            }
            return;
        }
        // Mostly there is one, and the vector keeps its room.
        let (first, rest) = match pending.facts.len() {
            0 => return,
            1 => (pending.facts.remove(0), Vec::new()),
            _ => {
                let mut facts = std::mem::take(&mut pending.facts);
                (facts.remove(0), facts)
            }
        };
        // Under the lock: facts of a run reach the journal in their order.
        self.journal.record(self.clone(), first, rest);
    }

    /// Gives facts to the journal that are sealed.
    pub(crate) fn send(self: &Arc<Self>, mut facts: Vec<Fact>) {
        let first = facts.remove(0);
        self.journal.record(self.clone(), first, facts);
    }

    /// The next facts to be sealed, as `take` finds them.
    pub(crate) fn next_staged<T>(&self, take: impl FnOnce(&mut Staged) -> T) -> T {
        take(&mut self.pending().staged)
    }

    /// How long the body has kept its thread, if it is more than `limit`.
    pub(crate) fn blocks_since(&self, limit: std::time::Duration) -> Option<std::time::Duration> {
        let since = self.busy_since.load(Ordering::Relaxed);
        let busy = std::time::Duration::from_millis(clock::monotonic_ms().saturating_sub(since));
        (since != 0 && busy > limit).then_some(busy)
    }

    /// Whether its time is up.
    pub(crate) fn is_overdue(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.clock.until(deadline).is_zero())
    }

    /// Whether it was said before that this run blocks; from now on it was.
    pub(crate) fn reported(&self) -> bool {
        self.reported.swap(true, Ordering::Relaxed)
    }

    /// Holds up the next effect and the end of the run.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.undecided.fetch_add(1, Ordering::AcqRel);
        Hold(self.clone())
    }

    /// Whether a commit whose step was dropped is on its way.
    pub(crate) fn is_undecided(&self) -> bool {
        self.undecided.load(Ordering::Acquire) > 0
    }

    /// Waits until nothing holds up the run.
    pub(crate) async fn decided(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.undecided.load(Ordering::Acquire) == 0 {
                return;
            }
            moved.await;
        }
    }

    /// See [`History::replay`].
    pub(crate) fn replay(&self, position: &str, name: &str) -> Result<Option<Checkpoint>, Error> {
        self.history.replay(self.id, position, name)
    }

    /// Gives a checkpoint to the journal. The caller may go on: what must wait for it is the next effect.
    pub(crate) fn record(
        self: &Arc<Self>,
        position: Arc<str>,
        name: Cow<'static, str>,
        result: Result<Json, Json>,
        elapsed: std::time::Duration,
    ) {
        let (output, error) = match result {
            Ok(output) => (Some(output), None),
            Err(error) => {
                self.history.fail(&position);
                (None, Some(error))
            }
        };
        self.give(Fact::Checkpoint(NewCheckpoint {
            run: self.id,
            attempt: self.attempt,
            position,
            name,
            output,
            error,
            elapsed_ms: i32::try_from(elapsed.as_millis()).unwrap_or(i32::MAX),
        }));
    }

    /// [`record`](Run::record), of a call that has taken something, whether or not it failed of it.
    pub(crate) fn record_with(
        self: &Arc<Self>,
        position: Arc<str>,
        name: Cow<'static, str>,
        output: Json,
        error: Option<Json>,
    ) {
        if error.is_some() {
            self.history.fail(&position);
        }
        self.give(Fact::Checkpoint(NewCheckpoint { error, ..self.checkpoint(position, name, output) }));
    }

    /// A checkpoint without a history of its own: of a call that is not an effect.
    pub(crate) fn checkpoint(
        &self,
        position: Arc<str>,
        name: Cow<'static, str>,
        output: Json,
    ) -> NewCheckpoint {
        let (run, attempt) = (self.id, self.attempt);
        NewCheckpoint { run, attempt, position, name, output: Some(output), error: None, elapsed_ms: 0 }
    }

    /// Records a fact: it goes to the journal at the end of the present poll.
    pub(crate) fn give(self: &Arc<Self>, fact: Fact) {
        if self.rig.is_killed() || matches!(self.reason(), Some(Stop::GivenBack)) {
            return;
        }
        if fact.checkpoint().is_some_and(|fact| self.rig.loses(self.worker, &fact.position, &fact.name)) {
            return;
        }
        if fact.checkpoint().is_some() && self.history.grow() > self.history_max {
            self.stop(Stop::Dead(Error::new(
                Code::HistoryLimit,
                format!(
                    "the run has recorded {} calls, its limit; continue as new, or raise the limit and retry it",
                    self.history_max
                ),
            )));
        }
        self.sent.fetch_add(1, Ordering::AcqRel);
        let mut pending = self.pending();
        pending.facts.push(fact);
        let polling = pending.polling;
        drop(pending);
        if !polling {
            self.send_pending();
        }
    }

    /// The worker's session, as soon as there is one.
    pub(crate) async fn session(&self) -> Session {
        let mut sessions = self.sessions.clone();
        loop {
            let present = sessions.borrow_and_update().clone();
            if let Some(session) = present {
                return session;
            }
            if sessions.changed().await.is_err() {
                // The life is over: the run is about to be stopped.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Something has come for the run: what waits looks again.
    pub(crate) fn nudge(&self) {
        self.waits.nudge();
    }

    /// The run has ended, in a transaction of its own. Never returns.
    pub(crate) async fn complete(&self, output: Json) {
        self.stop(Stop::Completed(output));
        std::future::pending().await
    }

    pub(crate) fn consumed(&self) -> std::sync::MutexGuard<'_, Vec<i64>> {
        self.consumed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a signal, unless another call has.
    pub(crate) fn consume(&self, seq: i64) -> bool {
        let mut consumed = self.consumed();
        let is_mine = !consumed.contains(&seq);
        if is_mine {
            consumed.push(seq);
        }
        is_mine
    }

    /// The number of the next value that is published under a key, from 1. Above all that history knows: branches of a
    /// replay do not come by in the order in which they did the first time.
    pub(crate) fn next_number(&self, key: &str) -> i32 {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let last = published.entry(key.to_owned()).or_default();
        *last += 1;
        *last
    }

    /// Waits until all that was recorded so far is durable, every commit on its way is decided and the journal has
    /// room: before every effect. Never
    /// returns for a run that was stopped, whose body is about to be dropped.
    pub(crate) async fn barrier(self: &Arc<Self>) {
        // The poll may not end before this does: code that blocks on a call within its poll waits here.
        self.send_pending();
        let target = self.sent.load(Ordering::Acquire);
        loop {
            if self.stop.get().is_some() || self.rig.is_killed() {
                std::future::pending::<()>().await;
            }
            if self.durable.load(Ordering::Acquire) >= target {
                break;
            }
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.durable.load(Ordering::Acquire) < target && self.stop.get().is_none() {
                moved.await;
            }
        }
        self.decided().await;
        self.journal.room().await;
        if self.rests.load(Ordering::Acquire) {
            self.begin_again().await;
        }
    }

    /// Whether it does nothing but wait, in memory: for how long.
    pub(crate) fn rests_for(&self) -> Option<Duration> {
        self.waits.rests_for().filter(|_| self.busy_since.load(Ordering::Relaxed) == 0)
    }

    /// Whether the database is to be told that the run only waits, and so has no part in the death of its worker. From here on
    /// it counts as told.
    pub(crate) fn comes_to_rest(&self) -> bool {
        self.rests_for().is_some_and(|span| span >= MOMENT) && !self.rests.swap(true, Ordering::AcqRel)
    }

    /// Says that its worker's death counts again. If that cannot be told it goes on all the same: one that is not counted does
    /// no harm.
    async fn begin_again(&self) {
        let session = self.sessions.borrow().clone();
        if self.rests.swap(false, Ordering::AcqRel)
            && let Some(session) = session
            && let Err(error) =
                claim::begin_runs(&session, &self.target.schema, self.worker, &[self.id], true).await
        {
            tracing::debug!(run = %self.id, %error, "could not say that the run goes on");
        }
    }

    /// Waits until all that was recorded so far is durable, also for a run that was stopped; a fenced run has
    /// nothing to wait for.
    pub(crate) async fn flushed(self: &Arc<Self>) {
        self.send_pending();
        let target = self.sent.load(Ordering::Acquire);
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.durable.load(Ordering::Acquire) >= target || matches!(self.reason(), Some(Stop::Fenced)) {
                return;
            }
            moved.await;
        }
    }

    /// One more fact of this run is durable.
    pub(crate) fn advance(&self) {
        self.durable.fetch_add(1, Ordering::AcqRel);
        self.moved.notify_waiters();
    }

    /// Returns when the outcome is durable.
    pub(crate) async fn settled(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            moved.await;
        }
    }

    /// The outcome is durable.
    pub(crate) fn settle(&self) {
        self.ended.store(true, Ordering::Release);
        self.moved.notify_waiters();
    }

    pub(crate) fn compensations(&self) -> std::sync::MutexGuard<'_, Vec<Compensation>> {
        self.compensations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the run from its body; the first reason counts. Answers whether this one is.
    pub(crate) fn stop(&self, reason: Stop) -> bool {
        let is_first = self.stop.set(reason).is_ok();
        if is_first {
            self.stopped.notify_waiters();
            self.moved.notify_waiters();
        }
        is_first
    }

    pub(crate) fn reason(&self) -> Option<&Stop> {
        self.stop.get()
    }

    /// Returns when the run was stopped.
    pub(crate) async fn stopped(&self) -> &Stop {
        loop {
            let stopped = self.stopped.notified();
            tokio::pin!(stopped);
            stopped.as_mut().enable();
            if let Some(reason) = self.stop.get() {
                return reason;
            }
            stopped.await;
        }
    }

    /// Stops the run as dead and never returns: what a durable call does that does not fit the history.
    pub(crate) async fn die<T>(&self, error: Error) -> T {
        self.stop(Stop::Dead(error));
        std::future::pending().await
    }
}

/// Whether a record says that the run has children, or that it continued as new and may have had some.
fn may_have_children(checkpoint: &Checkpoint) -> bool {
    checkpoint.name.starts_with(child::NAME) || Continued::of(checkpoint).is_some()
}

fn last_numbers(history: &[Checkpoint]) -> HashMap<String, i32> {
    let mut last =
        history.iter().find_map(Continued::of).map_or_else(HashMap::new, |continued| continued.published);
    for (key, number) in history.iter().filter_map(event::published) {
        let known = last.entry(key).or_insert(number);
        *known = number.max(*known);
    }
    last
}
