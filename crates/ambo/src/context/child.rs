//! Children: runs that a run starts, and the wait for their results.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::call::{Call, face};
use super::step::replay;
use crate::engine::executor::encode_error;
use crate::engine::journal::Fact;
use crate::engine::run::{Run, Stop};
use crate::engine::wait::{Awaited, For};
use crate::enqueue::Enqueue;
use crate::error::{Code, Error, Failure, Result, to_failure};
use crate::id::RunId;
use crate::payload;
use crate::store::claim::Checkpoint;
use crate::store::enqueue::{NewRun, Terms};
use crate::store::flush::NewChild;
use crate::vault::place::Place;
use crate::workflow::Workflow;

/// What the name begins with under which a start is recorded.
pub(crate) const NAME: &str = "ambo:child ";

/// A child that was started. Give it to [`Ctx::result_of`](crate::Ctx::result_of).
pub struct Child<W> {
    run: RunId,
    workflow: PhantomData<fn() -> W>,
}

impl<W> Child<W> {
    /// The id of the child's run.
    pub fn run_id(&self) -> RunId {
        self.run
    }
}

impl<W> Clone for Child<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Child<W> {}

impl<W> fmt::Debug for Child<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("run", &self.run).finish()
    }
}

/// A child to be: options with defaults, then [`start`](StartChild::start).
#[must_use = "a child is not started until `.start()`"]
pub struct StartChild<'a, W> {
    run: &'a Arc<Run>,
    position: Arc<str>,
    enqueue: Enqueue<W>,
    detached: bool,
}

impl<W> fmt::Debug for StartChild<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartChild").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<'a, W: Workflow> StartChild<'a, W> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, input: W::Input) -> Self {
        StartChild { run, position, enqueue: Enqueue::new(input), detached: false }
    }

    /// The child outlives its parent's cancel, and wakes nobody when it ends. Default: it is cancelled with its parent.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Options of the child, as for any enqueue: queue, group, priority, delay, timeout, attributes. A key is not among them (a
    /// child's key is its parent and position), nor is a time to start by.
    pub fn with(mut self, options: impl FnOnce(Enqueue<W>) -> Enqueue<W>) -> Self {
        self.enqueue = options(self.enqueue);
        self
    }

    /// The run to be, if its options are such as a child takes.
    fn check(enqueue: Enqueue<W>, run: &Run) -> Result<NewRun> {
        let new = enqueue.into_run()?;
        new.check(&run.vault)?;
        if let Some(refused) = refused(&new) {
            return Err(Error::new(Code::InvalidOption, format!("a child takes no {refused}")));
        }
        Ok(new)
    }

    /// Starts the child: it is recorded together with the fact that it was started, whatever crashes. What only the database
    /// can refuse, as a queue that there is not, it refuses a moment later: the run is taken back to this call then, before any
    /// effect behind it, and the call fails.
    ///
    /// # Errors
    /// Those of [`Enqueue::on`], `AMBO005` for a key or a time to start by, `AMBO025` in a cancelled run.
    pub fn start(self) -> Result<Child<W>> {
        let StartChild { run, position, enqueue, detached } = self;
        let new = match Self::check(enqueue, run) {
            // What is refused is no call, in a replay neither; what was started under other limits was started.
            Err(error) if !run.history.has(&position) => return Err(error),
            new => new,
        };
        let name = format!("{NAME}{}", W::NAME);
        let recorded = run.replay(&position, &name).and_then(|checkpoint| checkpoint.map(read).transpose());
        match recorded {
            Ok(Some(started)) => return started.map(|run| Child { run, workflow: PhantomData }),
            Ok(None) => {}
            Err(error) => {
                let copy = Error::new(error.code(), error.text());
                run.stop(Stop::Dead(error));
                return Err(copy);
            }
        }
        let admitted = run.admits()?;
        let mut new = new?;
        if let Some(at) = new.at.take() {
            new.delay = Some(run.clock.until(at));
        }
        let id = run.clock.new_run_id();
        if !admitted {
            return Ok(Child { run: id.into(), workflow: PhantomData });
        }
        let json = payload::encode("the id of a child", &RunId::from(id))?;
        let deadline = if detached { None } else { run.deadline };
        run.has_children.store(true, Ordering::Release);
        let child = NewChild { id, run: new, deadline, detached };
        run.give(Fact::Child(run.checkpoint(position, name.into(), json), Box::new(child)));
        Ok(Child { run: id.into(), workflow: PhantomData })
    }
}

/// The option that a child cannot have, if it was given one.
fn refused(child: &NewRun) -> Option<&'static str> {
    let Terms { dedup, throttle, debounce, debounce_max, start_by, start_within, group: _, weight: _ } =
        &child.terms;
    if child.key.is_some() || *dedup || throttle.is_some() || debounce.is_some() || debounce_max.is_some() {
        Some("key, nor a rule of one: its parent and position have that place")
    } else {
        (start_by.is_some() || start_within.is_some()).then_some("time to start by")
    }
}

