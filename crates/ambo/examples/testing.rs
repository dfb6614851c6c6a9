//! A workflow under test: a database of its own, a day that is skipped, a gateway that is answered for, a worker that dies.
//!
//! `cargo run --example testing --features testing`; in a program of yours this is a `#[tokio::test]`.

use std::time::Duration;

use ambo::testing::{Testbed, enqueued_in};
use ambo::{Ctx, Error, Result, Retry};

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<String> {
    let gateway = || async { Err::<String, _>(Error::message("there is no gateway here")) };
    let receipt = cx.step("charge", gateway).retry(Retry::exponential()).await?;
    cx.sleep(Duration::from_secs(24 * 60 * 60)).await?;
    Ok(cx.step("ship", || async { Ok::<_, Error>(format!("order {order}, {receipt}")) }).await?)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let bed = Testbed::new().await?;
    bed.start(|worker| worker.workflow::<fulfil>()).await?;
    bed.step("charge").fails(Error::message("the line is busy")).times(1);
    bed.step("charge").returns("paid by card");
    bed.crash_after("ship");

    // What the code under test does in a transaction can be looked at before it commits.
    let (mut shop, connection) = tokio_postgres::connect(bed.url(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let tx = shop.transaction().await?;
    let run = fulfil::enqueue(1001).key("order-1001").on(&tx).await?.run;
    assert_eq!(enqueued_in(&tx).await?[0].input::<u64>()?, 1001);
    tx.commit().await?;

    bed.skip(Duration::from_secs(24 * 60 * 60)).await?;
    bed.crashed().await?;
    bed.restart().await?;
    let shipped = bed.client().handle::<fulfil>(run).result().await?;
    assert_eq!(shipped, "order 1001, paid by card");
    assert_eq!((bed.attempts("charge"), bed.attempts("ship")), (2, 2));
    println!("{shipped}: a day later, at once, whatever crashed");
    Ok(())
}
