//! Executes one run: builds its context, drives its body, turns the end into an outcome.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::journal::Fact;
use super::run::{Run, Stop};
use super::{Engine, Life, failpoint};
use crate::context::Ctx;
use crate::error::{Code, Error};
use crate::payload::{self, Json};
use crate::store::flush::NewOutcome;

/// How a run left its body.
enum Ending {
    Outcome(&'static str, Result<Json, Error>),
    HandBack,
    Fenced,
}

/// Runs a run to its end or to a stop. Lives on the users' runtime.
pub(crate) async fn execute(
    engine: Arc<Engine>,
    life: Arc<Life>,
    run: Arc<Run>,
    input: Json,
    time_left: Option<Duration>,
) {
    let span = tracing::info_span!("run", run = %run.id, workflow = run.workflow, attempt = run.attempt);
    let ending = drive(&engine, &run, &input, time_left).instrument(span.clone()).await;
    // A transaction step that was dropped is run to a known end first: the outcome must not wait for its locks.
    if !matches!(ending, Ending::Fenced) {
        run.decided().await;
    }
    match ending {
        Ending::Outcome(status, result) => record_outcome(&run, status, result),
        Ending::HandBack => hand_back(&engine, &life, &run).await,
        Ending::Fenced => {
            span.in_scope(|| {
                tracing::warn!(worker = life.worker, "lost the run to another worker; dropped it")
            });
            life.forget(&run.id);
        }
    }
    // The outcome itself may still be refused or fenced: then nobody else would take the run out of memory.
    if life.knows(&run.id) {
        tokio::select! {
            reason = run.stopped() => match reason {
                Stop::Fenced => life.forget(&run.id),
                Stop::Dead(error) => record_outcome(&run, "dead", Err(copy(error))),
                Stop::HandBack => {}
            },
            () = run.settled() => {}
        }
    }
}

async fn drive(engine: &Arc<Engine>, run: &Arc<Run>, input: &str, time_left: Option<Duration>) -> Ending {
    // A run that had begun sees the cancel at its next durable call, so that it can compensate.
    if run.is_cancelled() && run.attempt == 1 {
        return Ending::Outcome("cancelled", Err(cancelled()));
    }
    let Some(workflow) = engine.registry.get(&run.workflow) else {
        // Lanes of unknown workflows are not claimed, so only a bug brings one here: it is not lost by it.
        tracing::error!("claimed a run of a workflow that this worker does not know");
        return Ending::HandBack;
    };
    let body = async {
        let ctx = Ctx::new(run);
        let mut body = AssertUnwindSafe(workflow.body.run(ctx, input)).catch_unwind();
        std::future::poll_fn(|cx| run.watch_poll(|| body.poll_unpin(cx))).await
    };
    let deadline = async {
        match time_left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        reason = run.stopped() => return match reason {
            Stop::Fenced => Ending::Fenced,
            Stop::HandBack => Ending::HandBack,
            Stop::Dead(error) => Ending::Outcome("dead", Err(copy(error))),
        },
        ended = body => ended,
        () = deadline => {
            return Ending::Outcome("failed", Err(Error::new(Code::RunTimeout, "the run took longer than its timeout")));
        }
    };
    match ended {
        Ok(Ok(output)) => Ending::Outcome("succeeded", Ok(output)),
        Ok(Err(_)) if run.is_cancelled() => Ending::Outcome("cancelled", Err(cancelled())),
        Ok(Err(error)) if error.code() == Code::NotDecodable => Ending::Outcome("dead", Err(error)),
        Ok(Err(error)) => Ending::Outcome("failed", Err(error)),
        Err(panic) => Ending::Outcome("failed", Err(panicked("the workflow", &*panic))),
    }
}

fn record_outcome(run: &Arc<Run>, status: &'static str, result: Result<Json, Error>) {
    let (output, error) = match result {
        Ok(output) => (Some(output), None),
        Err(error) => (None, Some(encode_error(&error))),
    };
    tracing::debug!(run = %run.id, workflow = run.workflow, status, "run ended");
    failpoint::reach("outcome-before");
    let outcome = NewOutcome { run: run.id, attempt: run.attempt, status, output, error };
    run.journal.record(run.clone(), Fact::Outcome(outcome));
}

/// Gives the run back on a connection of its own time: the journal first gets what the run had recorded.
async fn hand_back(engine: &Engine, life: &Arc<Life>, run: &Arc<Run>) {
    run.flushed().await;
    let session = life.control.borrow().clone();
    if let Some(session) = session {
        let claim = [(run.id, run.attempt)];
        if let Err(error) =
            crate::store::claim::hand_back(&session, &engine.target.schema, life.worker, &claim).await
        {
            tracing::warn!(run = %run.id, %error, "could not hand the run back; its lease will run out");
        }
    }
    life.forget(&run.id);
}

/// The recorded form of an error; one that is too large keeps its code and loses its details.
pub(crate) fn encode_error(error: &Error) -> Json {
    payload::encode("the error", error).unwrap_or_else(|_| {
        let short: String = error.text().chars().take(1000).collect();
        let bare = Error::new(error.code(), format!("{short} (details were too large to record)"));
        serde_json::to_string(&bare).unwrap_or_else(|_| "{}".into()).into()
    })
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "the run was cancelled")
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
