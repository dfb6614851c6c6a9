//! Leaving: a worker that is told to stop finishes what is short, gives back what is long, and leaves nothing.

use crate::child::Child;
use crate::harness::database;
use crate::workflows::{Ledger, close_gate, open_gate};

#[tokio::test]
async fn a_worker_told_to_stop_finishes_its_short_runs() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let (mut worker, _) = Child::worker(&db.url, &[("AMBO_CHILD_IN_FLIGHT", "50")]).await;
    let enqueue = "select ambo.enqueue_workflow('short') from generate_series(1, 5000)";
    db.sql.batch_execute(enqueue).await.unwrap();
    db.until("select count(*) > 100 from ambo.outcome").await;
    worker.signal("TERM");
    worker.says("drained").await;
    assert!(worker.ended().await.success());
    // Nobody else is there: what it leaves behind is seen.
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0);
    assert_eq!(db.number("select count(*) from ambo.heartbeat").await, 0);
    assert_eq!(db.number("select count(*) from ambo.claim").await, 0);
    let both = "select (select count(*) from ambo.ready) + (select count(*) from ambo.outcome)";
    assert_eq!(db.number(both).await, 5000, "a run is neither ended nor waiting");
    assert!(db.number("select count(*) from ambo.ready").await > 0, "it went on claiming");
    assert_eq!(db.number("select count(*) from ambo.ready where losses > 0").await, 0);
    let repeated = "select count(*) from (select from effect group by run having count(*) > 1) r";
    assert_eq!(db.number(repeated).await, 0);
}

#[tokio::test]
async fn a_long_run_is_given_back_within_the_limit_and_loses_no_attempt() {
    let db = database().await;
    Ledger::prepare(&db).await;
    close_gate(&db).await;
    let (mut leaver, _) = Child::worker(&db.url, &[("AMBO_CHILD_DRAIN_MS", "300")]).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated', attempts => 1)").await.unwrap();
    leaver.says("gate").await;
    leaver.signal("TERM");
    leaver.says("drained").await;
    assert!(leaver.ended().await.success());
    let given_back = "select count(*) from ambo.ready where losses = 0 and attempt = 1";
    assert_eq!(db.number(given_back).await, 1);
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0);
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 1, "what it had recorded stays");

    // Elsewhere it goes on from there, at once: nobody has to be found dead.
    let (mut heir, _) = Child::worker(&db.url, &[]).await;
    heir.says("gate").await;
    open_gate(&db).await;
    db.until("select count(*) = 1 from ambo.outcome where status = 'succeeded' and attempt = 2").await;
    assert_eq!(db.number("select count(*) from effect where step = 'before'").await, 1);
}

#[tokio::test]
async fn the_keeper_hands_over_when_it_leaves() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let (mut first, first_id) = Child::worker(&db.url, &[]).await;
    db.until(&format!("select worker_id is not distinct from {first_id} from ambo.keeper")).await;
    let (_second, second_id) = Child::worker(&db.url, &[]).await;
    first.signal("TERM");
    first.ended().await;
    let left = "create table left_at as select clock_timestamp() as at";
    db.sql.batch_execute(left).await.unwrap();
    db.until(&format!("select worker_id = {second_id} and renewed_at > '-infinity' from ambo.keeper")).await;
    let took =
        "select (extract(epoch from renewed_at - (select at from left_at)) * 1000)::int8 from ambo.keeper";
    let took = db.number(took).await;
    assert!(took < 2000, "the next keeper took over only after {took} ms");
}
