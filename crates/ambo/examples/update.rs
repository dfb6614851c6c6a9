//! Requests to a run: each is handled once, and answered.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example update`

use ambo::{Client, Ctx, Result, Worker};

/// A cart that lives as long as it is filled.
#[ambo::workflow]
async fn cart(cx: Ctx) -> Result<Vec<String>> {
    let mut items = Vec::new();
    loop {
        let add = cx.update::<String>("add").await?;
        let is_last = add.value == "check out";
        if !is_last {
            items.push(add.value.clone());
        }
        cx.answer(&add, &items.len())?;
        if is_last {
            return Ok(items);
        }
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<cart>().start().await?;

    let handle = cart::enqueue().start(&worker).await?;
    for (item, key) in [("lamp", "1"), ("chair", "2"), ("chair", "2"), ("check out", "3")] {
        // The same key is the same request, and gets the same answer.
        let count: usize = client.update(handle.run_id(), "add", &item, key).await?;
        println!("{item}: {count} in the cart");
    }
    println!("{:?}", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
