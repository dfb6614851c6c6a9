//! Keys that mean something else than one run for good: dedup, throttle, debounce.

use std::sync::Arc;
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Result, RunId, Untyped, Worker};

use crate::harness::{Database, connect, database};

fn report(n: i64) -> Enqueue<Untyped> {
    Enqueue::named("report", &n).key("customer-7")
}

#[tokio::test]
async fn a_dedup_key_names_its_run_until_that_has_ended() {
    let db = database().await;
    let first = report(1).dedup().on(&db.client).await.unwrap();
    let again = report(2).dedup().on(&db.client).await.unwrap();
    assert!(first.is_new && !again.is_new && again.run == first.run, "whatever its input");
    let other = Enqueue::named("report", &1).key("customer-8").dedup().on(&db.client).await.unwrap();
    assert!(other.is_new, "another key");
    assert!(
        report(1).on(&db.client).await.unwrap().is_new,
        "an idempotency key of the same name is another one"
    );
    db.client.cancel(first.run, "enough").await.unwrap();
    let next = report(3).dedup().on(&db.client).await.unwrap();
    assert!(next.is_new && next.run != first.run, "free again at once");
    // Begun is not ended.
    let worker = db
        .number("select worker_id from ambo.register_worker('w', '', 0, '{default}', '{report}', false)")
        .await;
    let claim = "select count(*) from ambo.claim($1, 10, '{default}', '{report}', '{0}', '{0}', '{}') where run_id is not null";
    assert_eq!(db.sql.query_one(claim, &[&worker]).await.unwrap().get::<_, i64>(0), 3);
    assert_eq!(report(4).dedup().on(&db.client).await.unwrap().run, next.run);
}

#[tokio::test]
async fn a_run_is_not_retried_or_rewound_beside_another_that_has_its_dedup_key() {
    let db = database().await;
    let asked = async || Enqueue::<Untyped>::named("w", &1).key("k").dedup().on(&db.client).await.unwrap();
    let first = asked().await.run;
    db.client.cancel(first, "x").await.unwrap();
    let second = asked().await;
    assert!(second.is_new);
    for refused in [db.client.retry(first).await, db.client.rewind(first, "1").await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::WrongState);
        assert!(refused.to_string().contains(&second.run.to_string()), "{refused}");
    }
    db.client.cancel(second.run, "x").await.unwrap();
    db.client.retry(first).await.unwrap();
    let third = asked().await;
    assert_eq!((third.is_new, third.run), (false, first), "it has the key again");
    db.client.cancel(first, "x").await.unwrap();
    let fourth = asked().await.run;
    db.client.cancel(fourth, "x").await.unwrap();
    db.client.rewind(first, "1").await.unwrap();
    assert_eq!(asked().await.run, first, "so it has by a rewind");
    // Another key of the same name is another one.
    let plain = Enqueue::<Untyped>::named("w", &1).key("k").on(&db.client).await.unwrap().run;
    db.client.cancel(plain, "x").await.unwrap();
    db.client.retry(plain).await.unwrap();
}

/// A run with a dedup key that has ended.
async fn ended(db: &Database) -> RunId {
    let run = report(1).dedup().on(&db.client).await.unwrap().run;
    db.client.cancel(run, "").await.unwrap();
    run
}

const WAITS: &str = "select count(*) = 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";

#[tokio::test]
async fn a_run_that_lives_again_and_an_enqueue_of_its_dedup_key_make_one_run() {
    let db = database().await;
    let (mut left, right) = (connect(&db.url).await, Arc::new(connect(&db.url).await));
    for act in ["select ambo.retry_run($1)", "select ambo.rewind_run($1, '1')"] {
        let run = ended(&db).await;
        let tx = left.transaction().await.unwrap();
        tx.execute(act, &[&run.as_uuid()]).await.unwrap();
        let asks = right.clone();
        let waits = tokio::spawn(async move { report(2).dedup().on(&*asks).await });
        db.until(WAITS).await;
        tx.commit().await.unwrap();
        let found = waits.await.unwrap().unwrap();
        assert_eq!((found.run, found.is_new), (run, false), "{act}");
        db.client.cancel(run, "").await.unwrap();
    }

    let run = ended(&db).await;
    let tx = left.transaction().await.unwrap();
    let next = report(2).dedup().on(&tx).await.unwrap();
    assert!(next.is_new);
    let client = db.client.clone();
    let waits = tokio::spawn(async move { client.retry(run).await });
    db.until(WAITS).await;
    tx.commit().await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap_err().code(), Code::WrongState);
    db.client.cancel(next.run, "").await.unwrap();

    // Also long after its end, when nothing but itself knows that it had the key.
    let expire = "update ambo.run_key set expires_at = '-infinity'; select ambo.expire_keys(10)";
    db.sql.batch_execute(expire).await.unwrap();
    assert_eq!(db.number("select count(*) from ambo.run_key").await, 0);
    db.client.retry(run).await.unwrap();
    let found = report(3).dedup().on(&db.client).await.unwrap();
    assert_eq!((found.run, found.is_new), (run, false));
}

