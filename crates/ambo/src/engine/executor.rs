//! Executes one run: builds its context, drives its body, turns the end into an outcome.

use std::future::Future as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tracing::Instrument as _;

use super::history::RETRY_NAME;
use super::journal::{Fact, Witness as _};
use super::refusal::{is_own, overdue};
use super::run::{Run, Stop};
use super::wait::Leave;
use super::{Engine, Life, conclude, failpoint};
use crate::context::Ctx;
use crate::error::{Code, Error};
use crate::payload::{self, Json, PAYLOAD_BYTES_MAX};
use crate::store::flush::{NewCheckpoint, NewOutcome, NewPark};
use crate::vault::place::Place;

/// How long a body that is told that its time is up may take to come back: all its durable calls answer at once.
const COMES_BACK: Duration = Duration::from_secs(1);

/// How a run left its body.
pub(super) enum Ending {
    Outcome(&'static str, Result<Json, Error>),
    HandBack,
    /// This worker goes on, but whoever claims the run next undoes what it did.
    GiveBack,
    Fenced,
    /// Its end is recorded already.
    Gone,
    /// It waits for longer than a moment.
    Park(Leave),
    /// It failed, and its body is tried again after a pause.
    Retry(Duration, Error),
    /// It goes on from its checkpoints, of which this is one more: a call has failed after all.
    Refused(NewCheckpoint),
    /// It begins anew with what it takes along.
    Continue(String),
    /// It has ended, by a transaction of its own.
    Completed(Json),
}

/// Runs a run to its end or to a stop. Lives on the users' runtime.
pub(crate) async fn execute(engine: Arc<Engine>, life: Arc<Life>, run: Arc<Run>, input: Json) {
    let span = tracing::info_span!("run", run = %run.id, workflow = run.workflow, attempt = run.attempt);
    let ending = drive(&engine, &run, &input).instrument(span.clone()).await;
    // A transaction step that was dropped is run to a known end first: the outcome must not wait for its locks.
    if !matches!(ending, Ending::Fenced) {
        run.decided().await;
    }
    let was_stopped = run.reason().is_some();
    match ending {
        Ending::Outcome(status, result) => record_outcome(&run, status, result),
        Ending::Gone => {}
        Ending::HandBack => hand_back(&engine, &life, &run).await,
        Ending::GiveBack => give_back(&engine, &life, &run).await,
        Ending::Park(Leave { due, awaits }) => park(&run, NewPark { due, awaits, ..NewPark::default() }),
        Ending::Retry(pause, error) => retry(&run, pause, &error),
        Ending::Refused(call) => go_back(&run, call),
        // Due since long: it is ready at once.
        Ending::Continue(state) => {
            let (due, state) = (Some(Timestamp::UNIX_EPOCH), Some(state));
            park(&run, NewPark { due, state, ..NewPark::default() });
        }
        Ending::Completed(output) => {
            let (id, attempt) = (run.id, run.attempt);
            let outcome =
                NewOutcome { run: id, attempt, status: "succeeded", output: Some(output), error: None };
            life.ended(&run, &outcome, Instant::now());
        }
        Ending::Fenced => {
            span.in_scope(|| {
                tracing::warn!(run = %run.id, worker = life.worker, "lost the run to another worker; dropped it")
            });
            life.lose(&run);
        }
    }
    // The outcome itself may still be refused or fenced: then nobody else would take the run out of memory. The reason
    // that led to this ending is not another one.
    if life.holds(&run) {
        tokio::select! {
            reason = run.stopped(), if !was_stopped => match reason {
                Stop::Fenced => life.lose(&run),
                Stop::Dead(error) => record_outcome(&run, "dead", Err(copy(error))),
                Stop::Refused(call) => go_back(&run, again(call)),
                Stop::HandBack | Stop::GivenBack | Stop::Continue(_) | Stop::Completed(_) | Stop::Overdue => {}
            },
            () = run.settled() => {}
        }
    }
}

async fn drive(engine: &Arc<Engine>, run: &Arc<Run>, input: &str) -> Ending {
    // A run that had begun sees the cancel at its next durable call, so that it can compensate.
    if run.is_cancelled() && run.attempt == 1 {
        return Ending::Outcome("cancelled", Err(conclude::why_cancelled(run).await));
    }
    if run.too_late {
        let text = "the run was claimed after the time by which it had to start";
        return Ending::Outcome("dead", Err(Error::new(Code::Expired, text)));
    }
    let Some(workflow) = engine.registry.get(&run.workflow) else {
        // Lanes of unknown workflows are not claimed, so only a bug brings one here: it is not lost by it.
        tracing::error!("claimed a run of a workflow that this worker does not know");
        return Ending::HandBack;
    };
    if run.was_claimed_late() {
        // Its time was up while nobody had it in memory, as after the death of its worker.
        if run.attempt == 1 {
            return Ending::Outcome("failed", Err(overdue()));
        }
        run.expire();
    } else if !run.is_cancelled() && run.history.not_before.is_some_and(|due| !run.clock.until(due).is_zero())
    {
        // Something woke it between two tries.
        return Ending::Park(Leave { due: run.history.not_before, awaits: None });
    }
    if let Some(why) = conclude::undone_for(run).await {
        // It goes on undoing, not with its body.
        if why.code() == Code::Cancelled && is_own(&why) {
            run.cancel(None);
        }
        run.undone_for(why);
    }
    let input = run.history.continued.as_ref().map_or(input, |continued| continued.input.get());
    let body = async {
        let input = match run.open(&Place::Input { keyed: false }, input).await {
            Ok(input) => input,
            Err(error) => return Err(Ending::Outcome("dead", Err(error))),
        };
        let ctx = Ctx::new(run);
        let mut body = AssertUnwindSafe(workflow.body.run(ctx, &input)).catch_unwind();
        Ok(std::future::poll_fn(|cx| run.watch_poll(|| body.poll_unpin(cx))).await)
    };
    let ended = tokio::select! {
        biased;
        reason = run.stopped() => return stopped(reason),
        ended = body => ended,
        () = time_limit(run) => {
            if run.is_undecided() {
                // It may have to be undone too, and only its code knows.
                return Ending::GiveBack;
            }
            Ok(Ok(Err(overdue())))
        }
        () = grace(run) => return conclude::out_of_grace(run).await,
        leave = run.waits.long(&run.clock) => return Ending::Park(leave),
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(ending) => return ending,
    };
    let concluding = conclude::conclude(run, &workflow.retry, ended);
    tokio::pin!(concluding);
    tokio::select! {
        biased;
        reason = run.stopped() => stopped(reason),
        ending = std::future::poll_fn(|cx| run.watch_poll(|| concluding.as_mut().poll(cx))) => ending,
        () = run.grace_over() => conclude::out_of_grace(run).await,
    }
}

/// Returns when the grace of a cancel is over and the body has not come back for a moment, which is what a replay takes.
async fn grace(run: &Run) {
    run.grace_over().await;
    run.comes_back(COMES_BACK).await;
}

/// Returns when the time of the run is up and its body, told so, has not come back for a moment.
async fn time_limit(run: &Run) {
    match run.deadline {
        Some(deadline) => run.clock.sleep_until(deadline).await,
        None => std::future::pending().await,
    }
    run.expire();
    run.comes_back(COMES_BACK).await;
}

fn stopped(reason: &Stop) -> Ending {
    match reason {
        Stop::Fenced => Ending::Fenced,
        Stop::HandBack => Ending::HandBack,
        Stop::Overdue | Stop::GivenBack => Ending::Gone,
        Stop::Dead(error) => Ending::Outcome("dead", Err(copy(error))),
        Stop::Refused(call) => Ending::Refused(again(call)),
        Stop::Continue(state) => Ending::Continue(state.clone()),
        Stop::Completed(output) => Ending::Completed(output.clone()),
    }
}

/// The same where the grace of its cancel is over.
pub(crate) fn leave_cancelled(run: &Arc<Run>) {
    if run.stop(Stop::Overdue) {
        tracing::warn!(run = %run.id, workflow = run.workflow, "the grace of a cancel is over while the run blocks its thread");
        let run = run.clone();
        tokio::task::spawn_local(async move {
            let why = conclude::why_cancelled(&run).await;
            record_outcome(&run, "dead", Err(conclude::give_up(&run, why)));
            run.send_pending();
        });
    }
}

fn park(run: &Arc<Run>, park: NewPark) {
    run.give(Fact::Park(NewPark { run: run.id, attempt: run.attempt, ..park }));
}

/// Leaves memory and is ready at once, with a call recorded as failed behind which it had gone on.
fn go_back(run: &Arc<Run>, call: NewCheckpoint) {
    park(run, NewPark { due: Some(Timestamp::UNIX_EPOCH), failure: Some(call), ..NewPark::default() });
}

/// What a stop holds cannot be moved out of it.
fn again(call: &NewCheckpoint) -> NewCheckpoint {
    NewCheckpoint {
        run: call.run,
        attempt: call.attempt,
        position: call.position.clone(),
        name: call.name.clone(),
        output: None,
        error: call.error.clone(),
        elapsed_ms: 0,
    }
}

/// Leaves memory until the pause is over. What failed is forgotten in the same commit, so that it is tried again.
fn retry(run: &Arc<Run>, pause: Duration, error: &Error) {
    let failed = run.history.retries + 1;
    let pause = jiff::SignedDuration::try_from(pause).unwrap_or(jiff::SignedDuration::MAX);
    let due = run.clock.now().saturating_add(pause).unwrap_or(Timestamp::MAX);
    tracing::info!(run = %run.id, workflow = run.workflow, failed, until = %due, code = %error.code(),
        "the run failed and is tried again");
    let output = payload::encode("the time of a retry", &due).unwrap_or_else(|_| "null".into());
    let mut failure = run.checkpoint(format!("0.{failed}").into(), RETRY_NAME.into(), output);
    failure.error = Some(encode_error(error));
    let forget = Some(run.history.unhandled().join(",")).filter(|positions| !positions.is_empty());
    park(run, NewPark { due: Some(due), failure: Some(failure), forget, ..NewPark::default() });
}

fn record_outcome(run: &Arc<Run>, status: &'static str, result: Result<Json, Error>) {
    let (output, error) = match result {
        Ok(output) => (Some(output), None),
        Err(error) => (None, Some(encode_failure(run, &error))),
    };
    tracing::debug!(run = %run.id, workflow = run.workflow, status, "run ended");
    // In a queue that goes on without what failed, that is for somebody to look at.
    let goes_on = run.slot.as_ref().is_some_and(|slot| slot.ordered.as_deref() == Some("dead"));
    let status = if status == "failed" && goes_on { "dead" } else { status };
    failpoint::reach("outcome-before");
    let outcome = NewOutcome { run: run.id, attempt: run.attempt, status, output, error };
    run.give(Fact::Outcome(outcome));
}

/// Gives the run back on a connection of its own time: the journal first gets what the run had recorded.
async fn hand_back(engine: &Engine, life: &Life, run: &Arc<Run>) {
    run.flushed().await;
    match return_claim(engine, life, run).await {
        Ok(count) => {
            life.handed_back.fetch_add(usize::try_from(count).unwrap_or(0), Ordering::AcqRel);
            life.forget(run);
        }
        Err(error) => {
            tracing::warn!(run = %run.id, %error, "could not hand the run back; its lease will run out");
            life.lose(run);
        }
    }
}

/// The same for a worker that goes on: it may be this one that claims the run next, so that it is forgotten first.
async fn give_back(engine: &Engine, life: &Life, run: &Arc<Run>) {
    run.flushed().await;
    life.lose(run);
    if let Err(error) = return_claim(engine, life, run).await {
        tracing::warn!(run = %run.id, %error, "could not hand the run back to be undone; it is tried again");
        life.suspicion.store(true, Ordering::Release);
    }
}

async fn return_claim(engine: &Engine, life: &Life, run: &Run) -> Result<i32, Error> {
    let session = life.control.borrow().clone();
    let session = session.ok_or_else(|| Error::new(Code::Unavailable, "the connection is cut"))?;
    let claim = [(run.id, run.attempt)];
    crate::store::claim::hand_back(&session, &engine.target.schema, life.worker, &claim).await
}

/// The recorded form of how a run failed: the error, and where; a retry forgets what failed there. And whether all that it did
/// was undone: then there is nothing to go on from.
fn encode_failure(run: &Run, error: &Error) -> Json {
    #[derive(serde::Serialize)]
    struct At<'a> {
        #[serde(flatten)]
        error: &'a Error,
        at: Vec<Arc<str>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        undone: bool,
    }
    let (at, undone) = (run.history.unhandled(), run.is_undone());
    let encoded = payload::encode("the error", &At { error, at, undone }).ok();
    let json = encoded.filter(|json| json.len() <= ERROR_BYTES_MAX).unwrap_or_else(|| {
        let at = Vec::new();
        payload::encode("the error", &At { error: &shortened(error), at, undone })
            .unwrap_or_else(|_| "{}".into())
    });
    payload::without_nul(json)
}

