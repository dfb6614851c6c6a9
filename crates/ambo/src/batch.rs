//! Batches: runs of one workflow that are handled together and succeed or fail one by one.
//!
//! Each is a run like any other, claimed, fenced and ended by itself; only its body waits, in memory, until enough others have
//! come, and has its result from a handler that they share.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::context::Ctx;
use crate::engine::executor::panicked;
use crate::error::{ApplicationError, Code, Error, Result};
use crate::id::RunId;
use crate::payload::{self, Json};
use crate::vault::Vault;
use crate::workflow::{Body, States, seal};

/// One run of a [`Batch`].
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchItem<I> {
    /// The run.
    pub run: RunId,
    /// Its key, if it has one.
    pub key: Option<String>,
    /// The number of this claim of the run, from 1; above 1 it may have been handled before.
    pub attempt: u32,
    /// What it was given.
    pub input: I,
}

/// Runs to be handled together; see [`WorkerBuilder::batch`](crate::WorkerBuilder::batch).
#[derive(Debug)]
pub struct Batch<I> {
    /// The runs, in the order in which they came; at least one.
    pub items: Vec<BatchItem<I>>,
    states: States,
}

impl<I> Batch<I> {
    /// What the worker was given with [`WorkerBuilder::state`](crate::WorkerBuilder::state).
    ///
    /// # Errors
    /// `AMBO041` if the worker was given no value of this type.
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<Arc<T>> {
        self.states.find::<T>()
    }
}

/// A run in memory that waits for others.
struct Waiting<I> {
    item: BatchItem<I>,
    answer: oneshot::Sender<Result<Json>>,
}

/// A batch that is not handled yet.
struct Gathering<I> {
    /// By the order in which they came.
    waiting: BTreeMap<u64, Waiting<I>>,
    /// How many have come, to this batch and to those before.
    came: u64,
    /// How many batches have been taken or left by all: who waits for the time to be over knows by it whether that still matters.
    past: u64,
}

impl<I> Gathering<I> {
    fn take(&mut self) -> BTreeMap<u64, Waiting<I>> {
        self.past += 1;
        std::mem::take(&mut self.waiting)
    }

    /// Takes one out, unless its batch was taken. The time of the next one begins with whoever comes then.
    fn leave(&mut self, number: u64) -> bool {
        let was_there = self.waiting.remove(&number).is_some();
        if was_there && self.waiting.is_empty() {
            self.past += 1;
        }
        was_there
    }
}

/// The body that all runs of a batch workflow share.
pub(crate) struct Collector<F, I>(Arc<Shared<F, I>>);

struct Shared<F, I> {
    handler: F,
    max: usize,
    within: Duration,
    gathering: Mutex<Gathering<I>>,
}

impl<F, I> Collector<F, I> {
    pub(crate) fn new(handler: F, max: usize, within: Duration) -> Self {
        let gathering = Mutex::new(Gathering { waiting: BTreeMap::new(), came: 0, past: 0 });
        Collector(Arc::new(Shared { handler, max: max.max(1), within, gathering }))
    }
}

