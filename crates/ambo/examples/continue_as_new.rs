//! A run that goes on for ever and stays small, and a check of new code against what it had recorded.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example continue_as_new`

use ambo::admin::Filter;
use ambo::{Client, Ctx, Enqueue, Error, Result, Untyped, Worker};

/// Counts the days of a subscription, ten calls at a time.
async fn subscription(mut cx: Ctx<'_>, mut day: u32) -> Result<u32> {
    for _ in 0..10 {
        cx.step("charge", || async { Ok::<_, Error>(()) }).await?;
        day += 1;
    }
    if day < 100 {
        return cx.continue_as_new(&day).await;
    }
    Ok(day)
}

/// The same, with a call that is not the one that was recorded.
async fn another(mut cx: Ctx<'_>, day: u32) -> Result<u32> {
    cx.step("invoice", || async { Ok::<_, Error>(()) }).await?;
    Ok(day)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow_fn("subscription", subscription).start().await?;
    let run = Enqueue::<Untyped>::named("subscription", &0).on(&client).await?.run;
    let days: u32 = client.handle::<Untyped>(run).result_as::<_, Error>().await?;
    let recorded = client.show_run(run).await?.steps.len();
    println!("{days} days, of which {recorded} records are left");
    assert!(days == 100 && recorded < 20);
    worker.drain(ambo::DRAIN).await;

    // Before another version is deployed: `ambo replay-check -- ./program` does the same from a shell.
    let histories = async || client.histories(&Filter::default()).await;
    let same = Worker::builder(&client).workflow_fn("subscription", subscription);
    assert_eq!(same.replay_check(histories().await?).await?, []);
    let differs = Worker::builder(&client).workflow_fn("subscription", another);
    for difference in differs.replay_check(histories().await?).await? {
        println!("{difference}");
    }
    Ok(())
}
