//! What a workflow sees: its context, and the durable calls that it builds from it.

pub(crate) mod step;
pub(crate) mod transaction;
pub(crate) mod witness;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use crate::engine::run::Run;
use crate::error::{ApplicationError, Code, Error, Result};
use crate::id::RunId;
pub use step::{Attempt, Step};
pub use transaction::TransactionStep;

/// The context of a run: the first parameter of every workflow.
///
/// A durable call takes its *position* when it is built, not when it is awaited: building borrows the context
/// mutably, for that moment only. So calls that are built one after the other may be awaited together, with
/// `join!`, and always stand at the same positions. Concurrent *sequences* of calls need a [`branch`](Ctx::branch)
/// each; the compiler refuses two that share one context, and it refuses to spawn a call away from its run.
///
/// # Example: two steps at once
/// ```
/// # use ambo::{Ctx, Result};
/// async fn quote(mut cx: Ctx<'_>, item: String) -> Result<u32> {
///     let price = cx.step("price", || async { Ok::<_, ambo::Error>(40) });
///     let freight = cx.step("freight", || async { Ok::<_, ambo::Error>(2) });
///     let (price, freight) = tokio::join!(price, freight);
///     Ok(price? + freight?)
/// }
/// ```
///
/// # Example: two sequences at once
/// ```
/// # use ambo::{Ctx, Result};
/// async fn both(mut cx: Ctx<'_>, _: ()) -> Result<u32> {
///     let (mut left, mut right) = (cx.branch(), cx.branch());
///     let left = async move {
///         let one = left.step("one", || async { Ok::<u32, ambo::Error>(1) }).await?;
///         left.step("two", || async move { Ok::<u32, ambo::Error>(one + 1) }).await
///     };
///     let right = async move { right.step("three", || async { Ok::<u32, ambo::Error>(3) }).await };
///     let (left, right) = tokio::join!(left, right);
///     Ok(left? + right?)
/// }
/// ```
#[derive(Debug)]
pub struct Ctx<'run> {
    run: &'run Arc<Run>,
    /// The path of this branch, empty at the top.
    branch: Arc<str>,
    /// The index of the last call built here.
    index: u32,
}

impl<'run> Ctx<'run> {
    pub(crate) fn new(run: &'run Arc<Run>) -> Self {
        Ctx { run, branch: "".into(), index: 0 }
    }

    /// The next position: an index within the branch, behind the path of the branch.
    fn position(&mut self) -> Arc<str> {
        self.index += 1;
        if self.branch.is_empty() {
            self.index.to_string().into()
        } else {
            format!("{}.{}", self.branch, self.index).into()
        }
    }

    /// A step: a unit of side effect that is recorded once. A step whose checkpoint is durable is replayed and
    /// never run again; one that was interrupted before is run again, so it takes effect *at least* once. Hand
    /// [`Attempt::idempotency_key`] (see [`step_with`](Ctx::step_with)) to the outside to make that exactly once.
    ///
    /// `name` is recorded: other code at this position is found out. 1 to 200 bytes.
    ///
    /// # Errors
    /// [`Failure::Application`](crate::Failure) with the error of the last attempt; `Failure::Ambo` for a time limit
    /// (`AMBO023`), a panic (`AMBO022`), a result that is too large or cannot be written as JSON (`AMBO004`,
    /// `AMBO007`), or a cancelled run (`AMBO025`).
    ///
    /// # Cancel safety
    /// Dropping the future between attempts or within one loses the attempt's result, as a crash would.
    pub fn step<'a, T, E, F, Fut>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        mut body: F,
    ) -> Step<'a, T, E>
    where
        'run: 'a,
        F: FnMut() -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        T: serde::Serialize + serde::de::DeserializeOwned + Send + 'a,
        E: ApplicationError,
    {
        self.step_with(name, move |_| body())
    }

    /// A [`step`](Ctx::step) whose body is told which attempt it is and which key to hand to the outside.
    pub fn step_with<'a, T, E, F, Fut>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        body: F,
    ) -> Step<'a, T, E>
    where
        'run: 'a,
        F: FnMut(Attempt) -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        T: serde::Serialize + serde::de::DeserializeOwned + Send + 'a,
        E: ApplicationError,
    {
        Step::new(self.run, self.position(), name.into(), body)
    }

    /// A transaction step: the user's SQL in the user's driver, and the checkpoint, in one commit. It takes effect
    /// exactly once. Configure it, then call [`TransactionStep::run`] with the pool and the body.
    pub fn transaction<'a>(&mut self, name: impl Into<Cow<'static, str>>) -> TransactionStep<'a>
    where
        'run: 'a,
    {
        TransactionStep::new(self.run, self.position(), name.into())
    }

    /// A context of its own for a sequence of calls that runs beside others.
    pub fn branch(&mut self) -> Ctx<'run> {
        Ctx { run: self.run, branch: self.position(), index: 0 }
    }

    /// What the worker was given with [`WorkerBuilder::state`](crate::WorkerBuilder::state): a pool, a client, settings.
    ///
    /// # Errors
    /// `AMBO041` if the worker was given no value of this type.
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<Arc<T>> {
        self.run.states.get::<T>().ok_or_else(|| {
            Error::new(
                Code::Configuration,
                format!(
                    "the worker has no state of type `{}`; give it with `.state(value)`",
                    std::any::type_name::<T>()
                ),
            )
        })
    }

    /// The id of this run.
    pub fn run_id(&self) -> RunId {
        self.run.id.into()
    }

    /// The number of this claim of the run, from 1; above 1 after a worker was lost or stopped.
    pub fn attempt(&self) -> u32 {
        self.run.attempt.unsigned_abs()
    }

    /// The queue that the run came through.
    pub fn queue(&self) -> &str {
        &self.run.queue
    }

    /// The idempotency key of the run, if it was given one.
    pub fn key(&self) -> Option<&str> {
        self.run.key.as_deref()
    }

    /// Whether somebody asked to cancel the run. The next durable call fails with `AMBO025` then.
    pub fn is_cancelled(&self) -> bool {
        self.run.is_cancelled()
    }
}

/// The checks that come before every durable call is acted on.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 200 || name.contains('\0') {
        return Err(Error::new(
            Code::InvalidName,
            format!("the name of a step has 1 to 200 bytes and no NUL; this one has {}", name.len()),
        ));
    }
    Ok(())
}
