//! A step with a name, a retry policy and a time limit of its own, written once and called in any workflow.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example step_attribute`

use std::time::Duration;

use ambo::{Attempt, Client, Ctx, Retry, Worker};
use serde::{Deserialize, Serialize};

/// What a worker is given and its workflows share.
struct Gateway {
    account: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u64,
    cents: u64,
}

/// Called as `charge::step(&mut cx, &gateway, &order)`; the attempt is filled in. Its key is the same for every attempt
/// of this step in this run: with it the gateway can tell a repetition from a second charge.
#[ambo::step(retry = Retry::exponential().max_attempts(5), timeout = Duration::from_secs(10))]
async fn charge(attempt: Attempt, gateway: &Gateway, order: &Order) -> ambo::Result<String> {
    if attempt.number() < 3 {
        return Err(ambo::Error::message("the gateway is busy"));
    }
    Ok(format!("{}: {} cents, key {}", gateway.account, order.cents, attempt.idempotency_key()))
}

/// What is taken by value is cloned for each attempt.
#[ambo::step(name = "notify-customer")]
async fn notify(order: u64, text: String) -> ambo::Result<()> {
    println!("order {order}: {text}");
    Ok(())
}

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: Order) -> ambo::Result<String> {
    let gateway = cx.state::<Gateway>()?;
    let receipt = charge::step(&mut cx, &gateway, &order).await?;
    notify::step(&mut cx, order.id, receipt.clone()).timeout(Duration::from_secs(3)).await?;
    Ok(receipt)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let gateway = Gateway { account: "shop".to_owned() };
    // Every `#[ambo::workflow]` that is linked into the program.
    let worker = Worker::builder(&client).linked_workflows().state(gateway).start().await?;

    let handle = fulfil::enqueue(Order { id: 1001, cents: 4200 }).start(&worker).await?;
    println!("{}", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
