//! The replay check: what it finds, what it lets pass, and that it does nothing to the world.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::admin::Filter;
use ambo::replay_check::{Difference, History};
use ambo::{
    Client, Code, Ctx, Either, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker, WorkerBuilder,
};

use crate::child::Child;
use crate::harness::{Database, database};
use crate::workflows::Ledger;

static EFFECTS: AtomicU32 = AtomicU32::new(0);

async fn effect(cx: &mut Ctx<'_>, name: &'static str) -> Result<u32> {
    let called = cx.step(name, || async { Ok::<_, Error>(EFFECTS.fetch_add(1, Ordering::SeqCst)) });
    called.await?;
    Ok(1)
}

/// Everything that a run can do, and then it waits for a signal, if it is told to.
async fn all(mut cx: Ctx<'_>, waits: bool) -> Result<u32> {
    let mut sum = effect(&mut cx, "one").await?;
    cx.now()?;
    cx.publish("state", &"begun")?;
    cx.set_attribute("state", &"begun")?;
    let (mut left, mut right) = (cx.branch(), cx.branch());
    let left = async move { effect(&mut left, "left").await };
    let right = async move {
        effect(&mut right, "right one").await?;
        effect(&mut right, "right two").await
    };
    let (left, right) = tokio::join!(left, right);
    sum += left? + right?;
    cx.sleep(Duration::from_millis(5)).await?;
    if waits {
        let (sleep, signal) = (cx.sleep(Duration::from_secs(3600)), cx.signal::<u32>("go"));
        match cx.select(sleep, signal).await?.1 {
            Either::Left(slept) => slept?,
            Either::Right(heard) => sum += heard?,
        }
    }
    sum += effect(&mut cx, "last").await?;
    Ok(sum)
}

fn old(client: &Client) -> WorkerBuilder {
    Worker::builder(client).park_after(Duration::from_millis(20)).workflow_fn("w", all)
}

/// Two runs: one that has ended, one that waits.
async fn recorded(db: &Database) -> [RunId; 2] {
    let worker = old(&db.client).start().await.unwrap();
    let mut runs = Vec::new();
    for waits in [false, true] {
        runs.push(Enqueue::<Untyped>::named("w", &waits).on(&db.client).await.unwrap().run);
    }
    let ended = db.client.handle::<Untyped>(runs[0]).result_as::<u32, Error>().await.unwrap();
    assert_eq!(ended, 4);
    db.until("select count(*) = 1 from ambo.timer where attempt > 0").await;
    worker.drain(Duration::from_secs(5)).await;
    [runs[0], runs[1]]
}

async fn check(db: &Database, builder: WorkerBuilder) -> Vec<Difference> {
    let histories = db.client.histories(&Filter::default()).await.unwrap();
    assert_eq!(histories.len(), 2);
    builder.replay_check(histories).await.unwrap()
}

