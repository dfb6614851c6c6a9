//! Code that has other calls than a run has recorded: what fits still, and what is found out before anything is done twice.

use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Result, RunId, SendSignal, Untyped, Worker};

use crate::harness::{Database, database};
use crate::undo::Journal;

/// What the code has that a run goes on in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Plain,
    Compensation,
    TwoCompensations,
    Branch,
    BranchAround,
    Map,
}

async fn charge(cx: &mut Ctx<'_>, journal: &Journal) -> Result<()> {
    let journal = journal.clone();
    Ok(cx
        .step("charge", move || {
            journal.note("charge");
            async { Ok::<_, Error>(()) }
        })
        .await?)
}

fn unbook(cx: &mut Ctx<'_>, name: &'static str, journal: &Journal) {
    let journal = journal.clone();
    cx.compensate(name, move |attempt| {
        let key = attempt.idempotency_key();
        journal.note(format!("{name} {}", key.split_once('/').unwrap().1));
        async { Ok::<_, Error>(()) }
    });
}

struct Trip(Shape);

impl<'run> ambo::WorkflowFn<'run, bool> for Trip {
    type Output = Result<()>;
    type Future = futures_util::future::BoxFuture<'run, Self::Output>;

    fn call(&self, mut cx: Ctx<'run>, fails: bool) -> Self::Future {
        let shape = self.0;
        Box::pin(async move {
            let journal = cx.state::<Journal>()?;
            cx.step("book", || async { Ok::<_, Error>(()) }).await?;
            match shape {
                Shape::Plain => {}
                Shape::Compensation => unbook(&mut cx, "unbook", &journal),
                Shape::TwoCompensations => {
                    unbook(&mut cx, "unbook", &journal);
                    unbook(&mut cx, "unbook hotel", &journal);
                }
                Shape::Branch => drop(cx.branch()),
                Shape::Map => drop(cx.map(vec![()], 1, |_, ()| async {}).await),
                Shape::BranchAround => charge(&mut cx.branch(), &journal).await?,
            }
            if shape != Shape::BranchAround {
                charge(&mut cx, &journal).await?;
            }
            cx.signal::<()>("go").await?;
            if fails {
                return Err(Error::message("no ship"));
            }
            Ok(cx.step("ship", || async { Ok::<_, Error>(()) }).await?)
        })
    }
}

/// A run that one code has begun and another ends: how often it was charged, what was undone, and how it ended.
async fn from_one_to_the_other(
    db: &Database,
    from: Shape,
    to: Shape,
    fails: bool,
) -> (usize, Vec<String>, Result<()>) {
    let journal = Journal::default();
    let worker = |shape| {
        let builder = Worker::builder(&db.client).park_after(Duration::from_millis(20));
        builder.workflow_fn("trip", Trip(shape)).state(journal.clone()).start()
    };
    let first = worker(from).await.unwrap();
    let run: RunId = Enqueue::<Untyped>::named("trip", &fails).on(&db.client).await.unwrap().run;
    db.until(&format!("select count(*) = 1 from ambo.timer where run_id = '{run}'")).await;
    first.drain(Duration::from_secs(5)).await;
    let _second = worker(to).await.unwrap();
    SendSignal::new(run, "go", &()).on(&db.client).await.unwrap();
    let result = db.client.handle::<Untyped>(run).result_as::<(), Error>().await.map_err(Error::from);
    let (charged, undone): (Vec<_>, Vec<_>) = journal.all().into_iter().partition(|noted| noted == "charge");
    (charged.len(), undone, result)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_more_or_less_moves_no_recorded_call() {
    let db = database().await;
    use Shape::{Compensation, Plain, TwoCompensations};
    for (from, to, undoes) in [
        (Plain, Compensation, &["unbook 1.0.0.1"][..]),
        (Compensation, Plain, &[]),
        (Compensation, TwoCompensations, &["unbook hotel 1.0.0.2", "unbook 1.0.0.1"]),
    ] {
        let (charged, undone, result) = from_one_to_the_other(&db, from, to, false).await;
        assert_eq!((charged, undone.len(), result.is_ok()), (1, 0, true), "{from:?} {to:?} {result:?}");
        let (charged, undone, result) = from_one_to_the_other(&db, from, to, true).await;
        assert_eq!((charged, result.unwrap_err().code()), (1, Code::Application), "{from:?} {to:?}");
        assert_eq!(undone, undoes, "{from:?} {to:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_where_a_call_was_recorded_or_the_other_way_round_is_found_out() {
    let db = database().await;
    use Shape::{Branch, BranchAround, Map, Plain};
    for (from, to) in [(Plain, Branch), (Plain, Map), (Plain, BranchAround), (BranchAround, Plain)] {
        let (charged, _, result) = from_one_to_the_other(&db, from, to, false).await;
        let error = result.unwrap_err();
        assert_eq!((charged, error.code()), (1, Code::NonDeterminism), "{from:?} {to:?}: {error}");
        assert!(error.to_string().contains("position 2 of run"), "{error}");
    }
}
