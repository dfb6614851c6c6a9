//! The claimer: one a process. Claims as much as there is room for, and sleeps, visibly, when there is nothing.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::dispatcher::Dispatcher;
use super::shares::Shares;
use super::{Engine, Life, clock, failpoint};
use crate::error::Result;
use crate::store::claim::{self, Claimed, ClaimedRun, Lane};
use crate::store::connect::{Link, Session, Target};
use crate::store::types::Xid8;
use crate::store::worker;
use crate::telemetry;

/// Runs in one claim: a bigger batch is no cheaper by the run and holds its locks longer.
const BATCH: usize = 500;
/// Bytes of inputs and records in memory above which nothing is claimed until some runs have ended, however few they are.
const BYTES_MAX: usize = 128 * 1024 * 1024;
/// What one claim is to bring at most, as far as the ones before tell; of the first nothing is known, and it is a small one.
const CLAIM_BYTES: usize = 16 * 1024 * 1024;
const FIRST_BYTES: usize = CLAIM_BYTES / 64;
/// Lanes that a claimer keeps marks for; beyond it those are forgotten that are empty, and found anew when something comes.
const LANES_MAX: usize = 1000;
/// Pauses between claims that find nothing, before the claimer goes to sleep.
const PAUSES: [u64; 6] = [1, 2, 3, 4, 5, 5];
/// How long until new lanes are looked for again while the known ones keep the claimer busy: so many times what the last look took, for
/// where queues and workflows are many it takes its time, and in these bounds.
const DISCOVER_TIMES: u32 = 20;
const DISCOVER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a suspect waits for the worker to be empty, while nothing is claimed, before it begins all the same: one
/// long run must not keep a worker from all others.
const SUSPENSE: Duration = Duration::from_secs(5);
/// How long a suspect has the worker to itself: what kills its worker mostly does so soon.
const SOLITUDE: Duration = Duration::from_secs(30);
/// Between two looks whether what a suspect waits for, or what waits for it, only waits itself.
const GLANCE: Duration = Duration::from_millis(100);
/// The sweep below the marks looks at so many lanes, once a second, and in each at so many places: as many as it can in this time, where the
/// dead stand that cannot be vacuumed, for nothing is claimed meanwhile.
const SWEEP_LANES: usize = 16;
const SWEEP_STEPS: std::ops::RangeInclusive<i64> = 1000..=50_000;
const SWEEP_TIME: Duration = Duration::from_millis(3);

/// What the claimer knows of the lanes.
#[derive(Debug)]
struct Claimer {
    engine: Arc<Engine>,
    life: Arc<Life>,
    link: Link,
    lanes: Vec<Lane>,
    /// Transactions that were in progress at the last claim: what they commit may lie below the marks.
    late: Vec<Xid8>,
    /// The last claim took rows that wake, and nothing came of it.
    in_vain: bool,
    /// When new lanes are looked for next; none as long as they never were.
    discover_at: Option<Instant>,
    /// The managed queues.
    dispatchers: Vec<Dispatcher>,
    /// Which source of runs comes first in the next round, so that one that never runs dry does not keep room from others.
    turn: usize,
    /// Where queues have weights, they say it.
    shares: Option<Shares>,
    /// The bytes of a run, as of those that were claimed lately.
    run_bytes: usize,
    /// Since when suspects have waited to be alone.
    suspected: Option<Instant>,
    /// The suspect that runs alone, and since when.
    alone: Option<(Uuid, Instant)>,
    /// The session by which the marks were made. They do not outlive it: a server that was restarted or promoted may
    /// give out sequence numbers again.
    marked_by: Option<u64>,
    /// The session on which the sleep locks are held.
    asleep_on: Option<u64>,
    /// A hint ended the last nap, or it has only just shown itself: who enqueued before told nobody.
    was_told: bool,
    swept: Instant,
    sweep_step: i64,
}

