//! What every worker does every second, or with every batch, does not walk over rows that are dead and cannot be vacuumed.

use crate::harness::{Database, connect, database};
use crate::partition::OLD_PARTITION;

/// Blocks of the tables and their indexes through which everything passes that a statement touches.
async fn blocks_of(sql: &tokio_postgres::Client, statement: &str) -> i64 {
    let count = "select sum(pg_stat_get_xact_blocks_fetched(o))::bigint from unnest(array[
        'ambo.ready'::regclass, 'ambo.ready_pkey'::regclass, 'ambo.ready_xid'::regclass, 'ambo.ready_pin'::regclass,
        'ambo.ready_start_by'::regclass, 'ambo.ready_start_by_xid'::regclass, 'ambo.ready_begun'::regclass,
        'ambo.wake'::regclass, 'ambo.wake_pkey'::regclass,
        'ambo.cancel_request'::regclass, 'ambo.cancel_request_pkey'::regclass, 'ambo.cancel_request_undo_by'::regclass,
        'ambo.timer'::regclass, 'ambo.timer_pkey'::regclass, 'ambo.timer_due'::regclass,
        'ambo.timer_xid'::regclass, 'ambo.claim'::regclass, 'ambo.claim_pkey'::regclass]) o";
    sql.batch_execute("begin").await.unwrap();
    // The figure holds what earlier transactions of the session have not reported yet.
    let before: i64 = sql.query_one(count, &[]).await.unwrap().get(0);
    sql.batch_execute(statement).await.expect(statement);
    let after: i64 = sql.query_one(count, &[]).await.unwrap().get(0);
    sql.batch_execute("commit").await.unwrap();
    after - before
}

/// Holds back vacuum: what dies from now on stays where it is.
async fn pin(db: &Database) -> tokio_postgres::Client {
    let pin = connect(&db.url).await;
    pin.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
    pin
}

async fn register(db: &Database, queue: &str) -> i64 {
    let register = format!(
        "select worker_id from ambo.register_worker('w', '1', 0, '{{{queue}}}', '{{a}}', false, true)"
    );
    db.number(&register).await
}

/// How many runs of `a` the worker claims.
async fn claim(db: &Database, worker: i64) -> i64 {
    let claim = format!(
        "select count(run_id) from ambo.claim({worker}, 10, '{{default}}', '{{a}}', '{{0}}', '{{0}}', '{{}}')"
    );
    db.number(&claim).await
}

/// The worker has been silent for so long that the keeper's next heartbeat finds it dead.
async fn declare_dead(db: &Database, worker: i64, keeper: i64) {
    let silent =
        format!("update ambo.heartbeat set at = now() - interval '1 hour' where worker_id = {worker}");
    db.sql.batch_execute(&silent).await.unwrap();
    db.sql.query_one("select dead from ambo.heartbeat($1, 0, false)", &[&keeper]).await.unwrap();
}

