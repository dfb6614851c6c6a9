//! Expiry: what had to start by a time is dead after it, and never begins late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Failure, Result, RunId, Untyped, Worker};

use crate::harness::{Database, database};

async fn count(cx: Ctx<'_>, _: i64) -> Result<()> {
    cx.state::<Arc<AtomicU32>>()?.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn code(db: &Database, run: RunId) -> Code {
    let result: Result<(), Failure<ambo::Error>> = db.client.handle::<Untyped>(run).result_as().await;
    ambo::Error::from(result.unwrap_err()).code()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_claims_in_time_is_dead_within_seconds() {
    let db = database().await;
    let began = Arc::new(AtomicU32::new(0));
    let worker =
        Worker::builder(&db.client).workflow_fn("count", count).state(began.clone()).start().await.unwrap();
    // In a queue that is paused, and of a workflow that nobody knows: the keeper ends both.
    db.client.pause_queue("default", true).await.unwrap();
    let soon = |name: &str| Enqueue::named(name, &1).start_within(Duration::from_millis(50));
    let started = std::time::Instant::now();
    let paused = soon("count").on(&db.client).await.unwrap().run;
    let unknown = soon("nobody").on(&db.client).await.unwrap().run;
    let later =
        Enqueue::named("count", &1).start_within(Duration::from_secs(3600)).on(&db.client).await.unwrap().run;
    assert_eq!(code(&db, paused).await, Code::Expired);
    assert_eq!(code(&db, unknown).await, Code::Expired);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(db.client.show_run(paused).await.unwrap().summary.state, "dead");
    db.client.pause_queue("default", false).await.unwrap();
    db.client.handle::<Untyped>(later).result_as::<(), ambo::Error>().await.unwrap();
    assert_eq!(began.load(Ordering::SeqCst), 1, "the one that had time");
    // It may be run all the same.
    db.client.retry(paused).await.unwrap();
    db.client.handle::<Untyped>(paused).result_as::<(), ambo::Error>().await.unwrap();
    assert_eq!(began.load(Ordering::SeqCst), 2);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_claimed_too_late_is_not_run() {
    let db = database().await;
    let late =
        Enqueue::named("count", &1).start_within(Duration::from_millis(1)).on(&db.client).await.unwrap().run;
    db.until("select bool_and(start_by < clock_timestamp()) from ambo.ready").await;
    // No keeper's sweep: the claim alone has to see it.
    db.sql
        .batch_execute(
            "create or replace function ambo.expire_runs(p_limit integer, p_mark json default null, out expired integer,
             out mark json, out more boolean) language sql as $$ select 0, '{}'::json, false $$",
        )
        .await
        .unwrap();
    let began = Arc::new(AtomicU32::new(0));
    let _worker =
        Worker::builder(&db.client).workflow_fn("count", count).state(began.clone()).start().await.unwrap();
    assert_eq!(code(&db, late).await, Code::Expired);
    assert_eq!(began.load(Ordering::SeqCst), 0);
    assert_eq!(db.client.show_run(late).await.unwrap().summary.state, "dead");
}

#[tokio::test]
async fn the_time_to_start_counts_from_when_a_run_may_start() {
    let db = database().await;
    let run =
        Enqueue::named("count", &1).delay(Duration::from_secs(60)).start_within(Duration::from_secs(60));
    run.on(&db.client).await.unwrap();
    let after = "select count(*) from ambo.run r join ambo.timer t on t.run_id = r.id where r.start_by = t.due_at + interval '1 minute'";
    assert_eq!(db.number(after).await, 1);
    db.sql
        .batch_execute(
            "update ambo.timer set due_at = now(), xid = pg_current_xact_id(); select ambo.fire_timers(10)",
        )
        .await
        .unwrap();
    assert_eq!(db.number("select count(*) from ambo.ready where start_by is not null").await, 1);
    let at = |seconds| jiff::Timestamp::now() + Duration::from_secs(seconds);
    let both = Enqueue::named("count", &1).start_by(at(60)).start_within(Duration::from_secs(60));
    let before = Enqueue::named("count", &1).delay(Duration::from_secs(60)).start_by(at(30));
    for refused in [both, before] {
        assert_eq!(refused.on(&db.client).await.unwrap_err().code(), Code::InvalidOption);
    }
}

#[tokio::test]
async fn the_sweep_reads_runs_with_a_time_to_start_only() {
    let db = database().await;
    db.sql
        .batch_execute("select ambo.enqueue_workflows(array_fill('a'::text, '{20000}'), array_fill('1'::json, '{20000}'));
            select ambo.enqueue_workflow('a', '1', start_within => '1 hour')")
        .await
        .unwrap();
    let size = "select pg_relation_size('ambo.ready_start_by')::int8";
    assert_eq!(db.number(size).await, 16384, "one page besides the first: nothing for the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_started_in_time_is_not_late_any_more_when_it_is_let_in_again() {
    let db = database().await;
    let began = Arc::new(AtomicU32::new(0));
    let late = || Enqueue::named("count", &1).start_within(Duration::from_micros(1));
    let (rewound, retried) = (late().on(&db.client).await.unwrap(), late().on(&db.client).await.unwrap());
    assert_eq!(db.number("select expired::int8 from ambo.expire_runs(10)").await, 2);
    db.client.rewind(rewound.run, "1").await.unwrap();
    for never in ["'infinity'", "now() + interval '11 years'"] {
        let retry = format!("select ambo.retry_run($1, {never})");
        let refused = db.sql.execute(&retry, &[&retried.run.as_uuid()]).await.unwrap_err();
        assert_eq!(refused.code().map(|state| state.code()), Some("AM005"), "{never}");
    }
    db.client.retry(retried.run).await.unwrap();
    let _worker =
        Worker::builder(&db.client).workflow_fn("count", count).state(began.clone()).start().await.unwrap();
    for run in [rewound.run, retried.run] {
        db.client.handle::<Untyped>(run).result_as::<(), ambo::Error>().await.unwrap();
    }
    assert_eq!(began.load(Ordering::SeqCst), 2);
}
