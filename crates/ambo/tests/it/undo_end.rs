//! How a run ends that is undone: as it was when that began, with its reason, and what can be done with it then.

use std::sync::Arc;

use ambo::testing::Testbed;
use ambo::{Cancel, Code, Ctx, Error, Result, Retry, RunId};
use tokio::sync::Semaphore;

use crate::undo::{HOUR, Journal, ended, note, trip};

async fn state(bed: &Testbed, run: RunId) -> String {
    bed.client().show_run(run).await.unwrap().summary.state
}

async fn trips() -> (Testbed, Journal) {
    let (bed, journal) = (Testbed::new().await.unwrap(), Journal::default());
    let known = journal.clone();
    bed.start(move |worker| {
        let worker = worker.workflow::<trip>().workflow::<ends>().workflow::<parent>().workflow::<party>();
        worker.workflow::<outer>().workflow::<middle>().workflow::<stuck>().state(known.clone())
    })
    .await
    .unwrap();
    (bed, journal)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_a_cancel_is_in_the_error_of_the_run() {
    for crashes in [false, true] {
        let (bed, _journal) = trips().await;
        let run = trip::enqueue("waits".into()).on(bed.client()).await.unwrap().run;
        bed.settled().await.unwrap();
        if crashes {
            bed.crash_before("undo hotel");
        }
        bed.client().cancel(run, "fraud case 77").await.unwrap();
        if crashes {
            bed.crashed().await.unwrap();
            bed.restart().await.unwrap();
        }
        let error = ended(bed.client(), run).await.unwrap_err();
        assert_eq!(error.to_string(), "AMBO025: the run was cancelled: fraud case 77");
        assert!(!error.is_permanent(), "to whoever waits for it: {error:?}");
        assert_eq!(state(&bed, run).await, "cancelled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_a_cancel_outlives_its_grace() {
    let (bed, journal) = trips().await;
    let run = trip::enqueue("hangs".into()).on(bed.client()).await.unwrap().run;
    journal.until("begun").await;
    bed.client().cancel(run, Cancel::new("fraud case 77").grace(HOUR)).await.unwrap();
    bed.skip_at_once(HOUR).await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::GraceOver);
    for (act, answer) in [
        ("rewound", bed.client().rewind(run, "1").await),
        ("forked", bed.client().fork(run, Some("1")).await.map(drop)),
    ] {
        let refused = answer.unwrap_err();
        assert_eq!(refused.code(), Code::WrongState);
        assert!(
            refused.to_string().contains("a retry goes on with that") && refused.to_string().contains(act),
            "{refused}"
        );
    }
    bed.client().retry(run).await.unwrap();
    let error = ended(bed.client(), run).await.unwrap_err();
    assert_eq!(error.to_string(), "AMBO025: the run was cancelled: fraud case 77");
}

/// Ends as it is told, and undoes when it is let.
#[ambo::workflow]
async fn ends(cx: Ctx, how: String) -> Result<()> {
    let (journal, gate) = (cx.state::<Journal>()?, GATE.clone());
    cx.compensate_with("undo", Retry::none(), move |_| {
        let (journal, gate) = (journal.clone(), gate.clone());
        async move {
            journal.note("undoing");
            gate.acquire().await.expect("never closed").forget();
            journal.note("undone");
            Ok::<_, Error>(())
        }
    });
    match how.as_str() {
        "fails" => Err(Error::message("no money")),
        _ => cx.signal("never").await,
    }
}

static GATE: std::sync::LazyLock<Arc<Semaphore>> = std::sync::LazyLock::new(|| Arc::new(Semaphore::new(0)));

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_a_run_is_undone_does_not_change_how_it_ends() {
    for (how, code) in [("fails", Code::Application), ("takes too long", Code::RunTimeout)] {
        for crashes in [false, true] {
            let (bed, journal) = trips().await;
            let run = ends::enqueue(how.into()).timeout(HOUR).on(bed.client()).await.unwrap().run;
            if code == Code::RunTimeout {
                bed.settled().await.unwrap();
                bed.skip(HOUR).await.unwrap();
            }
            journal.until("undoing").await;
            bed.client().cancel(run, "enough").await.unwrap();
            if crashes {
                bed.crash_after("undo");
            }
            GATE.add_permits(1);
            if crashes {
                bed.crashed().await.unwrap();
                bed.restart().await.unwrap();
                GATE.add_permits(1);
            }
            let error = ended(bed.client(), run).await.unwrap_err();
            assert_eq!(error.code(), code, "{how}, crash {crashes}: {error}");
            assert_eq!(state(&bed, run).await, "failed", "{how}, crash {crashes}");
            assert_eq!(journal.all().last().unwrap(), "undone");
        }
    }
}

/// Waits for a child, and undoes when that fails.
#[ambo::workflow]
async fn parent(cx: Ctx) -> Result<u32> {
    let journal = cx.state::<Journal>()?;
    note(&mut cx, &journal, "parent").await?;
    let child = cx.child::<trip>("waits".into()).start()?;
    journal.note(child.run_id().to_string());
    Ok(cx.result_of(child).await?)
}

/// Starts three children, one of which it leaves alone, and fails with the first.
#[ambo::workflow]
async fn party(cx: Ctx, undoes: bool) -> Result<u32> {
    let journal = cx.state::<Journal>()?;
    if undoes {
        note(&mut cx, &journal, "party").await?;
    }
    let first = cx.child::<trip>("waits".into()).start()?;
    let second = cx.child::<trip>("waits".into()).start()?;
    let free = cx.child::<trip>("waits".into()).detached().start()?;
    cx.publish("children", &[first.run_id(), second.run_id(), free.run_id()])?;
    Ok(cx.result_of(first).await?)
}

/// Whether anything of it is undone decides: what nothing undoes may be retried, and finds its children as they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_children_of_a_failed_run_that_is_undone_are_undone_with_it() {
    for undoes in [true, false] {
        for crashes in [false, true] {
            let (bed, journal) = trips().await;
            let run = party::enqueue(undoes).on(bed.client()).await.unwrap().run;
            let children: [RunId; 3] = bed.client().handle::<party>(run).event("children").await.unwrap();
            bed.settled().await.unwrap();
            if crashes && undoes {
                bed.crash_before("undo party");
            }
            bed.client().cancel(children[0], "enough").await.unwrap();
            if crashes && undoes {
                bed.crashed().await.unwrap();
                bed.restart().await.unwrap();
            }
            let error = ended(bed.client(), run).await.unwrap_err();
            let named = format!("AMBO025: child run {}: the run was cancelled: enough", children[0]);
            assert_eq!((error.to_string(), &*state(&bed, run).await), (named, "failed"));
            if undoes {
                let error = ended(bed.client(), children[1]).await.unwrap_err();
                assert_eq!(
                    error.to_string(),
                    "AMBO025: the run was cancelled: its parent has failed and is being undone"
                );
                let undone = |what: &str| journal.all().iter().filter(|noted| *noted == what).count();
                assert_eq!((undone("undo flight"), undone("undo party")), (2, 1));
            }
            bed.settled().await.unwrap();
            let of_others = [state(&bed, children[1]).await, state(&bed, children[2]).await];
            assert_eq!(of_others, [if undoes { "cancelled" } else { "parked" }, "parked"]);
        }
    }
}

/// What its child is dead of: it has failed of that, and is undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_child_could_not_be_undone_says_that_it_was_the_child() {
    let (bed, journal) = trips().await;
    let run = outer::enqueue().on(bed.client()).await.unwrap().run;
    let error = ended(bed.client(), run).await.unwrap_err();
    let middle: RunId = journal.all().iter().find_map(|noted| noted.parse().ok()).expect("a child");
    let inner = bed
        .client()
        .list_runs(&ambo::admin::Filter { parent: Some(middle), ..Default::default() })
        .await
        .unwrap();
    assert_eq!((error.code(), inner[0].state.as_str()), (Code::NotCompensated, "dead"));
    assert!(error.to_string().starts_with(&format!("AMBO029: child run {}: ", inner[0].id)), "{error}");
    assert_eq!([state(&bed, run).await, state(&bed, middle).await], ["failed", "failed"]);
    assert!(journal.all().contains(&"undo outer".to_owned()));
}

