//! Steps: replayed if recorded, else tried until they succeed or the retry policy gives up.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use crate::engine::run::Run;
use crate::engine::wait::Work;
use crate::engine::{clock, executor, failpoint};
use crate::error::{ApplicationError, Code, Error, Failure, to_error, to_failure};
use crate::id::RunId;
use crate::payload;
use crate::retry::Retry;
use crate::store::claim::Checkpoint;
use crate::vault::place::Place;

/// What a step's body is told: which attempt it is, and the key to hand to the outside.
#[derive(Debug, Clone)]
pub struct Attempt {
    number: u32,
    run: RunId,
    position: Arc<str>,
}

impl Attempt {
    /// An attempt made by hand, to call a step's function in a unit test.
    pub fn new(number: u32, run: RunId, position: impl Into<Arc<str>>) -> Self {
        Attempt { number, run, position: position.into() }
    }

    /// The number of this attempt in this worker, from 1. A crash begins again at 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// A key that is the same for every attempt of this step of this run, in whatever worker, and for no other
    /// step: hand it to the outside system, and it can tell a repetition from a second order.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}", self.run, self.position)
    }
}

/// A step that was built: configure it, then await it. See [`Ctx::step`](crate::Ctx::step).
#[must_use = "a step does nothing until it is awaited"]
pub struct Step<'a, T, E> {
    state: State<'a, T, E>,
    options: Options<'a, E>,
}

type Running<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, Failure<E>>> + Send + 'a>>;

/// The type of the body is forgotten here: so futures of workflows that join steps stay provably `Send`.
type Plan<'a, T, E> = Box<dyn FnOnce(Options<'a, E>) -> Running<'a, T, E> + Send + 'a>;

enum State<'a, T, E> {
    Built(Plan<'a, T, E>),
    Running(Running<'a, T, E>),
    Moving,
}

struct Options<'a, E> {
    retry: Retry,
    retry_if: Option<Predicate<'a, E>>,
    timeout: Option<Duration>,
    cancel_at_once: bool,
}

impl<E> Options<'_, E> {
    fn none() -> Self {
        Options { retry: Retry::none(), retry_if: None, timeout: None, cancel_at_once: false }
    }
}

type Predicate<'a, E> = Box<dyn Fn(&E) -> bool + Send + Sync + 'a>;

impl<'a, T, E> Step<'a, T, E> {
    pub(crate) fn new<F, Fut>(run: &'a Arc<Run>, position: Arc<str>, name: Cow<'static, str>, body: F) -> Self
    where
        F: FnMut(Attempt) -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        T: Serialize + DeserializeOwned + Send + 'a,
        E: ApplicationError,
    {
        let plan: Plan<'a, T, E> =
            Box::new(move |options| Box::pin(perform(run, position, name, body, options)));
        Step { state: State::Built(plan), options: Options::none() }
    }

    /// How failed attempts are tried again. Default: not at all. The attempts are counted in memory: after a crash
    /// they begin anew.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.options.retry = retry;
        self
    }

    /// Which of the application's errors are worth another attempt. Default: all. Time limits and panics are
    /// always tried again while the policy allows it.
    pub fn retry_if(mut self, worth_it: impl Fn(&E) -> bool + Send + Sync + 'a) -> Self {
        self.options.retry_if = Some(Box::new(worth_it));
        self
    }

    /// How long one attempt may take; its future is dropped then. Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// A cancel of the run does not wait for the attempt under way: its future is dropped as soon as the worker learns of the
    /// cancel, within a second or so, and nothing is recorded of the step. Default: it is finished and recorded, so that what
    /// undoes it can be registered.
    ///
    /// What the attempt has done is not undone by a compensation that is registered after the step: let it be a step that
    /// does no harm half done, or register before it what undoes it. Code that blocks its thread is not interrupted, nor is what the
    /// attempt has spawned.
    pub fn cancel_at_once(mut self) -> Self {
        self.options.cancel_at_once = true;
        self
    }
}

