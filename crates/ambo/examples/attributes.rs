//! Runs that are found by what they are about.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example attributes`

use ambo::admin::Filter;
use ambo::{Client, Ctx, Result, Worker};

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<u64> {
    // Found by it from now on; recorded with the next call, and costs no commit of its own.
    cx.set_attribute("stage", &"packed")?;
    Ok(cx.step("ship", || async move { Ok::<_, ambo::Error>(order) }).await?)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<fulfil>().start().await?;

    for (order, customer) in [(1001, 7), (1002, 8), (1003, 7)] {
        let attributes = serde_json::json!({ "customer": customer });
        fulfil::enqueue(order).attributes(&attributes).start(&worker).await?.result().await?;
    }
    let of_seven = serde_json::json!({ "customer": 7, "stage": "packed" });
    for run in client.list_runs(&Filter { attributes: Some(of_seven), ..Filter::default() }).await? {
        println!(
            "{} {} {}",
            run.id,
            run.state,
            run.attributes.map(|json| json.to_string()).unwrap_or_default()
        );
    }
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
