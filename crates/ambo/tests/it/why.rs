//! Why a run is not running: each reason, told as an operator needs it.

use std::time::Duration;

use ambo::admin::Purge;
use ambo::{Ctx, Enqueue, Ordered, QueueSettings, Rate, Result, RunId, SendSignal, Untyped, Worker};
use ambo_postgres::{Cluster, Place};

use crate::harness::{Database, connect, database, database_at};

async fn run(db: &Database, group: Option<&str>) -> RunId {
    let run = Enqueue::<Untyped>::named("w", &1).queue("q");
    let run = if let Some(group) = group { run.group(group) } else { run };
    run.on(&db.client).await.unwrap().run
}

async fn why(db: &Database, run: RunId) -> Vec<String> {
    db.client.why(run).await.unwrap().into_iter().map(|reason| reason.reason).collect()
}

/// What is said in words, with the run that it is of.
async fn said(db: &Database, run: RunId) -> Vec<(String, Option<RunId>)> {
    db.client.why(run).await.unwrap().into_iter().map(|reason| (reason.explanation, reason.run)).collect()
}

/// Claims, as a worker does, so many runs of the lanes of `groups`.
async fn claim(db: &Database, groups: &[&str]) {
    for group in groups {
        let lane = format!("w\u{1f}\u{1f}{group}");
        let sql = "select cardinality(runs) from ambo.claim_queue(1, 'q', 1, null, array[$1], '{0}', '{1}', '{1}', '{0}', '{1}', '{0}', 0, 0,
                       array(select slot from ambo.claim where slot is not null), (select coalesce(max(slot), 0) from ambo.claim))";
        let claimed: Option<i32> = db.sql.query_one(sql, &[&lane]).await.unwrap().get(0);
        assert_eq!(claimed, Some(1), "{group}");
    }
}

async fn worker(db: &Database) {
    let sql = "select ambo.register_worker('host', '1', 1, '{q}', '{w}', false)";
    db.sql.query(sql, &[]).await.unwrap();
}

#[tokio::test]
async fn each_reason_why_a_run_is_not_running_is_told() {
    let db = database().await;
    let settings = QueueSettings::default().groups();
    db.client.set_queue("q", &settings).await.unwrap();
    let first = run(&db, Some("a")).await;
    assert_eq!(why(&db, first).await, ["no worker"]);
    worker(&db).await;
    assert_eq!(why(&db, first).await, ["ready"]);

    let second = run(&db, Some("a")).await;
    let reasons = db.client.why(second).await.unwrap();
    assert_eq!((reasons[0].reason.as_str(), reasons[0].run), ("behind others", Some(first)));
    db.client.pause_queue("q", true).await.unwrap();
    db.client.pause_group("q", "a", true).await.unwrap();
    assert_eq!(why(&db, second).await, ["queue paused", "group paused", "behind others"]);
    db.client.pause_queue("q", false).await.unwrap();
    db.client.pause_group("q", "a", false).await.unwrap();

    db.client.set_queue("q", &settings.clone().group_concurrency(1).concurrency(2)).await.unwrap();
    claim(&db, &["a"]).await;
    assert_eq!(why(&db, first).await, ["running"]);
    let reasons = db.client.why(second).await.unwrap();
    assert_eq!((reasons[0].reason.as_str(), reasons[0].run), ("group limit", Some(first)));
    let other = run(&db, Some("b")).await;
    let third = run(&db, Some("c")).await;
    claim(&db, &["b"]).await;
    assert_eq!(why(&db, third).await, ["queue limit"]);
    assert_eq!(why(&db, other).await, ["running"]);

    let rate = Rate::new(1, Duration::from_secs(3600));
    db.client.set_queue("q", &settings.clone().concurrency(None).rate(rate)).await.unwrap();
    claim(&db, &["c"]).await;
    let fourth = run(&db, Some("d")).await;
    let now = db.client.now().await.unwrap();
    let reasons = db.client.why(fourth).await.unwrap();
    assert_eq!(reasons[0].reason, "rate");
    assert!(reasons[0].until.is_some_and(|until| until > now));

    db.client.set_queue("q", &settings.clone().rate(None).ordered(Ordered::Block)).await.unwrap();
    let reasons = db.client.why(second).await.unwrap();
    assert_eq!((reasons[0].reason.as_str(), reasons[0].run), ("group in order", Some(first)));

    let any_order = || QueueSettings::default().ordered(None);
    // A limit of nothing, one of each worker, and a weight.
    db.client.set_queue("q", &any_order().concurrency(0)).await.unwrap();
    assert_eq!(why(&db, fourth).await, ["queue limit"]);
    db.client.set_queue("q", &any_order().concurrency(None).group_concurrency(0)).await.unwrap();
    assert_eq!(why(&db, fourth).await, ["group limit"]);
    db.client.set_queue("q", &any_order().group_concurrency(None).worker_concurrency(4)).await.unwrap();
    let heavy = Enqueue::<Untyped>::named("w", &1).queue("q").group("e").weight(9);
    let heavy = heavy.on(&db.client).await.unwrap().run;
    let reasons = db.client.why(heavy).await.unwrap();
    assert_eq!(reasons[0].reason, "worker limit");
    assert_eq!(reasons[0].explanation, "each worker that could take it has 3 of 4 in execution; it weighs 9");
    assert_eq!(why(&db, fourth).await, ["ready"]);

    let delayed = Enqueue::<Untyped>::named("w", &1).delay(Duration::from_secs(60));
    let delayed = delayed.on(&db.client).await.unwrap().run;
    assert_eq!(why(&db, delayed).await, ["delayed", "no worker"]);
    db.client.cancel(delayed, "no more").await.unwrap();
    assert_eq!(why(&db, delayed).await, ["ended"]);
    let unknown: RunId = "0199c1a0-0000-7000-8000-000000000001".parse().unwrap();
    assert_eq!(db.client.why(unknown).await.unwrap_err().code(), ambo::Code::UnknownRun);
}

