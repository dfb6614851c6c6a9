//! Stock is taken, and the step recorded, in one commit: exactly once. A second database is booked as exactly, with
//! a witness.
//!
//! `DATABASE_URL=postgres://localhost/shop LEDGER_URL=postgres://localhost/ledger cargo run --example transaction_step
//! --features sqlx`; without `LEDGER_URL` the first database plays both parts.

use ambo::{Client, Ctx, Error, Isolation, Result, Worker};
use sqlx::PgPool;

/// The other database, told from the first by its type.
struct Ledger(PgPool);

#[ambo::workflow]
async fn sell(cx: Ctx, item: String) -> Result<i32> {
    let (shop, ledger) = (cx.state::<PgPool>()?, cx.state::<Ledger>()?);
    let reserve = cx.transaction("reserve").isolation(Isolation::Serializable);
    let left = reserve.run(&*shop, async |mut tx| {
        let sql = "update stock set n = n - 1 where item = $1 and n > 0 returning n";
        let left: Option<i32> = sqlx::query_scalar(sql).bind(&item).fetch_optional(&mut *tx).await?;
        left.ok_or_else(|| Error::message("out of stock"))
    });
    let left = left.await?;
    let book = cx.transaction("book").witnessed().run(&ledger.0, async |mut tx| {
        sqlx::query("insert into booking (item) values ($1)").bind(&item).execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    book.await?;
    Ok(left)
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("DATABASE_URL").map_err(Error::other)?;
    let client = Client::connect_unchecked(&url, "ambo").await?;
    client.migrate().await?;
    let shop = PgPool::connect(&url).await?;
    let tables = "create table if not exists stock (item text primary key, n int not null);
        insert into stock values ('teapot', 5) on conflict (item) do update set n = 5";
    sqlx::raw_sql(tables).execute(&shop).await?;
    let ledger = PgPool::connect(&std::env::var("LEDGER_URL").unwrap_or(url)).await?;
    sqlx::raw_sql("create table if not exists booking (item text)").execute(&ledger).await?;
    ambo::install_witness(&ledger).await?;

    let builder = Worker::builder(&client).workflow::<sell>().state(shop).state(Ledger(ledger));
    let worker = builder.start().await?;
    for _ in 0..6 {
        let run = sell::enqueue("teapot".to_owned()).on(&client).await?;
        match client.handle::<sell>(run.run).result().await {
            Ok(left) => println!("sold one, {left} left"),
            Err(error) => println!("not sold: {error}"),
        }
    }
    worker.drain(ambo::DRAIN).await;
    Ok(())
}
