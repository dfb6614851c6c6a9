//! Payloads are not in logs and not in errors, whatever goes wrong.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::{Client, Code, Ctx, Enqueue, Error, Failure, Result, Retry, SendSignal, Untyped, Worker};
use serde::{Deserialize, Serialize};

use crate::harness::database;

/// What every payload here holds.
const MARKER: &str = "marker-0815-of-this-test";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Declined {
    card: String,
}

impl std::fmt::Display for Declined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("declined")
    }
}

async fn fails(mut cx: Ctx<'_>, input: String) -> Result<String> {
    cx.compensate("undo", |_| async { Ok::<_, Error>(()) });
    let kept = input.clone();
    cx.step("keep", || async { Ok::<_, Error>(kept.clone()) }).await?;
    cx.publish("event", &input)?;
    let wrong: Result<u32> = cx.signal("signal").await;
    assert_eq!(wrong.unwrap_err().code(), Code::UnfitMessage);
    let of = cx.run_id();
    let wrong: Result<u32> = cx.event(of, "event").await;
    assert_eq!(wrong.unwrap_err().code(), Code::NotDecodable);
    let declined = cx.step("charge", || async { Err::<(), _>(Declined { card: input.clone() }) });
    declined.retry(Retry::fixed(Duration::from_millis(1)).max_attempts(2)).await?;
    Ok(input)
}

async fn takes_a_number(_: Ctx<'_>, _: u32) -> Result<()> {
    Ok(())
}

/// An error and all that it was caused by, in both forms.
fn all_of(error: &Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text += &format!(" {source} {source:?}");
        cause = source.source();
    }
    text
}

async fn end(client: &Client, run: ambo::RunId) -> Error {
    let ended: Result<String, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    ended.unwrap_err().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_payload_is_in_the_logs_and_errors_of_runs_that_fail() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter("ambo=trace").with_writer(move || writer.clone());
    let is_ours = subscriber.try_init().is_ok();
    let db = database().await;
    let worker = Worker::builder(&db.client)
        .workflow_fn("fails", fails)
        .workflow_fn("takes a number", takes_a_number)
        .retry("fails", Retry::fixed(Duration::from_millis(10)).max_attempts(2))
        .start()
        .await
        .unwrap();
    let enqueue = |workflow: &str| Enqueue::named(workflow, &MARKER).key(workflow).on(&db.client);
    let failing = enqueue("fails").await.unwrap().run;
    SendSignal::new(failing, "signal", &MARKER).key("once").on(&db.client).await.unwrap();
    let errors = [
        end(&db.client, failing).await,
        end(&db.client, enqueue("takes a number").await.unwrap().run).await,
        Enqueue::named("fails", &[MARKER]).key("fails").on(&db.client).await.unwrap_err(),
        Enqueue::named("fails", &MARKER.repeat(100_000)).on(&db.client).await.unwrap_err(),
        SendSignal::new(failing, "signal", &[MARKER]).key("once").on(&db.client).await.unwrap_err(),
        db.client.events::<u32>(failing, "event", 0).await.unwrap_err(),
        // What the database itself refuses.
        Enqueue::named("fails", &1).attributes(&MARKER).on(&db.client).await.unwrap_err(),
        serde_json::from_str::<u32>(&format!("\"{MARKER}\"")).unwrap_err().into(),
    ];
    assert_eq!(errors[0].details::<Declined>().unwrap().card, MARKER, "it is there for whoever asks for it");
    worker.drain(Duration::from_secs(5)).await;
    for error in &errors {
        let text = all_of(error);
        assert!(!text.contains(MARKER), "a payload is in the error {text}");
    }
    if is_ours {
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("tried again"), "nothing was logged");
        assert!(!text.contains(MARKER), "a payload is in the log");
    }
}