#[tokio::test]
async fn what_comes_before_a_run_is_counted() {
    let db = database().await;
    db.client.create_queue("q").await.unwrap();
    worker(&db).await;
    let enqueue = async |priority| {
        let run = Enqueue::<Untyped>::named("w", &1).queue("q").priority(priority);
        run.on(&db.client).await.unwrap().run
    };
    let first = enqueue(5).await;
    let second = enqueue(5).await;
    assert_eq!(said(&db, second).await, [("1 run of its lane comes before it".to_owned(), Some(first))]);
    let third = enqueue(5).await;
    assert_eq!(said(&db, third).await, [("2 runs of its lane come before it".to_owned(), Some(first))]);
    let urgent = enqueue(3).await;
    let of_its_workflow = |text: &str, run| [(text.to_owned(), Some(run))];
    let text = "1 run of its workflow is more urgent and waits too";
    assert_eq!(said(&db, first).await, of_its_workflow(text, urgent));
    let most_urgent = enqueue(0).await;
    let text = "2 runs of its workflow are more urgent and wait too";
    assert_eq!(said(&db, first).await, of_its_workflow(text, most_urgent));
}

#[tokio::test]
async fn workers_that_are_full_are_named() {
    let db = database().await;
    db.client.create_queue("q").await.unwrap();
    let run = run(&db, None).await;
    let register = "select ambo.register_worker('host', '1', 1, '{q}', '{w}', false, p_max_in_flight => $1)";
    for most in [2, 3] {
        db.sql.query(register, &[&most]).await.unwrap();
    }
    assert_eq!(why(&db, run).await, ["ready"]);
    db.sql.batch_execute("update ambo.heartbeat set in_flight = 2").await.unwrap();
    assert_eq!(why(&db, run).await, ["ready"], "one of them has room");
    db.sql.batch_execute("update ambo.heartbeat set in_flight = 3 where worker_id = 2").await.unwrap();
    let text = "each worker that could take it has as many runs in memory as it may (max_in_flight): 5 of 5 in 2 workers";
    assert_eq!(said(&db, run).await, [(text.to_owned(), None)]);
    worker(&db).await;
    assert_eq!(why(&db, run).await, ["ready"], "one does not say how many it may have");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_how_many_runs_it_takes() {
    let db = database().await;
    let body = async |cx: Ctx<'_>, _: i64| -> Result<()> {
        while !cx.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    let builder = Worker::builder(&db.client).queue("q").workflow_fn("w", body).max_in_flight(2);
    let _worker = builder.start().await.unwrap();
    for _ in 0..2 {
        run(&db, None).await;
    }
    db.until("select in_flight = 2 from ambo.heartbeat").await;
    let third = run(&db, None).await;
    let text = "each worker that could take it has as many runs in memory as it may (max_in_flight): 2 of 2";
    assert_eq!(said(&db, third).await, [(text.to_owned(), None)]);
    db.sql.batch_execute("select ambo.cancel_run(run_id) from ambo.claim").await.unwrap();
}

#[tokio::test]
async fn a_run_that_comes_later_is_told_what_will_hold_it_up_too() {
    let db = database().await;
    db.client.set_queue("q", &QueueSettings::default().groups()).await.unwrap();
    worker(&db).await;
    let delayed = Enqueue::<Untyped>::named("w", &1).queue("q").group("a").delay(Duration::from_secs(60));
    let delayed = delayed.on(&db.client).await.unwrap().run;
    assert_eq!(why(&db, delayed).await, ["delayed"]);
    db.client.pause_queue("q", true).await.unwrap();
    db.client.pause_group("q", "a", true).await.unwrap();
    assert_eq!(why(&db, delayed).await, ["delayed", "queue paused", "group paused"]);
    db.sql.batch_execute("update ambo.timer set attempt = 1").await.unwrap();
    assert_eq!(why(&db, delayed).await, ["parked", "queue paused", "group paused"]);
    db.sql.batch_execute("update ambo.worker set dead_at = now()").await.unwrap();
    assert_eq!(why(&db, delayed).await, ["parked", "no worker", "queue paused", "group paused"]);
}

#[tokio::test]
async fn a_fan_in_whose_members_are_gone_is_told_so() {
    let db = database().await;
    db.client.create_queue("q").await.unwrap();
    worker(&db).await;
    let sql = "select (ambo.enqueue_fan_in('[{\"workflow\": \"m\", \"queue\": \"q\"}, {\"workflow\": \"m\", \"queue\": \"q\"}]',
                   '{\"workflow\": \"w\", \"queue\": \"q\"}') -> 'then' ->> 'run')::uuid";
    let last: RunId = db.sql.query_one(sql, &[]).await.unwrap().get::<_, uuid::Uuid>(0).into();
    assert_eq!(why(&db, last).await, ["members"]);
    db.client.pause_queue("q", true).await.unwrap();
    let members = Purge { queue: "q".into(), workflow: Some("m".into()), ..Purge::default() };
    assert_eq!(db.client.purge_queue(&members).await.unwrap(), 2);
    let reasons = db.client.why(last).await.unwrap();
    assert_eq!(reasons.iter().map(|reason| &*reason.reason).collect::<Vec<_>>(), ["members", "queue paused"]);
    assert_eq!(
        reasons[0].explanation,
        "its members have ended; it begins when a worker of its queue has seen that"
    );
    assert_eq!((reasons[0].run, reasons[0].until), (None, None));
}

