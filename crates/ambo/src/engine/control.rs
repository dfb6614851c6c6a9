//! The control connection: heartbeat, notifications, session locks, and the keeper's duties when it falls to us.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::look::Look;
use super::run::Run;
use super::{Engine, Life, keeper, life};
use crate::error::Result;
use crate::id;
use crate::store::connect::{Link, Notice, Session};
use crate::store::{claim, worker};
use crate::telemetry;

/// Between heartbeats. A worker is dead after 2.5 s of silence with its connection gone, so one may be lost.
const BEAT: Duration = Duration::from_secs(1);
/// Runs that are looked for in one statement.
const LOOK: usize = 10_000;
/// A body that keeps its thread for longer is reported: it holds up others.
const BLOCKS: Duration = Duration::from_secs(1);
/// Between two looks for claims that this worker does not know, when nothing is suspected.
const RECONCILE: Duration = Duration::from_secs(60);
/// The same behind a pooler, where nobody can tell when a claim that was given up is done with.
const RECONCILE_POOLED: Duration = Duration::from_secs(10);

/// Why a life ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The worker was declared dead.
    Fenced,
    /// The worker stops.
    Stopped,
    /// A test ended it as a crash would.
    Killed,
}

/// The state of the control loop.
#[derive(Debug)]
pub(crate) struct Control<'a> {
    engine: Arc<Engine>,
    life: Arc<Life>,
    pub(crate) link: Link,
    notices: &'a mut mpsc::UnboundedReceiver<Notice>,
    /// The session on which the channels were set up; another one needs them again.
    prepared: Option<u64>,
    /// The session holds the worker's lock.
    holds: bool,
    pub(super) keeper: keeper::Duties,
    /// How long until the next heartbeat, where that has something to do before its time.
    next_beat: Option<Duration>,
    /// Runs of which somebody says that they are to be cancelled: see [`Control::look_into`].
    suspects: Vec<Uuid>,
    /// Claims that this worker did not know when it last looked, and the last claim that had begun by then.
    unknown: Vec<(Uuid, i32)>,
    looked_during: u64,
    claims: Look,
}

impl<'a> Control<'a> {
    pub(crate) fn new(
        engine: Arc<Engine>,
        life: Arc<Life>,
        link: Link,
        notices: &'a mut mpsc::UnboundedReceiver<Notice>,
    ) -> Self {
        let patience = if engine.target.pooled { RECONCILE_POOLED } else { RECONCILE };
        // The connection on which the life was registered holds its lock, but does not listen yet.
        Control {
            engine,
            life,
            link,
            notices,
            prepared: None,
            holds: false,
            keeper: keeper::Duties::default(),
            next_beat: None,
            suspects: Vec::new(),
            unknown: Vec::new(),
            looked_during: 0,
            claims: Look::new(Instant::now(), patience),
        }
    }

    /// The session, listening and holding the worker's lock.
    async fn session(&mut self) -> Result<Session> {
        let session = self.link.session().await?.clone();
        if self.prepared != Some(session.number) {
            self.holds = false;
            if !self.engine.target.pooled {
                let schema = &self.engine.target.schema;
                session
                    .batch(&format!(
                        "listen \"{}\"; listen \"{}\"; listen \"{}\"",
                        schema.channel("wake"),
                        schema.channel("cancel"),
                        schema.channel("signal")
                    ))
                    .await?;
            }
            self.prepared = Some(session.number);
            self.life.control.send_replace(Some(session.clone()));
            // What was sent while nobody listened is found by looking.
            self.life.hint.notify_one();
        }
        if !self.holds && !self.engine.target.pooled {
            // The old connection may hold it for a moment longer, or the keeper tries it: the next beat asks again.
            self.holds = worker::hold(&session, &self.engine.target.schema, self.life.worker).await?;
            if !self.holds {
                tracing::debug!(worker = self.life.worker, "the session lock is held by another connection");
            }
        }
        Ok(session)
    }

    /// One heartbeat and what follows from its answer. `Ok(false)`: declared dead.
    async fn beat(&mut self) -> Result<bool> {
        let session = self.session().await?;
        let schema = self.engine.target.schema.clone();
        let in_flight = i32::try_from(self.life.in_flight()).unwrap_or(i32::MAX);
        let draining = self.engine.is_draining();
        let graces = self.keeper.graces_after();
        let mark = self.keeper.timer_mark();
        let pulse =
            worker::heartbeat(&session, &schema, self.life.worker, in_flight, draining, mark, graces).await?;
        self.link.recovered();
        telemetry::in_flight(self.life.in_flight());
        self.life.report_blockers(&self.engine, BLOCKS);
        self.next_beat = pulse.next_beat;
        self.engine.lease_ms.store(pulse.lease_ms, Ordering::Relaxed);
        self.engine.clock.set(pulse.now_us);
        if !pulse.alive {
            return Ok(false);
        }
        if self.life.slots.set_managed(&pulse.managed) {
            self.life.hint.notify_one();
        }
        if pulse.look {
            self.look(&session, &self.life.run_ids()).await?;
        }
        self.rest(&session).await?;
        if pulse.is_keeper {
            if self.keeper.perform(&session, &self.engine.target, self.life.worker, &pulse).await? {
                self.life.hint.notify_one();
            }
            if self.keeper.is_burying() {
                // The next beat is all that it made way for.
                self.next_beat = Some(Duration::ZERO);
            }
            self.engine.vault.sweep(&session, &schema);
        } else {
            self.keeper.retire();
        }
        self.reconcile(&session).await?;
        Ok(true)
    }

