//! Dead workers: their runs go on elsewhere, soon, each once, and none is buried with a guilty neighbour.

use crate::child::Child;
use crate::harness::{Database, database};
use crate::workflows::{Ledger, close_gate, open_gate};

const RUNS: i64 = 6000;

/// Three workers with plenty to do, each in the midst of it.
async fn three_under_load(db: &Database) -> Vec<(Child, i64)> {
    Ledger::prepare(db).await;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Child::worker(&db.url, &[("AMBO_CHILD_IN_FLIGHT", "200")]).await);
    }
    // Taken before anything else happens to it: which claims a dead worker left, and when others took them.
    db.sql
        .batch_execute(
            "create table handed_over (run uuid, since timestamptz, at timestamptz default clock_timestamp(), heir bigint);
             create function note() returns trigger language plpgsql as $$
             begin
                 if new.attempt > 1 then insert into public.handed_over (run, heir) values (new.run_id, new.worker_id); end if;
                 return new;
             end $$;
             create trigger note after insert on ambo.claim for each row execute function note();",
        )
        .await
        .unwrap();
    let enqueue = format!(
        "select count(*) from ambo.enqueue_workflows(array_fill('short'::text, array[{RUNS}]),
         array_fill('1'::json, array[{RUNS}]))"
    );
    db.sql.batch_execute(&enqueue).await.unwrap();
    db.until("select count(*) > 300 from ambo.outcome").await;
    workers
}

/// Kills a worker that holds claims, and checks what becomes of them.
async fn assert_runs_of_the_killed_go_on(db: &Database, victim: &mut Child, id: i64) {
    // Stopped first, so that what it holds is known; by the clock it is dead from the kill on.
    let quiet = "select count(*) = 0 from pg_stat_activity where datname = current_database()
        and application_name like 'ambo worker%' and state = 'active' and pid <> pg_backend_pid()";
    let held = format!("select count(*) from ambo.claim where worker_id = {id}");
    loop {
        victim.signal("STOP");
        // What it had sent is still done.
        db.until(quiet).await;
        if db.number(&held).await >= 50 {
            break;
        }
        victim.signal("CONT");
        assert!(
            db.number("select count(*) from ambo.ready").await > 0,
            "the victim was never in the midst of it"
        );
    }
    let killed_at = "create table killed as select clock_timestamp() as at";
    db.sql.batch_execute(killed_at).await.unwrap();
    victim.kill().await;
    // A statement of its last moment, which the server had not begun to read, may have ended some of them.
    db.until(&format!(
        "select not exists (select from ambo.claim where worker_id = {id})
         and not exists (select from ambo.ready where losses > 0)"
    ))
    .await;
    let orphans = db.number("select count(*) from handed_over").await;
    assert!(orphans > 0, "nothing was left to hand over");
    let took =
        "select (extract(epoch from max(h.at) - (select at from killed)) * 1000)::int8 from handed_over h";
    let took = db.number(took).await;
    println!("{orphans} runs of a killed worker were claimed again within {took} ms");
    assert!(took < 5000, "{orphans} runs of a killed worker were claimed again only after {took} ms");
}

async fn assert_all_ended_once(db: &Database) {
    db.until(&format!("select count(*) = {RUNS} from ambo.outcome")).await;
    let query = "select count(*) from ambo.outcome where status <> 'succeeded'";
    assert_eq!(db.number(query).await, 0, "an innocent run did not succeed");
    assert_eq!(db.number("select count(*) from ambo.claim").await, 0);
    assert_eq!(db.number("select count(*) from ambo.ready").await, 0);
    let twice = "select count(*) from (select from effect group by run having count(distinct key) > 1) k";
    assert_eq!(db.number(twice).await, 0);
    // Only what the dead worker held can have run twice, and that by one worker each.
    let repeated =
        "select count(*) from (select from effect e where run not in (select run::text from handed_over)
        group by run having count(*) > 1) r";
    assert_eq!(db.number(repeated).await, 0, "a run that nobody took over was executed twice");
    let handed_on = "select count(*) from (select from handed_over group by run having count(*) > 1) r";
    assert_eq!(db.number(handed_on).await, 0, "a run was handed over twice");
}

#[tokio::test]
async fn the_runs_of_a_killed_worker_are_claimed_again_within_five_seconds() {
    let db = database().await;
    let mut workers = three_under_load(&db).await;
    let keeper = db.number("select worker_id from ambo.keeper").await;
    let at = workers.iter().position(|(_, id)| *id != keeper).expect("one that is not the keeper");
    let (mut victim, id) = workers.swap_remove(at);
    assert_runs_of_the_killed_go_on(&db, &mut victim, id).await;
    assert_all_ended_once(&db).await;
    db.until("select count(*) = 2 from ambo.worker").await;
}

