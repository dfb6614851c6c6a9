//! The journal: group commit of all durable facts of all runs of a process.
//!
//! Two lanes, each with a connection: a lane flushes what has gathered in one statement while the next batch
//! gathers; no timer. A run always uses the same lane, so its facts commit in the order in which it made them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::run::{Run, Stop};
use super::{executor, failpoint};
use crate::error::{Code, Error};
use crate::store::connect::Link;
use crate::store::flush::{self, NewAttribute, NewCheckpoint, NewChild, NewEvent, NewOutcome, NewPark};
use crate::telemetry;

/// Connections, each with its own batch under way: one commits while the other gathers.
pub(crate) const LANES: usize = 2;
/// Facts in one flush: past a thousand a batch is not cheaper by the row, only later.
const BATCH_FACTS: usize = 2000;
/// Bytes of facts in one flush, about: a message to the server has a gigabyte at most, and one that is refused for that is as large when it
/// is sent again.
pub(crate) const FLUSH_BYTES: usize = 16 * 1024 * 1024;
/// A flush of so many facts shows that many runs wait for it, and that as many facts will follow at once.
const BUSY_FACTS: usize = 64;
/// How long they are given to arrive: a flush costs the server a fixed part as dear as some hundred facts, so
/// under load a moment of waiting is paid back; alone, a fact never waits.
const GATHER: Duration = Duration::from_millis(1);
/// Bytes in the journal above which the next effect waits: a database that is down must not fill the memory.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// A durable fact of a run.
#[derive(Debug)]
pub(crate) enum Fact {
    Checkpoint(NewCheckpoint),
    /// With the checkpoint that names it: both or neither.
    Event(NewCheckpoint, NewEvent),
    /// With the checkpoint that names it: both or neither.
    Child(NewCheckpoint, Box<NewChild>),
    /// With the checkpoint that names it: both or neither.
    Attribute(NewCheckpoint, NewAttribute),
    Park(NewPark),
    Outcome(NewOutcome),
}

impl Fact {
    fn bytes(&self) -> usize {
        let of = |json: &Option<Box<str>>| json.as_ref().map_or(0, |text| text.len());
        let beside = match self {
            Fact::Event(_, event) => event.key.len() + event.value.len(),
            Fact::Attribute(_, attribute) => attribute.key.len() + attribute.value.len(),
            Fact::Child(_, child) => 200 + child.run.input.len() + of(&child.run.attributes),
            Fact::Outcome(o) => of(&o.output) + of(&o.error),
            Fact::Park(park) => park.state.as_ref().map_or(0, String::len),
            Fact::Checkpoint(_) => 0,
        };
        200 + beside + self.checkpoint().map_or(0, |c| c.name.len() + of(&c.output) + of(&c.error))
    }

    pub(crate) fn checkpoint(&self) -> Option<&NewCheckpoint> {
        match self {
            Fact::Checkpoint(checkpoint)
            | Fact::Event(checkpoint, _)
            | Fact::Child(checkpoint, _)
            | Fact::Attribute(checkpoint, _) => Some(checkpoint),
            Fact::Park(park) => park.failure.as_ref(),
            Fact::Outcome(_) => None,
        }
    }
}

/// A fact and the run that it is of.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) run: Arc<Run>,
    pub(crate) fact: Fact,
}

/// What a run recorded between two looks of the executor: it reaches the lane at once, so that it is flushed at once.
#[derive(Debug)]
struct Sent {
    run: Arc<Run>,
    first: Fact,
    rest: Vec<Fact>,
}

/// The way into the journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    lanes: [mpsc::UnboundedSender<Sent>; LANES],
    gauge: Arc<Gauge>,
}

#[derive(Debug, Default)]
struct Gauge {
    bytes: AtomicUsize,
    drained: Notify,
}

/// The other end of a lane.
#[derive(Debug)]
pub(crate) struct Lane {
    sent: mpsc::UnboundedReceiver<Sent>,
    /// What was received and is not in a batch yet; empty between two calls.
    inbox: Vec<Sent>,
    gauge: Arc<Gauge>,
}

pub(crate) fn open() -> (Journal, [Lane; LANES]) {
    let gauge = Arc::new(Gauge::default());
    let (first, first_sent) = mpsc::unbounded_channel();
    let (second, second_sent) = mpsc::unbounded_channel();
    let lane = |sent| Lane { sent, inbox: Vec::with_capacity(BATCH_FACTS), gauge: gauge.clone() };
    let lanes = [lane(first_sent), lane(second_sent)];
    (Journal { lanes: [first, second], gauge }, lanes)
}