// Nothing in it is pinned in place: the running future is boxed.
impl<T, E> Unpin for Step<'_, T, E> {}

impl<T, E> Future for Step<'_, T, E> {
    type Output = Result<T, Failure<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Built(_) = self.state
            && let State::Built(plan) = std::mem::replace(&mut self.state, State::Moving)
        {
            let options = std::mem::replace(&mut self.options, Options::none());
            self.state = State::Running(plan(options));
        }
        match &mut self.state {
            State::Running(running) => running.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }
}

async fn perform<T, E, F, Fut>(
    run: &Arc<Run>,
    position: Arc<str>,
    name: Cow<'static, str>,
    body: F,
    options: Options<'_, E>,
) -> Result<T, Failure<E>>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    T: Serialize + DeserializeOwned,
    E: ApplicationError,
{
    super::check_name(&name).map_err(Failure::Ambo)?;
    if let Some(answer) = replay(run, &position, &name).await {
        return answer;
    }
    let at_work = run.waits.work();
    let started = Instant::now();
    let span = tracing::info_span!("step", position = &*position, name = %name, attempt = 1);
    let result = attempts(run, &at_work, &position, &name, body, options).instrument(span).await;
    let result = match result {
        Ok(result) => result,
        Err(why) => return Err(Failure::Ambo(why)),
    };
    // A value that cannot be recorded is a failure of the step for good: its effect has happened.
    let result = result.and_then(|value| match run.vault.encode("the result of the step", &value) {
        Ok(json) => Ok((value, json)),
        Err(error) => Err(Failure::Ambo(error)),
    });
    run.meters.step_ended(result.is_ok(), started.elapsed());
    match result {
        Ok((value, json)) => {
            run.record(position, name, Ok(json), started.elapsed());
            failpoint::reach("step-after");
            Ok(value)
        }
        Err(failure) => {
            let error = match failure {
                Failure::Application(error) => to_error(error),
                Failure::Ambo(error) => error,
            };
            run.record(position, name, Err(executor::encode_error(&error)), started.elapsed());
            Err(to_failure(error))
        }
    }
}

/// What stands before every durable call: a recorded answer, or a reason not to act. In a rehearsal that is where it ends.
pub(crate) async fn replay<T, E>(run: &Arc<Run>, position: &str, name: &str) -> Option<Result<T, Failure<E>>>
where
    T: DeserializeOwned,
    E: ApplicationError,
{
    let answer = recorded(run, position, name).await;
    if answer.is_some() {
        return answer;
    }
    run.goes_on_at_rest().await;
    if let Some(why) = run.refusal_at_rest().await {
        return Some(Err(Failure::Ambo(why)));
    }
    run.rig.before(run, position, name).await;
    if run.history.is_rehearsed() {
        std::future::pending::<()>().await;
    }
    None
}

/// The recorded answer alone: for a call that acts only through others.
pub(crate) async fn recorded<T, E>(
    run: &Arc<Run>,
    position: &str,
    name: &str,
) -> Option<Result<T, Failure<E>>>
where
    T: DeserializeOwned,
    E: ApplicationError,
{
    let recorded = match run.replay(position, name) {
        Ok(recorded) => recorded?,
        Err(error) => run.die(error).await,
    };
    let reading = run.reading();
    let answer = match answer(run, &recorded, position).await {
        Ok(answer) => answer,
        Err(error) => run.die(error).await,
    };
    drop(reading);
    if answer.is_err() {
        run.fails_at_rest().await;
    }
    Some(answer)
}

async fn answer<T, E>(
    run: &Run,
    checkpoint: &Checkpoint,
    position: &str,
) -> Result<Result<T, Failure<E>>, Error>
where
    T: DeserializeOwned,
    E: ApplicationError,
{
    if let Some(error) = &checkpoint.error {
        let error = run.open(&Place::Failure(position), error).await?;
        let error: Error = payload::decode("a recorded error", &error)?;
        return Ok(Err(to_failure(error)));
    }
    let what = format!("the recorded result of {:?} at position {position}", checkpoint.name);
    let output = checkpoint.output.as_deref().unwrap_or("null");
    payload::decode(&what, &run.open(&Place::Step(position), output).await?).map(Ok)
}

