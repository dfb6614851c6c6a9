//! An error of the application's own: it is recorded with the run, and whoever awaits the result gets it back as it was.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example typed_error`

use ambo::{Client, Ctx, Failure, Retry, Worker};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
enum PaymentError {
    #[error("the card was declined: {reason}")]
    Declined { reason: String },
    #[error("the bank does not answer")]
    BankAway,
    #[error(transparent)]
    Ambo(#[from] ambo::Error),
}

/// What `?` does with a step that failed: our error, or why there is none, such as a cancelled run.
impl From<Failure<PaymentError>> for PaymentError {
    fn from(failure: Failure<PaymentError>) -> Self {
        match failure {
            Failure::Application(error) => error,
            Failure::Ambo(error) => PaymentError::Ambo(error),
        }
    }
}

#[ambo::workflow]
async fn pay(cx: Ctx, cents: u64) -> Result<String, PaymentError> {
    let charge = cx
        .step("charge", || charge(cents))
        .retry(Retry::exponential().max_attempts(3))
        .retry_if(|error| matches!(error, PaymentError::BankAway)); // a declined card stays declined
    Ok(charge.await?)
}

async fn charge(cents: u64) -> Result<String, PaymentError> {
    match cents {
        0..=5000 => Ok(format!("charged {cents} cents")),
        _ => Err(PaymentError::Declined { reason: "over the limit".to_owned() }),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<pay>().start().await?;

    for cents in [4200, 9900] {
        let handle = pay::enqueue(cents).start(&worker).await?;
        match handle.result().await {
            Ok(receipt) => println!("{receipt}"),
            Err(Failure::Application(PaymentError::Declined { reason })) => println!("declined: {reason}"),
            Err(other) => return Err(other.into()),
        }
    }
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
