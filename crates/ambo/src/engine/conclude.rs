//! From the end of a body to how its run ends: what it did is undone first where it failed, was cancelled or ran out of time.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::clock;
use super::executor::{Ending, encode_error, panicked};
use super::history::{self, UNDO, UNDO_NAME};
use super::refusal::{cancelled, is_own, overdue};
use super::run::{Run, Stop};
use crate::context::compensate;
use crate::error::{Code, Error};
use crate::payload::{self, Json};
use crate::retry::Retry;
use crate::store;
use crate::vault::place::Place;

/// How a body ended: with a result, or by a panic.
pub(super) type Caught = Result<Result<Json, Error>, Box<dyn Any + Send>>;

/// Why an earlier claim began to undo what the run did, if one has.
pub(super) async fn undone_for(run: &Arc<Run>) -> Option<Error> {
    let recorded = run.history.undone_for()?;
    let opened = run.open(&Place::Failure(UNDO), &recorded).await;
    let decoded = opened.and_then(|opened| payload::decode("the recorded failure", &opened));
    Some(decoded.unwrap_or_else(|_| Error::new(Code::Application, "the run had failed before")))
}

/// From the end of the body to the end of the run. That it is being undone, and why, is recorded before the first
/// compensation, so that a run that began to undo goes on with it, whatever the body does in a replay.
pub(super) async fn conclude(run: &Arc<Run>, policy: &Retry, ended: Caught) -> Ending {
    let undone = undone_for(run).await;
    let is_begun = undone.is_some();
    let is_free = !is_begun && !run.has_expired() && !run.has_passed_over() && run.told() == 0;
    if is_free && let Some(ahead) = run.history.ahead() {
        return ended_early(run, policy, ahead, ended);
    }
    let ended = match ended {
        Ok(Ok(output)) if is_free => return Ending::Outcome("succeeded", Ok(output)),
        Ok(Ok(_)) => Error::new(Code::Application, "the run had failed before"),
        Ok(Err(error)) => error,
        Err(panic) => panicked("the workflow", &*panic),
    };
    let told = if is_begun { None } else { why_told(run).await };
    let error = undone.or(told).unwrap_or(ended);
    if !is_begun && is_to_be_mended(run, &error) {
        // As after a wrong deploy: nothing is undone.
        return Ending::Outcome("dead", Err(error));
    }
    let is_retried = policy.retries() && is_worth_a_retry(&error);
    if is_retried
        && !is_begun
        && !run.is_cancelled()
        && let Some(pause) = policy.pause_after(run.history.retries + 1, clock::jitter())
    {
        return Ending::Retry(pause, error);
    }
    // A commit whose step was dropped may belong to what is to be undone, or end the run.
    run.decided().await;
    if !run.compensations().is_empty() {
        if run.is_grace_over() {
            return out_of_grace(run).await;
        }
        if !is_begun {
            begin(run, &error);
        }
        if !is_own(&error) {
            end_children(run).await;
        }
        // What failed stays what it was: it is past.
        run.history.settle();
        if let Err(error) = compensate::undo(run).await {
            return Ending::Outcome("dead", Err(error));
        }
        run.undone();
    }
    let status = match error.code() {
        // To a parent it is the failure of a child, as any other.
        Code::Cancelled if is_own(&error) => {
            return Ending::Outcome("cancelled", Err(Error::new(Code::Cancelled, error.text())));
        }
        Code::RunTimeout if is_own(&error) => return Ending::Outcome("failed", Err(overdue())),
        Code::NotDecodable => "dead",
        // Tried as often as it may be: it waits for somebody to look at it.
        _ if is_retried => "dead",
        _ => "failed",
    };
    Ending::Outcome(status, Err(error))
}

/// Whether it goes on when somebody has mended what it ended with: a state that the worker was not given, for instance.
fn is_to_be_mended(run: &Run, error: &Error) -> bool {
    error.code() == Code::Configuration || error.is_to_be_mended() && run.history.is_to_be_mended()
}

/// A body that ended by itself before it came to all that it had done before is not the code that did it. As where it makes
/// another call, nothing is undone, for what undoes those calls was not registered; and nothing is forgotten: the code that did it
/// went on after what had failed.
fn ended_early(run: &Run, policy: &Retry, ahead: (String, String), ended: Caught) -> Ending {
    let is_mended = matches!(&ended, Ok(Err(error)) if is_to_be_mended(run, error));
    run.history.settle();
    let (error, how) = match ended {
        Ok(Ok(_)) => return Ending::Outcome("dead", Err(run.ended_before(ahead, "succeeds"))),
        Ok(Err(error)) if is_mended => return Ending::Outcome("dead", Err(error)),
        Ok(Err(error)) => {
            let how = format!("fails with {}", error.code());
            (error, how)
        }
        Err(panic) => (panicked("the workflow", &*panic), "panics".to_owned()),
    };
    // What it decided by may have been outside of its record, and pass.
    match policy.pause_after(run.history.retries + 1, clock::jitter()) {
        Some(pause) if policy.retries() && is_worth_a_retry(&error) => Ending::Retry(pause, error),
        _ => Ending::Outcome("dead", Err(run.ended_before(ahead, &how))),
    }
}

