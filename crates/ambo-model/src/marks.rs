//! Low-water marks: claimers that read a lane above the place where they stopped, and transactions that commit late.
//!
//! Producers enqueue in transactions of their own, open for as long as they like. A claimer keeps a mark (`low`) and the
//! transactions that may still bring a row below it (`late`), and rows that it has passed while somebody had them locked (`held`). Snapshots are PostgreSQL's: `xmax` is the last *ended* xid plus one,
//! so that what is at or above it may be in progress too. One lane; one row a producer.

use stateright::{Model, Property};

use crate::broken::Broken;
use crate::liveness::Goal;

/// What keeps this right. Each can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `enqueue` takes its xid before it draws the seq.
    XidBeforeSeq,
    /// `claim` reads the sequence before its own xid is given out, where `late` ends.
    SequenceBeforeXid,
    /// The mark stays below a row that somebody else had locked.
    LockedRowsHoldTheMark,
    /// One that held it already is passed, and looked for by name from then on.
    PassedRowsAreKept,
    /// As long as somebody has it locked.
    HeldRowsAreKept,
    /// Each claim looks for the rows of `late`.
    LateProbe,
    /// `late` has what is at or above `xmax`, up to the last xid given out.
    AboveXmax,
    /// A late row that somebody else had locked keeps its xid in `late`.
    LockedLateRowsAreKept,
    /// When the late rows are more than a claim takes, the xids of those below the mark stay in `late`.
    FloodIsKept,
    /// When they are many more, the mark goes back below them instead.
    FloodGoesBack,
}

/// The model: how large, and which rules are broken.
#[derive(Clone, Debug)]
pub struct Marks {
    /// Transactions that enqueue a row.
    pub producers: usize,
    /// Workers that claim.
    pub claimers: usize,
    /// How many rows a claim takes.
    pub limit: usize,
    /// How many late rows may be left behind before the mark goes back below them.
    pub many: usize,
    /// How many claims are rolled back, or lose their answer.
    pub failures: u8,
    /// Rules that do not hold.
    pub broken: Broken<Rule>,
}

/// A set of xids, as bits.
type Xids = u32;
/// A set of rows, as bits.
type Rows = u32;

/// All there is: the rows, the transactions, what the claimers remember.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    next_xid: u8,
    last_seq: u8,
    ended: Xids,
    producers: Vec<Producer>,
    claimers: Vec<Claimer>,
    failures: u8,
}

