//! A run that fails of what somebody has to mend elsewhere, in its child or in what another run published: nothing is undone, and it
//! goes on when that is mended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker, WorkerBuilder};

use crate::harness::{Database, database};

/// How often something was undone.
type Undone = Arc<AtomicU32>;

/// Waits for a number.
#[ambo::workflow]
async fn child(cx: Ctx) -> Result<u32> {
    cx.step("begin", || async { Ok::<_, Error>(()) }).await?;
    let number: u32 = cx.signal("go").await?;
    Ok(number)
}

/// [`child`], changed under running work.
#[ambo::workflow(name = "child")]
async fn changed_child(cx: Ctx) -> Result<u32> {
    cx.step("another call", || async { Ok::<_, Error>(()) }).await?;
    Ok(7)
}

async fn charge(cx: &mut Ctx<'_>) -> Result<()> {
    let undone = cx.state::<Undone>()?;
    cx.step("charge", || async { Ok::<_, Error>(()) }).await?;
    cx.compensate("refund", move |_| {
        undone.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Error>(()) }
    });
    Ok(())
}

#[ambo::workflow]
async fn parent(cx: Ctx) -> Result<u32> {
    charge(&mut cx).await?;
    let child = cx.child::<child>(()).start()?;
    let number = cx.result_of(child).await?;
    Ok(number)
}

#[ambo::workflow]
async fn grandparent(cx: Ctx) -> Result<u32> {
    charge(&mut cx).await?;
    let parent = cx.child::<parent>(()).start()?;
    let number = cx.result_of(parent).await?;
    Ok(number)
}

/// Makes an error of its own of what its child is dead of.
#[ambo::workflow]
async fn impatient(cx: Ctx) -> Result<u32> {
    charge(&mut cx).await?;
    let child = cx.child::<child>(()).start()?;
    cx.result_of(child).await.map_err(|error| Error::message(format!("no number: {error}")))
}

/// Waits beside what a child, or the event of another run, fails of.
#[ambo::workflow]
async fn busy(cx: Ctx, of: Option<RunId>) -> Result<u32> {
    charge(&mut cx).await?;
    let (mut failing, mut waiting) = (cx.branch(), cx.branch());
    let failed = async {
        match of {
            Some(of) => failing.event::<u32>(of, "number").await,
            None => {
                let child = failing.child::<child>(()).start()?;
                Ok(failing.result_of(child).await?)
            }
        }
    };
    let (failed, waited) = tokio::join!(failed, waiting.signal::<()>("go on"));
    waited?;
    failed
}

/// Waits for the number that the run of its input publishes.
#[ambo::workflow]
async fn reader(cx: Ctx, of: RunId) -> Result<u32> {
    charge(&mut cx).await?;
    let number: u32 = cx.event(of, "number").await?;
    Ok(number)
}

/// Publishes whatever it is sent.
#[ambo::workflow]
async fn writer(cx: Ctx) -> Result<()> {
    loop {
        let value: serde_json::Value = cx.signal("publish").await?;
        cx.publish("number", &value)?;
    }
}

fn build(db: &Database, undone: &Undone) -> WorkerBuilder {
    Worker::builder(&db.client)
        .workflow::<parent>()
        .workflow::<grandparent>()
        .workflow::<impatient>()
        .workflow::<busy>()
        .workflow::<reader>()
        .workflow::<writer>()
        .state(undone.clone())
}

async fn enqueue(db: &Database, workflow: &str) -> RunId {
    Enqueue::named(workflow, &()).on(&db.client).await.unwrap().run
}

async fn ended(db: &Database, run: RunId) -> Result<u32> {
    Ok(db.client.handle::<Untyped>(run).result_as::<u32, Error>().await?)
}

async fn state(db: &Database, run: RunId) -> String {
    db.client.show_run(run).await.unwrap().summary.state
}

