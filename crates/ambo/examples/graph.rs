//! A workflow that is declared as a graph: checked before it runs, drawn, and run with the parallelism that it allows.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example graph`

use std::time::Duration;

use ambo::{Client, Ctx, Graph, Node, Result, Retry, Worker};

#[ambo::graph]
fn fulfil(graph: &mut Graph, order: Node<u64>) -> Node<String> {
    let stock = graph.step("reserve stock", order, reserve);
    let paid = graph.sequence("pay", order, pay);
    graph.retry(stock, Retry::exponential());
    let parcel =
        graph.step("pack", (stock, paid), |(stock, ())| async move { Ok(format!("parcel with {stock}")) });
    // It gives nothing, so nobody needs to take it.
    graph.step("thank", paid, |()| async { Ok(()) });
    parcel
}

async fn reserve(order: u64) -> Result<String> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(format!("lamp {order}"))
}

/// A node may be a sequence of calls: steps, waits, children, transactions.
async fn pay(mut cx: Ctx<'_>, order: u64) -> Result<()> {
    cx.step("charge", || async move { Ok::<_, ambo::Error>(order * 100) }).await?;
    cx.sleep(Duration::from_millis(200)).await?;
    Ok(cx.step("capture", || async { Ok::<_, ambo::Error>(()) }).await?)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<fulfil>().start().await?;

    print!("{}", fulfil::plan()?.shape().text());
    let handle = fulfil::enqueue(1001).start(&worker).await?;
    println!("{}, after 200 ms and not 400", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