#[tokio::test]
async fn two_transactions_with_a_dedup_key_make_one_run() {
    let db = database().await;
    for round in 0..2 {
        let (mut left, right) = (connect(&db.url).await, connect(&db.url).await);
        let tx = left.transaction().await.unwrap();
        let first = report(1).dedup().on(&tx).await.unwrap();
        assert!(first.is_new, "in the second round the key is taken over from a run that has ended");
        let waits = tokio::spawn(async move { report(2).dedup().on(&right).await });
        db.until(WAITS).await;
        tx.commit().await.unwrap();
        let second = waits.await.unwrap().unwrap();
        assert!(!second.is_new && second.run == first.run, "round {round}");
        db.client.cancel(first.run, "enough").await.unwrap();
    }
    // The first one thinks better of it: the second has the key.
    let (mut left, right) = (connect(&db.url).await, connect(&db.url).await);
    let tx = left.transaction().await.unwrap();
    let first = report(1).dedup().on(&tx).await.unwrap();
    let waits = tokio::spawn(async move { report(2).dedup().on(&right).await });
    db.until(WAITS).await;
    tx.rollback().await.unwrap();
    let second = waits.await.unwrap().unwrap();
    assert!(second.is_new && second.run != first.run);
}

#[tokio::test]
async fn a_throttled_key_makes_one_run_in_its_period() {
    let db = database().await;
    let hourly = |n| report(n).throttle(Duration::from_secs(3600));
    let first = hourly(1).on(&db.client).await.unwrap();
    db.client.cancel(first.run, "enough").await.unwrap();
    let again = hourly(2).on(&db.client).await.unwrap();
    assert!(!again.is_new && again.run == first.run, "also after it has ended");
    db.sql.batch_execute("update ambo.run_key set expires_at = now() - interval '1 second'").await.unwrap();
    let next = hourly(3).on(&db.client).await.unwrap();
    assert!(next.is_new);
    assert_eq!(hourly(4).on(&db.client).await.unwrap().run, next.run);
    db.sql.batch_execute("update ambo.run_key set expires_at = now() - interval '1 second'").await.unwrap();
    assert_eq!(db.number("select ambo.expire_keys(10)::int8").await, 1, "though its run has not ended");
}