impl Journal {
    pub(crate) fn record(&self, run: Arc<Run>, first: Fact, rest: Vec<Fact>) {
        let bytes = first.bytes() + rest.iter().map(Fact::bytes).sum::<usize>();
        self.gauge.bytes.fetch_add(bytes, Ordering::AcqRel);
        let lane = run.id.as_bytes()[15] as usize % LANES;
        // The lane outlives the runs of its life; after it, they are fenced and nothing of theirs counts.
        let _ = self.lanes[lane].send(Sent { run, first, rest });
    }

    /// Waits while the journal is full. It delays the next effect and never fails after one.
    pub(crate) async fn room(&self) {
        while self.gauge.bytes.load(Ordering::Acquire) > BYTES_MAX {
            let drained = self.gauge.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.gauge.bytes.load(Ordering::Acquire) > BYTES_MAX {
                drained.await;
            }
        }
    }
}

/// Told of every fact that became durable, and of every run that turned out not to be ours.
pub(crate) trait Witness: Send + Sync {
    fn ended(&self, run: &Arc<Run>, outcome: &NewOutcome, sent: Instant);
    fn parked(&self, run: &Arc<Run>);
    /// The run has published something.
    fn published(&self, run: &Arc<Run>);
    /// The last fact of a run could not be recorded: nobody waits for another.
    fn lost(&self, run: &Arc<Run>);
}

impl Lane {
    /// Waits for entries and adds them to the batch; false when no more will come.
    async fn receive(&mut self, batch: &mut Vec<Entry>) -> bool {
        let room = BATCH_FACTS.saturating_sub(batch.len()).max(1);
        let received = self.sent.recv_many(&mut self.inbox, room).await;
        for Sent { run, first, rest } in self.inbox.drain(..) {
            batch.push(Entry { run: run.clone(), fact: first });
            batch.extend(rest.into_iter().map(|fact| Entry { run: run.clone(), fact }));
        }
        received > 0
    }
}

/// Flushes a lane until all senders are gone.
pub(crate) async fn flush_lane(mut lane: Lane, mut link: Link, worker: i64, witness: Arc<dyn Witness>) {
    let mut batch = Vec::with_capacity(BATCH_FACTS);
    while !batch.is_empty() || lane.receive(&mut batch).await {
        // What came since is taken along.
        while batch.len() < BATCH_FACTS && !lane.sent.is_empty() {
            lane.receive(&mut batch).await;
        }
        let bytes: usize = batch.iter().map(|entry| entry.fact.bytes()).sum();
        let started = Instant::now();
        let facts = batch.len();
        commit(&mut link, worker, std::mem::take(&mut batch), &*witness).await;
        telemetry::flushed(facts, started.elapsed());
        lane.gauge.bytes.fetch_sub(bytes, Ordering::AcqRel);
        lane.gauge.drained.notify_waiters();
        batch.reserve(BATCH_FACTS);
        if facts >= BUSY_FACTS {
            gather(&mut lane, &mut batch, facts).await;
        }
    }
}

/// Waits, for a moment only, until as many facts have come as the last flush had.
async fn gather(lane: &mut Lane, batch: &mut Vec<Entry>, wanted: usize) {
    let moment = tokio::time::sleep(GATHER);
    tokio::pin!(moment);
    while batch.len() < wanted.min(BATCH_FACTS) {
        tokio::select! {
            biased;
            received = lane.receive(batch) => if !received { return },
            () = &mut moment => return,
        }
    }
}

/// Makes a batch durable, whatever it takes: through reconnects, reading back what a lost answer left open, and
/// setting apart a fact that the database refuses.
async fn commit(link: &mut Link, worker: i64, batch: Vec<Entry>, witness: &dyn Witness) {
    // Batches still to be flushed, the first one last: a refused one is split and its halves take its place.
    let mut pending = pieces(batch, |entry| entry.fact.bytes(), FLUSH_BYTES);
    pending.reverse();
    while let Some(mut batch) = pending.pop() {
        batch.retain(|entry| !is_past(entry));
        if batch.is_empty() {
            continue;
        }
        match attempt(link, worker, &mut batch, witness).await {
            Ok(()) => link.recovered(),
            Err(error) if is_passing(&error) => {
                link.recover(&error).await;
                pending.push(batch);
            }
            // What is there already may be ours: behind a pooler nobody can tell when the backend of a lost answer has gone,
            // and its commit may come after the read-back.
            Err(error) if error.sqlstate() == Some("23505") => {
                let facts = batch.len();
                match read_back(link, &mut batch, witness).await {
                    Ok(()) if batch.len() == facts => split(batch, &error, &mut pending, witness),
                    Ok(()) => pending.push(batch),
                    Err(error) => {
                        link.recover(&error).await;
                        pending.push(batch);
                    }
                }
            }
            Err(error) => split(batch, &error, &mut pending, witness),
        }
    }
}

