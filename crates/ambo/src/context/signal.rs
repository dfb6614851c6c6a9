//! Signals as the run that they are sent to sees them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::call::{Call, face};
use super::sleep::{Until, due_at};
use super::step::replay;
use crate::engine::clock;
use crate::engine::executor::encode_error;
use crate::engine::run::Run;
use crate::engine::wait::For;
use crate::error::{Code, Error, Result};
use crate::payload;
use crate::store;
use crate::store::claim::Checkpoint;
use crate::vault::place::Place;

/// What the names of consumed signals begin with.
const NAME: &str = "ambo:signal ";

/// Between two looks of a run that is busy besides, and so is not parked: where all workers are full, no claim comes by
/// the rows that wake.
const LOOK: Duration = Duration::from_secs(1);

/// The wait for a signal. See [`Ctx::signal`](crate::Ctx::signal).
#[must_use = "a wait does nothing until it is awaited"]
pub struct Signal<'a, T>(Call<'a, Option<Duration>, Result<T>>);

face!(Signal<'a, T>, Option<Duration>, Result<T>);

/// The record of a consumed signal: which, and what it said.
#[derive(Serialize, Deserialize)]
struct Consumed {
    seq: i64,
    payload: Box<RawValue>,
}

/// The number of the signal that a checkpoint says was consumed.
pub(crate) fn consumed(checkpoint: &Checkpoint) -> Option<i64> {
    if !checkpoint.name.starts_with(NAME) {
        return None;
    }
    serde_json::from_str::<Consumed>(checkpoint.output.as_deref()?).ok().map(|consumed| consumed.seq)
}

impl<'a, T: DeserializeOwned + Send + 'a> Signal<'a, T> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, topic: String) -> Self {
        Signal(Call::new(None, move |timeout| receive(run, position, topic, timeout)))
    }

    /// How long to wait, by the database's clock; then the call fails with `AMBO042`. Default: for ever.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.0.configure(|timeout| *timeout = Some(limit));
        self
    }
}

async fn receive<T: DeserializeOwned>(
    run: &Arc<Run>,
    position: Arc<str>,
    topic: String,
    timeout: Option<Duration>,
) -> Result<T> {
    if topic.is_empty() || topic.len() > 200 || topic.contains('\0') {
        let text =
            format!("the topic of a signal has 1 to 200 bytes and no NUL; this one has {}", topic.len());
        return Err(Error::new(Code::InvalidName, text));
    }
    let name = format!("{NAME}{topic}");
    if let Some(recorded) = replay::<Consumed, Error>(run, &position, &name).await {
        return read(run, &recorded?.payload, &topic).await;
    }
    let due = match timeout {
        Some(limit) => {
            Some(due_at(run, &format!("{position}.0").into(), "ambo:until", Until::For(limit)).await?)
        }
        None => None,
    };
    // From here on, through all looks: one that comes round once a moment must not keep the run in memory.
    let _waits = run.waits.wait(For::News, due);
    loop {
        let nudged = run.waits.nudged();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        if let Some((seq, payload)) = next(run, &topic).await {
            let payload = RawValue::from_string(payload.into()).map_err(|error| {
                Error::new(Code::NotDecodable, "the payload of a signal is not JSON").with_source(error)
            })?;
            let consumed = Consumed { seq, payload };
            let json = payload::encode("a signal", &consumed)?;
            run.record(position, name.into(), Ok(json), Duration::ZERO);
            return read(run, &consumed.payload, &topic).await;
        }
        run.check_cancel()?;
        if due.is_some_and(|due| run.clock.until(due).is_zero()) {
            let text = format!("no signal came under {topic:?} within {:?}", timeout.unwrap_or_default());
            let error = Error::new(Code::WaitTimeout, text);
            run.record(position, name.into(), Err(encode_error(&error)), Duration::ZERO);
            return Err(error);
        }
        tokio::select! {
            () = nudged => {}
            () = until(run, due) => {}
            () = tokio::time::sleep(LOOK.mul_f64(0.75 + 0.5 * clock::jitter())) => {}
        }
    }
}

/// Returns when the time has come by the database's clock.
pub(crate) async fn until(run: &Run, due: Option<jiff::Timestamp>) {
    match due {
        Some(due) => run.clock.sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Reads what was sent, as it was: an envelope stays one in the record.
async fn read<T: DeserializeOwned>(run: &Run, payload: &RawValue, topic: &str) -> Result<T> {
    let payload = match run.open(&Place::Signal { topic, keyed: false }, payload.get()).await {
        Ok(payload) => payload,
        Err(error) => return run.die(error).await,
    };
    payload::decode(&format!("the signal {topic:?}"), &payload)
}

/// The next signal that nobody in this run has taken, and takes it. Asks until the database answers.
async fn next(run: &Arc<Run>, topic: &str) -> Option<(i64, Box<str>)> {
    let _at_work = run.waits.work();
    let mut pause = Duration::from_millis(10);
    loop {
        let session = run.session().await;
        let known = run.consumed().clone();
        match store::signal::next(&session, &run.target.schema, run.id, topic, &known).await {
            Ok(found) => {
                if found.again {
                    // Something came, and this look took the row that said so: the others look as well.
                    run.nudge();
                }
                let (seq, payload) = found.signal?;
                let mut consumed = run.consumed();
                // Another branch may have been faster.
                if !consumed.contains(&seq) {
                    consumed.push(seq);
                    return Some((seq, payload));
                }
            }
            Err(error) => {
                tracing::debug!(run = %run.id, %error, "cannot look for signals; trying again");
                tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * clock::jitter())).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}
