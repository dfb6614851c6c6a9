//! One life of a worker: from registration to leaving, or to learning that it was declared dead.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::control::{self, Control};
use super::journal::{self, Journal, LANES, Lane};
use super::run::{Identity, Run, Stop};
use super::slots::Slots;
use super::under_way::UnderWay;
use super::{Engine, claimer, executor};
use crate::error::{Code, Error, Result};
use crate::id::WorkerId;
use crate::store::claim::{self, ClaimedRun};
use crate::store::connect::{Link, Notice, Session, Target};
use crate::store::flush::NewOutcome;
use crate::store::{migrate, worker, workflow};
use crate::telemetry;

/// What the loops of one life share.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) worker: i64,
    pub(crate) journal: Journal,
    runs: Mutex<HashMap<Uuid, Arc<Run>>>,
    /// Runs that were claimed once too often while a worker died: run alone, so that no neighbour dies with them.
    suspects: Mutex<VecDeque<ClaimedRun>>,
    /// What these runs take of the limits of their queues.
    pub(crate) slots: Slots,
    /// Runs claimed or started and not yet ended, including those whose outcome is on its way.
    in_flight: AtomicUsize,
    /// Bytes of the inputs and records that these came with.
    bytes: AtomicUsize,
    /// A run ended: there is room for another.
    pub(crate) room: Notify,
    /// Something may be waiting: a notification came.
    pub(crate) hint: Notify,
    /// The session that heartbeats, listens and holds locks; `None` while it is cut.
    pub(crate) control: watch::Sender<Option<Session>>,
    /// What is claimed and not in memory yet.
    pub(crate) under_way: UnderWay,
    /// The answer to a claim was lost: there may be claims that this worker does not know.
    pub(crate) suspicion: AtomicBool,
    /// Runs that a stop gave back, one by one.
    pub(super) handed_back: AtomicUsize,
    /// The end of this life.
    pub(crate) over: CancellationToken,
    outcomes: Arc<crate::client::waiter::Waiter>,
}

impl Life {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Bytes of the inputs and records that the runs in memory came with.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// The runs in memory.
    pub(crate) fn run_ids(&self) -> Vec<Uuid> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Takes a run into memory and runs it on the users' runtime.
    pub(crate) fn adopt(self: &Arc<Self>, engine: &Arc<Engine>, claimed: ClaimedRun) {
        let identity = Identity {
            bytes: claimed.bytes(),
            id: claimed.id,
            attempt: claimed.attempt,
            workflow: claimed.workflow,
            queue: claimed.queue,
            key: claimed.key,
            parent: claimed.parent,
            slot: claimed.slot,
            deadline: claimed
                .time_left
                .map(|left| engine.clock.now().saturating_add(left).unwrap_or(jiff::Timestamp::MAX)),
            too_late: claimed.too_late,
        };
        let run = Arc::new(Run::new(identity, claimed.history, claimed.cancelled, self, engine));
        if let Some(left) = claimed.undo_left {
            run.cancel(engine.clock.now().saturating_add(left).ok());
        }
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(run.bytes, Ordering::AcqRel);
        let earlier = self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(run.id, run.clone());
        if let Some(earlier) = earlier {
            // Claimed again before this worker learned that its park had committed: the answer is late, or lost.
            earlier.stop(Stop::Fenced);
            self.make_room(&earlier);
        }
        run.meters.run_started();
        let execution = executor::execute(engine.clone(), self.clone(), run, claimed.input);
        engine.runtime.spawn(execution);
    }

    /// Whether this claim of a run is in memory.
    pub(crate) fn knows(&self, run: &Uuid, attempt: i32) -> bool {
        self.run(run).is_some_and(|run| run.attempt == attempt)
            || self.suspects().iter().any(|suspect| suspect.id == *run && suspect.attempt == attempt)
    }

    /// Whether a run is in memory, and not a later claim of it instead.
    pub(crate) fn holds(&self, run: &Run) -> bool {
        self.run(&run.id).is_some_and(|held| std::ptr::eq(&*held, run))
    }

