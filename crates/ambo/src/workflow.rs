//! Workflows: the trait behind `#[ambo::workflow]`, plain functions, and the registry of a worker.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Ctx;
use crate::error::{ApplicationError, Code, Error, Result, to_error};
use crate::graph::{Plan, Shape, short_name};
use crate::payload::{self, Json};
use crate::retry::Retry;
use crate::telemetry::WorkflowMeters;
use crate::vault::Vault;

/// A registered async function whose runs are durable. Made by [`#[ambo::workflow]`](macro@crate::workflow), or by hand.
pub trait Workflow: Send + Sync + 'static {
    /// What a run is given.
    type Input: Serialize + DeserializeOwned + Send + 'static;
    /// What a run that succeeds returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What a run fails with; [`Error`] where the application has no type of its own.
    type Error: ApplicationError;
    /// The name under which runs are recorded. It outlives the code: a renamed function keeps it.
    const NAME: &'static str;

    /// How often a run that fails is tried again, from its checkpoints; then it is dead. Default: not at all, it is failed.
    fn retry() -> Retry {
        Retry::none()
    }

    /// Whether to try again is no use after this error. Default: only after one that is [permanent](Error::permanent).
    fn is_permanent(_: &Self::Error) -> bool {
        false
    }

    /// What it looks like, if it is declared as a [graph](macro@crate::graph). Default: it is not.
    ///
    /// # Errors
    /// What is wrong with the graph.
    fn shape() -> Result<Option<Shape>> {
        Ok(None)
    }

    /// The body.
    fn run<'run>(cx: Ctx<'run>, input: Self::Input) -> BoxFuture<'run, Result<Self::Output, Self::Error>>;
}

/// A workflow of which the types are forgotten.
pub(crate) trait Body: Send + Sync {
    fn run<'run>(&self, cx: Ctx<'run>, input: &'run str) -> BoxFuture<'run, Result<Json>>;
}

struct Typed<W>(PhantomData<fn() -> W>);

impl<W: Workflow> Body for Typed<W> {
    fn run<'run>(&self, cx: Ctx<'run>, input: &'run str) -> BoxFuture<'run, Result<Json>> {
        Box::pin(async move {
            let input = payload::decode("the input of the run", input)?;
            let vault = cx.vault();
            seal(vault, W::run(cx, input).await, W::is_permanent)
        })
    }
}

struct Function<F, I>(F, PhantomData<fn(I)>);

impl<F, I, O, E> Body for Function<F, I>
where
    F: for<'run> WorkflowFn<'run, I, Output = Result<O, E>>,
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    E: ApplicationError,
{
    fn run<'run>(&self, cx: Ctx<'run>, input: &'run str) -> BoxFuture<'run, Result<Json>> {
        let vault = cx.vault();
        let called = payload::decode("the input of the run", input).map(|input| self.0.call(cx, input));
        Box::pin(async move { seal(vault, called?.await, |_| false) })
    }
}

struct Planned<I, O, E>(Plan<I, O, E>);

impl<I, O, E> Body for Planned<I, O, E>
where
    I: DeserializeOwned + Send + Sync + 'static,
    O: Serialize + Clone + Send + Sync + 'static,
    E: ApplicationError + From<Error>,
{
    fn run<'run>(&self, cx: Ctx<'run>, input: &'run str) -> BoxFuture<'run, Result<Json>> {
        let vault = cx.vault();
        let running = payload::decode("the input of the run", input).map(|input| self.0.run(cx, input));
        Box::pin(async move { seal(vault, running?.await, |_| false) })
    }
}

pub(crate) fn seal<O: Serialize, E: ApplicationError>(
    vault: &Vault,
    result: Result<O, E>,
    is_permanent: impl FnOnce(&E) -> bool,
) -> Result<Json> {
    match result {
        Ok(output) => vault.encode("the result of the run", &output),
        Err(error) if is_permanent(&error) => Err(to_error(error).permanent()),
        Err(error) => Err(to_error(error)),
    }
}

/// An async function from a context and an input: what [`WorkerBuilder::workflow_fn`](crate::WorkerBuilder::workflow_fn)
/// takes.
pub trait WorkflowFn<'run, I>: Send + Sync + 'static {
    /// What the function returns.
    type Output;
    /// The future of a call.
    type Future: Future<Output = Self::Output> + Send + 'run;

