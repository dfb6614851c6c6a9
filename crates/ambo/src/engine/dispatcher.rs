//! What this worker knows of one managed queue, and its claims from it. See `sql/functions/claim_queue.sql`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Life;
use super::slots::Slot;
use super::turns::{Turns, group};
use crate::error::Result;
use crate::store::claim::ClaimedRun;
use crate::store::claim_queue::{self, Answer, Choice, Question};
use crate::store::connect::Session;
use crate::store::schema::Schema;
use crate::telemetry;

/// The count of what was claimed while nothing was counted: to the next limit it is somebody else's.
const NOT_COUNTED: u64 = u64::MAX;
/// Lanes that are tried in one claim: more where few of those that were tried could give something, fewer where most gave nothing for
/// want of room.
const LANES: std::ops::RangeInclusive<usize> = 16..=500;
/// Lanes that need no room, besides those that do, in a small claim.
const FREE: usize = 20;
/// How long a claimer sleeps when others hold what it waits for, and nobody tells when they give it back.
const OTHERS: Duration = Duration::from_millis(50);
/// How long a queue whose lock, or a row of which, somebody keeps is left alone: longer each time. The other queues of this worker
/// have that time; a claim waits for 250 ms, see `claim_queue`.
const KEPT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// Between two looks at all lanes: a safety net, like the sweep below the marks of plain ones.
const LOOK: Duration = Duration::from_secs(60);

/// One managed queue.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(crate) queue: Arc<str>,
    turns: Turns,
    /// The snapshot of the last claim; none: all lanes are to be looked at.
    since: Option<String>,
    looked: Instant,
    /// What the last look at all lanes found and was not known.
    unknown: Vec<(String, i16, i64)>,
    /// The slots of others, and up to which number all are known.
    others: Vec<i64>,
    seen: i64,
    /// The count of this worker's own (see [`Slots`](super::slots::Slots)) that `seen` belongs to.
    count: u64,
    group_limit: Option<i32>,
    ordered: Option<Arc<str>>,
    ageing: Option<Duration>,
    shares: HashMap<String, i16>,
    /// How many lanes are tried.
    breadth: usize,
    /// Why nothing was taken though something waits: until when to be patient.
    patience: Option<Duration>,
    /// Somebody keeps the queue: until when it is left alone, and for how long it was.
    kept: Option<(Instant, Duration)>,
}

/// What a claim brought.
#[derive(Debug, Default)]
pub(crate) struct Dispatched {
    pub(crate) runs: Vec<ClaimedRun>,
    pub(crate) nudged: Vec<Uuid>,
    /// Lanes came to be known that were not tried yet.
    pub(crate) arrived: bool,
}

impl Dispatcher {
    pub(crate) fn new(queue: Arc<str>) -> Self {
        Dispatcher {
            queue,
            turns: Turns::default(),
            since: None,
            looked: Instant::now(),
            unknown: Vec::new(),
            others: Vec::new(),
            seen: 0,
            count: 0,
            group_limit: None,
            ordered: None,
            ageing: None,
            shares: HashMap::new(),
            breadth: *LANES.end(),
            patience: None,
            kept: None,
        }
    }

    /// How long to wait at most for what is needed, if something waits here for that.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Claims up to `limit` runs of workflows with lanes named after `bases`.
    pub(crate) async fn claim(
        &mut self,
        session: &Session,
        schema: &Schema,
        life: &Life,
        limit: usize,
        bases: &[String],
    ) -> Result<Dispatched> {
        if let Some((until, _)) = self.kept
            && until > Instant::now()
        {
            self.patience = Some(until - Instant::now());
            return Ok(Dispatched::default());
        }
        let (mine, count, here) = life.slots.total(&self.queue);
        if count != self.count {
            // What is ours is doubtful: all slots are somebody's whom the database knows.
            self.count = count;
            self.seen = 0;
            self.others.clear();
        }
        if self.looked.elapsed() > LOOK {
            self.look(session, schema, bases).await?;
        }
        let choices = self.choose(life, limit);
        let question = Question {
            worker: life.worker,
            queue: &self.queue,
            limit: i32::try_from(limit).unwrap_or(i32::MAX),
            since: self.since.as_deref(),
            choices: &choices,
            mine,
            here,
            others: &self.others,
            seen: self.seen,
        };
        let mut answer = match claim_queue::claim_queue(session, schema, &question).await {
            Err(error) if error.sqlstate() == Some("55P03") => {
                // It claimed nothing and learned nothing: what is known stands, and whose turn it was has it still.
                let lows: Vec<_> = choices.iter().map(|choice| Some(choice.low)).collect();
                let all: Vec<_> = (0..choices.len()).collect();
                self.turns.update(&choices, &lows, &HashMap::new(), &all, Instant::now());
                let span = self.kept.map_or(KEPT.0, |(_, span)| (span * 2).min(KEPT.1));
                tracing::debug!(
                    queue = &*self.queue,
                    ?span,
                    "somebody keeps the queue; it is left alone for a while"
                );
                self.kept = Some((Instant::now() + span, span));
                self.patience = Some(span);
                return Ok(Dispatched::default());
            }
            answer => answer?,
        };
        self.kept = None;
        let runs = if answer.given.is_empty() {
            Vec::new()
        } else {
            claim_queue::claimed_runs(session, schema, &answer.given).await?
        };
        let arrived = self.learn(&mut answer, &choices, bases);
        let runs = self.count_in(&answer, &choices, runs, life);
        let waits = runs.is_empty() && !self.turns.is_empty();
        self.patience = waits.then(|| answer.wait.unwrap_or(OTHERS));
        life.slots.blocked.fetch_or(waits, Ordering::AcqRel);
        Ok(Dispatched { runs, nudged: answer.nudged, arrived })
    }

