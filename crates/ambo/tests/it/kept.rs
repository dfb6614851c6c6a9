//! What somebody's open transaction keeps: it may hold up what it is about, and nothing else.

use std::time::{Duration, Instant};

use ambo::{Ctx, Enqueue, QueueSettings, Result, RunId, Untyped, Worker};

use crate::harness::{Database, connect, database};

async fn echo(_cx: Ctx<'_>, n: u32) -> Result<u32> {
    Ok(n)
}

async fn enqueue(db: &Database, queue: &str) -> RunId {
    Enqueue::<Untyped>::named("echo", &1).queue(queue).on(&db.client).await.unwrap().run
}

async fn ended(db: &Database, run: RunId) {
    let handle = db.client.handle::<Untyped>(run);
    handle.result_as::<u32, ambo::Error>().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_whose_settings_somebody_changes_holds_up_no_other() {
    let db = database().await;
    db.client.set_queue("kept", &QueueSettings::default().concurrency(2)).await.unwrap();
    db.client.set_queue("other", &QueueSettings::default().concurrency(2)).await.unwrap();
    let builder = Worker::builder(&db.client).queue("kept").queue("other").workflow_fn("echo", echo);
    let _worker = builder.start().await.unwrap();
    let first = enqueue(&db, "kept").await;
    ended(&db, first).await;

    let mut operator = connect(&db.url).await;
    let tx = operator.transaction().await.unwrap();
    tx.batch_execute("select ambo.set_queue('kept', '{\"concurrency\": 1}')").await.unwrap();
    let waits = enqueue(&db, "kept").await;
    let began = Instant::now();
    for _ in 0..20 {
        let run = enqueue(&db, "other").await;
        ended(&db, run).await;
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert_eq!(db.number("select count(*) from ambo.ready").await, 1, "nothing was kept");
    tx.commit().await.unwrap();
    ended(&db, waits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_a_queue_that_somebody_is_about_to_create() {
    let db = database().await;
    let mut operator = connect(&db.url).await;
    let tx = operator.transaction().await.unwrap();
    tx.batch_execute("select ambo.set_queue('new', '{\"concurrency\": 1}')").await.unwrap();
    let builder = Worker::builder(&db.client).queue("new").workflow_fn("echo", echo);
    let starting = tokio::spawn(builder.start());
    // It asks a second time: the first was given up.
    let waiting = "from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    db.until(&format!("select count(*) = 1 {waiting}")).await;
    let asked = db.sql.query_one(&format!("select query_start::text {waiting}"), &[]).await.unwrap();
    let asked: String = asked.get(0);
    db.until(&format!("select count(*) = 1 {waiting} and query_start > '{asked}'")).await;
    tx.commit().await.unwrap();
    let _worker = starting.await.unwrap().unwrap();
    let run = enqueue(&db, "new").await;
    ended(&db, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_somebody_keeps_hold_up_no_other_key_of_a_client() {
    let db = database().await;
    let mut operator = connect(&db.url).await;
    let tx = operator.transaction().await.unwrap();
    let keyed = |key: String| Enqueue::<Untyped>::named("echo", &1).key(key);
    for n in 0..3 {
        keyed(format!("kept {n}")).on(&tx).await.unwrap();
    }
    let client = db.client.clone();
    let waiting = futures_util::future::join_all((0..3).map(|n| keyed(format!("kept {n}")).on(&client)));
    let others = async {
        let waits = "select count(*) = 3 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        db.until(waits).await;
        assert!(keyed("free".to_owned()).on(&db.client).await.unwrap().is_new);
    };
    // They wait for the key until it is theirs, or for as long as they have patience; the other does not wait for them.
    tokio::select! {
        _ = waiting => panic!("it waited for a key of somebody else's"),
        () = others => {}
    }
}
