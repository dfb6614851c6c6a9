//! Code that changes under runs: patches, versions that runs are pinned to, histories that begin anew, their limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::admin::Filter;
use ambo::{Code, Ctx, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker, WorkerBuilder};
use serde::Serialize;

use crate::harness::{Database, database};

const PARKED: &str = "select count(*) = 1 from ambo.timer where attempt > 0";

async fn enqueue(db: &Database, workflow: &str, input: impl Serialize) -> RunId {
    Enqueue::named(workflow, &input).on(&db.client).await.unwrap().run
}

async fn result<T: serde::de::DeserializeOwned>(db: &Database, run: RunId) -> Result<T> {
    let handle = db.client.handle::<Untyped>(run);
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, handle.result_as::<T, Error>()).await.expect("an end").map_err(Error::from)
}

async fn note(cx: &mut Ctx<'_>, name: &'static str) -> Result<String> {
    Ok(cx.step(name, || async move { Ok::<_, Error>(name.to_owned()) }).await?)
}

fn worker(db: &Database) -> WorkerBuilder {
    Worker::builder(&db.client).park_after(Duration::from_millis(50))
}

async fn go(db: &Database, run: RunId) {
    SendSignal::new(run, "go", &()).on(&db.client).await.unwrap();
}

/// As it was at first.
async fn old(mut cx: Ctx<'_>, _: ()) -> Result<Vec<String>> {
    let mut notes = vec![note(&mut cx, "charge").await?];
    for _ in 0..2 {
        cx.signal::<()>("go").await?;
        notes.push(note(&mut cx, "ship").await?);
    }
    Ok(notes)
}

