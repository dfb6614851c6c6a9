//! The attributes of Ambo: `#[ambo::workflow]`, `#[ambo::graph]` and `#[ambo::step]`.
//!
//! They are thin. Each reads a plain function, leaves it callable, and puts a type of the same name beside it;
//! what is generated only calls public functions of `ambo`, and everything can be written by hand instead. Use them
//! through the crate `ambo`, which the generated code names.

mod graph;
mod parse;
mod step;
mod workflow;

use proc_macro::TokenStream;
use quote::quote;

/// Makes a workflow of an async function.
///
/// The function takes the context and at most one input, and returns a `Result` with any error that can be recorded
/// (`ambo::ApplicationError`). It can be called as before; the macro makes the context mutable, so write `cx: Ctx`.
/// Beside it stands a type of the same name:
///
/// - `fulfil::enqueue(input)`, or `tick::enqueue()` without input: a run to be, see `ambo::Enqueue`;
/// - `fulfil::NAME`: the recorded name;
/// - `fulfil` implements `ambo::Workflow`: register it with `.workflow::<fulfil>()`, or with all that are linked into
///   the program by `.linked_workflows()`.
///
/// # Options
/// - `name = "fulfil"`: the recorded name, if it shall not follow the function's, as when that is renamed.
/// - `retry = policy`: how often a run that fails is tried again, an `ambo::Retry`. Default: not at all.
/// - `permanent = judge`: a function from the error to whether to try again is no use. Default: none is.
/// - `crate = path`: where `ambo` is, if it was renamed or re-exported. Default: `::ambo`.
///
/// # Example
/// ```ignore
/// #[ambo::workflow(retry = ambo::Retry::exponential().max_attempts(5))]
/// async fn fulfil(cx: Ctx, order: Order) -> ambo::Result<Receipt> {
///     let charge = cx.step("charge", || gateway.charge(&order)).await?;
///     Ok(Receipt { charge })
/// }
///
/// fulfil::enqueue(order).key("order-1001").on(&mut tx).await?;
/// ```
#[proc_macro_attribute]
pub fn workflow(options: TokenStream, item: TokenStream) -> TokenStream {
    expand(options, item, workflow::expand)
}

/// Makes a workflow of a function that declares a graph.
///
/// The function takes `&mut ambo::Graph` and, unless the runs have none, the `ambo::Node` of the run's input, and answers the node
/// whose result is the run's. Beside it stands a type of the same name, as for `#[ambo::workflow]`, and
///
/// - `fulfil::plan()`: the graph, built and checked once.
///
/// # Options
/// Those of `#[ambo::workflow]`.
///
/// # Example
/// ```ignore
/// #[ambo::graph]
/// fn fulfil(graph: &mut Graph, order: Node<Order>) -> Node<Receipt> {
///     let stock = graph.step("reserve stock", order, reserve);
///     let charge = graph.step("charge", order, charge);
///     graph.step("ship", (stock, charge), |(stock, charge)| ship(stock, charge))
/// }
///
/// fulfil::enqueue(order).key("order-1001").on(&mut tx).await?;
/// ```
#[proc_macro_attribute]
pub fn graph(options: TokenStream, item: TokenStream) -> TokenStream {
    expand(options, item, graph::expand)
}

/// Makes a job of an async function: the same as [`macro@workflow`], by the name under which one looks for it. A run that makes no
/// durable call records nothing but its end; one that ends with `cx.complete_in(...)` records that together with its effect.
#[proc_macro_attribute]
pub fn job(options: TokenStream, item: TokenStream) -> TokenStream {
    expand(options, item, workflow::expand)
}

/// Makes a durable step of an async function, under a fixed name.
///
/// The function returns a `Result` and can be called as before. Beside it stands a type of the same name with
/// `charge::step(&mut cx, ...)`: it takes the context and the function's parameters, and gives an `ambo::Step`, to be
/// configured and awaited like one that `cx.step(...)` built.
///
/// A step may be tried several times: what it takes by value is cloned for each attempt, what it takes by reference is
/// not. If the first parameter is an `ambo::Attempt`, it is filled in and not asked for: it has the idempotency key to
/// hand to the outside.
///
/// # Options
/// - `name = "charge"`: the recorded name. Default: the function's.
/// - `retry = Retry::exponential()`: an expression, as for `Step::retry`.
/// - `timeout = Duration::from_secs(30)`: an expression, as for `Step::timeout`.
/// - `cancel_at_once`: a cancel of the run drops an attempt under way, as `Step::cancel_at_once`.
/// - `crate = path`: where `ambo` is. Default: `::ambo`.
///
/// # Example
/// ```ignore
/// #[ambo::step(retry = Retry::exponential().max_attempts(5))]
/// async fn charge(attempt: Attempt, gateway: &Gateway, order: &Order) -> Result<Charge, Declined> {
///     gateway.charge(order.cents, attempt.idempotency_key()).await
/// }
///
/// let charge = charge::step(&mut cx, &gateway, &order).await?;
/// ```
#[proc_macro_attribute]
pub fn step(options: TokenStream, item: TokenStream) -> TokenStream {
    expand(options, item, step::expand)
}

/// Runs one of the macros. After an error the function itself stays in the code, so that nothing else is missing.
fn expand(
    options: TokenStream,
    item: TokenStream,
    expand: fn(proc_macro2::TokenStream, &mut syn::ItemFn) -> syn::Result<proc_macro2::TokenStream>,
) -> TokenStream {
    let expanded = match syn::parse::<syn::Item>(item.clone()) {
        Ok(syn::Item::Fn(mut function)) => expand(options.into(), &mut function).map_err(|error| {
            let error = error.to_compile_error();
            quote!(#error #function)
        }),
        Ok(other) => {
            let error = syn::Error::new_spanned(&other, "this attribute belongs on a function");
            let error = error.to_compile_error();
            Err(quote!(#error #other))
        }
        Err(error) => {
            let (error, item) = (error.to_compile_error(), proc_macro2::TokenStream::from(item));
            Err(quote!(#error #item))
        }
    };
    expanded.unwrap_or_else(|error| error).into()
}
