//! Jobs: runs without steps, and runs that end in a transaction of their own.

use std::sync::Arc;

use ambo::{Code, Ctx, Error, Isolation, Result, Retry};
use sqlx::postgres::PgPool;

use crate::stage::{Gate, Stage};

const INSERT: &str = "insert into effect (what) values ('it')";

#[ambo::job]
async fn add(_cx: Ctx, n: i64) -> Result<i64> {
    Ok(n + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_steps_records_its_end_and_nothing_else() {
    let stage = Stage::set().await;
    let worker = stage.worker().workflow::<add>().start().await.unwrap();
    let run = add::enqueue(1).on(&stage.db.client).await.unwrap().run;
    assert_eq!(worker.client().handle::<add>(run).result().await.unwrap(), 2);
    let rows = "select (select count(*) from ambo.checkpoint) + (select count(*) from ambo.claim)
        + (select count(*) from ambo.ready) + (select count(*) from ambo.transaction_marker)";
    assert_eq!(stage.db.number(rows).await, 0);
}

/// Ends in its transaction, held at a gate; the first `fails` bodies fail after the effect.
#[ambo::job(retry = Retry::fixed(std::time::Duration::from_millis(1)).max_attempts(5))]
async fn pay(cx: Ctx, (fails, isolation): (u32, String)) -> Result<String> {
    let (pool, gate) = (cx.state::<PgPool>()?, cx.state::<Arc<Gate>>()?);
    let isolation = if isolation.is_empty() { Isolation::ReadCommitted } else { Isolation::RepeatableRead };
    let done = cx.transaction("pay").isolation(isolation).completing().run(&*pool, async |mut tx| {
        gate.count();
        sqlx::query(INSERT).execute(&mut *tx).await?;
        if gate.bodies() <= fails {
            return Err(Error::message("not yet"));
        }
        gate.wait().await;
        Ok("paid".to_owned())
    });
    let paid = done.await?;
    // The run has ended: nobody comes here.
    sqlx::query("insert into effect (what) values ('after')").execute(&*pool).await?;
    Ok(paid)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effect_of_a_job_and_its_end_commit_together() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow::<pay>().start().await.unwrap();
    let run = pay::enqueue((0, String::new())).on(&stage.db.client).await.unwrap().run;
    stage.gate.reached().await;
    assert_eq!((stage.effects().await, stage.state(run).await.as_str()), (0, "running"));
    stage.gate.open();
    assert_eq!(stage.end(run).await.unwrap(), "paid");
    assert_eq!((stage.effects().await, stage.checkpoints().await), (1, 0));
    assert_eq!(stage.db.number("select count(*) from ambo.claim").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_rolled_back_is_tried_again() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow::<pay>().start().await.unwrap();
    let run = pay::enqueue((2, String::new())).on(&stage.db.client).await.unwrap().run;
    stage.gate.open();
    assert_eq!(stage.end(run).await.unwrap(), "paid");
    assert_eq!((stage.gate.bodies(), stage.effects().await), (3, 1), "two left nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_lost_it_cannot_end_it() {
    for how in ["waits again", "repeatable read", "is elsewhere"] {
        let stage = Stage::set().await;
        let _worker = stage.worker().workflow::<pay>().start().await.unwrap();
        let isolation = if how == "repeatable read" { how } else { "" };
        let run = pay::enqueue((0, isolation.to_owned())).on(&stage.db.client).await.unwrap().run;
        stage.gate.reached().await;
        // It is not its own any more: it waits to be claimed, or another worker has it.
        stage.db.client.pause_queue("default", true).await.unwrap();
        if how == "is elsewhere" {
            let elsewhere = "update ambo.claim set worker_id = worker_id + 1000, attempt = attempt + 1";
            stage.db.sql.batch_execute(elsewhere).await.unwrap();
        } else {
            stage.steal(run).await;
        }
        stage.gate.open();
        if how == "repeatable read" {
            // In its old snapshot that was a conflict: in a new one it finds itself fenced.
            stage.gate.reached().await;
            stage.gate.open();
        }
        let over =
            "select not exists (select from pg_stat_activity where application_name like 'ambo step of%')";
        stage.db.until(over).await;
        let state = stage.state(run).await;
        assert_eq!(state, if how == "is elsewhere" { "running" } else { "ready" }, "{how}");
        assert_eq!(stage.effects().await, 0, "{how}");
        if how == "is elsewhere" {
            stage.steal(run).await;
        }
        stage.db.client.pause_queue("default", false).await.unwrap();
        stage.gate.reached().await;
        stage.gate.open();
        assert_eq!(stage.end(run).await.unwrap(), "paid");
        assert_eq!(stage.effects().await, 1, "{how}");
    }
}

#[ambo::workflow]
async fn parent(mut cx: Ctx, _: ()) -> Result<String> {
    let child = cx.child::<pay>((0, String::new())).start()?;
    Ok(cx.result_of(child).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_so_wakes_its_parent() {
    let stage = Stage::set().await;
    let builder = stage.worker().workflow::<pay>().workflow::<parent>();
    let _worker = builder.park_after(std::time::Duration::from_millis(1)).start().await.unwrap();
    let run = parent::enqueue(()).on(&stage.db.client).await.unwrap().run;
    stage.gate.reached().await;
    stage.db.until("select count(*) = 1 from ambo.timer").await;
    stage.gate.open();
    assert_eq!(stage.end(run).await.unwrap(), "paid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cancelled_before_its_transaction_has_no_effect() {
    let stage = Stage::set().await;
    let run = pay::enqueue((0, String::new())).on(&stage.db.client).await.unwrap().run;
    stage.db.client.cancel(run, "enough").await.unwrap();
    let _worker = stage.worker().workflow::<pay>().start().await.unwrap();
    assert_eq!(stage.end(run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(stage.effects().await, 0);
}
