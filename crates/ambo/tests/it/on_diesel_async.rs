//! diesel-async: enqueue on its connections, in and out of transactions; transaction steps in its pool.

use std::sync::Arc;

use ambo::{Ctx, Enqueue, Enqueued, Error, Isolation, Result, Untyped};
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{
    AnsiTransactionManager, AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _,
    SimpleAsyncConnection as _, TransactionManager as _,
};

use crate::harness::database;
use crate::on_driver::{Caller, conformance, last_words, step_of};
use crate::stage::Gate;

impl Caller for AsyncPgConnection {
    async fn connect(url: &str) -> Self {
        <Self as diesel_async::AsyncConnection>::establish(url).await.unwrap()
    }

    async fn begin(&mut self, isolation: Isolation) -> Result<()> {
        let begin = match isolation {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        };
        Ok(AnsiTransactionManager::begin_transaction_sql(self, begin).await?)
    }

    async fn commit(&mut self) -> Result<()> {
        Ok(AnsiTransactionManager::commit_transaction(self).await?)
    }

    async fn rollback(&mut self) -> Result<()> {
        Ok(AnsiTransactionManager::rollback_transaction(self).await?)
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        Ok(self.batch_execute(sql).await?)
    }

    async fn enqueue(&mut self, run: Enqueue<Untyped>) -> Result<Enqueued> {
        run.on(self).await
    }

    async fn enqueue_all(&mut self, runs: Vec<Enqueue<Untyped>>) -> Result<Vec<Enqueued>> {
        ambo::enqueue_all(self, runs).await
    }
}

conformance!(AsyncPgConnection);

#[tokio::test]
async fn a_transaction_of_diesel_takes_its_run_along() {
    let db = database().await;
    let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(&db.url);
    let pool = Pool::builder(manager).build().unwrap();
    let mut connection = pool.get().await.unwrap();
    let kept: Result<Enqueued, Error> =
        connection.transaction(async |tx| Enqueue::named("fulfil", &1).on(tx).await).await;
    kept.unwrap();
    let gone: Result<(), Error> = connection
        .transaction(async |tx| {
            Enqueue::named("fulfil", &2).on(&mut *tx).await?;
            Err(Error::message("no"))
        })
        .await;
    gone.unwrap_err();
    Enqueue::named("fulfil", &3).on(&mut connection).await.unwrap();
    let inputs = "select array(select input::text from ambo.run order by 1)";
    assert_eq!(db.sql.query_one(inputs, &[]).await.unwrap().get::<_, Vec<String>>(0), ["1", "3"]);
}

fn pool(url: &str) -> Pool<AsyncPgConnection> {
    Pool::builder(AsyncDieselConnectionManager::new(url)).build().unwrap()
}

async fn reserve(mut cx: Ctx<'_>, how: String) -> Result<i64> {
    let (pool, gate) = (cx.state::<Pool<AsyncPgConnection>>()?, cx.state::<Arc<Gate>>()?);
    let (step, how) = step_of(cx.transaction("reserve"), &how);
    let step = step.run(&*pool, async |mut tx| {
        gate.count();
        let insert = diesel::sql_query("insert into effect (what) values ($1)");
        let rows = insert.bind::<diesel::sql_types::Text, _>(&how).execute(&mut *tx).await?;
        let n = i64::try_from(rows).map_err(Error::other)?;
        Enqueue::named("fulfil", &n).on(&mut *tx).await?;
        if let Some(words) = last_words(&how, gate.bodies()) {
            let spoken = tx.batch_execute(words).await;
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
        builder.state(pool(&url)).workflow_fn("reserve", reserve)
    })
    .await;
}