async fn echo(_: Ctx<'_>, n: i64) -> Result<i64> {
    Ok(n)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debounced_run_starts_when_all_is_quiet_with_the_last_input() {
    let db = database().await;
    let quietly = |n, ms| report(n).debounce(Duration::from_millis(ms));
    let first = quietly(1, 3_600_000).on(&db.client).await.unwrap();
    let again = quietly(2, 7_200_000).on(&db.client).await.unwrap();
    assert!(first.is_new && !again.is_new && again.run == first.run);
    let left = "select extract(epoch from due_at - now())::int8 from ambo.timer";
    assert!((3601..=7200).contains(&db.number(left).await), "delayed anew");
    quietly(3, 7_200_000).debounce_max(Duration::from_secs(7_200)).on(&db.client).await.unwrap();
    let over = "select count(*) from ambo.timer t where t.due_at <= ambo.run_time(t.run_id) + interval '7200 seconds'";
    assert_eq!(db.number(over).await, 1, "but not beyond the longest");
    quietly(4, 1).on(&db.client).await.unwrap();
    let _worker = Worker::builder(&db.client).workflow_fn("report", echo).start().await.unwrap();
    let result = db.client.handle::<Untyped>(first.run).result_as::<i64, ambo::Error>().await;
    assert_eq!(result.unwrap(), 4);
    let next = quietly(5, 1).on(&db.client).await.unwrap();
    assert!(next.is_new, "it has started: this is another run");
    let result = db.client.handle::<Untyped>(next.run).result_as::<i64, ambo::Error>().await;
    assert_eq!(result.unwrap(), 5);
}

#[tokio::test]
async fn a_debounced_run_is_not_started_while_its_next_input_is_uncommitted() {
    let db = database().await;
    let quiet = Duration::from_secs(3600);
    let quiet_is_over = "update ambo.timer set due_at = now(), xid = pg_current_xact_id()";
    let first = report(1).debounce(quiet).on(&db.client).await.unwrap();
    db.sql.batch_execute(quiet_is_over).await.unwrap();
    let mut caller = connect(&db.url).await;
    let tx = caller.transaction().await.unwrap();
    let again = report(2).debounce(quiet).on(&tx).await.unwrap();
    assert_eq!(again.run, first.run);
    let fired = "select fired::int8 from ambo.fire_timers(10)";
    assert_eq!(db.number(fired).await, 0, "it is held");
    tx.commit().await.unwrap();
    assert_eq!(db.number(fired).await, 0, "it is delayed anew");
    db.sql.batch_execute(quiet_is_over).await.unwrap();
    assert_eq!(db.number(fired).await, 1);
    assert_eq!(db.number("select (input::text)::int8 from ambo.run").await, 2);
    // And the other way round: who comes after the start waits for that, and has a run of its own.
    let second = report(3).debounce(quiet).on(&db.client).await.unwrap();
    assert!(second.is_new);
    let mut keeper = connect(&db.url).await;
    let firing = keeper.transaction().await.unwrap();
    db.sql.batch_execute(quiet_is_over).await.unwrap();
    firing.execute("select ambo.fire_timers(10)", &[]).await.unwrap();
    let late = connect(&db.url).await;
    let waits = tokio::spawn(async move { report(4).debounce(quiet).on(&late).await });
    db.until(WAITS).await;
    firing.commit().await.unwrap();
    let third = waits.await.unwrap().unwrap();
    assert!(third.is_new && third.run != second.run);
}

#[tokio::test]
async fn a_debounced_run_whose_time_is_up_at_the_latest_is_started_by_the_next_enqueue() {
    let db = database().await;
    let (quiet, longest) = (Duration::from_secs(3600), Duration::from_secs(7200));
    let busy = |n| report(n).debounce(quiet).debounce_max(longest);
    let first = busy(1).on(&db.client).await.unwrap();
    // Nobody looks at timers here, as where the row is always locked by somebody who enqueues.
    busy(2).on(&db.client).await.unwrap();
    let left = "select count(*) from ambo.timer";
    assert_eq!(db.number(left).await, 1);
    let soon = |n| report(n).debounce(Duration::from_millis(1)).debounce_max(Duration::from_millis(1));
    db.until(&format!("select clock_timestamp() > ambo.run_time('{}') + interval '1 ms'", first.run)).await;
    let mut caller = connect(&db.url).await;
    let tx = caller.transaction().await.unwrap();
    assert_eq!(soon(3).on(&tx).await.unwrap().run, first.run);
    tx.rollback().await.unwrap();
    assert_eq!(db.number(left).await, 1, "both or neither");
    let third = soon(4).on(&db.client).await.unwrap();
    assert!(!third.is_new && third.run == first.run);
    assert_eq!(db.number(left).await, 0);
    assert_eq!(db.number("select count(*) from ambo.ready where attempt = 0").await, 1);
    assert_eq!(db.number("select (input::text)::int8 from ambo.run").await, 4, "with the last input");
    assert!(soon(5).on(&db.client).await.unwrap().is_new, "it has started: this is another run");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_to_start_of_a_debounced_run_counts_from_the_end_of_the_quiet_period() {
    let db = database().await;
    let (within, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    let counts = "select count(*) from ambo.run r join ambo.timer t on t.run_id = r.id
        where r.start_by = t.due_at + interval '1 minute' and t.due_at > now() + $1::text::interval";
    let count = async |after: &str| -> i64 { db.sql.query_one(counts, &[&after]).await.unwrap().get(0) };
    let first = report(1).debounce(hour).start_within(within).on(&db.client).await.unwrap();
    assert_eq!(count("59 min").await, 1);
    // It moves along, whatever the others say of it, in bulk and from SQL too.
    report(2).debounce(hour * 2).on(&db.client).await.unwrap();
    assert_eq!(count("119 min").await, 1);
    ambo::enqueue_all(&db.client, [report(3).debounce(hour * 3).start_within(hour)]).await.unwrap();
    assert_eq!(count("179 min").await, 1);
    let other =
        "select ambo.enqueue_workflow('report', '1', key => 'q', debounce => '4 h', start_within => '1 min')";
    db.sql.batch_execute(other).await.unwrap();
    assert_eq!((count("179 min").await, count("239 min").await), (2, 1));
    // Started by an enqueue, for it may not be put off any more, it has its minute from then on.
    report(4)
        .debounce(Duration::from_millis(1))
        .debounce_max(Duration::from_millis(1))
        .on(&db.client)
        .await
        .unwrap();
    let started = "select count(*) from ambo.ready where start_by between now() + interval '30 s' and now() + interval '1 min'";
    assert_eq!(db.number(started).await, 1);
    let _worker = Worker::builder(&db.client).workflow_fn("report", echo).start().await.unwrap();
    let result = db.client.handle::<Untyped>(first.run).result_as::<i64, ambo::Error>().await;
    assert_eq!(result.unwrap(), 4);
}

#[tokio::test]
async fn rules_in_bulk_and_from_sql_are_the_same_rules() {
    let db = database().await;
    let runs = [1, 2, 3].map(|n| report(n).dedup());
    let plain = Enqueue::named("report", &4);
    let all = ambo::enqueue_all(&db.client, runs.into_iter().chain([plain])).await.unwrap();
    assert_eq!(all.iter().map(|one| one.is_new).collect::<Vec<_>>(), [true, false, false, true]);
    assert!(all[1].run == all[0].run && all[3].run != all[0].run);
    let from_sql = "select count(*) from ambo.run
        where id = ambo.enqueue_workflow('report', '9', key => 'customer-7', dedup => true)";
    assert_eq!(db.number(from_sql).await, 1);
    let two = [1, 2].map(|n| report(n).debounce(Duration::from_secs(60)));
    let two = ambo::enqueue_all(&db.client, two).await.unwrap();
    assert!(two[0].is_new && !two[1].is_new && two[1].run == two[0].run);
    assert_eq!(
        db.number("select (input::text)::int8 from ambo.run r join ambo.timer t on t.run_id = r.id").await,
        2
    );
}

#[tokio::test]
async fn rules_that_cannot_be_are_refused() {
    let db = database().await;
    let minute = Duration::from_secs(60);
    let refused = [
        Enqueue::named("report", &1).dedup(),
        report(1).dedup().throttle(minute),
        report(1).throttle(Duration::ZERO),
        report(1).debounce(minute).delay(minute),
        report(1).debounce(minute).debounce_max(Duration::from_secs(1)),
        report(1).debounce_max(minute),
        report(1).debounce(minute).start_by(jiff::Timestamp::now() + minute * 60),
    ];
    for enqueue in refused {
        assert_eq!(enqueue.on(&db.client).await.unwrap_err().code(), Code::InvalidOption);
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 0);
}

#[tokio::test]
async fn keys_of_the_living_outlive_the_keepers_round() {
    let db = database().await;
    let first = report(1).dedup().on(&db.client).await.unwrap();
    db.sql.batch_execute("update ambo.run_key set expires_at = now() - interval '1 second'").await.unwrap();
    assert_eq!(db.number("select ambo.expire_keys(10)::int8").await, 1, "looked at, and put off");
    assert_eq!(db.number("select ambo.expire_keys(10)::int8").await, 0);
    assert_eq!(report(2).dedup().on(&db.client).await.unwrap().run, first.run);
    db.client.cancel(first.run, "enough").await.unwrap();
    db.sql.batch_execute("update ambo.run_key set expires_at = now() - interval '1 second'").await.unwrap();
    assert_eq!(db.number("select ambo.expire_keys(10)::int8").await, 1);
    assert_eq!(db.number("select count(*) from ambo.run_key").await, 0);
}