/// Claims until the life is over.
pub(crate) async fn claim_loop(engine: Arc<Engine>, life: Arc<Life>) {
    let link = Link::new(Target::clone(&engine.target), "ambo worker claims");
    let over = life.over.clone();
    let mut claimer = Claimer {
        shares: engine.weights.as_deref().map(Shares::new),
        engine,
        life,
        link,
        lanes: Vec::new(),
        late: Vec::new(),
        in_vain: false,
        discover_at: None,
        dispatchers: Vec::new(),
        turn: 0,
        run_bytes: FIRST_BYTES,
        suspected: None,
        alone: None,
        marked_by: None,
        asleep_on: None,
        was_told: false,
        swept: Instant::now(),
        sweep_step: *SWEEP_STEPS.start(),
    };
    let looped = async {
        let mut empty = 0usize;
        loop {
            claimer.await_room().await;
            match claimer.round(empty).await {
                Ok(found) => {
                    claimer.link.recovered();
                    empty = if found { 0 } else { empty + 1 };
                }
                Err(error) => {
                    // The answer may be lost and the claim not: the control loop compares. All marks are doubtful.
                    claimer.life.suspicion.store(true, Ordering::Release);
                    claimer.unlearn();
                    claimer.asleep_on = None;
                    claimer.link.recover(&error).await;
                }
            }
        }
    };
    tokio::select! {
        () = over.cancelled() => {}
        () = looped => {}
    }
    claimer.wake_up().await;
}

impl Claimer {
    /// Waits until the worker may claim: not draining, and room for a run.
    async fn await_room(&mut self) {
        loop {
            if self.engine.is_draining() {
                self.wake_up().await;
                std::future::pending::<()>().await;
            }
            let deadline = if let Some((suspect, since)) = self.alone
                && since.elapsed() < SOLITUDE
                && self.life.run(&suspect).is_some_and(|run| run.rests_for().is_none())
            {
                Some(since + SOLITUDE)
            } else {
                if let Some(suspect) = self.next_suspect() {
                    tracing::warn!(run = %suspect.id, workflow = suspect.workflow, losses = suspect.losses,
                        "workers died with this run; it runs alone");
                    self.begin(&[suspect.id]).await;
                    self.alone = Some((suspect.id, Instant::now()));
                    self.life.adopt(&self.engine, suspect);
                    continue;
                }
                let has_room =
                    self.life.in_flight() < self.engine.max_in_flight && self.life.bytes() < BYTES_MAX;
                if has_room && self.suspected.is_none() {
                    return;
                }
                self.suspected.map(|since| since + SUSPENSE)
            };
            let drain = self.engine.drain_begun();
            tokio::select! {
                () = self.life.room.notified() => {}
                () = drain => {}
                () = tokio::time::sleep_until(glance(deadline)), if deadline.is_some() => {}
            }
        }
    }

    /// A suspect begins when nothing else is at work here, or when it has waited long enough for that.
    fn next_suspect(&mut self) -> Option<ClaimedRun> {
        let mut suspects = self.life.suspects();
        if suspects.is_empty() {
            self.suspected = None;
            return None;
        }
        let since = *self.suspected.get_or_insert_with(Instant::now);
        if self.life.is_at_work() && since.elapsed() < SUSPENSE {
            return None;
        }
        self.suspected = None;
        suspects.pop_front()
    }

    /// Forgets all that it knows of lanes, and of the slots of managed queues.
    fn unlearn(&mut self) {
        self.lanes.clear();
        self.late.clear();
        for known in self.dispatchers.drain(..) {
            self.life.slots.recount(&known.queue);
        }
    }

    /// One round of claims, and the pause that follows from it. Says whether it found something.
    async fn round(&mut self, empty: usize) -> Result<bool> {
        let session = self.session_without_predecessors().await?;
        if self.marked_by.replace(session) != Some(session) {
            self.unlearn();
        }
        let places = self.engine.max_in_flight.saturating_sub(self.life.in_flight());
        let room = places.min(BATCH).min((CLAIM_BYTES / self.run_bytes).max(1));
        let found = self.claim_all(room, empty).await?;
        if found >= room.min(BATCH / 2) {
            return Ok(true);
        }
        if found > 0 {
            if self.asleep_on.is_some() && found > 8 {
                self.wake_up().await;
            }
            // Let some gather: a claim costs the same for one run as for many.
            self.pause(Duration::from_millis(1)).await;
            return Ok(true);
        }
        match PAUSES.get(empty) {
            Some(ms) if self.asleep_on.is_none() => self.pause(Duration::from_millis(*ms)).await,
            _ => self.sleep(empty).await?,
        }
        Ok(false)
    }

