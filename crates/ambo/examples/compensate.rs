//! A saga: what was done is undone in reverse when the rest fails.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example compensate`

use ambo::{Client, Ctx, Error, Result, Retry, Worker};

#[ambo::workflow]
async fn trip(cx: Ctx, city: String) -> Result<()> {
    for what in ["flight", "hotel"] {
        cx.step(format!("book {what}"), || async {
            println!("booked the {what} to {city}");
            Ok::<_, Error>(())
        })
        .await?;
        // Registered beside the step that it undoes: durable, and tried until it succeeds.
        cx.compensate_with(format!("cancel {what}"), Retry::exponential(), move |_| async move {
            println!("cancelled the {what}");
            Ok::<_, Error>(())
        });
    }
    cx.step("book table", || async { Err::<(), _>(Error::message("no table is free")) }).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<trip>().start().await?;

    let handle = trip::enqueue("Ravenna".to_owned()).start(&worker).await?;
    println!("{}", handle.result().await.unwrap_err());
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
