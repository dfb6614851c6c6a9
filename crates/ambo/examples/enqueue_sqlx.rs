//! An order and its run in one transaction of sqlx: both or neither.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example enqueue_sqlx --features sqlx`

use ambo::{Client, Ctx, Result, Worker};
use sqlx::PgPool;

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: i64) -> Result<String> {
    Ok(cx.step("ship", || async move { Ok::<_, ambo::Error>(format!("shipped order {order}")) }).await?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("DATABASE_URL").map_err(ambo::Error::other)?;
    let client = Client::connect_unchecked(&url, "ambo").await?;
    client.migrate().await?;
    let worker = Worker::builder(&client).workflow::<fulfil>().start().await?;
    let pool = PgPool::connect(&url).await?;
    let table = "create table if not exists orders (id bigint primary key generated always as identity)";
    sqlx::query(table).execute(&pool).await?;

    for kept in [true, false] {
        let mut tx = pool.begin().await?;
        let insert = "insert into orders default values returning id";
        let order: i64 = sqlx::query_scalar(insert).fetch_one(&mut *tx).await?;
        let run = fulfil::enqueue(order).key(format!("order-{order}")).on(&mut tx).await?;
        if kept {
            tx.commit().await?;
            println!("order {order}: {}", client.handle::<fulfil>(run.run).result().await?);
        } else {
            tx.rollback().await?;
            let gone = client.handle::<fulfil>(run.run).result().await;
            println!("order {order}, rolled back: {}", gone.err().map(|e| e.to_string()).unwrap_or_default());
        }
    }
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