/// `Err`: the run ends, and nothing is to be recorded of the step.
async fn attempts<T, E, F, Fut>(
    run: &Arc<Run>,
    at_work: &Work,
    position: &Arc<str>,
    name: &str,
    mut body: F,
    options: Options<'_, E>,
) -> Result<Result<T, Failure<E>>, Error>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    T: DeserializeOwned,
    E: ApplicationError,
{
    let Options { retry, retry_if, timeout, cancel_at_once } = options;
    let mut attempt = Attempt { number: 1, run: run.id.into(), position: position.clone() };
    loop {
        let ended = {
            let this = pin!(async {
                run.barrier().await;
                failpoint::reach("step-before");
                match scripted(run, position, name) {
                    Some(answer) => Ok(answer),
                    // Mostly nothing can interrupt it.
                    None if !cancel_at_once && run.deadline.is_none() => {
                        Ok(one(&mut body, &attempt, timeout).await)
                    }
                    None => tokio::select! {
                        biased;
                        ended = one(&mut body, &attempt, timeout) => Ok(ended),
                        why = run.dropped(cancel_at_once) => Err(why),
                    },
                }
            });
            run.finish(cancel_at_once, this).await
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(why) => return Err(run.refusal_at_rest().await.unwrap_or(why)),
        };
        let failure = match ended {
            Ok(value) => return Ok(Ok(value)),
            Err(failure) => failure,
        };
        let worth_it = match &failure {
            Failure::Application(error) => {
                !is_permanent(error) && retry_if.as_ref().is_none_or(|worth_it| worth_it(error))
            }
            Failure::Ambo(error) => !error.is_permanent(),
        };
        let Some(pause) = retry.pause_after(attempt.number, clock::jitter()).filter(|_| worth_it) else {
            return Ok(Err(failure));
        };
        run.meters.step_retried();
        tracing::debug!(name, attempt = attempt.number, ?pause, "the attempt failed; trying again");
        let _pauses = at_work.pause();
        tokio::select! {
            why = run.refused() => return Err(run.refusal_at_rest().await.unwrap_or(why)),
            () = run.clock.sleep(pause) => {}
        }
        attempt.number += 1;
        tracing::Span::current().record("attempt", attempt.number);
    }
}

/// What a test has an attempt answer.
pub(crate) fn scripted<T, E>(run: &Run, position: &str, name: &str) -> Option<Result<T, Failure<E>>>
where
    T: DeserializeOwned,
    E: ApplicationError,
{
    Some(match run.rig.answer(position, name)? {
        Ok(json) => payload::decode("the scripted result", &json)
            .map_err(|unfit: Error| Failure::Ambo(unfit.permanent())),
        Err(error) => Err(to_failure(error)),
    })
}

/// Whether an error says of itself that to try again is no use.
pub(crate) fn is_permanent<E: 'static>(error: &E) -> bool {
    (error as &dyn std::any::Any).downcast_ref::<Error>().is_some_and(Error::is_permanent)
}

/// One attempt: a panic and a time limit are failures of it, not of the worker.
async fn one<T, E, F, Fut>(
    body: &mut F,
    attempt: &Attempt,
    timeout: Option<Duration>,
) -> Result<T, Failure<E>>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let call = AssertUnwindSafe(async { body(attempt.clone()).await }).catch_unwind();
    let ended = match timeout {
        Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| {
            Failure::Ambo(Error::new(Code::StepTimeout, format!("the attempt took longer than {limit:?}")))
        })?,
        None => call.await,
    };
    match ended {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Application(error)),
        Err(panic) => Err(Failure::Ambo(executor::panicked("the step", &*panic))),
    }
}

impl<T, E> fmt::Debug for Step<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("begun", &!matches!(self.state, State::Built(_))).finish_non_exhaustive()
    }
}
