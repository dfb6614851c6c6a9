//! Runs that are told to end: attempts that a cancel drops, and what is undone when it comes or when the time is up.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ambo::testing::Testbed;
use ambo::{Code, Ctx, Error, Node, Result, Retry, RunId, Untyped, Worker};
use tokio::sync::Semaphore;

use crate::harness::database;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// What was done, in its order; each entry can be waited for.
#[derive(Default, Clone)]
pub(crate) struct Journal(Arc<(Mutex<Vec<String>>, tokio::sync::Notify)>);

impl Journal {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.0.lock().unwrap().push(what.into());
        self.0.1.notify_waiters();
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    pub(crate) async fn until(&self, what: &str) {
        let noted = async {
            loop {
                let news = self.0.1.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if self.all().iter().any(|noted| noted == what) {
                    return;
                }
                news.await;
            }
        };
        let noted = tokio::time::timeout(Duration::from_secs(30), noted).await;
        noted.unwrap_or_else(|_| panic!("{what:?} did not come: {:?}", self.all()));
    }
}

/// Notes that a future was dropped before its end.
pub(crate) struct Dropped(pub(crate) Journal, pub(crate) &'static str);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}

/// Takes longer than anybody waits.
pub(crate) async fn endless(journal: &Journal) -> Result<u32> {
    let _dropped = Dropped(journal.clone(), "dropped");
    journal.note("begun");
    std::future::pending().await
}

#[ambo::step(cancel_at_once, retry = Retry::exponential())]
async fn hangs(journal: &Journal) -> Result<u32> {
    endless(journal).await
}

pub(crate) async fn ended(client: &ambo::Client, run: RunId) -> Result<serde_json::Value> {
    let handle = client.handle::<Untyped>(run);
    let limit = Duration::from_secs(30);
    Ok(tokio::time::timeout(limit, handle.result_as::<_, Error>()).await.expect("an end")?)
}

async fn steps(client: &ambo::Client, run: RunId) -> Vec<String> {
    client.show_run(run).await.unwrap().steps.into_iter().map(|step| step.name).collect()
}

pub(crate) async fn note(cx: &mut Ctx<'_>, journal: &Journal, what: &'static str) -> Result<()> {
    let (doing, undoing) = (journal.clone(), journal.clone());
    let done = cx.step(what, || {
        doing.note(what);
        async { Ok::<_, Error>(()) }
    });
    done.await?;
    cx.compensate_with(format!("undo {what}"), Retry::none(), move |_| {
        let journal = undoing.clone();
        async move {
            journal.note(format!("undo {what}"));
            Ok::<_, Error>(())
        }
    });
    Ok(())
}

/// Books two things and then does as it is told.
#[ambo::workflow]
pub(crate) async fn trip(cx: Ctx, then: String) -> Result<u32> {
    let journal = cx.state::<Journal>()?;
    note(&mut cx, &journal, "flight").await?;
    note(&mut cx, &journal, "hotel").await?;
    match then.as_str() {
        "hangs at once" => Ok(hangs::step(&mut cx, &journal).await?),
        "hangs" => Ok(cx.step("hangs", || endless(&journal)).await?),
        "hangs outside" => endless(&journal).await,
        "waits" => cx.signal("never").await,
        "pauses" => {
            let fails = cx.step("fails", || async {
                journal.note("failed");
                Err::<u32, _>(Error::message("no"))
            });
            Ok(fails.retry(Retry::fixed(10 * HOUR).max_attempts(2)).await?)
        }
        "blocks" => {
            let blocks = cx.step("blocks", || async {
                journal.note("begun");
                Ok::<_, Error>(u32::from(*GATE.1.wait_while(GATE.0.lock().unwrap(), |open| !*open).unwrap()))
            });
            Ok(blocks.await?)
        }
        "fails" => Err(Error::message("no money")),
        _ => Ok(1),
    }
}

/// What a body blocks its thread for.
static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_drops_the_attempt_of_a_step_that_allows_it_and_records_nothing_of_it() {
    let db = database().await;
    let journal = Journal::default();
    let worker = Worker::builder(&db.client).workflow::<trip>().state(journal.clone()).start().await.unwrap();
    let run = trip::enqueue("hangs at once".into()).on(&db.client).await.unwrap().run;
    journal.until("begun").await;
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(journal.all(), ["flight", "hotel", "begun", "dropped", "undo hotel", "undo flight"]);
    let recorded = steps(&db.client, run).await;
    assert_eq!(
        recorded,
        ["ambo:undo", "flight", "undo flight", "hotel", "undo hotel"],
        "nothing of the step"
    );
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_heard_without_its_notification() {
    let db = database().await;
    let journal = Journal::default();
    let worker = Worker::builder(&db.client).workflow::<trip>().state(journal.clone()).start().await.unwrap();
    let run = trip::enqueue("hangs at once".into()).on(&db.client).await.unwrap().run;
    journal.until("begun").await;
    db.sql
        .batch_execute(&format!("insert into ambo.cancel_request (run_id) values ('{run}')"))
        .await
        .unwrap();
    let asked = std::time::Instant::now();
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    worker.drain(Duration::ZERO).await;
}

/// A step that is finished and recorded beside a wait, which hears of the cancel after that.
#[ambo::workflow]
async fn finishes(cx: Ctx) -> Result<()> {
    let (journal, told) = (cx.state::<Journal>()?, cx.branch());
    let slow = cx.step("slow", async || {
        journal.note("begun");
        while !told.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        journal.note("finished");
        Ok::<_, Error>(())
    });
    let word = cx.signal::<()>("never");
    let heard = async {
        let word = word.await;
        journal.note("heard");
        word
    };
    let (slow, heard) = tokio::join!(slow, heard);
    slow?;
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_not_allow_it_is_finished_before_the_run_is_cancelled() {
    let db = database().await;
    let journal = Journal::default();
    let worker = Worker::builder(&db.client).workflow::<finishes>().state(journal.clone());
    let worker = worker.start().await.unwrap();
    let run = finishes::enqueue().on(&db.client).await.unwrap().run;
    journal.until("begun").await;
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(journal.all(), ["begun", "finished", "heard"]);
    assert_eq!(steps(&db.client, run).await, ["slow"]);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_pause_between_two_attempts() {
    let db = database().await;
    let journal = Journal::default();
    let worker = Worker::builder(&db.client).workflow::<trip>().state(journal.clone()).start().await.unwrap();
    let run = trip::enqueue("pauses".into()).on(&db.client).await.unwrap().run;
    journal.until("failed").await;
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(journal.all(), ["flight", "hotel", "failed", "undo hotel", "undo flight"]);
    assert!(!steps(&db.client, run).await.contains(&"fails".to_owned()));
    worker.drain(Duration::ZERO).await;
}

#[ambo::graph]
fn plan(graph: &mut ambo::Graph, input: Node<u32>) -> Node<u32> {
    let hangs = graph.step("hangs", input, |_| async { endless(&GRAPH_JOURNAL).await });
    graph.cancel_at_once(hangs);
    hangs
}

static GRAPH_JOURNAL: std::sync::LazyLock<Journal> = std::sync::LazyLock::new(Journal::default);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_graph_may_allow_it_too() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow::<plan>().start().await.unwrap();
    let run = plan::enqueue(1).on(&db.client).await.unwrap().run;
    GRAPH_JOURNAL.until("begun").await;
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(GRAPH_JOURNAL.all(), ["begun", "dropped"]);
    worker.drain(Duration::ZERO).await;
}

#[cfg(feature = "sqlx")]
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_step_that_allows_it_is_rolled_back_at_a_cancel() {
    let stage = crate::stage::Stage::set().await;
    let worker = stage.worker().workflow_fn("books", async |mut cx: Ctx<'_>, _: i64| -> Result<()> {
        let (pool, gate) = (cx.state::<sqlx::PgPool>()?, cx.state::<Arc<crate::stage::Gate>>()?);
        let book = cx.transaction("book").cancel_at_once().run(&*pool, async |mut tx| {
            sqlx::query("insert into effect (what) values ('book')").execute(&mut *tx).await?;
            gate.wait().await;
            Ok::<_, Error>(())
        });
        Ok(book.await?)
    });
    let worker = worker.start().await.unwrap();
    let run = stage.enqueue("books").await;
    stage.gate.reached().await;
    stage.db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(stage.end(run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!((stage.effects().await, stage.checkpoints().await), (0, 0));
    worker.drain(Duration::ZERO).await;
}

/// Two sequences beside each other; the one that is polled first only waits.
#[ambo::workflow]
async fn beside(cx: Ctx) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    let (mut first, mut second) = (cx.branch(), cx.branch());
    let first = async move { first.signal::<()>("never").await };
    let second = async move {
        note(&mut second, &journal, "flight").await?;
        note(&mut second, &journal, "hotel").await?;
        second.signal::<()>("never").await
    };
    tokio::try_join!(first, second).map(drop)
}

/// A parked run is rebuilt to hear that it is to end: not before every branch has come as far as it had.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_in_a_branch_is_undone_though_another_one_hears_of_the_end_first() {
    for is_cancelled in [true, false] {
        let bed = Testbed::new().await.unwrap();
        let journal = Journal::default();
        let known = journal.clone();
        bed.start(move |worker| worker.workflow::<beside>().state(known.clone())).await.unwrap();
        let run = beside::enqueue().timeout(HOUR).on(bed.client()).await.unwrap().run;
        bed.settled().await.unwrap();
        assert_eq!(bed.client().show_run(run).await.unwrap().summary.state, "parked");
        let code = if is_cancelled {
            bed.client().cancel(run, "enough").await.unwrap();
            Code::Cancelled
        } else {
            bed.skip(HOUR).await.unwrap();
            Code::RunTimeout
        };
        assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), code);
        assert_eq!(journal.all(), ["flight", "hotel", "undo hotel", "undo flight"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_time_is_up_undoes_what_it_did() {
    for (then, is_dropped) in [("waits", false), ("hangs", true), ("hangs outside", true), ("pauses", false)]
    {
        let bed = Testbed::new().await.unwrap();
        let journal = Journal::default();
        let known = journal.clone();
        bed.start(move |worker| worker.workflow::<trip>().state(known.clone())).await.unwrap();
        let run = trip::enqueue(then.into()).timeout(HOUR / 2).on(bed.client()).await.unwrap().run;
        match then {
            "waits" => bed.settled().await.unwrap(),
            "pauses" => journal.until("failed").await,
            _ => journal.until("begun").await,
        }
        bed.skip_at_once(HOUR / 2).await.unwrap();
        assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::RunTimeout, "{then}");
        let shown = bed.client().show_run(run).await.unwrap();
        assert_eq!(shown.summary.state, "failed", "{then}");
        let all = journal.all();
        assert_eq!(all[all.len() - 2..], ["undo hotel", "undo flight"], "{then}: {all:?}");
        assert_eq!(all.contains(&"dropped".to_owned()), is_dropped, "{then}: {all:?}");
        let again = bed.client().retry(run).await.unwrap_err();
        assert_eq!(again.code(), Code::WrongState, "what was undone cannot be retried");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ran_out_of_time_goes_on_undoing_after_a_crash() {
    for call in ["0", "undo hotel", "undo flight"] {
        let bed = Testbed::new().await.unwrap();
        let journal = Journal::default();
        let known = journal.clone();
        bed.start(move |worker| worker.workflow::<trip>().state(known.clone())).await.unwrap();
        let run = trip::enqueue("hangs".into()).timeout(HOUR).on(bed.client()).await.unwrap().run;
        journal.until("begun").await;
        bed.crash_after(call);
        bed.skip_at_once(HOUR).await.unwrap();
        bed.crashed().await.unwrap();
        bed.restart().await.unwrap();
        assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::RunTimeout, "{call}");
        let all = journal.all();
        let times = |what: &str| all.iter().filter(|noted| *noted == what).count();
        assert_eq!(times("begun"), 1, "{call}: the body did not go on: {all:?}");
        assert_eq!(times("undo hotel"), 1 + usize::from(call == "undo hotel"), "{call}: {all:?}");
        assert_eq!(times("undo flight"), 1 + usize::from(call == "undo flight"), "{call}: {all:?}");
        assert_eq!(all.last().unwrap(), "undo flight");
    }
}

/// Its worker is dead when its time is up: whoever claims it next undoes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_time_was_up_while_it_had_no_worker_is_undone_by_the_next() {
    let bed = Testbed::new().await.unwrap();
    let journal = Journal::default();
    let known = journal.clone();
    let worker = bed.worker().workflow::<trip>().state(journal.clone()).start().await.unwrap();
    let run = trip::enqueue("hangs".into()).timeout(HOUR).on(bed.client()).await.unwrap().run;
    journal.until("begun").await;
    bed.kill(worker).await.unwrap();
    bed.skip_at_once(HOUR).await.unwrap();
    bed.start(move |worker| worker.workflow::<trip>().state(known.clone())).await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::RunTimeout);
    let all = journal.all();
    assert_eq!(all.iter().filter(|noted| *noted == "begun").count(), 1, "{all:?}");
    assert_eq!(all[all.len() - 2..], ["undo hotel", "undo flight"], "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_run_that_blocks_its_thread_when_its_time_is_up_is_undone_beside_it() {
    let bed = Testbed::new().await.unwrap();
    let journal = Journal::default();
    let known = journal.clone();
    bed.start(move |worker| worker.workflow::<trip>().state(known.clone())).await.unwrap();
    let run = trip::enqueue("blocks".into()).timeout(HOUR).on(bed.client()).await.unwrap().run;
    journal.until("begun").await;
    bed.skip_at_once(HOUR).await.unwrap();
    let handle = bed.client().handle::<trip>(run);
    let ended = handle.result_within(Duration::from_secs(30)).await.map_err(Error::from);
    // Also before a panic: the runtime waits for its threads.
    *GATE.0.lock().unwrap() = true;
    GATE.1.notify_all();
    assert_eq!(ended.unwrap_err().code(), Code::RunTimeout);
    assert_eq!(journal.all(), ["flight", "hotel", "begun", "undo hotel", "undo flight"]);
    assert!(!steps(bed.client(), run).await.contains(&"blocks".to_owned()), "its result came too late");
    // The worker works on, also when the thread has come back.
    let next = trip::enqueue("well".into()).on(bed.client()).await.unwrap().run;
    assert_eq!(ended_well(&bed, next).await, 1);
}

async fn ended_well(bed: &Testbed, run: RunId) -> u32 {
    let handle = bed.client().handle::<trip>(run);
    handle.result_within(Duration::from_secs(30)).await.map_err(Error::from).unwrap()
}

/// Fails, and undoes it when it is let.
#[ambo::workflow]
async fn fails(cx: Ctx) -> Result<()> {
    let (journal, gate) = (cx.state::<Journal>()?, cx.state::<Arc<Semaphore>>()?);
    cx.compensate_with("undo", Retry::none(), move |_| {
        let (journal, gate) = (journal.clone(), gate.clone());
        async move {
            journal.note("begun");
            gate.acquire().await.expect("never closed").forget();
            journal.note("undone");
            Ok::<_, Error>(())
        }
    });
    Err(Error::message("no money"))
}

/// The time limit is that of the body: what undoes it is not cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_being_undone_has_no_time_limit() {
    let bed = Testbed::new().await.unwrap();
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let given = (journal.clone(), gate.clone());
    bed.start(move |worker| worker.workflow::<fails>().state(given.0.clone()).state(given.1.clone()))
        .await
        .unwrap();
    let run = fails::enqueue().timeout(HOUR).on(bed.client()).await.unwrap().run;
    journal.until("begun").await;
    bed.skip_at_once(2 * HOUR).await.unwrap();
    gate.add_permits(1);
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Application);
    assert_eq!(journal.all(), ["begun", "undone"]);
}
