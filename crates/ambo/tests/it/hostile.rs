//! Hostile input: through the API and through SQL, into runs, steps and results. It is refused with a code or recorded
//! as a coded failure, and hurts nobody else.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ambo::{Client, Code, Ctx, Enqueue, Error, Failure, Result, Retry, RunId, SendSignal, Untyped, Worker};
use serde_json::Value;

use crate::harness::{Database, database};

const TOO_MUCH: usize = 3 * 1024 * 1024;

/// Does what its input says.
async fn hostile(mut cx: Ctx<'_>, act: String) -> Result<Value> {
    let tried = cx.state::<Arc<AtomicU32>>()?;
    let step = cx.step(if act == "long name" { "n".repeat(65_536) } else { "step".to_owned() }, async || {
        tried.fetch_add(1, Ordering::SeqCst);
        match act.as_str() {
            "large output" => Ok(Value::String("x".repeat(TOO_MUCH))),
            "large error" => Err(Error::message("x".repeat(TOO_MUCH))),
            "nul" => Ok(Value::String("a\0b \u{10ffff} \\u0000".into())),
            "deep" => Ok(nested(127)),
            "too deep" => Ok(nested(128)),
            "panic in a step" => panic!("told to"),
            _ => Ok(Value::Null),
        }
    });
    let value = step.retry(Retry::fixed(Duration::from_millis(1)).max_attempts(3)).await?;
    match act.as_str() {
        "large result" => Ok(Value::String("x".repeat(TOO_MUCH))),
        "panic" => panic!("told to"),
        _ => Ok(value),
    }
}

async fn innocent(mut cx: Ctx<'_>, n: i64) -> Result<i64> {
    Ok(cx.step("harmless", async || Ok::<_, Error>(n)).await?)
}

async fn any(_: Ctx<'_>, input: Value) -> Result<Value> {
    Ok(input)
}

fn nested(depth: usize) -> Value {
    (1..depth).fold(Value::Array(Vec::new()), |inner, _| Value::Array(vec![inner]))
}

async fn result(client: &Client, run: RunId) -> Result<Value> {
    let result: Result<Value, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    result.map_err(Error::from)
}

/// Workers of both kinds of workflow, and how often the hostile one has tried its step.
async fn worker(db: &Database) -> (Worker, Arc<AtomicU32>) {
    let tried = Arc::new(AtomicU32::new(0));
    let worker =
        Worker::builder(&db.client).workflow_fn("hostile", hostile).workflow_fn("innocent", innocent);
    (worker.workflow_fn("any", any).state(tried.clone()).start().await.expect("worker"), tried)
}

/// Innocent runs, enqueued around a hostile act, all succeed.
async fn amid_innocents<T>(db: &Database, act: impl Future<Output = T>) -> T {
    let enqueue = |n: i64| async move { Enqueue::named("innocent", &n).on(&db.client).await };
    let innocents = futures_util::future::join_all((0..20).map(enqueue));
    let (innocents, answer) = tokio::join!(innocents, act);
    for (n, innocent) in innocents.into_iter().enumerate() {
        let run = innocent.expect("an innocent enqueue was refused").run;
        assert_eq!(result(&db.client, run).await.expect("an innocent run failed"), n as i64);
    }
    answer
}

/// Works until the gate opens.
async fn gated(cx: Ctx<'_>, input: Value) -> Result<usize> {
    let gate = cx.state::<Arc<tokio::sync::Semaphore>>()?;
    let _pass = gate.acquire().await;
    Ok(input.as_str().map_or(0, str::len))
}

