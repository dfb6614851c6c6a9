//! SeaORM: enqueue on its connections and transactions; transaction steps in its connection.

use std::sync::Arc;

use ambo::{Ctx, Enqueue, Enqueued, Error, Isolation, Result, Untyped};
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    IsolationLevel, Statement, TransactionTrait as _,
};

use crate::harness::database;
use crate::on_driver::{Caller, conformance, last_words, step_of};
use crate::stage::Gate;

struct SeaOrm {
    connection: DatabaseConnection,
    tx: Option<DatabaseTransaction>,
}

pub(crate) async fn open(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(4).test_before_acquire(false);
    sea_orm::Database::connect(options).await.unwrap()
}

impl Caller for SeaOrm {
    async fn connect(url: &str) -> Self {
        SeaOrm { connection: open(url).await, tx: None }
    }

    async fn begin(&mut self, isolation: Isolation) -> Result<()> {
        let level = match isolation {
            Isolation::ReadCommitted => IsolationLevel::ReadCommitted,
            Isolation::RepeatableRead => IsolationLevel::RepeatableRead,
            Isolation::Serializable => IsolationLevel::Serializable,
        };
        self.tx = Some(self.connection.begin_with_config(Some(level), None).await?);
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        Ok(self.tx.take().expect("a transaction").commit().await?)
    }

    async fn rollback(&mut self) -> Result<()> {
        Ok(self.tx.take().expect("a transaction").rollback().await?)
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        match &self.tx {
            Some(tx) => tx.execute_unprepared(sql).await?,
            None => self.connection.execute_unprepared(sql).await?,
        };
        Ok(())
    }

    async fn enqueue(&mut self, run: Enqueue<Untyped>) -> Result<Enqueued> {
        match &self.tx {
            Some(tx) => run.on(tx).await,
            None => run.on(&self.connection).await,
        }
    }

    async fn enqueue_all(&mut self, runs: Vec<Enqueue<Untyped>>) -> Result<Vec<Enqueued>> {
        match &self.tx {
            Some(tx) => ambo::enqueue_all(tx, runs).await,
            None => ambo::enqueue_all(&self.connection, runs).await,
        }
    }
}

conformance!(SeaOrm);

#[tokio::test]
async fn a_nested_transaction_takes_its_run_along() {
    let db = database().await;
    let connection = open(&db.url).await;
    let tx = connection.begin().await.unwrap();
    Enqueue::named("fulfil", &1).on(&tx).await.unwrap();
    let part = tx.begin().await.unwrap();
    Enqueue::named("fulfil", &2).on(&part).await.unwrap();
    part.rollback().await.unwrap();
    tx.commit().await.unwrap();
    let inputs = "select array(select input::text from ambo.run order by 1)";
    assert_eq!(db.sql.query_one(inputs, &[]).await.unwrap().get::<_, Vec<String>>(0), ["1"]);
}

async fn reserve(mut cx: Ctx<'_>, how: String) -> Result<i64> {
    let (connection, gate) = (cx.state::<DatabaseConnection>()?, cx.state::<Arc<Gate>>()?);
    let (step, how) = step_of(cx.transaction("reserve"), &how);
    let step = step.run(&*connection, async |tx| {
        gate.count();
        let insert = "insert into effect (what) values ($1) returning n";
        let insert = Statement::from_sql_and_values(DbBackend::Postgres, insert, [how.clone().into()]);
        let row = tx.query_one_raw(insert).await?.ok_or(DbErr::RecordNotInserted)?;
        let n: i64 = row.try_get_by_index(0)?;
        Enqueue::named("fulfil", &n).on(&*tx).await?;
        if let Some(words) = last_words(&how, gate.bodies()) {
            let spoken = tx.execute_unprepared(words).await;
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
        builder.state(open(&url).await).workflow_fn("reserve", reserve)
    })
    .await;
}
