//! The head of a group in an ordered queue: while it is not in execution its group waits for it, and nobody else does.

use std::time::Duration;

use ambo::{Ctx, Enqueue, Ordered, QueueSettings, Result, RunId, SendSignal, Untyped, Worker};

use crate::harness::{Database, database};
use crate::limits::{Bench, Job, job};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_stands_still_takes_no_place_of_its_queue() {
    let settings = QueueSettings::default().ordered(Ordered::Block).concurrency(1).group_concurrency(2);
    let bench = Bench::new(settings, 2, 1).await;
    let runs = bench.enqueue((0..3).map(|n| Job { fails: n == 1, ..job("g", n) })).await;
    bench.enqueue((3..20).map(|n| job(if n % 2 == 0 { "h" } else { "" }, n))).await;
    bench.all_ended(19).await;
    let blocked = bench.db.client.blocked_groups(Some("q")).await.unwrap();
    assert_eq!((blocked.len(), blocked[0].run), (1, runs[1]));
    assert_eq!(bench.db.number("select count(*) from ambo.claim where slot is not null").await, 0);

    // Once more: it takes a place like any other, and the next of its group still waits.
    bench.enqueue((20..40).map(|n| job("h", n))).await;
    bench.db.client.retry(runs[1]).await.unwrap();
    bench.begun(40).await;
    bench.all_ended(39).await;
    assert_eq!(bench.db.number("select count(*) from ambo.head").await, 1, "it has failed again");
    assert!(bench.db.client.unblock_group("q", "g").await.unwrap());
    bench.all_ended(40).await;
    assert_eq!(bench.gauge.most(), 1);
    bench.db.until("select not exists (select from ambo.claim) and not exists (select from ambo.head)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_head_was_thrown_away_or_sent_elsewhere_goes_on() {
    let settings = QueueSettings::default().ordered(Ordered::Block).concurrency(1);
    let bench = Bench::new(settings, 1, 1).await;
    let runs = bench.enqueue(["g", "g", "h", "h"].map(|group| job(group, 0))).await;
    bench.all_ended(4).await;
    // As if they were dead, and their groups stood still for it.
    let die = "update ambo.outcome set status = 'dead', error = '{}' where run_id = any ($1)";
    let block = "insert into ambo.head select 'q', r.group_key, r.id from ambo.run r where r.id = any ($1)";
    let heads: Vec<uuid::Uuid> = [runs[1], runs[3]].map(RunId::as_uuid).to_vec();
    for sql in [die, block] {
        bench.db.sql.execute(sql, &[&heads]).await.unwrap();
    }
    bench.enqueue(["g", "h"].map(|group| job(group, 1))).await;
    bench.db.client.create_queue("elsewhere").await.unwrap();
    let sent = "select count(*) from ambo.redrive_dead($1, 'elsewhere') where code is null";
    let purged = "select count(*) from ambo.purge_dead($1) where code is null";
    for (sql, run) in [(sent, heads[0]), (purged, heads[1])] {
        assert_eq!(bench.db.sql.query_one(sql, &[&vec![run]]).await.unwrap().get::<_, i64>(0), 1, "{sql}");
    }
    // Two have ended before, and their groups have gone on.
    bench.begun(6).await;
    bench.all_ended(4).await;
}

/// Waits, parked, until it is told to end.
async fn hear(mut cx: Ctx<'_>, _: u32) -> Result<()> {
    cx.signal::<u32>("end").await?;
    Ok(())
}

async fn pass(_: Ctx<'_>, _: u32) -> Result<()> {
    Ok(())
}

async fn worker(db: &Database) -> Worker {
    let builder = Worker::builder(&db.client).queue("q").workflow_fn("hear", hear).workflow_fn("pass", pass);
    builder.start().await.unwrap()
}

async fn enqueue(db: &Database, workflow: &str, group: &str) -> RunId {
    let run = Enqueue::<Untyped>::named(workflow, &1).queue("q").group(group);
    run.on(&db.client).await.unwrap().run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_parked_keeps_its_group_waiting_and_no_place() {
    let db = database().await;
    let settings = QueueSettings::default().ordered(Ordered::Skip).concurrency(1);
    db.client.set_queue("q", &settings).await.unwrap();
    let first = worker(&db).await;
    let head = enqueue(&db, "hear", "g").await;
    enqueue(&db, "pass", "g").await;
    let other = enqueue(&db, "hear", "h").await;
    // Both are parked, one after the other, though one place is all there is; and so nothing holds it.
    db.until("select count(*) = 2 from ambo.timer where attempt > 0").await;
    enqueue(&db, "pass", "i").await;
    db.until("select count(*) = 1 from ambo.outcome").await;
    assert_eq!(db.number("select count(*) from ambo.claim where slot is not null").await, 0);
    assert_eq!(
        db.number("select count(*) from ambo.ready").await,
        1,
        "the next of the group waits for its head"
    );
    let why: Vec<_> = db
        .sql
        .query(
            "select r.id, w.reason, w.run_id from ambo.run r join ambo.ready y on y.run_id = r.id
        cross join lateral ambo.why_run(r.id) w",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(why[0].get::<_, &str>(1), "group in order");
    assert_eq!(why[0].get::<_, uuid::Uuid>(2), head.as_uuid());

    // Also across workers: what comes back is the first of its group.
    first.drain(Duration::ZERO).await;
    SendSignal::new(head, "end", &1).on(&db.client).await.unwrap();
    SendSignal::new(other, "end", &1).on(&db.client).await.unwrap();
    let _second = worker(&db).await;
    db.until("select count(*) = 4 from ambo.outcome").await;
    let late = "select count(*) from ambo.outcome p join ambo.run r on r.id = p.run_id and r.workflow = 'pass' and r.group_key = 'g'
        join ambo.outcome h on h.run_id = $1 and h.ended_at < p.ended_at";
    assert_eq!(db.sql.query_one(late, &[&head.as_uuid()]).await.unwrap().get::<_, i64>(0), 1);
    db.until("select not exists (select from ambo.claim) and not exists (select from ambo.head)").await;
}