    pub(crate) fn suspects(&self) -> std::sync::MutexGuard<'_, VecDeque<ClaimedRun>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn run(&self, run: &Uuid) -> Option<Arc<Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(run).cloned()
    }

    pub(crate) fn all_runs(&self) -> Vec<Arc<Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether a run here does more than wait.
    pub(crate) fn is_at_work(&self) -> bool {
        let resting = self.all_runs().iter().filter(|run| run.rests_for().is_some()).count();
        self.in_flight() > resting
    }

    /// Names the runs whose code does not yield: it belongs into `tokio::task::spawn_blocking`, inside a step.
    pub(crate) fn report_blockers(self: &Arc<Self>, engine: &Arc<Engine>, limit: Duration) {
        let blocking: Vec<_> = {
            let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            runs.values().filter_map(|run| Some((run.clone(), run.blocks_since(limit)?))).collect()
        };
        for (run, busy) in &blocking {
            // Its poll does not end, and what it has recorded shall not wait for that.
            run.send_pending();
            if run.is_overdue() && !run.is_undoing() {
                executor::leave_overdue(engine, self, run);
            } else if run.is_grace_over() {
                executor::leave_cancelled(run);
            }
            if !run.reported() {
                tracing::warn!(run = %run.id, workflow = run.workflow, ?busy,
                    "this run blocks its thread; put blocking code into tokio::task::spawn_blocking within a step");
            }
        }
    }

    /// A run is out of memory, and the database may not know it.
    pub(crate) fn lose(&self, run: &Run) {
        self.slots.recount(&run.queue);
        self.forget(run);
    }

    /// A run is out of memory: ended, parked or handed back. A later claim of it stays.
    pub(crate) fn forget(&self, run: &Run) {
        {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            if !runs.get(&run.id).is_some_and(|held| std::ptr::eq(&**held, run)) {
                return;
            }
            runs.remove(&run.id);
        }
        self.make_room(run);
        self.outcomes.lose(run.id);
    }

    /// A run does not execute here any more.
    fn make_room(&self, run: &Run) {
        if run.slot.as_ref().is_some_and(|slot| self.slots.free(slot)) {
            self.hint.notify_one();
        }
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(run.bytes, Ordering::AcqRel);
        self.room.notify_one();
    }
}

impl journal::Witness for Life {
    fn ended(&self, run: &Arc<Run>, outcome: &NewOutcome, sent: Instant) {
        run.meters.run_ended(outcome.status);
        run.settle();
        self.outcomes.settle(run.id, outcome, sent);
        self.forget(run);
    }

    fn lost(&self, run: &Arc<Run>) {
        run.settle();
        self.lose(run);
    }

    fn parked(&self, run: &Arc<Run>) {
        run.settle();
        self.forget(run);
    }

    fn published(&self, run: &Arc<Run>) {
        self.outcomes.tell(Some(run.id));
    }
}

/// A life that has just begun, with the ends that its loops will hold.
#[derive(Debug)]
pub(crate) struct Birth {
    life: Arc<Life>,
    lanes: [Lane; LANES],
}

/// Checks the schema and registers.
pub(crate) async fn begin(engine: &Engine, control: &mut Link) -> Result<Birth> {
    let schema = control.schema().clone();
    let session = control.session().await?.clone();
    migrate::check(&session, &schema).await?;
    let holds = !engine.target.pooled;
    let id = worker::register(&session, &schema, &engine.registration, holds).await?;
    workflow::declare(&session, &schema, &engine.registration.version, &engine.registry).await?;
    engine.clock.set(worker::database_time(&session, &schema).await?);
    if holds && !worker::hold(&session, &schema, id).await? {
        return Err(Error::new(Code::Database, format!("the session lock of worker {id} is taken")));
    }
    control.recovered();
    let (journal, lanes) = journal::open();
    let life = Arc::new(Life {
        worker: id,
        journal,
        runs: Mutex::new(HashMap::new()),
        suspects: Mutex::default(),
        slots: Slots::default(),
        in_flight: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        room: Notify::new(),
        hint: Notify::new(),
        control: watch::channel(Some(session)).0,
        under_way: UnderWay::default(),
        suspicion: AtomicBool::new(false),
        handed_back: AtomicUsize::new(0),
        over: CancellationToken::new(),
        outcomes: engine.waiter.clone(),
    });
    tracing::info!(worker = id, name = engine.registration.name, "worker registered");
    Ok(Birth { life, lanes })
}

