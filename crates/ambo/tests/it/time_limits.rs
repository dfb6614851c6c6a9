//! Time limits of runs: inherited by children, and enforced where nobody listens.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use ambo::testing::Testbed;
use ambo::{Code, Ctx, Error, Result, SendSignal};

const HOUR: Duration = Duration::from_secs(3600);

/// Starts another like it that has a longer limit of its own, one that is detached, and waits for both for ever.
#[ambo::workflow]
async fn generation(cx: Ctx, depth: u32) -> Result<u32> {
    if depth > 0 {
        let child = cx.child::<generation>(depth - 1).with(|run| run.timeout(100 * HOUR)).start()?;
        cx.child::<detached>(()).detached().with(|run| run.timeout(100 * HOUR)).start()?;
        return Ok(cx.result_of(child).await?);
    }
    cx.signal("never").await
}

#[ambo::workflow]
async fn detached(cx: Ctx, _: ()) -> Result<u32> {
    cx.signal("never").await
}

#[tokio::test(flavor = "multi_thread")]
async fn children_end_by_the_deadline_of_their_parent() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<generation>().workflow::<detached>()).await.unwrap();
    let run = generation::enqueue(2).timeout(10 * HOUR).on(bed.client()).await.unwrap().run;
    bed.skip(9 * HOUR).await.unwrap();
    bed.settled().await.unwrap();
    let all = bed.enqueued::<generation>().await.unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.iter().any(|one| one.run == run));
    for one in &all {
        assert_eq!(bed.client().show_run(one.run).await.unwrap().summary.state, "parked");
    }
    bed.skip(HOUR).await.unwrap();
    for one in &all {
        let ended = bed.client().handle::<generation>(one.run).result().await;
        assert_eq!(Error::from(ended.unwrap_err()).code(), Code::RunTimeout);
    }
    bed.settled().await.unwrap();
    let alone = bed.enqueued::<detached>().await.unwrap();
    assert_eq!(alone.len(), 2);
    for one in alone {
        assert_eq!(
            bed.client().show_run(one.run).await.unwrap().summary.state,
            "parked",
            "it has its own limit"
        );
    }
}

/// Waits for a word in its own time.
#[ambo::workflow]
async fn patient(cx: Ctx, _: ()) -> Result<String> {
    cx.signal("word").await
}

/// Its child inherits its deadline.
#[ambo::workflow]
async fn mother(cx: Ctx, _: ()) -> Result<String> {
    let child = cx.child::<patient>(()).start()?;
    let heard = cx.result_of(child).await;
    Ok(heard?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_run_whose_time_was_up_begins_its_span_anew() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<patient>()).await.unwrap();
    let run = patient::enqueue(()).timeout(10 * HOUR).on(bed.client()).await.unwrap().run;
    bed.skip(11 * HOUR).await.unwrap();
    let handle = bed.client().handle::<patient>(run);
    assert_eq!(Error::from(handle.result().await.unwrap_err()).code(), Code::RunTimeout);
    bed.client().retry(run).await.unwrap();
    bed.skip(9 * HOUR).await.unwrap();
    bed.settled().await.unwrap();
    assert_eq!(bed.client().show_run(run).await.unwrap().summary.state, "parked", "it has ten hours again");
    bed.skip(2 * HOUR).await.unwrap();
    assert_eq!(Error::from(handle.result().await.unwrap_err()).code(), Code::RunTimeout);
    bed.client().retry(run).await.unwrap();
    SendSignal::new(run, "word", &"at last").on(bed.client()).await.unwrap();
    assert_eq!(handle.result().await.unwrap(), "at last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_whose_time_was_up_goes_on_when_the_child_is_retried_and_then_its_parent() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<patient>().workflow::<mother>()).await.unwrap();
    let run = mother::enqueue(()).timeout(10 * HOUR).on(bed.client()).await.unwrap().run;
    let handle = bed.client().handle::<mother>(run);
    bed.settled().await.unwrap();
    let child = bed.enqueued::<patient>().await.unwrap()[0].run;
    bed.skip(11 * HOUR).await.unwrap();
    assert_eq!(Error::from(handle.result().await.unwrap_err()).code(), Code::RunTimeout);
    let ended = bed.client().handle::<patient>(child).result().await;
    assert_eq!(Error::from(ended.unwrap_err()).code(), Code::RunTimeout);
    // The child was its parent's to limit, and has no limit of its own.
    bed.client().retry(child).await.unwrap();
    bed.skip(9 * HOUR).await.unwrap();
    bed.client().retry(run).await.unwrap();
    bed.skip(9 * HOUR).await.unwrap();
    bed.settled().await.unwrap();
    assert_eq!(bed.client().show_run(child).await.unwrap().summary.state, "parked");
    SendSignal::new(child, "word", &"at last").on(bed.client()).await.unwrap();
    assert_eq!(handle.result().await.unwrap(), "at last");
}

/// What the body below waits for, on its thread.
static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

#[ambo::workflow]
async fn blocks(cx: Ctx, _: ()) -> Result<u32> {
    cx.step("blocks", || async {
        let open = GATE.1.wait_while(GATE.0.lock().unwrap(), |open| !*open).unwrap();
        Ok::<_, ambo::Error>(u32::from(*open))
    })
    .await
    .map_err(Into::into)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_timeout_of_a_run_ends_it_though_its_body_blocks_its_thread() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<blocks>()).await.unwrap();
    let run = blocks::enqueue(()).timeout(Duration::from_millis(500)).on(bed.client()).await.unwrap().run;
    let handle = bed.client().handle::<blocks>(run);
    let ended = handle.result_within(Duration::from_secs(30)).await.map_err(Error::from);
    // Also before a panic: the runtime waits for its threads.
    *GATE.0.lock().unwrap() = true;
    GATE.1.notify_all();
    assert_eq!(ended.unwrap_err().code(), Code::RunTimeout);
    // It comes back with a result, which is too late, and the worker works on.
    let next = blocks::enqueue(()).on(bed.client()).await.unwrap().run;
    assert_eq!(bed.client().handle::<blocks>(next).result().await.unwrap(), 1);
    let steps = bed.client().show_run(run).await.unwrap();
    assert_eq!((&*steps.summary.state, steps.steps.len()), ("failed", 0));
}
