//! Fencing: a worker that lost its lease records nothing, however long it was paused and whatever it had open.

use ambo::Client;
use tokio_postgres::types::ToSql;

use crate::child::Child;
use crate::harness::{Database, connect, database};
use crate::workflows::{Ledger, close_gate, open_gate};

/// A database in which a silent worker is dead after two seconds, also if its connection is open.
async fn impatient() -> Database {
    let db = database().await;
    Ledger::prepare(&db).await;
    db.sql.batch_execute("update ambo.installation set lease = '2 seconds'").await.unwrap();
    close_gate(&db).await;
    db
}

/// How the run ended, and under which attempt each of its facts was recorded.
async fn story(db: &Database) -> String {
    let story = "select string_agg(format('%s by attempt %s', f.what, f.attempt), ', ' order by f.n) from (
        select 1, position as n, name, attempt from ambo.checkpoint union all
        select 2, '9', status::text, attempt from ambo.outcome) f (kind, n, what, attempt)";
    db.sql.query_one(story, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn nothing_that_a_worker_paused_past_its_lease_writes_lands() {
    let db = impatient().await;
    let (mut zombie, old_id) = Child::worker(&db.url, &[]).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated')").await.unwrap();
    zombie.says("gate").await;
    zombie.signal("STOP");
    let (mut heir, _) = Child::worker(&db.url, &[]).await;
    heir.says("gate").await;
    open_gate(&db).await;
    db.until("select count(*) = 1 from ambo.outcome").await;
    let expected = "before by attempt 1, gate by attempt 2, after by attempt 2, succeeded by attempt 2";
    assert_eq!(story(&db).await, expected);

    // Its step at the gate succeeds now, and it wants to record that and go on.
    zombie.signal("CONT");
    let new_id: i64 = zombie.says("worker").await.parse().unwrap();
    assert_ne!(new_id, old_id, "it comes back under an id never used before");
    assert_eq!(story(&db).await, expected);
    assert_eq!(
        db.number("select count(*) from effect where step = 'after'").await,
        1,
        "it went on without a claim"
    );
    assert_eq!(db.number("select count(*) from ambo.claim").await, 0);

    // And it goes on working.
    heir.kill().await;
    db.sql.batch_execute("select ambo.enqueue_workflow('short')").await.unwrap();
    db.until("select count(*) = 2 from ambo.outcome").await;
    assert_eq!(db.number(&format!("select count(*) from ambo.worker where id = {new_id}")).await, 1);
}

#[tokio::test]
async fn the_timeout_of_a_run_ends_it_though_its_worker_is_paused() {
    let db = impatient().await;
    let (mut paused, _) = Child::worker(&db.url, &[]).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated', timeout => '1 second')").await.unwrap();
    paused.says("gate").await;
    paused.signal("STOP");
    let (_heir, _) = Child::worker(&db.url, &[]).await;
    db.until("select count(*) = 1 from ambo.outcome").await;
    // Nobody has begun it again.
    let ended = "before by attempt 1, failed by attempt 2";
    assert_eq!(story(&db).await, ended);
    let code = db.sql.query_one("select error->>'code' from ambo.outcome", &[]).await.unwrap();
    assert_eq!(code.get::<_, &str>(0), "AMBO024");
    paused.signal("CONT");
    open_gate(&db).await;
    paused.says("worker").await;
    assert_eq!(story(&db).await, ended);
}

#[tokio::test]
async fn a_pause_shorter_than_the_lease_costs_nothing_while_the_connection_stands() {
    let db = database().await;
    Ledger::prepare(&db).await;
    close_gate(&db).await;
    let (mut paused, _) = Child::worker(&db.url, &[]).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated')").await.unwrap();
    paused.says("gate").await;
    let (_other, other) = Child::worker(&db.url, &[]).await;
    paused.signal("STOP");
    // The other one is the keeper by then, and would have buried a worker whose connection was gone.
    db.until(&format!("select worker_id = {other} from ambo.keeper")).await;
    db.until("select min(at) < now() - interval '4 seconds' from ambo.heartbeat").await;
    paused.signal("CONT");
    open_gate(&db).await;
    db.until("select count(*) = 1 from ambo.outcome").await;
    let expected = "before by attempt 1, gate by attempt 1, after by attempt 1, succeeded by attempt 1";
    assert_eq!(story(&db).await, expected);
}

/// Waits until a connection to this database waits for a lock.
async fn until_waiting(db: &Database, kind: &str) {
    db.until(&format!(
        "select count(*) = 1 from pg_locks l join pg_stat_activity a using (pid)
         where a.datname = current_database() and l.locktype = '{kind}' and not l.granted
             and l.objid is distinct from 77"
    ))
    .await;
}

/// A transaction step is open when its worker loses the run to another.
async fn transaction_across_the_loss(hide: bool) {
    let db = impatient().await;
    let (mut zombie, old_id) = Child::worker(&db.url, &[]).await;
    db.sql
        .batch_execute(&format!("select ambo.enqueue_workflow('gated transaction', '{hide}')"))
        .await
        .unwrap();
    zombie.says("gate").await;
    zombie.signal("STOP");
    let (mut heir, heir_id) = Child::worker(&db.url, &[]).await;
    db.until(&format!("select count(*) = 1 from ambo.claim where worker_id = {heir_id}")).await;
    if hide {
        // The keeper cannot end the old transaction; the heir waits for it.
        until_waiting(&db, "transactionid").await;
        zombie.signal("CONT");
    } else {
        heir.says("gate").await;
    }
    open_gate(&db).await;
    db.until("select count(*) = 1 from ambo.outcome").await;
    if !hide {
        zombie.signal("CONT");
    }
    let new_id: i64 = zombie.says("worker").await.parse().unwrap();
    assert_ne!(new_id, old_id);
    // Whatever the zombie had begun anew is over: it has no connection with a transaction left.
    db.until(
        "select count(*) = 0 from pg_stat_activity where datname = current_database() and backend_xid is not null",
    )
    .await;
    assert_eq!(story(&db).await, "count by attempt 2, succeeded by attempt 2");
    assert_eq!(db.number("select count(*) from counted").await, 1, "the step took effect once");
    assert_eq!(db.number("select count(*) from ambo.transaction_marker").await, 0);
}

#[tokio::test]
async fn a_transaction_step_open_across_the_loss_of_its_claim_cannot_commit() {
    transaction_across_the_loss(true).await;
}

#[tokio::test]
async fn the_keeper_ends_the_open_transaction_steps_of_a_dead_worker() {
    transaction_across_the_loss(false).await;
}

const CLAIM: &str =
    "select run_id from ambo.claim($1, 10, '{default}', '{a}', '{0}', '{0}', '{}') where run_id is not null";

/// Two workers that are rows only; the first has claimed a run.
async fn two_workers(db: &Database) -> (i64, i64, uuid::Uuid) {
    let register = "select worker_id from ambo.register_worker('w', '', 0, '{default}', '{a}', false)";
    let (first, second) = (db.number(register).await, db.number(register).await);
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    let run = db.sql.query_one(CLAIM, &[&first]).await.unwrap().get(0);
    let silent = "update ambo.heartbeat set at = now() - interval '1 hour' where worker_id = $1";
    db.sql.execute(silent, &[&first]).await.unwrap();
    let dead = db.sql.query_one("select dead from ambo.heartbeat($1, 0, false)", &[&second]).await.unwrap();
    assert_eq!(dead.get::<_, Vec<i64>>(0), [first], "the keeper sees that the first is dead");
    (first, second, run)
}

const BURY: &str = "select recovered, buried from ambo.bury_worker($1, $2, 100)";
const FLUSH: &str = "select ambo.flush($1, array[$2::uuid], '{1}', '{1}', '{s}', '{1}', '{null}', '{1}',
    array[$2::uuid], '{1}', '{succeeded}', '{1}', '{null}')";