/// What the check of a changed body finds, for the run that waits and for the one that has ended.
macro_rules! differences {
    ($db:expr, $body:expr) => {{
        let found = check(&$db, Worker::builder(&$db.client).workflow_fn("w", $body)).await;
        let found: Vec<(RunId, String)> = found.into_iter().map(|found| (found.run, found.text)).collect();
        found
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_does_the_same_passes_and_nothing_is_done() {
    let db = database().await;
    let [_, waiting] = recorded(&db).await;
    let effects = EFFECTS.load(Ordering::SeqCst);
    let rows = "select (select count(*) from ambo.checkpoint) * 1000 + (select count(*) from ambo.event)";
    let before = db.number(rows).await;
    assert_eq!(check(&db, old(&db.client)).await, []);
    assert_eq!(EFFECTS.load(Ordering::SeqCst), effects, "no step was executed");
    assert_eq!(db.number(rows).await, before, "nothing was written");
    // After a race the losers' records are left; that is no difference.
    let _worker = old(&db.client).start().await.unwrap();
    SendSignal::new(waiting, "go", &10u32).on(&db.client).await.unwrap();
    assert_eq!(db.client.handle::<Untyped>(waiting).result_as::<u32, Error>().await.unwrap(), 14);
    assert_eq!(check(&db, old(&db.client)).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_difference_is_found() {
    let db = database().await;
    let [ended, waiting] = recorded(&db).await;

    async fn renamed(mut cx: Ctx<'_>, _: bool) -> Result<u32> {
        effect(&mut cx, "first").await
    }
    let found = differences!(db, renamed);
    assert_eq!(found.iter().map(|found| found.0).collect::<Vec<_>>(), [waiting, ended]);
    assert!(found[0].1.starts_with("position 1 ") && found[0].1.contains("\"first\""), "{found:?}");

    async fn shorter(mut cx: Ctx<'_>, _: bool) -> Result<u32> {
        effect(&mut cx, "one").await
    }
    let found = differences!(db, shorter);
    assert!(found[1].1.contains("\"ambo:now\" is recorded at position 2"), "{found:?}");

    async fn longer(mut cx: Ctx<'_>, waits: bool) -> Result<u32> {
        let sum = all(reborrow(&mut cx), waits).await?;
        effect(&mut cx, "more").await?;
        Ok(sum)
    }
    fn reborrow<'a>(cx: &mut Ctx<'a>) -> Ctx<'a> {
        cx.branch()
    }
    let found = differences!(db, longer);
    assert_eq!(found.len(), 2, "all calls have moved into a branch: {found:?}");

    async fn other_result(cx: Ctx<'_>, waits: bool) -> Result<u32> {
        Ok(all(cx, waits).await? + 1)
    }
    let found = differences!(db, other_result);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].0, found[0].1.as_str()),
        (ended, "the code returns another result than the run did")
    );

    async fn fails(cx: Ctx<'_>, waits: bool) -> Result<u32> {
        all(cx, waits).await?;
        panic!("no more")
    }
    let found = differences!(db, fails);
    assert_eq!(found, [(ended, "the run had succeeded, and the code fails: AMBO022".to_owned())]);

    async fn waits(mut cx: Ctx<'_>, waits: bool) -> Result<u32> {
        if waits {
            return all(cx, waits).await;
        }
        effect(&mut cx, "one").await?;
        cx.now()?;
        std::future::pending().await
    }
    let found = differences!(db, waits);
    assert!(found.len() == 1 && found[0].0 == ended && found[0].1.contains("does not call it"), "{found:?}");

    async fn patched(mut cx: Ctx<'_>, _: bool) -> Result<u32> {
        effect(&mut cx, "one").await?;
        if cx.patched("new")? {
            effect(&mut cx, "new").await?;
        }
        cx.now()?;
        std::future::pending().await
    }
    let found = differences!(db, patched);
    assert!(found.iter().all(|found| !found.1.contains("\"new\"")), "a patch is no difference: {found:?}");

    let unknown = Worker::builder(&db.client).workflow_fn("other", all);
    assert!(check(&db, unknown).await[0].text.contains("no workflow of this name"));
}

