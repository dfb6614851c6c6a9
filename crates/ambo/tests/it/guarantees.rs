//! The guarantees, each shown by a test of its own. The files beside this one try harder to break them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Failure, Isolation, Result, TokioPostgres, Untyped, Worker};

use crate::child::Child;
use crate::harness::{Database, connect, database};
use crate::workflows::{Ledger, close_gate, open_gate};

/// Enqueues on the caller's transaction, through the driver.
async fn place(tx: &tokio_postgres::Transaction<'_>, order: i32) -> Result<()> {
    tx.execute("insert into orders values ($1)", &[&order]).await?;
    Enqueue::named("fulfil", &order).on(tx).await.map(drop)
}

#[tokio::test]
async fn g1_what_is_enqueued_in_a_transaction_exists_if_and_only_if_it_commits() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let mut caller = connect(&db.url).await;
    for order in 0..6 {
        let mut tx = caller.transaction().await.unwrap();
        place(&tx, order).await.unwrap();
        // Also in part: what a savepoint takes back is not there.
        let part = tx.savepoint("part").await.unwrap();
        place(&part, 100 + order).await.unwrap();
        if order % 3 == 0 { part.commit().await } else { part.rollback().await }.unwrap();
        if order % 2 == 0 { tx.commit().await } else { tx.rollback().await }.unwrap();
    }
    let orders = "select array(select id from orders order by 1), array(select input::text::int from ambo.run order by 1),
        (select count(*) from ambo.ready)";
    let row = db.sql.query_one(orders, &[]).await.unwrap();
    assert_eq!(row.get::<_, Vec<i32>>(0), [0, 2, 4, 100]);
    assert_eq!(row.get::<_, Vec<i32>>(1), [0, 2, 4, 100], "runs and orders are not the same");
    assert_eq!(row.get::<_, i64>(2), 4);
}

#[tokio::test]
async fn g1_a_trigger_enqueues_in_the_transaction_that_fired_it() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let trigger = "create function on_order() returns trigger language plpgsql as $$
        begin
            perform ambo.enqueue_workflow('fulfil', to_json(new.id), key => 'order-' || new.id);
            return new;
        end $$;
        create trigger on_order after insert on orders for each row execute function on_order();";
    db.sql.batch_execute(trigger).await.unwrap();
    db.sql
        .batch_execute("begin; insert into orders values (1); rollback; insert into orders values (2)")
        .await
        .unwrap();
    let keys = db.sql.query("select key from ambo.run", &[]).await.unwrap();
    assert_eq!(keys.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>(), ["order-2"]);
}

/// A worker is killed in the midst of a run that another one then ends.
async fn run_of_a_killed_worker() -> Database {
    let db = database().await;
    Ledger::prepare(&db).await;
    close_gate(&db).await;
    let (mut victim, _) = Child::worker(&db.url, &[]).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated')").await.unwrap();
    victim.says("gate").await;
    victim.kill().await;
    let (mut heir, _) = Child::worker(&db.url, &[]).await;
    heir.says("gate").await;
    open_gate(&db).await;
    db.until("select count(*) = 1 from ambo.outcome where status = 'succeeded'").await;
    db
}

#[tokio::test]
async fn g2_and_g3_a_run_goes_on_elsewhere_and_its_recorded_steps_do_not_run_again() {
    let db = run_of_a_killed_worker().await;
    let steps = "select name, attempt from ambo.checkpoint order by position";
    let steps = db.sql.query(steps, &[]).await.unwrap();
    let steps: Vec<(String, i32)> = steps.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(steps, [("before".into(), 1), ("gate".into(), 2), ("after".into(), 2)]);
    assert_eq!(
        db.number("select count(*) from effect where step = 'before'").await,
        1,
        "a recorded step ran again"
    );
}