/// What was recorded of a start: the child's id, or why the database had refused it.
fn read(checkpoint: Checkpoint) -> Result<Result<RunId>> {
    if let Some(error) = checkpoint.error {
        return payload::decode("a recorded error", &error).map(Err);
    }
    payload::decode("the recorded id of a child", &checkpoint.output.unwrap_or_default()).map(Ok)
}

/// The wait for a child's result. See [`Ctx::result_of`](crate::Ctx::result_of).
#[must_use = "a wait does nothing until it is awaited"]
pub struct ChildResult<'a, T, E>(Call<'a, (), Result<T, Failure<E>>>);

face!(ChildResult<'a, T, E>, (), Result<T, Failure<E>>);

impl<'a, T: Send, E: Send> ChildResult<'a, T, E> {
    pub(crate) fn new<W>(run: &'a Arc<Run>, position: Arc<str>, child: Child<W>) -> Self
    where
        W: Workflow<Output = T, Error = E>,
    {
        ChildResult(Call::new((), move |()| receive(run, position, child)))
    }
}

/// Waits for what `outcome` does not say yet. What came before the claim, or whose row in `ambo.wake` another call of this
/// run took, woke nobody who would look for it: so the run is at work, and not parked, until the database was asked.
async fn patience(run: &Arc<Run>, position: &Arc<str>, child: RunId) {
    let at_work = run.waits.work();
    run.waiter.asked().await;
    let awaited =
        Awaited { position: position.clone(), what: format!("the end of run {child}"), run: Some(child) };
    let _waits = run.waits.wait(For::News, None, awaited);
    drop(at_work);
    std::future::pending().await
}

async fn receive<W: Workflow>(
    run: &Arc<Run>,
    position: Arc<str>,
    child: Child<W>,
) -> Result<W::Output, Failure<W::Error>> {
    let name = format!("ambo:result {}", W::NAME);
    if let Some(recorded) = replay(run, &position, &name).await {
        if let Some(error) = recorded.as_ref().err().and_then(Failure::as_error) {
            run.history.note(&position, error);
        }
        return recorded;
    }
    // What was started is durable before anybody is asked about it.
    run.barrier().await;
    let outcome = run.waiter.outcome(child.run.as_uuid());
    tokio::pin!(outcome);
    loop {
        let nudged = run.waits.nudged();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        if let Some(why) = run.refusal_at_rest().await {
            return Err(Failure::Ambo(why));
        }
        let outcome = tokio::select! {
            // In this order: the first poll says that the outcome is wanted, the look after it asks for it.
            biased;
            outcome = &mut outcome => outcome,
            () = nudged => continue,
            () = patience(run, &position, child.run) => continue,
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // That there is no such run is so in every replay; anything else may pass.
                if error.code() == Code::UnknownRun {
                    run.record(position, name.into(), Err(encode_error(&error)), Duration::ZERO);
                }
                // As a replay says it.
                return Err(to_failure(error));
            }
        };
        if outcome.status == "succeeded" {
            let output = outcome.output.unwrap_or_else(|| "null".into());
            let output: payload::Json = match run.open(&Place::Output(child.run.as_uuid()), &output).await {
                Ok(output) => output.into(),
                Err(error) => return run.die(error).await,
            };
            let decoded = payload::decode("the result of a child", &output)
                .inspect_err(|error| run.history.note(&position, error));
            // That it did not fit is what the run was told, and is told in every replay until it is retried.
            let recorded = decoded.as_ref().map(|_| output).map_err(encode_error);
            run.record(position, name.into(), recorded, Duration::ZERO);
            return decoded.map_err(Failure::Ambo);
        }
        let recorded = outcome.error.unwrap_or_else(|| "{}".into());
        let recorded: payload::Json = match run.open(&Place::Error(child.run.as_uuid()), &recorded).await {
            Ok(recorded) => recorded.into(),
            Err(error) => return run.die(error).await,
        };
        let error: Error = payload::decode("the error of a child", &recorded)
            .unwrap_or_else(|_| Error::new(Code::Application, format!("the child is {}", outcome.status)));
        run.history.note(&position, &error);
        // What a code says of a run it says of the child: its parent, which may end with it, is in another state.
        let (error, recorded) = if error.code() == Code::Application {
            (error, recorded)
        } else {
            let error = error.of_child(child.run);
            let recorded = encode_error(&error);
            (error, recorded)
        };
        run.record(position, name.into(), Err(recorded), Duration::ZERO);
        return Err(to_failure(error));
    }
}
