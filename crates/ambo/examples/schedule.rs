//! A schedule: a run for each tick, however many workers there are.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example schedule`

use std::time::Duration;

use ambo::{Client, Ctx, Overlap, Result, Schedule, Worker};

#[ambo::workflow]
async fn report(cx: Ctx, kind: String) -> Result<()> {
    cx.publish("report", &format!("{kind} of {:?}", cx.scheduled_at()))
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<report>().start().await?;

    // At half past three in the morning, also when the clocks change; what was missed for less than an hour is made up for.
    let nightly = Schedule::cron("nightly report", "30 3 * * *", report::enqueue("daily".to_owned()));
    nightly
        .timezone("Europe/Berlin")
        .overlap(Overlap::Skip)
        .catch_up(Duration::from_secs(3600))
        .set(&client)
        .await?;
    println!("next at {}", client.list_schedules().await?[0].next_at);
    // And once now, by hand.
    let run = client.trigger_schedule("nightly report").await?;
    println!("{}", client.handle::<report>(run).event::<String>("report").await?);
    client.delete_schedule("nightly report").await?;
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
