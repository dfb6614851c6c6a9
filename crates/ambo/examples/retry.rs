//! Retries: of a step, of a whole run from its checkpoints, and what is not worth one.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example retry`

use std::time::Duration;

use ambo::{Client, Ctx, Error, Result, Retry, Worker};

/// The whole run is tried three times, with what its earlier tries recorded.
#[ambo::workflow(retry = Retry::fixed(Duration::from_millis(100)).max_attempts(3))]
async fn fulfil(cx: Ctx, card: String) -> Result<String> {
    let retry = Retry::exponential().initial(Duration::from_millis(10)).max_attempts(3);
    let charge = cx.step_with("charge", |attempt| {
        let card = card.clone();
        async move {
            match (&*card, attempt.number()) {
                // No retry of the step or of the run would help.
                ("stolen", _) => Err(Error::message("the card is stolen").permanent()),
                (_, 1) => Err(Error::message("the line is busy")),
                (_, number) => Ok(format!("charged at attempt {number}")),
            }
        }
    });
    let charged = charge.retry(retry).await?;
    if cx.retries() == 0 {
        return Err(Error::message("the first try fails after the charge, which is not repeated"));
    }
    Ok(format!("{charged}, shipped in try {}", cx.retries() + 1))
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<fulfil>().start().await?;

    println!("{}", fulfil::enqueue("good".to_owned()).start(&worker).await?.result().await?);
    println!("{}", fulfil::enqueue("stolen".to_owned()).start(&worker).await?.result().await.unwrap_err());
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
