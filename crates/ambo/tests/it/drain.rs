//! Leaving: a worker that is told to stop finishes what is short, gives back what is long, and leaves nothing.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ambo::{Ctx, Error, Result, Worker};

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
    // In its own beats, whatever the machine is busy with.
    let note = "create table noted (worker_id bigint, at timestamptz, keeps bool);
        create function note_beat() returns trigger language plpgsql as
            $$ begin insert into public.noted values (new.worker_id, new.at, false); return null; end $$;
        create trigger note after update on ambo.heartbeat for each row execute function note_beat();
        create function note_keeper() returns trigger language plpgsql as
            $$ begin insert into public.noted values (new.worker_id, new.renewed_at, true); return null; end $$;
        create trigger note after update on ambo.keeper for each row
            when (new.worker_id is distinct from old.worker_id) execute function note_keeper()";
    db.sql.batch_execute(note).await.unwrap();
    let (mut first, first_id) = Child::worker(&db.url, &[]).await;
    db.until(&format!("select worker_id is not distinct from {first_id} from ambo.keeper")).await;
    let (_second, second_id) = Child::worker(&db.url, &[]).await;
    first.signal("TERM");
    first.ended().await;
    let left = "create table left_at as select clock_timestamp() as at";
    db.sql.batch_execute(left).await.unwrap();
    db.until(&format!("select exists (select from noted where worker_id = {second_id} and keeps)")).await;
    let missed = format!(
        "select count(*) from noted b, noted k, left_at l where b.worker_id = {second_id} and not b.keeps
         and k.worker_id = {second_id} and k.keeps and b.at > l.at and b.at < k.at"
    );
    assert_eq!(db.number(&missed).await, 0, "its first heartbeat after that did not take over");
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let db = database().await;
    Ledger::prepare(&db).await;
    close_gate(&db).await;
    let mut leaver = Child::start("signalled", &db.url, &[]);
    leaver.says("worker").await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated')").await.unwrap();
    leaver.says("gate").await;
    leaver.signal("TERM");
    db.until("select draining from ambo.heartbeat").await;
    let told = Instant::now();
    leaver.signal("TERM");
    leaver.says("drained").await;
    assert!(leaver.ended().await.success());
    assert!(told.elapsed() < ambo::DRAIN / 2, "it took {:?}", told.elapsed());
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 0 and attempt = 1").await, 1);
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0);
}

#[tokio::test]
async fn a_signal_is_heard_where_steps_block_all_threads() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let mut leaver = Child::start("signalled", &db.url, &[]);
    leaver.says("worker").await;
    // Its runtime has two.
    db.sql.batch_execute("select ambo.enqueue_workflow('stuck') from generate_series(1, 2)").await.unwrap();
    leaver.says("stuck").await;
    leaver.says("stuck").await;
    leaver.signal("TERM");
    db.until("select draining from ambo.heartbeat").await;
    leaver.signal("TERM");
    leaver.says("drained").await;
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 0 and attempt = 1").await, 2);
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0);
    leaver.kill().await;
}

/// Says that its step has begun, which then keeps its thread until it is let go.
struct Block {
    begun: tokio::sync::mpsc::UnboundedSender<()>,
    release: Mutex<mpsc::Receiver<()>>,
}

async fn blocks(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<()> {
    let block = cx.state::<Arc<Block>>()?;
    let step = cx.step("blocks", async || {
        let _ = block.begun.send(());
        let _ = block.release.lock().unwrap().recv();
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

#[tokio::test]
async fn a_drain_ends_where_a_step_blocks_the_runtime() {
    let db = database().await;
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = mpsc::channel();
    let block = Arc::new(Block { begun, release: Mutex::new(released) });
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let builder = Worker::builder(&db.client).workflow_fn("blocks", blocks).state(block);
    let worker = theirs.spawn(builder.start()).await.unwrap().unwrap();
    db.sql.batch_execute("select ambo.enqueue_workflow('blocks')").await.unwrap();
    has_begun.recv().await.unwrap();
    let (end, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        theirs.block_on(worker.drain(Duration::from_millis(100)));
        let _ = end.send(());
        theirs.shutdown_background();
    });
    let is_over = tokio::time::timeout(Duration::from_secs(30), ended).await;
    // Before anything may fail: the thread is not left behind.
    drop(release);
    assert!(is_over.is_ok(), "the drain waits for the step");
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 0 and attempt = 1").await, 1);
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0);
}
