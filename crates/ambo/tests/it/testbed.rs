//! What `ambo::testing` gives to users: time that is skipped, steps that are answered for, workers that die where they are told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ambo::testing::{Testbed, enqueued_in};
use ambo::{
    Code, Ctx, Either, Enqueue, Error, Failure, Graph, Node, Overlap, Result, Retry, Schedule, Worker,
    WorkerBuilder,
};
use serde::{Deserialize, Serialize};

use crate::harness::connect;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// No test here waits for as long as the time that it skips.
const SOON: Duration = Duration::from_secs(110);

/// How often each of two steps took effect.
#[derive(Default)]
struct Effects {
    charge: AtomicU32,
    ship: AtomicU32,
}

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<(u64, jiff::Timestamp, jiff::Timestamp)> {
    let effects = cx.state::<Arc<Effects>>()?;
    let before = cx.now()?;
    cx.step("charge", || async { Ok::<_, Error>(effects.charge.fetch_add(1, Ordering::SeqCst)) }).await?;
    cx.sleep(30 * DAY).await?;
    let after = cx.now()?;
    cx.step("ship", || async { Ok::<_, Error>(effects.ship.fetch_add(1, Ordering::SeqCst)) }).await?;
    Ok((order, before, after))
}

fn with(effects: &Arc<Effects>) -> impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static {
    let effects = effects.clone();
    move |worker| worker.workflow::<fulfil>().state(effects.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn time_is_skipped_and_everything_goes_by_it() {
    let began = Instant::now();
    let bed = Testbed::new().await.unwrap();
    let effects = Arc::new(Effects::default());
    bed.start(with(&effects)).await.unwrap();
    let run = fulfil::enqueue(7).on(bed.client()).await.unwrap().run;
    let handle = bed.client().handle::<fulfil>(run);
    bed.skip(29 * DAY).await.unwrap();
    bed.settled().await.unwrap();
    assert_eq!(effects.ship.load(Ordering::SeqCst), 0, "it sleeps for thirty days");
    bed.skip(DAY).await.unwrap();
    let (order, before, after) = handle.result().await.unwrap();
    assert_eq!(order, 7);
    let slept = after.duration_since(before);
    assert!(slept.as_hours() >= 30 * 24 && slept.as_hours() < 30 * 24 + 1, "{slept:?}");
    assert_eq!((effects.charge.load(Ordering::SeqCst), effects.ship.load(Ordering::SeqCst)), (1, 1));
    // What is enqueued later is later, and falls into a partition that there is.
    let year = bed.skip_at_once(365 * DAY).await;
    year.unwrap();
    let late = fulfil::enqueue(8).delay(10 * DAY).on(bed.client()).await.unwrap().run;
    assert!(late > run);
    let now = bed.client().now().await.unwrap();
    assert!(now.duration_since(after).as_hours() >= 365 * 24);
    assert_eq!(bed.skip_to_next().await.unwrap().unwrap().as_secs() / 3600, 239, "its delay");
    let (order, ..) = bed.result(&bed.client().handle::<fulfil>(late)).await.unwrap();
    assert_eq!(order, 8, "however long it sleeps");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// Waits in memory, in every way: between attempts, for a signal with a limit, under a time limit of the run.
#[ambo::workflow]
async fn waits(cx: Ctx, how: String) -> Result<String> {
    let hour = Duration::from_secs(3600);
    match how.as_str() {
        "retry" => {
            let retry = Retry::fixed(hour).max_attempts(3);
            let failing = cx.step_with("flaky", |attempt| async move {
                if attempt.number() < 3 { Err(Error::message("not yet")) } else { Ok(attempt.number()) }
            });
            Ok(failing.retry(retry).await?.to_string())
        }
        "signal" => {
            let signal = cx.signal::<String>("never").timeout(hour);
            let sleep = cx.sleep(300 * DAY);
            match cx.select(signal, sleep).await?.1 {
                Either::Left(answer) => Ok(answer.unwrap_err().code().to_string()),
                Either::Right(_) => Ok("slept".to_owned()),
            }
        }
        _ => {
            cx.step("hangs", std::future::pending::<Result<()>>).await?;
            Ok("never".to_owned())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_memory_goes_by_it_too() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<waits>().park_after(DAY)).await.unwrap();
    let enqueue = async |how: &str, timeout| {
        let run = waits::enqueue(how.to_owned()).timeout(timeout).on(bed.client()).await.unwrap().run;
        bed.client().handle::<waits>(run)
    };
    let retried = enqueue("retry", 400 * DAY).await;
    let signalled = enqueue("signal", 400 * DAY).await;
    let limited = enqueue("hang", Duration::from_secs(20 * 3600)).await;
    let sql = connect(bed.url()).await;
    // Of those that wait in memory the test sees the claims; time is skipped for them until they have ended.
    let hour = Duration::from_secs(3600);
    for _ in 0..40 {
        let ended = "select count(*) from ambo.outcome";
        if sql.query_one(ended, &[]).await.unwrap().get::<_, i64>(0) == 3 {
            break;
        }
        bed.skip_at_once(hour).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(retried.result().await.unwrap(), "3");
    assert_eq!(signalled.result().await.unwrap(), "AMBO042");
    assert_eq!(Error::from(limited.result().await.unwrap_err()).code(), Code::RunTimeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_dies_at_calls_that_do_not_wait_too() {
    #[ambo::workflow]
    async fn tells(cx: Ctx) -> Result<u32> {
        cx.publish("state", &1)?;
        cx.set_attribute("state", &1)?;
        cx.now()?;
        Ok(cx.step("last", || async { Ok::<_, Error>(7) }).await?)
    }
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<tells>()).await.unwrap();
    for call in ["1", "2", "3", "last"] {
        bed.crash_before(call);
        let run = tells::enqueue().on(bed.client()).await.unwrap().run;
        bed.crashed().await.unwrap();
        bed.restart().await.unwrap();
        assert_eq!(bed.client().handle::<tells>(run).result().await.unwrap(), 7, "{call}");
        let events = bed.client().events::<u32>(run, "state", 0).await.unwrap();
        assert_eq!(events, [(1, 1)], "{call}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_lifetime_is_skipped_is_free() {
    let bed = Testbed::new().await.unwrap();
    bed.start(with(&Arc::default())).await.unwrap();
    let place = async |order| {
        let run = fulfil::enqueue(order).key("k").key_lifetime(60 * DAY);
        run.on(bed.client()).await
    };
    let first = place(1).await.unwrap().run;
    bed.result(&bed.client().handle::<fulfil>(first)).await.unwrap();
    bed.skip(29 * DAY).await.unwrap();
    assert_eq!(place(2).await.unwrap_err().code(), Code::KeyConflict);
    bed.skip(2 * DAY).await.unwrap();
    assert!(place(2).await.unwrap().is_new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_ticks_by_it_and_no_worker_dies_of_it() {
    let bed = Testbed::new().await.unwrap();
    let effects = Arc::new(Effects::default());
    bed.start(with(&effects)).await.unwrap();
    let second = with(&effects)(bed.worker()).start().await.unwrap();
    let (first_id, second_id) = (bed.client().list_workers().await.unwrap().len(), second.id());
    let weekly = Schedule::every("weekly", 7 * DAY, fulfil::enqueue(1)).overlap(Overlap::Allow);
    weekly.set(bed.client()).await.unwrap();
    for _ in 0..3 {
        bed.skip(7 * DAY).await.unwrap();
        let due = bed.client().list_schedules().await.unwrap().remove(0).next_at;
        let ticked = async {
            while bed.client().list_schedules().await.unwrap()[0].next_at == due {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), ticked).await;
    }
    bed.settled().await.unwrap();
    assert!(bed.enqueued::<fulfil>().await.unwrap().len() >= 2, "a run a week");
    assert_eq!(second.id(), second_id, "alive in the life in which it began");
    assert_eq!(bed.client().list_workers().await.unwrap().len(), first_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_dies_where_it_is_told_to_and_another_goes_on() {
    let began = Instant::now();
    let bed = Testbed::new().await.unwrap();
    let effects = Arc::new(Effects::default());
    let counts = || (effects.charge.load(Ordering::SeqCst), effects.ship.load(Ordering::SeqCst));
    // Before a step: it has not begun, and what came before is not done again.
    bed.start(with(&effects)).await.unwrap();
    bed.crash_before("ship");
    let run = fulfil::enqueue(7).on(bed.client()).await.unwrap().run;
    let handle = bed.client().handle::<fulfil>(run);
    bed.skip(30 * DAY).await.unwrap();
    bed.crashed().await.unwrap();
    assert_eq!(counts(), (1, 0));
    bed.restart().await.unwrap();
    assert_eq!(handle.result().await.unwrap().0, 7);
    assert_eq!(counts(), (1, 1));
    // After a step: it took effect, nobody knows, it does so again. By position, and twice.
    for _ in 0..2 {
        bed.crash_after("2");
    }
    let run = fulfil::enqueue(8).on(bed.client()).await.unwrap().run;
    bed.crashed().await.unwrap();
    bed.restart().await.unwrap();
    bed.crashed().await.unwrap();
    bed.restart().await.unwrap();
    assert_eq!(bed.result(&bed.client().handle::<fulfil>(run)).await.unwrap().0, 8);
    assert_eq!(counts(), (4, 2), "three times charged");
    assert_eq!(bed.attempts("charge"), 4);
    // Nobody was waited for.
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Declined(String);

impl std::fmt::Display for Declined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "declined: {}", self.0)
    }
}

impl From<Error> for Declined {
    fn from(error: Error) -> Self {
        Declined(error.to_string())
    }
}

#[ambo::workflow]
async fn pays(cx: Ctx, cents: u64) -> Result<u64, Declined> {
    let unreachable = || async { Err::<u64, _>(Declined("no gateway in a test".into())) };
    let charge = cx.step("charge", unreachable).retry(Retry::fixed(Duration::ZERO).max_attempts(5));
    let charged = charge.await.map_err(Failure::flatten)?;
    Ok(cents + charged)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_answers_what_it_is_told_to() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<pays>()).await.unwrap();
    let pay = async || {
        let run = pays::enqueue(100).on(bed.client()).await.unwrap().run;
        bed.client().handle::<pays>(run).result().await
    };
    let real = pay().await.unwrap_err();
    assert!(
        matches!(&real, Failure::Application(Declined(text)) if text == "no gateway in a test"),
        "{real:?}"
    );
    // Its retries are its own, and its error is.
    bed.step("charge").fails(Declined("twice".into())).times(2);
    bed.step("charge").returns(&7u64).times(1);
    let before = bed.attempts("charge");
    assert_eq!(pay().await.unwrap(), 107);
    assert_eq!(bed.attempts("charge") - before, 3);
    // A result of another type is the test's own mistake: it is said at once.
    bed.step("charge").returns(&"seven").times(1);
    let mistaken = pay().await.unwrap_err();
    let text = mistaken.to_string();
    assert!(text.contains("the scripted result does not fit `u64`"), "{text}");
    assert_eq!(bed.attempts("charge") - before, 4);
    bed.step("charge").fails(Declined("for ever".into()));
    let scripted = pay().await.unwrap_err();
    assert!(matches!(&scripted, Failure::Application(Declined(text)) if text == "for ever"), "{scripted:?}");
}

#[cfg(feature = "sqlx")]
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_step_answers_and_dies_too() {
    #[ambo::workflow]
    async fn books(cx: Ctx, _order: u64) -> Result<i64> {
        let pool = cx.state::<sqlx::PgPool>()?;
        let booked = cx.transaction("book").run(&*pool, async |mut tx| -> Result<i64> {
            let (id,) =
                sqlx::query_as("insert into booking default values returning id").fetch_one(&mut *tx).await?;
            Ok(id)
        });
        Ok(booked.await?)
    }
    let bed = Testbed::new().await.unwrap();
    let pool = sqlx::PgPool::connect(bed.url()).await.unwrap();
    sqlx::query("create table booking (id bigserial)").execute(&pool).await.unwrap();
    let given = pool.clone();
    bed.start(move |worker| worker.workflow::<books>().state(given.clone())).await.unwrap();
    let book = async || bed.client().handle::<books>(books::enqueue(1).on(bed.client()).await.unwrap().run);
    // After its commit, which is its record.
    bed.crash_after("book");
    let handle = book().await;
    bed.crashed().await.unwrap();
    bed.restart().await.unwrap();
    assert_eq!(handle.result().await.unwrap(), 1);
    bed.step("book").returns(&77).times(1);
    assert_eq!(book().await.result().await.unwrap(), 77);
    bed.step("book").fails(Error::message("full")).times(1);
    assert!(book().await.result().await.unwrap_err().to_string().contains("full"));
    let (count,): (i64,) = sqlx::query_as("select count(*) from booking").fetch_one(&pool).await.unwrap();
    assert_eq!(count, 1, "booked once, and neither for the test's answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_open_transaction_has_enqueued_is_seen_from_within() {
    let bed = Testbed::new().await.unwrap();
    let mut sql = connect(bed.url()).await;
    fulfil::enqueue(1).on(bed.client()).await.unwrap();
    let tx = sql.transaction().await.unwrap();
    fulfil::enqueue(2).key("two").attributes(&serde_json::json!({"a": 1})).delay(DAY).on(&tx).await.unwrap();
    tx.batch_execute("savepoint s").await.unwrap();
    Enqueue::named("other", &"x").queue("default").priority(3).on(&tx).await.unwrap();
    let enqueued = enqueued_in(&tx).await.unwrap();
    assert_eq!(enqueued.len(), 2, "{enqueued:?}");
    assert!(enqueued[0].is::<fulfil>() && enqueued[0].input::<u64>().unwrap() == 2);
    assert_eq!(enqueued[0].key.as_deref(), Some("two"));
    assert_eq!(enqueued[0].attributes, Some(serde_json::json!({"a": 1})));
    assert!(enqueued[0].due_at.unwrap() > bed.client().now().await.unwrap());
    assert_eq!((&*enqueued[1].workflow, enqueued[1].priority), ("other", 3));
    assert_eq!(enqueued[1].input::<u64>().unwrap_err().code(), Code::NotDecodable);
    assert_eq!(bed.enqueued::<fulfil>().await.unwrap().len(), 1, "nobody else sees it");
    tx.batch_execute("rollback to s").await.unwrap();
    assert_eq!(enqueued_in(&tx).await.unwrap().len(), 1);
    tx.commit().await.unwrap();
    assert_eq!(enqueued_in(&sql).await.unwrap().len(), 0, "it is past");
    let all = bed.enqueued::<fulfil>().await.unwrap();
    assert_eq!(all.iter().map(|run| run.input::<u64>().unwrap()).collect::<Vec<_>>(), [1, 2]);
    let plain = crate::harness::database().await;
    assert_eq!(enqueued_in(&plain.sql).await.unwrap_err().code(), Code::SchemaMismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_is_said() {
    #[ambo::workflow]
    async fn asks(cx: Ctx) -> Result<()> {
        cx.signal("answer").await
    }
    let bed = Testbed::new().await.unwrap();
    assert_eq!(bed.restart().await.unwrap_err().code(), Code::Configuration);
    bed.start(|worker| worker.workflow::<asks>()).await.unwrap();
    let run = asks::enqueue().on(bed.client()).await.unwrap().run;
    let error = bed.result(&bed.client().handle::<asks>(run)).await.unwrap_err();
    assert!(error.to_string().contains("does not come by itself"), "{error}");
    assert_eq!(bed.skip_to_next().await.unwrap(), None);
    // A program under test that migrates leaves the clock as it is.
    bed.client().migrate().await.unwrap();
    let before = bed.client().now().await.unwrap();
    bed.skip(DAY).await.unwrap();
    assert!(bed.client().now().await.unwrap().duration_since(before).as_hours() >= 24);
    // And a worker that is stopped by hand is not waited for.
    let other = bed.worker().workflow::<asks>().start().await.unwrap();
    bed.kill(other).await.unwrap();
}

static NODES: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

#[ambo::graph]
fn diamond(graph: &mut Graph, input: Node<u32>) -> Node<u32> {
    let count = |node: usize| {
        move |n: u32| async move {
            NODES[node].fetch_add(1, Ordering::SeqCst);
            Ok::<_, Error>(n + 1)
        }
    };
    let top = graph.step("top", input, count(0));
    let left = graph.step("left", top, count(1));
    let right = graph.step("right", top, count(2));
    let bottom = count(3);
    graph.step("bottom", (left, right), move |(left, right)| bottom(left + right))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_survives_a_crash_at_every_node() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<diamond>()).await.unwrap();
    for node in ["top", "left", "right", "bottom"] {
        for after in [false, true] {
            if after {
                bed.crash_after(node)
            } else {
                bed.crash_before(node)
            }
            NODES.iter().for_each(|node| node.store(0, Ordering::SeqCst));
            let run = diamond::enqueue(1).on(bed.client()).await.unwrap().run;
            bed.crashed().await.unwrap();
            bed.restart().await.unwrap();
            assert_eq!(bed.client().handle::<diamond>(run).result().await.unwrap(), 7);
            let steps = bed.client().show_run(run).await.unwrap().steps;
            let places: Vec<_> = steps.iter().map(|step| (&*step.position, &*step.name)).collect();
            assert_eq!(places, [("1.1", "top"), ("2.1", "left"), ("3.1", "right"), ("4.1", "bottom")]);
            // The node at which it died was done once more if it had been done; one beside it may have been.
            let calls: Vec<u32> = NODES.iter().map(|node| node.load(Ordering::SeqCst)).collect();
            let twice = |name: &str| u32::from(after && node == name);
            assert_eq!(calls[0], 1 + twice("top"), "{node} {after}");
            assert_eq!(calls[3], 1 + twice("bottom"), "{node} {after}");
            assert!(calls[1] > twice("left") && calls[2] > twice("right"), "{node} {after} {calls:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_script_is_as_it_was() {
    let bed = Testbed::new().await.unwrap();
    bed.step("ship").fails(Error::message("scripted"));
    let effects = Arc::new(Effects::default());
    let _worker = with(&effects)(Worker::builder(bed.client())).start().await.unwrap();
    let run = fulfil::enqueue(7).on(bed.client()).await.unwrap().run;
    assert_eq!(bed.result(&bed.client().handle::<fulfil>(run)).await.unwrap().0, 7);
}