#[tokio::test]
async fn what_is_done_all_the_time_does_not_walk_over_the_dead() {
    let db = database().await;
    let _pin = pin(&db).await;
    let worker = register(&db, "default").await;
    let dead = "insert into ambo.wake select gen_random_uuid() from generate_series(1, 50000);
        delete from ambo.wake;
        insert into ambo.cancel_request (run_id, undo_by) select gen_random_uuid(), now() from generate_series(1, 50000);
        delete from ambo.cancel_request;
        insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow)
        select n, pg_current_xact_id(), gen_random_uuid(), 0, 0, 0, 'default', ambo.lane('a', '1')
        from generate_series(1, 50000) n;
        delete from ambo.ready;
        insert into ambo.timer (run_id, due_at, attempt, losses)
        select gen_random_uuid(), now() + interval '1 hour', 1, 0 from generate_series(1, 50000)";
    db.sql.batch_execute(dead).await.unwrap();
    let ids = "array(select gen_random_uuid() from generate_series(1, 10))";
    let nothing = "'{}', '{}', '{}', '{}', '{}', '{}', '{}'";
    for statement in [
        format!("select * from ambo.heartbeat({worker}, 0, false, null, clock_timestamp())"),
        "select * from ambo.end_unclaimed(10, clock_timestamp(), pg_current_snapshot())".to_owned(),
        format!("select * from ambo.came_for({ids})"),
        "select * from ambo.pins()".to_owned(),
        "select ambo.release_pins('{0,2}', 10)".to_owned(),
        "select ambo.fire_timers(10)".to_owned(),
        "select ambo.expire_runs(10)".to_owned(),
        format!(
            "select ambo.flush({worker}, {nothing}, {ids}, array_fill(1, '{{10}}'), array_fill('succeeded'::text, '{{10}}'), array_fill('1'::json, '{{10}}'), array_fill(null::json, '{{10}}'))"
        ),
    ] {
        let blocks = blocks_of(&db.sql, &statement).await;
        println!("{blocks} blocks: {statement}");
        assert!(blocks < 120, "{statement} touched {blocks} blocks");
    }
    // That the figure means something.
    let walk = "set local enable_seqscan = off; select from ambo.wake limit 1";
    let blocks = blocks_of(&db.sql, walk).await;
    assert!(blocks > 200, "a walk touched {blocks} blocks only");
}

/// Looks for due timers until none is left; answers how many there were and where the next look goes on.
async fn fire_all(sql: &tokio_postgres::Client, mark: Option<String>) -> (i32, String) {
    let (mut all, mut mark) = (0, mark);
    loop {
        let look = "select fired, mark::text, wait_ms from ambo.fire_timers(5000, $1::text::json)";
        let row = sql.query_one(look, &[&mark]).await.unwrap();
        all += row.get::<_, i32>(0);
        mark = Some(row.get(1));
        if row.get::<_, Option<i64>>(2) != Some(0) {
            return (all, mark.unwrap());
        }
    }
}

#[tokio::test]
async fn a_look_for_due_timers_does_not_walk_over_those_that_were() {
    let db = database().await;
    let _pin = pin(&db).await;
    let insert = |n: u32, due: &str| {
        format!(
            "insert into ambo.timer (run_id, due_at, attempt, losses)
             select gen_random_uuid(), {due}, 1, 0 from generate_series(1, {n}) n"
        )
    };
    let mut mark = None;
    for _ in 0..3 {
        // Some at one time, some that are woken before theirs, and some in a transaction that stays open.
        db.sql.batch_execute(&insert(20_000, "now()")).await.unwrap();
        db.sql.batch_execute(&insert(20_000, "clock_timestamp() - n * interval '1 ms'")).await.unwrap();
        db.sql.batch_execute(&insert(20_000, "now() + interval '1 hour'")).await.unwrap();
        db.sql.batch_execute("delete from ambo.timer where due_at > now()").await.unwrap();
        let (fired, next) = fire_all(&db.sql, mark).await;
        assert_eq!(fired, 40_000);
        let open = connect(&db.url).await;
        open.batch_execute(&format!("begin; {}", insert(20_000, "now() - interval '1 hour'"))).await.unwrap();
        // From here on it is in progress at every look.
        db.sql.batch_execute("select pg_current_xact_id()").await.unwrap();
        let (_, mut next) = fire_all(&db.sql, Some(next)).await;
        for due in ["now() - interval '1 day'", "clock_timestamp()"] {
            let look = format!("select ambo.fire_timers(5000, '{next}')");
            let blocks = blocks_of(&db.sql, &look).await;
            println!("a look: {blocks} blocks");
            assert!(blocks < 60, "a look at nothing touched {blocks} blocks");
            db.sql.batch_execute(&insert(1, due)).await.unwrap();
            let blocks = blocks_of(&db.sql, &look).await;
            println!("one due {due}: {blocks} blocks");
            assert!(blocks < 100, "a look at one timer touched {blocks} blocks");
            next = fire_all(&db.sql, Some(next)).await.1;
        }
        open.batch_execute("rollback").await.unwrap();
        mark = Some(next);
    }
    // That the figures mean something.
    let blocks = blocks_of(&db.sql, "select ambo.fire_timers(5000)").await;
    assert!(blocks > 1000, "without a mark a look touched {blocks} blocks only");
}

