//! Batches: handled together, ended one by one.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ambo::{Batch, Code, Enqueue, Error, Failure, Result, Retry, RunId, Untyped, Worker, WorkerBuilder};

use crate::harness::{Database, database};

type Sizes = Arc<Mutex<Vec<usize>>>;

async fn index(batch: Batch<i64>) -> Vec<Result<i64>> {
    batch.state::<Sizes>().unwrap().lock().unwrap().push(batch.items.len());
    let one = |item: &ambo::BatchItem<i64>| match item.input {
        n if n < 0 => Err(Error::message("below zero")),
        13 if item.attempt == 1 => Err(Error::message("not yet")),
        n => Ok(n * 2),
    };
    match batch.items[0].input {
        666 => panic!("oh no"),
        777 => Vec::new(),
        _ => batch.items.iter().map(one).collect(),
    }
}

fn worker(db: &Database, sizes: &Sizes, max: usize, within: Duration) -> WorkerBuilder {
    Worker::builder(&db.client).batch("index", max, within, index).state(sizes.clone())
}

async fn end(db: &Database, run: RunId) -> Result<i64, Error> {
    let result: Result<i64, Failure<Error>> = db.client.handle::<Untyped>(run).result_as().await;
    result.map_err(Error::from)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_handled_together_and_ends_one_by_one() {
    let db = database().await;
    let sizes = Sizes::default();
    let runs = (0..20).map(|n| Enqueue::named("index", &if n == 7 { -1 } else { n }));
    let runs = ambo::enqueue_all(&db.client, runs).await.unwrap();
    // No time is so long: they come in tens because that is how many there are to be.
    let _worker = worker(&db, &sizes, 10, Duration::from_secs(3600)).start().await.unwrap();
    for (n, run) in runs.iter().enumerate() {
        match end(&db, run.run).await {
            Ok(twice) => assert_eq!(twice, 2 * i64::try_from(n).unwrap()),
            Err(error) => assert!(n == 7 || n == 13, "{n}: {error}"),
        }
    }
    assert_eq!(*sizes.lock().unwrap(), [10, 10]);
    let states = "select count(*) from ambo.outcome where status = 'failed'";
    assert_eq!(db.number(states).await, 2, "the one below zero, and the one that is not retried");
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_does_not_fill_is_handled_when_its_time_is_over() {
    let db = database().await;
    let sizes = Sizes::default();
    let retry = Retry::fixed(Duration::from_millis(1)).max_attempts(2);
    let builder = worker(&db, &sizes, 1000, Duration::from_millis(20)).retry("index", retry);
    let _worker = builder.start().await.unwrap();
    let run = Enqueue::named("index", &13).on(&db.client).await.unwrap().run;
    assert_eq!(end(&db, run).await.unwrap(), 26, "the second time");
    assert_eq!(*sizes.lock().unwrap(), [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_fails_its_batch_alone() {
    let db = database().await;
    let sizes = Sizes::default();
    let _worker = worker(&db, &sizes, 1, Duration::ZERO).start().await.unwrap();
    for (input, code) in [(666, Some(Code::Panicked)), (777, Some(Code::Application)), (1, None)] {
        let run = Enqueue::named("index", &input).on(&db.client).await.unwrap().run;
        assert_eq!(end(&db, run).await.err().map(|error| error.code()), code, "{input}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_are_handed_back_while_they_wait_come_into_another_batch() {
    let db = database().await;
    let sizes = Sizes::default();
    let first = worker(&db, &sizes, 3, Duration::from_secs(3600)).start().await.unwrap();
    let runs = ambo::enqueue_all(&db.client, (1..=2).map(|n| Enqueue::named("index", &n))).await.unwrap();
    db.until("select count(*) = 2 from ambo.claim").await;
    first.drain(Duration::ZERO).await;
    assert_eq!(db.number("select count(*) from ambo.ready").await, 2);
    let _second = worker(&db, &sizes, 3, Duration::from_secs(3600)).start().await.unwrap();
    let third = Enqueue::named("index", &3).on(&db.client).await.unwrap().run;
    assert_eq!(end(&db, third).await.unwrap(), 6);
    assert_eq!(end(&db, runs[0].run).await.unwrap(), 2);
    assert_eq!(*sizes.lock().unwrap(), [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_while_it_waits_leaves_its_batch_at_once() {
    let db = database().await;
    let sizes = Sizes::default();
    let _worker = worker(&db, &sizes, 3, Duration::from_secs(3600)).start().await.unwrap();
    let runs = ambo::enqueue_all(&db.client, (1..=2).map(|n| Enqueue::named("index", &n))).await.unwrap();
    db.until("select count(*) = 2 from ambo.claim").await;
    db.client.cancel(runs[0].run, "not needed").await.unwrap();
    assert_eq!(end(&db, runs[0].run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'cancelled'").await, 1);
    // It takes no place: with the next one they are two.
    let third = Enqueue::named("index", &3).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 2 from ambo.claim").await;
    let fourth = Enqueue::named("index", &4).on(&db.client).await.unwrap().run;
    for (run, twice) in [(runs[1].run, 4), (third, 6), (fourth, 8)] {
        assert_eq!(end(&db, run).await.unwrap(), twice);
    }
    assert_eq!(*sizes.lock().unwrap(), [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_batch_that_all_have_left_begins_anew() {
    let db = database().await;
    let (sizes, within) = (Sizes::default(), Duration::from_secs(2));
    let _worker = worker(&db, &sizes, 3, within).start().await.unwrap();
    let first = Enqueue::named("index", &1).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.claim").await;
    tokio::time::sleep(within / 2).await;
    db.client.cancel(first, "not needed").await.unwrap();
    assert_eq!(end(&db, first).await.unwrap_err().code(), Code::Cancelled);
    let came = Instant::now();
    let second = Enqueue::named("index", &2).on(&db.client).await.unwrap().run;
    assert_eq!(end(&db, second).await.unwrap(), 4);
    assert!(came.elapsed() >= within, "handled after {:?}", came.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cancelled_while_its_batch_is_handled_ends_with_it() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).batch("slow", 1, Duration::ZERO, slow).start().await.unwrap();
    let run = Enqueue::named("slow", &7).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.claim").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    db.client.cancel(run, "not needed").await.unwrap();
    assert_eq!(end(&db, run).await.unwrap(), 7, "what it did is done");
}

async fn slow(batch: Batch<i64>) -> Vec<Result<i64>> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    batch.items.iter().map(|item| Ok(item.input)).collect()
}
