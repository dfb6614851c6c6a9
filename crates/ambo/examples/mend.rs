//! What an operator does: a run is cancelled and resumed, forked, and rewound, each from what it had recorded.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example mend`

use ambo::{Client, Code, Ctx, Error, Result, SendSignal, Worker};

#[ambo::workflow]
async fn report(cx: Ctx, month: u32) -> Result<String> {
    // Positions count the calls: this is 1, what follows 2 and 3.
    let sum = cx
        .step("gather", || async move {
            println!("gathered the figures of month {month}");
            Ok::<_, Error>(month * 1000)
        })
        .await?;
    cx.publish("status", &"waits for a title")?;
    let title = cx.signal::<String>("title").await?;
    Ok(format!("{title}: {sum}"))
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<report>().start().await?;
    let first = report::enqueue(11).start(&worker).await?;
    first.event::<String>("status").await?;

    // Cancelled it keeps what it has recorded. One that had something to undo would have undone it, and could not be resumed.
    client.cancel(first.run_id(), "not before the end of the month").await?;
    let cancelled = Error::from(first.result().await.unwrap_err());
    assert_eq!(cancelled.code(), Code::Cancelled);

    // Resumed it goes on where it stood: nothing is gathered twice.
    client.retry(first.run_id()).await?;
    first.signal("title", &"draft").on(&client).await?;
    println!("resumed: {}", first.result().await?);

    // A fork is another run, with all that this one had recorded before the wait; this one stays as it is.
    let fork = client.fork(first.run_id(), Some("3")).await?;
    SendSignal::new(fork, "title", &"for the board").on(&client).await?;
    println!("forked: {}", client.handle::<report>(fork).result().await?);

    // Rewound to its beginning it forgets that it has run: the figures are gathered anew, and the title is taken again.
    client.rewind(first.run_id(), "1").await?;
    println!("rewound: {}", first.result().await?);
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
