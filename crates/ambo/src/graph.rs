//! Graphs: a workflow that is declared as steps with typed edges, and checked before it runs. How one runs is in `graph/run.rs`,
//! how it is drawn in `graph/shape.rs`.

mod run;
mod shape;

use std::any::TypeId;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{Attempt, check_name};
use crate::error::{ApplicationError, Code, Error, Result};
use crate::retry::Retry;
use crate::workflow::WorkflowFn;
use run::{Body, Sequence, StepBody, Value};
pub(crate) use shape::short_name;
pub use shape::{Shape, ShapeKind, ShapeNode};

/// How many nodes a graph has at most: each is a branch of every run's context.
const NODES_MAX: usize = 1000;

/// A graph that is being declared: nodes, each of which names the nodes whose results it takes.
///
/// A node exists before another can take its result, so that a graph has no cycle and no node whose input is missing; that the
/// types fit is the compiler's business. The rest is checked when the graph is built.
///
/// Nodes run as soon as what they take is there, side by side. Each has a place of its own in the run's history by the order
/// in which the nodes are declared, whatever their timing: put new nodes last where old runs are to go on. A node that fails does not stop those that do not depend on it; then
/// the run fails, and a retry executes that node and those that depend on it, and no other.
///
/// # Example
/// ```
/// # use ambo::{Graph, Node, Result};
/// #[ambo::graph]
/// fn quote(graph: &mut Graph, item: Node<String>) -> Node<u32> {
///     let price = graph.step("price", item, |item: String| async move { Ok(100 * item.len() as u32) });
///     let freight = graph.step("freight", item, |_| async { Ok(42) });
///     graph.step("sum", (price, freight), |(price, freight)| async move { Ok(price + freight) })
/// }
///
/// # fn main() -> Result<()> {
/// assert!(quote::plan()?.shape().mermaid().contains("flowchart"));
/// # Ok(()) }
/// ```
pub struct Graph<E = Error> {
    id: u64,
    nodes: Vec<Entry<E>>,
    /// What was found wrong first.
    fault: Option<String>,
}

/// A node of a [`Graph`], which gives a `T`. A copy of it in the inputs of another node is an edge.
pub struct Node<T> {
    graph: u64,
    index: usize,
    gives: PhantomData<fn() -> T>,
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Node<T> {}

impl<T> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.index).finish()
    }
}

/// One node.
struct Entry<E> {
    shape: ShapeNode,
    /// None for the input of the run.
    body: Option<Arc<dyn Body<E>>>,
    options: Options,
    /// Nobody needs to take its result.
    is_sink: bool,
}

/// How a step is tried.
#[derive(Debug, Clone)]
struct Options {
    retry: Retry,
    timeout: Option<Duration>,
    cancel_at_once: bool,
}

/// What a node takes: a [`Node`], a tuple of up to six of them, a `Vec` of nodes of one type, or `()` for nothing. Sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not what a node can take",
    note = "pass a `Node`, a tuple of up to six nodes, a `Vec<Node<T>>`, or `()`; results are cloned for those who take them, \
            so they are `Clone`"
)]
pub trait Inputs: sealed::Take {}
impl<N: sealed::Take> Inputs for N {}

mod sealed {
    use super::{Node, Value, run};

    /// How inputs are read.
    pub trait Take: Send + Sync + 'static {
        /// What the body of the node gets.
        type Values: Clone + Send + Sync + 'static;

        /// The nodes, as (graph, index).
        fn nodes(&self) -> Vec<(u64, usize)>;

        /// Their results, which are there.
        fn take(&self, values: &[Option<Value>]) -> Self::Values;
    }

    impl Take for () {
        type Values = ();

        fn nodes(&self) -> Vec<(u64, usize)> {
            Vec::new()
        }

        fn take(&self, _: &[Option<Value>]) {}
    }

    impl<T: Clone + Send + Sync + 'static> Take for Node<T> {
        type Values = T;

        fn nodes(&self) -> Vec<(u64, usize)> {
            vec![(self.graph, self.index)]
        }

        fn take(&self, values: &[Option<Value>]) -> T {
            run::value_of(values, self.index)
        }
    }

    impl<T: Clone + Send + Sync + 'static> Take for Vec<Node<T>> {
        type Values = Vec<T>;

        fn nodes(&self) -> Vec<(u64, usize)> {
            self.iter().flat_map(Take::nodes).collect()
        }

        fn take(&self, values: &[Option<Value>]) -> Vec<T> {
            self.iter().map(|node| node.take(values)).collect()
        }
    }

    macro_rules! tuple {
        ($($node:ident)*) => {
            impl<$($node: Take),*> Take for ($($node,)*) {
                type Values = ($($node::Values,)*);

                #[allow(non_snake_case)]
                fn nodes(&self) -> Vec<(u64, usize)> {
                    let ($($node,)*) = self;
                    [$($node.nodes()),*].concat()
                }

                #[allow(non_snake_case)]
                fn take(&self, values: &[Option<Value>]) -> Self::Values {
                    let ($($node,)*) = self;
                    ($($node.take(values),)*)
                }
            }
        };
    }

    tuple!(A);
    tuple!(A B);
    tuple!(A B C);
    tuple!(A B C D);
    tuple!(A B C D F);
    tuple!(A B C D F G);
}

