//! A worker process: the workflow that fulfils an order.

use ambo::{Client, Ctx, Result, Retry, Worker};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::time::Duration;

use crate::front::{Kind, kind};
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

/// The topic of the signal that approves an order.
pub(crate) const APPROVAL: &str = "approval";
/// How long an order waits that nobody approves. One that is approved waits as long as it takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// Stock in the shop's own database, the charge at the outside, and the shipment; what fails is undone in reverse.
#[ambo::workflow]
pub(crate) async fn fulfil(cx: Ctx, order: Order) -> Result<()> {
    let shop = cx.state::<Shop>()?;
    let kind = kind(order.id.unsigned_abs());

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
    let (pool, unsold) = (shop.pool.clone(), order.clone());
    cx.compensate("give stock back", move |_| give_back(pool.clone(), unsold.clone()));

    match kind {
        Kind::Approved => drop(cx.signal::<bool>(APPROVAL).await?),
        Kind::Unapproved => drop(cx.signal::<bool>(APPROVAL).timeout(PATIENCE).await?),
        Kind::Plain | Kind::Unshippable => {}
    }

    // At least once, with a key that is the same each time: the payment service charges it once.
    let charge = cx
        .step_with("charge", |attempt| payment::charge(&shop.payment, attempt.idempotency_key(), order.cents))
        .retry(insistent())
        .timeout(Duration::from_secs(2))
        .await?;
    let (service, cents) = (shop.payment.clone(), order.cents);
    cx.compensate_with("refund", insistent(), move |attempt| {
        let service = service.clone();
        async move { payment::charge(&service, attempt.idempotency_key(), -cents).await.map(drop) }
    });

    cx.transaction("ship")
        .run(&shop.pool, async |mut tx| {
            sqlx::query("insert into shipment (order_id, charge) values ($1, $2)")
                .bind(order.id)
                .bind(charge as i64)
                .execute(&mut *tx)
                .await?;
            if kind == Kind::Unshippable {
                return Err(ambo::Error::message("no carrier goes there"));
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// The payment service fails often.
fn insistent() -> Retry {
    Retry::exponential().max_attempts(20).initial(Duration::from_millis(10))
}

/// In one statement, so that a second attempt finds the first one's row and gives nothing back.
async fn give_back(pool: PgPool, order: Order) -> Result<()> {
    sqlx::query(
        "with given as (insert into given_back (order_id) values ($1) on conflict do nothing returning order_id)
         update item set remaining = remaining + $2 where id = $3 and exists (select from given)",
    )
    .bind(order.id)
    .bind(order.quantity)
    .bind(order.item)
    .execute(&pool)
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
