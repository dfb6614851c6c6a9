//! The span in which a cancelled run has to have ended.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ambo::testing::Testbed;
use ambo::{Cancel, Code, Ctx, Error, Result, Retry, RunId};
use tokio::sync::Semaphore;

use crate::harness;
use crate::undo::{Dropped, HOUR, Journal, ended, endless, note, trip};

async fn cancel_within(client: &ambo::Client, run: RunId, grace: Duration) -> ambo::Cancelled {
    client.cancel(run, Cancel::new("withdrawn").grace(grace)).await.unwrap()
}

async fn state(client: &ambo::Client, run: RunId) -> String {
    client.show_run(run).await.unwrap().summary.state
}

/// Undoes the hotel for as long as it is not let.
#[ambo::workflow]
async fn lingers(cx: Ctx, then: String) -> Result<()> {
    let (journal, gate) = (cx.state::<Journal>()?, cx.state::<Arc<Semaphore>>()?);
    note(&mut cx, &journal, "flight").await?;
    cx.step("hotel", || async { Ok::<_, Error>(()) }).await?;
    let undoing = (journal.clone(), gate.clone());
    cx.compensate_with("undo hotel", Retry::none(), move |_| {
        let (journal, gate) = undoing.clone();
        async move {
            let _dropped = Dropped(Journal::clone(&journal), "left");
            journal.note("undoing");
            gate.acquire().await.expect("never closed").forget();
            journal.note("undo hotel");
            Ok::<_, Error>(())
        }
    });
    match then.as_str() {
        "hangs" => cx.step("hangs", || endless(&journal)).await.map(drop).map_err(Into::into),
        _ => cx.signal("never").await,
    }
}

