//! Waits: sleeping, parked, woken, by signals that come before, during and across a park.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::{Code, Ctx, Either, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker, WorkerBuilder};

use tokio::sync::Notify;

use crate::harness::{Database, connect, database};

const PARKED: &str = "select count(*) = 1 from ambo.timer where attempt > 0";

#[derive(Default)]
struct Tally {
    before: AtomicU32,
    after: AtomicU32,
}

async fn nap(mut cx: Ctx<'_>, ms: u64) -> Result<u32> {
    let tally = cx.state::<Arc<Tally>>()?;
    cx.step("before", || async { Ok::<_, Error>(tally.before.fetch_add(1, Ordering::SeqCst)) }).await?;
    cx.sleep(Duration::from_millis(ms)).await?;
    cx.step("after", || async { Ok::<_, Error>(tally.after.fetch_add(1, Ordering::SeqCst)) }).await?;
    Ok(cx.attempt())
}

async fn hear(mut cx: Ctx<'_>, timeout_ms: Option<u64>) -> Result<Vec<String>> {
    let mut heard = Vec::new();
    loop {
        let mut signal = cx.signal::<String>("word");
        if let Some(ms) = timeout_ms {
            signal = signal.timeout(Duration::from_millis(ms));
        }
        match signal.await {
            Ok(word) if word == "end" => return Ok(heard),
            Ok(word) => heard.push(word),
            Err(error) if error.code() == Code::WaitTimeout => {
                heard.push("silence".into());
                return Ok(heard);
            }
            Err(error) => return Err(error),
        }
    }
}

fn builder(db: &Database, tally: &Arc<Tally>) -> WorkerBuilder {
    Worker::builder(&db.client)
        .workflow_fn("nap", nap)
        .workflow_fn("hear", hear)
        .workflow_fn("either", either)
        .state(tally.clone())
}

async fn enqueue(db: &Database, workflow: &str, input: impl serde::Serialize) -> RunId {
    Enqueue::named(workflow, &input).on(&db.client).await.unwrap().run
}

async fn result<T: serde::de::DeserializeOwned>(db: &Database, run: RunId) -> T {
    let handle = db.client.handle::<Untyped>(run);
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, handle.result_as::<T, Error>()).await.expect("an end").expect("a result")
}