impl Run {
    /// That its code does `how` before it has come to a call which is recorded.
    pub(crate) fn ended_before(&self, (position, name): (String, String), how: &str) -> Error {
        let text = format!(
            "position {position} of run {} holds {name:?}, but the code now {how} before it; \
             deploy code that makes the same calls, then retry the run",
            self.id
        );
        Error::new(Code::NonDeterminism, text)
    }

    /// Ends this history of the run and begins another, with `input`. Never returns.
    pub(crate) async fn continue_as_new<T>(self: &Arc<Self>, input: &str) -> Result<T, Error> {
        if let Some(why) = self.refusal_at_rest().await {
            return Err(why);
        }
        if let Some(ahead) = self.history.ahead() {
            return self.die(self.ended_before(ahead, "continues as new")).await;
        }
        self.vault.check("the input of the run", input)?;
        let input = &self.seal(&Place::Input { keyed: false }, input).await?;
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A child that the database refuses fails here, and not in a history that is gone.
        self.barrier().await;
        self.stop(Stop::Continue(history::continued(&self.history, input, published)?));
        std::future::pending().await
    }
}

/// Why the run was told to end: its [own](is_own) end, also where it is read back.
async fn why_told(run: &Run) -> Option<Error> {
    if run.is_cancelled() {
        return Some(why_cancelled(run).await.permanent());
    }
    run.has_expired().then(|| overdue().permanent())
}

/// How long the database is asked why a run was cancelled: its end waits for that, and a worker that leaves for its end.
const REASON: Duration = Duration::from_secs(30);

/// That the run was cancelled, and why, as far as the database says so in time.
pub(super) async fn why_cancelled(run: &Run) -> Error {
    let asked = async {
        loop {
            let session = run.session().await;
            match store::signal::cancel_reason(&session, &run.target.schema, run.id).await {
                Ok(reason) => return reason,
                Err(error) => {
                    tracing::debug!(run = %run.id, %error, "cannot ask why the run was cancelled; trying again");
                    tokio::time::sleep(Duration::from_millis(100).mul_f64(0.5 + clock::jitter())).await;
                }
            }
        }
    };
    let reason = tokio::time::timeout(REASON, asked).await.ok().flatten();
    cancelled(reason.as_deref())
}

/// Asks the children to end that a failed run did not detach: what they do would outlive what it has undone. Those of a run that
/// was cancelled were asked with it, and the time of one that is out of time is theirs.
async fn end_children(run: &Arc<Run>) {
    if !run.has_children.load(Ordering::Acquire) {
        return;
    }
    // Also those that it has just started; and no others from here on.
    run.barrier().await;
    loop {
        let session = run.session().await;
        match store::signal::end_children(&session, &run.target.schema, run.id).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(run = %run.id, %error, "cannot ask the children of the run to end; trying again");
                tokio::time::sleep(Duration::from_millis(100).mul_f64(0.5 + clock::jitter())).await;
            }
        }
    }
}

/// Records that from here on the run only undoes.
fn begin(run: &Arc<Run>, why: &Error) {
    run.record(UNDO.into(), UNDO_NAME.into(), Err(encode_error(why)), Duration::ZERO);
}

/// The grace of a cancel is over: what is not undone stays so, until somebody has the run go on with that.
pub(super) async fn out_of_grace(run: &Arc<Run>) -> Ending {
    run.decided().await;
    let why = why_cancelled(run).await;
    Ending::Outcome("dead", Err(give_up(run, why)))
}

/// Records that the run only undoes from here on, where that is not recorded yet, and says what is left.
pub(super) fn give_up(run: &Arc<Run>, why: Error) -> Error {
    if !run.is_undoing() && !run.history.has(UNDO) {
        begin(run, &why.permanent());
    }
    run.history.settle();
    let left = compensate::left(run);
    let text = match (run.is_undoing(), left.is_empty()) {
        (true, _) => format!("the grace of the cancel was over before all was undone; left: {left}"),
        (false, false) => {
            format!("the grace of the cancel was over before the run had begun to undo; left: {left}")
        }
        (false, true) => {
            "the grace of the cancel was over before the code of the run had come back".to_owned()
        }
    };
    Error::new(Code::GraceOver, text)
}

/// What becomes of a run whose time is up and whose body blocks its thread. `None`: nothing is to be undone. `Err`: whoever
/// claims it next learns from the record what is to be undone. `Ok`: that was tried, and its code blocks again.
pub(super) fn beyond_reach(run: &Run) -> Option<Result<Error, ()>> {
    let left = compensate::left(run);
    if left.is_empty() && !run.history.has(UNDO) {
        return None;
    }
    if !run.was_claimed_late() {
        return Some(Err(()));
    }
    let text = format!(
        "the time of the run is up, and its code blocks the thread on which it is to be undone; left: {left}"
    );
    Some(Ok(Error::new(Code::NotCompensated, text)))
}

fn is_worth_a_retry(error: &Error) -> bool {
    !error.is_permanent()
        && !matches!(
            error.code(),
            Code::NotDecodable | Code::UnfitMessage | Code::Cancelled | Code::NonDeterminism
        )
}
