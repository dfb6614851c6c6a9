//! Fork, rewind, and one act on many runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ambo::admin::{Act, Filter};
use ambo::{Code, Ctx, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker};

use crate::harness::{Database, database};

#[derive(Default, Clone)]
struct Done(Arc<Mutex<Vec<String>>>);

impl Done {
    fn note(&self, what: &str) -> Result<()> {
        self.0.lock().unwrap().push(what.to_owned());
        Ok(())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[ambo::workflow]
async fn leaf(cx: Ctx) -> Result<String> {
    let word: String = cx.signal("word").await?;
    Ok(word)
}

/// 1 step one, 2 published, 3 signal, 4 branch of two steps, 5 attribute, 6 step last.
#[ambo::workflow]
async fn story(cx: Ctx) -> Result<String> {
    let done = cx.state::<Done>()?;
    cx.step("one", async || done.note("one")).await?;
    cx.publish("said", &"one")?;
    let word: String = cx.signal("word").await?;
    let mut branch = cx.branch();
    branch.step("left", async || done.note("left")).await?;
    branch.step("right", async || done.note("right")).await?;
    cx.set_attribute("word", &word)?;
    cx.publish("said", &"two")?;
    cx.step("last", async || done.note("last")).await?;
    Ok(word)
}

async fn teller(db: &Database) -> (Worker, Done) {
    let done = Done::default();
    let builder = Worker::builder(&db.client).workflow::<story>().workflow::<leaf>().workflow::<fostering>();
    (builder.state(done.clone()).start().await.unwrap(), done)
}

async fn result(db: &Database, run: RunId) -> String {
    db.client.handle::<Untyped>(run).result_as::<String, Error>().await.expect("a result")
}

async fn told(db: &Database) -> RunId {
    let run = story::enqueue().on(&db.client).await.unwrap().run;
    SendSignal::new(run, "word", &"first").on(&db.client).await.unwrap();
    assert_eq!(result(db, run).await, "first");
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_keeps_what_came_before_and_does_the_rest() {
    let db = database().await;
    let (_worker, done) = teller(&db).await;
    let run = told(&db).await;
    done.take();
    let fork = db.client.fork(run, Some("4.2")).await.unwrap();
    assert_eq!(result(&db, fork).await, "first", "the consumed signal is in the record");
    assert_eq!(done.take(), ["right", "last"]);
    let published: Vec<(u32, String)> = db.client.events(fork, "said", 0).await.unwrap();
    assert_eq!(
        published,
        [(1, "one".to_owned()), (2, "two".to_owned())],
        "the stream of the fork has no gap"
    );
    let by_origin = serde_json::json!({ "forked_from": run, "word": "first" });
    let found =
        db.client.list_runs(&Filter { attributes: Some(by_origin), ..Filter::default() }).await.unwrap();
    assert_eq!(found.iter().map(|run| run.id).collect::<Vec<_>>(), [fork]);
    assert_eq!(result(&db, run).await, "first", "the other one stays as it was");

    let whole = db.client.fork(run, None).await.unwrap();
    assert_eq!(result(&db, whole).await, "first");
    assert_eq!(done.take(), Vec::<String>::new(), "all of it was recorded");
}

#[tokio::test]
async fn a_fork_that_takes_nothing_over_has_not_begun() {
    let db = database().await;
    let run = Enqueue::named("nobody", &1).on(&db.client).await.unwrap().run;
    db.client.cancel(run, "x").await.unwrap();
    let fork = db.client.fork(run, Some("1")).await.unwrap();
    db.client.cancel(fork, "y").await.unwrap();
    assert_eq!(db.client.show_run(fork).await.unwrap().summary.state, "cancelled");
    let reasons = db.client.why(fork).await.unwrap();
    assert_eq!(reasons[0].explanation, "it has ended: cancelled, AMBO025: cancelled: y");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewound_run_does_again_what_it_forgot() {
    let db = database().await;
    let (_worker, done) = teller(&db).await;
    let run = told(&db).await;
    assert_eq!(done.take(), ["one", "left", "right", "last"]);
    SendSignal::new(run, "word", &"second").on(&db.client).await.unwrap_err();
    db.client.rewind(run, "3").await.unwrap();
    assert_eq!(result_after(&db, run, 2).await, "first", "the signal was there to be consumed again");
    assert_eq!(done.take(), ["left", "right", "last"]);
    let published: Vec<(u32, String)> = db.client.events(run, "said", 0).await.unwrap();
    assert_eq!(published, [(1, "one".to_owned()), (2, "two".to_owned())], "published once each");
    let attribute = db.client.show_run(run).await.unwrap().summary.attributes.unwrap();
    assert_eq!(attribute.get(), r#"{"word": "first"}"#);
}

/// The result that was recorded under a claim of the run from the given one on.
async fn result_after(db: &Database, run: RunId, attempt: i32) -> String {
    db.until(&format!(
        "select exists (select from ambo.outcome where run_id = '{run}' and attempt >= {attempt})"
    ))
    .await;
    result(db, run).await
}

/// Starts a child after a step.
#[ambo::workflow]
async fn fostering(cx: Ctx) -> Result<String> {
    cx.step("before", || async { Ok::<_, Error>(()) }).await?;
    let child = cx.child::<leaf>(()).start()?;
    cx.publish("child", &child.run_id())?;
    Ok(cx.result_of(child).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_run_that_is_rewound_leaves_no_child_behind() {
    let db = database().await;
    let (_worker, _) = teller(&db).await;
    let run = fostering::enqueue().on(&db.client).await.unwrap().run;
    let handle = db.client.handle::<fostering>(run);
    let first: RunId = handle.event("child").await.unwrap();
    db.until(&format!("select exists (select from ambo.timer where run_id = '{run}' and attempt > 0)")).await;
    db.client.rewind(run, "2").await.unwrap();
    let second = loop {
        let child: RunId = handle.event("child").await.unwrap();
        if child != first {
            break child;
        }
    };
    let ended = db.client.handle::<leaf>(first).result().await.unwrap_err();
    assert!(ended.to_string().contains("AMBO025"), "{ended}");
    SendSignal::new(second, "word", &"grown").on(&db.client).await.unwrap();
    assert_eq!(result(&db, run).await, "grown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_forked_or_rewound_is_refused_and_stays() {
    let db = database().await;
    let run = story::enqueue().on(&db.client).await.unwrap().run;
    let code = |refused: Result<()>| refused.unwrap_err().code();
    assert_eq!(code(db.client.rewind(run, "1").await), Code::WrongState, "it has not begun");
    let none: RunId = "01a20a30-0ad4-79e9-9264-fe77f57dd4f6".parse().unwrap();
    assert_eq!(code(db.client.rewind(none, "1").await), Code::UnknownRun);
    assert_eq!(db.client.fork(none, None).await.unwrap_err().code(), Code::UnknownRun);
    let long = "1.".repeat(40_000) + "1";
    for wrong in ["", "0", "x", "1.", ".1", "-1", "1.0", "1 2", "99999999999", long.as_str()] {
        assert_eq!(code(db.client.rewind(run, wrong).await), Code::InvalidOption, "{wrong:.20}");
        assert_eq!(
            db.client.fork(run, Some(wrong)).await.unwrap_err().code(),
            Code::InvalidOption,
            "{wrong:.20}"
        );
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 1);
    assert_eq!(db.number("select count(*) from ambo.ready").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_act_on_many_is_done_to_each_by_itself() {
    let db = database().await;
    let mut runs = Vec::new();
    for n in 0..600 {
        runs.push(Enqueue::<Untyped>::named("nobody", &n).on(&db.client).await.unwrap().run);
    }
    let acted = db.client.act(&Act::Cancel("no longer needed".into()), &runs).await.unwrap();
    assert!(acted.iter().all(|acted| acted.answer == "cancelled" && acted.refused.is_none()));
    let ready = Enqueue::<Untyped>::named("nobody", &0).on(&db.client).await.unwrap().run;
    let acted = db.client.act(&Act::Retry, &[runs[0], ready, runs[1]]).await.unwrap();
    let refused: Vec<Option<&str>> = acted.iter().map(|acted| acted.refused.as_deref()).collect();
    assert_eq!(refused, [None, Some("AM034"), None], "one that refuses does not keep the others from it");
    assert_eq!(db.number("select count(*) from ambo.ready where not wakes").await, 3);
    let forks = db.client.act(&Act::Fork(None), &runs[..2]).await.unwrap();
    assert!(forks.iter().all(|fork| fork.answer.parse::<RunId>().is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_a_run_has_not_come_to_is_refused() {
    let db = database().await;
    let (_worker, done) = teller(&db).await;
    let run = told(&db).await;
    done.take();
    for (position, why) in [
        ("999", "its positions are 1 to 8"),
        ("9", "its positions are 1 to 8"),
        ("4.4", "its positions are 4.1 to 4.3"),
        ("5.1", "nothing is recorded in branch 5"),
        ("999.1", "nothing is recorded in branch 999"),
    ] {
        let forked = db.client.fork(run, Some(position)).await.map(drop);
        for refused in [db.client.rewind(run, position).await, forked] {
            let error = refused.expect_err(position);
            assert_eq!(error.code(), Code::InvalidOption);
            assert!(error.to_string().contains(why), "{position}: {error}");
        }
    }
    assert_eq!(result(&db, run).await, "first", "its end is not forgotten");
    assert_eq!(db.number("select count(*) from ambo.run").await, 1, "nothing was forked");
    // The next one that it would have recorded is one.
    let whole = db.client.fork(run, Some("8")).await.unwrap();
    assert_eq!(result(&db, whole).await, "first");
    let branch = db.client.fork(run, Some("4.3")).await.unwrap();
    assert_eq!(result(&db, branch).await, "first");
    assert_eq!(done.take(), ["last"]);

    // One that continued as new counts on, and what lay before is forgotten.
    let run = leaf::enqueue().on(&db.client).await.unwrap().run;
    db.sql
        .batch_execute(&format!(
            r#"insert into ambo.checkpoint (run_id, recorded_at, attempt, elapsed_ms, position, name, output)
               values ('{run}', now(), 1, 0, '0.0', 'ambo:continued', '{{"input": null, "from": 5, "times": 1, "published": {{}}}}')"#
        ))
        .await
        .unwrap();
    for position in ["5", "7"] {
        let error = db.client.fork(run, Some(position)).await.expect_err(position);
        assert!(error.to_string().contains("its positions are 6 to 6"), "{error}");
    }
    let forks =
        [db.client.fork(run, Some("6")).await.unwrap(), db.client.fork(run, Some("1")).await.unwrap()];
    for fork in forks {
        let steps = db.client.show_run(fork).await.unwrap().steps;
        assert_eq!(steps.len(), 1, "the input of the present history: {steps:?}");
    }
}

/// Continues as new once, and fails then, unless it is told otherwise.
#[ambo::workflow]
async fn sequel(cx: Ctx, volume: u32) -> Result<u32> {
    let fails = cx.state::<Arc<AtomicBool>>()?;
    cx.step("write", || async { Ok::<_, Error>(()) }).await?;
    cx.compensate("burn", |_| async { Ok::<_, Error>(()) });
    match volume {
        1 => cx.continue_as_new(&2).await,
        _ if fails.load(Ordering::SeqCst) => Err(Error::message("no ink")),
        _ => Ok(volume),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_continued_as_new_and_was_undone_begins_anew_with_its_present_history() {
    let db = database().await;
    let fails = Arc::new(AtomicBool::new(true));
    let worker = Worker::builder(&db.client).workflow::<sequel>().state(fails.clone());
    let _worker = worker.start().await.unwrap();
    let run = sequel::enqueue(1).on(&db.client).await.unwrap().run;
    let failed: Result<u32> = Ok(()).and(db.client.handle::<sequel>(run).result().await.map_err(Error::from));
    assert_eq!(failed.unwrap_err().code(), Code::Application);
    fails.store(false, Ordering::SeqCst);
    let refused = db.client.fork(run, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::WrongState, "behind something that was undone");
    let fork = db.client.fork(run, Some("1")).await.unwrap();
    assert_eq!(db.client.handle::<sequel>(fork).result().await.unwrap(), 2);
    let names: Vec<_> =
        db.client.show_run(fork).await.unwrap().steps.into_iter().map(|step| step.name).collect();
    assert_eq!(names, ["ambo:continued", "write"]);
}

/// Waits, behind a compensation, which records nothing where it is registered.
#[ambo::workflow]
async fn waiter(cx: Ctx, of: Option<RunId>) -> Result<()> {
    cx.step("book", || async { Ok::<_, Error>(()) }).await?;
    cx.compensate("unbook", |_| async { Ok::<_, Error>(()) });
    match of {
        Some(of) => cx.event(of, "status").await,
        None => cx.signal("go").await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_parked_run_waits_for_is_told_and_its_position_is_one_to_fork_and_rewind_at() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow::<waiter>().start().await.unwrap();
    let of = waiter::enqueue(None).on(&db.client).await.unwrap().run;
    let run = waiter::enqueue(Some(of)).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 2 from ambo.timer where attempt > 0").await;
    let why = async |run| db.client.why(run).await.unwrap().remove(0);
    let (signal, event) = (why(of).await, why(run).await);
    assert_eq!(signal.explanation, "it is parked and waits for the signal \"go\" at position 2");
    let awaited = format!("it is parked and waits for the event \"status\" of run {of} at position 2");
    assert_eq!((event.explanation, event.run), (awaited, Some(of)));
    let refused = db.client.fork(of, Some("3")).await.unwrap_err();
    assert!(refused.to_string().contains("its positions are 1 to 2"), "{refused}");
    let fork = db.client.fork(of, Some("2")).await.unwrap();
    db.client.rewind(of, "2").await.unwrap();
    for run in [fork, of] {
        ambo::SendSignal::new(run, "go", &()).on(&db.client).await.unwrap();
        db.client.handle::<waiter>(run).result().await.unwrap();
    }
    let ended = db.client.handle::<waiter>(run).result().await.unwrap_err();
    assert!(ended.to_string().contains("AMBO034"), "{ended}");
}
