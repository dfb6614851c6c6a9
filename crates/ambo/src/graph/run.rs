//! How a graph runs: each node in a branch of its own, as soon as what it takes is there.

use std::any::Any;
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Entry, Inputs, Options, Plan};
use crate::context::{Attempt, Ctx};
use crate::error::{ApplicationError, Error, Failure, Result};
use crate::workflow::WorkflowFn;

/// A result of a node, for whoever takes it.
pub(super) type Value = Arc<dyn Any + Send + Sync>;

/// The result of a node that has ended well.
pub(super) fn value_of<T: Clone + 'static>(values: &[Option<Value>], index: usize) -> T {
    let value = values.get(index).and_then(|value| value.as_deref()?.downcast_ref::<T>().cloned());
    // Handles are typed and of this graph, and a node starts when all that it takes is there.
    value.unwrap_or_else(|| unreachable!("a node started before node {index} had ended"))
}

/// What a node does.
pub(super) trait Body<E>: Send + Sync {
    fn start<'run>(
        &self,
        cx: Ctx<'run>,
        values: &[Option<Value>],
        options: &Options,
    ) -> BoxFuture<'run, Result<Value, E>>;
}

/// One step.
pub(super) struct StepBody<N, F> {
    pub(super) name: Cow<'static, str>,
    pub(super) inputs: N,
    pub(super) body: Arc<F>,
}

impl<N, T, F, Fut, E> Body<E> for StepBody<N, F>
where
    N: Inputs,
    F: Fn(Attempt, N::Values) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: ApplicationError + From<Error>,
{
    fn start<'run>(
        &self,
        mut cx: Ctx<'run>,
        values: &[Option<Value>],
        options: &Options,
    ) -> BoxFuture<'run, Result<Value, E>> {
        let (body, values) = (self.body.clone(), self.inputs.take(values));
        let mut step = cx
            .step_with(self.name.clone(), move |attempt| body(attempt, values.clone()))
            .retry(options.retry.clone());
        if let Some(limit) = options.timeout {
            step = step.timeout(limit);
        }
        if options.cancel_at_once {
            step = step.cancel_at_once();
        }
        Box::pin(async move { step.await.map(|value| Arc::new(value) as Value).map_err(Failure::flatten) })
    }
}

/// A sequence of durable calls.
pub(super) struct Sequence<N, F> {
    pub(super) inputs: N,
    pub(super) body: F,
}

impl<N, T, F, E> Body<E> for Sequence<N, F>
where
    N: Inputs,
    F: for<'run> WorkflowFn<'run, N::Values, Output = Result<T, E>>,
    T: Send + Sync + 'static,
{
    fn start<'run>(
        &self,
        cx: Ctx<'run>,
        values: &[Option<Value>],
        _: &Options,
    ) -> BoxFuture<'run, Result<Value, E>> {
        let ends_well = cx.ends_well();
        let sequence = self.body.call(cx, self.inputs.take(values));
        Box::pin(async move {
            let value = sequence.await?;
            ends_well();
            Ok(Arc::new(value) as Value)
        })
    }
}

impl<I, O, E> Plan<I, O, E>
where
    I: Send + Sync + 'static,
    O: Clone + Send + Sync + 'static,
    E: ApplicationError + From<Error>,
{
    /// Runs the graph in a context: to be the body of a workflow, or a part of one.
    ///
    /// # Errors
    /// That of the first node, in the order of their declaration, that failed.
    pub fn run<'run>(&self, mut cx: Ctx<'run>, input: I) -> BoxFuture<'run, Result<O, E>> {
        let (nodes, output) = (self.nodes.clone(), self.output);
        // All of them before the first await: places do not depend on what ends when.
        let branches = nodes.iter().map(|node| node.body.is_some().then(|| cx.branch())).collect();
        Box::pin(async move {
            let values = Execution::new(&nodes, branches).run(Arc::new(input)).await?;
            Ok(value_of(&values, output))
        })
    }
}

struct Execution<'run, 'n, E> {
    nodes: &'n [Entry<E>],
    branches: Vec<Option<Ctx<'run>>>,
    /// For each node how many results it still waits for, and who waits for its own.
    missing: Vec<usize>,
    takers: Vec<Vec<usize>>,
    values: Vec<Option<Value>>,
    under_way: FuturesUnordered<BoxFuture<'run, (usize, Result<Value, E>)>>,
}

impl<'run, 'n, E: ApplicationError> Execution<'run, 'n, E> {
    fn new(nodes: &'n [Entry<E>], branches: Vec<Option<Ctx<'run>>>) -> Self {
        let mut takers = vec![Vec::new(); nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            node.shape.inputs.iter().for_each(|input| takers[*input].push(index));
        }
        Execution {
            nodes,
            branches,
            missing: nodes.iter().map(|node| node.shape.inputs.len()).collect(),
            takers,
            values: vec![None; nodes.len()],
            under_way: FuturesUnordered::new(),
        }
    }

    async fn run(mut self, input: Value) -> Result<Vec<Option<Value>>, E> {
        for index in 1..self.nodes.len() {
            if self.missing[index] == 0 {
                self.start(index);
            }
        }
        self.give(0, input);
        let mut failed: Option<(usize, E)> = None;
        while let Some((index, result)) = self.under_way.next().await {
            match result {
                Ok(value) => self.give(index, value),
                Err(error) if failed.as_ref().is_none_or(|(first, _)| index < *first) => {
                    failed = Some((index, error));
                }
                Err(_) => {}
            }
        }
        failed.map_or(Ok(self.values), |(_, error)| Err(error))
    }

    /// A node has ended well: those that waited for it alone start.
    fn give(&mut self, index: usize, value: Value) {
        self.values[index] = Some(value);
        for taker in std::mem::take(&mut self.takers[index]) {
            self.missing[taker] -= 1;
            if self.missing[taker] == 0 {
                self.start(taker);
            }
        }
    }

    fn start(&mut self, index: usize) {
        let Entry { body, options, .. } = &self.nodes[index];
        if let (Some(body), Some(cx)) = (body, self.branches[index].take()) {
            let node = body.start(cx, &self.values, options);
            self.under_way.push(Box::pin(async move { (index, node.await) }));
        }
    }
}