    /// The number of the session, once no backend of an earlier one is at work: what such a one was asked to claim it may
    /// claim until it is gone, long after the answer was given up. Only then does comparing find all of it.
    async fn session_without_predecessors(&mut self) -> Result<u64> {
        self.link.session().await?;
        if self.link.has_predecessors() {
            self.link.await_predecessors().await?;
            self.life.suspicion.store(true, Ordering::Release);
        }
        Ok(self.link.session().await?.number)
    }

    /// Claims from all queues: the plain ones together, each managed one by itself; another one first each time, or, where
    /// queues have weights, the one that is due.
    async fn claim_all(&mut self, room: usize, empty: usize) -> Result<usize> {
        let managed = self.life.slots.managed();
        self.dispatchers.retain(|known| managed.contains(&known.queue));
        for queue in &managed {
            if !self.dispatchers.iter().any(|known| known.queue == *queue) {
                self.dispatchers.push(Dispatcher::new(queue.clone()));
            }
        }
        let sources = self.dispatchers.len() + 1;
        self.turn = (self.turn + 1) % sources;
        let mut found = 0;
        self.life.slots.blocked.store(false, Ordering::Release);
        let mut order: Vec<usize> = (0..sources).map(|n| (self.turn + n) % sources).collect();
        if let Some(shares) = &self.shares {
            let due = |source: usize| match source.checked_sub(1) {
                Some(nth) => shares.due(&self.dispatchers[nth].queue),
                None => shares.first_due(self.plain_queues()),
            };
            order.sort_by(|a, b| due(*a).total_cmp(&due(*b)));
        }
        for source in order {
            let left = room.saturating_sub(found);
            if left == 0 {
                break;
            }
            found += match source.checked_sub(1) {
                Some(nth) => self.dispatch(nth, left).await?,
                None if self.dispatchers.len() == self.engine.registration.queues.len() => 0,
                None => self.claim_plain(left, empty).await?,
            };
        }
        Ok(found)
    }

    /// The queues that are not managed.
    fn plain_queues(&self) -> impl Iterator<Item = &str> + Clone {
        let is_managed = |queue: &str| self.dispatchers.iter().any(|managed| *managed.queue == *queue);
        self.engine.registration.queues.iter().map(String::as_str).filter(move |queue| !is_managed(queue))
    }

    async fn claim_plain(&mut self, room: usize, empty: usize) -> Result<usize> {
        // While there is work, new lanes are looked for now and then; when there is none, after every look.
        if self.discover_at.is_none_or(|at| empty == 0 && at < Instant::now()) {
            self.discover().await?;
        }
        // After a nap that nobody ended: what is new was mostly told of, so that one statement will do, and for lanes every other time.
        let is_idle = self.asleep_on.is_some() && !self.was_told && self.late.is_empty();
        let mut found = if is_idle && self.lanes.is_empty() { 0 } else { self.claim(room).await? };
        let looks = !is_idle || self.lanes.is_empty() || empty.is_multiple_of(2);
        if found == 0 && looks && self.discover().await? {
            found = self.claim(room).await?;
        }
        Ok(found)
    }

