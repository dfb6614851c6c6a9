//! Without macros: a plain async function is registered under a name and enqueued by it, from any program.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example plain_function`

use ambo::{Client, Ctx, Enqueue, Error, Failure, Untyped, Worker};

async fn square(mut cx: Ctx<'_>, side: u64) -> ambo::Result<u64> {
    Ok(cx.step("multiply", || async { Ok::<_, Error>(side * side) }).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow_fn("square", square).start().await?;

    // In SQL: select ambo.enqueue_workflow('square', '12');
    let run = Enqueue::named("square", &12).on(&client).await?;
    let area: Result<u64, Failure<Error>> = client.handle::<Untyped>(run.run).result_as().await;
    println!("{}", area?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
