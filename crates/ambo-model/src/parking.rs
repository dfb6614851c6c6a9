//! Parking and waking: a run that waits for signals leaves memory, and each signal finds it, wherever it is.
//!
//! One run that ends when it has had all signals; senders, each with one, in transactions that stay open as long as they like;
//! workers that own the run, park it, claim it, and take the rows that wake it. Statements are apart where their snapshots are.

use stateright::{Model, Property};

use crate::broken::Broken;
use crate::liveness::Goal;

/// What keeps this right. Each can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `send_signal` leaves a row that wakes (`send_wakes`) unconditionally; it does not look where the run is.
    UnconditionalWake,
    /// `wake_up` locks the claim (`for key share`) before it leaves a row in `wake` for its owner.
    HeldClaim,
    /// `wake_up` puts the row back that wakes a run whose claim is locked: on its way to a place not known yet.
    MovingGoesBack,
    /// `wake_up` puts the row back, too, when somebody else has locked the run in `timer`: that may be rolled back.
    LockedTimerGoesBack,
    /// `wake_up` looks for the claim first, and then for the timer.
    ClaimBeforeTimer,
    /// `park` looks for what came for the run after its claim is gone.
    ParkLooksLast,
    /// `next_signal` takes the row in `wake` before it looks for signals.
    TakeBeforeLook,
}

/// The model: how large, and which rules are broken.
#[derive(Clone, Debug)]
pub struct Parking {
    /// Transactions that send a signal.
    pub senders: u8,
    /// Workers.
    pub workers: usize,
    /// How many crashes of workers, and how many locks on the parked run that are rolled back.
    pub faults: u8,
    /// Rules that do not hold.
    pub broken: Broken<Rule>,
}

/// All there is. What is not committed stands with the worker or sender whose transaction it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    claim: Option<u8>,
    ready: bool,
    timer: bool,
    /// Rows in `ready` that wake.
    wakes: u8,
    /// The row in `wake`.
    wake: bool,
    signals: u8,
    consumed: u8,
    ended: bool,
    senders: Vec<Sender>,
    workers: Vec<Worker>,
    /// Somebody (`rewind_run` in a transaction that will be rolled back) has locked the row in `timer`.
    timer_is_locked: bool,
    faults: u8,
}

/// What a sender leaves beside its signal when it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Sender {
    NotYet,
    Wakes,
    Tells,
    Nothing,
    Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Worker {
    memory: Memory,
    parking: Option<Park>,
    waking: Option<Wake>,
}

