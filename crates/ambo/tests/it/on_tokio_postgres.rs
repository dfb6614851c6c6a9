//! tokio-postgres: enqueue on its clients and transactions; transaction steps in [`ambo::TokioPostgres`].

use std::sync::Arc;

use ambo::{Ctx, Enqueue, Enqueued, Error, Isolation, Result, Untyped};

use crate::harness::{connect, database};
use crate::on_driver::{Caller, conformance, last_words, step_of};
use crate::stage::Gate;

/// Begins and ends by SQL: what is borrowed from a client cannot stand beside it. Its transactions are below.
struct TokioPostgres(tokio_postgres::Client);

impl Caller for TokioPostgres {
    async fn connect(url: &str) -> Self {
        TokioPostgres(connect(url).await)
    }

    async fn begin(&mut self, isolation: Isolation) -> Result<()> {
        let begin = match isolation {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        };
        self.execute(begin).await
    }

    async fn commit(&mut self) -> Result<()> {
        self.execute("commit").await
    }

    async fn rollback(&mut self) -> Result<()> {
        self.execute("rollback").await
    }

    async fn execute(&mut self, sql: &str) -> Result<()> {
        Ok(self.0.batch_execute(sql).await?)
    }

    async fn enqueue(&mut self, run: Enqueue<Untyped>) -> Result<Enqueued> {
        run.on(&self.0).await
    }

    async fn enqueue_all(&mut self, runs: Vec<Enqueue<Untyped>>) -> Result<Vec<Enqueued>> {
        ambo::enqueue_all(&self.0, runs).await
    }
}

conformance!(TokioPostgres);

#[tokio::test]
async fn a_transaction_and_its_savepoint_take_their_runs_along() {
    let db = database().await;
    let mut client = connect(&db.url).await;
    for (order, kept) in [(1, true), (2, false)] {
        let mut tx = client.transaction().await.unwrap();
        Enqueue::named("fulfil", &order).on(&tx).await.unwrap();
        let part = tx.savepoint("part").await.unwrap();
        Enqueue::named("fulfil", &(10 + order)).on(&part).await.unwrap();
        part.rollback().await.unwrap();
        if kept { tx.commit().await } else { tx.rollback().await }.unwrap();
    }
    let inputs = "select array(select input::text from ambo.run order by 1)";
    assert_eq!(db.sql.query_one(inputs, &[]).await.unwrap().get::<_, Vec<String>>(0), ["1"]);
}

fn source(url: String) -> Arc<ambo::TokioPostgres> {
    Arc::new(ambo::TokioPostgres::new(move || {
        let url = url.clone();
        async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        }
    }))
}

async fn reserve(mut cx: Ctx<'_>, how: String) -> Result<i64> {
    let (database, gate) = (cx.state::<Arc<ambo::TokioPostgres>>()?, cx.state::<Arc<Gate>>()?);
    let (step, how) = step_of(cx.transaction("reserve"), &how);
    let step = step.run(&*database, async |tx| {
        gate.count();
        let insert = "insert into effect (what) values ($1) returning n";
        let n: i64 = tx.query_one(insert, &[&how]).await?.get(0);
        Enqueue::named("fulfil", &n).on(&*tx).await?;
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
        builder.state(source(url)).workflow_fn("reserve", reserve)
    })
    .await;
}
