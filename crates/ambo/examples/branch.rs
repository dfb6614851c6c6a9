//! Two sequences of steps at once: each has a branch of the context, so its positions do not depend on timing.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example branch`

use ambo::{Client, Ctx, Worker};

#[ambo::workflow]
async fn trip(cx: Ctx, city: String) -> ambo::Result<String> {
    let travel = travel(cx.branch(), &city);
    let stay = stay(cx.branch(), &city);
    let (travel, stay) = tokio::try_join!(travel, stay)?;
    Ok(cx.step("confirm", || confirm(&travel, &stay)).await?)
}

/// A part of a workflow is a plain function that takes a context.
async fn travel(mut cx: Ctx<'_>, city: &str) -> ambo::Result<String> {
    let flight = cx.step("flight", || book("flight", city)).await?;
    let taxi = cx.step("taxi", || book("taxi", city)).await?;
    Ok(format!("{flight}, {taxi}"))
}

async fn stay(mut cx: Ctx<'_>, city: &str) -> ambo::Result<String> {
    let hotel = cx.step("hotel", || book("hotel", city)).await?;
    let table = cx.step("table", || book("table", city)).await?;
    Ok(format!("{hotel}, {table}"))
}

async fn book(what: &str, city: &str) -> ambo::Result<String> {
    Ok(format!("{what} in {city}"))
}

async fn confirm(travel: &str, stay: &str) -> ambo::Result<String> {
    Ok(format!("booked: {travel}; {stay}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<trip>().start().await?;

    let handle = trip::enqueue("Ravenna".to_owned()).start(&worker).await?;
    println!("{}", handle.result().await?);
    for step in client.show_run(handle.run_id()).await?.steps {
        println!("{:>4}  {}", step.position, step.name);
    }
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