/// The run of a workflow of which there is one.
async fn of(db: &Database, workflow: &str) -> RunId {
    db.until(&format!("select count(*) = 1 from ambo.run where workflow = '{workflow}'")).await;
    let id =
        db.sql.query_one("select id::text from ambo.run where workflow = $1", &[&workflow]).await.unwrap();
    id.get::<_, &str>(0).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_dead_of_an_unfit_signal_undoes_none_of_its_parents() {
    let (db, undone) = (database().await, Undone::default());
    let _worker = build(&db, &undone).workflow::<child>().start().await.unwrap();
    let top = enqueue(&db, "grandparent").await;
    let (middle, leaf) = (of(&db, "parent").await, of(&db, "child").await);
    SendSignal::new(leaf, "go", &"twelve").on(&db.client).await.unwrap();
    // The second time the parents are replayed.
    for _ in 0..2 {
        assert_eq!(ended(&db, top).await.unwrap_err().code(), Code::UnfitMessage);
        for run in [leaf, middle, top] {
            assert_eq!(state(&db, run).await, "dead");
        }
        db.client.retry(middle).await.unwrap();
        db.client.retry(top).await.unwrap();
    }
    assert_eq!(ended(&db, top).await.unwrap_err().code(), Code::UnfitMessage);
    let seq = db.number("select seq from ambo.signal").await;
    assert!(db.client.drop_signal(leaf, seq).await.unwrap());
    for run in [leaf, middle, top] {
        db.client.retry(run).await.unwrap();
    }
    SendSignal::new(leaf, "go", &12).on(&db.client).await.unwrap();
    assert_eq!(ended(&db, top).await.unwrap(), 12);
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_was_deployed_wrongly_undoes_none_of_its_parents() {
    let (db, undone) = (database().await, Undone::default());
    let worker = build(&db, &undone).workflow::<child>().start().await.unwrap();
    let top = enqueue(&db, "parent").await;
    let leaf = of(&db, "child").await;
    db.until("select count(*) = 1 from ambo.checkpoint where name = 'begin'").await;
    worker.drain(Duration::from_secs(5)).await;
    let worker = build(&db, &undone).workflow::<changed_child>().start().await.unwrap();
    SendSignal::new(leaf, "go", &12).on(&db.client).await.unwrap();
    let error = ended(&db, top).await.unwrap_err();
    worker.drain(Duration::from_secs(5)).await;
    assert_eq!(error.code(), Code::NonDeterminism, "{error}");
    for run in [leaf, top] {
        assert_eq!(state(&db, run).await, "dead");
    }
    let _worker = build(&db, &undone).workflow::<child>().start().await.unwrap();
    db.client.retry(leaf).await.unwrap();
    db.client.retry(top).await.unwrap();
    assert_eq!(ended(&db, top).await.unwrap(), 12);
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_makes_another_error_of_it_has_failed_as_by_any() {
    let (db, undone) = (database().await, Undone::default());
    let _worker = build(&db, &undone).workflow::<child>().start().await.unwrap();
    let run = enqueue(&db, "impatient").await;
    SendSignal::new(of(&db, "child").await, "go", &"twelve").on(&db.client).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::Application);
    assert_eq!(state(&db, run).await, "failed");
    assert_eq!(undone.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_event_undoes_nothing_and_another_one_is_read_after_a_retry() {
    let (db, undone) = (database().await, Undone::default());
    let _worker = build(&db, &undone).start().await.unwrap();
    let source = enqueue(&db, "writer").await;
    let run = Enqueue::named("reader", &source).on(&db.client).await.unwrap().run;
    SendSignal::new(source, "publish", &"twelve").on(&db.client).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::NotDecodable);
    assert_eq!(state(&db, run).await, "dead");
    SendSignal::new(source, "publish", &12).on(&db.client).await.unwrap();
    db.until("select count(*) = 2 from ambo.event").await;
    db.client.retry(run).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), 12);
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lacks_a_state_undoes_nothing() {
    #[ambo::workflow]
    async fn asks(cx: Ctx) -> Result<u32> {
        charge(&mut cx).await?;
        Ok(*cx.state::<u32>()?)
    }
    let (db, undone) = (database().await, Undone::default());
    let worker = build(&db, &undone).workflow::<asks>().start().await.unwrap();
    let run = enqueue(&db, "asks").await;
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::Configuration);
    assert_eq!(state(&db, run).await, "dead");
    worker.drain(Duration::from_secs(5)).await;
    let _worker = build(&db, &undone).workflow::<asks>().state(7u32).start().await.unwrap();
    db.client.retry(run).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), 7);
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_mended_is_known_in_a_replay() {
    let (db, undone) = (database().await, Undone::default());
    let worker = build(&db, &undone).workflow::<child>().start().await.unwrap();
    let source = enqueue(&db, "writer").await;
    let mut runs = Vec::new();
    for of in [None, Some(source)] {
        runs.push(Enqueue::named("busy", &of).on(&db.client).await.unwrap().run);
    }
    SendSignal::new(of(&db, "child").await, "go", &"twelve").on(&db.client).await.unwrap();
    SendSignal::new(source, "publish", &"twelve").on(&db.client).await.unwrap();
    db.until(
        "select count(*) = 2 from ambo.checkpoint c join ambo.run r on r.id = c.run_id
         where r.workflow = 'busy' and c.error is not null",
    )
    .await;
    worker.drain(Duration::from_secs(5)).await;
    let _worker = build(&db, &undone).workflow::<child>().start().await.unwrap();
    for (run, code) in runs.into_iter().zip([Code::UnfitMessage, Code::NotDecodable]) {
        SendSignal::new(run, "go on", &()).on(&db.client).await.unwrap();
        assert_eq!(ended(&db, run).await.unwrap_err().code(), code);
        assert_eq!(state(&db, run).await, "dead");
    }
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}