/// A bed with one worker, a run in it, and the means to follow it.
async fn lingering(then: &str) -> (Testbed, Journal, Arc<Semaphore>, RunId) {
    let bed = Testbed::new().await.unwrap();
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let given = (journal.clone(), gate.clone());
    bed.start(move |worker| worker.workflow::<lingers>().state(given.0.clone()).state(given.1.clone()))
        .await
        .unwrap();
    let run = lingers::enqueue(then.into()).on(bed.client()).await.unwrap().run;
    (bed, journal, gate, run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_is_not_done_within_its_grace_is_dead_and_a_retry_goes_on() {
    let (bed, journal, gate, run) = lingering("waits").await;
    bed.settled().await.unwrap();
    cancel_within(bed.client(), run, HOUR).await;
    journal.until("undoing").await;
    bed.skip_at_once(HOUR).await.unwrap();
    let error = ended(bed.client(), run).await.unwrap_err();
    assert_eq!(error.code(), Code::GraceOver);
    assert!(error.to_string().ends_with(r#"left: "undo hotel", "undo flight""#), "{error}");
    assert_eq!(state(bed.client(), run).await, "dead");
    assert_eq!(bed.client().dead_letters(&Default::default()).await.unwrap().len(), 1);
    journal.until("left").await;
    // Without a limit now.
    bed.client().retry(run).await.unwrap();
    gate.add_permits(1);
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(journal.all(), ["flight", "undoing", "left", "undoing", "undo hotel", "left", "undo flight"]);
    assert_eq!(state(bed.client(), run).await, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_ends_a_step_that_does_not_allow_it_and_a_retry_undoes() {
    let (bed, journal, gate, run) = lingering("hangs").await;
    journal.until("begun").await;
    // No limit, then one, then a longer one, which does not count.
    bed.client().cancel(run, "withdrawn").await.unwrap();
    cancel_within(bed.client(), run, HOUR).await;
    cancel_within(bed.client(), run, 100 * HOUR).await;
    bed.skip_at_once(HOUR).await.unwrap();
    let error = ended(bed.client(), run).await.unwrap_err();
    assert_eq!(error.code(), Code::GraceOver);
    assert!(error.to_string().ends_with(r#"left: "undo hotel", "undo flight""#), "{error}");
    bed.client().retry(run).await.unwrap();
    gate.add_permits(1);
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(journal.all(), ["flight", "begun", "dropped", "undoing", "undo hotel", "left", "undo flight"]);
}

/// The grace is in the database: whoever claims the run next keeps to it, and says what is left.
#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_holds_through_a_crash() {
    for is_over in [true, false] {
        let (bed, journal, _gate, run) = lingering("waits").await;
        bed.settled().await.unwrap();
        bed.crash_before("undo hotel");
        cancel_within(bed.client(), run, HOUR).await;
        bed.crashed().await.unwrap();
        if is_over {
            bed.skip_at_once(HOUR).await.unwrap();
        }
        bed.restart().await.unwrap();
        if !is_over {
            journal.until("undoing").await;
            bed.skip_at_once(HOUR).await.unwrap();
        }
        let error = ended(bed.client(), run).await.unwrap_err();
        assert_eq!(error.code(), Code::GraceOver);
        assert!(error.to_string().ends_with(r#"left: "undo hotel", "undo flight""#), "{error}");
        assert_eq!(journal.all().contains(&"undoing".to_owned()), !is_over, "{:?}", journal.all());
    }
}

/// What keeps a thread until it is opened.
#[derive(Default)]
struct Latch(Mutex<bool>, Condvar);

impl Latch {
    fn hold(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// Opens it, also by a panic: the runtime waits for its threads.
struct Opens(Arc<Latch>);

impl Drop for Opens {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Keeps its thread, in a step or in what undoes one.
#[ambo::workflow]
async fn blocks(cx: Ctx, place: String) -> Result<()> {
    let (journal, latch) = (cx.state::<Journal>()?, cx.state::<Arc<Latch>>()?);
    note(&mut cx, &journal, "flight").await?;
    if place == "step" {
        let step = cx.step("blocks", || async {
            journal.note("begun");
            latch.hold();
            Ok::<_, Error>(())
        });
        return Ok(step.await?);
    }
    cx.compensate_with("undo hotel", Retry::none(), move |_| {
        let (journal, latch) = (journal.clone(), latch.clone());
        async move {
            journal.note("begun");
            latch.hold();
            Ok::<_, Error>(())
        }
    });
    cx.signal("never").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_grace_of_a_cancel_ends_a_run_that_blocks_its_thread() {
    for (place, left) in [("step", r#""undo flight""#), ("undo", r#""undo hotel", "undo flight""#)] {
        let bed = Testbed::new().await.unwrap();
        let (journal, latch) = (Journal::default(), Arc::new(Latch::default()));
        let given = (journal.clone(), latch.clone());
        let opens = Opens(latch);
        bed.start(move |worker| worker.workflow::<blocks>().state(given.0.clone()).state(given.1.clone()))
            .await
            .unwrap();
        let run = blocks::enqueue(place.into()).on(bed.client()).await.unwrap().run;
        if place == "step" {
            journal.until("begun").await;
        } else {
            bed.settled().await.unwrap();
        }
        cancel_within(bed.client(), run, HOUR).await;
        journal.until("begun").await;
        bed.skip_at_once(HOUR).await.unwrap();
        let error = ended(bed.client(), run).await.unwrap_err();
        assert_eq!(error.code(), Code::GraceOver, "{place}");
        assert!(error.to_string().ends_with(&format!("left: {left}")), "{error}");
        assert_eq!(state(bed.client(), run).await, "dead");
        // What comes back now comes too late.
        drop(opens);
        bed.client().retry(run).await.unwrap();
        assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
        let steps = bed.client().show_run(run).await.unwrap().steps;
        assert!(!steps.iter().any(|step| step.name == "blocks"), "{steps:?}");
        let again: &[&str] = if place == "step" { &[] } else { &["begun"] };
        assert_eq!(journal.all(), [&["flight", "begun"], again, &["undo flight"]].concat(), "{place}");
    }
}

/// Its worker has died for the last time before it could act on the cancel.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_forgets_a_cancel_that_nobody_lived_to_act_on() {
    let bed = Testbed::new().await.unwrap();
    let run = trip::enqueue("well".into()).on(bed.client()).await.unwrap().run;
    let sql = harness::connect(bed.url()).await;
    sql.batch_execute(&format!(
        "delete from ambo.ready;
         insert into ambo.outcome (run_id, attempt, status, error) values ('{run}', 1, 'dead', '{{\"code\": \"AMBO026\"}}');
         insert into ambo.cancel_request (run_id, undo_by) values ('{run}', now())"
    ))
    .await
    .unwrap();
    bed.client().retry(run).await.unwrap();
    bed.start(|worker| worker.workflow::<trip>().state(Journal::default())).await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grace_is_above_zero_and_reaches_the_children() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<parent>().workflow::<trip>().state(Journal::default()))
        .await
        .unwrap();
    let run = parent::enqueue().on(bed.client()).await.unwrap().run;
    bed.settled().await.unwrap();
    for grace in [Duration::ZERO, 90_000 * HOUR, Duration::MAX] {
        let refused = bed.client().cancel(run, Cancel::new("no").grace(grace)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidOption, "{grace:?}");
    }
    // Asked for and rolled back, so that it can be looked at before a worker acts on it.
    let mut sql = harness::connect(bed.url()).await;
    let tx = sql.transaction().await.unwrap();
    // Asked again, the earlier end counts.
    for (grace, at_most) in
        [("'1 hour'", "1 hour"), ("'2 hours'", "1 hour"), ("null", "1 hour"), ("'1 minute'", "1 minute")]
    {
        let cancel = format!("select ambo.cancel_run($1, 'why', {grace})");
        tx.query_one(&cancel, &[&run.as_uuid()]).await.unwrap();
        let limits = format!(
            "select count(*) from ambo.cancel_request
             where undo_by between now() and clock_timestamp() + interval '{at_most}'"
        );
        let limited: i64 = tx.query_one(&limits, &[]).await.unwrap().get(0);
        assert_eq!(limited, 2, "the parent's and the child's, {grace}");
    }
    tx.rollback().await.unwrap();
}

#[ambo::workflow]
async fn parent(cx: Ctx) -> Result<u32> {
    let child = cx.child::<trip>("waits".into()).start()?;
    Ok(cx.result_of(child).await?)
}

/// A step that waits to be let go.
#[ambo::workflow]
async fn held(mut cx: Ctx, _: u32) -> Result<()> {
    let gate = cx.state::<Arc<Semaphore>>()?;
    cx.step("hold", || async { gate.acquire().await.map(|permit| permit.forget()).map_err(Error::other) })
        .await?;
    Ok(())
}

/// A transaction of a user that asks once more, for less time, has the request locked until it ends: the end of the run, and the flush
/// that brings it with those of others, does not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_asked_for_once_more_in_an_open_transaction_keeps_no_run_from_its_end() {
    let db = harness::database().await;
    let gate = Arc::new(Semaphore::new(0));
    let _worker =
        ambo::Worker::builder(&db.client).workflow::<held>().state(gate.clone()).start().await.unwrap();
    let mut runs = Vec::new();
    for n in 0..3 {
        runs.push(held::enqueue(n).on(&db.client).await.unwrap().run);
    }
    db.until("select count(*) = 3 from ambo.claim").await;
    db.client.cancel(runs[0], "withdrawn").await.unwrap();
    let asking = harness::connect(&db.url).await;
    let again = format!("begin; select ambo.cancel_run('{}', null, '1 hour')", runs[0]);
    asking.batch_execute(&again).await.unwrap();
    gate.add_permits(3);
    db.until("select count(*) = 3 from ambo.outcome").await;
    asking.batch_execute("commit").await.unwrap();
}
