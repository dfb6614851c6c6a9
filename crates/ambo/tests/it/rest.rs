//! Replays: whatever comes from the record at once, the body goes the way that it went, what was done is undone, and code that
//! does not go that way is found out and loses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::testing::Testbed;
use ambo::{Code, Ctx, Either, Error, Graph, Node, Result, Retry, RunId, SendSignal, WorkerBuilder};

use crate::undo::{HOUR, Journal, ended, endless, note, trip};

/// A test's world: what was done, and what the code is told to do.
async fn bed(
    build: impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static,
) -> (Testbed, Journal, Arc<AtomicU32>) {
    let (bed, journal, told) =
        (Testbed::new().await.unwrap(), Journal::default(), Arc::new(AtomicU32::new(0)));
    let (known, tells) = (journal.clone(), told.clone());
    bed.start(move |worker| build(worker).state(known.clone()).state(tells.clone())).await.unwrap();
    (bed, journal, told)
}

fn count(journal: &Journal, what: &str) -> usize {
    journal.all().iter().filter(|noted| *noted == what).count()
}

async fn signal(bed: &Testbed, run: RunId) {
    SendSignal::new(run, "go", &()).on(bed.client()).await.unwrap();
}

/// Two branches; one fails when the other has done something and is in a step that takes its time.
async fn join(cx: &mut Ctx<'_>, how: &str) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    let (mut first, mut second) = (cx.branch(), cx.branch());
    let fails = async {
        note(&mut first, &journal, "flight").await?;
        let taxi = first.step("taxi", || async {
            journal.until("begun").await;
            Err::<(), _>(Error::message("no taxi"))
        });
        Ok::<_, Error>(taxi.await?)
    };
    let other = async {
        note(&mut second, &journal, "hotel").await?;
        second.step("more", || endless(&journal)).await?;
        Ok(())
    };
    let joined = tokio::try_join!(fails, other).map(drop);
    if how == "parks" && joined.is_err() {
        cx.signal::<()>("go").await?;
    }
    joined
}

#[ambo::workflow]
async fn joins(cx: Ctx, how: String) -> Result<()> {
    join(&mut cx, &how).await
}