impl<F, I> Shared<F, I> {
    fn gathering(&self) -> std::sync::MutexGuard<'_, Gathering<I>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a run in a batch: a run whose body is dropped while it waits, as one that is handed back, leaves it too.
struct Place<F, I> {
    shared: Arc<Shared<F, I>>,
    number: u64,
}

impl<F, I> Place<F, I> {
    /// Whether the batch goes on without it: not where it is being handled.
    fn leave(&self) -> bool {
        self.shared.gathering().leave(self.number)
    }
}

impl<F, I> Drop for Place<F, I> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<F, I, O, E, Fut> Body for Collector<F, I>
where
    F: Fn(Batch<I>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<Result<O, E>>> + Send + 'static,
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    E: ApplicationError,
{
    fn run<'run>(&self, cx: Ctx<'run>, input: &'run str) -> BoxFuture<'run, Result<Json>> {
        let shared = self.0.clone();
        Box::pin(async move {
            if let Some(why) = cx.refusal() {
                return Err(why);
            }
            let input = payload::decode("the input of the run", input)?;
            let (answer, mut answered) = oneshot::channel();
            let key = cx.key().map(str::to_owned);
            let item = BatchItem { run: cx.run_id(), key, attempt: cx.attempt(), input };
            let place = shared.add(Waiting { item, answer }, cx.states(), cx.vault());
            let gone = |_| Err(Error::new(Code::Stopping, "the handler of the batch was dropped"));
            tokio::select! {
                biased;
                answered = &mut answered => return answered.unwrap_or_else(gone),
                why = cx.refused() => if place.leave() {
                    return Err(why);
                },
            }
            // It is being handled with the others, as a job that does not look.
            answered.await.unwrap_or_else(gone)
        })
    }
}

impl<F, I, O, E, Fut> Shared<F, I>
where
    F: Fn(Batch<I>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<Result<O, E>>> + Send + 'static,
    I: Send + 'static,
    O: Serialize + Send + 'static,
    E: ApplicationError,
{
    /// The first to come waits for the time to be over, the last to fit in does not. A batch that is full is taken at once, so
    /// that nobody else comes into it.
    fn add(self: Arc<Self>, one: Waiting<I>, states: &States, vault: &Vault) -> Place<F, I> {
        let mut gathering = self.gathering();
        let (number, past) = (gathering.came, gathering.past);
        gathering.came += 1;
        gathering.waiting.insert(number, one);
        let count = gathering.waiting.len();
        let full = (count >= self.max).then(|| gathering.take());
        drop(gathering);
        let (shared, states, vault) = (self.clone(), states.clone(), vault.clone());
        if let Some(waiting) = full {
            tokio::spawn(async move { shared.handle(waiting, states, &vault).await });
        } else if count == 1 {
            tokio::spawn(async move {
                tokio::time::sleep(shared.within).await;
                let waiting = {
                    let mut gathering = shared.gathering();
                    if gathering.past == past { gathering.take() } else { BTreeMap::new() }
                };
                shared.handle(waiting, states, &vault).await;
            });
        }
        Place { shared: self, number }
    }

    async fn handle(&self, mut waiting: BTreeMap<u64, Waiting<I>>, states: States, vault: &Vault) {
        // Those that were handed back since it was taken.
        waiting.retain(|_, one| !one.answer.is_closed());
        if waiting.is_empty() {
            return;
        }
        let (items, answers): (Vec<_>, Vec<_>) =
            waiting.into_values().map(|one| (one.item, one.answer)).unzip();
        self.call(Batch { items, states }, answers, vault).await;
    }

    async fn call(&self, batch: Batch<I>, answers: Vec<oneshot::Sender<Result<Json>>>, vault: &Vault) {
        let handled = AssertUnwindSafe(async { (self.handler)(batch).await }).catch_unwind().await;
        let refuse = |code, text: String| move || Err(Error::new(code, text.clone()));
        let results: Vec<Result<Json>> = match handled {
            Ok(results) if results.len() == answers.len() => {
                results.into_iter().map(|result| seal(vault, result, |_| false)).collect()
            }
            Ok(results) => {
                let text = format!(
                    "the handler of the batch gave {} results for {} runs",
                    results.len(),
                    answers.len()
                );
                std::iter::repeat_with(refuse(Code::Application, text)).take(answers.len()).collect()
            }
            Err(panic) => {
                let error = panicked("the handler of the batch", &*panic);
                let text = error.text().to_owned();
                std::iter::repeat_with(refuse(error.code(), text)).take(answers.len()).collect()
            }
        };
        for (answer, result) in answers.into_iter().zip(results) {
            // The run may have been taken away meanwhile.
            let _ = answer.send(result);
        }
    }
}

impl<F, I> fmt::Debug for Collector<F, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("max", &self.0.max).finish_non_exhaustive()
    }
}
