//! What may become of one run: the row that carries it and what is recorded of it. The models and the traces of a real
//! database are held to the same rules.

/// A worker, by the id of its life.
pub type WorkerId = i64;

/// Where the one row that carries a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In `ambo.ready`.
    Ready,
    /// In `ambo.claim`.
    Claim(WorkerId),
    /// In `ambo.timer`: delayed or parked.
    Timer,
    /// Nowhere: it has an outcome.
    Ended,
}

/// A run, as its rows tell. `P` is what its positions are named by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run<P> {
    /// The row that carries it.
    pub place: Place,
    /// The number of its last claim; 0 before the first.
    pub attempt: u32,
    /// The rows of `ambo.checkpoint`: position and attempt.
    pub recorded: Vec<(P, u32)>,
}

/// Why something cannot have become of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Who wrote does not hold the claim, or held an earlier one.
    NotTheHolder,
    /// The position was recorded before.
    RecordedTwice,
    /// The row that carries the run is not where it was taken from.
    NotThere,
    /// The attempt is not the one after the last.
    WrongAttempt,
}

impl<P: PartialEq> Default for Run<P> {
    fn default() -> Self {
        Self { place: Place::Ready, attempt: 0, recorded: Vec::new() }
    }
}

impl<P: PartialEq> Run<P> {
    /// `ambo.claim` and `ambo.start` from `ready`, `ambo.wake_up` from `timer`: the attempts count up without a gap.
    pub fn claim(&mut self, from: Place, worker: WorkerId, attempt: u32) -> Result<(), Refusal> {
        if self.place != from {
            return Err(Refusal::NotThere);
        }
        if attempt != self.attempt + 1 {
            return Err(Refusal::WrongAttempt);
        }
        self.place = Place::Claim(worker);
        self.attempt = attempt;
        Ok(())
    }

    /// Whether a claim is still the one that this worker took.
    pub fn is_held(&self, worker: WorkerId, attempt: u32) -> bool {
        self.place == Place::Claim(worker) && self.attempt == attempt
    }

    /// `ambo.flush` and `ambo.finish_step`: a checkpoint, once, by who holds the claim.
    pub fn record(&mut self, position: P, attempt: u32) -> Result<(), Refusal> {
        if !matches!(self.place, Place::Claim(_)) || self.attempt != attempt {
            return Err(Refusal::NotTheHolder);
        }
        if self.has_recorded(&position) {
            return Err(Refusal::RecordedTwice);
        }
        self.recorded.push((position, attempt));
        Ok(())
    }

    /// What becomes of a record that nothing refuses, not even the claim.
    pub fn record_anyway(&mut self, position: P, attempt: u32) {
        self.recorded.push((position, attempt));
    }

    /// `ambo.forget`: what a run that is tried again does not go on with.
    pub fn forget(&mut self, position: &P) -> Result<(), Refusal> {
        if !self.has_recorded(position) {
            return Err(Refusal::NotThere);
        }
        self.recorded.retain(|(p, _)| p != position);
        Ok(())
    }

    /// Whether a position has a checkpoint.
    pub fn has_recorded(&self, position: &P) -> bool {
        self.recorded.iter().any(|(p, _)| p == position)
    }

    /// The claim goes: `ambo.flush` deletes it and the run has ended, `ambo.bury_worker` and `ambo.hand_back` make it
    /// ready, `ambo.park` puts it into `timer`.
    pub fn release(&mut self, worker: WorkerId, attempt: u32, to: Place) -> Result<(), Refusal> {
        if !self.is_held(worker, attempt) {
            return Err(Refusal::NotTheHolder);
        }
        self.place = to;
        Ok(())
    }

    /// The row that carries the run goes from one place to another without a claim: `ambo.fire_timers`, a cancel of a
    /// run that has not begun, `ambo.retry_run`.
    pub fn carry(&mut self, from: Place, to: Place) -> Result<(), Refusal> {
        if self.place != from {
            return Err(Refusal::NotThere);
        }
        self.place = to;
        Ok(())
    }
}
