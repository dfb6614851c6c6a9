//! What was done in branches that run side by side is undone also where one of them comes, in a replay, to a call that is
//! refused and does not wait, before the others have come through what they had recorded.

use std::time::Duration;

use ambo::testing::Testbed;
use ambo::{Code, Ctx, Error, Result, RunId, WorkerBuilder};

use crate::undo::{HOUR, Journal, ended, endless, note, trip};

/// Calls that do not wait.
const CALLS: [&str; 4] = ["publish", "attribute", "child", "continue"];

async fn call(cx: &mut Ctx<'_>, which: &str) -> Result<()> {
    match which {
        "publish" => cx.publish("status", &"booked"),
        "attribute" => cx.set_attribute("status", &"booked"),
        "child" => cx.child::<trip>("waits".into()).start().map(drop),
        _ => cx.continue_as_new(&("again", which)).await,
    }
}

/// Two branches; the one that is polled first comes to such a call, after a step that takes its time or after a sleep.
#[ambo::workflow]
async fn beside(cx: Ctx, (after, which): (String, String)) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    let (mut first, mut second, told) = (cx.branch(), cx.branch(), cx.branch());
    let one = async {
        note(&mut first, &journal, "flight").await?;
        if after == "step" {
            let slow = first.step("slow", || async {
                journal.note("slow");
                while !told.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok::<_, Error>(())
            });
            slow.await?;
        } else {
            first.sleep(HOUR).await?;
        }
        call(&mut first, &which).await?;
        if after == "sleep, and it is the last" {
            return Ok(());
        }
        first.signal::<()>("never").await
    };
    let other = async {
        note(&mut second, &journal, "hotel").await?;
        match after.as_str() {
            "step" => {
                let other = second.step("other", || endless(&journal)).cancel_at_once();
                other.await.map(drop).map_err(Into::into)
            }
            "sleep" => second.signal::<()>("never").await,
            _ => Ok(()),
        }
    };
    tokio::try_join!(one, other).map(drop)
}

fn staff(worker: WorkerBuilder, journal: &Journal) -> WorkerBuilder {
    worker.workflow::<beside>().workflow::<trip>().state(journal.clone())
}

/// Both were undone, and nothing is recorded of the call that was refused.
async fn assert_undone(bed: &Testbed, run: RunId, what: &str) {
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled, "{what}");
    let steps = bed.client().show_run(run).await.unwrap().steps;
    let steps: Vec<&str> = steps.iter().map(|step| &*step.name).collect();
    for undone in ["undo flight", "undo hotel"] {
        assert!(steps.contains(&undone), "{what}: no {undone}: {steps:?}");
    }
    let made = ["ambo:event ", "ambo:attribute ", "ambo:child "];
    let is_made = |name: &&str| made.iter().any(|made| name.starts_with(made));
    assert!(!steps.iter().any(is_made), "{what}: {steps:?}");
}

/// It is cancelled while both are in a step; the first one ends, and what comes after it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_two_branches_did_is_undone_after_a_crash_though_one_is_refused_at_once() {
    for which in CALLS {
        for crash in ["0", "undo hotel"] {
            let (bed, journal) = (Testbed::new().await.unwrap(), Journal::default());
            let known = journal.clone();
            bed.start(move |worker| staff(worker, &known)).await.unwrap();
            let run = beside::enqueue(("step".into(), which.into())).on(bed.client()).await.unwrap().run;
            journal.until("slow").await;
            journal.until("begun").await;
            bed.crash_after(crash);
            bed.client().cancel(run, "enough").await.unwrap();
            bed.crashed().await.unwrap();
            bed.restart().await.unwrap();
            assert_undone(&bed, run, &format!("{which}, {crash}")).await;
        }
    }
}

/// It is cancelled while it is parked, and its sleep is over when it is claimed.
#[tokio::test(flavor = "multi_thread")]
async fn what_two_branches_did_is_undone_though_the_sleep_of_one_is_over() {
    let after = ["sleep", "sleep, and it is the last"];
    for (after, which) in after.into_iter().flat_map(|after| CALLS.map(|which| (after, which))) {
        let (bed, journal) = (Testbed::new().await.unwrap(), Journal::default());
        let worker = staff(bed.worker(), &journal).start().await.unwrap();
        let run = beside::enqueue((after.into(), which.into())).on(bed.client()).await.unwrap().run;
        bed.settled().await.unwrap();
        worker.drain(Duration::ZERO).await;
        bed.client().cancel(run, "enough").await.unwrap();
        bed.skip_at_once(HOUR).await.unwrap();
        let _worker = staff(bed.worker(), &journal).start().await.unwrap();
        assert_undone(&bed, run, &format!("{after}, {which}")).await;
    }
}

/// Publishes for ever, with pauses of which the engine knows nothing. The loser of a race leaves a record that no replay comes by.
#[ambo::workflow]
async fn ticks(cx: Ctx) -> Result<()> {
    let (word, now) = (cx.signal::<()>("never").timeout(2 * HOUR), cx.sleep(Duration::ZERO));
    cx.select(word, now).await?;
    cx.sleep(HOUR).await?;
    loop {
        cx.publish("tick", &1)?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_calls_do_not_wait_hears_of_its_end_in_a_replay_too() {
    let bed = Testbed::new().await.unwrap();
    let worker = bed.worker().workflow::<ticks>().start().await.unwrap();
    let run = ticks::enqueue().on(bed.client()).await.unwrap().run;
    bed.settled().await.unwrap();
    worker.drain(Duration::ZERO).await;
    bed.client().cancel(run, "enough").await.unwrap();
    bed.skip_at_once(HOUR).await.unwrap();
    let _worker = bed.worker().workflow::<ticks>().start().await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
    let steps = bed.client().show_run(run).await.unwrap().steps;
    assert!(steps.iter().any(|step| step.name == "ambo:until"), "the record that is left over: {steps:?}");
}

/// Registers what undoes under a name of so many bytes, and fails.
#[ambo::workflow]
async fn misnamed(cx: Ctx, bytes: usize) -> Result<()> {
    cx.step("do", async || Ok::<_, Error>(())).await?;
    cx.compensate("u".repeat(bytes), |_| async { Ok::<_, Error>(()) });
    cx.step("fail", async || Err::<(), _>(Error::message("no"))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_whose_name_makes_no_sense_is_refused_where_it_is_registered() {
    let bed = Testbed::new().await.unwrap();
    bed.start(|worker| worker.workflow::<misnamed>()).await.unwrap();
    for (bytes, state, code) in
        [(200, "failed", Code::Application), (201, "dead", Code::InvalidName), (0, "dead", Code::InvalidName)]
    {
        let run = misnamed::enqueue(bytes).on(bed.client()).await.unwrap().run;
        let ended = bed.client().handle::<misnamed>(run).result().await.unwrap_err();
        assert_eq!(Error::from(ended).code(), code, "{bytes}");
        let shown = bed.client().show_run(run).await.unwrap();
        assert_eq!(shown.summary.state, state, "{bytes}");
        let steps: Vec<_> = shown.steps.iter().map(|step| step.name.len()).collect();
        assert_eq!(steps.contains(&4), state == "failed", "it went no further: {steps:?}");
    }
}