async fn say(db: &Database, run: RunId, word: &str) -> bool {
    SendSignal::new(run, "word", &word).on(&db.client).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_sleep_leaves_memory_and_goes_on_where_it_stood() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let began = db.number("select (extract(epoch from now()) * 1000)::int8").await;
    let run = enqueue(&db, "nap", 1800).await;
    db.until(PARKED).await;
    assert_eq!(db.number("select count(*) from ambo.claim").await, 0, "nobody holds it");
    assert_eq!(result::<u32>(&db, run).await, 2, "claimed once more, when its time had come");
    assert_eq!(tally.before.load(Ordering::SeqCst), 1, "a recorded step never runs again");
    assert_eq!(tally.after.load(Ordering::SeqCst), 1);
    // From when it was called on; the checkpoint before it may be written while it sleeps.
    let slept = "select (a.recorded_at >= (s.output #>> '{}')::timestamptz)::int
            * (extract(epoch from (s.output #>> '{}')::timestamptz) * 1000)::int8
        from ambo.checkpoint s join ambo.checkpoint a using (run_id) where s.name = 'ambo:sleep' and a.name = 'after'";
    assert!(db.number(slept).await >= began + 1700, "as long as it was to, by the database's clock");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_sleep_stays_in_memory() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let run = enqueue(&db, "nap", 200).await;
    assert_eq!(result::<u32>(&db, run).await, 1);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_outlives_its_worker() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let run = enqueue(&db, "nap", 2500).await;
    db.until(PARKED).await;
    worker.drain(Duration::ZERO).await;
    let worker = builder(&db, &tally).start().await.unwrap();
    assert_eq!(result::<u32>(&db, run).await, 2);
    assert_eq!((tally.before.load(Ordering::SeqCst), tally.after.load(Ordering::SeqCst)), (1, 1));
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_come_once_each_in_their_order_before_during_and_after_a_park() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let run = enqueue(&db, "hear", None::<u64>).await;
    say(&db, run, "before the run began").await;
    let worker = builder(&db, &tally).start().await.unwrap();
    say(&db, run, "in memory").await;
    db.until(PARKED).await;
    db.sql
        .batch_execute(&format!(
            "begin; select ambo.send_signal('{run}', 'word', '\"parked 1\"');
             select ambo.send_signal('{run}', 'word', '\"parked 2\"'); commit;
             begin; select ambo.send_signal('{run}', 'word', '\"never\"'); rollback"
        ))
        .await
        .unwrap();
    db.until("select count(*) = 4 from ambo.checkpoint").await;
    db.until(PARKED).await;
    say(&db, run, "end").await;
    let heard: Vec<String> = result(&db, run).await;
    assert_eq!(heard, ["before the run began", "in memory", "parked 1", "parked 2"]);
    assert_eq!(db.number("select count(*) from ambo.wake").await, 0);
    let late = SendSignal::new(run, "word", &"late").on(&db.client).await.unwrap_err();
    assert_eq!(late.code(), Code::WrongState);
    let nobody = SendSignal::new(uuid::Uuid::nil().into(), "word", &"").on(&db.client).await.unwrap_err();
    assert_eq!(nobody.code(), Code::UnknownRun);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_is_held_uncommitted_across_the_park_wakes_the_run() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let run = enqueue(&db, "hear", None::<u64>).await;
    let mut caller = connect(&db.url).await;
    let tx = caller.transaction().await.unwrap();
    SendSignal::new(run, "word", &"end").on(&tx).await.unwrap();
    // The park does not see the signal, and the signal's transaction does not see the park.
    db.until(PARKED).await;
    tx.commit().await.unwrap();
    assert!(result::<Vec<String>>(&db, run).await.is_empty());
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_outlasts_a_rewind_that_is_rolled_back() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let run = enqueue(&db, "hear", None::<u64>).await;
    db.until(PARKED).await;
    let mut operator = connect(&db.url).await;
    let tx = operator.transaction().await.unwrap();
    // It holds the row that carries the run; whoever takes the wake-up can neither claim the run nor wait.
    tx.execute("select ambo.rewind_run($1, '1')", &[&run.as_uuid()]).await.unwrap();
    say(&db, run, "end").await;
    let sent: i64 = db.number("select is_called::int * last_value from ambo.ready_seq").await;
    db.until(&format!("select not exists (select from ambo.ready where wakes and seq <= {sent})")).await;
    tx.rollback().await.unwrap();
    assert!(result::<Vec<String>>(&db, run).await.is_empty());
    worker.drain(Duration::ZERO).await;
}

/// Does a step that ends when it is told to, and then ends or waits for a signal.
async fn dawdle(mut cx: Ctx<'_>, waits: bool) -> Result<()> {
    let go_on = cx.state::<Arc<Notify>>()?;
    let dawdle = cx.step("dawdle", || async {
        go_on.notified().await;
        Ok::<_, Error>(())
    });
    dawdle.await?;
    if waits { cx.signal::<()>("word").await } else { Ok(()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_claim_is_changed_under_its_end_or_its_park_is_not_lost() {
    for waits in [true, false] {
        let db = database().await;
        let go_on = Arc::new(Notify::new());
        let builder = Worker::builder(&db.client).workflow_fn("dawdle", dawdle).state(go_on.clone());
        let _worker = builder.park_after(Duration::from_millis(50)).start().await.unwrap();
        let run = enqueue(&db, "dawdle", waits).await;
        db.until("select count(*) = 1 from ambo.claim").await;
        let mut beat = connect(&db.url).await;
        let tx = beat.transaction().await.unwrap();
        // As a heartbeat does of a run that has come to do nothing but wait.
        tx.execute("select ambo.begin_runs(c.worker_id, array[c.run_id], false) from ambo.claim c", &[])
            .await
            .unwrap();
        go_on.notify_one();
        db.until(
            "select count(*) = 1 from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock' and query like '%ambo.flush%'",
        )
        .await;
        tx.commit().await.unwrap();
        let place = if waits { "timer" } else { "outcome" };
        db.until(&format!("select count(*) = 1 from ambo.{place} where run_id = '{run}'")).await;
        let attempt = db.number(&format!("select attempt::int8 from ambo.{place}")).await;
        assert_eq!(attempt, 1, "it was taken for another worker's, until a look at all claims gave it back");
    }
}

/// Works until it is told to stop: it is never parked and never leaves room for another.
async fn toil(mut cx: Ctx<'_>, _: ()) -> Result<()> {
    let mut toiling = cx.branch();
    let stop = cx.signal::<String>("word");
    let toil = async {
        loop {
            let moment = || async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, Error>(())
            };
            toiling.step("toil", moment).await?;
        }
    };
    match futures_util::future::select(std::pin::pin!(stop), std::pin::pin!(toil)).await {
        futures_util::future::Either::Left((word, _)) => word.map(|_| ()),
        futures_util::future::Either::Right((never, _)) => never,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_a_busy_run_of_a_worker_that_is_full() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow_fn("toil", toil).max_in_flight(1);
    let _worker = worker.start().await.unwrap();
    let run = enqueue(&db, "toil", ()).await;
    db.until("select count(*) > 0 from ambo.checkpoint").await;
    say(&db, run, "stop").await;
    result::<()>(&db, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_means_one_signal() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let run = enqueue(&db, "hear", None::<u64>).await;
    let send = |word: &'static str| SendSignal::new(run, "word", &word).key("one").on(&db.client);
    assert!(send("once").await.unwrap());
    assert!(!send("once").await.unwrap());
    assert_eq!(send("other").await.unwrap_err().code(), Code::KeyConflict);
    let elsewhere = SendSignal::new(run, "another topic", &"once").key("one").on(&db.client).await;
    assert_eq!(elsewhere.unwrap_err().code(), Code::KeyConflict);
    say(&db, run, "end").await;
    let worker = builder(&db, &tally).start().await.unwrap();
    assert_eq!(result::<Vec<String>>(&db, run).await, ["once"]);
    assert!(!send("once").await.unwrap(), "also when the run has ended");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_its_time_limit_also_when_it_is_parked() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let short = enqueue(&db, "hear", Some(100)).await;
    let long = enqueue(&db, "hear", Some(2500)).await;
    assert_eq!(result::<Vec<String>>(&db, short).await, ["silence"]);
    db.until(PARKED).await;
    assert_eq!(result::<Vec<String>>(&db, long).await, ["silence"]);
    worker.drain(Duration::ZERO).await;
}

/// Either a word or the time, then what was said after it.
async fn either(mut cx: Ctx<'_>, ms: u64) -> Result<String> {
    let word = cx.signal::<String>("word");
    let time = cx.sleep(Duration::from_millis(ms));
    let first = match cx.select(word, time).await?.1 {
        Either::Left(word) => word?,
        Either::Right(slept) => slept.map(|()| "time".to_owned())?,
    };
    let second: String = cx.signal("word").await?;
    Ok(format!("{first}, then {second}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_winner_of_a_race_stays_the_winner_in_a_replay() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let by_time = enqueue(&db, "either", 50).await;
    let by_word = enqueue(&db, "either", 60_000).await;
    say(&db, by_word, "word").await;
    // Both wait for their second word now, parked: they are rebuilt, and the lost signal would win this time.
    db.until("select count(*) = 2 from ambo.timer where attempt > 0").await;
    say(&db, by_time, "late word").await;
    say(&db, by_word, "later").await;
    assert_eq!(result::<String>(&db, by_time).await, "time, then late word");
    assert_eq!(result::<String>(&db, by_word).await, "word, then later");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_run_that_is_cancelled_is_woken_for_it() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let run = enqueue(&db, "nap", 3_600_000).await;
    db.until(PARKED).await;
    db.client.cancel(run, "enough").await.unwrap();
    let error = db.client.handle::<Untyped>(run).result_as::<u32, Error>().await.unwrap_err();
    assert_eq!(Error::from(error).code(), Code::Cancelled);
    assert_eq!(tally.after.load(Ordering::SeqCst), 0);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_of_a_run_ends_it_while_it_is_parked() {
    let db = database().await;
    let tally = Arc::new(Tally::default());
    let worker = builder(&db, &tally).start().await.unwrap();
    let nap = Enqueue::named("nap", &7_200_000).timeout(Duration::from_secs(3600));
    let run = nap.on(&db.client).await.unwrap().run;
    db.until(PARKED).await;
    let an_hour_on = "update ambo.timer set due_at = now(), deadline = now(), xid = pg_current_xact_id()
        where due_at = deadline";
    assert_eq!(db.sql.execute(an_hour_on, &[]).await.unwrap(), 1, "it is due when its time is over");
    let error = db.client.handle::<Untyped>(run).result_as::<u32, Error>().await.unwrap_err();
    assert_eq!(Error::from(error).code(), Code::RunTimeout);
    worker.drain(Duration::ZERO).await;
}

/// Its looks are further apart than others wait: none of them begins the wait anew.
#[tokio::test]
async fn a_run_that_waits_for_an_event_is_parked_however_long_it_stays_first() {
    let db = database().await;
    let waits = async |mut cx: Ctx<'_>, of: ambo::RunId| -> Result<u32> { cx.event(of, "told").await };
    let tells = async |mut cx: Ctx<'_>, _: ()| -> Result<()> { cx.publish("told", &7) };
    let worker = Worker::builder(&db.client).workflow_fn("waits", waits).workflow_fn("tells", tells);
    let worker = worker.park_after(Duration::from_millis(1500)).start().await.unwrap();
    let later = Enqueue::<Untyped>::named("tells", &()).delay(Duration::from_secs(3600)).on(&db.client).await;
    let later = later.unwrap().run;
    let run = Enqueue::<Untyped>::named("waits", &later).on(&db.client).await.unwrap().run;
    db.until("select exists (select from ambo.timer where attempt > 0)").await;
    db.sql.batch_execute("update ambo.timer set due_at = now(), xid = pg_current_xact_id()").await.unwrap();
    assert_eq!(db.client.handle::<Untyped>(run).result_as::<u32, Error>().await.unwrap(), 7);
    worker.drain(Duration::ZERO).await;
}
