//! A worker process: the workflow that fulfils an order.

use ambo::{Client, Ctx, Result, Retry, Worker};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::time::Duration;

use crate::payment;

/// What a run is given; the trigger writes the same with `row_to_json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) item: i32,
    pub(crate) quantity: i32,
    pub(crate) cents: i64,
}

/// What the workflow works with.
struct Shop {
    pool: PgPool,
    payment: String,
}

/// Charge at the outside, then stock and shipment in the shop's own database.
#[ambo::workflow]
pub(crate) async fn fulfil(cx: Ctx, order: Order) -> Result<()> {
    let shop = cx.state::<Shop>()?;

    // At least once, with a key that is the same each time: the payment service charges it once.
    let charge = cx
        .step_with("charge", |attempt| payment::charge(&shop.payment, attempt.idempotency_key(), order.cents))
        .retry(Retry::exponential().max_attempts(20).initial(Duration::from_millis(10)))
        .timeout(Duration::from_secs(2))
        .await?;

    // Exactly once: the stock and the record of the step commit together.
    cx.transaction("reserve stock")
        .run(&shop.pool, async |mut tx| {
            sqlx::query("update item set remaining = remaining - $1 where id = $2")
                .bind(order.quantity)
                .bind(order.item)
                .execute(&mut *tx)
                .await?;
            Ok::<_, ambo::Error>(())
        })
        .await?;

    cx.transaction("ship")
        .run(&shop.pool, async |mut tx| {
            sqlx::query("insert into shipment (order_id, charge) values ($1, $2)")
                .bind(order.id)
                .bind(charge as i64)
                .execute(&mut *tx)
                .await?;
            Ok::<_, ambo::Error>(())
        })
        .await?;
    Ok(())
}

/// Works until it is killed, or its parent is gone.
pub(crate) async fn work(url: &str, payment: String) -> anyhow::Result<()> {
    let pool = PgPoolOptions::new().max_connections(16).connect(url).await.context("the worker's pool")?;
    let client = Client::connect(url).await?;
    let worker = Worker::builder(&client)
        .workflow::<fulfil>()
        .state(Shop { pool, payment })
        // Small, so that the work is spread over the processes that are going to be killed.
        .max_in_flight(100)
        .name("shop")
        .start()
        .await?;
    worker.run_until_signal().await?;
    Ok(())
}