/// A session that has begun a transaction, and leaves it open.
async fn holder(db: &Database, name: &str, sql: &str) -> tokio_postgres::Client {
    let session = connect(&db.url).await;
    session.batch_execute(&format!("set application_name = '{name}'; begin; {sql}")).await.unwrap();
    session
}

/// Waits until so many of them are older than what is told.
async fn until_old(db: &Database, count: i64) {
    db.until(&format!(
        "select count(*) = {count} from pg_stat_activity where datname = current_database()
         and state = 'idle in transaction' and xact_start < clock_timestamp() - interval '5 seconds'"
    ))
    .await;
}

/// The first explanation, with words for seconds, processes and times, and whether a time is told.
async fn explained(db: &Database, run: RunId) -> (String, bool) {
    let reason = db.client.why(run).await.unwrap().remove(0);
    let user: String = db.sql.query_one("select current_user::text", &[]).await.unwrap().get(0);
    let words: Vec<&str> = reason.explanation.split(' ').collect();
    let shown = (words.iter().enumerate()).map(|(n, word)| {
        let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
        let is_seconds = words.get(n + 1).is_some_and(|next| next.trim_end_matches([',', ';', ':']) == "s");
        match n.checked_sub(1).map(|before| words[before]) {
            Some("session") if is_number => "PID",
            _ if is_number && is_seconds => "N",
            _ => word,
        }
    });
    let shown = shown.collect::<Vec<_>>().join(" ").replace(&format!("({user}"), "(USER");
    (shown, reason.until.is_some())
}

