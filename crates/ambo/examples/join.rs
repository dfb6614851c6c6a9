//! Two steps at once: a step takes its position when it is built, so steps that are built may be awaited together.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example join`

use std::time::Duration;

use ambo::{Client, Ctx, Worker};

#[ambo::workflow]
async fn quote(cx: Ctx, item: String) -> ambo::Result<u32> {
    let price = cx.step("price", || price(&item));
    let freight = cx.step("freight", || freight(&item));
    let (price, freight) = tokio::join!(price, freight);
    Ok(price? + freight?)
}

async fn price(item: &str) -> ambo::Result<u32> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(100 * item.len() as u32)
}

async fn freight(_item: &str) -> ambo::Result<u32> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(42)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<quote>().start().await?;

    let handle = quote::enqueue("lamp".to_owned()).start(&worker).await?;
    println!("{} cents, after 200 ms and not 400", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