    /// Finds claims that this worker does not know, and hands back what it still does not know at the next heartbeat.
    async fn reconcile(&mut self, session: &Session) -> Result<()> {
        if !self.unknown.is_empty() {
            if !self.life.under_way.are_past(self.looked_during) {
                // They may be on their way into memory.
                return Ok(());
            }
            life::return_lost(&self.engine, &self.life, session, &mut self.unknown).await?;
        }
        let (began, suspicion) = (Instant::now(), &self.life.suspicion);
        if let Some(page) = self.claims.piece(began, || suspicion.swap(false, Ordering::AcqRel)) {
            let (unknown, next) = life::unknown_claims(&self.engine, &self.life, session, page).await?;
            self.unknown = unknown;
            self.looked_during = self.life.under_way.last();
            self.claims.looked(began, Instant::now(), next);
        }
        Ok(())
    }

    /// Tells the database which runs have come to do nothing but wait.
    async fn rest(&mut self, session: &Session) -> Result<()> {
        let runs = self.life.all_runs();
        let rest: Vec<Uuid> = runs.iter().filter(|run| run.comes_to_rest()).map(|run| run.id).collect();
        for runs in rest.chunks(LOOK) {
            claim::begin_runs(session, &self.engine.target.schema, self.life.worker, runs, false).await?;
        }
        Ok(())
    }

    /// Between two heartbeats: timers that are due. On another connection, perhaps to another server, a heartbeat comes first.
    async fn fire_timers(&mut self) -> Result<bool> {
        let session = self.link.session().await?.clone();
        if self.prepared != Some(session.number) {
            return self.beat().await;
        }
        if self.keeper.fire_timers(&session, &self.engine.target.schema).await? {
            self.life.hint.notify_one();
        }
        Ok(true)
    }

    /// Looks for what has come for runs in memory: notifications get lost.
    async fn look(&self, session: &Session, runs: &[Uuid]) -> Result<()> {
        for runs in runs.chunks(LOOK) {
            let (cancelled, woken) = worker::came_for(session, &self.engine.target.schema, runs).await?;
            for (run, by) in cancelled.iter().filter_map(|(run, by)| Some((self.life.run(run)?, by))) {
                run.cancel(*by);
            }
            woken.iter().filter_map(|run| self.life.run(run)).for_each(|run| run.nudge());
        }
        Ok(())
    }

    /// Asks the database about the runs that are said to be cancelled: anybody who may connect may say so. Where that does not
    /// work, or on another connection, the next heartbeat looks at all.
    async fn look_into(&mut self) -> Result<()> {
        let suspects = std::mem::take(&mut self.suspects);
        let session = self.link.session().await?.clone();
        if self.prepared == Some(session.number) {
            self.look(&session, &suspects).await?;
        }
        Ok(())
    }

    fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Notified(channel, payload) => {
                if channel.ends_with(".cancel") {
                    self.suspects.extend(self.named(payload).map(|run| run.id));
                } else if channel.ends_with(".signal") {
                    self.named(payload).for_each(|run| run.nudge());
                } else {
                    self.life.hint.notify_one();
                }
            }
            Notice::Lost => {
                self.life.control.send_replace(None);
                self.prepared = None;
            }
        }
    }

    /// The runs in memory that a notification may be about.
    fn named(&self, payload: &str) -> impl Iterator<Item = Arc<Run>> + use<> {
        let tags: HashSet<u16> = id::tags(payload).collect();
        self.life.all_runs().into_iter().filter(move |run| tags.contains(&id::tag(&run.id)))
    }
}

/// Beats until the worker stops or is declared dead.
pub(crate) async fn control_loop(control: &mut Control<'_>) -> End {
    let engine = control.engine.clone();
    let mut next_beat = Instant::now();
    let mut next_timer = None;
    loop {
        let is_timer = next_timer.is_some_and(|timer| timer < next_beat);
        let mut beats = !is_timer;
        tokio::select! {
            () = engine.stop.cancelled() => return End::Stopped,
            () = engine.rig.killed() => return End::Killed,
            () = engine.rig.beat() => beats = true,
            Some(notice) = control.notices.recv() => {
                control.notice(&notice);
                let mut is_lost = matches!(notice, Notice::Lost);
                // What came meanwhile is covered by the same look.
                while let Ok(more) = control.notices.try_recv() {
                    control.notice(&more);
                    is_lost |= matches!(more, Notice::Lost);
                }
                if is_lost || !control.suspects.is_empty() && control.look_into().await.is_err() {
                    next_beat = Instant::now();
                }
                continue;
            }
            () = tokio::time::sleep_until(next_timer.filter(|_| is_timer).unwrap_or(next_beat)) => {}
        }
        let done = if beats { control.beat().await } else { control.fire_timers().await };
        match done {
            Ok(true) => {
                let now = Instant::now();
                if beats {
                    next_beat = now + control.next_beat.unwrap_or(BEAT).clamp(keeper::TIMER_PAUSE, BEAT);
                }
                next_timer = control.keeper.next_timer().map(|timer| now + timer);
            }
            Ok(false) => return End::Fenced,
            Err(error) => {
                control.life.control.send_replace(None);
                control.prepared = None;
                tokio::select! {
                    () = control.link.recover(&error) => {}
                    () = engine.stop.cancelled() => return End::Stopped,
                }
                next_beat = Instant::now();
                next_timer = None;
            }
        }
    }
}
