//! What runs when a cancel comes is finished first, whatever hears of the cancel beside it; and code that hears of it and goes
//! on to a result has been cancelled all the same.

use std::pin::pin;
use std::time::Duration;

use ambo::testing::Testbed;
use ambo::{Code, Ctx, Either, Error, Result, Retry};

use crate::harness::database;
use crate::undo::{HOUR, Journal, ended, endless, note};

/// What a step runs beside when the run is cancelled.
const BESIDE: [&str; 7] = ["select", "select turned", "race", "wait", "pause", "at once", "publish"];

/// Books until it has heard of the cancel and for a while longer.
async fn book(cx: &mut Ctx<'_>, journal: &Journal) -> Result<()> {
    let (told, noted) = (cx.branch(), journal.clone());
    let book = cx.step("book", async || {
        noted.note("booking");
        while !told.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        noted.note("booked");
        Ok::<_, Error>(())
    });
    Ok(book.await?)
}

fn undo(cx: &mut Ctx<'_>, journal: &Journal) {
    let journal = journal.clone();
    cx.compensate_with("undo book", Retry::none(), move |_| {
        journal.note("undone");
        async { Ok::<_, Error>(()) }
    });
}

/// What hears of the cancel, in a branch of its own.
async fn hears(cx: &mut Ctx<'_>, journal: &Journal, how: &str) -> Result<()> {
    match how {
        "pause" => {
            let fails = cx.step("fails", || async { Err::<(), _>(Error::message("no")) });
            fails.retry(Retry::fixed(HOUR)).await?;
        }
        "at once" => drop(cx.step("at once", || endless(journal)).cancel_at_once().await?),
        "publish" => loop {
            cx.publish("tick", &1)?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        },
        _ => cx.signal("never").await?,
    }
    Ok(())
}

#[ambo::workflow]
async fn books(cx: Ctx, how: String) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    let (mut first, mut other) = (cx.branch(), cx.branch());
    let step = async { book(&mut first, &journal).await };
    let limit = other.sleep(HOUR);
    let is_booked = match how.as_str() {
        "select" => matches!(cx.select(step, limit).await?.1, Either::Left(Ok(()))),
        "select turned" => matches!(cx.select(limit, step).await?.1, Either::Right(Ok(()))),
        "race" => cx
            .race([Box::pin(limit) as futures_util::future::BoxFuture<'_, _>, Box::pin(step)])
            .await?
            .1
            .is_ok(),
        _ => {
            let branch = async {
                step.await?;
                undo(&mut cx, &journal);
                Ok(())
            };
            return tokio::try_join!(hears(&mut other, &journal, &how), branch).map(drop);
        }
    };
    if is_booked {
        undo(&mut cx, &journal);
    }
    cx.signal("never").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_finished_and_undone_whatever_hears_of_the_cancel_beside_it() {
    for how in BESIDE {
        for crashes in [false, true] {
            let (bed, journal) = (Testbed::new().await.unwrap(), Journal::default());
            let known = journal.clone();
            bed.start(move |worker| worker.workflow::<books>().state(known.clone())).await.unwrap();
            let run = books::enqueue(how.into()).on(bed.client()).await.unwrap().run;
            journal.until("booking").await;
            if crashes {
                bed.crash_before("undo book");
            }
            bed.client().cancel(run, "enough").await.unwrap();
            if crashes {
                // In the replay that undoes it the time of the other wait is over.
                let crashed = bed.crashed().await;
                crashed.unwrap_or_else(|error| panic!("{how}: {error}: {:?}", journal.all()));
                bed.skip_at_once(2 * HOUR).await.unwrap();
                bed.restart().await.unwrap();
            }
            assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled, "{how}");
            let all = journal.all();
            let told: Vec<&str> =
                all.iter().map(|noted| &**noted).filter(|noted| *noted != "dropped").collect();
            assert_eq!(told[told.len() - 2..], ["booked", "undone"], "{how}, crash {crashes}: {all:?}");
        }
    }
}

/// Begins a step and comes back to it only after a wait.
#[ambo::workflow]
async fn holds(cx: Ctx) -> Result<()> {
    let (journal, mut other) = (cx.state::<Journal>()?, cx.branch());
    let mut step = pin!(other.step("held", || endless(&journal)));
    tokio::select! {
        _ = &mut step => {}
        () = journal.until("begun") => journal.note("held"),
    }
    cx.signal::<()>("never").await?;
    step.await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_nobody_polls_is_not_waited_for() {
    let (db, journal) = (database().await, Journal::default());
    let worker = ambo::Worker::builder(&db.client).workflow::<holds>().state(journal.clone());
    let _worker = worker.start().await.unwrap();
    let run = holds::enqueue().on(&db.client).await.unwrap().run;
    journal.until("held").await;
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(journal.all(), ["begun", "held", "dropped"]);
}

/// Takes whatever a wait answers for a sign that nobody has spoken, and goes on to its result.
#[ambo::workflow]
async fn shrugs(cx: Ctx, books: bool) -> Result<String> {
    let journal = cx.state::<Journal>()?;
    if books {
        note(&mut cx, &journal, "flight").await?;
    }
    let word = cx.signal::<String>("word").timeout(HOUR).await;
    Ok(word.unwrap_or_else(|_| "nobody spoke".into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_code_hears_of_a_cancel_and_has_a_result_all_the_same_is_undone() {
    for books in [true, false] {
        let (bed, journal) = (Testbed::new().await.unwrap(), Journal::default());
        let known = journal.clone();
        bed.start(move |worker| worker.workflow::<shrugs>().state(known.clone())).await.unwrap();
        let run = shrugs::enqueue(books).on(bed.client()).await.unwrap().run;
        bed.settled().await.unwrap();
        bed.client().cancel(run, "enough").await.unwrap();
        assert_eq!(ended(bed.client(), run).await.unwrap_err().code(), Code::Cancelled);
        assert_eq!(bed.client().show_run(run).await.unwrap().summary.state, "cancelled");
        let expected: &[&str] = if books { &["flight", "undo flight"] } else { &[] };
        assert_eq!(journal.all(), expected);
    }
}
