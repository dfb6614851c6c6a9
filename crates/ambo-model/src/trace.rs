//! Replays what a real database did to its runs, and says where that leaves the protocol.
//!
//! The events are in an order in which each run's own are as they happened. Row locks and the fence see to that where a trigger
//! numbers them: whoever changes the row that carries a run waits for the one who changed it before.

use std::collections::HashMap;

use crate::run::{Place, Refusal, Run, WorkerId};

/// What happened to a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A row came into `ready` (one that carries the run): enqueued, fired, handed back, buried, woken by its park.
    Ready,
    /// A row came into `timer`: delayed or parked.
    Timer,
    /// A row came into `claim`.
    Claimed {
        /// Whose.
        worker: WorkerId,
        /// Its number.
        attempt: u32,
    },
    /// A row came into `checkpoint`.
    Recorded {
        /// Where in the run.
        position: String,
        /// Under which claim.
        attempt: u32,
    },
    /// A row left `checkpoint`: `ambo.forget`.
    Forgotten {
        /// Where in the run.
        position: String,
    },
    /// A row came into `outcome`.
    Ended {
        /// Under which claim; 0 for a run that never began.
        attempt: u32,
    },
}

/// What does not follow the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The number of the event in the trace.
    pub at: usize,
    /// Why it cannot be.
    pub why: Refusal,
}

/// Replays a trace of `(run, event)` and gives what became of the runs, or the first event that cannot be.
pub fn replay<'a, R>(
    events: impl IntoIterator<Item = &'a (R, Event)>,
) -> Result<HashMap<&'a R, Run<String>>, Breach>
where
    R: Eq + std::hash::Hash + 'a,
{
    let mut runs: HashMap<&R, Run<String>> = HashMap::new();
    for (at, (id, event)) in events.into_iter().enumerate() {
        let is_new = !runs.contains_key(id);
        let run = runs.entry(id).or_default();
        step(run, event, is_new).map_err(|why| Breach { at, why })?;
    }
    Ok(runs)
}

fn step(run: &mut Run<String>, event: &Event, is_new: bool) -> Result<(), Refusal> {
    let moved_to = |run: &mut Run<String>, place| match run.place {
        _ if is_new => {
            run.place = place;
            Ok(())
        }
        // Not from where it is already, and not from its end: that is a retry, which these traces do not have.
        Place::Ended => Err(Refusal::NotThere),
        from if from == place => Err(Refusal::NotThere),
        Place::Claim(worker) => run.release(worker, run.attempt, place),
        from => run.carry(from, place),
    };
    match event {
        Event::Ready => moved_to(run, Place::Ready),
        Event::Timer => moved_to(run, Place::Timer),
        // `ambo.start` claims what never was ready.
        Event::Claimed { worker, attempt } => {
            run.claim(if run.place == Place::Timer { Place::Timer } else { Place::Ready }, *worker, *attempt)
        }
        Event::Recorded { position, attempt } => run.record(position.clone(), *attempt),
        Event::Forgotten { position } => run.forget(position),
        Event::Ended { attempt } => {
            if *attempt != run.attempt {
                return Err(Refusal::WrongAttempt);
            }
            moved_to(run, Place::Ended)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(worker: WorkerId, attempt: u32) -> Event {
        Event::Claimed { worker, attempt }
    }

    fn recorded(position: &str, attempt: u32) -> Event {
        Event::Recorded { position: position.into(), attempt }
    }

    /// Where a trace of one run leaves the protocol.
    fn breach(events: &[Event]) -> Option<(usize, Refusal)> {
        let trace: Vec<(u8, Event)> = events.iter().map(|event| (0, event.clone())).collect();
        replay(&trace).err().map(|breach| (breach.at, breach.why))
    }

    #[test]
    fn a_run_that_is_lost_parked_and_woken_follows_the_protocol() {
        let trace = [
            Event::Ready,
            claimed(1, 1),
            recorded("1", 1),
            Event::Ready,
            claimed(2, 2),
            recorded("2", 2),
            Event::Timer,
            claimed(3, 3),
            Event::Ended { attempt: 3 },
        ];
        assert_eq!(breach(&trace), None);
    }

    #[test]
    fn what_leaves_the_protocol_is_found() {
        let start = [Event::Ready, claimed(1, 1)];
        let after = |rest: &[Event]| breach(&[&start, rest].concat());
        assert_eq!(after(&[claimed(2, 2)]), Some((2, Refusal::NotThere)));
        assert_eq!(after(&[recorded("1", 1), recorded("1", 1)]), Some((3, Refusal::RecordedTwice)));
        assert_eq!(after(&[Event::Ready, recorded("1", 1)]), Some((3, Refusal::NotTheHolder)));
        assert_eq!(after(&[Event::Ready, claimed(2, 2), recorded("1", 1)]), Some((4, Refusal::NotTheHolder)));
        assert_eq!(after(&[Event::Ready, claimed(2, 1)]), Some((3, Refusal::WrongAttempt)));
        assert_eq!(after(&[Event::Ready, Event::Ready]), Some((3, Refusal::NotThere)));
        assert_eq!(after(&[Event::Ended { attempt: 1 }, Event::Ready]), Some((3, Refusal::NotThere)));
    }
}
