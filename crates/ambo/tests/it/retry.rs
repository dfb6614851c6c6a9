//! Retries of whole runs: from their checkpoints, after a pause, as often as the policy says; then they are dead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Failure, Result, Retry, RunId, Untyped, Worker, WorkerBuilder};
use serde::{Deserialize, Serialize};

use crate::harness::{Database, database};

/// How often each step was called.
#[derive(Default)]
struct Calls(Mutex<HashMap<&'static str, u32>>);

impl Calls {
    fn count(&self, step: &'static str) -> u32 {
        let mut calls = self.0.lock().unwrap();
        let count = calls.entry(step).or_default();
        *count += 1;
        *count
    }

    fn of(&self, step: &str) -> u32 {
        self.0.lock().unwrap().get(step).copied().unwrap_or_default()
    }
}

async fn step(cx: &mut Ctx<'_>, name: &'static str, failures: u32) -> Result<u32> {
    let calls = cx.state::<Arc<Calls>>()?;
    let called = cx.step(name, || async {
        let count = calls.count(name);
        if count <= failures { Err(Error::message(format!("{name} failed {count}"))) } else { Ok(count) }
    });
    Ok(called.await?)
}

/// Charges, then ships, which fails so often; undoes the charge if it fails for good.
async fn ship(mut cx: Ctx<'_>, failures: u32) -> Result<u32> {
    step(&mut cx, "charge", 0).await?;
    let calls = cx.state::<Arc<Calls>>()?;
    cx.compensate("refund", move |_| {
        calls.count("refund");
        async { Ok::<_, Error>(()) }
    });
    step(&mut cx, "ship", failures).await?;
    Ok(cx.retries())
}

async fn stubborn(mut cx: Ctx<'_>, failures: u32) -> Result<u32> {
    step(&mut cx, "stubborn", failures).await?;
    Ok(cx.retries())
}

/// One branch fails once while the other goes on.
async fn both(mut cx: Ctx<'_>, _: ()) -> Result<u32> {
    let (mut left, mut right) = (cx.branch(), cx.branch());
    let left = async move { step(&mut left, "left", 1).await };
    let right = async move {
        step(&mut right, "right one", 0).await?;
        step(&mut right, "right two", 0).await
    };
    let (left, right) = tokio::join!(left, right);
    Ok(left? + right?)
}

/// Goes on after a failure, and fails by its own decision once.
async fn handled(mut cx: Ctx<'_>, _: ()) -> Result<String> {
    let failed = step(&mut cx, "optional", 1).await.is_err();
    step(&mut cx, "next", 0).await?;
    if cx.retries() == 0 {
        return Err(Error::message("not yet"));
    }
    Ok(format!("{failed} {}", cx.retries()))
}

async fn panics(mut cx: Ctx<'_>, _: ()) -> Result<u32> {
    step(&mut cx, "before", 0).await?;
    assert!(cx.retries() >= 2, "only the third try is good");
    Ok(cx.retries())
}

async fn stolen(mut cx: Ctx<'_>, _: ()) -> Result<()> {
    let calls = cx.state::<Arc<Calls>>()?;
    let retry = Retry::fixed(Duration::ZERO);
    cx.step("permanent", || async {
        calls.count("permanent");
        Err::<(), _>(Error::message("the card is stolen").permanent())
    })
    .retry(retry)
    .await?;
    Ok(())
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
enum Declined {
    Stolen,
    Limit,
}

impl std::fmt::Display for Declined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "declined: {self:?}")
    }
}

#[ambo::workflow(retry = Retry::fixed(Duration::from_millis(1)).max_attempts(2),
                 permanent = |error| *error == Declined::Stolen)]
async fn typed(_cx: Ctx, error: Declined) -> Result<(), Declined> {
    Err(error)
}

fn builder(db: &Database, calls: &Arc<Calls>) -> WorkerBuilder {
    let retry = Retry::fixed(Duration::from_millis(1)).max_attempts(4);
    ["ship", "both", "handled", "panics", "stolen", "stubborn"].into_iter().fold(
        Worker::builder(&db.client)
            .workflow_fn("ship", ship)
            .workflow_fn("both", both)
            .workflow_fn("handled", handled)
            .workflow_fn("panics", panics)
            .workflow_fn("stolen", stolen)
            .workflow_fn("stubborn", stubborn)
            .workflow::<typed>()
            .state(calls.clone()),
        |builder, name| builder.retry(name, retry.clone()),
    )
}

async fn enqueue(db: &Database, workflow: &str, input: impl Serialize) -> RunId {
    Enqueue::named(workflow, &input).on(&db.client).await.unwrap().run
}

async fn result<T: serde::de::DeserializeOwned>(db: &Database, run: RunId) -> Result<T> {
    let handle = db.client.handle::<Untyped>(run);
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, handle.result_as::<T, Error>()).await.expect("an end").map_err(Error::from)
}