static GRAPHS: AtomicU64 = AtomicU64::new(0);

impl<E: ApplicationError + From<Error>> Graph<E> {
    /// Declares a graph and checks it: `declare` gets the node of the run's input and answers the node whose result is the run's.
    ///
    /// # Errors
    /// `AMBO037` for two nodes of one name, a result that nobody takes, a node of another graph, or more than 1000 nodes;
    /// `AMBO001` for a name.
    pub fn build<I, O>(declare: impl FnOnce(&mut Self, Node<I>) -> Node<O>) -> Result<Plan<I, O, E>>
    where
        I: Clone + Send + Sync + 'static,
        O: Clone + Send + Sync + 'static,
    {
        let id = GRAPHS.fetch_add(1, Ordering::Relaxed);
        let mut graph = Graph { id, nodes: Vec::new(), fault: None };
        let shape = ShapeNode::new::<I>("input", ShapeKind::Input, Vec::new());
        let options = Options { retry: Retry::none(), timeout: None, cancel_at_once: false };
        graph.nodes.push(Entry { shape, body: None, options, is_sink: is_unit::<I>() });
        let output = declare(&mut graph, Node { graph: id, index: 0, gives: PhantomData });
        graph.check(output.graph, output.index)?;
        Ok(Plan { nodes: graph.nodes.into(), output: output.index, types: PhantomData })
    }

    fn check(&mut self, graph: u64, output: usize) -> Result<()> {
        if let Some(fault) = self.fault.take() {
            return Err(Error::new(Code::InvalidGraph, fault));
        }
        let refuse = |text: String| Err(Error::new(Code::InvalidGraph, text));
        if graph != self.id {
            return refuse("the node whose result is the run's belongs to another graph".to_owned());
        }
        if self.nodes.len() > NODES_MAX {
            return refuse(format!("a graph has {NODES_MAX} nodes at most, not {}", self.nodes.len()));
        }
        let mut names = HashSet::new();
        let mut taken = HashSet::from([output]);
        for Entry { shape, .. } in &self.nodes {
            check_name(&shape.name)?;
            if !names.insert(&shape.name) {
                return refuse(format!("two nodes are named {:?}", shape.name));
            }
            taken.extend(&shape.inputs);
        }
        let unused =
            self.nodes.iter().enumerate().find(|(index, node)| !node.is_sink && !taken.contains(index));
        match unused {
            Some((_, node)) => refuse(format!(
                "nobody takes the {} that {:?} gives; let a node take it, or say graph.ignore(node)",
                node.shape.gives, node.shape.name
            )),
            None => Ok(()),
        }
    }

