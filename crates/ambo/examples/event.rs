//! A run that says how far it is, and a reader who misses nothing of it.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example event`

use std::time::Duration;

use ambo::{Client, Ctx, Result, Worker};

#[ambo::workflow]
async fn import(cx: Ctx, files: u32) -> Result<u32> {
    for file in 1..=files {
        cx.step("read", || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, ambo::Error>(())
        })
        .await?;
        cx.publish("progress", &format!("{file} of {files}"))?;
    }
    Ok(files)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<import>().start().await?;

    let handle = import::enqueue(5).start(&worker).await?;
    // The stream: all values in their order, after the last number that was seen, until the run has ended.
    let mut seen = 0;
    loop {
        let values = client.next_events::<String>(handle.run_id(), "progress", seen).await?;
        let Some((last, _)) = values.last() else { break };
        seen = *last;
        values.iter().for_each(|(number, value)| println!("{number}: {value}"));
    }
    // The event: its present value.
    println!("at last: {}", handle.event::<String>("progress").await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