/// The largest error that is recorded whole, in bytes of JSON; encrypted it is a third larger.
const ERROR_BYTES_MAX: usize = PAYLOAD_BYTES_MAX / 2;

/// The recorded form of an error; one that is too large keeps its code and loses its details.
pub(crate) fn encode_error(error: &Error) -> Json {
    let whole = payload::encode("the error", error).ok().filter(|json| json.len() <= ERROR_BYTES_MAX);
    let json = whole
        .unwrap_or_else(|| serde_json::to_string(&shortened(error)).unwrap_or_else(|_| "{}".into()).into());
    payload::without_nul(json)
}

fn shortened(error: &Error) -> Error {
    let short: String = error.text().chars().take(1000).collect();
    Error::new(error.code(), format!("{short} (details were too large to record)"))
}

/// Takes a run whose time is up from code that keeps its thread, so that it cannot be told: it ends, or is given back to be
/// undone.
pub(crate) fn leave_overdue(engine: &Arc<Engine>, life: &Arc<Life>, run: &Arc<Run>) {
    let (status, error) = match conclude::beyond_reach(run) {
        Some(Err(())) => {
            if run.stop(Stop::GivenBack) {
                tracing::warn!(run = %run.id, workflow = run.workflow,
                    "the time of this run is up while it blocks its thread; it is undone elsewhere");
                let (engine, life, run) = (engine.clone(), life.clone(), run.clone());
                tokio::task::spawn_local(async move { give_back(&engine, &life, &run).await });
            }
            return;
        }
        Some(Ok(error)) => ("dead", error),
        None => ("failed", overdue()),
    };
    if run.stop(Stop::Overdue) {
        tracing::warn!(run = %run.id, workflow = run.workflow, "the time of this run is up while it blocks its thread");
        record_outcome(run, status, Err(error));
        run.send_pending();
    }
}

/// An error kept by the run cannot be moved out of it: what is recorded of it is the same.
fn copy(error: &Error) -> Error {
    Error::new(error.code(), error.text())
}

pub(crate) fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::new(Code::Panicked, format!("{what} panicked: {text}"))
}
