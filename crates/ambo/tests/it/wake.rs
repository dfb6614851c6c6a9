//! Wake-ups: a sleeping worker hears of a commit at once, a busy one costs nobody a NOTIFY, and no lock is left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ambo::{Ctx, Error, QueueSettings, Result, SendSignal, Worker, WorkerBuilder};
use ambo_postgres::{Cluster, Place};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::harness::{Database, connect, database, database_at};

/// What is to be a worker of which each run tells that it has begun.
fn telling(db: &Database, begun: mpsc::UnboundedSender<Instant>) -> WorkerBuilder {
    let body = async |cx: Ctx<'_>, _: serde_json::Value| -> Result<()> {
        let begun = cx.state::<mpsc::UnboundedSender<Instant>>()?;
        begun.send(Instant::now()).map_err(|_| Error::message("nobody listens"))
    };
    Worker::builder(&db.client).workflow_fn("tell", body).state(begun)
}

async fn listener(db: &Database, poll: Duration) -> (Worker, mpsc::UnboundedReceiver<Instant>) {
    let (begun, began) = mpsc::unbounded_channel();
    (telling(db, begun).poll_interval(poll).start().await.expect("worker"), began)
}

const ENQUEUE: &str = "select ambo.enqueue_workflow('tell')";

/// Waits until the worker sleeps where it can be seen.
async fn until_asleep(db: &Database) {
    db.until("select ambo.is_awaited(hashtext('ambo.sleep'))").await;
}