/// Something else than its code ended the run that waits: the code would go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_its_code_did_not_end_is_no_difference() {
    let db = database().await;
    let [_, waiting] = recorded(&db).await;
    db.sql.batch_execute("delete from ambo.timer").await.unwrap();
    let end = "insert into ambo.outcome (run_id, attempt, status, error) values ($1, 1, 'dead', json_build_object('code', $2::text, 'message', ''))";
    for code in ["AMBO024", "AMBO025", "AMBO026", "AMBO029", "AMBO031", "AMBO032", "AMBO036", "AMBO039"] {
        db.sql.execute(end, &[&waiting.as_uuid(), &code]).await.unwrap();
        assert_eq!(check(&db, old(&db.client)).await, [], "{code}");
        db.sql.execute("delete from ambo.outcome where run_id = $1", &[&waiting.as_uuid()]).await.unwrap();
    }
    db.sql.execute(end, &[&waiting.as_uuid(), &"AMBO027"]).await.unwrap();
    assert_eq!(check(&db, old(&db.client)).await.len(), 1, "and one that it did is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_may_be_kept_as_a_file() {
    let db = database().await;
    let [ended, _] = recorded(&db).await;
    let kept = serde_json::to_string(&db.client.show_run(ended).await.unwrap()).unwrap();
    let found = old(&db.client).replay_check([History::from_json(&kept).unwrap()]).await.unwrap();
    assert_eq!(found, []);
    for bad in ["", "{}", "[1]", "\u{0}"] {
        let error = History::from_json(bad).unwrap_err();
        assert_eq!(error.code(), ambo::Code::NotDecodable, "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_made_no_sense_and_makes_none_is_no_difference() {
    async fn names(mut cx: Ctx<'_>, length: usize) -> Result<()> {
        cx.compensate("n".repeat(length), |_| async { Ok::<_, Error>(()) });
        Ok(cx.step("one", || async { Ok::<_, Error>(()) }).await?)
    }
    async fn longer(cx: Ctx<'_>, length: usize) -> Result<()> {
        names(cx, length + 200).await
    }
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow_fn("names", names).start().await.unwrap();
    for length in [201, 200] {
        Enqueue::<Untyped>::named("names", &length).on(&db.client).await.unwrap();
    }
    db.until("select count(distinct status) = 2 from ambo.outcome where status in ('dead', 'succeeded')")
        .await;
    worker.drain(Duration::from_secs(5)).await;
    let same = Worker::builder(&db.client).workflow_fn("names", names);
    assert_eq!(check(&db, same).await, []);
    let other = Worker::builder(&db.client).workflow_fn("names", longer);
    assert_eq!(check(&db, other).await.len(), 1, "where it ended well");
}

#[ambo::workflow]
async fn unwanted(_cx: Ctx<'_>, _: String) -> Result<u32> {
    Ok(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_was_refused_or_is_gone_is_no_difference() {
    async fn starts(mut cx: Ctx<'_>, how: String) -> Result<()> {
        let input = if how == "large" { "x".repeat(3 << 20) } else { String::new() };
        let start = cx.child::<unwanted>(input).with(|child| match how.as_str() {
            "key" => child.key("k"),
            "late" => child.start_within(Duration::from_secs(1)),
            "long" => child.delay(Duration::from_secs(1_000_000_000)),
            _ => child,
        });
        let child = match start.start() {
            Err(_) => return Ok(()),
            Ok(child) => child,
        };
        cx.signal::<u32>("go").await?;
        let gone = cx.result_of(child).await.unwrap_err();
        assert_eq!(Error::from(gone).code(), Code::UnknownRun);
        Ok(())
    }
    let db = database().await;
    let builder = || Worker::builder(&db.client).workflow_fn("starts", starts);
    let worker = builder().start().await.unwrap();
    let mut runs = Vec::new();
    for how in ["key", "late", "long", "large", "gone"] {
        runs.push(Enqueue::<Untyped>::named("starts", &how).on(&db.client).await.unwrap().run);
    }
    db.until("select exists (select from ambo.ready where workflow = 'unwanted')").await;
    db.sql
        .batch_execute("delete from ambo.ready where workflow = 'unwanted'; delete from ambo.run where workflow = 'unwanted'")
        .await
        .unwrap();
    SendSignal::new(runs[4], "go", &1).on(&db.client).await.unwrap();
    for run in runs {
        db.client.handle::<Untyped>(run).result_as::<(), Error>().await.unwrap();
    }
    worker.drain(Duration::from_secs(5)).await;
    let histories = db.client.histories(&Filter::default()).await.unwrap();
    assert_eq!(histories.len(), 5);
    assert_eq!(builder().replay_check(histories).await.unwrap(), []);
}

/// What the code may ask of its run is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn code_that_goes_by_its_key_queue_and_tick_is_no_difference() {
    async fn goes_by(mut cx: Ctx<'_>, _: ()) -> Result<String> {
        let tick = cx.scheduled_at().map_or_else(String::new, |tick| tick.to_string());
        let place = if cx.queue() == "gold" { "gold" } else { "plain" };
        effect(&mut cx, place).await?;
        if cx.key() == Some("waits") {
            cx.signal::<u32>("go").await?;
        }
        Ok(tick)
    }
    let db = database().await;
    let builder =
        || Worker::builder(&db.client).queue("default").queue("gold").workflow_fn("goes by", goes_by);
    let worker = builder().start().await.unwrap();
    let named = || Enqueue::<Untyped>::named("goes by", &());
    let keyed = [named().key("gold@2026-11-20T03:30:00Z").queue("gold"), named().key("waits")];
    let enqueues = keyed.into_iter().chain([named().queue("gold"), named()]);
    let runs: Vec<RunId> =
        ambo::enqueue_all(&db.client, enqueues).await.unwrap().into_iter().map(|one| one.run).collect();
    for run in runs.iter().filter(|run| **run != runs[1]) {
        db.client.handle::<Untyped>(*run).result_as::<String, Error>().await.unwrap();
    }
    db.until("select count(*) = 4 from ambo.checkpoint").await;
    worker.drain(Duration::from_secs(5)).await;
    let histories = db.client.histories(&Filter::default()).await.unwrap();
    assert_eq!(histories.len(), 4);
    assert_eq!(builder().replay_check(histories).await.unwrap(), []);
    let mut files = Vec::new();
    for run in runs {
        let kept = serde_json::to_string(&db.client.show_run(run).await.unwrap()).unwrap();
        files.push(History::from_json(&kept).unwrap());
    }
    assert_eq!(builder().replay_check(files).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_checks_when_it_is_asked_to() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let (mut worker, _) = Child::worker(&db.url, &[]).await;
    let run: RunId = Enqueue::<Untyped>::named("short", &1).on(&db.client).await.unwrap().run;
    db.client.handle::<Untyped>(run).result_as::<u32, Error>().await.unwrap();
    worker.kill().await;
    let ask = r#"{"workflow": null, "state": null, "limit": 10}"#;
    let mut checker = Child::start("worker", &db.url, &[("AMBO_REPLAY_CHECK", ask)]);
    assert!(checker.ended().await.success(), "no difference, and it does not work");
    db.sql.batch_execute("update ambo.checkpoint set name = 'another'").await.unwrap();
    let mut checker = Child::start("worker", &db.url, &[("AMBO_REPLAY_CHECK", ask)]);
    assert_eq!(checker.ended().await.code(), Some(1));
}

/// A run that a transaction ended has no record of it but its end.
#[cfg(feature = "sqlx")]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_its_last_transaction_ended_is_no_difference() {
    async fn credits(mut cx: Ctx<'_>, _: ()) -> Result<i32> {
        let pool = cx.state::<sqlx::PgPool>()?;
        effect(&mut cx, "one").await?;
        let done = cx.complete_in(&*pool, async |_tx| Ok::<_, Error>(7));
        Ok(done.await?)
    }
    async fn credits_late(mut cx: Ctx<'_>, _: ()) -> Result<i32> {
        cx.now()?;
        credits(cx, ()).await
    }
    let db = database().await;
    let pool = crate::stage::pool(&db.url).await;
    let worker = Worker::builder(&db.client).state(pool.clone()).workflow_fn("w", credits);
    let worker = worker.start().await.unwrap();
    let run = Enqueue::<Untyped>::named("w", &()).on(&db.client).await.unwrap().run;
    assert_eq!(db.client.handle::<Untyped>(run).result_as::<i32, Error>().await.unwrap(), 7);
    worker.drain(Duration::from_secs(5)).await;
    let histories = async || db.client.histories(&Filter::default()).await.unwrap();
    let same = Worker::builder(&db.client).state(pool.clone()).workflow_fn("w", credits);
    assert_eq!(same.replay_check(histories().await).await.unwrap(), []);
    let other = Worker::builder(&db.client).state(pool).workflow_fn("w", credits_late);
    let found = other.replay_check(histories().await).await.unwrap();
    assert!(found.len() == 1 && found[0].text.contains("\"ambo:now\""), "{found:?}");
}
