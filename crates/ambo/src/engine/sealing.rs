//! Between a run and the journal: what its vault makes of payloads. What belongs into the object store is written there before
//! the fact that refers to it goes on, and the later facts of the run wait behind it; the facts of other runs do not.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock;
use super::journal::{Fact, LAST_FLUSH};
use super::run::{Run, Stop};
use crate::error::Error;
use crate::payload::Json;
use crate::store::flush::NewCheckpoint;
use crate::vault::place::{Place, is_payload};

/// Facts on their way to the journal.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    waiting: VecDeque<Vec<Fact>>,
    is_busy: bool,
}

/// Sends facts on, now or after those that wait; the caller holds the lock that `staged` is behind.
pub(crate) fn stage(run: &Arc<Run>, mut facts: Vec<Fact>, staged: &mut Staged) {
    if !staged.is_busy && facts.iter_mut().all(|fact| seal_here(run, fact)) {
        run.send(facts);
        return;
    }
    staged.waiting.push_back(facts);
    if !staged.is_busy {
        staged.is_busy = true;
        run.runtime.spawn(upload(run.clone()));
    }
}

/// Seals what needs nobody but this process; says whether that was all.
fn seal_here(run: &Arc<Run>, fact: &mut Fact) -> bool {
    payloads(fact).into_iter().all(|(place, json)| match run.vault.seal_here(&place, json) {
        Some(Ok(sealed)) => {
            *json = sealed;
            true
        }
        Some(Err(error)) => {
            refuse(run, error);
            true
        }
        None => false,
    })
}

async fn upload(run: Arc<Run>) {
    while let Some(mut facts) = run.next_staged(|staged| {
        let next = staged.waiting.pop_front();
        staged.is_busy = next.is_some();
        next
    }) {
        for (place, json) in facts.iter_mut().flat_map(payloads) {
            if !seal(&run, &place, json).await {
                return;
            }
        }
        run.send(facts);
    }
}

/// Seals one payload, however long that takes; false: nobody needs it any more.
async fn seal(run: &Arc<Run>, place: &Place<'_>, json: &mut Json) -> bool {
    let mut pause = Duration::from_millis(20);
    let mut stopped: Option<Instant> = None;
    loop {
        match run.vault.seal(place, json).await {
            Ok(sealed) => {
                *json = sealed;
                return true;
            }
            Err(error) if error.is_unavailable() => {
                if pause > Duration::from_secs(1) {
                    tracing::warn!(run = %run.id, workflow = run.workflow, %error, "the run waits for the object store");
                } else {
                    tracing::debug!(run = %run.id, %error, "the object store took no payload; trying again");
                }
            }
            Err(error) => {
                refuse(run, error);
                return true;
            }
        }
        match run.reason() {
            Some(Stop::Fenced) => return false,
            // What is not recorded in time is done again elsewhere.
            Some(Stop::HandBack) if stopped.get_or_insert_with(Instant::now).elapsed() > LAST_FLUSH => {
                return false;
            }
            _ => {}
        }
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * clock::jitter())).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// What can never be recorded as it should be is not recorded in the clear.
fn refuse(run: &Run, error: Error) {
    run.stop(Stop::Dead(error));
}

/// The payloads of a fact, and what each is of.
fn payloads(fact: &mut Fact) -> Vec<(Place<'_>, &mut Json)> {
    match fact {
        Fact::Checkpoint(checkpoint) | Fact::Attribute(checkpoint, _) => recorded(checkpoint),
        Fact::Event(_, event) => vec![(Place::Event(&event.key), &mut event.value)],
        Fact::Child(_, child) => vec![(Place::Input { keyed: false }, &mut child.run.input)],
        Fact::Park(park) => park.failure.as_mut().map_or_else(Vec::new, recorded),
        Fact::Outcome(outcome) => {
            let output = outcome.output.as_mut().map(|output| (Place::Output(outcome.run), output));
            let error = outcome.error.as_mut().map(|error| (Place::Error(outcome.run), error));
            output.into_iter().chain(error).collect()
        }
    }
}

fn recorded(checkpoint: &mut NewCheckpoint) -> Vec<(Place<'_>, &mut Json)> {
    let output = checkpoint.output.as_mut().filter(|_| is_payload(&checkpoint.name));
    let output = output.map(|output| (Place::Step(&checkpoint.position), output));
    let error = checkpoint.error.as_mut().map(|error| (Place::Failure(&checkpoint.position), error));
    output.into_iter().chain(error).collect()
}

impl Run {
    /// The payload behind what was recorded; waits for as long as the object store does not answer.
    pub(crate) async fn open<'t>(&self, place: &Place<'_>, recorded: &'t str) -> Result<Cow<'t, str>, Error> {
        self.through_outages(|| self.vault.open(place, recorded)).await
    }

    /// What is recorded of a payload; waits for as long as the object store does not answer.
    pub(crate) async fn seal(&self, place: &Place<'_>, json: &str) -> Result<Json, Error> {
        self.through_outages(|| self.vault.seal(place, json)).await
    }

    /// Asks the vault until the object store answers, pausing longer each time: from 20 ms to 5 s, jittered.
    async fn through_outages<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = Duration::from_millis(20);
        loop {
            match ask().await {
                Err(error) if error.is_unavailable() => {
                    tracing::warn!(run = %self.id, workflow = self.workflow, %error, "the run waits for the object store");
                    tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * clock::jitter())).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                answered => return answered,
            }
        }
    }
}
