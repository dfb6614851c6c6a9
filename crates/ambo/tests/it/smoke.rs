//! The shortest ways through: enqueue, run, result.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ambo::{Client, Ctx, Enqueue, Failure, Result, Worker};

use crate::harness::database;

async fn add(mut cx: Ctx<'_>, (a, b): (i64, i64)) -> Result<i64> {
    let effects = cx.state::<Arc<AtomicU32>>()?;
    let sum = cx
        .step("add", || async {
            effects.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ambo::Error>(a + b)
        })
        .await?;
    let double = cx.step("double", || async { Ok::<_, ambo::Error>(sum * 2) });
    let triple = cx.step("triple", || async { Ok::<_, ambo::Error>(sum * 3) });
    let (double, triple) = tokio::join!(double, triple);
    Ok(double? + triple?)
}

async fn worker(client: &Client, effects: &Arc<AtomicU32>) -> Worker {
    Worker::builder(client).workflow_fn("add", add).state(effects.clone()).start().await.expect("worker")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueued_run_is_executed_and_its_result_seen() {
    let db = database().await;
    let effects = Arc::new(AtomicU32::new(0));
    let _worker = worker(&db.client, &effects).await;
    let enqueued = Enqueue::named("add", &(1, 2)).on(&db.client).await.unwrap();
    assert!(enqueued.is_new);
    let handle = db.client.handle::<ambo::Untyped>(enqueued.run);
    let result: Result<i64, Failure<ambo::Error>> = handle.result_as().await;
    assert_eq!(result.unwrap(), 15);
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    let run = db.client.show_run(enqueued.run).await.unwrap();
    assert_eq!(run.summary.state, "succeeded");
    assert_eq!(run.steps.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_runs_all_end() {
    let db = database().await;
    let effects = Arc::new(AtomicU32::new(0));
    let _worker = worker(&db.client, &effects).await;
    let runs: Vec<_> = (0..1000).map(|n| Enqueue::named("add", &(n, 2))).collect();
    let started = std::time::Instant::now();
    ambo::enqueue_all(&db.client, runs).await.unwrap();
    db.until("select count(*) = 1000 from ambo.outcome").await;
    println!("{:?}", started.elapsed());
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 3000);
    assert_eq!(db.number("select count(*) from ambo.claim").await, 0);
    assert_eq!(effects.load(Ordering::SeqCst), 1000);
}