#[tokio::test]
async fn a_look_for_runs_that_are_too_late_does_not_walk_over_those_that_were_in_time() {
    let db = database().await;
    let _pin = pin(&db).await;
    let insert = |n: u32, start_by: &str| {
        format!(
            "insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow, start_by)
             select nextval('ambo.ready_seq'), pg_current_xact_id(), ambo.new_run_id(), 0, 0, 0, 'default',
                    ambo.lane('a', ''), {start_by}
             from generate_series(1, {n}) n"
        )
    };
    let look = |mark: &Option<String>| {
        let mark = mark.as_ref().map_or_else(|| "null".to_owned(), |mark| format!("'{mark}'"));
        format!("select expired, mark::text from ambo.expire_runs(5000, {mark})")
    };
    // Ends what is too late, and answers how many those were.
    async fn expire(sql: &tokio_postgres::Client, mark: &mut Option<String>) -> i32 {
        let mut all = 0;
        loop {
            let look = "select expired, mark::text, more from ambo.expire_runs(5000, $1::text::json)";
            let row = sql.query_one(look, &[&*mark]).await.unwrap();
            all += row.get::<_, i32>(0);
            *mark = Some(row.get(1));
            if !row.get::<_, bool>(2) {
                return all;
            }
        }
    }
    let mut mark = None;
    for _ in 0..3 {
        // Some of one time and some of many; all but the last of these were claimed in time.
        db.sql.batch_execute(&insert(12_000, "now() - interval '1 s'")).await.unwrap();
        db.sql.batch_execute(&insert(20_000, "clock_timestamp() - n * interval '1 ms'")).await.unwrap();
        db.sql
            .batch_execute("delete from ambo.ready r where r.start_by < now() - interval '1.5 s'")
            .await
            .unwrap();
        let left = db.number("select count(*) from ambo.ready").await;
        assert_eq!(i64::from(expire(&db.sql, &mut mark).await), left);
        let open = connect(&db.url).await;
        open.batch_execute(&format!("begin; {}", insert(12_000, "now() - interval '1 hour'"))).await.unwrap();
        // From here on it is in progress at every look.
        db.sql.batch_execute("select pg_current_xact_id()").await.unwrap();
        assert_eq!(expire(&db.sql, &mut mark).await, 0);
        for start_by in ["now() - interval '1 day'", "clock_timestamp()"] {
            let blocks = blocks_of(&db.sql, &look(&mark)).await;
            println!("a look: {blocks} blocks");
            assert!(blocks < 60, "a look at nothing touched {blocks} blocks");
            db.sql.batch_execute(&insert(1, start_by)).await.unwrap();
            assert_eq!(expire(&db.sql, &mut mark).await, 1, "{start_by}");
        }
        // One that somebody has locked, who lets it go.
        db.sql.batch_execute(&insert(1, "now() - interval '1 min'")).await.unwrap();
        let holder = connect(&db.url).await;
        holder.batch_execute("begin; delete from ambo.ready").await.unwrap();
        assert_eq!(expire(&db.sql, &mut mark).await, 0);
        assert_eq!(expire(&db.sql, &mut mark).await, 0);
        holder.batch_execute("rollback").await.unwrap();
        assert_eq!(expire(&db.sql, &mut mark).await, 1);
        open.batch_execute("commit").await.unwrap();
        assert_eq!(expire(&db.sql, &mut mark).await, 12_000, "what came late");
        assert_eq!(expire(&db.sql, &mut mark).await, 0);
    }
    assert_eq!(db.number("select count(*) from ambo.ready").await, 0);
    // That the figures mean something.
    let blocks = blocks_of(&db.sql, &look(&None)).await;
    assert!(blocks > 1000, "without a mark a look touched {blocks} blocks only");
}

