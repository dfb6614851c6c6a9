//! Queues by weight: each has its part of what a worker begins.

use std::sync::{Arc, Mutex};

use ambo::{Code, Ctx, Enqueue, Error, QueueSettings, Result, Untyped, Worker, enqueue_all};
use tokio::sync::Semaphore;

use crate::harness::{Database, database};

/// The queues of the runs that began, in their order, and what lets them go.
struct Begun {
    of: Mutex<Vec<String>>,
    gate: Semaphore,
}

async fn work(cx: Ctx<'_>, queue: String) -> Result<()> {
    let begun = cx.state::<Arc<Begun>>()?;
    begun.of.lock().unwrap().push(queue);
    begun.gate.acquire().await.map_err(Error::other)?.forget();
    Ok(())
}

/// 400 runs in each queue, and how many of the first 200 were of `a`, whose weight is three times that of `b`.
async fn of_the_heavier(db: &Database) -> usize {
    for queue in ["a", "b"] {
        let runs = (0..400).map(|n| Enqueue::<Untyped>::named("work", &queue).queue(queue).priority(n % 2));
        enqueue_all(&db.client, runs).await.unwrap();
    }
    let begun = Arc::new(Begun { of: Mutex::default(), gate: Semaphore::new(192) });
    let builder = Worker::builder(&db.client).weighted_queue("a", 6).weighted_queue("b", 2);
    let builder = builder.workflow_fn("work", work).state(begun.clone()).max_in_flight(8);
    let _worker = builder.start().await.unwrap();
    db.until("select count(*) = 192 from ambo.outcome").await;
    db.until("select count(*) = 8 from ambo.claim").await;
    let of = begun.of.lock().unwrap().clone();
    begun.gate.add_permits(1000);
    db.until("select count(*) = 800 from ambo.outcome").await;
    of.iter().take(192).filter(|queue| *queue == "a").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_queue_has_its_part_of_the_runs_that_are_begun() {
    let db = database().await;
    for queue in ["a", "b"] {
        db.client.create_queue(queue).await.unwrap();
    }
    let heavier = of_the_heavier(&db).await;
    assert!((136..=152).contains(&heavier), "{heavier} of 192 runs, three quarters are 144");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_limits_and_one_without_share_by_weight() {
    let db = database().await;
    db.client.create_queue("a").await.unwrap();
    db.client.set_queue("b", &QueueSettings::default().concurrency(100)).await.unwrap();
    let heavier = of_the_heavier(&db).await;
    assert!((136..=152).contains(&heavier), "{heavier} of 192 runs, three quarters are 144");
}

#[tokio::test]
async fn a_weight_is_from_1_to_1000() {
    let db = database().await;
    for weight in [0, 1001] {
        let worker = Worker::builder(&db.client).workflow_fn("work", work).weighted_queue("a", weight);
        assert_eq!(worker.start().await.unwrap_err().code(), Code::Configuration);
    }
}
