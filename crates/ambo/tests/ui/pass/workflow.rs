//! The forms that a workflow may have.
#![forbid(unsafe_code)]
#![deny(warnings, missing_docs, rust_2018_idioms, non_local_definitions)]

use ambo::{Code, Ctx, Enqueue, Error, Workflow};
use serde::{Deserialize, Serialize};

/// An input.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    id: u64,
}

/// An error of the application.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("declined: {reason}")]
pub struct Declined {
    reason: String,
}

type Outcome<T> = std::result::Result<T, Declined>;

/// A step, and an input.
#[ambo::workflow]
pub async fn fulfil(cx: Ctx, order: Order) -> ambo::Result<u64> {
    Ok(cx.step("ship", || async { Ok::<_, Error>(order.id) }).await?)
}

#[ambo::workflow]
async fn without_input(cx: Ctx) -> ambo::Result<()> {
    let _ = cx.run_id();
    Ok(())
}

#[ambo::workflow(name = "charge/v2")]
async fn typed_error(_cx: Ctx, order: Order) -> Result<u64, Declined> {
    if order.id == 0 { Err(Declined { reason: "zero".to_owned() }) } else { Ok(order.id) }
}

#[ambo::workflow]
async fn alias(mut cx: Ctx<'_>, (left, right): (u64, u64)) -> Outcome<u64> {
    let sum = cx.step("add", || async { Ok::<_, Declined>(left + right) }).await;
    Ok(sum.unwrap_or(0))
}

#[ambo::workflow(crate = ::ambo)]
async fn pending(_: ambo::Ctx<'_>, input: u64) -> std::result::Result<u64, Error> {
    Err(Error::message(format!("{input}")))
}

mod other {
    #[cfg(any())]
    #[ambo::workflow]
    async fn nowhere(cx: NoSuch, input: u64) -> ambo::Result<u64> {}

    #[ambo::workflow]
    #[cfg(any())]
    pub(crate) async fn nowhere_either(cx: super::Ctx, input: u64) -> ambo::Result<NoSuch> {}

    #[ambo::workflow]
    pub(super) async fn elsewhere(cx: super::Ctx, input: u64) -> ambo::Result<u64> {
        super::fulfil(cx, super::Order { id: input }).await
    }
}

fn main() {
    #[ambo::workflow]
    async fn inside(cx: Ctx, input: u64) -> ambo::Result<u64> {
        other::elsewhere(cx, input).await
    }

    let _: Enqueue<fulfil> = fulfil::enqueue(Order { id: 1 }).key("order-1");
    let _: Enqueue<without_input> = without_input::enqueue();
    let _ = (alias::enqueue((1, 2)), pending::enqueue(1), other::elsewhere::enqueue(1), inside::enqueue(1));
    assert_eq!((fulfil::NAME, typed_error::NAME), ("fulfil", "charge/v2"));
    assert_eq!(<typed_error as Workflow>::NAME, "charge/v2");
    let _: Option<<alias as Workflow>::Error> = None::<Declined>;
    let _ = Code::ALL;
    let all = ["fulfil", "without_input", "charge/v2", "alias", "pending", "elsewhere", "inside"];
    let linked = ambo::__private::inventory::iter::<ambo::__private::Registered>.into_iter().count();
    assert_eq!(linked, all.len());
}
