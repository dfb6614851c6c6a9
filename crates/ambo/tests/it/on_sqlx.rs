//! sqlx: enqueue on its transactions, connections and pools; transaction steps in its pool.

use std::sync::Arc;

use ambo::{Ctx, Enqueue, Enqueued, Error, Isolation, Result, Untyped};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Executor as _, Postgres, Transaction};

use crate::harness::database;
use crate::on_driver::{Caller, conformance, last_words, step_of};
use crate::stage::Gate;

struct Sqlx {
    pool: PgPool,
    tx: Option<Transaction<'static, Postgres>>,
}

impl Caller for Sqlx {
    async fn connect(url: &str) -> Self {
        let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        Sqlx { pool: pool.connect(url).await.unwrap(), tx: None }
    }

    async fn begin(&mut self, isolation: Isolation) -> Result<()> {
        let begin = match isolation {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        };
        self.tx = Some(self.pool.begin_with(begin).await?);
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        Ok(self.tx.take().expect("a transaction").commit().await?)
    }

    async fn rollback(&mut self) -> Result<()> {
        Ok(self.tx.take().expect("a transaction").rollback().await?)
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        match &mut self.tx {
            Some(tx) => tx.execute(sql).await?,
            None => self.pool.execute(sql).await?,
        };
        Ok(())
    }

    async fn enqueue(&mut self, run: Enqueue<Untyped>) -> Result<Enqueued> {
        match &mut self.tx {
            Some(tx) => run.on(tx).await,
            None => run.on(&self.pool).await,
        }
    }

    async fn enqueue_all(&mut self, runs: Vec<Enqueue<Untyped>>) -> Result<Vec<Enqueued>> {
        match &mut self.tx {
            Some(tx) => ambo::enqueue_all(tx, runs).await,
            None => ambo::enqueue_all(&self.pool, runs).await,
        }
    }
}

conformance!(Sqlx);

#[tokio::test]
async fn a_connection_will_do_as_well_as_a_transaction() {
    let db = database().await;
    let mut connection = PgConnection::connect(&db.url).await.unwrap();
    Enqueue::named("fulfil", &1).on(&mut connection).await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    Enqueue::named("fulfil", &2).on(&mut *tx).await.unwrap();
    let mut part = tx.begin().await.unwrap();
    Enqueue::named("fulfil", &3).on(&mut part).await.unwrap();
    part.rollback().await.unwrap();
    tx.commit().await.unwrap();
    let pool = PgPool::connect(&db.url).await.unwrap();
    Enqueue::named("fulfil", &4).on(&mut *pool.acquire().await.unwrap()).await.unwrap();
    let inputs = "select array(select input::text from ambo.run order by 1)";
    assert_eq!(db.sql.query_one(inputs, &[]).await.unwrap().get::<_, Vec<String>>(0), ["1", "2", "4"]);
}

async fn reserve(mut cx: Ctx<'_>, how: String) -> Result<i64> {
    let (pool, gate) = (cx.state::<PgPool>()?, cx.state::<Arc<Gate>>()?);
    let (step, how) = step_of(cx.transaction("reserve"), &how);
    let step = step.run(&*pool, async |mut tx| {
        gate.count();
        let insert = "insert into effect (what) values ($1) returning n";
        let n: i64 = sqlx::query_scalar(insert).bind(&how).fetch_one(&mut *tx).await?;
        Enqueue::named("fulfil", &n).on(&mut *tx).await?;
        if let Some(words) = last_words(&how, gate.bodies()) {
            let spoken = tx.execute(words).await;
            if how != "swallow" {
                spoken?;
            }
        }
        if how == "fail" { Err(Error::message("no")) } else { Ok(n) }
    });
    Ok(step.await?)
}

#[cfg(feature = "sqlx")]
#[tokio::test(flavor = "multi_thread")]
async fn transaction_steps_take_effect_once_or_not_at_all() {
    crate::on_driver::transaction_steps(|builder, url| async move {
        builder.state(PgPool::connect(&url).await.unwrap()).workflow_fn("reserve", reserve)
    })
    .await;
}
