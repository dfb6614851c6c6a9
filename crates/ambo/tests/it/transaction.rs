//! Transaction steps: effect and checkpoint in one commit, once, whatever happens to the worker or its body.

use std::sync::Arc;

use ambo::{Ctx, Enqueue, Error, Failure, Isolation, Result, Retry};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPool;

use crate::stage::{Gate, Stage};

type Pool = Arc<PgPool>;

fn held(cx: &Ctx<'_>) -> Result<(Pool, Arc<Gate>)> {
    Ok((cx.state::<PgPool>()?, (*cx.state::<Arc<Gate>>()?).clone()))
}

/// One effect. The first attempt of the run is held at the gate, in the midst of its transaction.
async fn gated(cx: &mut Ctx<'_>, isolation: Isolation) -> Result<i64> {
    let ((pool, gate), first) = (held(cx)?, cx.attempt() == 1);
    let what = format!("attempt {}", cx.attempt());
    let step = cx.transaction("gated").isolation(isolation).run(&*pool, async |mut tx| {
        gate.count();
        let insert = "insert into effect (what) values ($1) returning n";
        let n: i64 = sqlx::query_scalar(insert).bind(&what).fetch_one(&mut *tx).await?;
        if first && gate.bodies() == 1 {
            gate.wait().await;
        }
        Ok::<_, Error>(n)
    });
    Ok(step.await?)
}

async fn gated_read_committed(mut cx: Ctx<'_>, _: i32) -> Result<i64> {
    gated(&mut cx, Isolation::ReadCommitted).await
}

async fn gated_repeatable_read(mut cx: Ctx<'_>, _: i32) -> Result<i64> {
    gated(&mut cx, Isolation::RepeatableRead).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_effect_and_its_checkpoint_commit_together() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow_fn("gated", gated_read_committed).start().await.unwrap();
    let run = stage.enqueue("gated").await;
    stage.gate.reached().await;
    assert_eq!(
        (stage.effects().await, stage.checkpoints().await),
        (0, 0),
        "nothing is there before the commit"
    );
    stage.gate.open();
    assert_eq!(stage.end(run).await.unwrap(), 1);
    let one = "select count(*) from effect e, ambo.checkpoint c where e.xmin = c.xmin and c.output::text = e.n::text";
    assert_eq!(stage.db.number(one).await, 1, "one transaction wrote both");
    assert_eq!(stage.db.number("select count(*) from ambo.transaction_marker").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_run_cannot_commit_its_step() {
    for (name, snapshot) in [("read committed", false), ("repeatable read", true)] {
        let stage = Stage::set().await;
        let build = || {
            let builder = stage.worker().max_in_flight(1);
            if snapshot {
                builder.workflow_fn("gated", gated_repeatable_read)
            } else {
                builder.workflow_fn("gated", gated_read_committed)
            }
        };
        let _zombie = build().start().await.unwrap();
        let run = stage.enqueue("gated").await;
        stage.gate.reached().await;
        let _heir = build().start().await.unwrap();
        stage.steal(run).await;
        // The heir waits for the marker of the zombie's transaction.
        stage.db.until("select count(*) = 1 from ambo.claim where attempt = 2").await;
        stage.gate.open();
        stage.end(run).await.unwrap();
        let what = stage.db.sql.query("select what from effect", &[]).await.unwrap();
        let what: Vec<&str> = what.iter().map(|row| row.get(0)).collect();
        assert_eq!(what, ["attempt 2"], "{name}: what the zombie did is not there");
        assert_eq!(stage.checkpoints().await, 1, "{name}");
    }
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct OutOfStock {
    left: i64,
}

impl std::fmt::Display for OutOfStock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "only {} left", self.left)
    }
}