#[tokio::test]
async fn who_has_long_held_what_a_run_waits_for_is_named() {
    let db = database().await;
    db.client.set_queue("q", &QueueSettings::default().groups()).await.unwrap();
    worker(&db).await;
    let first = run(&db, None).await;
    let second = run(&db, None).await;
    let later = async |minutes: u64| {
        let later = Enqueue::<Untyped>::named("w", &1).queue("q").delay(Duration::from_secs(60 * minutes));
        later.on(&db.client).await.unwrap().run
    };
    let [delayed, parked, other] = [later(1).await, later(2).await, later(3).await];
    let make = format!(
        "update ambo.timer set attempt = 1, due_at = 'infinity', awaits = '[{{\"position\": \"1\", \"for\": \"the signal go\"}}]'
         where run_id in ('{parked}', '{other}');
         update ambo.keeper set worker_id = 1, renewed_at = clock_timestamp()"
    );
    db.sql.batch_execute(&make).await.unwrap();
    let ready = "it waits for its turn: a worker claims it when it has room (how many runs each holds is known to the second)";
    let of_signal = "it is parked and waits for the signal go at position 1";

    // One of Ambo's own, and one that only reads, hold up nothing.
    let own = holder(&db, "ambo client", "lock table ambo.queue in row share mode").await;
    let reader =
        holder(&db, "reader", "select count(*) from ambo.queue, ambo.ready, ambo.timer, ambo.keeper").await;
    let setter = holder(&db, "setter", "select ambo.set_queue('q', '{\"concurrency\": 5}')").await;
    let looker = holder(&db, "looker", "select from ambo.keeper for update").await;
    let mender = holder(&db, "mender", &format!("select ambo.rewind_run('{parked}', '1')")).await;
    SendSignal::new(parked, "go", &1).on(&db.client).await.unwrap();
    // If one is told it is old.
    let fair = "select (select count(*) from ambo.lock_holders()) = 0
                or min(xact_start) < clock_timestamp() - interval '5 seconds'
                from pg_stat_activity where datname = current_database() and state = 'idle in transaction'";
    assert!(db.sql.query_one(fair, &[]).await.unwrap().get::<_, bool>(0));
    until_old(&db, 5).await;
    let late =
        format!("update ambo.timer set due_at = now() - interval '20 seconds' where run_id = '{delayed}'");
    db.sql.batch_execute(&late).await.unwrap();

    let has = |who: &str, tables: &str| {
        format!(
            "; session PID (USER, {who}) has had a transaction open for N s that has locked or written rows of {tables}"
        )
    };
    let by_setter = has("setter", "ambo.queue");
    assert_eq!(explained(&db, first).await, (format!("{ready}{by_setter}"), false));
    let behind = "1 run of its lane comes before it";
    assert_eq!(explained(&db, second).await, (format!("{behind}{by_setter}"), false));
    let overdue =
        "it is delayed; its time came N s ago, and the keeper, silent for N s, has not made it ready";
    let by_looker = has("looker", "ambo.keeper");
    assert_eq!(explained(&db, delayed).await, (format!("{overdue}{by_looker}"), false));
    let came = "; something has come for it that no worker has taken yet";
    let by_mender = has("mender", "ambo.timer and ambo.ready");
    assert_eq!(explained(&db, parked).await, (format!("{of_signal}{came}{by_mender}"), false));
    assert_eq!(explained(&db, other).await, (of_signal.to_owned(), false), "nothing came for this one");

    for held in [setter, looker, mender] {
        held.batch_execute("rollback").await.unwrap();
    }
    db.sql.batch_execute("update ambo.keeper set renewed_at = clock_timestamp()").await.unwrap();
    assert_eq!(explained(&db, first).await, (ready.to_owned(), false));
    let overdue = "it is delayed; its time came N s ago, and the keeper has not made it ready";
    assert_eq!(explained(&db, delayed).await, (overdue.to_owned(), false));
    assert_eq!(explained(&db, parked).await, (format!("{of_signal}{came}"), false));
    db.sql.batch_execute("update ambo.timer set due_at = now() + interval '1 minute'").await.unwrap();
    assert_eq!(explained(&db, delayed).await, ("it is delayed".to_owned(), true));
    drop((own, reader));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_and_an_old_enqueue_are_told_as_what_holds_rows() {
    let server = || {
        let server = Cluster::builder().temporary(Place::Memory).durable(false);
        server.setting("max_prepared_transactions", "5").start().expect("a server")
    };
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    let db = database_at(&server.url("postgres")).await;
    db.client.create_queue("q").await.unwrap();
    worker(&db).await;
    let waits = run(&db, None).await;
    let enqueue = holder(&db, "shop", "select ambo.enqueue_workflow('w')").await;
    let prepare =
        "set ambo.notify = off; begin; select ambo.pause_queue('q', true); prepare transaction 'it''s'";
    db.sql.batch_execute(prepare).await.unwrap();
    until_old(&db, 1).await;
    db.until("select prepared < clock_timestamp() - interval '5 seconds' from pg_prepared_xacts").await;
    let explanation = explained(&db, waits).await.0;
    let holder = "; prepared transaction 'it''s' (USER) has had a transaction open for N s that has locked or written rows of ambo.queue";
    assert!(explanation.ends_with(holder), "{explanation}");
    let signs = "select value::json ->> 1, array(select json_array_elements_text(value::json -> 3)) from ambo.vital_signs()
                 where name = 'lock_holder'";
    let signs = db.sql.query(signs, &[]).await.unwrap();
    let signs: Vec<(String, Vec<String>)> = signs.iter().map(|row| (row.get(0), row.get(1))).collect();
    // The oldest first; a partition counts as its table.
    assert!(signs[0].0.starts_with("select pg_terminate_backend("), "{signs:?}");
    assert_eq!(signs[0].1, ["ready", "run"]);
    assert_eq!(signs[1..], [("rollback prepared 'it''s'".to_owned(), vec!["queue".to_owned()])]);
    db.sql.batch_execute("rollback prepared 'it''s'").await.unwrap();
    enqueue.batch_execute("rollback").await.unwrap();
    assert_eq!(db.number("select count(*) from ambo.lock_holders()").await, 0);
}

#[tokio::test]
async fn the_silence_of_the_worker_that_has_a_run_is_told() {
    let db = database().await;
    db.client.set_queue("q", &QueueSettings::default().groups()).await.unwrap();
    worker(&db).await;
    let run = run(&db, Some("a")).await;
    claim(&db, &["a"]).await;
    let after = async |seconds: i32| {
        let silence = "update ambo.heartbeat set at = clock_timestamp() - $1::integer * interval '1 second'";
        db.sql.execute(silence, &[&seconds]).await.unwrap();
        let (text, _) = explained(&db, run).await;
        text.split_once("; ").map(|(_, silence)| silence.to_owned())
    };
    assert_eq!(after(0).await, None);
    let soon = "the worker has been silent for N s, and loses its runs to others after N s";
    assert_eq!(after(6).await.as_deref(), Some(soon));
    let late = "the worker has been silent for N s, longer than its lease of N s, and the keeper has not given its runs to others";
    assert_eq!(after(60).await.as_deref(), Some(late));
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let db = database().await;
    let bad = [
        "null",
        "1",
        "[]",
        r#"{"nothing": 1}"#,
        r#"{"concurrency": -1}"#,
        r#"{"concurrency": 1.5}"#,
        r#"{"concurrency": "many"}"#,
        r#"{"concurrency": 99999999999}"#,
        r#"{"rate": 5}"#,
        r#"{"rate": {"limit": 1}}"#,
        r#"{"rate": {"limit": 0, "period": "1 s"}}"#,
        r#"{"rate": {"limit": 1, "period": "0 s"}}"#,
        r#"{"rate": {"limit": 1, "period": "soon"}}"#,
        r#"{"rate": {"limit": 1, "period": "1 s", "burst": 0}}"#,
        r#"{"rate": {"limit": 1, "period": "1 s", "more": 0}}"#,
        r#"{"ordered": "perhaps"}"#,
        r#"{"ageing": "-1 s"}"#,
        r#"{"groups": false}"#,
    ];
    for settings in bad {
        let sql = format!("select ambo.set_queue('q', '{settings}')");
        let error = db.sql.batch_execute(&sql).await.expect_err(settings);
        assert_eq!(error.as_db_error().unwrap().code().code(), "AM005", "{settings}: {error:?}");
    }
    for name in ["''", "null", &format!("'{}'", "x".repeat(65536))] {
        let error =
            db.sql.batch_execute(&format!("select ambo.set_queue({name}, '{{}}')")).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().code().code(), "AM001");
    }
    let plain = db.client.pause_group("default", "a", true).await.unwrap_err();
    assert_eq!(plain.code(), ambo::Code::NoGroups);
    let unfit = db.client.pause_group("q", "a\u{1f}b", true).await.unwrap_err();
    assert_eq!(unfit.code(), ambo::Code::InvalidName, "no run can be in it");
    let nowhere = db.client.pause_group("nowhere", "a", true).await.unwrap_err();
    assert_eq!(nowhere.code(), ambo::Code::UnknownQueue);
    db.client.set_queue("q", &QueueSettings::default().groups()).await.unwrap();
    for (group, weight, code) in [("", 1, "AM001"), ("g", 0, "AM005"), ("g", 10_001, "AM005")] {
        let sql = "select ambo.enqueue_workflow('w', queue => 'q', group_key => $1, weight => $2)";
        let error = db.sql.query(sql, &[&group, &weight]).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().code().code(), code, "{group} {weight}");
    }
}
