//! Batches: runs of one workflow that are handled together and succeed or fail one by one.
//!
//! Each is a run like any other, claimed, fenced and ended by itself; only its body waits, in memory, until enough others have
//! come, and has its result from a handler that they share.

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

struct Gathering<I> {
    waiting: Vec<Waiting<I>>,
    /// How many batches have been taken: who waits for the time to be over knows by it whether that still matters.
    taken: u64,
}

impl<I> Gathering<I> {
    fn take(&mut self) -> Vec<Waiting<I>> {
        self.taken += 1;
        std::mem::take(&mut self.waiting)
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
        let gathering = Mutex::new(Gathering { waiting: Vec::new(), taken: 0 });
        Collector(Arc::new(Shared { handler, max: max.max(1), within, gathering }))
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
            let input = payload::decode("the input of the run", input)?;
            let (answer, answered) = oneshot::channel();
            let key = cx.key().map(str::to_owned);
            let item = BatchItem { run: cx.run_id(), key, attempt: cx.attempt(), input };
            shared.add(Waiting { item, answer }, cx.states(), cx.vault());
            let gone = |_| Err(Error::new(Code::Stopping, "the handler of the batch was dropped"));
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
    fn add(self: Arc<Self>, one: Waiting<I>, states: &States, vault: &Vault) {
        let mut gathering = self.gathering();
        gathering.waiting.push(one);
        let (count, taken) = (gathering.waiting.len(), gathering.taken);
        let full = (count >= self.max).then(|| gathering.take());
        drop(gathering);
        let (states, vault) = (states.clone(), vault.clone());
        if let Some(waiting) = full {
            tokio::spawn(async move { self.handle(waiting, states, &vault).await });
        } else if count == 1 {
            tokio::spawn(async move {
                tokio::time::sleep(self.within).await;
                let waiting = {
                    let mut gathering = self.gathering();
                    if gathering.taken == taken { gathering.take() } else { Vec::new() }
                };
                self.handle(waiting, states, &vault).await;
            });
        }
    }

    fn gathering(&self) -> std::sync::MutexGuard<'_, Gathering<I>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, mut waiting: Vec<Waiting<I>>, states: States, vault: &Vault) {
        // Those that were cancelled, or handed back, meanwhile.
        waiting.retain(|one| !one.answer.is_closed());
        if waiting.is_empty() {
            return;
        }
        let (items, answers): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|one| (one.item, one.answer)).unzip();
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
