//! The keeper's duties: bury the dead, fire timers, tick schedules, keep partitions. They fall to the worker whose heartbeat
//! renewed the keepership; they are idempotent, so that two who both believe to be keeper do no harm.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::journal::LAST_FLUSH;
use crate::error::Result;
use crate::schedule::Timing;
use crate::store::connect::{Session, Target};
use crate::store::schedule::{self, Due};
use crate::store::schema::Schema;
use crate::store::timer;
use crate::store::worker::{self, Graces, House, Pin, Pulse, Walk};
use crate::telemetry;

/// Claims moved in one transaction: some milliseconds under a dead worker's fence lock.
const BURY_BATCH: i32 = 5000;
/// For one burial between two heartbeats: what has to be walked over for it has no bound.
const BURY_TIME: Duration = Duration::from_millis(300);
/// Timers fired, or runs ended, in one transaction.
const TIMER_BATCH: i32 = 5000;
/// Between two looks at timers, however many are due: a moment for the heartbeat. And between two heartbeats.
pub(crate) const TIMER_PAUSE: Duration = Duration::from_millis(5);
/// Ticks of one schedule between two heartbeats.
const TICK_ROUNDS: u32 = 20;
/// Between looks at the versions that runs are pinned to.
const PINS: Duration = Duration::from_secs(5);
/// Between looks at runs that were to start by a time, in microseconds of the database's clock, where the last one found none: who claims such a
/// run finds it out too.
const EXPIRY_US: i64 = 5_000_000;
/// Between two looks at cancelled runs that nobody has in execution when their grace is over. One is ended that stands where it stood at
/// the look before: who is about to claim it, as when its worker has just been buried, takes less.
const GRACES: Duration = Duration::from_secs(2);
/// For what they end between two heartbeats.
const GRACES_TIME: Duration = Duration::from_millis(300);
/// Between looks from the beginning, for a cancel that committed when its own grace was over.
const GRACES_ALL: Duration = Duration::from_secs(60);
/// Between looks at partitions and keys.
const HOUSE: Duration = Duration::from_secs(60);
/// The same where something was left to do. Where a lock was not to be had it is doubled each time, up to the most, since each try
/// may keep others from a table for 50 ms.
const HOUSE_AGAIN: Duration = Duration::from_secs(2);
const HOUSE_BUSY_MAX: Duration = Duration::from_secs(64);

/// What the keeper remembers between heartbeats.
#[derive(Debug, Default)]
pub(crate) struct Duties {
    /// When partitions and keys were last looked at, and how long until the next look.
    kept_house: Option<(Instant, Duration)>,
    /// A look that is under way.
    house: Option<Chores>,
    /// Where burials go on that had to make way for a heartbeat.
    burials: HashMap<i64, Walk>,
    /// Where the looks for due timers go on, and how long until the next.
    timer_mark: Option<String>,
    next_timer: Option<Duration>,
    /// Where the looks for runs that were to start by a time go on.
    expiry_mark: Option<String>,
    /// When the last one was that found none.
    none_expired_us: Option<i64>,
    /// Where the looks for cancels whose grace is over go on, when the next one may be, and when one last began at the beginning.
    graces: Graces,
    next_graces: Option<Instant>,
    all_graces: Option<Instant>,
    /// When the versions that runs are pinned to were last looked at, and since when those have no worker that have none.
    looked_at_pins: Option<Instant>,
    orphaned: HashMap<String, Instant>,
}

/// Chores under way; dropped, they end soon.
#[derive(Debug)]
struct Chores {
    task: JoinHandle<Result<House>>,
    stop: DropGuard,
}

impl Duties {
    /// Answers whether runs became ready: their notification does not reach the session that sends it, which cannot see
    /// in the locks of the sleepers that it is one of them.
    pub(crate) async fn perform(
        &mut self,
        session: &Session,
        target: &Target,
        keeper: i64,
        pulse: &Pulse,
    ) -> Result<bool> {
        let (mut made_ready, schema) = (false, &target.schema);
        self.burials.retain(|worker, _| pulse.dead.contains(worker));
        for dead in &pulse.dead {
            made_ready |= self.bury(session, schema, keeper, *dead).await?;
        }
        self.timer_mark.clone_from(&pulse.timer_mark);
        made_ready |= self.fire_timers(session, schema).await?;
        self.expire_runs(session, schema, pulse.now_us).await?;
        if pulse.graces_over {
            self.end_unclaimed(session, schema).await?;
        } else {
            self.graces.after = Timestamp::from_microsecond(pulse.now_us).ok();
        }
        if pulse.schedules_due {
            made_ready |= tick_schedules(session, schema).await?;
        }
        if self.looked_at_pins.is_none_or(|at| at.elapsed() > PINS) {
            made_ready |= self.release_pins(session, schema).await?;
            self.looked_at_pins = Some(Instant::now());
        }
        self.keep_house(target).await;
        Ok(made_ready)
    }