    /// A claim from the nth managed queue, and another one if that only learned of lanes.
    async fn dispatch(&mut self, nth: usize, room: usize) -> Result<usize> {
        let schema = self.link.schema().clone();
        let session = self.link.session().await?.clone();
        let bases = self.engine.registration.lanes();
        let life = self.life.clone();
        for _ in 0..2 {
            let _under_way = life.under_way.begin();
            failpoint::reach("claim-before");
            let started = std::time::Instant::now();
            let dispatched = self.dispatchers[nth].claim(&session, &schema, &self.life, room, &bases).await?;
            failpoint::reach("claim-answered");
            telemetry::claimed(dispatched.runs.len(), started.elapsed());
            if let Some(shares) = &mut self.shares {
                let claimed = dispatched.runs.len();
                shares.served(&self.dispatchers[nth].queue, claimed, claimed < room);
            }
            let found = self.take_in(dispatched.runs, &dispatched.nudged).await;
            if found > 0 || !dispatched.arrived {
                return Ok(found);
            }
        }
        Ok(0)
    }

    /// What has losses counts for one that has begun from here on. If that cannot be told it begins all the same: a death that
    /// is not counted does no harm.
    async fn begin(&mut self, runs: &[Uuid]) {
        let schema = self.link.schema().clone();
        let told = match self.link.session().await {
            Ok(session) => claim::begin_runs(session, &schema, self.life.worker, runs, true).await,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::warn!(%error, runs = runs.len(), "could not say that runs begin which workers died with");
        }
    }

    /// Begins what was claimed, and tells runs in memory for which something came. Answers how much that is.
    async fn take_in(&mut self, runs: Vec<ClaimedRun>, nudged: &[Uuid]) -> usize {
        for run in nudged.iter().filter_map(|run| self.life.run(run)) {
            run.nudge();
        }
        let found = runs.len().max(usize::from(!nudged.is_empty()));
        if !runs.is_empty() {
            let bytes: usize = runs.iter().map(ClaimedRun::bytes).sum();
            self.run_bytes = (bytes / runs.len()).max(self.run_bytes / 2).max(1);
        }
        let doubtful = |run: &&ClaimedRun| run.losses > 0 && !run.is_suspect();
        let doubtful: Vec<Uuid> = runs.iter().filter(doubtful).map(|run| run.id).collect();
        if !doubtful.is_empty() {
            self.begin(&doubtful).await;
        }
        for run in runs {
            if run.is_suspect() {
                self.life.suspects().push_back(run);
            } else {
                self.life.adopt(&self.engine, run);
            }
        }
        found
    }

    async fn claim(&mut self, room: usize) -> Result<usize> {
        if room == 0 {
            return Ok(0);
        }
        let life = self.life.clone();
        let _under_way = life.under_way.begin();
        failpoint::reach("claim-before");
        let started = std::time::Instant::now();
        let limit = i32::try_from(room).unwrap_or(i32::MAX);
        let schema = self.link.schema().clone();
        let session = self.link.session().await?.clone();
        self.sort_lanes();
        let Claimed { runs, late, nudged, in_vain } =
            claim::claim(&session, &schema, self.life.worker, limit, &mut self.lanes, &self.late).await?;
        failpoint::reach("claim-answered");
        self.late = late;
        self.in_vain = in_vain;
        telemetry::claimed(runs.len(), started.elapsed());
        self.count_shares(&runs, room);
        let found = self.take_in(runs, &nudged).await;
        if self.swept.elapsed() > Duration::from_secs(1) {
            self.sweep(&session).await?;
        }
        Ok(found)
    }

    /// Most urgent first, and of these what goes on; equals take turns. Where queues have weights, the queue that is due
    /// comes first.
    fn sort_lanes(&mut self) {
        take_turns(&mut self.lanes, !self.in_vain);
        if let Some(shares) = &self.shares {
            let due = |lane: &Lane| shares.due(&lane.queue);
            self.lanes.sort_by(|a, b| due(a).total_cmp(&due(b)).then_with(|| a.queue.cmp(&b.queue)));
        }
    }