async fn state(db: &Database, run: RunId) -> String {
    db.client.show_run(run).await.expect("the run").summary.state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_is_tried_again_from_its_checkpoints() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "ship", 2).await;
    assert_eq!(result::<u32>(&db, run).await.unwrap(), 2, "two tries failed");
    assert_eq!(calls.of("charge"), 1, "what succeeded is not repeated");
    assert_eq!(calls.of("ship"), 3);
    assert_eq!(calls.of("refund"), 0, "nothing is undone before it has failed for good");
    // The attempts are there to be seen, each with its error.
    let seen = "select count(*) from ambo.checkpoint where name = 'ambo:retry' and error->>'message' like 'ship failed %'
        and output is not null";
    assert_eq!(db.number(seen).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exhausted_goes_to_the_dead_letters_undone_and_with_its_reason() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "ship", 1000).await;
    let error = result::<u32>(&db, run).await.unwrap_err();
    assert!(error.to_string().contains("ship failed 4"), "{error}");
    assert_eq!(state(&db, run).await, "dead");
    assert_eq!((calls.of("charge"), calls.of("ship"), calls.of("refund")), (1, 4, 1));
    // There is nothing left to go on from, but it may begin anew.
    let tries =
        format!("select count(*) from ambo.checkpoint where run_id = '{run}' and name = 'ambo:retry'");
    for refused in [
        db.client.retry(run).await,
        db.client.fork(run, None).await.map(drop),
        db.client.fork(run, Some("2")).await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert!(
            refused.code() == Code::WrongState && refused.to_string().contains("was undone"),
            "{refused}"
        );
    }
    assert_eq!((state(&db, run).await.as_str(), db.number(&tries).await), ("dead", 3));
    let anew = db.client.fork(run, Some("1")).await.unwrap();
    result::<u32>(&db, anew).await.unwrap_err();
    assert_eq!((calls.of("charge"), calls.of("ship"), calls.of("refund")), (2, 8, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_went_on_beside_the_failure_is_not_repeated() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "both", ()).await;
    assert_eq!(result::<u32>(&db, run).await.unwrap(), 3);
    assert_eq!((calls.of("left"), calls.of("right one"), calls.of("right two")), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_the_body_went_on_after_stays_what_it_was() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "handled", ()).await;
    assert_eq!(result::<String>(&db, run).await.unwrap(), "true 1");
    assert_eq!((calls.of("optional"), calls.of("next")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_tried_again_too() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "panics", ()).await;
    assert_eq!(result::<u32>(&db, run).await.unwrap(), 2);
    assert_eq!(calls.of("before"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_error_is_not_tried_again() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "stolen", ()).await;
    let error = result::<()>(&db, run).await.unwrap_err();
    assert!(error.is_permanent() && error.code() == Code::Application, "{error:?}");
    assert_eq!(calls.of("permanent"), 1, "neither its step nor its run");
    assert_eq!(state(&db, run).await, "failed");

    let tries = |run: RunId| {
        format!("select count(*) from ambo.checkpoint where run_id = '{run}' and name = 'ambo:retry'")
    };
    let handle = typed::enqueue(Declined::Stolen).on(&db.client).await.unwrap();
    let ended = db.client.handle::<typed>(handle.run).result().await;
    assert!(matches!(ended, Err(Failure::Application(Declined::Stolen))), "{ended:?}");
    assert_eq!(db.number(&tries(handle.run)).await, 0);
    let handle = typed::enqueue(Declined::Limit).on(&db.client).await.unwrap();
    let ended = db.client.handle::<typed>(handle.run).result().await;
    assert!(matches!(ended, Err(Failure::Application(Declined::Limit))), "{ended:?}");
    assert_eq!(db.number(&tries(handle.run)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_between_two_tries_holds_through_wake_ups_and_ends_by_a_cancel() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let hour = Retry::fixed(Duration::from_secs(3600));
    let worker = builder(&db, &calls).retry("ship", hour).start().await.unwrap();
    let run = enqueue(&db, "ship", 1).await;
    let paused = "select count(*) = 1 from ambo.timer where due_at > now() + interval '20 minutes'";
    db.until(paused).await;
    let attempt = "select attempt::int8 from ambo.timer";
    let before = db.number(attempt).await;
    ambo::SendSignal::new(run, "hurry", &()).on(&db.client).await.unwrap();
    db.until(&format!("select count(*) = 1 from ambo.timer where attempt > {before} and due_at > now() + interval '20 minutes'"))
        .await;
    assert_eq!(calls.of("ship"), 1, "woken, it went back to wait");
    // Another worker waits as long.
    worker.drain(Duration::from_secs(5)).await;
    let _worker = builder(&db, &calls).start().await.unwrap();
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(result::<u32>(&db, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!((calls.of("ship"), calls.of("refund")), (1, 1), "what it had done is undone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_run_that_an_operator_retries_has_all_its_tries_again() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let _worker = builder(&db, &calls).start().await.unwrap();
    let run = enqueue(&db, "stubborn", 6).await;
    result::<u32>(&db, run).await.unwrap_err();
    assert_eq!((state(&db, run).await.as_str(), calls.of("stubborn")), ("dead", 4));
    db.client.retry(run).await.unwrap();
    assert_eq!(result::<u32>(&db, run).await.unwrap(), 2, "counted anew");
    assert_eq!(calls.of("stubborn"), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_for_nobody_is_refused() {
    let db = database().await;
    let calls = Arc::new(Calls::default());
    let unknown = builder(&db, &calls).retry("nobody", Retry::exponential()).start().await.unwrap_err();
    assert_eq!(unknown.code(), Code::Registration);
}