    /// Calls the function.
    fn call(&self, cx: Ctx<'run>, input: I) -> Self::Future;
}

impl<'run, I, F, Fut> WorkflowFn<'run, I> for F
where
    F: Fn(Ctx<'run>, I) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'run,
{
    type Output = Fut::Output;
    type Future = Fut;

    fn call(&self, cx: Ctx<'run>, input: I) -> Fut {
        self(cx, input)
    }
}

/// Between a workflow and a version in the name of the lane of runs that are pinned to it.
pub(crate) const PIN: char = '\u{1f}';
/// What marks the lane of what goes on, before anything begins.
pub(crate) const GOES_ON: char = '+';

/// The workflows that a worker knows, by name.
#[derive(Default, Clone)]
pub(crate) struct Registry(HashMap<String, Known>);

/// A workflow that a worker knows.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) body: Arc<dyn Body>,
    pub(crate) meters: Arc<WorkflowMeters>,
    pub(crate) retry: Retry,
    pub(crate) about: About,
}

/// What is known of a workflow before it runs.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) input: String,
    pub(crate) output: String,
    pub(crate) shape: Option<Shape>,
}

impl About {
    fn of<I, O>(shape: Option<Shape>) -> Self {
        About { input: short_name::<I>(), output: short_name::<O>(), shape }
    }
}

impl Registry {
    pub(crate) fn add<W: Workflow>(&mut self) -> Result<()> {
        let about = About::of::<W::Input, W::Output>(W::shape()?);
        self.insert(W::NAME, Arc::new(Typed::<W>(PhantomData)), W::retry(), about)
    }

    pub(crate) fn add_graph<I, O, E>(&mut self, name: &str, plan: Plan<I, O, E>) -> Result<()>
    where
        I: DeserializeOwned + Send + Sync + 'static,
        O: Serialize + Clone + Send + Sync + 'static,
        E: ApplicationError + From<Error>,
    {
        let about = About::of::<I, O>(Some(plan.shape()));
        self.insert(name, Arc::new(Planned(plan)), Retry::none(), about)
    }

    pub(crate) fn add_fn<F, I, O, E>(&mut self, name: &str, function: F) -> Result<()>
    where
        F: for<'run> WorkflowFn<'run, I, Output = Result<O, E>>,
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: ApplicationError,
    {
        self.insert(name, Arc::new(Function(function, PhantomData)), Retry::none(), About::of::<I, O>(None))
    }

    /// A body of another kind, from `I` to `O`.
    pub(crate) fn add_body<I, O>(&mut self, name: &str, body: Arc<dyn Body>) -> Result<()> {
        self.insert(name, body, Retry::none(), About::of::<I, O>(None))
    }

    fn insert(&mut self, name: &str, body: Arc<dyn Body>, retry: Retry, about: About) -> Result<()> {
        if name.is_empty() || name.len() > 200 || name.contains(['\0', PIN]) {
            return Err(Error::new(
                Code::InvalidName,
                format!("the name of a workflow has 1 to 200 bytes and no NUL; this one has {}", name.len()),
            ));
        }
        let known = Known { body, meters: Arc::new(WorkflowMeters::new(name)), retry, about };
        if self.0.insert(name.to_owned(), known).is_some() {
            return Err(Error::new(Code::Registration, format!("two workflows are registered as {name:?}")));
        }
        Ok(())
    }

    pub(crate) fn set_retry(&mut self, name: &str, retry: Retry) -> Result<()> {
        let unknown =
            || Error::new(Code::Registration, format!("no workflow is registered as {name:?} to retry"));
        self.0.get_mut(name).ok_or_else(unknown)?.retry = retry;
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Known> {
        self.0.get(name)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&String, &Known)> {
        self.0.iter()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.keys().cloned().collect();
        names.sort();
        names
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// What the application gave the worker, by type.
#[derive(Default, Clone)]
pub(crate) struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    pub(crate) fn put<T: Send + Sync + 'static>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
    }

    pub(crate) fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>()).cloned().and_then(|value| value.downcast().ok())
    }

    pub(crate) fn find<T: Send + Sync + 'static>(&self) -> Result<Arc<T>> {
        self.get::<T>().ok_or_else(|| {
            let name = std::any::type_name::<T>();
            let text = format!("the worker has no state of type `{name}`; give it with `.state(value)`");
            Error::new(Code::Configuration, text)
        })
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("States").field("count", &self.0.len()).finish()
    }
}

/// A workflow that registered itself at link time.
#[cfg(feature = "macros")]
#[doc(hidden)]
#[derive(Debug)]
pub struct Registered(pub fn(crate::WorkerBuilder) -> crate::WorkerBuilder);

#[cfg(feature = "macros")]
inventory::collect!(Registered);

/// What a workflow or step returns: a `Result`, by whatever name. So the macros find its two types.
#[cfg(feature = "macros")]
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a workflow or step returns a `Result`, not `{Self}`",
    label = "this is not a `Result`",
    note = "return `ambo::Result<T>`, or `Result<T, E>` with an error of your own"
)]
pub trait Returns {
    /// What it returns when it succeeds.
    type Output;
    /// What it fails with.
    type Error;
}

#[cfg(feature = "macros")]
impl<T, E: ApplicationError> Returns for Result<T, E> {
    type Output = T;
    type Error = E;
}
