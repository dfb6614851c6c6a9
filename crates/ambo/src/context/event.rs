//! Events: what a run publishes, and the wait of another run for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, face};
use super::sleep::{Until, due_at};
use super::step::replay;
use crate::engine::executor::encode_error;
use crate::engine::journal::Fact;
use crate::engine::run::{Run, Stop};
use crate::engine::wait::{Awaited, For};
use crate::error::{Code, Error, Result};
use crate::id::RunId;
use crate::payload;
use crate::store;
use crate::store::claim::Checkpoint;
use crate::store::flush::NewEvent;
use crate::vault::place::Place;

/// Between two looks of a run in memory, from the first to the later ones.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Between two looks of a run that is parked.
const PARKED_LOOK: Duration = Duration::from_secs(10);

/// What the names of published values begin with.
const NAME: &str = "ambo:event ";

/// The key and the number of the value that a checkpoint says was published.
pub(crate) fn published(checkpoint: &Checkpoint) -> Option<(String, i32)> {
    let key = checkpoint.name.strip_prefix(NAME)?;
    Some((key.to_owned(), checkpoint.output.as_deref()?.parse().ok()?))
}

/// The wait for an event of another run. See [`Ctx::event`](crate::Ctx::event).
#[must_use = "a wait does nothing until it is awaited"]
pub struct Event<'a, T>(Call<'a, Option<Duration>, Result<T>>);

face!(Event<'a, T>, Option<Duration>, Result<T>);

impl<'a, T: DeserializeOwned + Send + 'a> Event<'a, T> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, of: RunId, key: String) -> Self {
        Event(Call::new(None, move |timeout| receive(run, position, of, key, timeout)))
    }

    /// How long to wait, by the database's clock; then the call fails with `AMBO042`. Default: for ever.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.0.configure(|timeout| *timeout = Some(limit));
        self
    }
}

/// Publishes: the value and the checkpoint that says so are one fact.
pub(crate) fn publish<T: Serialize>(run: &Arc<Run>, position: Arc<str>, key: &str, value: &T) -> Result<()> {
    check_key(key)?;
    if key.starts_with("ambo:") {
        let text = "keys of events that begin with \"ambo:\" are Ambo's own: an update is answered with `Ctx::answer`";
        return Err(Error::new(Code::InvalidName, text));
    }
    answer(run, position, key, value)
}

/// [`publish`], under a key of Ambo's own.
pub(crate) fn answer<T: Serialize>(run: &Arc<Run>, position: Arc<str>, key: &str, value: &T) -> Result<()> {
    check_key(key)?;
    let value = run.vault.encode("the value of an event", value)?;
    give(run, position, key, value).map(drop)
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 200 || key.contains('\0') {
        let text = format!("the key of an event has 1 to 200 bytes and no NUL; this one has {}", key.len());
        return Err(Error::new(Code::InvalidName, text));
    }
    Ok(())
}

/// [`publish`], of what is encoded. Says whether it is published: not if it was passed over.
pub(crate) fn give(run: &Arc<Run>, position: Arc<str>, key: &str, value: payload::Json) -> Result<bool> {
    let name = format!("{NAME}{key}");
    match run.replay(&position, &name) {
        Ok(Some(_)) => return Ok(true),
        Ok(None) => {}
        Err(error) => {
            let copy = Error::new(error.code(), error.text());
            run.stop(Stop::Dead(error));
            return Err(copy);
        }
    }
    if !run.admits()? {
        return Ok(false);
    }
    let number = run.next_number(key);
    let checkpoint = run.checkpoint(position, name.into(), number.to_string().into());
    run.give(Fact::Event(checkpoint, NewEvent { key: key.into(), number, value }));
    Ok(true)
}

async fn receive<T: DeserializeOwned>(
    run: &Arc<Run>,
    position: Arc<str>,
    of: RunId,
    key: String,
    timeout: Option<Duration>,
) -> Result<T> {
    check_key(&key)?;
    let name = format!("ambo:await {key} of {of}");
    if let Some(recorded) = replay::<Box<serde_json::value::RawValue>, Error>(run, &position, &name).await {
        run.history.pass(&format!("{position}.0"));
        let value = recorded.map_err(Error::from).inspect_err(|error| run.history.note(&position, error))?;
        return match payload::decode(&format!("the event {key:?}"), value.get()) {
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
    let look_again = || {
        let look = run.clock.now().saturating_add(PARKED_LOOK).unwrap_or(jiff::Timestamp::MAX);
        due.map_or(look, |due| due.min(look))
    };
    // What was started is durable before anybody is asked about it.
    run.barrier().await;
    let mut pause = LOOKS.0;
    // Through all looks: one that comes round once a moment must not keep the run in memory.
    let what = format!("the event {key:?} of run {of}");
    let awaited = Awaited { position: position.clone(), what, run: Some(of) };
    let waits = run.waits.wait(For::News, Some(look_again()), awaited);
    loop {
        let nudged = run.waits.nudged();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        let found = match look(run, of, &key).await {
            Ok(found) => found,
            Err(never) => {
                run.record(position, name.into(), Err(encode_error(&never)), Duration::ZERO);
                return Err(never);
            }
        };
        if let Some(value) = found {
            // Recorded as its own: the other run may leave earlier, and its objects with it.
            let value = match run.open(&Place::Event(&key), &value).await {
                Ok(value) => value,
                Err(error) => return run.die(error).await,
            };
            let read = payload::decode(&format!("the event {key:?}"), &value);
            // That it did not fit is what the run was told, and is told in every replay until it is retried.
            let read = read.inspect_err(|error| run.history.note(&position, error));
            let recorded = read.as_ref().map(|_| value.into()).map_err(encode_error);
            run.record(position, name.into(), recorded, Duration::ZERO);
            return read;
        }
        if let Some(why) = run.refusal_at_rest().await {
            return Err(why);
        }
        if due.is_some_and(|due| run.clock.until(due).is_zero()) {
            let text = format!("run {of} published nothing under {key:?} in time");
            let error = Error::new(Code::WaitTimeout, text);
            run.record(position, name.into(), Err(encode_error(&error)), Duration::ZERO);
            return Err(error);
        }
        waits.put_off(look_again());
        let left = due.map_or(pause, |due| run.clock.until(due).min(pause));
        pause = (pause * 2).min(LOOKS.1);
        tokio::select! {
            () = nudged => {}
            () = tokio::time::sleep(left) => {}
        }
    }
}

/// The present value under the key, if there is one; fails where none will come.
async fn look(run: &Arc<Run>, of: RunId, key: &str) -> Result<Option<payload::Json>> {
    let _looks = run.waits.look();
    let session = run.session().await;
    match store::signal::present_event(&session, &run.target.schema, of.as_uuid(), key).await {
        Ok((None, true)) => {
            let text = format!("run {of} has ended and published nothing under {key:?}");
            Err(Error::new(Code::WrongState, text))
        }
        Ok((value, _)) => Ok(value),
        Err(error) if error.code() == Code::UnknownRun => Err(error),
        Err(error) => {
            tracing::debug!(run = %run.id, %error, "cannot look for an event; trying again");
            Ok(None)
        }
    }
}
