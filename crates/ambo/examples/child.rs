//! Children: runs that a run starts, on whatever worker, and gathers.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example child`

use ambo::{Client, Ctx, Result, Worker};

#[ambo::workflow]
async fn parcel(cx: Ctx, number: u32) -> Result<String> {
    Ok(cx.step("pack", || async move { Ok::<_, ambo::Error>(format!("parcel {number}")) }).await?)
}

#[ambo::workflow]
async fn shipment(cx: Ctx, parcels: u32) -> Result<Vec<String>> {
    // All are started before the first is awaited: one child per place, whatever crashes.
    let children: Vec<_> =
        (1..=parcels).map(|number| cx.child::<parcel>(number).start()).collect::<Result<_>>()?;
    // This one goes on by itself when the parent is cancelled.
    cx.child::<parcel>(0).detached().start()?;
    let mut packed = Vec::new();
    for child in children {
        packed.push(cx.result_of(child).await?);
    }
    Ok(packed)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<parcel>().workflow::<shipment>().start().await?;

    let handle = shipment::enqueue(3).start(&worker).await?;
    println!("{:?}", handle.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