    /// What the plain queues gave, in the order in which they were asked. All but the last that gave something gave all they had.
    fn count_shares(&mut self, runs: &[ClaimedRun], room: usize) {
        let Some(shares) = &mut self.shares else { return };
        let mut queues: Vec<&str> = self.lanes.iter().map(|lane| lane.queue.as_str()).collect();
        queues.dedup();
        let counts: Vec<usize> =
            queues.iter().map(|queue| runs.iter().filter(|run| run.queue == *queue).count()).collect();
        let last = if runs.len() < room { None } else { counts.iter().rposition(|count| *count > 0) };
        for (n, (queue, count)) in queues.into_iter().zip(counts).enumerate() {
            if last.is_none_or(|last| n <= last) {
                shares.served(queue, count, last != Some(n));
            }
        }
    }

    /// Looks for lanes that are not known yet; says whether there are any.
    async fn discover(&mut self) -> Result<bool> {
        let schema = self.link.schema().clone();
        let session = self.link.session().await?.clone();
        let registration = &self.engine.registration;
        let began = Instant::now();
        let found = claim::find_lanes(
            &session,
            &schema,
            &registration.queues,
            &registration.plain_lanes(),
            &self.lanes,
        )
        .await?;
        let is_new = !found.is_empty();
        self.lanes.extend(found);
        forget_excess(&mut self.lanes, LANES_MAX);
        let pause = (began.elapsed() * DISCOVER_TIMES).clamp(DISCOVER.0, DISCOVER.1);
        self.discover_at = Some(Instant::now() + pause);
        Ok(is_new)
    }

    /// Waits a little; the drain ends it, and room for what there was none.
    async fn pause(&self, span: Duration) {
        let drain = self.engine.drain_begun();
        let blocked = self.life.slots.blocked.load(Ordering::Acquire);
        tokio::select! {
            () = tokio::time::sleep(span) => {}
            () = drain => {}
            () = self.life.hint.notified(), if blocked => {}
        }
    }

    /// Sleeps until a hint or the poll. The first time it only shows itself and returns: whoever enqueued before
    /// that did not see a sleeper, so there is one more claim, and short pauses while those that were in
    /// progress then have not ended.
    async fn sleep(&mut self, empty: usize) -> Result<()> {
        let session = self.life.control.borrow().clone();
        if let Some(session) = session
            && !self.engine.target.pooled
            && self.asleep_on != Some(session.number)
        {
            worker::show_asleep(&session, self.link.schema(), "sleep", true).await?;
            self.asleep_on = Some(session.number);
            self.was_told = true;
            return Ok(());
        }
        let nap = if self.asleep_on.is_none() {
            // Nobody will tell us: behind a pooler, or while the control connection is cut.
            Duration::from_millis(250).min(self.engine.poll)
        } else if self.late.is_empty() && self.lanes.iter().all(|lane| lane.held.is_empty()) {
            self.engine.poll
        } else {
            Duration::from_millis(5u64 << empty.saturating_sub(PAUSES.len()).min(8)).min(self.engine.poll)
        };
        let patience = self.dispatchers.iter().filter_map(Dispatcher::patience).min();
        let nap = patience.map_or(nap, |patience| patience.min(nap));
        let drain = self.engine.drain_begun();
        self.was_told = false;
        tokio::select! {
            () = self.life.hint.notified() => self.was_told = true,
            () = tokio::time::sleep(nap.mul_f64(0.75 + 0.5 * clock::jitter())) => {}
            () = drain => {}
        }
        Ok(())
    }

    /// Gives the sleep locks back: enqueuers need not notify any more.
    async fn wake_up(&mut self) {
        let Some(number) = self.asleep_on.take() else { return };
        let session = self.life.control.borrow().clone();
        if let Some(session) = session
            && session.number == number
        {
            // If it fails the connection is gone, and the locks with it.
            let _ = worker::show_asleep(&session, self.link.schema(), "sleep", false).await;
        }
    }