    /// A node that is one step: recorded once, under the node's name. What it takes is cloned for each attempt.
    pub fn step<N, T, F, Fut>(&mut self, name: impl Into<Cow<'static, str>>, inputs: N, body: F) -> Node<T>
    where
        N: Inputs,
        F: Fn(N::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.step_with(name, inputs, move |_, values| body(values))
    }

    /// A [`step`](Graph::step) whose body is told which attempt it is and which key to hand to the outside.
    pub fn step_with<N, T, F, Fut>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        inputs: N,
        body: F,
    ) -> Node<T>
    where
        N: Inputs,
        F: Fn(Attempt, N::Values) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let name = name.into();
        let nodes = inputs.nodes();
        let body = Arc::new(StepBody { name: name.clone(), inputs, body: Arc::new(body) });
        self.add::<T>(&name, ShapeKind::Step, nodes, body)
    }

    /// A node that is a sequence of durable calls, like a workflow: steps, transaction steps, waits, children. It has a branch of
    /// the run's context for itself.
    ///
    /// # Example
    /// ```
    /// # use ambo::{Ctx, Graph, Node, Result};
    /// async fn approval(mut cx: Ctx<'_>, order: u64) -> Result<bool> {
    ///     cx.publish("to approve", &order)?;
    ///     cx.signal("approval").await
    /// }
    ///
    /// #[ambo::graph]
    /// fn fulfil(graph: &mut Graph, order: Node<u64>) -> Node<bool> {
    ///     graph.sequence("approval", order, approval)
    /// }
    /// # fn main() {}
    /// ```
    pub fn sequence<N, T, F>(&mut self, name: impl Into<Cow<'static, str>>, inputs: N, body: F) -> Node<T>
    where
        N: Inputs,
        F: for<'run> WorkflowFn<'run, N::Values, Output = Result<T, E>>,
        T: Clone + Send + Sync + 'static,
    {
        let nodes = inputs.nodes();
        self.add::<T>(&name.into(), ShapeKind::Sequence, nodes, Arc::new(Sequence { inputs, body }))
    }

    fn add<T: 'static>(
        &mut self,
        name: &str,
        kind: ShapeKind,
        nodes: Vec<(u64, usize)>,
        body: Arc<dyn Body<E>>,
    ) -> Node<T> {
        if nodes.iter().any(|(graph, _)| *graph != self.id) {
            self.fault.get_or_insert_with(|| format!("{name:?} takes the result of a node of another graph"));
        }
        let inputs = nodes.into_iter().map(|(_, index)| index).collect();
        let options = Options { retry: Retry::none(), timeout: None, cancel_at_once: false };
        let shape = ShapeNode::new::<T>(name, kind, inputs);
        self.nodes.push(Entry { shape, body: Some(body), options, is_sink: is_unit::<T>() });
        Node { graph: self.id, index: self.nodes.len() - 1, gives: PhantomData }
    }

    /// How failed attempts of a node that is a step are tried again. Default: not at all.
    pub fn retry<T>(&mut self, node: Node<T>, retry: Retry) {
        self.change(node, |entry| entry.options.retry = retry);
    }

    /// How long one attempt of a node that is a step may take. Default: no limit.
    pub fn timeout<T>(&mut self, node: Node<T>, limit: Duration) {
        self.change(node, |entry| entry.options.timeout = Some(limit));
    }

    /// A cancel of the run drops an attempt of a step that is under way. See [`Step::cancel_at_once`](crate::Step::cancel_at_once).
    pub fn cancel_at_once<T>(&mut self, node: Node<T>) {
        self.change(node, |entry| entry.options.cancel_at_once = true);
    }

    /// Says that it is right that nobody takes this node's result. One that gives `()` needs no such word.
    pub fn ignore<T>(&mut self, node: Node<T>) {
        self.change(node, |entry| entry.is_sink = true);
    }

    fn change<T>(&mut self, node: Node<T>, change: impl FnOnce(&mut Entry<E>)) {
        match self.nodes.get_mut(node.index).filter(|_| node.graph == self.id) {
            Some(entry) => change(entry),
            None => _ = self.fault.get_or_insert_with(|| "a node of another graph was configured".to_owned()),
        }
    }
}

fn is_unit<T: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<()>()
}

/// A graph that was built and checked. Register it with [`WorkerBuilder::graph`](crate::WorkerBuilder::graph), or let
/// [`#[ambo::graph]`](macro@crate::graph) do so.
pub struct Plan<I, O, E = Error> {
    nodes: Arc<[Entry<E>]>,
    output: usize,
    types: PhantomData<fn(I) -> O>,
}

impl<I, O, E> Plan<I, O, E> {
    /// What it looks like.
    pub fn shape(&self) -> Shape {
        Shape { nodes: self.nodes.iter().map(|node| node.shape.clone()).collect(), output: self.output }
    }
}

impl<I, O, E> Clone for Plan<I, O, E> {
    fn clone(&self) -> Self {
        Plan { nodes: self.nodes.clone(), output: self.output, types: PhantomData }
    }
}

impl<E> fmt::Debug for Graph<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| &node.shape.name)).finish()
    }
}

impl<I, O, E> fmt::Debug for Plan<I, O, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| &node.shape.name)).finish()
    }
}

/// Finds the types in the signature of a function that declares a graph, for the macro.
#[cfg(feature = "macros")]
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a graph is declared from `&mut Graph` and a `Node`, and answers a `Node`; `{Self}` is neither",
    label = "this is neither a `Graph` nor a `Node`"
)]
pub trait Part {
    /// What a node gives, or what a graph fails with.
    type Is;
}

#[cfg(feature = "macros")]
impl<T> Part for Node<T> {
    type Is = T;
}

#[cfg(feature = "macros")]
impl<E> Part for Graph<E> {
    type Is = E;
}

/// What a static plan says, or why there is none.
#[cfg(feature = "macros")]
#[doc(hidden)]
pub fn planned<P>(plan: &'static std::sync::LazyLock<Result<P>>) -> Result<&'static P> {
    plan.as_ref().map_err(|error| Error::new(error.code(), error.text()))
}
