//! Both or neither: an order and the run that fulfils it, in one transaction.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example quickstart`

use ambo::{Client, Ctx, Worker};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: i64,
    cents: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    charge: String,
    parcel: String,
}

/// Each step is recorded once: after a crash another worker goes on behind the last one.
#[ambo::workflow]
async fn fulfil(cx: Ctx, order: Order) -> ambo::Result<Receipt> {
    let charge = cx.step("charge", || charge(order.cents)).await?;
    let parcel = cx.step("ship", || ship(order.id)).await?;
    Ok(Receipt { charge, parcel })
}

async fn charge(cents: i64) -> ambo::Result<String> {
    Ok(format!("charged {cents} cents"))
}

async fn ship(order: i64) -> ambo::Result<String> {
    Ok(format!("shipped order {order}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL")?;
    let client = Client::connect_unchecked(&url, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<fulfil>().start().await?;

    let (mut shop, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    shop.batch_execute(
        "create table if not exists orders (id bigint primary key generated always as identity)",
    )
    .await?;

    let tx = shop.transaction().await?;
    let id = tx.query_one("insert into orders default values returning id", &[]).await?.get(0);
    let run = fulfil::enqueue(Order { id, cents: 4200 }).key(format!("order-{id}")).on(&tx).await?;
    tx.commit().await?; // now both are there; after a rollback neither would be

    println!("run {}", run.run);
    println!("{:?}", client.handle::<fulfil>(run.run).result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