/// However few runs they are: what is in memory is bounded by their bytes as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_no_more_bytes_into_memory_than_it_can_hold() {
    let db = database().await;
    let many =
        "select ambo.enqueue_workflow('gated', to_json(repeat('x', 2000000))) from generate_series(1, 120)";
    db.sql.batch_execute(many).await.unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let _worker =
        Worker::builder(&db.client).workflow_fn("gated", gated).state(gate.clone()).start().await.unwrap();
    // 128 MiB are 67.1 of these.
    db.until("select count(*) >= 68 from ambo.claim").await;
    // It looks for work until it beats again, and again.
    for _ in 0..2 {
        let beat: String =
            db.sql.query_one("select max(at)::text from ambo.heartbeat", &[]).await.unwrap().get(0);
        db.until(&format!("select max(at) > '{beat}' from ambo.heartbeat")).await;
    }
    let held = db.number("select count(*) from ambo.claim").await;
    assert!(
        (68..68 + 2 * 9).contains(&held),
        "{held} are held: a claim brings 16 MiB at most, once it knows how large they are"
    );
    gate.add_permits(120);
    db.until("select count(*) = 120 from ambo.outcome where status = 'succeeded'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_and_its_url_are_called_is_checked() {
    let db = database().await;
    let long = "v".repeat(201);
    let builder = || Worker::builder(&db.client).workflow_fn("any", any);
    for worker in [builder().name(&long), builder().version(&long), builder().name("a\0b")] {
        assert_eq!(worker.start().await.unwrap_err().code(), Code::Configuration);
    }
    for url in ["", "postgres://", "postgres:///shop", "not a url"] {
        assert_eq!(Client::connect(url).await.unwrap_err().code(), Code::Configuration, "{url:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_a_permanent_coded_failure_and_hurts_nobody() {
    let db = database().await;
    let (_worker, tried) = worker(&db).await;
    for (act, code, tries) in [
        ("large output", Some(Code::TooLarge), 1),
        ("large result", Some(Code::TooLarge), 1),
        ("large error", Some(Code::Application), 3),
        ("too deep", Some(Code::NotEncodable), 1),
        ("deep", None, 1),
        ("nul", None, 1),
        ("panic in a step", Some(Code::Panicked), 3),
        ("panic", Some(Code::Panicked), 1),
        ("long name", Some(Code::InvalidName), 0),
    ] {
        tried.store(0, Ordering::SeqCst);
        let ended = amid_innocents(&db, async {
            let run = Enqueue::named("hostile", &act).on(&db.client).await.unwrap().run;
            (result(&db.client, run).await, db.client.show_run(run).await.unwrap())
        });
        let (result, run) = ended.await;
        assert_eq!(result.as_ref().err().map(Error::code), code, "{act}: {result:?}");
        assert_eq!(run.summary.state, if code.is_some() { "failed" } else { "succeeded" }, "{act}");
        assert_eq!(run.steps.len(), usize::from(act != "long name"), "{act}");
        assert_eq!(tried.load(Ordering::SeqCst), tries, "{act}: how often the step was tried");
        if act == "nul" {
            assert_eq!(result.unwrap(), "a\0b \u{10ffff} \\u0000");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_call_takes_is_refused_at_the_call_and_leaves_nothing() {
    async fn names(mut cx: Ctx<'_>, long: usize) -> Result<Vec<String>> {
        let long = "n".repeat(long);
        let mut taken = Vec::new();
        let mut note = |what: &str, name: &str, answer: Result<()>| match answer {
            Err(error) if error.code() == Code::InvalidName => {}
            other => taken.push(format!("{what} {name:?}: {other:?}")),
        };
        for name in ["", "a\0b", &long, "ambo:now"] {
            let step = cx.step(name.to_owned(), async || Ok::<_, Error>(())).await;
            note("step", name, step.map_err(Error::from));
        }
        for name in ["", "a\0b", &long] {
            note("event", name, cx.publish(name, &1));
            note("attribute", name, cx.set_attribute(name, &1));
            note("signal", name, cx.signal::<u32>(name.to_owned()).await.map(drop));
        }
        Ok(taken)
    }
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow_fn("names", names).start().await.unwrap();
    let run = Enqueue::named("names", &65_536).on(&db.client).await.unwrap().run;
    assert_eq!(result(&db.client, run).await.unwrap(), serde_json::json!([]));
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_enqueues_are_refused_with_a_code_and_hurt_nobody() {
    let db = database().await;
    let (_worker, _) = worker(&db).await;
    let long = "n".repeat(65_536);
    let named = |name: &str| Enqueue::named(name, &1);
    let refused = [
        (named(&long), Code::InvalidName),
        (named("a\0b"), Code::InvalidName),
        (named("a").key(&long), Code::InvalidName),
        (named("a").key("a\0b"), Code::InvalidName),
        (named("a").queue(&long), Code::UnknownQueue),
        (named("a").queue("a\0b"), Code::InvalidName),
        (named("a").priority(i32::MIN), Code::InvalidOption),
        (named("a").priority(i32::MAX), Code::InvalidOption),
        (named("a").delay(Duration::MAX), Code::InvalidOption),
        (named("a").timeout(Duration::ZERO), Code::InvalidOption),
        (named("a").timeout(Duration::MAX), Code::InvalidOption),
        (named("a").timeout(Duration::from_secs(3_000_000 * 86_400)), Code::InvalidOption),
        (named("a").key("k").key_lifetime(Duration::MAX), Code::InvalidOption),
        (named("a").key_lifetime(Duration::from_secs(1)), Code::InvalidOption),
        (named("a").key("k").debounce(Duration::MAX), Code::InvalidOption),
        (named("a").start_within(Duration::MAX), Code::InvalidOption),
        (named("a").attempts(u32::MAX), Code::InvalidOption),
        (Enqueue::named("a", &"x".repeat(TOO_MUCH)), Code::TooLarge),
        (Enqueue::named("a", &nested(128)), Code::NotEncodable),
        (named("a").attributes(&"a\0b"), Code::NotEncodable),
        (named("a").attributes(&serde_json::json!({"data": "x".repeat(70_000)})), Code::TooLarge),
        (Enqueue::named("a", &[1.0, f64::NAN]), Code::NotEncodable),
    ];
    for (n, (enqueue, code)) in refused.into_iter().enumerate() {
        let error = amid_innocents(&db, enqueue.on(&db.client)).await.expect_err(&format!("number {n}"));
        assert_eq!(error.code(), code, "number {n}: {error}");
    }
    assert_eq!(db.number("select count(*) from ambo.run where workflow <> 'innocent'").await, 0);
}

#[tokio::test]
async fn hostile_sql_is_refused_with_a_stable_sqlstate() {
    let db = database().await;
    let deep = "select ambo.enqueue_workflow('a', repeat('[', 1000000)::json)";
    for (sql, state) in [
        ("select ambo.enqueue_workflow(null)", "AM001"),
        ("select ambo.enqueue_workflow('')", "AM001"),
        ("select ambo.enqueue_workflow(repeat('n', 65536))", "AM001"),
        ("select ambo.enqueue_workflow('a', key => repeat('k', 65536))", "AM001"),
        ("select ambo.enqueue_workflow('a', queue => 'nowhere')", "AM002"),
        ("select ambo.enqueue_workflow('a', queue => null)", "AM002"),
        ("select ambo.enqueue_workflow('a', null)", "AM005"),
        ("select ambo.enqueue_workflow('a', to_json(repeat('x', 3000000)))", "AM004"),
        ("select ambo.enqueue_workflow('a', priority => 32768)", "AM005"),
        ("select ambo.enqueue_workflow('a', priority => null)", "AM005"),
        ("select ambo.enqueue_workflow('a', delay => '-1 second')", "AM005"),
        ("select ambo.enqueue_workflow('a', delay => '11 years')", "AM005"),
        ("select ambo.enqueue_workflow('a', at => 'infinity')", "AM005"),
        ("select ambo.enqueue_workflow('a', at => now(), delay => '1 s')", "AM005"),
        ("select ambo.enqueue_workflow('a', timeout => '0')", "AM005"),
        ("select ambo.enqueue_workflow('a', attempts => 0)", "AM005"),
        ("select ambo.enqueue_workflow('a', key => 'k', key_lifetime => '-1 s')", "AM005"),
        ("select ambo.enqueue_workflow('a', key_lifetime => '1 s')", "AM005"),
        ("select ambo.enqueue_workflows('{a}', '{1}', key_lifetimes => '{1 s}')", "AM005"),
        ("select ambo.enqueue_workflow('a', '{bad json')", "22P02"),
        ("select ambo.enqueue_workflow('a', no_such_option => 1)", "42883"),
        (deep, "54001"),
        ("select ambo.enqueue_workflows(null, null)", "AM006"),
        ("select ambo.enqueue_workflows('{a,b}', '{1}')", "AM006"),
        ("select ambo.enqueue_workflows('{a}', '{null}')", "AM005"),
        ("select ambo.enqueue_workflows('{null}', '{1}')", "AM001"),
        ("select ambo.enqueue_workflows('{a,a}', '{1,2}', keys => '{k,k}')", "AM003"),
        ("select ambo.enqueue_workflows('{{a},{b}}', '{1,2}', ats => '{infinity,now}')", "AM005"),
        ("select ambo.create_queue('')", "AM001"),
        ("select ambo.create_queue(repeat('q', 201))", "AM001"),
        ("select ambo.pause_queue('nowhere', true)", "AM002"),
        ("select ambo.cancel_run('00000000-0000-0000-0000-000000000000')", "AM033"),
        ("select ambo.cancel_run(null, repeat('x', 4001))", "AM004"),
        (
            "select ambo.enqueue_workflow('a', attributes => jsonb_build_object('x', repeat('x', 65536)))",
            "AM004",
        ),
        (r#"select ambo.enqueue_workflow('a', '{"ambo:sealed": {"key": "k"}}')"#, "AM007"),
        (
            r#"select ambo.enqueue_workflow('a', '{"ambo:object": {"path": "p", "bytes": "1"}}', key => 'k')"#,
            "AM007",
        ),
        (
            r#"select ambo.enqueue_workflow('a', '{"ambo:sealed": {"key": "k", "text": "t", "digests": 5}}', key => 'k')"#,
            "AM007",
        ),
        (r#"select ambo.enqueue_workflows('{a}', array['{"ambo:x": 1}']::json[])"#, "AM007"),
        ("select ambo.retry_run('ffffffff-ffff-ffff-ffff-ffffffffffff')", "AM033"),
        ("select ambo.send_signal('00000000-0000-0000-0000-000000000000', null)", "AM001"),
        ("select ambo.send_signal('00000000-0000-0000-0000-000000000000', '')", "AM001"),
        ("select ambo.send_signal('00000000-0000-0000-0000-000000000000', repeat('t', 201))", "AM001"),
        ("select ambo.send_signal('00000000-0000-0000-0000-000000000000', 'ambo:t')", "AM001"),
        ("select ambo.send_signal('00000000-0000-0000-0000-000000000000', 't', key => '')", "AM001"),
        (
            "select ambo.send_signal('00000000-0000-0000-0000-000000000000', 't', key => repeat('k', 513))",
            "AM001",
        ),
        ("select ambo.send_signal('00000000-0000-0000-0000-000000000000', 't', null)", "AM005"),
        (
            "select ambo.send_signal('00000000-0000-0000-0000-000000000000', 't', to_json(repeat('x', 2097151)))",
            "AM004",
        ),
        (r#"select ambo.send_signal('00000000-0000-0000-0000-000000000000', 't', '{"ambo:x": 1}')"#, "AM007"),
        (
            r#"select ambo.send_signal('00000000-0000-0000-0000-000000000000', 't', '{"ambo:sealed": {"key": "k"}}')"#,
            "AM007",
        ),
        (
            "select ambo.send_signal('00000000-0000-0000-0000-000000000000', repeat('t', 200), to_json(repeat('x', 2097150)), repeat('k', 512))",
            "AM033",
        ),
        ("select * from ambo.list_runs(p_state => 'sleepy')", "AM005"),
        ("select ambo.redrive_dead('{}', null, 0)", "AM005"),
        ("select ambo.redrive_dead('{}', null, 'NaN')", "AM005"),
        ("select ambo.redrive_dead('{}', null, 'Infinity')", "AM005"),
        ("select ambo.redrive_dead(array_fill(gen_random_uuid(), '{2}'), null, 1e-300)", "AM005"),
        ("select ambo.redrive_dead('{}', p_done => -1)", "AM005"),
        ("select ambo.redrive_dead(null)", "AM005"),
    ] {
        let error = db.sql.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code().map(|code| code.code()), Some(state), "{sql}: {error:?}");
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 0);
}

#[tokio::test]
async fn a_bulk_enqueue_says_which_of_its_elements_is_refused() {
    let db = database().await;
    for (sql, text) in [
        (
            "select ambo.enqueue_workflows('{a,b,c}', '{1,2,3}', priorities => '{0,99999,null}')",
            "AMBO005: priority is from -32768 (first) to 32767, not 99999 (element 2 of 3)",
        ),
        (
            "select ambo.enqueue_workflows('{a,b,c}', '{1,2,3}', queues => '{null,null,nowhere}')",
            "AMBO002: there is no queue 'nowhere' (element 3 of 3)",
        ),
        (
            "select ambo.enqueue_workflows('{z,a}', '{1,2}', keys => '{k,null}', throttles => '{1 s,1 s}')",
            "AMBO005: dedup, throttle and debounce go by a key (element 2 of 2)",
        ),
        (
            "select ambo.enqueue_workflows('{a}', '{1}', weights => '{0}')",
            "AMBO005: weight is from 1 to 10000, not 0",
        ),
    ] {
        let error = db.sql.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.as_db_error().map(|error| error.message()), Some(text), "{sql}");
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 0);
}

#[tokio::test]
async fn a_number_that_is_too_large_is_refused_as_it_was_given() {
    let db = database().await;
    let run = || Enqueue::named("a", &1);
    let year = Duration::from_secs(366 * 86_400);
    for (run, text) in [
        (run().weight(u32::MAX), "weight is from 1 to 10000, not 4294967295"),
        (run().attempts(u32::MAX), "attempts is from 1 to 1000, not 4294967295"),
        (run().start_within(year * 10), "start_within is above zero and 10 years at most, not 316224000s"),
        (run().key("k").debounce(year), "debounce is above zero and a year at most, not 31622400s"),
        (run().key("k").throttle(year), "throttle is above zero and a year at most, not 31622400s"),
    ] {
        let error = run.on(&db.client).await.unwrap_err();
        assert_eq!((error.code(), error.to_string()), (Code::InvalidOption, format!("AMBO005: {text}")));
    }
    let error = db.client.share_group("default", "a", u32::MAX).await.unwrap_err();
    assert_eq!(
        (error.code(), error.to_string()),
        (Code::InvalidOption, "AMBO005: share is from 1 to 100, not 4294967295".to_owned())
    );
}

#[tokio::test]
async fn a_run_that_there_is_not_is_refused_in_the_same_words() {
    let db = database().await;
    for call in [
        "fork_run(null)",
        "rewind_run(null, '1')",
        "retry_run(null)",
        "send_signal(null, 't')",
        "read_events(null, 'k')",
    ] {
        let refused = db.sql.query(&format!("select ambo.{call}"), &[]).await.unwrap_err();
        let refused = refused.as_db_error().expect("an error of the server");
        assert_eq!(refused.message(), "AMBO033: there is no run null", "{call}");
    }
    let purged = "select answer from ambo.purge_dead(array[null::uuid])";
    let answer: String = db.sql.query_one(purged, &[]).await.unwrap().get(0);
    assert_eq!(answer, "AMBO033: there is no run null");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_ambos_own_are_refused() {
    async fn names(mut cx: Ctx<'_>, _: ()) -> Result<Vec<String>> {
        let published = cx.publish("ambo:answer forged", &1);
        let heard = cx.signal::<u32>("ambo:x").await;
        let updated = cx.update::<u32>("ambo:x").await;
        let codes = [published.unwrap_err(), heard.unwrap_err(), updated.unwrap_err()];
        Ok(codes.iter().map(|error| error.code().to_string()).collect())
    }
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow_fn("names", names).start().await.unwrap();
    let run = Enqueue::<Untyped>::named("names", &()).on(&db.client).await.unwrap().run;
    let codes = db.client.handle::<Untyped>(run).result_as::<Vec<String>, Error>().await.unwrap();
    assert_eq!(codes, ["AMBO001"; 3]);
    assert_eq!(db.number("select count(*) from ambo.event").await, 0);
    let sent = SendSignal::new(run, "ambo:x", &1).on(&db.client).await.unwrap_err();
    assert_eq!(sent.code(), Code::InvalidName);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_only_sql_takes_is_dead_with_its_reason_and_hurts_nobody() {
    let db = database().await;
    let (_worker, _) = worker(&db).await;
    let forged = r#"{"ambo:sealed": {"key": "k", "text": "AAAA", "digests": ["x"]}}"#;
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    for (input, code, cure) in [
        (deep.as_str(), Code::NotDecodable, "nested deeper than 127 levels"),
        ("1e999", Code::NotDecodable, "a number out of range"),
        (forged, Code::NoVault, "give it a vault with that key"),
    ] {
        let ended = amid_innocents(&db, async {
            let enqueue = "select ambo.enqueue_workflow('any', $1::text::json)";
            let run: RunId =
                db.sql.query_one(enqueue, &[&input]).await.unwrap().get::<_, uuid::Uuid>(0).into();
            (result(&db.client, run).await.unwrap_err(), db.client.show_run(run).await.unwrap())
        });
        let (error, run) = ended.await;
        assert_eq!((error.code(), run.summary.state.as_str()), (code, "dead"), "{input:.80}: {error}");
        assert!(error.to_string().contains(cure), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_in_any_name_reason_or_filter_is_refused_as_a_name() {
    use ambo::admin::{Act, Filter};
    let db = database().await;
    let run = Enqueue::named("a", &1).on(&db.client).await.unwrap().run;
    let (client, nul) = (&db.client, "a\0b");
    let text = || Some(nul.to_owned());
    let filters = [
        Filter { text: text(), ..Filter::default() },
        Filter { workflow: text(), ..Filter::default() },
        Filter { queue: text(), ..Filter::default() },
        Filter { group: text(), ..Filter::default() },
        Filter { state: text(), ..Filter::default() },
        Filter { attributes: Some(serde_json::json!({"a": nul})), ..Filter::default() },
    ];
    for filter in filters {
        assert_eq!(client.list_runs(&filter).await.unwrap_err().code(), Code::InvalidName, "{filter:?}");
    }
    let refused = [
        client.cancel(run, nul).await.map(drop),
        client.rewind(run, nul).await,
        client.fork(run, Some(nul)).await.map(drop),
        client.events::<Value>(run, nul, 0).await.map(drop),
        client.next_events::<Value>(run, nul, 0).await.map(drop),
        client.act(&Act::Cancel(nul.into()), &[run]).await.map(drop),
        client.show_workflow(nul).await.map(drop),
        client.pause_schedule(nul, true).await.map(drop),
        client.delete_schedule(nul).await.map(drop),
        client.create_queue(nul).await.map(drop),
        client.pause_queue(nul, true).await,
    ];
    for (n, refused) in refused.into_iter().enumerate() {
        let error = refused.expect_err(&format!("number {n}"));
        assert_eq!(error.code(), Code::InvalidName, "number {n}: {error}");
    }
    assert_eq!(client.cancel(run, &"x".repeat(4001)).await.unwrap_err().code(), Code::TooLarge);
    client.cancel(run, &"x".repeat(4000)).await.unwrap();
}

#[tokio::test]
async fn two_workflows_of_one_name_and_none_at_all_are_refused_at_start() {
    let db = database().await;
    let twice = Worker::builder(&db.client).workflow_fn("same", innocent).workflow_fn("same", hostile);
    assert_eq!(twice.start().await.unwrap_err().code(), Code::Registration);
    assert_eq!(Worker::builder(&db.client).start().await.unwrap_err().code(), Code::Registration);
    let long = Worker::builder(&db.client).workflow_fn(&"n".repeat(65_536), innocent);
    assert_eq!(long.start().await.unwrap_err().code(), Code::InvalidName);
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0);
}

#[tokio::test]
async fn a_run_that_there_is_not_is_said_not_to_be() {
    let db = database().await;
    let nobody: RunId = "019ab3c2-7f00-7000-8000-000000000000".parse().unwrap();
    assert_eq!(db.client.show_run(nobody).await.unwrap_err().code(), Code::UnknownRun);
    assert_eq!(db.client.cancel(nobody, "").await.unwrap_err().code(), Code::UnknownRun);
    assert_eq!(db.client.retry(nobody).await.unwrap_err().code(), Code::UnknownRun);
    assert_eq!(result(&db.client, nobody).await.unwrap_err().code(), Code::UnknownRun);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_does_not_fit_a_runs_history_loses_nothing() {
    let db = database().await;
    let done = Arc::new(AtomicU32::new(0));
    let (renamed, fails) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let early = Arc::new(AtomicU32::new(0));
    let settings = (done.clone(), renamed.clone(), fails.clone(), early.clone());
    type Settings = (Arc<AtomicU32>, Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicU32>);
    async fn shifty(mut cx: Ctx<'_>, _: i32) -> Result<u32> {
        let settings = cx.state::<Settings>()?;
        let (done, renamed, fails, early) = &*settings;
        cx.step("zero", async || Ok::<_, Error>(())).await?;
        match early.load(Ordering::SeqCst) {
            1 => return Ok(7),
            2 => return Err("told to".into()),
            3 => panic!("told to"),
            _ => {}
        }
        let name = if renamed.load(Ordering::SeqCst) { "uno" } else { "one" };
        let value = cx.step(name, async || Ok::<_, Error>(done.fetch_add(1, Ordering::SeqCst))).await?;
        if fails.load(Ordering::SeqCst) { Err("told to".into()) } else { Ok(value) }
    }
    let worker =
        Worker::builder(&db.client).workflow_fn("shifty", shifty).state(settings).start().await.unwrap();
    let run = Enqueue::named("shifty", &1).on(&db.client).await.unwrap().run;
    assert_eq!(result(&db.client, run).await.unwrap_err().code(), Code::Application);

    renamed.store(true, Ordering::SeqCst);
    db.client.retry(run).await.unwrap();
    let error = result(&db.client, run).await.unwrap_err();
    assert_eq!(error.code(), Code::NonDeterminism);
    let text = error.to_string();
    assert!(text.contains("\"one\"") && text.contains("\"uno\"") && text.contains("position 2"), "{text}");
    assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "dead");

    renamed.store(false, Ordering::SeqCst);
    for (way, how) in [(1, "succeeds"), (2, "fails with AMBO027"), (3, "panics")] {
        early.store(way, Ordering::SeqCst);
        db.client.retry(run).await.unwrap();
        let error = result(&db.client, run).await.unwrap_err();
        assert_eq!(error.code(), Code::NonDeterminism, "{error}");
        let text = error.to_string();
        assert!(text.contains("\"one\"") && text.contains(how) && text.contains("position 2"), "{text}");
        assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "dead");
    }

    early.store(0, Ordering::SeqCst);
    fails.store(false, Ordering::SeqCst);
    db.client.retry(run).await.unwrap();
    assert_eq!(result(&db.client, run).await.unwrap(), 0);
    assert_eq!(done.load(Ordering::SeqCst), 1, "the step was not done again");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_blocks_its_thread_does_not_cost_the_lease() {
    let db = database().await;
    db.sql.batch_execute("update ambo.installation set lease = '2 seconds'").await.unwrap();
    let (open, gate) = mpsc::channel::<()>();
    async fn block(mut cx: Ctx<'_>, _: i32) -> Result<u32> {
        let gate = cx.state::<Mutex<mpsc::Receiver<()>>>()?;
        let step = cx.step("block", async || {
            // As badly as can be: the thread of the runtime, without an await.
            let _ = gate.lock().unwrap().recv();
            Ok::<_, Error>(())
        });
        step.await?;
        Ok(cx.attempt())
    }
    let worker = Worker::builder(&db.client).workflow_fn("block", block).state(Mutex::new(gate));
    let worker = worker.start().await.unwrap();
    let run = Enqueue::named("block", &1).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.claim").await;
    db.until("select h.at > c.claimed_at + interval '3 seconds' from ambo.heartbeat h, ambo.claim c").await;
    open.send(()).unwrap();
    assert_eq!(result(&db.client, run).await.unwrap(), 1, "it was the first attempt");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_after_a_retry_is_not_told_the_outcome_from_before_it() {
    let db = database().await;
    let stubborn =
        async |cx: Ctx<'_>, _: i32| -> Result<()> { Err(format!("attempt {}", cx.attempt()).into()) };
    let _worker = Worker::builder(&db.client).workflow_fn("stubborn", stubborn).start().await.unwrap();
    for _ in 0..50 {
        let run = Enqueue::named("stubborn", &1).on(&db.client).await.unwrap().run;
        for attempt in 1..=3 {
            let error = result(&db.client, run).await.unwrap_err().to_string();
            assert!(
                error.contains(&format!("attempt {attempt}")),
                "asked after {} retries: {error}",
                attempt - 1
            );
            db.client.retry(run).await.unwrap();
        }
    }
}

/// Records 40 results of 2 MB at once.
#[ambo::workflow]
async fn plenty(mut cx: Ctx, steps: usize) -> Result<usize> {
    let calls: Vec<_> =
        (0..steps).map(|_| cx.step("much", || async { Ok::<_, Error>("x".repeat(2_000_000)) })).collect();
    let results = futures_util::future::join_all(calls).await;
    Ok(results.into_iter().filter(std::result::Result::is_ok).count())
}

/// All of it in one message would be refused, from a gigabyte on, each time that it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_records_at_once_goes_to_the_server_in_pieces() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow::<plenty>().start().await.unwrap();
    let run = plenty::enqueue(40).on(&db.client).await.unwrap().run;
    assert_eq!(db.client.handle::<plenty>(run).result().await.unwrap(), 40);
    let largest = "select max(bytes)::bigint from (
        select sum(length(c.output::text)) as bytes from ambo.checkpoint c group by c.xmin::text) f";
    let largest = db.number(largest).await;
    println!("{largest} bytes in one transaction");
    assert!(largest <= 16 * 1024 * 1024, "{largest} bytes in one transaction");
}
