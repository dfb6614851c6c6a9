//! Many enqueues, few runs: debounce waits until all is quiet, throttle takes the first of a period.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example debounce`

use std::time::Duration;

use ambo::{Client, Ctx, Result, Worker};

/// Writes what has changed of a document to a search index, say.
#[ambo::workflow]
async fn index(_: Ctx, version: u32) -> Result<u32> {
    Ok(version)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<index>().start().await?;

    // Each of these may be in the transaction that saves the document.
    let quiet = Duration::from_millis(300);
    let mut saved = Vec::new();
    for version in 1..=10 {
        let save = index::enqueue(version).key("document-7").debounce(quiet).debounce_max(quiet * 20);
        saved.push(save.on(&client).await?);
    }
    assert!(saved.iter().all(|one| one.run == saved[0].run), "one run");
    let indexed = client.handle::<index>(saved[0].run).result().await?;
    println!("indexed version {indexed}, once");
    assert_eq!(indexed, 10, "with the last input");

    let mut viewed = Vec::new();
    for version in 1..=10 {
        let view = index::enqueue(version).key("document-8").throttle(Duration::from_secs(3600));
        viewed.push(view.on(&client).await?);
    }
    assert!(viewed[0].is_new && viewed[1..].iter().all(|one| !one.is_new && one.run == viewed[0].run));
    println!("indexed version {}, once in an hour", client.handle::<index>(viewed[0].run).result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
