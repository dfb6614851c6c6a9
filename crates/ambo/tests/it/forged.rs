//! Notifications are hints: in PostgreSQL whoever may connect may hear them, and send some.

use std::sync::Arc;
use std::time::Duration;

use ambo::{Client, Code, Ctx, Enqueue, Error, Failure, Result, RunId, Untyped, Worker};
use tokio::sync::Semaphore;

use crate::harness::database;
use crate::wake::hear;

/// Steps that were begun, and leave to end them.
#[derive(Clone)]
struct Gates {
    begun: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

/// A cancel ends it where it holds.
async fn hold(mut cx: Ctx<'_>, _: u32) -> Result<u32> {
    let gates = cx.state::<Gates>()?;
    let hold = cx.step("hold", async || {
        gates.begun.add_permits(1);
        gates.open.acquire().await.expect("it is never closed").forget();
        Ok::<_, Error>(2)
    });
    Ok(hold.cancel_at_once().await?)
}

async fn enqueue(client: &Client) -> RunId {
    Enqueue::named("hold", &0).on(client).await.unwrap().run
}

async fn ended(client: &Client, run: RunId) -> Result<u32, Failure<Error>> {
    client.handle::<Untyped>(run).result_as().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_only_connect_cancels_nothing_and_hears_of_no_run() {
    let db = database().await;
    let name = db.url.rsplit_once('/').unwrap().1;
    db.sql.batch_execute(&format!("create role {name}_stranger login")).await.unwrap();
    let url = db.url.replace("//postgres@", &format!("//{name}_stranger@"));
    let (stranger, mut heard) = hear(&url, &["wake", "cancel", "signal", "outcome"]).await;

    let gates = Gates { begun: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) };
    let worker =
        Worker::builder(&db.client).workflow_fn("hold", hold).state(gates.clone()).start().await.unwrap();
    let (forged, cancelled) = (enqueue(&db.client).await, enqueue(&db.client).await);
    gates.begun.acquire_many(2).await.unwrap().forget();
    let id = forged.to_string();
    let tag = &id[32..];
    let nonsense = ",".repeat(7999);
    let payloads = [&id, &format!("{id} 0"), tag, &format!("{tag} 0"), "", "0", "-1", "\u{e9}", &nonsense];
    for channel in ["cancel", "signal", "outcome", "wake", "nothing"] {
        for payload in payloads {
            let sql = format!("select pg_notify('ambo.{channel}', $1)");
            stranger.execute(&sql, &[&payload]).await.unwrap();
        }
    }
    // By the same connection of the worker, so behind all of these.
    let result = tokio::spawn({
        let client = db.client.clone();
        async move { ended(&client, cancelled).await }
    });
    // Somebody waits, so that outcomes are told.
    db.until("select count(*) > 0 from pg_stat_activity where application_name = 'ambo client waiter'").await;
    db.client.cancel(cancelled, "by one who may").await.unwrap();
    let (Err(Failure::Ambo(error)) | Err(Failure::Application(error))) = result.await.unwrap() else {
        panic!("it was cancelled")
    };
    assert_eq!(error.code(), Code::Cancelled);
    gates.open.add_permits(1);
    assert_eq!(ended(&db.client, forged).await.unwrap(), 2, "nobody asked the database to cancel it");
    worker.drain(Duration::from_secs(5)).await;

    stranger.execute("select pg_notify('ambo.wake', 'the end')", &[]).await.unwrap();
    let mut told = Vec::new();
    while let Some(payload) = heard.recv().await.filter(|payload| payload != "the end") {
        told.push(payload);
    }
    let own = 4 * payloads.len();
    assert!(told.len() > own, "the cancel and the outcome were heard: {told:?}");
    assert!(told.contains(&cancelled.to_string()[32..].to_owned()), "{told:?}");
    let ids = told.iter().filter(|payload| payload.len() >= 36 && **payload != nonsense).count();
    assert_eq!(ids, 4 * 2, "the forged ones alone have an id in them: {told:?}");
    let _ = db.sql.batch_execute(&format!("drop role {name}_stranger")).await;
}
