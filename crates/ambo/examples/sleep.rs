//! A run that sleeps: by the database's clock, out of memory, through every restart.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example sleep`

use std::time::Duration;

use ambo::{Client, Ctx, Result, Worker};

#[ambo::workflow]
async fn remind(cx: Ctx, name: String) -> Result<String> {
    let before = cx.now()?;
    cx.sleep(Duration::from_secs(2)).await?;
    let slept = cx.now()?.duration_since(before);
    Ok(cx
        .step("mail", || async { Ok::<_, ambo::Error>(format!("{name}, after {} s", slept.as_secs())) })
        .await?)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<remind>().start().await?;

    let handle = remind::enqueue("Ada".to_owned()).start(&worker).await?;
    println!("{}", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
