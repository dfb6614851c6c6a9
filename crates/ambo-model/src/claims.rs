//! Claims, the fence, flushes, transaction steps, burial and the keeper: several lives of workers, a few runs.
//!
//! A run's body is: a plain step at position 1, a transaction step at 2, a plain step at 3, the end. A *life* is a worker under
//! an id that was never used before; any but the last may crash, or be thought dead while it lives on (a paused process),
//! at any moment: the model has no clock, and what holds here holds for all leases.
//!
//! One action is what PostgreSQL makes visible at once. Where a function looks first and writes later, under locks that others
//! must respect, it is two.

use stateright::{Model, Property};

use crate::broken::Broken;
use crate::liveness::Goal;
use crate::run::{Place, Refusal, Run, WorkerId};

/// What keeps this right. Each can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `claim` takes the fence shared before it looks whether its worker is alive, and holds it to its commit.
    ClaimFence,
    /// `flush` takes the fence shared before it looks at the claims, and holds it to its commit.
    FlushFence,
    /// `flush` asks for worker *and attempt*: the same worker may hold the run anew.
    FlushAttempt,
    /// `hand_back` takes claims away, so it holds the fence exclusively, as `bury_worker` does.
    HandBackFence,
    /// `finish_step` locks the claim's row (`for key share`), and `bury_worker` skips rows that are locked.
    StepLock,
    /// A transaction step's effect and its checkpoint are one commit.
    OneCommit,
    /// `primary key (run_id, position)`: the last arbiter.
    PrimaryKey,
    /// What was recorded is read after the claim is there (`history`).
    HistoryAfterClaim,
    /// A step begins when all that its run recorded before is durable.
    Barrier,
    /// The facts of a run go through one lane of the journal.
    OneLane,
    /// After a lost answer the worker reads back when the old backend is gone, not before.
    ReadBackAfter,
    /// `bury_worker` deletes the worker only when none of its claims is left.
    BuryWaits,
    /// Any worker may become keeper when there is none alive.
    Takeover,
}

/// What must never be: noted when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Somebody wrote for a run whose claim it did not hold.
    ForeignWrite,
    /// The primary key had to refuse a fact: one fact was sent to be recorded twice.
    RecordedTwice,
    /// A step ran whose checkpoint was there when the run was claimed.
    RanAgain,
    /// The effect of a transaction step happened twice.
    EffectTwice,
}

// Facts of a run, as bits.
const FIRST: u8 = 1;
const TRANSACTION: u8 = 2;
const LAST: u8 = 4;
const END: u8 = 8;
const BODY: u8 = FIRST | TRANSACTION | LAST;

/// The model: how large, and which rules are broken.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Lives of workers; the last one neither crashes nor is thought dead.
    pub lives: usize,
    /// Runs, all ready at first.
    pub runs: usize,
    /// How often a run may be handed back.
    pub hand_backs: u8,
    /// Whether to explore what comes of it when somebody wrote for a run that it did not hold.
    pub goes_on_after_a_foreign_write: bool,
    /// Rules that do not hold.
    pub broken: Broken<Rule>,
}

/// All there is: the database's rows, the workers' memories, what is between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    runs: Vec<Run<u8>>,
    effects: Vec<u8>,
    lives: Vec<Life>,
    keeper: Option<u8>,
    hand_backs: u8,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Row {
    None,
    Alive,
    Dead,
    Buried,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Life {
    row: Row,
    is_up: bool,
    claiming: Option<Claiming>,
    held: Option<Held>,
    lanes: [Option<Flush>; 2],
    step: Option<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Claiming {
    run: u8,
    history: u8,
}

/// A run in a worker's memory: what it knows, what of that it has sent, and what of that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    run: u8,
    attempt: u32,
    replayed: u8,
    known: u8,
    sent: u8,
    durable: u8,
}

/// A flush on its way; `looked`: what it saw of the claim, the fence taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flush {
    run: u8,
    attempt: u32,
    facts: u8,
    looked: Option<bool>,
}