/// The one of these that keeps the house.
pub(crate) async fn take_keeper(db: &Database, workers: &mut Vec<(Child, i64)>) -> (Child, i64) {
    let keeper = db.number("select worker_id from ambo.keeper").await;
    let at = workers.iter().position(|(_, id)| *id == keeper).expect("one of ours keeps the house");
    workers.swap_remove(at)
}

#[tokio::test]
async fn the_runs_of_a_killed_keeper_are_claimed_again_within_five_seconds() {
    let db = database().await;
    let mut workers = three_under_load(&db).await;
    let (mut victim, id) = take_keeper(&db, &mut workers).await;
    assert_runs_of_the_killed_go_on(&db, &mut victim, id).await;
    assert_all_ended_once(&db).await;
    assert_ne!(db.number("select worker_id from ambo.keeper").await, id, "there is another keeper");
}

/// The server's clock was an hour ahead, and is right again: what was written meanwhile lies in the future.
#[tokio::test]
async fn a_database_clock_that_went_back_keeps_no_keeper_and_no_dead_worker_alive() {
    let db = database().await;
    let mut workers = three_under_load(&db).await;
    let (mut victim, id) = take_keeper(&db, &mut workers).await;
    victim.kill().await;
    let ahead = "update ambo.keeper set renewed_at = renewed_at + interval '1 hour', grace_until = now() + interval '1 hour';
        update ambo.heartbeat set at = at + interval '1 hour'";
    db.sql.batch_execute(ahead).await.unwrap();
    db.until(&format!("select not exists (select from ambo.worker where id = {id})")).await;
    db.until(&format!("select count(*) = {RUNS} from ambo.outcome where status = 'succeeded'")).await;
    db.until("select count(*) = 2 from ambo.worker where dead_at is null").await;
}

/// Keeps a worker alive until the test is over: a new one for each that ends.
pub(crate) async fn revive(url: String) {
    loop {
        let (mut child, _) = Child::worker(&url, &[]).await;
        child.ended().await;
    }
}

#[tokio::test]
async fn a_run_that_kills_its_workers_is_buried_alone() {
    let db = database().await;
    Ledger::prepare(&db).await;
    db.sql
        .batch_execute(
            "select ambo.enqueue_workflow('short', '1') from generate_series(1, 20);
             select ambo.enqueue_workflow('poison', '1', attempts => 3);
             select ambo.enqueue_workflow('short', '1') from generate_series(1, 20);",
        )
        .await
        .unwrap();
    let workers = tokio::spawn(revive(db.url.clone()));
    db.until("select count(*) = 41 from ambo.outcome").await;
    workers.abort();
    let dead = "select r.workflow, o.error->>'code', o.attempt from ambo.outcome o join ambo.run r on r.id = o.run_id
        where o.status <> 'succeeded'";
    let dead = db.sql.query(dead, &[]).await.unwrap();
    assert_eq!(dead.len(), 1, "only the guilty run is dead");
    assert_eq!(dead[0].get::<_, &str>(0), "poison");
    assert_eq!(dead[0].get::<_, &str>(1), "AMBO026");
    assert_eq!(dead[0].get::<_, i32>(2), 3, "it was given its attempts");
}

#[tokio::test]
async fn a_run_that_makes_progress_is_never_poison() {
    let db = database().await;
    Ledger::prepare(&db).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('creep', '4', attempts => 2)").await.unwrap();
    let workers = tokio::spawn(revive(db.url.clone()));
    db.until("select count(*) = 1 from ambo.outcome").await;
    workers.abort();
    let ended = db.sql.query_one("select status::text, attempt from ambo.outcome", &[]).await.unwrap();
    assert_eq!((ended.get::<_, &str>(0), ended.get::<_, i32>(1)), ("succeeded", 4));
}

/// Puts a run among those that may be claimed, as if `losses` workers had died with it.
async fn enqueue_suspect(db: &Database, workflow: &str, losses: i16) {
    let enqueue = format!(
        "begin; select ambo.enqueue_workflow('{workflow}');
         update ambo.ready set losses = {losses}, attempt = {losses} where workflow = '{workflow}'; commit"
    );
    db.sql.batch_execute(&enqueue).await.unwrap();
}

/// Waits until the only worker has beaten twice more, and so has had the time to claim.
async fn two_beats(db: &Database) {
    for _ in 0..2 {
        let last =
            db.number("select (extract(epoch from max(at)) * 1000000)::int8 from ambo.heartbeat").await;
        db.until(&format!(
            "select (extract(epoch from max(at)) * 1000000)::int8 > {last} from ambo.heartbeat"
        ))
        .await;
    }
}