/// The median of the times from commit to beginning, in milliseconds.
async fn median_ms(db: &Database, began: &mut mpsc::UnboundedReceiver<Instant>, times: usize) -> u128 {
    let mut all = Vec::new();
    for _ in 0..times {
        until_asleep(db).await;
        let committed = Instant::now();
        db.sql.batch_execute(ENQUEUE).await.unwrap();
        all.push((began.recv().await.unwrap() - committed).as_millis());
    }
    all.sort_unstable();
    println!("from commit to the first line, in ms: {all:?}");
    all[all.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_worker_begins_soon_after_a_commit_elsewhere() {
    let db = database().await;
    // An hour: whoever is woken was woken by the commit.
    let (_worker, mut began) = listener(&db, Duration::from_secs(3600)).await;
    let median = median_ms(&db, &mut began, 20).await;
    // Far below a second, after which a heartbeat might have found it; how far depends on the machine.
    assert!(median < 500, "the median was {median} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_enqueue_is_missed_by_a_worker_that_is_just_falling_asleep() {
    let db = database().await;
    let (_worker, mut began) = listener(&db, Duration::from_secs(3600)).await;
    let caller = connect(&db.url).await;
    for n in 0..150 {
        // The transaction begins while the worker is awake, at ever another moment of its falling asleep; it asked
        // whether somebody sleeps, heard no, and commits when the worker does.
        db.sql.batch_execute(ENQUEUE).await.unwrap();
        began.recv().await.unwrap();
        caller.batch_execute("begin").await.unwrap();
        tokio::time::sleep(Duration::from_micros(200 * (n % 75))).await;
        caller.batch_execute(ENQUEUE).await.unwrap();
        until_asleep(&db).await;
        caller.batch_execute("commit").await.unwrap();
        let found = tokio::time::timeout(Duration::from_secs(20), began.recv()).await;
        assert!(found.is_ok(), "in round {n} the run was not found: a lost wake-up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_wakes_itself_when_a_timer_is_due() {
    let db = database().await;
    let (_worker, mut began) = listener(&db, Duration::from_secs(3600)).await;
    until_asleep(&db).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('tell', delay => '300 ms')").await.unwrap();
    // The only sleeper is the one that fires the timer.
    let found = tokio::time::timeout(Duration::from_secs(20), began.recv()).await;
    assert!(found.is_ok(), "the run was made ready and nobody was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_enqueued_without_notification_is_found_by_the_poll() {
    let db = database().await;
    let (_worker, mut began) = listener(&db, Duration::from_millis(100)).await;
    db.sql.batch_execute("set ambo.notify = off").await.unwrap();
    let median = median_ms(&db, &mut began, 5).await;
    assert!(median < 1000, "the median was {median} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_can_be_prepared_for_two_phases_with_notification_off() {
    let server = || {
        let server = Cluster::builder().temporary(Place::Memory).durable(false);
        server.setting("max_prepared_transactions", "5").start().expect("a server")
    };
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    let db = database_at(&server.url("postgres")).await;
    let (_worker, mut began) = listener(&db, Duration::from_millis(200)).await;
    until_asleep(&db).await;
    let prepare = format!("begin; {ENQUEUE}; prepare transaction 'two phases'");
    let refused = db.sql.batch_execute(&prepare).await.expect_err("PREPARE TRANSACTION after NOTIFY");
    assert_eq!(refused.code().unwrap().code(), "0A000", "{refused:?}");
    db.sql.batch_execute("rollback; set ambo.notify = off").await.unwrap();
    db.sql.batch_execute(&prepare).await.unwrap();
    // Others come and go meanwhile; the prepared one is then found below the mark.
    for _ in 0..3 {
        db.sql.batch_execute(ENQUEUE).await.unwrap();
        began.recv().await.unwrap();
    }
    db.sql.batch_execute("commit prepared 'two phases'").await.unwrap();
    began.recv().await.unwrap();
    db.until("select count(*) = 4 from ambo.outcome").await;
}

/// What notifications say that arrive on these channels.
pub(crate) async fn hear(
    url: &str,
    channels: &[&str],
) -> (tokio_postgres::Client, mpsc::UnboundedReceiver<String>) {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let (heard, hearing) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = heard.send(notification.payload().to_owned());
            }
        }
    });
    for channel in channels {
        client.batch_execute(&format!("listen \"ambo.{channel}\"")).await.unwrap();
    }
    (client, hearing)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_notified_while_nobody_sleeps() {
    let db = database().await;
    let (client, mut heard) = hear(&db.url, &["wake"]).await;
    // No worker at all.
    for _ in 0..20 {
        db.sql.batch_execute(ENQUEUE).await.unwrap();
    }
    client.batch_execute("select pg_notify('ambo.wake', 'end of the first part')").await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "end of the first part");

    // A worker that is full: every run waits at a gate.
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let body = async |cx: Ctx<'_>, _: serde_json::Value| -> Result<()> {
        let gate = cx.state::<Arc<tokio::sync::Semaphore>>()?;
        let _ = gate.acquire().await;
        Ok(())
    };
    let worker = Worker::builder(&db.client).workflow_fn("tell", body).state(gate.clone()).max_in_flight(5);
    let worker = worker.start().await.unwrap();
    db.until("select count(*) = 5 from ambo.claim").await;
    for _ in 0..50 {
        db.sql.batch_execute(ENQUEUE).await.unwrap();
    }
    client.batch_execute("select pg_notify('ambo.wake', 'end of the second part')").await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "end of the second part");

    // That something would have been heard: asleep, it is told.
    gate.close();
    db.until("select count(*) = 70 from ambo.outcome").await;
    until_asleep(&db).await;
    db.sql.batch_execute(ENQUEUE).await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "");
    worker.drain(Duration::ZERO).await;
}

