//! Ticks: a reader of an append-only table that remembers a snapshot, not a place. What a tick reads is visible in its own
//! snapshot and was not in the last one: `xid >= xmax of the last`, or in progress in the last.
//!
//! The log will read so. Writers, each with one entry, are open as long as they like.

use stateright::{Model, Property};

use crate::broken::Broken;
use crate::liveness::Goal;

/// What keeps this right. Each can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The reader remembers a snapshot, not the highest number that it saw.
    Snapshot,
    /// It reads what was in progress in the last snapshot.
    InProgress,
    /// It reads what was at or above `xmax` of the last snapshot.
    AboveXmax,
    /// It does not read again what the last snapshot saw.
    NotAgain,
}

/// The model: how many writers, and which rules are broken.
#[derive(Clone, Debug)]
pub struct Ticks {
    /// Transactions that append an entry.
    pub writers: usize,
    /// Rules that do not hold.
    pub broken: Broken<Rule>,
}

type Xids = u32;

/// All there is: the entries, and what the reader remembers and has seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    next_xid: u8,
    last_seq: u8,
    ended: Xids,
    writers: Vec<Writer>,
    xmax: u8,
    in_progress: Xids,
    seen_seq: u8,
    delivered: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Writer {
    xid: u8,
    seq: u8,
    entry: Entry,
    /// The writers that had committed when this one began, as bits: it may rest on what they wrote.
    after: Xids,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    NotYet,
    Begun,
    Written,
    Committed,
    RolledBack,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A writer's transaction gets its xid.
    Begin(u8),
    /// It appends its entry.
    Append(u8),
    /// It commits.
    Commit(u8),
    /// It is rolled back.
    Rollback(u8),
    /// The reader takes a snapshot and reads; its position commits with what it does about it.
    Tick,
}

impl State {
    fn snapshot(&self) -> (u8, Xids) {
        let xmax = u8::try_from(Xids::BITS - self.ended.leading_zeros()).unwrap_or(0);
        (xmax, ((1 << xmax) - 1) & !self.ended)
    }
}

impl Ticks {
    fn is_new(&self, state: &State, writer: &Writer) -> bool {
        let keeps = |rule| self.broken.keeps(rule);
        let was_in_progress = state.in_progress & (1 << writer.xid) != 0;
        match () {
            () if !keeps(Rule::Snapshot) => writer.seq > state.seen_seq,
            () if !keeps(Rule::NotAgain) => true,
            () => {
                keeps(Rule::AboveXmax) && writer.xid >= state.xmax
                    || keeps(Rule::InProgress) && was_in_progress
            }
        }
    }

    fn tick(&self, state: &mut State) {
        let mut batch: Vec<u8> = (0u8..)
            .zip(&state.writers)
            .filter(|(_, writer)| writer.entry == Entry::Committed && self.is_new(state, writer))
            .map(|(w, _)| w)
            .collect();
        batch.sort_by_key(|&w| state.writers[usize::from(w)].seq);
        (state.xmax, state.in_progress) = state.snapshot();
        state.seen_seq =
            batch.iter().map(|&w| state.writers[usize::from(w)].seq).fold(state.seen_seq, u8::max);
        state.delivered.extend(batch);
    }
}

impl Model for Ticks {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            next_xid: 1,
            last_seq: 0,
            ended: 1,
            writers: vec![Writer { xid: 0, seq: 0, entry: Entry::NotYet, after: 0 }; self.writers],
            xmax: 1,
            in_progress: 0,
            seen_seq: 0,
            delivered: Vec::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.delivered.len() > self.writers {
            return;
        }
        // They are all alike: one begins after the one before it has.
        let begun = state.writers.iter().take_while(|writer| writer.xid > 0).count();
        for (writer, w) in state.writers.iter().zip(0u8..).take(begun + 1) {
            match writer.entry {
                Entry::NotYet => actions.push(Action::Begin(w)),
                Entry::Begun => actions.push(Action::Append(w)),
                Entry::Written => actions.extend([Action::Commit(w), Action::Rollback(w)]),
                Entry::Committed | Entry::RolledBack => {}
            }
        }
        actions.push(Action::Tick);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin(w) => {
                let committed = (0u8..).zip(&last.writers).filter(|(_, w)| w.entry == Entry::Committed);
                let writer = &mut state.writers[usize::from(w)];
                writer.after = committed.map(|(w, _)| 1 << w).sum();
                writer.entry = Entry::Begun;
                writer.xid = state.next_xid;
                state.next_xid += 1;
            }
            Action::Append(w) => {
                let writer = &mut state.writers[usize::from(w)];
                writer.entry = Entry::Written;
                state.last_seq += 1;
                writer.seq = state.last_seq;
            }
            Action::Commit(w) | Action::Rollback(w) => {
                let writer = &mut state.writers[usize::from(w)];
                let commits = matches!(action, Action::Commit(_));
                writer.entry = if commits { Entry::Committed } else { Entry::RolledBack };
                state.ended |= 1 << writer.xid;
            }
            Action::Tick => self.tick(&mut state),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no entry is read twice", |_, s: &State| {
                (1..s.delivered.len()).all(|n| !s.delivered[..n].contains(&s.delivered[n]))
            }),
            Property::always("no entry is read before one that it may rest on", |_, s: &State| {
                (1..s.delivered.len()).all(|n| {
                    s.delivered[..n]
                        .iter()
                        .all(|&w| s.writers[usize::from(w)].after & (1 << s.delivered[n]) == 0)
                })
            }),
        ]
    }
}

impl Goal for Ticks {
    /// All have ended, and what committed has been read.
    fn is_reached(&self, state: &State) -> bool {
        (0u8..).zip(&state.writers).all(|(w, writer)| match writer.entry {
            Entry::Committed => state.delivered.contains(&w),
            Entry::RolledBack => true,
            Entry::NotYet | Entry::Begun | Entry::Written => false,
        })
    }

    fn is_fault(&self, action: &Action) -> bool {
        matches!(action, Action::Rollback(_))
    }
}
