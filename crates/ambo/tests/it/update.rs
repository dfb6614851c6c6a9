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
    // A key means one request, whatever has become of it.
    assert_eq!(add(8, "second").await.unwrap_err().code(), Code::KeyConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_means_one_request_before_and_after_its_answer() {
    let db = database().await;
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    let add = async |value: i64| db.client.update::<i64>(run, "add", &value, "k").await;
    let first = db.client.update::<i64>(run, "add", &5, "k");
    let other = async {
        db.until("select count(*) = 1 from ambo.signal").await;
        assert_eq!(add(6).await.unwrap_err().code(), Code::KeyConflict, "before");
        Worker::builder(&db.client).workflow::<counter>().start().await.unwrap()
    };
    let (first, worker) = tokio::join!(first, other);
    assert_eq!(first.unwrap(), 5);
    assert_eq!(add(6).await.unwrap_err().code(), Code::KeyConflict, "after");
    // A fork has handled what the run had before.
    let fork = db.client.fork(run, None).await.unwrap();
    assert_eq!(db.client.update::<i64>(fork, "add", &5, "k").await.unwrap(), 5);
    assert_eq!(db.client.update::<i64>(fork, "add", &1, "new").await.unwrap(), 6, "not handled twice");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfit_request_is_refused_and_the_run_waits_for_the_next() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    let refused = async |key: &str| {
        let refused = db.client.update::<i64>(run, "add", &"five", key).await.unwrap_err();
        assert_eq!(refused.code(), Code::UnfitMessage);
        assert!(refused.to_string().contains("does not fit `i64`"), "{refused}");
    };
    let add = async |value: i64, key: &str| db.client.update::<i64>(run, "add", &value, key).await;
    refused("a").await;
    refused("b").await;
    // A worker that replays the run, with its wait not over yet, goes on where it stood.
    worker.drain(std::time::Duration::from_secs(5)).await;
    let worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    refused("c").await;
    assert_eq!(add(5, "d").await.unwrap(), 5);
    refused("a").await;
    refused("e").await;
    drop(worker);
    let _worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    assert_eq!(add(2, "f").await.unwrap(), 7);
    assert_eq!(add(0, "end").await.unwrap_err().code(), Code::WrongState);
    let answers = "select count(*) from ambo.event where key like 'ambo:answer%'";
    assert_eq!(db.number(answers).await, 6, "each request is answered once");
    let histories = db.client.histories(&ambo::admin::Filter::default()).await.unwrap();
    let same = Worker::builder(&db.client).workflow::<counter>();
    assert_eq!(same.replay_check(histories).await.unwrap(), []);
}

#[tokio::test]
async fn the_events_of_a_run_that_there_is_not_are_an_error() {
    let db = database().await;
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    assert_eq!(db.client.events::<i64>(run, "status", 0).await.unwrap(), [], "it has published none");
    let nobody: ambo::RunId = "00000000-0000-7000-8000-000000000000".parse().unwrap();
    assert_eq!(db.client.events::<i64>(nobody, "status", 0).await.unwrap_err().code(), Code::UnknownRun);
    assert_eq!(db.client.next_events::<i64>(nobody, "status", 0).await.unwrap_err().code(), Code::UnknownRun);
    // From SQL too.
    for read in ["ambo.read_events($1, 'status')", "ambo.list_events($1)", "ambo.list_signals($1)"] {
        let count = format!("select count(*) from {read}");
        let known: i64 = db.sql.query_one(&count, &[&run.as_uuid()]).await.unwrap().get(0);
        assert_eq!(known, 0, "{read}");
        for nobody in [Some(nobody.as_uuid()), None] {
            let refused = db.sql.query_one(&count, &[&nobody]).await.unwrap_err();
            assert_eq!(refused.code().expect("an answer").code(), "AM033", "{read}");
        }
    }
    let drop = db.client.drop_signal(nobody, 1).await;
    assert_eq!(drop.unwrap_err().code(), Code::UnknownRun);
    assert!(!db.client.drop_signal(run, 1).await.unwrap(), "there is none");
    assert_eq!(db.client.event_keys(run).await.unwrap(), []);
    assert_eq!(db.client.event_keys(nobody).await.unwrap_err().code(), Code::UnknownRun);
    let no_runs = db.sql.query_one("select ambo.act_on_runs('retry', null)", &[]).await.unwrap_err();
    assert_eq!(no_runs.code().expect("an answer").code(), "AM005");
}

/// Waits for what another run publishes; says why if nothing comes.
#[ambo::workflow]
async fn follower(cx: Ctx, of: ambo::RunId) -> Result<String> {
    match cx.event::<String>(of, "status").await {
        Ok(status) => Ok(status),
        Err(error) => Ok(error.to_string()),
    }
}

#[ambo::workflow]
async fn mute(cx: Ctx, word: Option<String>) -> Result<()> {
    cx.signal::<()>("go").await?;
    if let Some(word) = word {
        cx.publish("status", &word)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_an_event_of_a_run_that_will_publish_none_ends() {
    let db = database().await;
    let builder = Worker::builder(&db.client).workflow::<follower>().workflow::<mute>();
    let worker = builder.start().await.unwrap();
    let nobody: ambo::RunId = "00000000-0000-7000-8000-000000000000".parse().unwrap();
    let follow = async |of| {
        let run = follower::enqueue(of).on(&db.client).await.unwrap().run;
        db.client.handle::<follower>(run).result().await.unwrap()
    };
    assert!(follow(nobody).await.contains("AMBO033"));
    for (word, said) in [(None, "AMBO034"), (Some("at last"), "at last")] {
        let of = mute::enqueue(word.map(str::to_owned)).on(&db.client).await.unwrap().run;
        let end = async {
            db.until("select exists (select from ambo.claim c join ambo.run r on r.id = c.run_id where r.workflow = 'follower')")
                .await;
            SendSignal::new(of, "go", &()).on(&db.client).await.unwrap();
        };
        let (heard, ()) = tokio::join!(follow(of), end);
        assert!(heard.contains(said), "{heard}");
        assert!(follow(of).await.contains(said), "and after its end");
    }
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_from_sql_is_answered_for_sql_and_is_the_one_that_the_program_sends() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    let send = "select ambo.send_update($1, 'add', '5', 'k \"1\"')";
    let answer: String = db.sql.query_one(send, &[&run.as_uuid()]).await.unwrap().get(0);
    let read = format!("select value::text from ambo.read_events('{run}', '{answer}')");
    db.until(&format!("select exists ({read})")).await;
    assert_eq!(db.sql.query_one(&read, &[]).await.unwrap().get::<_, String>(0), "5");
    assert_eq!(db.client.update::<i64>(run, "add", &5, "k \"1\"").await.unwrap(), 5, "the same request");
    let again: String = db.sql.query_one(send, &[&run.as_uuid()]).await.unwrap().get(0);
    assert_eq!(again, answer);
    assert_eq!(db.number(&format!("select count(*) from ambo.signal where run_id = '{run}'")).await, 1);
    for (sql, code) in [
        ("select ambo.send_update($1, 'add', '6', 'k \"1\"')", "AM003"),
        ("select ambo.send_update($1, 'add', null, 'l')", "AM005"),
        ("select ambo.send_update($1, 'add', '5', null)", "AM001"),
        ("select ambo.send_update($1, 'add', '5', repeat('k', 181))", "AM001"),
        ("select ambo.send_signal($1, 'add', '5', 'ambo:answer l')", "AM001"),
        ("select ambo.send_signal($1, 'add', '{\"key\":\"m\"}', 'ambo:answer l')", "AM001"),
    ] {
        let refused = db.sql.query_one(sql, &[&run.as_uuid()]).await.unwrap_err();
        let refused = refused.as_db_error().expect("an answer");
        assert_eq!(refused.code().code(), code, "{sql}");
        if code == "AM003" {
            assert!(refused.message().contains("key 'k \"1\"'"), "{refused}");
            assert!(refused.message().contains("names another update"), "{refused}");
        }
    }
}

/// Adds what it hears, until it hears nothing. What it hears may look like a request.
#[ambo::workflow]
async fn listener(cx: Ctx) -> Result<i64> {
    let mut sum = 0;
    loop {
        let heard = cx.signal::<serde_json::Value>("add").await?;
        match heard["value"].as_i64() {
            Some(value) => sum += value,
            None => return Ok(sum),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_run_that_waits_for_signals_is_refused_and_the_signals_come() {
    let db = database().await;
    let worker = Worker::builder(&db.client).workflow::<listener>().start().await.unwrap();
    let run = listener::enqueue().on(&db.client).await.unwrap().run;
    let refused = async |key: &str| {
        let refused = db.client.update::<i64>(run, "add", &5, key).await.unwrap_err();
        assert_eq!(refused.code(), Code::UnfitMessage);
        assert!(refused.to_string().contains("the run waits for signals"), "{refused}");
    };
    let hear = async |payload| SendSignal::new(run, "add", &payload).on(&db.client).await.unwrap();
    refused("a").await;
    hear(serde_json::json!({"value": 2, "key": "a"})).await;
    refused("b").await;
    worker.drain(std::time::Duration::from_secs(5)).await;
    let _worker = Worker::builder(&db.client).workflow::<listener>().start().await.unwrap();
    refused("a").await;
    refused("c").await;
    hear(serde_json::json!({"value": 3})).await;
    hear(serde_json::json!(null)).await;
    assert_eq!(db.client.handle::<listener>(run).result().await.unwrap(), 5);
    assert!(db.client.list_signals(run).await.unwrap().is_empty(), "all were taken");
    let histories = db.client.histories(&ambo::admin::Filter::default()).await.unwrap();
    let same = Worker::builder(&db.client).workflow::<listener>();
    assert_eq!(same.replay_check(histories).await.unwrap(), []);
}

/// Who sends it would otherwise have its answer given to whoever asks under the key in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_looks_like_a_request_is_none_and_can_be_dropped() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow::<counter>().start().await.unwrap();
    let forged = serde_json::json!({"value": 1000, "key": "first"});
    let run = counter::enqueue().on(&db.client).await.unwrap().run;
    let refused = SendSignal::new(run, "add", &forged).key("ambo:answer second").on(&db.client).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidName, "such keys are Ambo's own");
    for key in [None, Some("first")] {
        let run = counter::enqueue().on(&db.client).await.unwrap().run;
        let mut signal = SendSignal::new(run, "add", &forged);
        if let Some(key) = key {
            signal = signal.key(key);
        }
        signal.on(&db.client).await.unwrap();
        let add = async |value: i64, key: &str| db.client.update::<i64>(run, "add", &value, key).await;
        let failed = db.client.handle::<counter>(run).result().await.unwrap_err();
        assert!(
            failed.to_string().contains("AMBO038") && failed.to_string().contains("is no update"),
            "{failed}"
        );
        let waiting = db.client.list_signals(run).await.unwrap();
        assert!(db.client.drop_signal(run, waiting[0].number).await.unwrap());
        db.client.retry(run).await.unwrap();
        assert_eq!(add(5, "first").await.unwrap(), 5, "{key:?}");
        assert_eq!(add(6, "second").await.unwrap(), 11, "{key:?}");
        assert_eq!(add(0, "end").await.unwrap_err().code(), Code::WrongState);
    }
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
    assert!(failed.to_string().contains("AMBO038"), "{failed}");
}
