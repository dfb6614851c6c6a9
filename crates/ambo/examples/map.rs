//! Many items, some at a time, each a sequence of steps in a branch of its own.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example map`

use ambo::{Client, Ctx, Result, Worker};

#[ambo::workflow]
async fn resize(cx: Ctx, pictures: Vec<String>) -> Result<u64> {
    // Four at a time; the results are in the order of the items.
    let sizes = cx.map(pictures, 4, one).await;
    sizes.into_iter().sum()
}

async fn one(mut cx: Ctx<'_>, picture: String) -> Result<u64> {
    let size = cx.step("read", || async { Ok::<_, ambo::Error>(picture.len() as u64) }).await?;
    Ok(cx.step("shrink", || async move { Ok::<_, ambo::Error>(size / 2) }).await?)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<resize>().start().await?;

    let pictures = (0..20).map(|number| format!("picture {number}")).collect();
    let handle = resize::enqueue(pictures).start(&worker).await?;
    println!("{} bytes", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
