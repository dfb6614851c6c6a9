//! What is sent to a run and does not fit the type that it waits for: nothing is lost of it, neither the run nor what was sent.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::admin::Filter;
use ambo::{Code, Ctx, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker};

use crate::harness::{Database, database};

async fn number(mut cx: Ctx<'_>, _: ()) -> Result<String> {
    Ok(cx.signal::<u32>("go").timeout(Duration::from_secs(3600)).await?.to_string())
}

/// [`number`], as it should have been.
async fn anything(mut cx: Ctx<'_>, _: ()) -> Result<String> {
    let heard = cx.signal::<serde_json::Value>("go").timeout(Duration::from_secs(3600)).await?;
    Ok(heard.to_string())
}

async fn ended(db: &Database, run: RunId) -> Result<String> {
    Ok(db.client.handle::<Untyped>(run).result_as::<String, Error>().await?)
}

async fn sent(db: &Database, payload: &impl serde::Serialize) -> RunId {
    let run = Enqueue::named("w", &()).on(&db.client).await.unwrap().run;
    SendSignal::new(run, "go", payload).on(&db.client).await.unwrap();
    run
}

/// What the code of `worker` does otherwise than all runs.
macro_rules! differences {
    ($db:expr, $worker:expr) => {{
        let histories = $db.client.histories(&Filter::default()).await.unwrap();
        $worker.replay_check(histories).await.unwrap()
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_failed_of_an_unfit_signal_takes_it_again_when_it_is_retried() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow_fn("w", number).start().await.unwrap();
    let run = sent(&db, &"twelve").await;
    let failed = ended(&db, run).await.unwrap_err();
    assert_eq!(failed.code(), Code::UnfitMessage);
    assert!(failed.to_string().contains("under \"go\" does not fit `u32`"), "{failed}");
    db.until("select count(*) = 1 from ambo.outcome where status = 'dead'").await;
    assert_eq!(differences!(db, Worker::builder(&db.client).workflow_fn("w", number)), []);
    db.client.retry(run).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::UnfitMessage, "it is still there");
    worker.drain(Duration::from_secs(5)).await;
    let _worker = Worker::builder(&db.client).workflow_fn("w", anything).start().await.unwrap();
    db.client.retry(run).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "\"twelve\"");
    assert_eq!(differences!(db, Worker::builder(&db.client).workflow_fn("w", anything)), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_signal_can_be_dropped_and_another_sent() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow_fn("w", number).start().await.unwrap();
    let run = sent(&db, &"twelve").await;
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::UnfitMessage);
    let seq = db.number("select seq from ambo.signal").await;
    let handle = db.client.handle::<Untyped>(run);
    let waiting = handle.list_signals().await.unwrap();
    assert_eq!(
        waiting.iter().map(|signal| signal.number).collect::<Vec<_>>(),
        [seq],
        "a retry takes it again"
    );
    assert_eq!(waiting[0].payload.as_ref().unwrap().get(), "\"twelve\"");
    assert!(!db.client.drop_signal(run, seq + 1).await.unwrap(), "there is no such signal");
    let other = sent(&db, &1).await;
    assert!(!db.client.drop_signal(other, seq).await.unwrap(), "it is another run's");
    assert!(db.client.drop_signal(run, seq).await.unwrap());
    assert!(handle.list_signals().await.unwrap().is_empty());
    db.client.retry(run).await.unwrap();
    SendSignal::new(run, "go", &12).on(&db.client).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "12");
    assert!(handle.list_signals().await.unwrap().is_empty(), "it is taken");
    let last = db.number("select max(seq) from ambo.signal").await;
    let taken = db.client.drop_signal(run, last).await;
    assert_eq!(taken.unwrap_err().code(), Code::WrongState);
}

/// [`number`], after something that is undone should it fail.
async fn pays(mut cx: Ctx<'_>, _: ()) -> Result<String> {
    let undone = cx.state::<Arc<AtomicU32>>()?;
    cx.step("pay", || async { Ok::<_, Error>(()) }).await?;
    cx.compensate("refund", move |_| {
        undone.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Error>(()) }
    });
    number(cx, ()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_signal_undoes_nothing() {
    let db = database().await;
    let undone = Arc::new(AtomicU32::new(0));
    let _worker =
        Worker::builder(&db.client).workflow_fn("w", pays).state(undone.clone()).start().await.unwrap();
    let run = sent(&db, &"twelve").await;
    for _ in 0..2 {
        assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::UnfitMessage);
        assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "dead");
        db.client.retry(run).await.unwrap();
    }
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::UnfitMessage);
    assert_eq!(undone.load(Ordering::SeqCst), 0);
    let seq = db.number("select seq from ambo.signal").await;
    assert!(db.client.drop_signal(run, seq).await.unwrap());
    db.client.retry(run).await.unwrap();
    SendSignal::new(run, "go", &12).on(&db.client).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "12");
    assert_eq!(undone.load(Ordering::SeqCst), 0);
}