/// Cuts a batch, in its order, into such of so many bytes at most; what is larger is one of its own.
pub(crate) fn pieces<T>(batch: Vec<T>, bytes: impl Fn(&T) -> usize, most: usize) -> Vec<Vec<T>> {
    if batch.iter().map(&bytes).sum::<usize>() <= most {
        return vec![batch];
    }
    let (mut pieces, mut filled) = (Vec::<Vec<T>>::new(), 0);
    for entry in batch {
        let added = bytes(&entry);
        match pieces.last_mut() {
            Some(piece) if filled + added <= most => piece.push(entry),
            _ => {
                filled = 0;
                pieces.push(vec![entry]);
            }
        }
        filled += added;
    }
    pieces
}

/// One try. On success the entries are settled; on failure `batch` holds what is not known to be durable.
async fn attempt(
    link: &mut Link,
    worker: i64,
    batch: &mut Vec<Entry>,
    witness: &dyn Witness,
) -> Result<(), Error> {
    let schema = link.schema().clone();
    // One session for the question and the flush: any other may have a predecessor that is not known to have ended.
    let session = loop {
        let session = link.session().await?.clone();
        if !link.has_predecessors() {
            break session;
        }
        link.await_predecessors().await?;
        read_back(link, batch, witness).await?;
    };
    if batch.is_empty() {
        return Ok(());
    }
    failpoint::reach("flush-before");
    let facts = gathered(batch);
    let sent = Instant::now();
    let fenced = flush::flush(&session, &schema, worker, &facts).await?;
    failpoint::reach("flush-answered");
    for entry in batch.drain(..) {
        if !fenced.is_empty() && fenced.contains(&entry.run.id) {
            lose(&entry, witness);
        } else {
            settle(&entry, witness, sent);
        }
    }
    Ok(())
}

/// A fact of a run that is not ours any more.
fn lose(entry: &Entry, witness: &dyn Witness) {
    entry.run.stop(Stop::Fenced);
    if matches!(entry.fact, Fact::Outcome(_) | Fact::Park(_)) {
        witness.lost(&entry.run);
    }
}

/// The facts of a batch by kind.
fn gathered(batch: &[Entry]) -> flush::Batch<'_> {
    let checkpoints = Vec::with_capacity(batch.len());
    let mut facts = flush::Batch { checkpoints, ..flush::Batch::default() };
    for entry in batch {
        facts.checkpoints.extend(entry.fact.checkpoint());
        if entry.run.slot.is_some() && matches!(entry.fact, Fact::Outcome(_) | Fact::Park(_)) {
            facts.freed.push(entry.run.id);
        }
        match &entry.fact {
            Fact::Checkpoint(_) => {}
            Fact::Event(at, event) => facts.events.push((at, event)),
            Fact::Child(at, child) => facts.children.push((at, child)),
            Fact::Attribute(at, attribute) => facts.attributes.push((at, attribute)),
            Fact::Park(park) => facts.parks.push(park),
            Fact::Outcome(outcome) => {
                facts.outcomes.push(outcome);
                facts.woken.extend(entry.run.parent);
            }
        }
    }
    facts
}

fn settle(entry: &Entry, witness: &dyn Witness, sent: Instant) {
    entry.run.advance();
    match &entry.fact {
        Fact::Outcome(outcome) => witness.ended(&entry.run, outcome, sent),
        Fact::Park(_) => witness.parked(&entry.run),
        Fact::Event(..) => witness.published(&entry.run),
        Fact::Checkpoint(_) | Fact::Child(..) | Fact::Attribute(..) => {}
    }
}

