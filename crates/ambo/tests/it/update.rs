//! Updates: a request to a run, handled once, and its answer.

use ambo::{Code, Ctx, Result, SendSignal, Worker};

use crate::harness::database;

/// A counter that adds what it is told, until it is told nothing.
#[ambo::workflow]
async fn counter(cx: Ctx) -> Result<i64> {
    let mut sum = 0;
    loop {
        let add = cx.update::<i64>("add").await?;
        if add.value == 0 {
            return Ok(sum);
        }
        sum += add.value;
        cx.answer(&add, &sum)?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_handled_once_and_answered_alike() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    let add = async |value: i64, key: &str| db.client.update::<i64>(run, "add", &value, key).await;
    assert_eq!(add(5, "first").await.unwrap(), 5);
    assert_eq!(add(7, "second").await.unwrap(), 12);
    assert_eq!(add(5, "first").await.unwrap(), 5, "the same answer, not another 5");
    // Many at once, each sent twice.
    let keys: Vec<String> = (0..20).map(|n| format!("key {n}")).collect();
    let both = keys.iter().flat_map(|key| [add(1, key), add(1, key)]);
    let answers = futures_util::future::try_join_all(both).await.unwrap();
    assert!(answers.chunks(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    // Another worker goes on with what was handled.
    drop(worker);
    let _worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    assert_eq!(add(1, "after").await.unwrap(), 33);
    assert_eq!(add(1, "key 3").await.unwrap(), answers[6], "also after a replay");
    assert_eq!(add(0, "end").await.unwrap_err().code(), Code::WrongState, "it ended without an answer");
    assert_eq!(db.client.handle::<counter>(run).result().await.unwrap(), 33);
    assert_eq!(add(7, "second").await.unwrap(), 12, "answered before it ended");
    assert_eq!(add(7, "late").await.unwrap_err().code(), Code::WrongState);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_refused() {
    let db = database().await;
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    let long = "k".repeat(65_536);
    for key in ["", "a\0b", &long] {
        let refused = db.client.update::<i64>(run, "add", &1, key).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidName, "{key:.10}");
    }
    for topic in ["", &long] {
        let refused = db.client.update::<i64>(run, topic, &1, "k").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidName, "{topic:.10}");
    }
    // Not a request: whoever waits for one learns it.
    SendSignal::new(run, "add", &"no request").on(&db.client).await.unwrap();
    let _worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    let failed = db.client.handle::<counter>(run).result().await.unwrap_err();
    assert!(failed.to_string().contains("AMBO028"), "{failed}");
}
