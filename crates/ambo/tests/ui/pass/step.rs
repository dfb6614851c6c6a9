//! The forms that a step may have.
#![forbid(unsafe_code)]
#![deny(warnings, missing_docs, rust_2018_idioms, non_local_definitions)]

use std::borrow::Cow;
use std::time::Duration;

use ambo::{Attempt, Ctx, Retry, Step};
use serde::{Deserialize, Serialize};

/// Something outside.
#[derive(Debug)]
pub struct Gateway;

/// An input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    cents: u64,
}

/// An error of the application.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("declined")]
pub struct Declined;

/// By reference.
#[ambo::step]
pub async fn charge(_gateway: &Gateway, order: &Order) -> Result<u64, Declined> {
    Ok(order.cents)
}

#[ambo::step(name = "order/v2", retry = Retry::exponential().max_attempts(5), timeout = Duration::from_secs(3))]
async fn order(attempt: Attempt, order: Order, (a, b): (u64, u64)) -> ambo::Result<String> {
    Ok(format!("{} {} {a} {b}", attempt.idempotency_key(), order.cents))
}

#[ambo::step]
async fn borrowed(
    cx: Cow<'_, str>,
    deep: &[&str],
    call: &(dyn Fn(&str) -> usize + Sync),
) -> ambo::Result<usize> {
    Ok(cx.len() + deep.len() + call("x"))
}

#[ambo::step]
async fn r#loop(r#type: u64, attempt: u64) -> ambo::Result<u64> {
    Ok(r#type + attempt)
}

#[ambo::step(cancel_at_once)]
async fn alone() -> ambo::Result<u64> {
    Ok(1)
}

#[ambo::workflow]
async fn fulfil(cx: Ctx, input: Order) -> ambo::Result<u64> {
    let gateway = Gateway;
    let one = charge::step(&mut cx, &gateway, &input).retry(Retry::none());
    let two: Step<'_, String, ambo::Error> = order::step(&mut cx, input.clone(), (1, 2));
    let (one, two) = tokio::join!(one, two);
    let text = two?;
    let three = borrowed::step(&mut cx, Cow::Borrowed(&text), &[&text], &str::len).await?;
    let mut branch = cx.branch();
    let four = alone::step(&mut branch).await?;
    Ok(one.unwrap_or(0) + three as u64 + four + alone().await?)
}

fn main() {
    assert_eq!(r#loop::NAME, "loop");
    assert_eq!((charge::NAME, order::NAME, fulfil::NAME), ("charge", "order/v2", "fulfil"));
}