/// A producer and its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Producer {
    xid: Option<u8>,
    seq: Option<u8>,
    row: Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Row {
    NotYet,
    Uncommitted,
    Ready,
    /// Deleted by a claim that has not ended.
    Locked,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claimer {
    low: u8,
    late: Xids,
    held: Rows,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Idle,
    Began { last_seq: u8 },
    Looked { last_seq: u8, seen: Vec<u8>, in_progress: Xids, xmax: u8 },
    Took { taken: Vec<u8>, xid: u8, low: u8, late: Xids, held: Rows, at_end: bool },
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `pg_current_xact_id()` in `enqueue`.
    TakeXid(u8),
    /// `nextval('ambo.ready_seq')` in `enqueue`, and the insert.
    DrawSeq(u8),
    /// The producer's transaction commits.
    Commit(u8),
    /// The producer's transaction is rolled back.
    Rollback(u8),
    /// `claim` reads the sequence.
    Begin(u8),
    /// The snapshot of the statement that takes rows.
    Look(u8),
    /// That statement, and what follows from it: the mark and what is late.
    Take(u8),
    /// The claim commits and its worker hears of it.
    CommitClaim(u8),
    /// The claim is rolled back: its worker goes on with the mark that it had.
    RollbackClaim(u8),
    /// The claim commits, and its answer is lost.
    LoseAnswer(u8),
}

/// Of an xid, or of a row.
fn bit(number: u8) -> u32 {
    1 << number
}

fn range(from: u8, to: u8) -> Xids {
    (from..to).map(bit).sum()
}

impl State {
    fn seq(&self, row: u8) -> u8 {
        self.producers[usize::from(row)].seq.unwrap_or(0)
    }

    fn xid(&self, row: u8) -> u8 {
        self.producers[usize::from(row)].xid.unwrap_or(0)
    }

    fn is_ready(&self, row: u8) -> bool {
        self.producers[usize::from(row)].row == Row::Ready
    }

    /// Rows that a snapshot taken now sees, in the order of their seq.
    fn visible(&self) -> Vec<u8> {
        let mut rows: Vec<u8> = (0u8..)
            .zip(&self.producers)
            .filter(|(_, p)| matches!(p.row, Row::Ready | Row::Locked))
            .map(|(row, _)| row)
            .collect();
        rows.sort_unstable_by_key(|&row| self.seq(row));
        rows
    }

    /// Ends a claim: what it took becomes this. Answers its mark, what is late, what is held, and whether the lane was read to its end.
    fn end_claim(&mut self, claimer: u8, row: Row) -> Option<(u8, Xids, Rows, bool)> {
        let claimer = &mut self.claimers[usize::from(claimer)];
        let stage = std::mem::replace(&mut claimer.stage, Stage::Idle);
        let Stage::Took { taken, xid, low, late, held, at_end } = stage else { return None };
        for taken in taken {
            self.producers[usize::from(taken)].row = row;
        }
        self.ended |= bit(xid);
        Some((low, late, held, at_end))
    }
}

impl Marks {
    fn keeps(&self, rule: Rule) -> bool {
        self.broken.keeps(rule)
    }

    /// The statement of `claim`: `late_seen`, `held_seen`, `locked`, `taken`, `mark`, `kept`, and what is computed after.
    fn take(&self, state: &mut State, c: u8) -> Option<()> {
        let Claimer { low, late, held, stage } = state.claimers[usize::from(c)].clone();
        let Stage::Looked { last_seq, seen, in_progress, xmax } = stage else { return None };
        let is_late = |row: u8| self.keeps(Rule::LateProbe) && late & bit(state.xid(row)) != 0;
        let is_below = |row: &u8| is_late(*row) && state.seq(*row) <= low;
        let mut late_seen: Vec<u8> = seen.iter().copied().filter(is_below).collect();
        late_seen.sort_by_key(|&row| state.xid(row));
        late_seen.truncate(self.limit + 1);
        let is_flood = late_seen.len() > self.limit;
        let held_seen: Vec<u8> =
            seen.iter().copied().filter(|&row| held & bit(row) != 0 && state.seq(row) <= low).collect();
        let mut late_locked = late_seen.clone();
        late_locked.extend(&held_seen);
        late_locked.sort_by_key(|&row| state.seq(row));
        late_locked.dedup();
        late_locked.retain(|&row| state.is_ready(row));
        late_locked.truncate(self.limit);
        let fresh = seen.iter().copied().filter(|&row| state.seq(row) > low && state.is_ready(row));
        let mut taken = late_locked.clone();
        taken.extend(fresh.take(self.limit - late_locked.len()));
        taken.sort_unstable();
        taken.dedup();

        let is_read_on = taken.len() < self.limit || taken.iter().any(|&row| state.seq(row) > low);
        let passed = seen
            .iter()
            .copied()
            .find(|&row| state.seq(row) == low + 1 && !taken.contains(&row) && is_read_on);
        let left = seen.iter().copied().find(|row| {
            let holds = self.keeps(Rule::LockedRowsHoldTheMark) || state.is_ready(*row);
            state.seq(*row) > low && !taken.contains(row) && Some(*row) != passed && holds
        });
        let highest = taken.iter().map(|&row| state.seq(row)).max().unwrap_or(0);
        let mut new_low = left.map_or_else(|| low.max(last_seq).max(highest), |row| state.seq(row) - 1);
        let kept = late_seen
            .iter()
            .filter(|row| self.keeps(Rule::LockedLateRowsAreKept) && !late_locked.contains(row));
        let mut new_late = in_progress | kept.map(|&row| bit(state.xid(row))).fold(0, |a, b| a | b);
        let passed = passed.filter(|_| self.keeps(Rule::PassedRowsAreKept));
        let kept = held_seen
            .iter()
            .copied()
            .filter(|row| self.keeps(Rule::HeldRowsAreKept) && !late_locked.contains(row));
        let new_held = kept.chain(passed).map(bit).fold(0, |a, b| a | b);
        if self.keeps(Rule::AboveXmax) {
            // Up to our own xid, if there is one: it is the next.
            new_late |= range(xmax, state.next_xid);
        }
        if is_flood {
            let rest: Vec<u8> =
                state.visible().into_iter().filter(|row| is_late(*row) && !taken.contains(row)).collect();
            if rest.len() <= self.many {
                let below =
                    rest.iter().filter(|&&row| self.keeps(Rule::FloodIsKept) && state.seq(row) <= new_low);
                new_late |= below.map(|&row| bit(state.xid(row))).fold(0, |a, b| a | b);
            } else if self.keeps(Rule::FloodGoesBack) {
                new_low = rest.first().map_or(new_low, |&row| new_low.min(state.seq(row) - 1));
                new_late &= !(late & state.ended);
            }
        }
        let claimer = &mut state.claimers[usize::from(c)];
        if taken.is_empty() {
            *claimer = Claimer { low: new_low, late: new_late, held: new_held, stage: Stage::Idle };
            return Some(());
        }
        let xid = state.next_xid;
        let at_end = left.is_none();
        let (low, late, held) = (new_low, new_late, new_held);
        claimer.stage = Stage::Took { taken: taken.clone(), xid, low, late, held, at_end };
        state.next_xid += 1;
        for row in taken {
            state.producers[usize::from(row)].row = Row::Locked;
        }
        Some(())
    }
}

impl Model for Marks {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            next_xid: 1,
            last_seq: 0,
            ended: 1,
            producers: vec![Producer { xid: None, seq: None, row: Row::NotYet }; self.producers],
            claimers: vec![Claimer { low: 0, late: 0, held: 0, stage: Stage::Idle }; self.claimers],
            failures: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // They are all alike: one begins after the one before it has.
        let begun = state.producers.iter().take_while(|p| p.xid.is_some() || p.seq.is_some()).count();
        for (producer, p) in state.producers.iter().zip(0u8..).take(begun + 1) {
            let xid_first = self.keeps(Rule::XidBeforeSeq);
            match (producer.xid, producer.seq, producer.row) {
                (None, None, _) if xid_first => actions.push(Action::TakeXid(p)),
                (Some(_), None, _) => actions.push(Action::DrawSeq(p)),
                (None, None, _) => actions.push(Action::DrawSeq(p)),
                (None, Some(_), _) => actions.push(Action::TakeXid(p)),
                (_, _, Row::Uncommitted) => actions.extend([Action::Commit(p), Action::Rollback(p)]),
                _ => {}
            }
        }
        for (claimer, c) in state.claimers.iter().zip(0u8..) {
            match claimer.stage {
                Stage::Idle => actions.push(Action::Begin(c)),
                Stage::Began { .. } => actions.push(Action::Look(c)),
                Stage::Looked { .. } => actions.push(Action::Take(c)),
                Stage::Took { .. } => {
                    actions.push(Action::CommitClaim(c));
                    if state.failures < self.failures {
                        actions.extend([Action::RollbackClaim(c), Action::LoseAnswer(c)]);
                    }
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::TakeXid(p) => {
                let xid = state.next_xid;
                state.next_xid += 1;
                let producer = &mut state.producers[usize::from(p)];
                producer.xid = Some(xid);
                if producer.seq.is_some() {
                    producer.row = Row::Uncommitted;
                }
            }
            Action::DrawSeq(p) => {
                state.last_seq += 1;
                let producer = &mut state.producers[usize::from(p)];
                producer.seq = Some(state.last_seq);
                if producer.xid.is_some() {
                    producer.row = Row::Uncommitted;
                }
            }
            Action::Commit(p) | Action::Rollback(p) => {
                let producer = &mut state.producers[usize::from(p)];
                producer.row = if matches!(action, Action::Commit(_)) { Row::Ready } else { Row::Gone };
                state.ended |= bit(producer.xid?);
            }
            Action::Begin(c) => {
                let last_seq = state.last_seq;
                state.claimers[usize::from(c)].stage = Stage::Began { last_seq };
            }
            Action::Look(c) => {
                let Stage::Began { last_seq } = state.claimers[usize::from(c)].stage else { return None };
                let xmax = u8::try_from(Xids::BITS - state.ended.leading_zeros()).ok()?;
                let in_progress = range(0, xmax) & !state.ended;
                let seen = state.visible();
                state.claimers[usize::from(c)].stage = Stage::Looked { last_seq, seen, in_progress, xmax };
            }
            Action::Take(c) => self.take(&mut state, c)?,
            Action::CommitClaim(c) => {
                let (mut low, late, held, at_end) = state.end_claim(c, Row::Gone)?;
                if at_end && !self.keeps(Rule::SequenceBeforeXid) {
                    low = low.max(state.last_seq);
                }
                state.claimers[usize::from(c)] = Claimer { low, late, held, stage: Stage::Idle };
            }
            Action::RollbackClaim(c) => {
                state.end_claim(c, Row::Ready)?;
                state.failures += 1;
            }
            Action::LoseAnswer(c) => {
                state.end_claim(c, Row::Gone)?;
                state.failures += 1;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("no run below the mark is unknown", |_, state: &State| {
            state.producers.iter().zip(0u8..).all(|(producer, row)| {
                let (Some(xid), Some(seq)) = (producer.xid, producer.seq) else { return true };
                matches!(producer.row, Row::NotYet | Row::Gone)
                    || state
                        .claimers
                        .iter()
                        .all(|c| seq > c.low || c.late & bit(xid) != 0 || c.held & bit(row) != 0)
            })
        })]
    }
}

impl Goal for Marks {
    fn is_reached(&self, state: &State) -> bool {
        state.producers.iter().all(|producer| producer.row == Row::Gone)
    }

    fn is_fault(&self, action: &Action) -> bool {
        matches!(action, Action::Rollback(_) | Action::RollbackClaim(_) | Action::LoseAnswer(_))
    }
}
