//! Code that changes under a run: old runs keep to the old calls, new ones take the new ones.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example patched`

use std::time::Duration;

use ambo::{Client, Ctx, Enqueue, Error, Result, SendSignal, Untyped, Worker};

async fn note(cx: &mut Ctx<'_>, name: &'static str) -> Result<String> {
    Ok(cx.step(name, || async move { Ok::<_, Error>(name.to_owned()) }).await?)
}

/// As it was deployed first.
async fn before(mut cx: Ctx<'_>, _: ()) -> Result<Vec<String>> {
    let charged = note(&mut cx, "charge").await?;
    let shipped = note(&mut cx, "ship").await?;
    cx.signal::<()>("delivered").await?;
    Ok(vec![charged, shipped])
}

/// As it is now: with a check between the two.
async fn after(mut cx: Ctx<'_>, _: ()) -> Result<Vec<String>> {
    let mut notes = vec![note(&mut cx, "charge").await?];
    if cx.patched("check fraud")? {
        notes.push(note(&mut cx, "check").await?);
    }
    notes.push(note(&mut cx, "ship").await?);
    cx.signal::<()>("delivered").await?;
    Ok(notes)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let start = |worker: ambo::WorkerBuilder| worker.park_after(Duration::from_millis(50)).start();
    let old = start(Worker::builder(&client).workflow_fn("fulfil", before)).await?;
    let first = Enqueue::<Untyped>::named("fulfil", &()).on(&client).await?.run;
    while client.show_run(first).await?.summary.state != "parked" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    old.drain(ambo::DRAIN).await;

    let new = start(Worker::builder(&client).workflow_fn("fulfil", after)).await?;
    let second = Enqueue::<Untyped>::named("fulfil", &()).on(&client).await?.run;
    for run in [first, second] {
        SendSignal::new(run, "delivered", &()).on(&client).await?;
        let notes: Vec<String> = client.handle::<Untyped>(run).result_as::<_, Error>().await?;
        println!("{notes:?}");
    }
    new.drain(ambo::DRAIN).await;
    Ok(())
}