/// Takes what fits, and says what it heard.
async fn patient<T: serde::de::DeserializeOwned + ToString + Send>(mut cx: Ctx<'_>) -> Result<String> {
    let mut heard = Vec::new();
    loop {
        match cx.signal::<T>("go").await {
            Ok(number) => heard.push(number.to_string()),
            Err(error) if error.code() == Code::UnfitMessage => heard.push("?".to_owned()),
            Err(error) => return Err(error),
        }
        if heard.len() == 3 {
            return Ok(heard.join(" "));
        }
        cx.step("heard", || async { Ok::<_, Error>(()) }).await?;
    }
}

async fn patient_number(cx: Ctx<'_>, _: ()) -> Result<String> {
    patient::<u32>(cx).await
}

async fn patient_anything(cx: Ctx<'_>, _: ()) -> Result<String> {
    patient::<serde_json::Value>(cx).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_on_after_an_unfit_signal_does_so_in_every_replay() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow_fn("w", patient_number).start().await.unwrap();
    let run = sent(&db, &"twelve").await;
    SendSignal::new(run, "go", &12).on(&db.client).await.unwrap();
    db.until("select count(*) = 4 from ambo.checkpoint").await;
    worker.drain(Duration::from_secs(5)).await;
    // To this code the first one fits; but the run has gone on without it.
    let _worker = Worker::builder(&db.client).workflow_fn("w", patient_anything).start().await.unwrap();
    // As deep as only SQL can send it.
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let id = run.to_string();
    db.sql
        .execute("select ambo.send_signal($1::text::uuid, 'go', $2::text::json)", &[&id, &deep])
        .await
        .unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "? 12 ?");
    assert_eq!(differences!(db, Worker::builder(&db.client).workflow_fn("w", patient_anything)), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_event_or_result_of_a_child_is_the_same_error_in_every_replay() {
    async fn child(mut cx: Ctx<'_>, _: ()) -> Result<String> {
        cx.publish("state", &"done")?;
        Ok("done".to_owned())
    }
    /// The child, as this parent believes it to be.
    #[ambo::workflow(name = "child")]
    async fn wrong(_cx: Ctx) -> Result<u32> {
        Ok(1)
    }
    async fn parent(mut cx: Ctx<'_>, _: ()) -> Result<String> {
        let child = cx.child::<wrong>(()).start()?;
        let event = cx.event::<u32>(child.run_id(), "state").await.unwrap_err();
        let result = cx.result_of(child).await.map_err(Error::from).unwrap_err();
        cx.signal::<u32>("go").await?;
        Ok(format!("{} {}", event.code(), result.code()))
    }
    let db = database().await;
    let build = || Worker::builder(&db.client).workflow_fn("child", child).workflow_fn("w", parent);
    let worker = build().start().await.unwrap();
    let run = Enqueue::named("w", &()).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 3 from ambo.checkpoint where name not like '%ambo:event%'").await;
    worker.drain(Duration::from_secs(5)).await;
    let _worker = build().start().await.unwrap();
    SendSignal::new(run, "go", &1).on(&db.client).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "AMBO028 AMBO028");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_json_cannot_hold_is_an_error_of_the_call_and_not_of_the_replay() {
    async fn measures(mut cx: Ctx<'_>, _: ()) -> Result<String> {
        let mean = cx.step("mean", || async { Ok::<_, Error>(0.0 / std::hint::black_box(0.0)) }).await;
        let none = cx.step("none", || async { Ok::<_, Error>(Some(None::<u32>)) }).await;
        let sent = cx.publish("mean", &f64::INFINITY);
        let errors = [mean.unwrap_err().to_string(), none.unwrap_err().to_string()];
        assert!(errors[0].contains("not finite") && errors[1].contains("`Some`"), "{errors:?}");
        Ok(format!("{} {} {}", &errors[0][..7], &errors[1][..7], sent.unwrap_err().code()))
    }
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow_fn("w", measures).start().await.unwrap();
    let run = Enqueue::named("w", &()).on(&db.client).await.unwrap().run;
    assert_eq!(ended(&db, run).await.unwrap(), "AMBO007 AMBO007 AMBO007");
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_have_a_limit_that_is_the_same_in_every_replay() {
    async fn many(mut cx: Ctx<'_>, _: ()) -> Result<String> {
        let mut set = 0;
        while cx.set_attribute(&format!("key {set}"), &"x".repeat(8000)).is_ok() {
            set += 1;
        }
        cx.signal::<u32>("go").await?;
        Ok(set.to_string())
    }
    let db = database().await;
    let build = || Worker::builder(&db.client).workflow_fn("w", many);
    let worker = build().start().await.unwrap();
    let run = Enqueue::named("w", &()).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 9 from ambo.checkpoint").await;
    worker.drain(Duration::from_secs(5)).await;
    let _worker = build().start().await.unwrap();
    SendSignal::new(run, "go", &1).on(&db.client).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "8");
}

/// How each start of three children was answered, by each execution that came to the step after them.
type Seen = Arc<Mutex<Vec<Vec<Option<Code>>>>>;

/// Starts three children, one of them in a queue that there is not.
async fn sends_away(mut cx: Ctx<'_>, heeds: bool) -> Result<String> {
    cx.step("before", || async { Ok::<_, Error>(1) }).await?;
    let mut started = Vec::new();
    for queue in ["default", "nowhere", "default"] {
        started.push(cx.child::<echo>(1).with(|child| child.queue(queue)).start());
    }
    let codes: Vec<_> = started.iter().map(|start| start.as_ref().err().map(Error::code)).collect();
    let seen = cx.state::<Seen>()?;
    cx.step("after", async || {
        seen.lock().unwrap().push(codes.clone());
        Ok::<_, Error>(())
    })
    .await?;
    let mut sum = 0;
    for start in started {
        match start {
            Ok(child) => sum += cx.result_of(child).await?,
            Err(error) if heeds => return Err(error),
            Err(_) => {}
        }
    }
    Ok(sum.to_string())
}

#[ambo::workflow]
async fn echo(_cx: Ctx, n: u32) -> Result<u32> {
    Ok(n)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_the_database_refuses_fails_its_call_and_nothing_behind_it_has_happened() {
    let db = database().await;
    let seen = Seen::default();
    let worker =
        Worker::builder(&db.client).workflow_fn("w", sends_away).workflow::<echo>().state(seen.clone());
    let _worker = worker.start().await.unwrap();
    let run = Enqueue::named("w", &false).on(&db.client).await.unwrap().run;
    assert_eq!(ended(&db, run).await.unwrap(), "2", "the run went on without it");
    // No effect came between the call and its refusal.
    assert_eq!(*seen.lock().unwrap(), [[None, Some(Code::UnknownQueue), None]]);
    assert_eq!(db.number("select count(*) from ambo.run where workflow = 'echo'").await, 2);
    let run = Enqueue::named("w", &true).on(&db.client).await.unwrap().run;
    let failed = ended(&db, run).await.unwrap_err();
    assert_eq!(failed.code(), Code::UnknownQueue);
    assert!(failed.to_string().contains("create_queue"), "{failed}");
    assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "failed");
    let same = Worker::builder(&db.client).workflow_fn("w", sends_away).workflow::<echo>().state(seen);
    assert_eq!(differences!(db, same), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_failed_of_a_refused_child_starts_it_when_it_is_retried() {
    async fn sends(mut cx: Ctx<'_>, _: ()) -> Result<String> {
        let child = cx.child::<echo>(7).with(|child| child.queue("late")).start()?;
        Ok(cx.result_of(child).await?.to_string())
    }
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow_fn("w", sends).start().await.unwrap();
    let run = Enqueue::named("w", &()).on(&db.client).await.unwrap().run;
    assert_eq!(ended(&db, run).await.unwrap_err().code(), Code::UnknownQueue);
    let _late = Worker::builder(&db.client).workflow::<echo>().queue("late").start().await.unwrap();
    db.client.retry(run).await.unwrap();
    assert_eq!(ended(&db, run).await.unwrap(), "7");
    drop(worker);
}