#[ambo::workflow]
async fn outer(cx: Ctx) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    note(&mut cx, &journal, "outer").await?;
    let child = cx.child::<middle>(()).start()?;
    journal.note(child.run_id().to_string());
    Ok(cx.result_of(child).await?)
}

#[ambo::workflow]
async fn middle(cx: Ctx) -> Result<()> {
    let child = cx.child::<stuck>(()).start()?;
    Ok(cx.result_of(child).await?)
}

#[ambo::workflow]
async fn stuck(cx: Ctx) -> Result<()> {
    cx.step("book", || async { Ok::<_, Error>(()) }).await?;
    cx.compensate_with("unbook", Retry::none(), |_| async { Err::<(), _>(Error::message("no")) });
    Err(Error::message("no money"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_failed_because_its_child_was_cancelled_has_failed_also_after_a_crash() {
    let (bed, journal) = trips().await;
    let run = parent::enqueue().on(bed.client()).await.unwrap().run;
    bed.settled().await.unwrap();
    let child: RunId = journal.all().iter().find_map(|noted| noted.parse().ok()).expect("a child");
    bed.crash_before("undo parent");
    bed.client().cancel(child, "enough").await.unwrap();
    bed.crashed().await.unwrap();
    bed.restart().await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(state(&bed, run).await, "failed");
    assert_eq!(journal.all().last().unwrap(), "undo parent");
}