#[tokio::test]
async fn an_innocent_run_on_its_last_attempt_has_its_worker_to_itself() {
    let db = database().await;
    Ledger::prepare(&db).await;
    close_gate(&db).await;
    let (mut worker, _) = Child::worker(&db.url, &[]).await;
    enqueue_suspect(&db, "gated", 4).await;
    worker.says("gate").await;
    db.sql.batch_execute("select ambo.enqueue_workflow('poison')").await.unwrap();
    two_beats(&db).await;
    open_gate(&db).await;
    worker.ended().await;
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'succeeded'").await, 1);
}

#[tokio::test]
async fn a_suspect_does_not_keep_its_worker_from_working_for_long() {
    let db = database().await;
    Ledger::prepare(&db).await;
    close_gate(&db).await;
    let (mut worker, _) = Child::worker(&db.url, &[]).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('gated')").await.unwrap();
    worker.says("gate").await;
    enqueue_suspect(&db, "short", 4).await;
    db.until("select count(*) = 0 from ambo.ready").await;
    db.sql.batch_execute("select ambo.enqueue_workflow('short')").await.unwrap();
    db.until("select count(*) = 2 from ambo.outcome where status = 'succeeded'").await;
    assert_eq!(db.number("select count(*) from ambo.claim").await, 1, "the long run is still at the gate");
}

#[tokio::test]
async fn a_run_between_two_attempts_of_a_step_loses_nothing_when_its_worker_dies() {
    let db = database().await;
    Ledger::prepare(&db).await;
    db.sql.batch_execute("select ambo.enqueue_workflow('pauses', attempts => 1)").await.unwrap();
    for attempt in 1..=3 {
        let (mut worker, id) = Child::worker(&db.url, &[]).await;
        worker.says("tried").await;
        db.until(&format!(
            "select exists (select from ambo.claim
             where worker_id = {id} and attempt = {attempt} and losses = 0 and not begun)"
        ))
        .await;
        worker.kill().await;
    }
    let (mut worker, _) = Child::worker(&db.url, &[]).await;
    worker.says("tried").await;
    assert_eq!(db.number("select count(*) from ambo.outcome").await, 0);
}

#[tokio::test]
async fn a_suspect_that_pauses_does_not_keep_its_worker_from_others() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let (mut worker, _) = Child::worker(&db.url, &[]).await;
    enqueue_suspect(&db, "pauses", 4).await;
    worker.says("tried").await;
    enqueue_suspect(&db, "pauses", 4).await;
    worker.says("tried").await;
    db.sql.batch_execute("select ambo.enqueue_workflow('short')").await.unwrap();
    db.until("select count(*) = 1 from ambo.outcome where status = 'succeeded'").await;
    let took = "select (extract(epoch from max(o.ended_at) - min(c.claimed_at)) * 1000)::int8 from ambo.outcome o, ambo.claim c";
    let took = db.number(took).await;
    assert!(took < 15_000, "the others waited for {took} ms");
}

#[tokio::test]
async fn the_keeper_looks_again_when_a_silent_worker_may_be_dead_and_is_relieved_when_it_misses_a_beat() {
    let db = database().await;
    let register = "select worker_id from ambo.register_worker('w', '', 0, '{default}', '{a}', true)";
    let (keeper, silent, other) =
        (db.number(register).await, db.number(register).await, db.number(register).await);
    let beat = async |worker: i64| {
        let sql = format!("select is_keeper, next_beat_ms, dead from ambo.heartbeat({worker}, 0, false)");
        let pulse = db.sql.query_one(&sql, &[]).await.unwrap();
        (pulse.get::<_, bool>(0), pulse.get::<_, Option<i64>>(1), pulse.get::<_, Option<Vec<i64>>>(2))
    };
    db.sql.batch_execute("update ambo.keeper set grace_until = '-infinity'").await.unwrap();
    assert_eq!(beat(keeper).await, (true, None, Some(vec![])), "all are well");
    let ago = async |table: &str, time: &str, seconds: f64| {
        let set = format!("update ambo.{table} set {time} = clock_timestamp() - interval '{seconds} s'");
        let of = if table == "keeper" { String::new() } else { format!(" where worker_id = {silent}") };
        db.sql.batch_execute(&(set + &of)).await.unwrap();
    };

    ago("heartbeat", "at", 1.5).await;
    let (is_keeper, next, dead) = beat(keeper).await;
    assert!(is_keeper && dead == Some(vec![]), "one beat may be lost");
    assert!(next.is_some_and(|ms| (1..=1001).contains(&ms)), "{next:?}");
    ago("heartbeat", "at", 2.6).await;
    assert_eq!(beat(keeper).await, (true, None, Some(vec![silent])));

    assert!(!beat(other).await.0, "the keeper has just acted");
    ago("keeper", "renewed_at", 1.3).await;
    assert_eq!(beat(other).await, (true, None, Some(vec![silent])), "it acts for the keeper");
}
