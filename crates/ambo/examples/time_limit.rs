//! Time limits: of an attempt, of a wait and of a whole run, which is undone when its time is up.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example time_limit`

use std::time::Duration;

use ambo::{Client, Code, Ctx, Error, Result, Retry, Worker};

#[ambo::workflow]
async fn delivery(cx: Ctx, parcel: u64) -> Result<String> {
    cx.step("book van", || async { Ok::<_, Error>(()) }).await?;
    cx.compensate("release van", move |_| async move {
        println!("released the van of parcel {parcel}");
        Ok::<_, Error>(())
    });

    // An attempt: its future is dropped when it takes longer, and it is tried again as the policy says.
    let route = cx.step_with("plan route", |attempt| async move {
        if attempt.number() == 1 {
            std::future::pending::<()>().await;
        }
        Ok::<_, Error>(format!("route of attempt {}", attempt.number()))
    });
    let quickly = Retry::fixed(Duration::from_millis(10)).max_attempts(3);
    println!("{}", route.timeout(Duration::from_millis(100)).retry(quickly).await?);

    // A wait: the run goes on without what did not come.
    match cx.signal::<String>("note").timeout(Duration::from_millis(100)).await {
        Ok(note) => println!("note: {note}"),
        Err(error) if error.code() == Code::WaitTimeout => println!("nobody left a note"),
        Err(error) => return Err(error),
    }
    cx.signal::<String>("picked up").await
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<delivery>().start().await?;

    // The whole run, from when it is first claimed: nobody picks the parcel up, and the van is released.
    let handle = delivery::enqueue(7).timeout(Duration::from_secs(2)).start(&worker).await?;
    let error = Error::from(handle.result().await.unwrap_err());
    assert_eq!(error.code(), Code::RunTimeout);
    println!("{error}");
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