/// With a step more before each ship, and another thing beside it.
async fn new(mut cx: Ctx<'_>, _: ()) -> Result<Vec<String>> {
    let mut notes = vec![note(&mut cx, "charge").await?];
    for _ in 0..2 {
        cx.signal::<()>("go").await?;
        if cx.patched("check")? {
            notes.push(note(&mut cx, "check").await?);
        }
        if cx.patched("pack")? {
            notes.push(note(&mut cx, "pack").await?);
        }
        notes.push(note(&mut cx, "ship").await?);
    }
    Ok(notes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_holds_for_a_run_from_where_it_had_not_gone_on_without_it() {
    let db = database().await;
    let first = worker(&db).workflow_fn("w", old).start().await.unwrap();
    let run = enqueue(&db, "w", ()).await;
    go(&db, run).await;
    db.until("select count(*) = 1 from ambo.checkpoint where name = 'ship'").await;
    db.until(PARKED).await;
    first.drain(Duration::from_secs(5)).await;

    let second = worker(&db).workflow_fn("w", new).start().await.unwrap();
    go(&db, run).await;
    let kept = result::<Vec<String>>(&db, run).await.unwrap();
    assert_eq!(kept, ["charge", "ship", "check", "pack", "ship"], "the first round was shipped unchecked");

    // A run of the new code is replayed with the patches that it took, and without those that are gone from the code.
    let run = enqueue(&db, "w", ()).await;
    go(&db, run).await;
    db.until("select count(*) = 3 from ambo.checkpoint where name = 'ship'").await;
    db.until(PARKED).await;
    second.drain(Duration::from_secs(5)).await;
    async fn later(mut cx: Ctx<'_>, _: ()) -> Result<Vec<String>> {
        let mut notes = vec![note(&mut cx, "charge").await?];
        for _ in 0..2 {
            cx.signal::<()>("go").await?;
            notes.push(note(&mut cx, "check").await?);
            if cx.patched("pack")? {
                notes.push(note(&mut cx, "pack").await?);
            }
            notes.push(note(&mut cx, "ship").await?);
        }
        assert_eq!(cx.patched("").unwrap_err().code(), Code::InvalidName);
        assert_eq!(cx.patched(&"x".repeat(65536)).unwrap_err().code(), Code::InvalidName);
        Ok(notes)
    }
    let _third = worker(&db).workflow_fn("w", later).start().await.unwrap();
    go(&db, run).await;
    let kept = result::<Vec<String>>(&db, run).await.unwrap();
    assert_eq!(kept, ["charge", "check", "pack", "ship", "check", "pack", "ship"]);
}

/// Says which version ran each part of it.
fn versioned(version: &'static str) -> impl for<'r> ambo::WorkflowFn<'r, (), Output = Result<Vec<String>>> {
    Versioned(version)
}

struct Versioned(&'static str);

impl<'run> ambo::WorkflowFn<'run, ()> for Versioned {
    type Output = Result<Vec<String>>;
    type Future = futures_util::future::BoxFuture<'run, Self::Output>;

    fn call(&self, mut cx: Ctx<'run>, (): ()) -> Self::Future {
        let version = self.0;
        Box::pin(async move {
            let mut ran = Vec::new();
            for _ in 0..3 {
                ran.push(cx.step("part", || async move { Ok::<_, Error>(version.to_owned()) }).await?);
                cx.signal::<()>("go").await?;
            }
            Ok(ran)
        })
    }
}

fn pinned(db: &Database, version: &'static str) -> WorkerBuilder {
    worker(db).workflow_fn("w", versioned(version)).version(version).pinned()
}

async fn part(db: &Database, number: i64) {
    db.until(&format!("select count(*) = {number} from ambo.checkpoint where name = 'part'")).await;
    db.until(PARKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_run_goes_on_in_the_version_that_it_began_in() {
    let db = database().await;
    let one = pinned(&db, "1").start().await.unwrap();
    let run = enqueue(&db, "w", ()).await;
    part(&db, 1).await;
    let two = pinned(&db, "2").start().await.unwrap();
    // However often it is woken, and by whomever.
    go(&db, run).await;
    part(&db, 2).await;
    // A worker of the same version takes over; the other one, idle, does not. It knows nothing of the run's part.
    let heir = pinned(&db, "1").start().await.unwrap();
    one.drain(Duration::from_secs(5)).await;
    go(&db, run).await;
    part(&db, 3).await;
    go(&db, run).await;
    assert_eq!(result::<Vec<String>>(&db, run).await.unwrap(), ["1", "1", "1"]);
    assert_eq!(db.number("select count(*) from ambo.ready where not wakes").await, 0);
    drop((two, heir));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_run_waits_for_its_version_and_then_goes_to_any() {
    let db = database().await;
    let one = pinned(&db, "1").start().await.unwrap();
    let run = enqueue(&db, "w", ()).await;
    part(&db, 1).await;
    let _two = pinned(&db, "2").start().await.unwrap();
    one.drain(Duration::from_secs(5)).await;
    // Nobody of version 1 is left: for the grace it waits.
    go(&db, run).await;
    db.until("select count(*) = 1 from ambo.ready where not wakes and workflow like 'w%1%'").await;
    let signs = "select count(*) from ambo.vital_signs() where name = 'unserved_lane'";
    assert_eq!(db.number(signs).await, 0, "there are workers for the workflow");
    let pins = "select count(*) from ambo.vital_signs() where name = 'unserved_pin' and value = '[\"default\", \"w\", \"1\"]'";
    assert_eq!(db.number(pins).await, 1, "and none of that version");
    db.sql.batch_execute("update ambo.installation set pin_grace = '0'").await.unwrap();
    part(&db, 2).await;
    go(&db, run).await;
    part(&db, 3).await;
    go(&db, run).await;
    assert_eq!(result::<Vec<String>>(&db, run).await.unwrap(), ["1", "2", "2"]);
}

/// Has something to undo, and waits.
async fn undoable(mut cx: Ctx<'_>, _: ()) -> Result<()> {
    let undone = cx.state::<Arc<AtomicU32>>()?;
    note(&mut cx, "book").await?;
    cx.compensate("unbook", move |_| {
        let undone = undone.clone();
        async move {
            undone.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Error>(())
        }
    });
    cx.signal("go").await
}

/// Only the code of its version is sure to undo it, and nobody is to wait for that longer than was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_holds_for_a_pinned_run_of_whose_version_nobody_is_left() {
    let db = database().await;
    db.sql.batch_execute("update ambo.installation set pin_grace = '1 hour'").await.unwrap();
    let undone = Arc::new(AtomicU32::new(0));
    let pinned = |version| {
        worker(&db).workflow_fn("w", undoable).state(undone.clone()).version(version).pinned().start()
    };
    let one = pinned("1").await.unwrap();
    let run = enqueue(&db, "w", ()).await;
    let other = enqueue(&db, "w", ()).await;
    db.until("select count(*) = 2 from ambo.timer where attempt > 0").await;
    one.drain(Duration::from_secs(5)).await;
    let _two = pinned("2").await.unwrap();
    // The other one has no end to wait for, and waits for its version.
    db.client.cancel(other, "withdrawn").await.unwrap();
    db.client.cancel(run, ambo::Cancel::new("withdrawn").grace(Duration::from_millis(100))).await.unwrap();
    let error = result::<()>(&db, run).await.unwrap_err();
    assert_eq!(error.code(), Code::GraceOver);
    assert!(error.to_string().contains("version '1', to which the run is pinned"), "{error}");
    assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "dead");
    assert_eq!(undone.load(Ordering::SeqCst), 0);
    // Whoever has it run again has it undone, by any worker.
    db.client.retry(run).await.unwrap();
    let error = result::<()>(&db, run).await.unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
    assert!(error.to_string().contains("withdrawn"), "{error}");
    assert_eq!(
        (undone.load(Ordering::SeqCst), db.client.show_run(run).await.unwrap().summary.state),
        (1, "cancelled".into())
    );
    assert_eq!(
        db.number("select count(*) from ambo.ready where not wakes and workflow like 'w%1%'").await,
        1
    );
    let _one = pinned("1").await.unwrap();
    assert_eq!(result::<()>(&db, other).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(undone.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_need_a_version_and_names_without_their_mark() {
    let db = database().await;
    let error = worker(&db).workflow_fn("w", old).pinned().start().await.unwrap_err();
    assert_eq!(error.code(), Code::Configuration);
    let error = worker(&db).workflow_fn("w\u{1f}1", old).start().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidName);
    let error = Enqueue::<Untyped>::named("w\u{1f}1", &()).on(&db.client).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidName);
}

/// Adds up readings, and begins anew after each two.
async fn meter(mut cx: Ctx<'_>, mut total: u64) -> Result<u64> {
    let effects = cx.state::<Arc<AtomicU32>>()?;
    let mut keys = Vec::new();
    for _ in 0..2 {
        let reading = cx.signal::<u64>("reading").await?;
        if reading == 0 {
            return Ok(total);
        }
        let key =
            cx.step_with("add", |attempt| async move { Ok::<_, Error>(attempt.idempotency_key()) }).await?;
        effects.fetch_add(1, Ordering::SeqCst);
        keys.push(key);
        total += reading;
        cx.publish("total", &total)?;
    }
    cx.publish("keys", &keys)?;
    cx.continue_as_new(&total).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_continues_as_new_stays_small_and_loses_nothing() {
    let db = database().await;
    let effects = Arc::new(AtomicU32::new(0));
    let build = || worker(&db).workflow_fn("meter", meter).state(effects.clone());
    let mut present = build().start().await.unwrap();
    let run = enqueue(&db, "meter", 0).await;
    for reading in 1..=9u64 {
        SendSignal::new(run, "reading", &reading).key(format!("r{reading}")).on(&db.client).await.unwrap();
        if reading % 4 == 0 {
            // Across workers too.
            present.drain(Duration::from_secs(5)).await;
            present = build().start().await.unwrap();
        }
    }
    db.until("select count(*) = 9 from ambo.event where key = 'total'").await;
    let size = db.number("select count(*) from ambo.checkpoint").await;
    assert!(size < 12, "{size} checkpoints");
    // What was consumed before is not sent again.
    assert!(!SendSignal::new(run, "reading", &1u64).key("r1").on(&db.client).await.unwrap());
    SendSignal::new(run, "reading", &0u64).on(&db.client).await.unwrap();
    assert_eq!(result::<u64>(&db, run).await.unwrap(), 45);
    let totals = db.client.events::<u64>(run, "total", 0).await.unwrap();
    let totals: Vec<u64> = totals.into_iter().map(|(_, value)| value).collect();
    assert_eq!(totals, [1, 3, 6, 10, 15, 21, 28, 36, 45], "numbered on, each once");
    let keys = db.client.events::<Vec<String>>(run, "keys", 0).await.unwrap();
    let mut keys: Vec<String> = keys.into_iter().flat_map(|(_, value)| value).collect();
    assert_eq!(keys.len(), 8);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 8, "no position, and so no idempotency key, is used twice");
    drop(present);
}

/// Adds up readings, is parked after each, and begins anew when it has recorded enough.
async fn slow_meter(mut cx: Ctx<'_>, mut total: u64) -> Result<u64> {
    loop {
        let reading = cx.signal::<u64>("reading").await?;
        if reading == 0 {
            return Ok(total);
        }
        total += reading;
        cx.sleep(Duration::from_millis(40)).await?;
        if cx.history_len() >= 3 {
            return cx.continue_as_new(&total).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_finds_the_length_of_its_history_as_it_was() {
    let db = database().await;
    let build = || worker(&db).park_after(Duration::ZERO).workflow_fn("meter", slow_meter);
    let present = build().start().await.unwrap();
    let run = enqueue(&db, "meter", 0).await;
    for reading in [1, 2, 4, 8, 16, 32, 0u64] {
        SendSignal::new(run, "reading", &reading).on(&db.client).await.unwrap();
    }
    assert_eq!(result::<u64>(&db, run).await.unwrap(), 63, "no reading is lost");
    present.drain(Duration::from_secs(5)).await;
    let histories = db.client.histories(&Filter::default()).await.unwrap();
    assert_eq!(build().replay_check(histories).await.unwrap(), []);
}

/// Records for ever.
async fn endless(mut cx: Ctx<'_>, _: ()) -> Result<()> {
    loop {
        note(&mut cx, "again").await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_has_a_limit_and_can_go_on_above_it() {
    let db = database().await;
    let first = worker(&db).workflow_fn("endless", endless).history_limit(50).start().await.unwrap();
    let run = enqueue(&db, "endless", ()).await;
    let error = result::<()>(&db, run).await.unwrap_err();
    assert_eq!(error.code(), Code::HistoryLimit, "{error}");
    assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "dead");
    let recorded = db.number("select count(*) from ambo.checkpoint").await;
    assert!((50..60).contains(&recorded), "{recorded}");
    first.drain(Duration::from_secs(5)).await;
    async fn ends(mut cx: Ctx<'_>, _: ()) -> Result<usize> {
        while cx.history_len() < 100 {
            note(&mut cx, "again").await?;
        }
        Ok(cx.history_len())
    }
    let _second = worker(&db).workflow_fn("endless", ends).history_limit(1000).start().await.unwrap();
    db.client.retry(run).await.unwrap();
    assert!(result::<usize>(&db, run).await.unwrap() >= 100);
}