#[tokio::test]
async fn what_an_open_transaction_has_enqueued_is_not_walked_by_each_claim() {
    let db = database().await;
    let worker = register(&db, "default").await;
    let open = connect(&db.url).await;
    let enqueue = "begin; select count(*) from ambo.enqueue_workflows(array_fill('a'::text, '{50000}'), array_fill('1'::json, '{50000}'))";
    open.batch_execute(enqueue).await.unwrap();
    let xid: String = open.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    // From here on it is in progress at every look: there is a later one that has ended.
    db.sql.batch_execute("select pg_current_xact_id()").await.unwrap();
    let since: String = db.sql.query_one("select pg_current_snapshot()::text", &[]).await.unwrap().get(0);
    let claim = format!(
        "select * from ambo.claim({worker}, 10, '{{default}}', '{{a}}', '{{0}}', '{{60000}}', '{{{xid}}}')"
    );
    let arrivals = format!("select * from ambo.arrivals('default', '{since}')");
    for look in [&claim, &arrivals] {
        let blocks = blocks_of(&db.sql, look).await;
        println!("{blocks} blocks: {look}");
        assert!(blocks < 60, "{look} touched {blocks} blocks");
    }
    open.batch_execute("commit").await.unwrap();
    let claim = format!("select count(run_id) from ({claim}) c");
    assert_eq!(db.number(&claim).await, 10, "what committed late is found");
    let arrived = format!("select lows[1] from ambo.arrivals('default', '{since}')");
    assert!(db.number(&arrived).await < 50_000);
}

#[tokio::test]
async fn a_burial_walks_over_the_dead_once() {
    let db = database().await;
    let _pin = pin(&db).await;
    let (dead, keeper) = (register(&db, "default").await, register(&db, "other").await);
    let claims = format!(
        "insert into ambo.claim (run_id, worker_id, attempt, losses)
         select gen_random_uuid(), {dead}, 1, 0 from generate_series(1, 50000);
         delete from ambo.claim;
         select ambo.enqueue_workflow('a')"
    );
    db.sql.batch_execute(&claims).await.unwrap();
    assert_eq!(claim(&db, dead).await, 1);
    declare_dead(&db, dead, keeper).await;
    let walk = blocks_of(&db.sql, "select from ambo.claim where attempt = 0").await;
    assert!(walk > 400, "a walk touched {walk} blocks only");
    let bury = format!("select recovered from ambo.bury_worker({keeper}, {dead}, 100)");
    let blocks = blocks_of(&db.sql, &bury).await;
    println!("{blocks} blocks, a walk {walk}");
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 1").await, 1, "its run goes on");
    assert_eq!(db.number("select count(*) from ambo.worker").await, 1, "it is buried");
    assert!(blocks < walk + 100, "a burial touched {blocks} blocks, a walk {walk}");
}

#[tokio::test]
async fn what_is_read_under_the_locks_of_a_partition_that_is_dropped_does_not_walk_over_the_dead() {
    let db = database().await;
    let _pin = pin(&db).await;
    let dead = "insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow)
        select n, pg_current_xact_id(), gen_random_uuid(), 0, 0, 0, 'default', 'a' from generate_series(1, 50000) n;
        delete from ambo.ready;
        select ambo.enqueue_workflow('a')";
    db.sql.batch_execute(dead).await.unwrap();
    let (open, late) = (connect(&db.url).await, "begin; select ambo.enqueue_workflow('a')");
    open.batch_execute(late).await.unwrap();
    db.sql.batch_execute("select pg_current_xact_id()").await.unwrap();
    let since: String = db.sql.query_one("select pg_current_snapshot()::text", &[]).await.unwrap().get(0);
    open.batch_execute("commit; select ambo.enqueue_workflow('a')").await.unwrap();
    let runs = |since: &str| {
        format!(
            "select cardinality(ambo.live_runs(now() - interval '1 hour', now() + interval '1 hour', null, {since}))::bigint"
        )
    };
    let news = runs(&format!("'{since}'"));
    assert_eq!(db.number(&runs("null")).await, 3);
    assert_eq!(db.number(&news).await, 2, "one that was open, one that came after it");
    let (walk, look) = (blocks_of(&db.sql, &runs("null")).await, blocks_of(&db.sql, &news).await);
    println!("{walk} blocks at first, {look} under the locks");
    assert!(walk > 500 && look < 60, "{walk} blocks at first, {look} under the locks");

    db.sql.batch_execute(OLD_PARTITION).await.unwrap();
    let drop = blocks_of(&db.sql, "select ambo.drop_partition()").await;
    let old = "select count(*) from ambo.history_partition where ends_at < now() - interval '30 days'";
    assert_eq!(db.number(old).await, 0, "it was dropped");
    assert!(drop < walk + 200, "the drop touched {drop} blocks, a walk {walk}");
}