/// Runs the loops of a life to its end; answers the control connection for the next one.
pub(crate) async fn lead(
    engine: &Arc<Engine>,
    birth: Birth,
    control: Link,
    notices: &mut mpsc::UnboundedReceiver<Notice>,
) -> Link {
    let Birth { life, lanes } = birth;
    engine.life.send_replace(Some(life.clone()));
    let mut flushers = tokio::task::JoinSet::new();
    for lane in lanes {
        let link = Link::new(Target::clone(&engine.target), "ambo worker journal");
        flushers.spawn_local(journal::flush_lane(lane, link, life.worker, life.clone()));
    }
    let claims = tokio::task::spawn_local(claimer::claim_loop(engine.clone(), life.clone()));
    let mut control = Control::new(engine.clone(), life.clone(), control, notices);
    let end = control::control_loop(&mut control).await;
    if let control::End::Killed = end {
        flushers.abort_all();
        for run in life.all_runs() {
            run.stop(Stop::Fenced);
        }
    }
    life.over.cancel();
    let _ = claims.await;
    engine.life.send_replace(None);
    if let control::End::Fenced = end {
        tracing::warn!(
            worker = life.worker,
            "this worker was declared dead; it drops its runs and begins anew"
        );
        telemetry::fenced();
    }
    if let control::End::Stopped = end {
        settle_down(engine, &life, &mut control).await;
    } else {
        // Also what a claim has brought since.
        for run in life.all_runs() {
            run.stop(Stop::Fenced);
        }
    }
    // The runs hold the last senders of the journal; the lanes end with them. A run that does not yield is left.
    flushers.abort_all();
    control.link
}

/// The last act of a stopping worker: what still runs is handed back, then it leaves.
async fn settle_down(engine: &Engine, life: &Arc<Life>, control: &mut Control<'_>) {
    for run in life.all_runs() {
        run.stop(Stop::HandBack);
    }
    // Outcomes that are in the journal may still land; what is handed back then is no longer ours.
    let emptied = async {
        while life.in_flight() > 0 {
            life.room.notified().await;
        }
    };
    if tokio::time::timeout(journal::LAST_FLUSH, emptied).await.is_err() {
        let stuck: Vec<String> =
            life.all_runs().iter().take(5).map(|run| format!("{} {}", run.workflow, run.id)).collect();
        tracing::warn!(worker = life.worker, runs = life.in_flight(), first = ?stuck, "these runs did not yield");
    }
    control.keeper.stop().await;
    let left = async {
        let schema = engine.target.schema.clone();
        let session = control.link.session().await?.clone();
        let held: Vec<(Uuid, i32)> = life.all_runs().iter().map(|run| (run.id, run.attempt)).collect();
        worker::leave(&session, &schema, life.worker, &held).await
    };
    match tokio::time::timeout(journal::LAST_FLUSH, left).await {
        Ok(Ok(rest)) => {
            let handed_back = life.handed_back.load(Ordering::Acquire) + usize::try_from(rest).unwrap_or(0);
            tracing::info!(worker = life.worker, handed_back, "worker left");
        }
        Ok(Err(error)) => {
            tracing::warn!(worker = life.worker, %error, "the worker could not leave; its lease will run out")
        }
        Err(_) => {
            tracing::warn!(worker = life.worker, "the worker could not leave in time; its lease will run out")
        }
    }
}

/// Compares the claims that the database holds, in a piece of their table, with the runs in memory: a claim whose answer was lost
/// belongs to a worker that does not know it. A start may be on its way, so what is found is only to be suspected: [`return_lost`].
/// Answers it, and where to go on.
pub(crate) async fn unknown_claims(
    engine: &Engine,
    life: &Life,
    session: &Session,
    page: i64,
) -> Result<(Vec<(Uuid, i32)>, Option<i64>)> {
    let (mut claims, next) = claim::claims_of(session, &engine.target.schema, life.worker, page).await?;
    claims.retain(|(run, attempt)| !life.knows(run, *attempt));
    Ok((claims, next))
}

/// Hands back what is still unknown a heartbeat later. Most of it has ended meanwhile: then nothing is there to be handed back.
pub(crate) async fn return_lost(
    engine: &Engine,
    life: &Life,
    session: &Session,
    suspects: &mut Vec<(Uuid, i32)>,
) -> Result<()> {
    suspects.retain(|(run, attempt)| !life.knows(run, *attempt));
    if !suspects.is_empty() {
        let count = claim::hand_back(session, &engine.target.schema, life.worker, suspects).await?;
        if count > 0 {
            tracing::warn!(worker = life.worker, count, "claims whose answer was lost were handed back");
        }
    }
    suspects.clear();
    Ok(())
}

impl Life {
    /// A life that nobody leads: for runs that are only looked at.
    pub(crate) fn of_nobody(outcomes: Arc<crate::client::waiter::Waiter>) -> Self {
        Life {
            worker: 0,
            journal: journal::open().0,
            runs: Mutex::default(),
            suspects: Mutex::default(),
            slots: Slots::default(),
            in_flight: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            room: Notify::new(),
            hint: Notify::new(),
            control: watch::channel(None).0,
            under_way: UnderWay::default(),
            suspicion: AtomicBool::new(false),
            handed_back: AtomicUsize::new(0),
            over: CancellationToken::new(),
            outcomes,
        }
    }

    pub(crate) fn id(&self) -> WorkerId {
        WorkerId(self.worker)
    }
}
