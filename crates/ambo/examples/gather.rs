//! Children that are handled as they end, and a race for the first of many answers.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example gather`

use std::time::Duration;

use ambo::{Client, Ctx, Error, Result, Worker};

/// A supplier, who takes his time.
#[ambo::workflow]
async fn offer(cx: Ctx, name: String) -> Result<usize> {
    cx.sleep(Duration::from_millis(100 * name.len() as u64)).await?;
    Ok(1000 / name.len())
}

/// Each in a branch of its own: whoever is ready is written down, and the results are in the order of the names.
#[ambo::workflow]
async fn lowest(cx: Ctx, names: Vec<String>) -> Result<Option<usize>> {
    let children: Vec<_> =
        names.into_iter().map(|name| cx.child::<offer>(name).start()).collect::<Result<_>>()?;
    let at_once = children.len();
    let prices = cx.map(children, at_once, |mut branch, child| async move {
        let price = branch.result_of(child).await?;
        let write = branch.step("write down", || async move {
            println!("an offer: {price}");
            Ok::<_, Error>(())
        });
        write.await?;
        Ok::<_, Error>(price)
    });
    let prices: Result<Vec<usize>> = prices.await.into_iter().collect();
    Ok(prices?.into_iter().min())
}

/// The first one is taken, and stays so in every replay; nobody waits for the others.
#[ambo::workflow]
async fn fastest(cx: Ctx, names: Vec<String>) -> Result<String> {
    let children: Vec<_> =
        names.iter().map(|name| cx.child::<offer>(name.clone()).start()).collect::<Result<_>>()?;
    let answers: Vec<_> = children.into_iter().map(|child| cx.result_of(child)).collect();
    let (winner, price) = cx.race(answers).await?;
    Ok(format!("{} for {}", names[winner], price?))
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<offer>().workflow::<lowest>().workflow::<fastest>();
    let worker = worker.start().await?;

    let names = ["Konstantin", "Eve", "Michael"].map(str::to_owned).to_vec();
    println!("the lowest: {:?}", lowest::enqueue(names.clone()).start(&worker).await?.result().await?);
    println!("the fastest: {}", fastest::enqueue(names).start(&worker).await?.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