#[tokio::test]
async fn a_buried_worker_can_do_nothing() {
    let db = database().await;
    let (first, second, run) = two_workers(&db).await;
    let buried = db.sql.query_one(BURY, &[&second, &first]).await.unwrap();
    assert_eq!((buried.get::<_, i32>(0), buried.get::<_, bool>(1)), (1, true));

    let fenced = db.sql.query_one(FLUSH, &[&first, &run]).await.unwrap().get::<_, Vec<uuid::Uuid>>(0);
    assert!(fenced.contains(&run), "the flush says that the run is lost");
    let refused: [(&str, &[&(dyn ToSql + Sync)]); 3] = [
        (CLAIM, &[&first]),
        (
            "select * from ambo.start($1, '{a}', '{1}', '{default}', '{null}', '{0}', '{null}', '{null}', '{5}', '{null}')",
            &[&first],
        ),
        (
            "with begun as materialized (select ambo.begin_step($1, $2, 1, '1', 15000))
          select ambo.finish_step($1, $2, 1, '1', 's', '1', null, 1) from begun",
            &[&first, &run],
        ),
    ];
    for (sql, params) in refused {
        let error = db.sql.query(sql, params).await.expect_err(sql);
        assert_eq!(error.code().map(|code| code.code()), Some("AM030"), "{sql}: {error:?}");
    }
    let handed_back = "select ambo.hand_back($1, array[$2::uuid], '{1}')";
    assert_eq!(db.sql.query_one(handed_back, &[&first, &run]).await.unwrap().get::<_, i32>(0), 0);
    let alive = db.sql.query_one("select alive from ambo.heartbeat($1, 1, false)", &[&first]).await.unwrap();
    assert!(!alive.get::<_, bool>(0));
    for table in ["checkpoint", "outcome", "claim", "transaction_marker"] {
        assert_eq!(db.number(&format!("select count(*) from ambo.{table}")).await, 0, "{table}");
    }
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 1").await, 1);
}