/// After a lost answer, with the old backend gone: settles what did commit and keeps the rest.
async fn read_back(link: &mut Link, batch: &mut Vec<Entry>, witness: &dyn Witness) -> Result<(), Error> {
    let schema = link.schema().clone();
    let mut runs: Vec<Uuid> = batch.iter().map(|entry| entry.run.id).collect();
    runs.sort_unstable();
    runs.dedup();
    let sent = Instant::now();
    let mut there: HashMap<(Uuid, Option<String>), i32> = HashMap::new();
    for (run, position, attempt) in flush::recorded(link.session().await?, &schema, &runs).await? {
        there.insert((run, position), attempt);
    }
    batch.retain(|entry| {
        // A park that did commit is found to be fenced when it is sent again: the run is not ours either way.
        let position = match &entry.fact {
            Fact::Outcome(_) => None,
            fact => Some(fact.checkpoint().map_or_else(String::new, |c| c.position.to_string())),
        };
        let ours = there.get(&(entry.run.id, position)) == Some(&entry.run.attempt);
        if ours {
            settle(entry, witness, sent);
        }
        !ours
    });
    Ok(())
}

/// Whether a fact is of no use any more: the run is not ours, or goes on from before it.
fn is_past(entry: &Entry) -> bool {
    match entry.run.reason() {
        Some(Stop::Fenced) => true,
        Some(Stop::Refused(call)) => {
            entry.fact.checkpoint().is_none_or(|fact| fact.position != call.position)
        }
        _ => false,
    }
}

/// Whether the same batch may succeed later: the database away or full, a lock not to be had, a deadlock, a session that was ended for
/// its age, a privilege that was taken away.
fn is_passing(error: &Error) -> bool {
    error.is_unavailable()
        || matches!(
            error.sqlstate(),
            Some("55P03" | "40001" | "40P01" | "57014" | "25P03" | "25P04" | "42501")
        )
        || error.sqlstate().is_some_and(|s| s.starts_with("53") || s.starts_with("58"))
        || matches!(error.code(), Code::NoPartition)
}

/// A batch was refused for what it holds: halves it, runs kept whole, until the offender is alone. If that is a child that the
/// run started, the call that started it fails: nothing has come of it, for every effect waits until what was before it is
/// durable, so the run goes on from there once more. Any other ends its run as dead if that can be recorded, and is left for
/// recovery if not.
fn split(mut batch: Vec<Entry>, error: &Error, pending: &mut Vec<Vec<Entry>>, witness: &dyn Witness) {
    let mut runs: Vec<Uuid> = batch.iter().map(|entry| entry.run.id).collect();
    runs.sort_unstable();
    runs.dedup();
    if let [_] = runs[..] {
        let run = batch[0].run.clone();
        if batch.len() > 1 && batch.iter().any(|entry| matches!(entry.fact, Fact::Child(..))) {
            // In their order: what comes before a child that is refused stands.
            let rest = batch.split_off(batch.len() / 2);
            pending.extend([rest, batch]);
            return;
        }
        if let [Entry { fact: Fact::Child(call, child), .. }] = &batch[..] {
            tracing::debug!(run = %run.id, workflow = run.workflow, child = child.run.workflow, %error, "a child was refused");
            let refused = run.checkpoint(call.position.clone(), call.name.clone(), "null".into());
            let error = Some(executor::encode_error(error));
            run.stop(Stop::Refused(Box::new(NewCheckpoint { output: None, error, ..refused })));
            return;
        }
        tracing::error!(run = %run.id, workflow = run.workflow, %error, "the database refused what a run recorded");
        let only_outcome = matches!(&batch[..], [Entry { fact: Fact::Outcome(o), .. }] if o.status == "dead");
        if only_outcome {
            lose(&batch[0], witness);
        } else {
            let text = format!("what the run recorded was refused: {}", error.text());
            run.stop(Stop::Dead(Error::new(error.code(), text)));
        }
        return;
    }
    let half = runs[runs.len() / 2];
    let upper: Vec<Entry> = batch.extract_if(.., |entry| entry.run.id >= half).collect();
    pending.push(upper);
    pending.push(batch);
}

/// How long a stopping worker waits for its last facts.
pub(crate) const LAST_FLUSH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn a_batch_is_cut_in_its_order_and_no_piece_is_too_large() {
        let cut = |batch: &[usize]| pieces(batch.to_vec(), |bytes| *bytes, 10);
        assert_eq!(cut(&[]), [[0usize; 0]]);
        assert_eq!(cut(&[3, 3, 4]), [vec![3, 3, 4]]);
        assert_eq!(cut(&[3, 3, 5, 5, 1]), [vec![3, 3], vec![5, 5], vec![1]]);
        assert_eq!(cut(&[1, 30, 1, 9, 1]), [vec![1], vec![30], vec![1, 9], vec![1]]);
    }
}
