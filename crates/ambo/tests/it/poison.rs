//! What becomes of the neighbours of a run that kills its workers: none is dead for it, and what they lose has a bound.

use ambo::{Enqueue, QueueSettings, Untyped, enqueue_all};

use crate::harness::{Database, database};
use crate::queue_chaos::hold::{self, Held};
use crate::queue_chaos::revive;
use crate::workflows::Ledger;

/// Only the run with this number is dead, by its attempts.
async fn assert_only_dead(db: &Database, guilty: &str, runs: i64) {
    db.until(&format!("select count(*) = {runs} from ambo.outcome")).await;
    let others = format!(
        "select count(*) from ambo.outcome o join ambo.run r on r.id = o.run_id
         where (o.status = 'succeeded') <> not ({guilty}) or o.error ->> 'code' <> 'AMBO026'"
    );
    assert_eq!(db.number(&others).await, 0, "only the guilty run is dead");
}

#[tokio::test]
async fn what_waits_in_the_memory_of_a_worker_that_dies_loses_nothing() {
    let db = database().await;
    Ledger::prepare(&db).await;
    // After the first death all of them have one attempt left, and are in the memory of the next worker together.
    db.sql
        .batch_execute(
            "select ambo.enqueue_workflow('short', '1', attempts => 2) from generate_series(1, 20);
             select ambo.enqueue_workflow('poison', '1', attempts => 2);
             select ambo.enqueue_workflow('short', '1', attempts => 2) from generate_series(1, 20);",
        )
        .await
        .unwrap();
    let workers = tokio::spawn(crate::recovery::revive(db.url.clone()));
    assert_only_dead(&db, "r.workflow = 'poison'", 41).await;
    workers.abort();
}

/// Runs of which one kills its workers, in a queue with this limit; answers how often the others were begun for nothing.
async fn begun_in_vain(concurrency: u32, attempts: u32) -> i64 {
    let db = database().await;
    db.sql.batch_execute(hold::TABLE).await.expect(hold::TABLE);
    db.client.set_queue("q", &QueueSettings::default().concurrency(concurrency)).await.unwrap();
    let runs = (0..12).map(|number| {
        let held = Held { number, group: None, priority: 0, ms: 20, fails: false, kills: number == 3 };
        Enqueue::<Untyped>::named("hold", &held).queue("q").attempts(attempts)
    });
    enqueue_all(&db.client, runs).await.unwrap();
    let workers = tokio::spawn(revive(db.url.clone()));
    assert_only_dead(&db, "(r.input ->> 'kills')::boolean", 12).await;
    workers.abort();
    let begun = format!("select count(*) = {attempts} from span where number = 3");
    assert!(db.sql.query_one(&begun, &[]).await.unwrap().get::<_, bool>(0), "it was given its attempts");
    db.until("select not exists (select from ambo.claim)").await;
    db.number("select count(*) - 11 from span where number <> 3").await
}

#[tokio::test]
async fn the_neighbours_of_a_poison_run_lose_an_attempt_only_when_they_are_in_execution_with_it() {
    assert_eq!(begun_in_vain(1, 2).await, 0, "nobody is beside it");
    // One is beside it, each time but the last, when it is alone.
    let lost = begun_in_vain(2, 3).await;
    assert!((1..=2).contains(&lost), "{lost} attempts lost");
}
