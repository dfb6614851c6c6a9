//! `enqueue_tx`: a user's transaction with one insert, 32 connections; the same with an enqueue beside it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::database::{Database, connect};
use crate::load::sum;

/// Connections, each in one transaction at a time.
pub const CONNECTIONS: i64 = 32;

const TABLE: &str = "create table customer_order \
    (id bigint generated always as identity primary key, \
     customer bigint not null, item text not null, placed_at timestamptz not null default now())";
const INSERT: &str = "insert into customer_order (customer, item) values ($1, $2)";

/// Transactions for a while, with `beside` as their second statement; gives the transactions a second.
///
/// `beside` takes the customer's number. The rows are counted in the end.
pub async fn commit_for(database: &Database, beside: Option<&str>, time: Duration) -> Result<f64> {
    connect(&database.url).await?.batch_execute(TABLE).await?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = connect(&database.url).await?;
        let insert = client.prepare(INSERT).await?;
        let beside = match beside {
            Some(sql) => Some(client.prepare(sql).await?),
            None => None,
        };
        clients.push((client, insert, beside));
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (customer, (mut client, insert, beside)) in (0_i64..).zip(clients) {
        tasks.spawn(async move {
            let mut transactions = 0;
            while start.elapsed() < time {
                let transaction = client.transaction().await?;
                transaction.execute(&insert, &[&customer, &"teapot"]).await?;
                if let Some(beside) = &beside {
                    transaction.execute(beside, &[&customer]).await?;
                }
                transaction.commit().await?;
                transactions += 1;
            }
            Ok(transactions)
        });
    }
    let transactions = sum(tasks).await?;
    let seconds = start.elapsed().as_secs_f64();
    let stored = database.count("select count(*) from customer_order").await?;
    ensure!(stored == transactions, "{stored} rows stored of {transactions}");
    Ok(transactions as f64 / seconds)
}