/// Gigabytes of dead claims stand behind a snapshot that is a day old: nobody walks over them between two heartbeats.
#[tokio::test]
async fn whoever_looks_for_the_claims_of_a_worker_goes_by_pieces() {
    let db = database().await;
    let _pin = pin(&db).await;
    let (dead, keeper) = (register(&db, "default").await, register(&db, "other").await);
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    assert_eq!(claim(&db, dead).await, 1);
    let rows = "insert into ambo.claim (run_id, worker_id, attempt, losses)
            select gen_random_uuid(), 0, 1, 0 from generate_series(1, 500000);
        delete from ambo.claim where worker_id = 0;
        select ambo.enqueue_workflow('a')";
    db.sql.batch_execute(rows).await.unwrap();
    assert_eq!(claim(&db, dead).await, 1);

    let look = async |page: i64| {
        let sql = "select cardinality(runs), next_page from ambo.claims_of($1, $2)";
        let row = db.sql.query_one(sql, &[&dead, &page]).await.unwrap();
        (row.get::<_, i32>(0), row.get::<_, Option<i64>>(1))
    };
    assert_eq!(look(0).await, (1, Some(4096)));
    assert_eq!(look(4096).await, (1, None));
    let piece = blocks_of(&db.sql, &format!("select ambo.claims_of({dead}, 0)")).await;
    assert!((4096..4200).contains(&piece), "a piece has {piece} blocks");

    // Who leaves meanwhile hands back what it finds soon, and leaves the rest to the keeper.
    db.sql.batch_execute("begin").await.unwrap();
    assert_eq!(db.number(&format!("select ambo.leave({dead})::bigint")).await, 1);
    assert_eq!(db.number("select count(*) from ambo.worker where dead_at is not null").await, 1);
    db.sql.batch_execute("rollback").await.unwrap();

    declare_dead(&db, dead, keeper).await;
    let bury = async |page: i64, left_behind: bool| {
        let sql =
            "select recovered, left_behind, next_page, buried from ambo.bury_worker($1, $2, 100, $3, $4)";
        let row = db.sql.query_one(sql, &[&keeper, &dead, &page, &left_behind]).await.unwrap();
        (row.get::<_, i32>(0), row.get::<_, bool>(1), row.get::<_, Option<i64>>(2), row.get::<_, bool>(3))
    };
    // As by a transaction step that commits.
    let busy = connect(&db.url).await;
    busy.batch_execute("begin; select from ambo.claim where ctid < '(4096,0)' for key share").await.unwrap();
    assert_eq!(bury(0, false).await, (0, true, Some(4096), false));
    assert_eq!(bury(4096, true).await, (1, true, None, false), "something was left behind");
    busy.batch_execute("commit").await.unwrap();
    assert_eq!(bury(0, false).await, (1, false, Some(4096), false));
    assert_eq!(bury(4096, false).await, (0, false, None, true));
    assert_eq!(db.number("select count(*) from ambo.ready where losses = 1").await, 2, "its runs go on");
    assert_eq!(db.number("select count(*) from ambo.worker").await, 1);
}