const ADVISORY: &str = "select count(*) from pg_locks where locktype = 'advisory' and pid = ";

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_leaves_no_lock_in_the_session_of_the_caller() {
    let db = database().await;
    for asleep in [false, true] {
        let _worker = if asleep { Some(listener(&db, Duration::from_secs(3600)).await) } else { None };
        if asleep {
            until_asleep(&db).await;
        }
        let caller = connect(&db.url).await;
        let pid: i32 = caller.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        let held = format!("{ADVISORY}{pid}");
        for sql in [ENQUEUE, &format!("begin; {ENQUEUE}; rollback"), &format!("begin; {ENQUEUE}; commit")] {
            caller.batch_execute(sql).await.unwrap();
            assert_eq!(db.number(&held).await, 0, "after {sql:?}, asleep: {asleep}");
        }
        // Cancelled at whatever moment: hundreds of statements, each ended within its enqueues.
        let flood = "select ambo.enqueue_workflow('nobody') from generate_series(1, 20000)";
        let mut cancelled = 0;
        for n in 0..100u64 {
            let token = caller.cancel_token();
            let cancel = async {
                tokio::time::sleep(Duration::from_micros(100 * n)).await;
                token.cancel_query(NoTls).await
            };
            let (ended, asked) = tokio::join!(caller.batch_execute(flood), cancel);
            asked.expect("ask to cancel");
            cancelled += i32::from(ended.is_err());
            assert_eq!(db.number(&held).await, 0, "after {n} cancelled statements, asleep: {asleep}");
        }
        assert!(cancelled > 50, "too few statements were cancelled: {cancelled}");
    }
}

/// What must never be: a run below the mark, of a transaction that ended long ago. The net that is there for it holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_stands_below_the_mark_against_all_rules_is_found_by_the_sweep() {
    let db = database().await;
    let (_worker, mut began) = listener(&db, Duration::from_millis(200)).await;
    // More lanes than one sweep looks at.
    for priority in 0..20 {
        let enqueue = format!("select ambo.enqueue_workflow('tell', priority => {priority}::smallint)");
        db.sql.batch_execute(&enqueue).await.unwrap();
        began.recv().await.unwrap();
    }
    let below = "begin; select ambo.enqueue_workflow('tell', priority => 7::smallint);
        update ambo.ready set seq = 1, xid = '3'; commit";
    db.sql.batch_execute(below).await.unwrap();
    let found = tokio::time::timeout(Duration::from_secs(30), began.recv()).await;
    assert!(found.is_ok(), "the sweep passes it over");
}

/// Waits for a word that may come, in memory hardly at all.
#[ambo::workflow]
async fn waiting(mut cx: Ctx, _: u32) -> Result<String> {
    cx.signal("word").await
}

/// A transaction of a user that has to do with a parked run, and stays open, keeps a signal from that run. It stands first in its lane at
/// each claim, goes back each time, and must not be all that a worker with one place ever takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_be_woken_takes_no_place_from_others() {
    for settings in [QueueSettings::default(), QueueSettings::default().concurrency(5)] {
        others_go_on_beside_a_run_that_cannot_be_woken(&settings).await;
    }
}

async fn others_go_on_beside_a_run_that_cannot_be_woken(settings: &QueueSettings) {
    let db = database().await;
    db.client.set_queue("default", settings).await.unwrap();
    let (begun, mut began) = mpsc::unbounded_channel();
    let worker = telling(&db, begun).workflow::<waiting>().park_after(Duration::from_millis(20));
    let _worker = worker.max_in_flight(1).start().await.expect("worker");
    let run = waiting::enqueue(1).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.timer where attempt > 0").await;
    let holder = connect(&db.url).await;
    holder.batch_execute("begin; select from ambo.timer for update").await.unwrap();
    assert!(SendSignal::new(run, "word", &"go").on(&db.client).await.unwrap());
    for n in 0..20 {
        db.sql.batch_execute(ENQUEUE).await.unwrap();
        let found = tokio::time::timeout(Duration::from_secs(20), began.recv()).await;
        assert!(found.is_ok(), "run {n} has to wait for the one that cannot be woken");
    }
    db.until("select count(*) = 20 from ambo.outcome").await;
    holder.batch_execute("rollback").await.unwrap();
    let said = tokio::time::timeout(Duration::from_secs(20), db.client.handle::<waiting>(run).result()).await;
    assert_eq!(said.expect("it is woken when it is let go").unwrap(), "go");
}