#[tokio::test]
async fn g2_a_run_that_nobody_knows_waits_and_says_for_what() {
    let db = database().await;
    let run = Enqueue::named("later", &1).on(&db.client).await.unwrap().run;
    let other =
        Worker::builder(&db.client).workflow_fn("other", async |_: Ctx<'_>, _: i32| -> Result<()> { Ok(()) });
    let other = other.start().await.unwrap();
    let known = Enqueue::named("other", &1).on(&db.client).await.unwrap().run;
    let _: Result<(), Failure<Error>> = db.client.handle::<Untyped>(known).result_as().await;
    assert_eq!(db.client.show_run(run).await.unwrap().summary.state, "ready");
    let why = db.client.why(run).await.unwrap();
    assert_eq!((why.len(), why[0].reason.as_str()), (1, "no worker"), "{why:?}");
    other.drain(Duration::ZERO).await;
    let knows =
        Worker::builder(&db.client).workflow_fn("later", async |_: Ctx<'_>, n: i32| -> Result<i32> { Ok(n) });
    let _knows = knows.start().await.unwrap();
    let result: Result<i32, Failure<Error>> = db.client.handle::<Untyped>(run).result_as().await;
    assert_eq!(result.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_transaction_steps_take_effect_exactly_once_through_all_their_conflicts() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let url = db.url.clone();
    let pool = TokioPostgres::new(move || {
        let url = url.clone();
        async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        }
    });
    let tried = Arc::new(AtomicU32::new(0));
    let count = async |mut cx: Ctx<'_>, _: i32| -> Result<i32> {
        let (pool, tried) = (cx.state::<Arc<TokioPostgres>>()?, cx.state::<Arc<AtomicU32>>()?);
        let add = cx.transaction("add").isolation(Isolation::Serializable).run(&*pool, async |tx| {
            tried.fetch_add(1, Ordering::SeqCst);
            let value: i32 = tx.query_one("select value from counter", &[]).await?.get(0);
            tx.execute("update counter set value = $1", &[&(value + 1)]).await?;
            Ok::<_, Error>(value)
        });
        Ok(add.await?)
    };
    let worker =
        Worker::builder(&db.client).workflow_fn("count", count).state(Arc::new(pool)).state(tried.clone());
    let _worker = worker.max_in_flight(8).start().await.unwrap();
    ambo::enqueue_all(&db.client, (0..40).map(|n| Enqueue::named("count", &n))).await.unwrap();
    db.until("select count(*) = 40 from ambo.outcome where status = 'succeeded'").await;
    assert_eq!(db.number("select value::int8 from counter").await, 40);
    let distinct = "select count(distinct output::text) from ambo.outcome";
    assert_eq!(db.number(distinct).await, 40, "two steps read the same value");
    assert!(tried.load(Ordering::SeqCst) > 40, "there was no conflict: nothing was shown");
}

#[tokio::test]
async fn g5_a_worker_that_lost_its_lease_records_nothing() {
    let db = database().await;
    let register = "select worker_id from ambo.register_worker('w', '', 0, '{default}', '{a}', false)";
    let (old, new) = (db.number(register).await, db.number(register).await);
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    let claim = "select run_id from ambo.claim($1, 1, '{default,default}', array['a', ambo.lane('a', null, null, true)],
                                               '{0,0}', '{0,0}', '{}') where run_id is not null";
    let run: uuid::Uuid = db.sql.query_one(claim, &[&old]).await.unwrap().get(0);
    let silent = "update ambo.heartbeat set at = now() - interval '1 hour' where worker_id = $1";
    db.sql.execute(silent, &[&old]).await.unwrap();
    db.sql.query("select ambo.heartbeat($1, 0, false)", &[&new]).await.unwrap();
    db.sql.query("select ambo.bury_worker($1, $2, 10)", &[&new, &old]).await.unwrap();
    let again: uuid::Uuid = db.sql.query_one(claim, &[&new]).await.unwrap().get(0);
    assert_eq!(run, again);
    // The old one comes back and says that it is done; and once more as if it were the new one's attempt.
    for attempt in [1, 2] {
        let flush =
            "select ambo.flush($1, array[$2::uuid], array[$3::int], '{1}', '{s}', '{1}', '{null}', '{1}',
            array[$2::uuid], array[$3::int], '{succeeded}', '{1}', '{null}')";
        let fenced: Vec<uuid::Uuid> = db.sql.query_one(flush, &[&old, &run, &attempt]).await.unwrap().get(0);
        assert!(fenced.contains(&run));
    }
    let recorded = "select (select count(*) from ambo.checkpoint) + (select count(*) from ambo.outcome)";
    assert_eq!(db.number(recorded).await, 0);
    assert_eq!(db.number("select worker_id from ambo.claim").await, new);
}

