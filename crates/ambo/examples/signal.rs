//! A run that waits for a decision, which somebody sends in a transaction of theirs.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example signal`

use std::time::Duration;

use ambo::{Client, Code, Ctx, Result, Worker};

#[ambo::workflow]
async fn order(cx: Ctx, id: u64) -> Result<String> {
    match cx.signal::<bool>("approval").timeout(Duration::from_secs(2)).await {
        Ok(true) => Ok(format!("order {id} is approved")),
        Ok(false) => Ok(format!("order {id} is refused")),
        Err(error) if error.code() == Code::WaitTimeout => Ok(format!("nobody decided on order {id}")),
        Err(error) => Err(error),
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<order>().start().await?;

    let decided = order::enqueue(1001).start(&worker).await?;
    let forgotten = order::enqueue(1002).start(&worker).await?;
    // On the client here; on a transaction it is sent if and only if that commits.
    decided.signal("approval", &true).key("decision on 1001").on(&client).await?;
    println!("{}", decided.result().await?);
    println!("{}", forgotten.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
