//! Signals as the run that they are sent to sees them.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::call::{Call, face};
use super::sleep::{Until, due_at};
use super::step::replay;
use super::{Update, event, update};
use crate::engine::clock;
use crate::engine::executor::encode_error;
use crate::engine::run::Run;
use crate::engine::wait::{Awaited, For};
use crate::error::{Code, Error, Result};
use crate::payload;
use crate::store;
use crate::store::claim::Checkpoint;
use crate::store::signal::Sent;
use crate::vault::place::Place;

/// What the names of consumed signals begin with.
pub(crate) const NAME: &str = "ambo:signal ";

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
        Signal(Call::new(None, move |timeout| receive(run, position, topic, timeout, None)))
    }

    /// How long to wait, by the database's clock; then the call fails with `AMBO042`. Default: for ever.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.0.configure(|timeout| *timeout = Some(limit));
        self
    }
}

impl<'a, T: DeserializeOwned + Send + 'a> Signal<'a, Update<T>> {
    pub(crate) fn request(run: &'a Arc<Run>, position: Arc<str>, topic: String) -> Self {
        let wanted = Some(std::any::type_name::<T>());
        Signal(Call::new(None, move |timeout| receive(run, position, topic, timeout, wanted)))
    }
}

/// Waits for a signal that fits. `request`: the type that a request is to hold. A request that holds another, or that comes where
/// the run waits for a plain signal, is answered, and the wait goes on. To the run a plain signal that does not fit is an error, recorded beside what it took: the same in every replay, until a retry
/// of the run forgets it and takes the signal again, perhaps with code that it fits.
async fn receive<T: DeserializeOwned>(
    run: &Arc<Run>,
    position: Arc<str>,
    topic: String,
    timeout: Option<Duration>,
    request: Option<&'static str>,
) -> Result<T> {
    if topic.is_empty() || topic.len() > 200 || topic.contains('\0') {
        let text =
            format!("the topic of a signal has 1 to 200 bytes and no NUL; this one has {}", topic.len());
        return Err(Error::new(Code::InvalidName, text));
    }
    if topic.starts_with("ambo:") {
        return Err(Error::new(Code::InvalidName, "topics that begin with \"ambo:\" are Ambo's own"));
    }
    let name = format!("{NAME}{topic}");
    let mut refused = pass_refusals(run, &position, &name).await;
    if let Some(recorded) = replay::<Consumed, Error>(run, &position, &name).await {
        run.history.pass(&format!("{position}.0"));
        let Consumed { seq, payload } =
            recorded.map_err(Error::from).inspect_err(|error| run.history.note(&position, error))?;
        return match read(&open(run, &payload, &topic).await, seq, &topic) {
            Ok(read) => Ok(read),
            // It did fit when it came: to other code.
            Err(error) => run.die(error).await,
        };
    }
    let due = match timeout {
        Some(limit) => {
            Some(due_at(run, &format!("{position}.0").into(), "ambo:until", Until::For(limit)).await?)
        }
        None => None,
    };
    // From here on, through all looks: one that comes round once a moment must not keep the run in memory.
    let what = format!("the signal {topic:?}");
    let _waits = run.waits.wait(For::News, due, Awaited { position: position.clone(), what, run: None });
    loop {
        let nudged = run.waits.nudged();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        if let Some(Sent { seq, key, payload }) = next(run, &topic).await {
            let consumed = Consumed { seq, payload: RawValue::from_string(payload.into())? };
            // As it came, however deep: what cannot be read is an error of the call, and not of the record.
            let json: payload::Json = serde_json::to_string(&consumed)?.into();
            let opened = open(run, &consumed.payload, &topic).await;
            // From here to the record nothing waits: what is taken and dropped would be lost.
            if !run.consume(seq) {
                continue; // Another branch was faster.
            }
            let asked = key.as_deref().and_then(|key| update::key_of(key, &opened));
            let read = match (request, asked) {
                (Some(_), None) => Err(unfit(format!("signal {seq} under {topic:?} is no update"))),
                _ => read(&opened, seq, &topic),
            };
            if let Some(key) = asked.filter(|_| request.is_none() || read.is_err()) {
                refused += 1;
                let [taken, told] = refusal(&position, refused);
                let answer = update::refusal(key, &topic, request);
                if event::give(run, told, &update::answer_key(key), answer)? {
                    run.record(taken, name.clone().into(), Ok(json), Duration::ZERO);
                }
                continue;
            }
            let read = read.inspect_err(|error| run.history.note(&position, error));
            run.record_with(position, name.into(), json, read.as_ref().err().map(encode_error));
            return read;
        }
        if let Some(why) = run.refusal_at_rest().await {
            return Err(why);
        }
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

/// Where a wait records the request number `n` that it refused: that it took it, and what it told its sender.
fn refusal(position: &str, n: usize) -> [Arc<str>; 2] {
    [format!("{position}.{}", 2 * n - 1).into(), format!("{position}.{}", 2 * n).into()]
}

/// Comes by the requests that this wait has refused before; says how many.
async fn pass_refusals(run: &Arc<Run>, position: &str, name: &str) -> usize {
    for n in 1.. {
        let [taken, told] = refusal(position, n);
        if !run.history.has(&taken) {
            return n - 1;
        }
        if let Err(error) = run.replay(&taken, name) {
            run.die(error).await
        }
        run.history.pass(&told);
    }
    0
}

/// Returns when the time has come by the database's clock.
pub(crate) async fn until(run: &Run, due: Option<jiff::Timestamp>) {
    match due {
        Some(due) => run.clock.sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What was sent: in the record an envelope stays one.
async fn open<'t>(run: &Run, payload: &'t RawValue, topic: &str) -> Cow<'t, str> {
    match run.open(&Place::Signal { topic, keyed: false }, payload.get()).await {
        Ok(payload) => payload,
        Err(error) => run.die(error).await,
    }
}

fn read<T: DeserializeOwned>(payload: &str, seq: i64, topic: &str) -> Result<T> {
    payload::decode(&format!("signal {seq} under {topic:?}"), payload)
        .map_err(|error| unfit(error.text().to_owned()))
}

fn unfit(why: String) -> Error {
    let cure = "drop it and send another, or correct the type; then retry the run";
    Error::new(Code::UnfitMessage, format!("{why}: {cure}"))
}

/// The next signal that nobody in this run has taken. Asks until the database answers.
async fn next(run: &Arc<Run>, topic: &str) -> Option<Sent> {
    let _looks = run.waits.look();
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
                return found.signal;
            }
            Err(error) => {
                tracing::debug!(run = %run.id, %error, "cannot look for signals; trying again");
                tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * clock::jitter())).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}
