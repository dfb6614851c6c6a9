//! A race between a signal and a timer: who won is recorded, and stays so in every replay.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example select`

use std::time::Duration;

use ambo::{Client, Ctx, Either, Result, Worker};

#[ambo::workflow]
async fn offer(cx: Ctx, price: u32) -> Result<String> {
    let taken = cx.signal::<String>("taken");
    let expired = cx.sleep(Duration::from_millis(500));
    match cx.select(taken, expired).await?.1 {
        Either::Left(name) => Ok(format!("sold to {} for {price}", name?)),
        Either::Right(slept) => slept.map(|()| "expired".to_owned()),
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<offer>().start().await?;

    let sold = offer::enqueue(100).start(&worker).await?;
    let expired = offer::enqueue(1000).start(&worker).await?;
    sold.signal("taken", &"Ada").on(&client).await?;
    println!("{}", sold.result().await?);
    println!("{}", expired.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