/// The transaction of a step; `locked`: `finish_step` has passed, the commit is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    run: u8,
    attempt: u32,
    locked: bool,
}

/// What happens next, and in which life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `register_worker`.
    Register(u8),
    /// `claim`, up to its look at the worker and at the ready row.
    ClaimLook(u8, u8),
    /// `claim`, the writing and the commit, then `history`.
    ClaimCommit(u8),
    /// The body of a plain step runs.
    Execute(u8),
    /// The journal sends what has gathered on a lane.
    Send(u8, usize),
    /// `flush`, up to its look at the claims.
    FlushLook(u8, usize),
    /// `flush`, the writing and the commit.
    FlushCommit(u8, usize),
    /// The connection is cut before the server has begun with a flush; the worker finds out.
    FlushLost(u8, usize),
    /// The connection is cut, the worker believes at once that nothing was written.
    Resend(u8),
    /// `begin_step`.
    BeginStep(u8),
    /// `finish_step`.
    FinishStep(u8),
    /// The commit of a step's transaction.
    CommitStep(u8),
    /// A step's transaction ends without effect.
    AbortStep(u8),
    /// `hand_back`: a claim that the worker does not want.
    HandBack(u8),
    /// The process is killed; what it had sent may still be done.
    Crash(u8),
    /// `heartbeat` says that this worker was declared dead: it drops all that it holds.
    Learn(u8),
    /// `heartbeat` makes this worker the keeper.
    Takeover(u8),
    /// `bury_worker(keeper, worker)`.
    Bury(u8, u8),
}

fn bits(run: &Run<u8>) -> u8 {
    run.recorded.iter().map(|(position, _)| position).sum()
}

fn id(life: u8) -> WorkerId {
    WorkerId::from(life)
}

impl Claims {
    fn keeps(&self, rule: Rule) -> bool {
        self.broken.keeps(rule)
    }

    fn is_last(&self, life: u8) -> bool {
        usize::from(life) + 1 == self.lives
    }

    /// Whether something that must end before a burial holds the worker's fence.
    fn fence_is_held(&self, life: &Life) -> bool {
        let is_flushing = life.lanes.iter().flatten().any(|flush| flush.looked.is_some());
        self.keeps(Rule::ClaimFence) && life.claiming.is_some() || self.keeps(Rule::FlushFence) && is_flushing
    }

    fn bury(&self, state: &mut State, worker: u8) {
        let life = state.lives[usize::from(worker)].clone();
        let mut left = false;
        for (n, run) in state.runs.iter_mut().enumerate() {
            let is_locked = self.keeps(Rule::StepLock)
                && life.step.is_some_and(|s| s.locked && usize::from(s.run) == n && s.attempt == run.attempt);
            if run.place == Place::Claim(id(worker)) {
                if is_locked {
                    left = true;
                } else {
                    run.place = Place::Ready;
                }
            }
        }
        let gone = !left || !self.keeps(Rule::BuryWaits);
        state.lives[usize::from(worker)].row = if gone { Row::Buried } else { Row::Dead };
    }

    /// `flush`: what it looked at decides, the rows as they are now get written.
    fn commit_flush(&self, state: &mut State, worker: u8, flush: Flush) {
        let run = &mut state.runs[usize::from(flush.run)];
        let life = &mut state.lives[usize::from(worker)];
        let mut refused = flush.looked != Some(true);
        for position in [FIRST, LAST] {
            if !refused && flush.facts & position != 0 {
                match run.record(position, flush.attempt) {
                    Ok(()) => {}
                    Err(Refusal::RecordedTwice) => {
                        state.fault = Some(Fault::RecordedTwice);
                        refused = true;
                    }
                    Err(_) => {
                        state.fault = Some(Fault::ForeignWrite);
                        run.record_anyway(position, flush.attempt);
                    }
                }
            }
        }
        if !refused && flush.facts & END != 0 && run.release(id(worker), flush.attempt, Place::Ended).is_err()
        {
            state.fault = Some(Fault::ForeignWrite);
        }
        if let Some(held) = life.held.as_mut().filter(|h| h.run == flush.run && h.attempt == flush.attempt) {
            held.durable |= flush.facts;
            if refused || flush.facts & END != 0 {
                life.held = None;
            }
        }
    }