#[ambo::workflow(retry = Retry::fixed(Duration::ZERO).max_attempts(2))]
async fn joins_twice(cx: Ctx, how: String) -> Result<()> {
    join(&mut cx, &how).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_branch_did_is_undone_though_the_other_fails_at_once_in_a_replay() {
    for how in ["crashes", "parks", "is tried again"] {
        let (bed, journal, _) = bed(|worker| worker.workflow::<joins>().workflow::<joins_twice>()).await;
        if how == "crashes" {
            // By then it is durable what failed, and that it is being undone.
            bed.crash_before("undo hotel");
        }
        let run = match how {
            "is tried again" => joins_twice::enqueue(how.into()).on(bed.client()).await.unwrap().run,
            _ => joins::enqueue(how.into()).on(bed.client()).await.unwrap().run,
        };
        match how {
            "crashes" => {
                bed.crashed().await.unwrap();
                bed.restart().await.unwrap();
            }
            "parks" => {
                journal.until("begun").await;
                bed.settled().await.unwrap();
                signal(&bed, run).await;
            }
            _ => {}
        }
        ended(bed.client(), run).await.unwrap_err();
        for undone in ["undo flight", "undo hotel"] {
            assert_eq!(count(&journal, undone), 1, "{how}: {:?}", journal.all());
        }
        // What had been dropped beside the failure is not begun only to be dropped again.
        let begun = if how == "is tried again" { 1..=2 } else { 1..=1 };
        assert!(begun.contains(&count(&journal, "begun")), "{how}: {:?}", journal.all());
    }
}

/// The loser of a race has done something.
#[ambo::workflow]
async fn loses(cx: Ctx, how: String) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    let (mut first, mut second) = (cx.branch(), cx.branch());
    let loser = async {
        note(&mut first, &journal, "book").await?;
        journal.note("booked");
        Ok::<_, Error>(first.step("more", || endless(&journal)).await?)
    };
    let winner = async {
        journal.until("begun").await;
        second.step("win", || async { Ok::<_, Error>(()) }).await
    };
    let (_, won) = cx.select(loser, winner).await?;
    assert!(matches!(won, Either::Right(Ok(()))));
    if how == "parks" {
        cx.signal::<()>("go").await?;
    }
    // Before it begins it is durable who won.
    cx.step("then", || async { Ok::<_, Error>(()) }).await?;
    Err(Error::message("told to"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_loser_of_a_race_did_is_undone_also_after_a_replay() {
    for how in ["at once", "crashes", "parks"] {
        let (bed, journal, _) = bed(WorkerBuilder::workflow::<loses>).await;
        if how == "crashes" {
            bed.crash_before("undo book");
        }
        let run = loses::enqueue(how.into()).on(bed.client()).await.unwrap().run;
        if how == "crashes" {
            bed.crashed().await.unwrap();
            bed.restart().await.unwrap();
        } else if how == "parks" {
            journal.until("begun").await;
            bed.settled().await.unwrap();
            signal(&bed, run).await;
        }
        ended(bed.client(), run).await.unwrap_err();
        assert_eq!(count(&journal, "undo book"), 1, "{how}: {:?}", journal.all());
        assert_eq!(count(&journal, "begun"), 1, "{how}: the loser went further: {:?}", journal.all());
    }
}

/// A failure that the code goes on after. Told 1, it does not; told 2, it asks for a state that nobody gave.
#[ambo::workflow]
async fn pays(cx: Ctx, _input: ()) -> Result<u32> {
    let (journal, told) = (cx.state::<Journal>()?, cx.state::<Arc<AtomicU32>>()?);
    let card = cx.step("card", || async {
        journal.note("card");
        Err::<(), _>(Error::message("declined"))
    });
    let card = card.await;
    match told.load(Ordering::SeqCst) {
        1 => card?,
        2 => drop(cx.state::<String>()?),
        _ => {}
    }
    cx.step("invoice", || async { Ok::<_, Error>(()) }).await?;
    cx.signal::<()>("go").await?;
    Ok(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_ends_early_forgets_no_failure_that_was_gone_on_after() {
    for (wrong, code) in [(1, Code::NonDeterminism), (2, Code::Configuration)] {
        let (bed, journal, told) = bed(WorkerBuilder::workflow::<pays>).await;
        let run = pays::enqueue(()).on(bed.client()).await.unwrap().run;
        bed.settled().await.unwrap();
        told.store(wrong, Ordering::SeqCst);
        signal(&bed, run).await;
        assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), code);
        told.store(0, Ordering::SeqCst);
        bed.client().retry(run).await.unwrap();
        assert_eq!(ended(bed.client(), run).await.unwrap(), 1);
        assert_eq!(count(&journal, "card"), 1, "{:?}", journal.all());
    }
}

/// Continues as new after so many readings as it is told, and five at least; waits after the fifth.
#[ambo::workflow]
async fn meters(cx: Ctx, before: u32) -> Result<u32> {
    let (journal, told) = (cx.state::<Journal>()?, cx.state::<Arc<AtomicU32>>()?);
    for n in 1..=5 {
        let reading = cx.step("read", || async {
            journal.note("read");
            Ok::<_, Error>(())
        });
        reading.await?;
        if n == told.load(Ordering::SeqCst) {
            return cx.continue_as_new(&(before + n)).await;
        }
    }
    cx.signal::<()>("go").await?;
    Ok(before + 5)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_does_not_continue_as_new_before_all_that_it_had_recorded() {
    let (bed, journal, told) = bed(WorkerBuilder::workflow::<meters>).await;
    let run = meters::enqueue(0).on(bed.client()).await.unwrap().run;
    bed.settled().await.unwrap();
    told.store(3, Ordering::SeqCst);
    signal(&bed, run).await;
    let error = ended(bed.client(), run).await.unwrap_err();
    assert_eq!(error.code(), Code::NonDeterminism);
    assert!(error.to_string().contains("position 4"), "{error}");
    told.store(0, Ordering::SeqCst);
    bed.client().retry(run).await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap(), 5);
    assert_eq!(count(&journal, "read"), 5);
}

/// Looks at the clock when it is told to end.
#[ambo::workflow]
async fn looks(cx: Ctx, _input: ()) -> Result<u32> {
    match cx.signal::<()>("go").await {
        Ok(()) => Ok(1),
        Err(error) => {
            cx.now()?;
            Err(error)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_drawn_while_a_run_ends_is_not_in_the_way_of_a_retry() {
    let (bed, ..) = bed(WorkerBuilder::workflow::<looks>).await;
    let run = looks::enqueue(()).on(bed.client()).await.unwrap().run;
    bed.settled().await.unwrap();
    bed.client().cancel(run, "").await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
    bed.client().retry(run).await.unwrap();
    signal(&bed, run).await;
    assert_eq!(ended(bed.client(), run).await.unwrap(), 1);
}

/// The top is one of two sequences, and the other fails twice.
#[ambo::workflow(retry = Retry::fixed(Duration::ZERO).max_attempts(3))]
async fn checks(cx: Ctx, _input: ()) -> Result<u32> {
    let (journal, tries) = (cx.state::<Journal>()?, cx.state::<Arc<AtomicU32>>()?);
    let mut side = cx.branch();
    let check = async {
        let check = side.step("check", || async {
            journal.until("packed").await;
            if tries.fetch_add(1, Ordering::SeqCst) < 2 { Err(Error::message("not yet")) } else { Ok(()) }
        });
        Ok::<_, Error>(check.await?)
    };
    let pack = async {
        cx.step("reserve", || async { Ok::<_, Error>(()) }).await?;
        cx.step("pack", || async { Ok::<_, Error>(()) }).await?;
        journal.note("packed");
        cx.signal::<()>("go").await
    };
    tokio::try_join!(check, pack)?;
    Ok(tries.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_fails_at_once_beside_what_is_recorded_is_tried_again() {
    let (bed, ..) = bed(WorkerBuilder::workflow::<checks>).await;
    let run = checks::enqueue(()).on(bed.client()).await.unwrap().run;
    signal(&bed, run).await;
    assert_eq!(ended(bed.client(), run).await.unwrap(), 3);
}

#[ambo::workflow]
async fn starts_and_continues(cx: Ctx, times: u32) -> Result<u32> {
    if times > 0 {
        return Ok(times);
    }
    let child = cx.child::<trip>("waits".into()).with(|child| child.queue("nowhere")).detached();
    child.start()?;
    cx.continue_as_new(&(times + 1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_refused_is_not_lost_to_a_run_that_continues_as_new() {
    let (bed, ..) = bed(|worker| worker.workflow::<starts_and_continues>().workflow::<trip>()).await;
    let run = starts_and_continues::enqueue(0).on(bed.client()).await.unwrap().run;
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::UnknownQueue);
}

/// Asks by itself whether it was cancelled.
#[ambo::workflow]
async fn asks(cx: Ctx, _input: ()) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    loop {
        if cx.is_cancelled() {
            return Err(Error::message("it was cancelled"));
        }
        note(&mut cx, &journal, "page").await?;
        cx.sleep(HOUR).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_asks_whether_it_was_cancelled_is_undone_after_a_replay_too() {
    let (bed, journal, _) = bed(WorkerBuilder::workflow::<asks>).await;
    let run = asks::enqueue(()).on(bed.client()).await.unwrap().run;
    bed.skip(HOUR).await.unwrap();
    bed.settled().await.unwrap();
    assert_eq!(count(&journal, "page"), 2);
    bed.client().cancel(run, "").await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(count(&journal, "undo page"), 2, "{:?}", journal.all());
}

/// Whether it was paid: that it was not is no failure.
async fn pay(mut cx: Ctx<'_>, _input: ()) -> Result<bool> {
    let journal = cx.state::<Journal>()?;
    let card = cx.step("card", || async {
        journal.note("card");
        Err::<(), _>(Error::message("declined"))
    });
    Ok(card.await.is_ok())
}

static MAILS: AtomicU32 = AtomicU32::new(0);

#[ambo::graph]
fn ordered(graph: &mut Graph, input: Node<()>) -> Node<bool> {
    let paid = graph.sequence("pay", input, pay);
    graph.step("mail", paid, |paid| async move {
        if MAILS.fetch_add(1, Ordering::SeqCst) == 0 { Err(Error::message("not now")) } else { Ok(paid) }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_forgets_no_failure_that_a_node_has_gone_on_after() {
    let (bed, journal, _) = bed(WorkerBuilder::workflow::<ordered>).await;
    let run = ordered::enqueue(()).on(bed.client()).await.unwrap().run;
    ended(bed.client(), run).await.unwrap_err();
    bed.client().retry(run).await.unwrap();
    assert_eq!(ended(bed.client(), run).await.unwrap(), false);
    assert_eq!(count(&journal, "card"), 1, "{:?}", journal.all());
}