#[tokio::test]
async fn g6_a_key_means_one_run_however_many_ask_at_once() {
    let db = database().await;
    let mut all = Vec::new();
    for _ in 0..8 {
        let caller = connect(&db.url).await;
        let ask = async move {
            Enqueue::named("pay", &serde_json::json!({"id": 7})).key("order-7").on(&caller).await
        };
        all.push(tokio::spawn(ask));
    }
    let (mut runs, mut new) = (std::collections::BTreeSet::new(), 0);
    for one in all {
        let enqueued = one.await.unwrap().unwrap();
        new += i32::from(enqueued.is_new);
        runs.insert(enqueued.run);
    }
    assert_eq!((runs.len(), new), (1, 1));
    assert_eq!(db.number("select count(*) from ambo.run").await, 1);
    // The same value, spelled otherwise; another value; another workflow.
    let same = db.number("select count(*) from ambo.run where id = ambo.enqueue_workflow('pay', '{ \"id\" : 7 }', key => 'order-7')");
    assert_eq!(same.await, 1);
    let other = Enqueue::named("pay", &serde_json::json!({"id": 8})).key("order-7").on(&db.client).await;
    assert_eq!(other.unwrap_err().code(), Code::KeyConflict);
    assert!(Enqueue::named("refund", &7).key("order-7").on(&db.client).await.unwrap().is_new);
}

#[tokio::test]
async fn g6_a_key_lives_as_long_as_its_run_at_least() {
    let db = database().await;
    let pay = || Enqueue::named("pay", &1).key("k").key_lifetime(Duration::from_millis(1));
    let first = pay().on(&db.client).await.unwrap();
    db.until("select expires_at < now() from ambo.run_key").await;
    assert_eq!(db.number("select ambo.expire_keys(10)::int8").await, 0, "its run has not ended");
    assert_eq!(pay().on(&db.client).await.unwrap().run, first.run);
    db.client.cancel(first.run, "enough").await.unwrap();
    assert_eq!(db.number("select ambo.expire_keys(10)::int8").await, 1);
    assert!(pay().on(&db.client).await.unwrap().is_new);
}

#[tokio::test]
async fn g7_runs_of_a_lane_are_claimed_in_the_order_of_their_commits() {
    let db = database().await;
    let (first, second) = (connect(&db.url).await, connect(&db.url).await);
    // The one that began first commits last, with a run before and one after.
    first.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    second.batch_execute("select ambo.enqueue_workflow('a', '1')").await.unwrap();
    first.batch_execute("select ambo.enqueue_workflow('a', '2'); commit").await.unwrap();
    second.batch_execute("select ambo.enqueue_workflow('a', '3')").await.unwrap();
    db.sql
        .batch_execute("select ambo.enqueue_workflows(array_fill('a'::text, '{3}'), '{4,5,6}'::json[])")
        .await
        .unwrap();
    let worker =
        db.number("select worker_id from ambo.register_worker('w', '', 0, '{default}', '{a}', false)").await;
    let claim = "select input::text from ambo.claim($1, 10, '{default}', '{a}', '{0}', '{0}', '{}') where run_id is not null";
    let order: Vec<String> =
        db.sql.query(claim, &[&worker]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(order, ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test]
async fn g8_bad_input_is_refused_at_the_call_and_what_cannot_run_is_dead_with_its_reason() {
    let db = database().await;
    let refused = [
        (Enqueue::named("", &1), Code::InvalidName),
        (Enqueue::named("a", &1).queue("nowhere"), Code::UnknownQueue),
        (Enqueue::named("a", &1).priority(40_000), Code::InvalidOption),
        (Enqueue::named("a", &1).attempts(0), Code::InvalidOption),
        (Enqueue::named("a", &1).timeout(Duration::ZERO), Code::InvalidOption),
        (Enqueue::named("a", &1).key(""), Code::InvalidName),
        (Enqueue::named("a", &"x".repeat(3 << 20)), Code::TooLarge),
    ];
    for (enqueue, code) in refused {
        assert_eq!(enqueue.on(&db.client).await.unwrap_err().code(), code);
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 0);

    let worker = Worker::builder(&db.client)
        .workflow_fn("number", async |_: Ctx<'_>, n: i32| -> Result<i32> { Ok(n) });
    let _worker = worker.start().await.unwrap();
    let bad = Enqueue::named("number", &"seven").on(&db.client).await.unwrap().run;
    let good = Enqueue::named("number", &7).on(&db.client).await.unwrap().run;
    let result: Result<i32, Failure<Error>> = db.client.handle::<Untyped>(bad).result_as().await;
    let Err(Failure::Application(error) | Failure::Ambo(error)) = result else { panic!("{result:?}") };
    assert_eq!(error.code(), Code::NotDecodable);
    assert_eq!(db.client.show_run(bad).await.unwrap().summary.state, "dead");
    let result: Result<i32, Failure<Error>> = db.client.handle::<Untyped>(good).result_as().await;
    assert_eq!(result.unwrap(), 7);
}
