//! What a workflow sees: its context, and the durable calls that it builds from it.

pub(crate) mod attribute;
pub(crate) mod call;
pub(crate) mod child;
pub(crate) mod compensate;
pub(crate) mod event;
mod fixed;
pub(crate) mod race;
pub(crate) mod signal;
pub(crate) mod sleep;
pub(crate) mod step;
pub(crate) mod transaction;
pub(crate) mod update;
pub(crate) mod witness;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::engine::history::Patch;
use crate::engine::run::{Run, Stop};
use crate::error::{ApplicationError, Code, Error, Failure, Result};
use crate::id::RunId;
use crate::retry::Retry;
use crate::vault::Vault;
use crate::workflow::{States, Workflow};
pub use child::{Child, ChildResult, StartChild};
pub use event::Event;
pub use race::{Either, Race};
pub use signal::Signal;
pub use sleep::Sleep;
pub use step::{Attempt, Step};
pub use transaction::TransactionStep;
pub use update::Update;

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
    /// How many compensations were registered behind that call.
    behind: u32,
}

impl<'run> Ctx<'run> {
    pub(crate) fn new(run: &'run Arc<Run>) -> Self {
        Ctx { run, branch: "".into(), index: run.history.from(), behind: 0 }
    }

    /// To be called when this branch has ended well: its failures were gone on after, and a retry of the run forgets none of them.
    pub(crate) fn ends_well(&self) -> impl FnOnce() + Send + use<'run> {
        let (run, branch) = (self.run, self.branch.clone());
        move || run.history.built(&branch, 0)
    }

    /// What becomes of the payloads of this run.
    pub(crate) fn vault(&self) -> &'run Vault {
        &self.run.vault
    }

    /// The next position: an index within the branch, behind the path of the branch.
    fn position(&mut self) -> Arc<str> {
        self.index += 1;
        self.behind = 0;
        self.run.history.built(&self.branch, self.index);
        self.place().into()
    }

    /// The position of the last call built here, 0 before the first.
    fn place(&self) -> String {
        if self.branch.is_empty() {
            self.index.to_string()
        } else {
            format!("{}.{}", self.branch, self.index)
        }
    }

    /// The position of a compensation: none among the calls, for nothing is recorded there before it is run, and calls behind it
    /// would stand at the places of others in code that has one more or one less.
    fn position_behind(&mut self) -> Arc<str> {
        self.behind += 1;
        self.run.history.built(&self.branch, self.index);
        format!("{}.0.0.{}", self.place(), self.behind).into()
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

    /// The end of the run and the user's SQL in one commit, exactly once and without a checkpoint: for jobs that are one
    /// transaction. Short for [`transaction`](Ctx::transaction) with [`completing`](TransactionStep::completing).
    ///
    /// # Example
    /// ```no_run
    /// # #[cfg(feature = "sqlx")] mod example {
    /// # use ambo::{Ctx, Result};
    /// #[ambo::job]
    /// async fn credit(cx: Ctx, account: i64) -> Result<i64> {
    ///     let pool = cx.state::<sqlx::PgPool>()?;
    ///     let done = cx.complete_in(&*pool, async |mut tx| {
    ///         let sql = "update account set balance = balance + 1 where id = $1 returning balance";
    ///         Ok::<i64, ambo::Error>(sqlx::query_scalar(sql).bind(account).fetch_one(&mut *tx).await?)
    ///     });
    ///     Ok(done.await?)
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`TransactionStep::run`]. When it has committed it does not return.
    ///
    /// # Cancel safety
    /// As `TransactionStep::run`.
    pub fn complete_in<'a, D, T, E, F, Fut>(
        &mut self,
        database: &'a D,
        body: F,
    ) -> impl Future<Output = Result<T, Failure<E>>> + use<'a, 'run, D, T, E, F, Fut>
    where
        'run: 'a,
        D: crate::on::Database,
        T: serde::Serialize + serde::de::DeserializeOwned,
        E: ApplicationError,
        F: FnMut(transaction::Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.transaction("complete").completing().run(database, body)
    }

    /// Sleeps, by the database's clock. A run that sleeps for longer than a second leaves memory and costs its worker
    /// nothing until its time has come; a restart, or years, do not change when that is.
    ///
    /// # Errors
    /// `AMBO025` if the run is cancelled meanwhile.
    pub fn sleep<'a>(&mut self, span: Duration) -> Sleep<'a>
    where
        'run: 'a,
    {
        Sleep::new(self.run, self.position(), sleep::Until::For(span))
    }

    /// [`sleep`](Ctx::sleep), until a time.
    pub fn sleep_until<'a>(&mut self, time: jiff::Timestamp) -> Sleep<'a>
    where
        'run: 'a,
    {
        Sleep::new(self.run, self.position(), sleep::Until::At(time))
    }

    /// Waits for the next signal of a topic, 1 to 200 bytes that do not begin with `ambo:`. Signals that came before the wait are not
    /// lost, each is received once, in the order in which they were sent. A run that waits for longer than a second leaves memory.
    ///
    /// # Errors
    /// `AMBO042` after [`Signal::timeout`], `AMBO025` if the run is cancelled meanwhile, `AMBO038` if the payload is not a `T`: the
    /// signal is taken then, and a loop may wait for the next. A run that fails of it takes it again when it is retried.
    pub fn signal<'a, T>(&mut self, topic: impl Into<String>) -> Signal<'a, T>
    where
        'run: 'a,
        T: serde::de::DeserializeOwned + Send + 'a,
    {
        Signal::new(self.run, self.position(), topic.into())
    }

    /// Waits for the next update of a topic, as for a [`signal`](Ctx::signal): a request whose sender waits for an
    /// [`answer`](Ctx::answer). One whose value is not a `T` is answered with `AMBO038`, and the wait goes on.
    ///
    /// # Errors
    /// As `signal`; `AMBO038` is for a signal under the topic that is no update.
    pub fn update<'a, T>(&mut self, topic: impl Into<String>) -> Signal<'a, Update<T>>
    where
        'run: 'a,
        T: serde::de::DeserializeOwned + Send + 'a,
    {
        Signal::request(self.run, self.position(), topic.into())
    }

    /// Answers an update: its sender, and whoever sends it again under its key, gets this.
    ///
    /// # Errors
    /// As [`publish`](Ctx::publish).
    pub fn answer<T, R: serde::Serialize>(&mut self, update: &Update<T>, answer: &R) -> Result<()> {
        let position = self.position();
        event::answer(self.run, position, &update::answer_key(&update.key), answer)
    }

    /// Publishes a value under a key of 1 to 200 bytes, for anyone to read or await: the last one is the event's value,
    /// all of them in their order are a stream. Each is published once, whatever crashes. Keys that begin with `ambo:` are
    /// refused: they are Ambo's own.
    ///
    /// Nothing is waited for: until it is written the value is in memory. Who publishes much in a loop puts a step or a sleep into it,
    /// which wait for room in the journal (64 MiB).
    ///
    /// # Errors
    /// `AMBO001` for the key, `AMBO004` or `AMBO007` for the value, `AMBO025` in a cancelled run.
    pub fn publish<T: serde::Serialize>(&mut self, key: &str, value: &T) -> Result<()> {
        let position = self.position();
        event::publish(self.run, position, key, value)
    }

    /// Sets an attribute of this run, by which it can be found: in the same commit as the record that it did, and costs none of
    /// its own. The last value of a key stands, beside the attributes that were given at enqueue. Key: 1 to 180 bytes; value: up
    /// to 8 KiB of JSON, all of a run together to 64 KiB.
    ///
    /// # Errors
    /// `AMBO001` for the key, `AMBO004` or `AMBO007` for the value, `AMBO025` in a cancelled run.
    pub fn set_attribute<T: serde::Serialize>(&mut self, key: &str, value: &T) -> Result<()> {
        let position = self.position();
        attribute::set(self.run, position, key, value)
    }

    /// Waits until another run has published something under a key, and receives its present value.
    ///
    /// # Errors
    /// `AMBO001` for the key, `AMBO033` if there is no such run, `AMBO034` if it has ended without it, `AMBO042` after
    /// [`Event::timeout`], `AMBO025` if this run is cancelled meanwhile, `AMBO028` if the value is not a `T`.
    pub fn event<'a, T>(&mut self, of: RunId, key: impl Into<String>) -> Event<'a, T>
    where
        'run: 'a,
        T: serde::de::DeserializeOwned + Send + 'a,
    {
        Event::new(self.run, self.position(), of, key.into())
    }

    /// A child: a run of its own, on whatever worker serves its queue. One per parent and position, whatever crashes. It
    /// inherits the deadline of its parent and is cancelled with it, unless it is [`detached`](StartChild::detached).
    pub fn child<'a, W: Workflow>(&mut self, input: W::Input) -> StartChild<'a, W>
    where
        'run: 'a,
    {
        StartChild::new(self.run, self.position(), input)
    }

    /// Waits for the end of a child, which is recorded: the same in every replay, whatever becomes of the child.
    ///
    /// # Errors
    /// As [`Handle::result`](crate::Handle::result), and `AMBO025` if this run is cancelled meanwhile.
    pub fn result_of<'a, W: Workflow>(&mut self, child: Child<W>) -> ChildResult<'a, W::Output, W::Error>
    where
        'run: 'a,
    {
        ChildResult::new(self.run, self.position(), child)
    }

    /// The first of several built calls to end wins; who that was, by its place among them, is recorded, the others are dropped.
    /// Among calls that end together the first in the list wins. Calls of different types: [`select`](Ctx::select) if they are two,
    /// else boxed.
    ///
    /// # Errors
    /// `AMBO005` for a race of none, `AMBO025` in a cancelled run.
    ///
    /// # Example: whichever supplier is first
    /// ```
    /// # use ambo::{Ctx, Result};
    /// #[ambo::workflow]
    /// async fn offer(cx: Ctx, suppliers: Vec<String>) -> Result<(usize, u32)> {
    ///     let offers: Vec<_> = suppliers.iter().map(|name| cx.signal::<u32>(name)).collect();
    ///     let (winner, price) = cx.race(offers).await?;
    ///     Ok((winner, price?))
    /// }
    /// ```
    pub fn race<'a, C>(&mut self, calls: impl IntoIterator<Item = C>) -> Race<'a, C::Output>
    where
        'run: 'a,
        C: Future<Output: Send> + Send + 'a,
    {
        let boxed = |call| -> BoxFuture<'a, C::Output> { Box::pin(call) };
        Race::new(self.run, self.position(), calls.into_iter().map(boxed).collect())
    }

    /// [`race`](Ctx::race) between two calls of different types.
    ///
    /// # Errors
    /// As `race`.
    pub fn select<'a, A, B>(&mut self, left: A, right: B) -> Race<'a, Either<A::Output, B::Output>>
    where
        'run: 'a,
        A: Future<Output: Send> + Send + 'a,
        B: Future<Output: Send> + Send + 'a,
    {
        let calls: [BoxFuture<'a, _>; 2] = [
            Box::pin(async move { Either::Left(left.await) }),
            Box::pin(async move { Either::Right(right.await) }),
        ];
        self.race(calls)
    }

    /// Runs `body` for each item, `limit` at a time, each in a branch of its own, and gives the results in the order of the
    /// items.
    pub async fn map<'a, I, F, Fut>(&mut self, items: Vec<I>, limit: usize, body: F) -> Vec<Fut::Output>
    where
        'run: 'a,
        F: Fn(Ctx<'run>, I) -> Fut,
        Fut: Future<Output: Send> + Send + 'a,
    {
        use futures_util::StreamExt as _;
        // Boxed and built before the first await, so that the future of the workflow stays provably `Send`.
        let calls: Vec<BoxFuture<'a, Fut::Output>> =
            items.into_iter().map(|item| Box::pin(body(self.branch(), item)) as _).collect();
        futures_util::stream::iter(calls).buffered(limit.max(1)).collect().await
    }

    /// Registers what undoes the step before: should the run fail, be cancelled or run out of time, all that was registered is run
    /// in reverse order, each as a step of its own, tried ten times with growing pauses. One that fails for good leaves the run dead
    /// (`AMBO029`), with what it could not undo as the reason. It takes no position among the calls: code that goes on with a run may
    /// register one more or less.
    ///
    /// The name has 1 to 200 bytes and no NUL, and does not begin with `ambo:`; under another one the run is dead here (`AMBO001`), as
    /// by code that does not fit: nothing is undone, and once the name is corrected a retry goes on.
    pub fn compensate<E, F, Fut>(&mut self, name: impl Into<Cow<'static, str>>, body: F)
    where
        F: FnMut(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: ApplicationError,
    {
        self.compensate_with(name, Retry::exponential(), body);
    }

    /// [`compensate`](Ctx::compensate) with a retry policy.
    pub fn compensate_with<E, F, Fut>(&mut self, name: impl Into<Cow<'static, str>>, retry: Retry, body: F)
    where
        F: FnMut(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: ApplicationError,
    {
        let (position, name) = (self.position_behind(), name.into());
        if let Err(error) = check_name(&name) {
            // Not when it is to undo, which is too late: what was done would stay.
            self.run.stop(Stop::Dead(error));
            return;
        }
        let compensation = compensate::Compensation::new(position, name, retry, body);
        self.run.compensations().push(compensation);
    }

    /// The time of the database, recorded: the same in every replay. Costs no commit of its own.
    ///
    /// # Errors
    /// `AMBO021` if something else was recorded here.
    pub fn now(&mut self) -> Result<jiff::Timestamp> {
        let position = self.position();
        fixed::fixed(self.run, position, "ambo:now", || self.run.clock.now())
    }

    /// A random number in `[0, 1)`, recorded: the same in every replay. Costs no commit of its own.
    ///
    /// # Errors
    /// As [`now`](Ctx::now).
    pub fn random(&mut self) -> Result<f64> {
        let position = self.position();
        fixed::fixed(self.run, position, "ambo:random", crate::engine::clock::jitter)
    }

    /// A random UUID (version 4), recorded: the same in every replay. Costs no commit of its own.
    ///
    /// # Errors
    /// As [`now`](Ctx::now).
    pub fn uuid(&mut self) -> Result<uuid::Uuid> {
        let position = self.position();
        fixed::fixed(self.run, position, "ambo:uuid", uuid::Uuid::new_v4)
    }

    /// Whether this run takes a change of the code: for changing code under runs that are under way. A run that had gone on from
    /// here before the change keeps to the old calls, all others take the new ones. That it does is recorded, without a commit
    /// of its own and without a position: when no old run is left, delete the call and the old branch.
    ///
    /// `name` tells changes at the same place apart: 1 to 180 bytes.
    ///
    /// # Example
    /// ```
    /// # use ambo::{Ctx, Result};
    /// async fn fulfil(mut cx: Ctx<'_>, order: u64) -> Result<()> {
    ///     cx.step("charge", || async { Ok::<_, ambo::Error>(()) }).await?;
    ///     if cx.patched("check fraud")? {
    ///         cx.step("check", || async { Ok::<_, ambo::Error>(()) }).await?;
    ///     }
    ///     cx.step("ship", || async { Ok::<_, ambo::Error>(()) }).await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// `AMBO001` for the name.
    pub fn patched(&mut self, name: &str) -> Result<bool> {
        if name.is_empty() || name.len() > 180 || name.contains('\0') {
            let text =
                format!("the name of a patch has 1 to 180 bytes and no NUL; this one has {}", name.len());
            return Err(Error::new(Code::InvalidName, text));
        }
        Ok(match self.run.history.patch(&self.branch, self.index + 1, name) {
            Patch::Taken => true,
            Patch::Passed => false,
            Patch::New(position, name) => {
                self.run.record(position, name.into(), Ok("true".into()), Duration::ZERO);
                true
            }
        })
    }

    /// Ends this history of the run and begins another with `input`, in one commit: a run that goes on for ever stays small. It
    /// keeps its id, its deadline, its children, attributes, published values and the signals that it has not consumed;
    /// [compensations](Ctx::compensate) that it registered are given up. Those who wait for its result go on waiting.
    ///
    /// Does not return; calls of other branches that are under way are dropped, as by a crash.
    ///
    /// # Example
    /// ```
    /// # use ambo::{Ctx, Result};
    /// async fn meter(mut cx: Ctx<'_>, mut total: u64) -> Result<u64> {
    ///     loop {
    ///         total += cx.signal::<u64>("reading").await?;
    ///         if cx.history_len() > 1000 {
    ///             return cx.continue_as_new(&total).await;
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// `AMBO004` or `AMBO007` for the input, `AMBO025` in a cancelled run.
    pub async fn continue_as_new<T>(&mut self, input: &impl serde::Serialize) -> Result<T> {
        // Encoded before the first await: the input need not be `Sync`.
        let input = crate::payload::encode("the input of the run", input);
        self.run.continue_as_new(&input?).await
    }

    /// How many recorded calls of this run lie behind this point, since it began or last continued as new. A replay finds the
    /// same number here, but where branches run side by side, behind a race, or behind a patch that is new: do not decide by it there.
    pub fn history_len(&self) -> usize {
        self.run.history.passed()
    }

    /// How many tries of this run have failed, by the [policy](crate::Workflow::retry) of its workflow; 0 in the first one.
    pub fn retries(&self) -> u32 {
        self.run.history.retries
    }

    /// A context of its own for a sequence of calls that runs beside others.
    pub fn branch(&mut self) -> Ctx<'run> {
        let branch = self.position();
        if let Err(error) = self.run.history.enter(self.run.id, &branch) {
            self.run.stop(Stop::Dead(error));
        }
        Ctx { run: self.run, branch, index: 0, behind: 0 }
    }

    /// What the worker was given with [`WorkerBuilder::state`](crate::WorkerBuilder::state): a pool, a client, settings.
    ///
    /// # Errors
    /// `AMBO041` if the worker was given no value of this type.
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<Arc<T>> {
        self.run.states.find::<T>()
    }

    pub(crate) fn states(&self) -> &States {
        &self.run.states
    }

    /// Why durable calls are refused.
    pub(crate) fn refusal(&self) -> Option<Error> {
        self.run.refusal()
    }

    /// Returns when durable calls are refused, and why.
    pub(crate) async fn refused(&self) -> Error {
        self.run.refused().await
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

    /// The idempotency key of the run, if it was given one; of a schedule's tick, and of its forks, the schedule and the time.
    pub fn key(&self) -> Option<&str> {
        self.run.key.as_deref()
    }

    /// The time of the tick that a [`Schedule`](crate::Schedule) enqueued this run for, however late it runs, or that it was
    /// forked from. `None` for other runs.
    pub fn scheduled_at(&self) -> Option<jiff::Timestamp> {
        self.key().and_then(crate::schedule::tick_of)
    }

    /// Whether somebody asked to cancel the run. The next durable call fails with `AMBO025` then, when the steps have ended that
    /// run beside it. In a replay not before the code has come to all that the run had done.
    pub fn is_cancelled(&self) -> bool {
        self.run.is_cancelled() && self.run.history.ahead().is_none()
    }
}

/// The checks that come before every durable call is acted on.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.starts_with("ambo:") {
        return Err(Error::new(Code::InvalidName, "names that begin with \"ambo:\" are Ambo's own"));
    }
    if name.is_empty() || name.len() > 200 || name.contains('\0') {
        return Err(Error::new(
            Code::InvalidName,
            format!("a name has 1 to 200 bytes and no NUL; this one has {}", name.len()),
        ));
    }
    Ok(())
}