    /// The safety net. What is unknown may have come a moment ago; what is still there, and unknown, at the next look was lost.
    /// That it finds something is a bug.
    async fn look(&mut self, session: &Session, schema: &Schema, bases: &[String]) -> Result<()> {
        self.looked = Instant::now();
        let mut found = claim_queue::all_lanes(session, schema, &self.queue).await?;
        found.retain(|(lane, priority, _)| !self.turns.knows(lane, *priority, bases));
        for lost in self.unknown.drain(..).filter(|lost| found.contains(lost)) {
            tracing::error!(
                queue = &*self.queue,
                lane = lost.0,
                seq = lost.2 + 1,
                "a run stood in a lane that was not known"
            );
            telemetry::sweep_found();
            self.turns.arrive(&lost.0, lost.1, lost.2, bases, Instant::now());
        }
        self.unknown = found;
        Ok(())
    }

    fn choose(&mut self, life: &Life, limit: usize) -> Vec<Choice> {
        let queue = self.queue.clone();
        let mine = |group: &str| life.slots.of_groups(&queue, std::iter::once(Some(group)))[0];
        self.turns.choose(
            self.breadth.min(limit + FREE),
            self.group_limit,
            self.ageing,
            &self.shares,
            mine,
            Instant::now(),
        )
    }

    /// Takes over what the answer tells of lanes, slots and settings. Says whether a lane is new.
    fn learn(&mut self, answer: &mut Answer, choices: &[Choice], bases: &[String]) -> bool {
        let now = Instant::now();
        let mut gave: HashMap<usize, i16> = HashMap::new();
        for given in &answer.given {
            let count = gave.entry(given.lane).or_default();
            *count = count.saturating_add(1);
        }
        self.turns.update(choices, &answer.lows, &gave, &answer.passed, now);
        if !answer.given.is_empty() {
            let too_many = 2 * answer.passed.len() > choices.len();
            let breadth = if too_many { self.breadth / 2 } else { self.breadth * 2 };
            self.breadth = breadth.clamp(*LANES.start(), *LANES.end());
        }
        let mut arrived = false;
        for (lane, priority, low) in answer.arrivals.drain(..) {
            arrived |= self.turns.arrive(&lane, priority, low, bases, now);
        }
        self.since = Some(std::mem::take(&mut answer.upto));
        self.others = std::mem::take(&mut answer.others);
        self.seen = answer.seen;
        self.group_limit = answer.group_limit;
        self.ordered = answer.ordered.as_deref().map(Into::into);
        self.ageing = answer.ageing;
        self.shares = answer.shares.drain(..).collect();
        arrived
    }

    /// Counts the runs that were given, each of which comes with its place among what was.
    fn count_in(
        &self,
        answer: &Answer,
        choices: &[Choice],
        runs: Vec<(usize, ClaimedRun)>,
        life: &Life,
    ) -> Vec<ClaimedRun> {
        let counted = runs.into_iter().map(|(place, run)| {
            let given = &answer.given[place];
            let group = choices.get(given.lane).and_then(|choice| group(&choice.lane));
            let slot = Slot {
                queue: self.queue.clone(),
                group: group.map(Into::into),
                weight: given.weight,
                count: if answer.limited { self.count } else { NOT_COUNTED },
                ordered: self.ordered.clone(),
            };
            life.slots.take(&slot);
            ClaimedRun { slot: Some(slot), ..run }
        });
        counted.collect()
    }
}