    /// The safety net: a bounded look below the marks, a piece a second, of the lanes that were looked at longest ago. That it finds
    /// something is a bug.
    async fn sweep(&mut self, session: &Session) -> Result<()> {
        self.swept = Instant::now();
        let schema = self.link.schema().clone();
        let mut turns: Vec<&mut Lane> = self.lanes.iter_mut().collect();
        turns.sort_by_key(|lane| lane.swept.1);
        for lane in turns.into_iter().take(SWEEP_LANES) {
            let began = Instant::now();
            let upto = lane.low.min(lane.swept.0 + self.sweep_step);
            let found = claim::sweep(session, &schema, lane, lane.swept.0, upto, &self.late).await?;
            let step = if began.elapsed() > SWEEP_TIME { self.sweep_step / 2 } else { self.sweep_step * 2 };
            self.sweep_step = step.clamp(*SWEEP_STEPS.start(), *SWEEP_STEPS.end());
            if let Some(seq) = found {
                tracing::error!(
                    queue = lane.queue,
                    workflow = lane.workflow,
                    seq,
                    "a run stood below the mark"
                );
                telemetry::sweep_found();
                lane.low = seq - 1;
            }
            lane.swept = (if upto >= lane.low { 0 } else { upto }, Some(began));
        }
        Ok(())
    }
}

/// When to look again at the latest.
fn glance(deadline: Option<Instant>) -> Instant {
    let soon = Instant::now() + GLANCE;
    deadline.map_or(soon, |deadline| deadline.min(soon))
}

/// Forgets lanes beyond so many: first those with the highest marks, for that of an empty lane is the end of the sequence, and that
/// of any other stands below what waits there.
fn forget_excess(lanes: &mut Vec<Lane>, most: usize) {
    let excess = lanes.len().saturating_sub(most);
    if excess > 0 {
        lanes.sort_by_key(|lane| Reverse(lane.low));
        lanes.drain(..excess);
    }
}

/// Sorts lanes by what comes first, and among equals has another one come first each time. What goes on is first, but after a claim
/// that woke nobody, for a row that goes back each time would take a worker's only place for ever.
fn take_turns(lanes: &mut [Lane], goes_on_first: bool) {
    let class = |lane: &Lane| (lane.priority, lane.goes_on() != goes_on_first);
    lanes.sort_by_key(class);
    // Not all of them as a whole: where there are several classes, those of one would keep their order for ever.
    for equals in lanes.chunk_by_mut(|a, b| class(a) == class(b)) {
        equals.rotate_left(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::{GOES_ON, PIN};

    fn lane(workflow: &str, priority: i16) -> Lane {
        Lane::new("q".to_owned(), workflow.to_owned(), priority)
    }

    #[test]
    fn of_too_many_lanes_the_empty_ones_are_forgotten() {
        let marks =
            [("urgent", -9, 17), ("empty", -5, 100), ("new", 0, 0), ("late", 7, 60), ("idle", 8, 100)];
        let mut lanes: Vec<Lane> =
            marks.iter().map(|(name, priority, low)| Lane { low: *low, ..lane(name, *priority) }).collect();
        forget_excess(&mut lanes, 5);
        assert_eq!(lanes.len(), 5);
        forget_excess(&mut lanes, 3);
        take_turns(&mut lanes, true);
        assert!(lanes.iter().map(|lane| lane.workflow.as_str()).eq(["urgent", "new", "late"]));
    }

    #[test]
    fn each_of_equal_lanes_comes_first_in_its_turn() {
        let goes_on = format!("a{PIN}{PIN}{PIN}{GOES_ON}");
        let mut lanes =
            vec![lane("late", 7), lane("b", 0), lane("a", 0), lane(&goes_on, 0), lane("urgent", -1)];
        let mut first = Vec::new();
        for _ in 0..4 {
            take_turns(&mut lanes, true);
            let order: Vec<&str> = lanes.iter().map(|lane| lane.workflow.as_str()).collect();
            assert_eq!((order[0], order[1], order[4]), ("urgent", goes_on.as_str(), "late"));
            first.push(order[2].to_owned());
        }
        assert_eq!(first[0], first[2]);
        assert_eq!(first[1], first[3]);
        assert_ne!(first[0], first[1]);
        take_turns(&mut lanes, false);
        let order: Vec<&str> = lanes.iter().map(|lane| lane.workflow.as_str()).collect();
        assert_eq!((order[0], order[3], order[4]), ("urgent", goes_on.as_str(), "late"));
    }
}