    fn commit_step(&self, state: &mut State, worker: u8, step: Step) {
        let run = &mut state.runs[usize::from(step.run)];
        let life = &mut state.lives[usize::from(worker)];
        let twice = run.has_recorded(&TRANSACTION);
        if twice && self.keeps(Rule::PrimaryKey) {
            life.held = None;
            return;
        }
        if run.record(TRANSACTION, step.attempt) == Err(Refusal::NotTheHolder) {
            state.fault = Some(Fault::ForeignWrite);
            if !twice {
                run.record_anyway(TRANSACTION, step.attempt);
            }
        }
        if self.keeps(Rule::OneCommit) {
            state.effects[usize::from(step.run)] += 1;
        }
        if let Some(held) = life.held.as_mut().filter(|h| h.run == step.run && h.attempt == step.attempt) {
            held.known |= TRANSACTION;
            held.durable |= TRANSACTION;
        }
    }
}

impl Held {
    fn is_barrier_open(&self, model: &Claims) -> bool {
        self.known == self.durable || !model.keeps(Rule::Barrier)
    }

    /// The plain step whose body may run now.
    fn next_plain(&self, model: &Claims) -> Option<u8> {
        match self.known {
            0 => Some(FIRST),
            known if known == FIRST | TRANSACTION && self.is_barrier_open(model) => Some(LAST),
            _ => None,
        }
    }

    /// What was not yet sent to be recorded.
    fn pending(&self) -> u8 {
        let end = if self.known == BODY { END } else { 0 };
        (self.known | end) & !self.sent & !self.durable & !TRANSACTION
    }
}