/// A step that succeeds, one that fails with an error of its own, and one that the first attempt does not pass.
async fn recorded(mut cx: Ctx<'_>, _: i32) -> Result<(i64, i64)> {
    let ((pool, gate), first) = (held(&cx)?, cx.attempt() == 1);
    let insert = "insert into effect (what) values ('kept') returning n";
    let n = cx.transaction("kept").run(&*pool, async |mut tx| {
        gate.count();
        Ok::<i64, Error>(sqlx::query_scalar(insert).fetch_one(&mut *tx).await?)
    });
    let n = n.await?;
    let failed = cx.transaction("failed").run(&*pool, async |mut tx| {
        gate.count();
        let insert = "insert into effect (what) values ('gone')";
        sqlx::query(insert).execute(&mut *tx).await.map_err(|_| OutOfStock { left: -1 })?;
        Err::<(), _>(OutOfStock { left: 3 })
    });
    let left = match failed.await {
        Err(Failure::Application(OutOfStock { left })) => left,
        other => return Err(Error::message(format!("it answered {other:?}"))),
    };
    cx.step("pass", async || {
        if first {
            gate.wait().await;
        }
        Ok::<_, Error>(())
    })
    .await?;
    Ok((n, left))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_repeats_neither_an_effect_nor_a_failure_and_knows_the_error_by_its_type() {
    let stage = Stage::set().await;
    let build = || stage.worker().max_in_flight(1).workflow_fn("recorded", recorded);
    let _first = build().start().await.unwrap();
    let run = stage.enqueue("recorded").await;
    stage.gate.reached().await;
    assert_eq!(
        (stage.effects().await, stage.checkpoints().await),
        (1, 2),
        "the failure is recorded, its effect gone"
    );
    let _second = build().start().await.unwrap();
    stage.steal(run).await;
    assert_eq!(stage.end(run).await.unwrap(), serde_json::json!([1, 3]));
    assert_eq!(stage.gate.bodies(), 2, "each body ran once");
    assert_eq!(stage.effects().await, 1);
    assert_eq!(stage.db.number("select attempt::int8 from ambo.outcome").await, 2);
}

/// Reads and writes a counter that all runs share.
async fn count_up(mut cx: Ctx<'_>, _: i32) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("count").isolation(Isolation::Serializable).run(&*pool, async |mut tx| {
        gate.count();
        let value: i32 =
            sqlx::query_scalar("select value from counter where id = 1").fetch_one(&mut *tx).await?;
        let update = "update counter set value = $1 where id = 1";
        sqlx::query(update).bind(value + 1).execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

/// Two counters, in an order of which half of the runs has the opposite.
async fn cross(mut cx: Ctx<'_>, _: i32) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let swap = cx.run_id().to_string().ends_with(|c: char| "13579bdf".contains(c));
    let order = if swap { [2, 1] } else { [1, 2] };
    let step = cx.transaction("cross").run(&*pool, async |mut tx| {
        gate.count();
        for id in order {
            let update = "update counter set value = value + 1 where id = $1";
            sqlx::query(update).bind(id).execute(&mut *tx).await?;
            tokio::task::yield_now().await;
        }
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

/// Serializable, and on a counter of its own: conflicts would be of Ambo's making.
async fn alone(mut cx: Ctx<'_>, id: i32) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("alone").isolation(Isolation::Serializable).run(&*pool, async |mut tx| {
        gate.count();
        let update = "update counter set value = value + 1 where id = $1";
        sqlx::query(update).bind(id).execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn serialization_failures_and_deadlocks_are_tried_again_until_each_took_effect_once() {
    for (name, runs) in [("count", 60), ("cross", 60), ("alone", 64)] {
        let stage = Stage::set().await;
        let quick = "do $$ begin execute format('alter database %I set deadlock_timeout = ''20ms''', current_database()); end $$";
        stage.db.sql.batch_execute(quick).await.unwrap();
        let _worker = stage
            .worker()
            .workflow_fn("count", count_up)
            .workflow_fn("cross", cross)
            .workflow_fn("alone", alone)
            .start()
            .await
            .unwrap();
        let all: Vec<_> = (1..=runs).map(|n| Enqueue::named(name, &n)).collect();
        ambo::enqueue_all(&stage.db.client, all).await.unwrap();
        stage.db.until(&format!("select count(*) = {runs} from ambo.outcome")).await;
        let failed = "select count(*) from ambo.outcome where status <> 'succeeded'";
        assert_eq!(stage.db.number(failed).await, 0, "{name}");
        let sum = stage.db.number("select sum(value) from counter").await;
        assert_eq!(sum, if name == "cross" { 2 * runs } else { runs }, "{name}");
        println!("{name}: {} bodies for {runs} runs", stage.gate.bodies());
        if name == "count" {
            assert!(i64::from(stage.gate.bodies()) > runs, "{name}: there was no conflict to speak of");
        }
    }
}

/// Its error type is its own, and holds the database's.
#[derive(Debug, Serialize, Deserialize)]
enum ShopError {
    Database(Error),
}

impl From<sqlx::Error> for ShopError {
    fn from(error: sqlx::Error) -> Self {
        ShopError::Database(error.into())
    }
}

impl std::fmt::Display for ShopError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ShopError::Database(error) = self;
        error.fmt(f)
    }
}

async fn conflict_within(mut cx: Ctx<'_>, _: i32) -> Result<u32> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("conflict").run(&*pool, async |mut tx| {
        gate.count();
        if gate.bodies() < 4 {
            let raise = "do $$ begin raise exception 'no' using errcode = '40001'; end $$";
            sqlx::query(raise).execute(&mut *tx).await?;
        }
        Ok::<u32, ShopError>(gate.bodies())
    });
    Ok(step.await?)
}

async fn flaky(mut cx: Ctx<'_>, _: i32) -> Result<u32> {
    let (pool, gate) = held(&cx)?;
    let retry = Retry::fixed(std::time::Duration::from_millis(1)).max_attempts(3);
    let step = cx.transaction("flaky").retry(retry).run(&*pool, async |mut tx| {
        gate.count();
        sqlx::query("insert into effect (what) values ('flaky')").execute(&mut *tx).await?;
        match gate.bodies() {
            1 => Err(Error::message("not yet")),
            2 => panic!("not yet either"),
            n => Ok(n),
        }
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_within_an_error_of_the_applications_own_is_recognised() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow_fn("conflict", conflict_within).start().await.unwrap();
    assert_eq!(stage.run("conflict").await.unwrap(), 4);
}

async fn hopeless(mut cx: Ctx<'_>, _: i32) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let retry = Retry::fixed(std::time::Duration::from_millis(1)).max_attempts(3);
    let step = cx.transaction("hopeless").retry(retry).run(&*pool, async |_tx| {
        gate.count();
        Err::<(), _>(Error::message("the card is stolen").permanent())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_fails_for_good_is_not_run_again() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow_fn("hopeless", hopeless).start().await.unwrap();
    let run = stage.enqueue("hopeless").await;
    assert!(stage.end(run).await.unwrap_err().is_permanent());
    assert_eq!(stage.gate.bodies(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_policy_is_asked_for_failures_and_panics() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow_fn("flaky", flaky).start().await.unwrap();
    assert_eq!(stage.run("flaky").await.unwrap(), 3);
    assert_eq!(stage.effects().await, 1);
}

/// A body that enqueues, and does not always succeed.
async fn parent(mut cx: Ctx<'_>, order: i32) -> Result<bool> {
    let (pool, _) = held(&cx)?;
    let step = cx.transaction("child").run(&*pool, async |mut tx| {
        sqlx::query("insert into effect (what) values ('order')").execute(&mut *tx).await?;
        let child = Enqueue::named("fulfil", &order).key(format!("order-{order}")).on(&mut *tx).await?;
        if order == 2 { Err(Error::message("no")) } else { Ok(child.is_new) }
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_body_enqueues_is_there_if_and_only_if_its_step_commits() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow_fn("parent", parent).start().await.unwrap();
    let mut ended = Vec::new();
    for order in [1, 2, 1] {
        let run = Enqueue::named("parent", &order).on(&stage.db.client).await.unwrap().run;
        ended.push(stage.end(run).await.ok().and_then(|is_new| is_new.as_bool()));
    }
    assert_eq!(ended, [Some(true), None, Some(false)]);
    assert_eq!(stage.effects().await, 2);
    let children = "select array(select key from ambo.run where workflow = 'fulfil')";
    let children: Vec<String> = stage.db.sql.query_one(children, &[]).await.unwrap().get(0);
    assert_eq!(children, ["order-1"]);
}