/// What the owner of the run is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Memory {
    Nothing,
    /// To take the row in `wake`, then to look.
    Take,
    /// To look for signals.
    Look,
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Park {
    Looked { came: bool },
    Deleted,
    Placed { came: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wake {
    Took,
    /// The claim is there, and locked by us: what we leave in `wake` is there with our commit.
    Held {
        leaves: bool,
    },
    NotHeld,
    NotClaimed,
    NotInTimer,
    GoesBack,
    Claims,
    Nothing,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `send_signal` in an open transaction.
    Send(u8),
    /// The sender commits.
    CommitSend(u8),
    /// `claim` takes the run from `ready`, or `bury_worker` has given it back before.
    Claim(u8),
    /// `take_wake`.
    TakeWake(u8),
    /// `next_signal`, after `take_wake`.
    LookForSignal(u8),
    /// A notification or `heartbeat` says that something came.
    Hear(u8),
    /// `park`: the claim is deleted.
    ParkDelete(u8),
    /// `park`: what came meanwhile, and where the run goes.
    ParkPlace(u8),
    /// The flush with the park commits.
    ParkCommit(u8),
    /// `claim` takes a row that wakes.
    WakeTake(u8),
    /// `wake_up`, the next statement of it.
    WakeLook(u8),
    /// The claim with the wake-up commits.
    WakeCommit(u8),
    /// A worker dies; its transactions are rolled back, its claim is given back.
    Crash(u8),
    /// Somebody locks the parked run.
    LockTimer,
    /// And rolls back.
    UnlockTimer,
}

impl State {
    fn worker(&mut self, w: u8) -> &mut Worker {
        &mut self.workers[usize::from(w)]
    }

    fn is_held(&self, model: &Parking) -> bool {
        model.keeps(Rule::HeldClaim)
            && self.workers.iter().any(|w| matches!(w.waking, Some(Wake::Held { .. })))
    }

    fn is_moving(&self) -> bool {
        self.workers.iter().any(|w| matches!(w.parking, Some(Park::Deleted | Park::Placed { .. })))
    }

    fn timer_is_free(&self) -> bool {
        !self.timer_is_locked && !self.workers.iter().any(|w| w.waking == Some(Wake::Claims))
    }

    fn consume(&mut self, w: u8, all: u8) {
        if self.signals > self.consumed {
            self.consumed += 1;
            self.worker(w).memory = Memory::Look;
            if self.consumed == all {
                self.ended = true;
                self.claim = None;
                self.worker(w).memory = Memory::Nothing;
            }
        } else {
            self.worker(w).memory = Memory::Waiting;
        }
    }
}

impl Parking {
    fn keeps(&self, rule: Rule) -> bool {
        self.broken.keeps(rule)
    }

    /// The next statement of `wake_up`.
    fn look(&self, state: &State, stage: Wake) -> Option<Wake> {
        let claim_first = self.keeps(Rule::ClaimBeforeTimer);
        Some(match stage {
            Wake::Took if !claim_first => self.look_in_timer(state, Wake::NotInTimer),
            Wake::Took | Wake::NotInTimer => {
                let is_free = !state.is_moving() || !self.keeps(Rule::HeldClaim);
                if state.claim.is_some() && is_free {
                    Wake::Held { leaves: !state.wake }
                } else {
                    Wake::NotHeld
                }
            }
            Wake::NotHeld if state.claim.is_some() && self.keeps(Rule::MovingGoesBack) => Wake::GoesBack,
            Wake::NotHeld if claim_first => Wake::NotClaimed,
            Wake::NotHeld => Wake::Nothing,
            Wake::NotClaimed => self.look_in_timer(state, Wake::Nothing),
            Wake::Held { .. } | Wake::GoesBack | Wake::Claims | Wake::Nothing => return None,
        })
    }

    fn look_in_timer(&self, state: &State, otherwise: Wake) -> Wake {
        if state.timer && state.timer_is_free() {
            Wake::Claims
        } else if state.timer && self.keeps(Rule::LockedTimerGoesBack) {
            Wake::GoesBack
        } else {
            otherwise
        }
    }

    fn commit_wake(state: &mut State, w: u8) -> Option<()> {
        let stage = state.worker(w).waking.take()?;
        state.wakes -= 1;
        match stage {
            Wake::Held { leaves } => state.wake |= leaves,
            Wake::GoesBack => state.wakes += 1,
            Wake::Claims => {
                state.timer = false;
                state.claim = Some(w);
                state.worker(w).memory = Memory::Take;
            }
            _ => {}
        }
        Some(())
    }

    fn send(&self, state: &State) -> Sender {
        if self.keeps(Rule::UnconditionalWake) || state.timer {
            Sender::Wakes
        } else if state.claim.is_some() {
            Sender::Tells
        } else {
            Sender::Nothing
        }
    }
}

impl Model for Parking {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let worker = Worker { memory: Memory::Nothing, parking: None, waking: None };
        vec![State {
            claim: None,
            ready: true,
            timer: false,
            wakes: 0,
            wake: false,
            signals: 0,
            consumed: 0,
            ended: false,
            senders: vec![Sender::NotYet; usize::from(self.senders)],
            workers: vec![worker; self.workers],
            timer_is_locked: false,
            faults: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (sender, s) in state.senders.iter().zip(0u8..) {
            match sender {
                Sender::NotYet => actions.push(Action::Send(s)),
                Sender::Sent => {}
                _ => actions.push(Action::CommitSend(s)),
            }
        }
        let waking = state.workers.iter().filter(|w| w.waking.is_some()).count();
        for (worker, w) in state.workers.iter().zip(0u8..) {
            match worker.waking {
                None if usize::from(state.wakes) > waking => actions.push(Action::WakeTake(w)),
                None => {}
                Some(stage) if self.look(state, stage).is_some() => actions.push(Action::WakeLook(w)),
                Some(_) => actions.push(Action::WakeCommit(w)),
            }
            if state.ready {
                actions.push(Action::Claim(w));
            }
            match worker.parking {
                Some(Park::Looked { .. }) if state.is_held(self) => {}
                Some(Park::Looked { .. }) => actions.push(Action::ParkDelete(w)),
                Some(Park::Deleted) => actions.push(Action::ParkPlace(w)),
                Some(Park::Placed { .. }) => actions.push(Action::ParkCommit(w)),
                None => {
                    match worker.memory {
                        Memory::Nothing => {}
                        Memory::Take => actions.push(Action::TakeWake(w)),
                        Memory::Look => actions.push(Action::LookForSignal(w)),
                        Memory::Waiting if state.wake => actions.push(Action::Hear(w)),
                        Memory::Waiting => {}
                    }
                    let looks_last = self.keeps(Rule::ParkLooksLast);
                    if worker.memory == Memory::Waiting && !(looks_last && state.is_held(self)) {
                        actions.push(if looks_last { Action::ParkDelete(w) } else { Action::ParkPlace(w) });
                    }
                }
            }
            if state.faults < self.faults && !state.is_held(self) {
                actions.push(Action::Crash(w));
            }
        }
        if state.timer_is_locked {
            actions.push(Action::UnlockTimer);
        } else if state.timer && state.timer_is_free() && state.faults < self.faults {
            actions.push(Action::LockTimer);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send(s) => state.senders[usize::from(s)] = self.send(last),
            Action::CommitSend(s) => {
                let sender = std::mem::replace(&mut state.senders[usize::from(s)], Sender::Sent);
                state.signals += 1;
                state.wakes += u8::from(sender == Sender::Wakes);
                state.wake |= sender == Sender::Tells;
            }
            Action::Claim(w) => {
                state.ready = false;
                state.claim = Some(w);
                state.worker(w).memory =
                    if self.keeps(Rule::TakeBeforeLook) { Memory::Take } else { Memory::Look };
            }
            Action::TakeWake(w) => {
                state.wake = false;
                state.worker(w).memory =
                    if self.keeps(Rule::TakeBeforeLook) { Memory::Look } else { Memory::Waiting };
            }
            Action::LookForSignal(w) => {
                state.consume(w, self.senders);
                let worker = state.worker(w);
                if worker.memory == Memory::Waiting && !self.keeps(Rule::TakeBeforeLook) {
                    worker.memory = Memory::Take;
                }
            }
            Action::Hear(w) => {
                state.worker(w).memory =
                    if self.keeps(Rule::TakeBeforeLook) { Memory::Take } else { Memory::Look };
            }
            Action::ParkDelete(w) => {
                let worker = state.worker(w);
                worker.parking = Some(match worker.parking {
                    Some(Park::Looked { came }) => Park::Placed { came },
                    _ => Park::Deleted,
                });
            }
            Action::ParkPlace(w) => {
                let came = state.wake;
                let looks_last = self.keeps(Rule::ParkLooksLast);
                state.worker(w).parking =
                    Some(if looks_last { Park::Placed { came } } else { Park::Looked { came } });
            }
            Action::ParkCommit(w) => {
                let Some(Park::Placed { came }) = state.worker(w).parking.take() else { return None };
                state.worker(w).memory = Memory::Nothing;
                state.claim = None;
                state.wake &= !came;
                state.ready = came;
                state.timer = !came;
            }
            Action::WakeTake(w) => state.worker(w).waking = Some(Wake::Took),
            Action::WakeLook(w) => {
                let stage = last.workers[usize::from(w)].waking?;
                state.worker(w).waking = self.look(last, stage);
            }
            Action::WakeCommit(w) => Self::commit_wake(&mut state, w)?,
            Action::Crash(w) => {
                state.faults += 1;
                *state.worker(w) = Worker { memory: Memory::Nothing, parking: None, waking: None };
                if state.claim == Some(w) {
                    state.claim = None;
                    state.ready = true;
                }
            }
            Action::LockTimer => {
                state.faults += 1;
                state.timer_is_locked = true;
            }
            Action::UnlockTimer => state.timer_is_locked = false,
        }
        if state.ended {
            // What is still under way finds nothing; the order in which it does makes no difference.
            state.workers =
                vec![Worker { memory: Memory::Nothing, parking: None, waking: None }; self.workers];
            (state.wakes, state.wake, state.faults) = (0, false, self.faults);
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one row carries a live run", |_, s: &State| {
                u8::from(s.claim.is_some()) + u8::from(s.ready) + u8::from(s.timer) == u8::from(!s.ended)
            }),
            // Sent, committed, not consumed; the run sleeps and nothing is under way that would wake it.
            Property::always("no wake-up is lost", |_, s: &State| {
                let is_asleep = s.timer && s.timer_is_free();
                !(is_asleep && s.signals > s.consumed && s.wakes == 0)
            }),
        ]
    }
}

impl Goal for Parking {
    fn is_reached(&self, state: &State) -> bool {
        state.ended
    }

    fn is_fault(&self, action: &Action) -> bool {
        matches!(action, Action::Crash(_) | Action::LockTimer)
    }
}