impl Model for Claims {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let life =
            Life { row: Row::None, is_up: true, claiming: None, held: None, lanes: [None, None], step: None };
        vec![State {
            runs: vec![Run::default(); self.runs],
            effects: vec![0; self.runs],
            lives: vec![life; self.lives],
            keeper: None,
            hand_backs: 0,
            fault: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let goes_on = self.goes_on_after_a_foreign_write && state.fault == Some(Fault::ForeignWrite);
        if state.fault.is_some() && !goes_on {
            return;
        }
        for (life, w) in state.lives.iter().zip(0u8..) {
            if life.is_up {
                self.actions_of_process(state, life, w, actions);
            }
            if life.claiming.is_some() {
                actions.push(Action::ClaimCommit(w));
            }
            for (lane, flush) in life.lanes.iter().enumerate() {
                match flush {
                    Some(flush) if flush.looked.is_some() => actions.push(Action::FlushCommit(w, lane)),
                    Some(_) => actions.extend([Action::FlushLook(w, lane), Action::FlushLost(w, lane)]),
                    None => {}
                }
            }
            if let Some(step) = life.step {
                actions.push(if step.locked { Action::CommitStep(w) } else { Action::FinishStep(w) });
                actions.push(Action::AbortStep(w));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Register(w) => state.lives[usize::from(w)].row = Row::Alive,
            Action::ClaimLook(w, run) => {
                let history = bits(&state.runs[usize::from(run)]);
                let history = if self.keeps(Rule::HistoryAfterClaim) { 0 } else { history };
                state.lives[usize::from(w)].claiming = Some(Claiming { run, history });
            }
            Action::ClaimCommit(w) => {
                let life = &mut state.lives[usize::from(w)];
                let claiming = life.claiming.take()?;
                let run = &mut state.runs[usize::from(claiming.run)];
                let attempt = run.attempt + 1;
                if run.claim(Place::Ready, id(w), attempt).is_ok() && life.is_up {
                    let there = bits(run);
                    let known = if self.keeps(Rule::HistoryAfterClaim) { there } else { claiming.history };
                    life.held = Some(Held {
                        run: claiming.run,
                        attempt,
                        replayed: there,
                        known,
                        sent: 0,
                        durable: known,
                    });
                }
            }
            Action::Execute(w) => {
                let held = state.lives[usize::from(w)].held.as_mut()?;
                let position = held.next_plain(self)?;
                held.known |= position;
                if held.replayed & position != 0 {
                    state.fault = Some(Fault::RanAgain);
                }
            }
            Action::Send(w, lane) => {
                let life = &mut state.lives[usize::from(w)];
                let held = life.held.as_mut()?;
                // On one lane all that has gathered; on any, the oldest fact alone is the worst.
                let pending = held.pending();
                let facts =
                    if self.keeps(Rule::OneLane) { pending } else { pending & pending.wrapping_neg() };
                held.sent |= facts;
                life.lanes[lane] = Some(Flush { run: held.run, attempt: held.attempt, facts, looked: None });
            }
            Action::FlushLook(w, lane) => {
                let flush = state.lives[usize::from(w)].lanes[lane].as_mut()?;
                let run = &state.runs[usize::from(flush.run)];
                let is_held = if self.keeps(Rule::FlushAttempt) {
                    run.is_held(id(w), flush.attempt)
                } else {
                    run.place == Place::Claim(id(w))
                };
                flush.looked = Some(is_held);
            }
            Action::FlushCommit(w, lane) => {
                let flush = state.lives[usize::from(w)].lanes[lane].take()?;
                self.commit_flush(&mut state, w, flush);
            }
            Action::FlushLost(w, lane) => {
                let life = &mut state.lives[usize::from(w)];
                let flush = life.lanes[lane].take()?;
                if let Some(held) =
                    life.held.as_mut().filter(|h| h.run == flush.run && h.attempt == flush.attempt)
                {
                    held.sent &= !flush.facts;
                }
            }
            Action::Resend(w) => {
                let life = &mut state.lives[usize::from(w)];
                let flush = life.lanes[0].take()?;
                life.held.as_mut()?.sent &= !flush.facts;
                life.lanes[1] = Some(flush);
            }
            Action::BeginStep(w) => {
                let life = &mut state.lives[usize::from(w)];
                let held = life.held?;
                life.step = Some(Step { run: held.run, attempt: held.attempt, locked: false });
            }
            Action::FinishStep(w) => {
                let life = &mut state.lives[usize::from(w)];
                let step = life.step.as_mut()?;
                if state.runs[usize::from(step.run)].is_held(id(w), step.attempt) {
                    step.locked = true;
                    if !self.keeps(Rule::OneCommit) {
                        state.effects[usize::from(step.run)] += 1;
                    }
                } else {
                    life.step = None;
                    life.held = None;
                }
            }
            Action::CommitStep(w) => {
                let step = state.lives[usize::from(w)].step.take()?;
                self.commit_step(&mut state, w, step);
            }
            Action::AbortStep(w) => state.lives[usize::from(w)].step = None,
            Action::HandBack(w) => {
                let held = state.lives[usize::from(w)].held.take()?;
                state.hand_backs += 1;
                let _ = state.runs[usize::from(held.run)].release(id(w), held.attempt, Place::Ready);
            }
            Action::Crash(w) | Action::Learn(w) => {
                let life = &mut state.lives[usize::from(w)];
                life.is_up = false;
                life.held = None;
            }
            Action::Takeover(w) => state.keeper = Some(w),
            Action::Bury(_, w) => self.bury(&mut state, w),
        }
        if state.effects.iter().any(|&n| n > 1) {
            state.fault = Some(Fault::EffectTwice);
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("only the holder writes", |_, s: &State| s.fault != Some(Fault::ForeignWrite)),
            Property::always("the primary key is never needed", |_, s: &State| {
                s.fault != Some(Fault::RecordedTwice)
            }),
            Property::always("a recorded step never runs again", |_, s: &State| {
                s.fault != Some(Fault::RanAgain)
            }),
            Property::always("a transaction step takes effect once", |_, s: &State| {
                s.fault != Some(Fault::EffectTwice)
            }),
            Property::always("an effect stands if its checkpoint does", |model: &Claims, s: &State| {
                !model.keeps(Rule::OneCommit)
                    || s.runs
                        .iter()
                        .zip(&s.effects)
                        .all(|(run, &n)| run.has_recorded(&TRANSACTION) == (n > 0))
            }),
            Property::always("a history has no hole", |_, s: &State| {
                s.runs.iter().all(|run| {
                    let known = bits(run);
                    (known & (known + 1)) == 0 && (run.place != Place::Ended || known == BODY)
                })
            }),
        ]
    }
}

impl Claims {
    fn actions_of_process(&self, state: &State, life: &Life, w: u8, actions: &mut Vec<Action>) {
        if life.row == Row::None {
            actions.push(Action::Register(w));
            return;
        }
        if let Some(held) = life.held {
            if held.next_plain(self).is_some() {
                actions.push(Action::Execute(w));
            }
            if held.known == FIRST && held.is_barrier_open(self) && life.step.is_none() {
                actions.push(Action::BeginStep(w));
            }
            let lanes = if self.keeps(Rule::OneLane) { 1 } else { 2 };
            for lane in (0..lanes).filter(|&lane| life.lanes[lane].is_none() && held.pending() != 0) {
                actions.push(Action::Send(w, lane));
            }
            if life.lanes[0].is_some_and(|f| f.looked.is_some() && f.attempt == held.attempt)
                && life.lanes[1].is_none()
                && !self.keeps(Rule::ReadBackAfter)
            {
                actions.push(Action::Resend(w));
            }
            let may_take = !self.keeps(Rule::HandBackFence) || !self.fence_is_held(life);
            if state.hand_backs < self.hand_backs && life.step.is_none() && may_take {
                actions.push(Action::HandBack(w));
            }
        } else if life.row == Row::Alive && life.claiming.is_none() && life.step.is_none() {
            let ready = (0u8..).zip(&state.runs).filter(|(_, run)| run.place == Place::Ready);
            actions.extend(ready.map(|(run, _)| Action::ClaimLook(w, run)));
        }
        if !self.is_last(w) {
            actions.push(Action::Crash(w));
        }
        if matches!(life.row, Row::Dead | Row::Buried) {
            actions.push(Action::Learn(w));
        } else if state.keeper != Some(w) && (state.keeper.is_none() || self.keeps(Rule::Takeover)) {
            actions.push(Action::Takeover(w));
        }
        if state.keeper == Some(w) && life.row == Row::Alive {
            // Any but the last may be thought dead at any moment, alive or not.
            let others = (0u8..).zip(&state.lives).filter(|(other, life)| {
                *other != w
                    && !self.is_last(*other)
                    && matches!(life.row, Row::Alive | Row::Dead)
                    && !self.fence_is_held(life)
            });
            actions.extend(others.map(|(other, _)| Action::Bury(w, other)));
        }
    }
}

impl Goal for Claims {
    fn is_reached(&self, state: &State) -> bool {
        state.runs.iter().all(|run| run.place == Place::Ended)
    }

    fn is_fault(&self, action: &Action) -> bool {
        matches!(
            action,
            Action::Crash(_)
                | Action::HandBack(_)
                | Action::AbortStep(_)
                | Action::FlushLost(..)
                | Action::Resend(_)
        )
    }
}
