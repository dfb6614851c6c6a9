//! The shop front: places orders in transactions that also enqueue their fulfilment. Some are rolled back on purpose,
//! some come in by plain SQL and get their run from a trigger. It survives the crash of the database by placing an
//! order again that it has no answer for: the order's id and the run's key are the same.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::worker::{APPROVAL, Order, fulfil};

/// Of a hundred orders, so many are placed at once; the others when a line comes by standard input.
const AT_ONCE: u64 = 75;
/// Customers who order at the same time.
const CUSTOMERS: u64 = 16;
/// From the order to its approval: longer than a run waits in memory, so that it is parked.
const DELIBERATION: Duration = Duration::from_secs(2);

/// How an order is placed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// In a transaction that also enqueues.
    Enqueued,
    /// By plain SQL; a trigger enqueues.
    Imported,
    /// As the first, but rolled back.
    RolledBack,
}

/// Which way order `id` takes: the books know it too.
pub(crate) fn way(id: u64) -> Way {
    match id % 10 {
        3 => Way::RolledBack,
        1 | 5 | 8 => Way::Imported,
        _ => Way::Enqueued,
    }
}

/// What becomes of an order that is placed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is charged and shipped.
    Plain,
    /// It waits for an approval, which comes.
    Approved,
    /// It waits for an approval that never comes.
    Unapproved,
    /// It cannot be shipped: it is refunded.
    Unshippable,
}

/// Which kind order `id` is. Each kind is placed in each way.
pub(crate) fn kind(id: u64) -> Kind {
    match id % 25 {
        6 => Kind::Approved,
        11 => Kind::Unapproved,
        21 => Kind::Unshippable,
        _ => Kind::Plain,
    }
}

/// The order with this id.
pub(crate) fn order(id: u64) -> Order {
    let id = id as i64;
    Order { id, item: 1 + (id * 7 % 20) as i32, quantity: 1 + (id % 3) as i32, cents: 500 + id % 9_000 }
}

/// Places all orders; returns when each is placed or rolled back.
pub(crate) async fn place(url: &str, orders: u64) -> Result<()> {
    let told = listen();
    let pool = PgPoolOptions::new()
        .max_connections(CUSTOMERS as u32)
        .acquire_timeout(Duration::from_secs(5))
        .connect(url)
        .await?;
    let next = Arc::new(AtomicU64::new(1));
    let (ask, asked) = mpsc::unbounded_channel();
    let approver = tokio::spawn(approve_all(pool.clone(), asked));
    let mut customers = tokio::task::JoinSet::new();
    for _ in 0..CUSTOMERS {
        let (pool, next, mut told, ask) = (pool.clone(), next.clone(), told.clone(), ask.clone());
        customers.spawn(async move {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id > orders {
                    return;
                }
                if id * 100 > orders * AT_ONCE && told.wait_for(|told| *told).await.is_err() {
                    return;
                }
                while let Err(error) = place_one(&pool, id).await {
                    if std::env::var_os("AMBO_DEMO_LOG").is_some() {
                        eprintln!("order {id} again: {error}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                if kind(id) == Kind::Approved && way(id) != Way::RolledBack {
                    // It is there as long as the front is.
                    let _ = ask.send((id, Instant::now() + DELIBERATION));
                }
            }
        });
    }
    drop(ask);
    customers.join_all().await;
    approver.await?;
    Ok(())
}

/// Approves what is asked for, each when its time has come, until nobody asks any more.
async fn approve_all(pool: PgPool, mut asked: mpsc::UnboundedReceiver<(u64, Instant)>) {
    while let Some((id, due)) = asked.recv().await {
        tokio::time::sleep_until(due).await;
        while let Err(error) = approve(&pool, id as i64).await {
            if std::env::var_os("AMBO_DEMO_LOG").is_some() {
                eprintln!("approval of {id} again: {error}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The order is marked and its run is told, both or neither: one that is marked already needs no second signal.
async fn approve(pool: &PgPool, id: i64) -> ambo::Result<()> {
    let mut tx = pool.begin().await?;
    let marked = sqlx::query("update orders set approved = true where id = $1 and not approved")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    if marked.rows_affected() == 1 {
        let run: uuid::Uuid = sqlx::query_scalar("select id from ambo.run where key = $1")
            .bind(format!("order-{id}"))
            .fetch_one(&mut *tx)
            .await?;
        ambo::SendSignal::new(run.into(), APPROVAL, &true).key(format!("approval-{id}")).on(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// A line by standard input lets the last orders come; when that closes, the demo is gone, and so is the front.
fn listen() -> tokio::sync::watch::Receiver<bool> {
    let (rush, told) = tokio::sync::watch::channel(false);
    std::thread::spawn(move || {
        while std::io::stdin().lock().read_line(&mut String::new()).is_ok_and(|read| read > 0) {
            rush.send_replace(true);
        }
        std::process::exit(0);
    });
    told
}

async fn place_one(pool: &PgPool, id: u64) -> ambo::Result<()> {
    let (way, order) = (way(id), order(id));
    let mut tx = pool.begin().await?;
    sqlx::query(
        "insert into orders (id, item, quantity, cents, imported) values ($1, $2, $3, $4, $5) on conflict do nothing",
    )
    .bind(order.id)
    .bind(order.item)
    .bind(order.quantity)
    .bind(order.cents)
    .bind(way == Way::Imported)
    .execute(&mut *tx)
    .await?;
    if way != Way::Imported {
        fulfil::enqueue(order).key(format!("order-{id}")).on(&mut *tx).await?;
    }
    match way {
        Way::RolledBack => tx.rollback().await?, // neither
        _ => tx.commit().await?,                 // both
    }
    Ok(())
}