    /// Makes due timers ready; answers whether there were any.
    pub(crate) async fn fire_timers(&mut self, session: &Session, schema: &Schema) -> Result<bool> {
        let fired = timer::fire(session, schema, TIMER_BATCH, self.timer_mark.as_deref()).await?;
        self.timer_mark = Some(fired.mark);
        self.next_timer = fired.wait;
        Ok(fired.count > 0)
    }

    /// Ends runs whose time to start is over.
    async fn expire_runs(&mut self, session: &Session, schema: &Schema, now_us: i64) -> Result<()> {
        if self.none_expired_us.is_some_and(|at| (0..EXPIRY_US).contains(&(now_us - at))) {
            return Ok(());
        }
        self.none_expired_us = Some(now_us);
        loop {
            let (expired, mark, more) =
                worker::expire_runs(session, schema, TIMER_BATCH, self.expiry_mark.as_deref()).await?;
            self.expiry_mark = Some(mark);
            if expired > 0 {
                self.none_expired_us = None;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Ends cancelled runs whose grace is over and that nobody has in execution.
    async fn end_unclaimed(&mut self, session: &Session, schema: &Schema) -> Result<()> {
        let began = Instant::now();
        if self.next_graces.is_some_and(|at| began < at) {
            return Ok(());
        }
        loop {
            let (ended, more) = worker::end_unclaimed(session, schema, TIMER_BATCH, &mut self.graces).await?;
            if ended > 0 {
                tracing::warn!(
                    runs = ended,
                    "nobody had cancelled runs in execution when their grace was over; they are dead"
                );
            }
            if !more {
                self.next_graces = Some(Instant::now() + GRACES);
                return Ok(());
            }
            if began.elapsed() > GRACES_TIME {
                return Ok(());
            }
        }
    }

    /// On a connection of its own: before a partition is dropped all that is ready is walked over, dead or not, and the heartbeat
    /// must not wait for it.
    async fn keep_house(&mut self, target: &Target) {
        let Some(house) = self.house.take_if(|house| house.task.is_finished()) else {
            if self.house.is_none() && self.kept_house.is_none_or(|(at, pause)| at.elapsed() > pause) {
                let stop = CancellationToken::new();
                let task = tokio::spawn(do_chores(target.clone(), stop.clone()));
                self.house = Some(Chores { task, stop: stop.drop_guard() });
            }
            return;
        };
        let before = self.kept_house.map_or(HOUSE, |(_, pause)| pause);
        let pause = match house.task.await {
            Ok(Ok(House::InOrder)) => HOUSE,
            Ok(Ok(House::More)) => HOUSE_AGAIN,
            Ok(Ok(House::Busy)) if before == HOUSE => HOUSE_AGAIN,
            Ok(Ok(House::Busy)) => HOUSE_BUSY_MAX.min(2 * before),
            Ok(Err(error)) if error.is_unavailable() => HOUSE_AGAIN,
            // A disk that is full, a right that was taken away.
            Ok(Err(error)) => {
                tracing::error!(%error, "the keeper could not do its chores");
                HOUSE
            }
            Err(error) => {
                tracing::error!(%error, "the keeper's chores came to an end");
                HOUSE
            }
        };
        self.kept_house = Some((Instant::now(), pause));
    }

    /// Answers whether it left runs to be claimed.
    async fn bury(&mut self, session: &Session, schema: &Schema, keeper: i64, dead: i64) -> Result<bool> {
        let (mut recovered, began) = (false, Instant::now());
        let mut walk = self.burials.remove(&dead).unwrap_or_default();
        loop {
            let burial = worker::bury(session, schema, keeper, dead, BURY_BATCH, walk).await?;
            if burial.held {
                tracing::error!(
                    worker = dead,
                    "a worker has died and a connection of it still holds its lock, so that its runs cannot be given to others; \
                     the owner of the schema may not end it: grant it pg_signal_backend, or end the process of that worker"
                );
            }
            recovered |= burial.recovered > 0;
            if burial.recovered + burial.dead_lettered > 0 || burial.buried {
                telemetry::recovered(burial.recovered, burial.dead_lettered);
                tracing::warn!(
                    worker = dead,
                    recovered = burial.recovered,
                    dead_lettered = burial.dead_lettered,
                    "a worker died; its runs are given to others"
                );
            }
            // What is left at the end is locked by a commit under way: the next heartbeat tries again.
            let Some(next) = burial.next else { return Ok(recovered) };
            if began.elapsed() > BURY_TIME {
                self.burials.insert(dead, next);
                return Ok(recovered);
            }
            walk = next;
        }
    }

    /// Whether a burial goes on after the next heartbeat.
    pub(crate) fn is_burying(&self) -> bool {
        !self.burials.is_empty()
    }

    /// The duties fell to another worker.
    pub(crate) fn retire(&mut self) {
        self.burials.clear();
        self.expiry_mark = None;
        self.none_expired_us = None;
        self.timer_mark = None;
        self.next_timer = None;
        self.graces = Graces::default();
    }

    /// The worker leaves, and with it the chores: their locks are gone when this answers, or the server does not.
    pub(crate) async fn stop(&mut self) {
        if let Some(Chores { task, stop }) = self.house.take() {
            drop(stop);
            let _ = tokio::time::timeout(LAST_FLUSH, task).await;
        }
    }

    /// Gives runs to any worker whose version has had none for long enough.
    async fn release_pins(&mut self, session: &Session, schema: &Schema) -> Result<bool> {
        let (alive, waited_for): (Vec<Pin>, Vec<Pin>) =
            worker::pins(session, schema).await?.into_iter().partition(|pin| pin.is_alive);
        let lives = |version: &String| alive.iter().any(|pin| pin.version == *version);
        self.orphaned.retain(|version, _| !lives(version));
        let mut gone = Vec::new();
        for Pin { version, grace, .. } in waited_for.into_iter().filter(|pin| !lives(&pin.version)) {
            let since = *self.orphaned.entry(version.clone()).or_insert_with(Instant::now);
            if since.elapsed() >= grace {
                gone.push(version);
            }
        }
        let mut released = 0;
        while !gone.is_empty() {
            let count = worker::release_pins(session, schema, &gone, TIMER_BATCH).await?;
            released += count;
            if count < TIMER_BATCH {
                break;
            }
        }
        if released > 0 {
            tracing::warn!(versions = ?gone, runs = released, "no worker of these versions is left; their runs go to others");
        }
        Ok(released > 0)
    }

    /// For the heartbeat, with which the next keeper gets it.
    pub(crate) fn timer_mark(&self) -> Option<&str> {
        self.timer_mark.as_deref()
    }

    /// For the heartbeat: from when on it looks for the ends of graces.
    pub(crate) fn graces_after(&mut self) -> Option<Timestamp> {
        if self.all_graces.is_none_or(|at| at.elapsed() > GRACES_ALL) {
            self.all_graces = Some(Instant::now());
            self.graces.after = None;
        }
        self.graces.after
    }

    /// How long until the next look at timers, where one is due soon.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.next_timer.map(|timer| timer.max(TIMER_PAUSE))
    }
}

async fn do_chores(target: Target, stop: CancellationToken) -> Result<House> {
    let session = target.open("ambo worker chores", None).await?;
    tokio::select! {
        house = worker::keep_house(&session, &target.schema) => house,
        () = stop.cancelled() => {
            session.cancel(&target).await?;
            // Its turn comes when what was cancelled has ended.
            session.batch("select 1").await?;
            Ok(House::More)
        }
    }
}

/// Answers whether runs were enqueued. What a schedule does wrong is its own affair: the others go on.
async fn tick_schedules(session: &Session, schema: &Schema) -> Result<bool> {
    let mut ran = false;
    // One tick of each at a time; what was missed is made up for in a few rounds.
    for _ in 0..TICK_ROUNDS {
        let mut moved = false;
        for Due { name, timing, tick, horizon } in schedule::due(session, schema).await? {
            // With a tick that is not made up for go all others of that time.
            let from = tick.max(horizon);
            let Some(next) = timing.as_ref().ok().and_then(|timing| timing.next(from, tick)) else {
                let reason = Timing::fault(&timing, from, tick).unwrap_or_default();
                tracing::error!(schedule = name, reason, "this schedule has no next time; it is paused");
                schedule::stop(session, schema, &name, tick, &reason).await?;
                continue;
            };
            let did = match schedule::tick(session, schema, &name, tick, next).await {
                Ok(did) => did,
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => {
                    tracing::warn!(schedule = name, %tick, %error, "the tick could not be made; it is tried again");
                    continue;
                }
            };
            tracing::debug!(schedule = name, %tick, did, "a tick");
            if did == "refused" {
                tracing::warn!(schedule = name, %tick, "its run was refused; `ambo schedule list` says why");
            }
            ran |= did == "ran";
            moved |= !matches!(did.as_str(), "waits" | "gone");
        }
        if !moved {
            break;
        }
    }
    Ok(ran)
}