#[tokio::test]
async fn a_burial_waits_for_a_flush_that_is_under_way() {
    let db = database().await;
    let (first, second, run) = two_workers(&db).await;
    db.sql.batch_execute("update ambo.installation set lease = '45 minutes'").await.unwrap();
    let late = connect(&db.url).await;
    late.batch_execute("begin").await.unwrap();
    late.execute(FLUSH, &[&first, &run]).await.unwrap();
    let buried = db.sql.query_one(BURY, &[&second, &first]).await.unwrap();
    assert_eq!((buried.get::<_, i32>(0), buried.get::<_, bool>(1)), (0, false));
    late.batch_execute("commit").await.unwrap();
    let buried = db.sql.query_one(BURY, &[&second, &first]).await.unwrap();
    assert_eq!((buried.get::<_, i32>(0), buried.get::<_, bool>(1)), (0, true), "the run had ended");
    assert_eq!(story(&db).await, "s by attempt 1, succeeded by attempt 1");
}

/// As of a process that was stopped while the answer to its claim filled the socket: its backend waits for it for ever.
#[tokio::test]
async fn the_keeper_ends_what_holds_the_lock_of_a_worker_that_has_long_been_silent() {
    let db = database().await;
    let (first, second, run) = two_workers(&db).await;
    let stuck = connect(&db.url).await;
    stuck.batch_execute("begin").await.unwrap();
    stuck.execute(FLUSH, &[&first, &run]).await.unwrap();
    let bury = "select recovered, buried, held from ambo.bury_worker($1, $2, 100)";
    let buried = db.sql.query_one(bury, &[&second, &first]).await.unwrap();
    assert_eq!((buried.get(0), buried.get(1), buried.get(2)), (0, false, false));
    db.until("select not exists (select from pg_locks where locktype = 'advisory' and mode = 'ShareLock' and database =
        (select oid from pg_database where datname = current_database()))")
        .await;
    assert!(stuck.batch_execute("commit").await.is_err(), "its backend was ended");
    let buried = db.sql.query_one(bury, &[&second, &first]).await.unwrap();
    assert_eq!((buried.get(0), buried.get(1), buried.get(2)), (1, true, false));
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 0, "what it held was rolled back");
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 1").await, 1);
}

#[tokio::test]
async fn a_burial_ends_the_steps_of_its_own_worker_and_of_none_with_that_number_in_another_schema() {
    let db = database().await;
    Client::connect_unchecked(&db.url, "beside").await.unwrap().migrate().await.unwrap();
    let (first, second, run) = two_workers(&db).await;
    let mut steps = Vec::new();
    for schema in ["ambo", "beside"] {
        let step = connect(&db.url).await;
        step.batch_execute("begin").await.unwrap();
        let begin = format!("select {schema}.begin_step($1, $2, 1, '1', 15000)");
        step.execute(&begin, &[&first, &run]).await.unwrap();
        steps.push(step);
    }
    let buried = db.sql.query_one(BURY, &[&second, &first]).await.unwrap();
    assert!(buried.get::<_, bool>(1));
    assert!(steps[0].batch_execute("commit").await.is_err(), "its step was ended");
    steps[1].batch_execute("commit").await.expect("it is somebody else's");
}

#[tokio::test]
async fn a_hand_back_waits_for_a_flush_that_is_under_way() {
    let db = database().await;
    let (first, _, run) = two_workers(&db).await;
    let late = connect(&db.url).await;
    late.batch_execute("begin").await.unwrap();
    // It has looked at the claim, and written.
    let record = "select ambo.flush($1, array[$2::uuid], '{1}', '{1}', '{s}', '{1}', '{null}', '{1}', '{}', '{}', '{}', '{}', '{}')";
    late.execute(record, &[&first, &run]).await.unwrap();
    let giving = connect(&db.url).await;
    let give = tokio::spawn(async move {
        giving.query_one("select ambo.hand_back($1, array[$2::uuid], '{1}')", &[&first, &run]).await
    });
    until_waiting(&db, "advisory").await;
    late.batch_execute("commit").await.unwrap();
    assert_eq!(give.await.unwrap().unwrap().get::<_, i32>(0), 1);
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 1);
}

#[tokio::test]
async fn a_claim_under_way_when_its_worker_leaves_is_handed_back() {
    let db = database().await;
    let register = "select worker_id from ambo.register_worker('w', '', 0, '{default}', '{a}', false)";
    let worker = db.number(register).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    let late = connect(&db.url).await;
    late.batch_execute("begin").await.unwrap();
    assert_eq!(late.query(CLAIM, &[&worker]).await.unwrap().len(), 1);
    let leaving = connect(&db.url).await;
    let leave = tokio::spawn(async move { leaving.query_one("select ambo.leave($1)", &[&worker]).await });
    until_waiting(&db, "advisory").await;
    late.batch_execute("commit").await.unwrap();
    assert_eq!(leave.await.unwrap().unwrap().get::<_, i32>(0), 1);
    assert_eq!(
        db.number("select count(*) from ambo.claim").await,
        0,
        "a claim stands under a worker that is gone"
    );
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 0").await, 1);
}
