//! The database goes away, in whole or in part, and comes back: everything ends exactly once, by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Failure, Handle, Result, SendSignal, TokioPostgres, Untyped, Worker};
use ambo_postgres::{Cluster, Place, Shutdown};

use crate::harness::{Database, connect, database, database_at};
use crate::proxy::Proxy;

/// What the steps did, in memory: it outlasts every outage. By idempotency key, how often.
#[derive(Default)]
struct Tally(Mutex<BTreeMap<String, u32>>);

impl Tally {
    fn note(&self, key: &str) {
        *self.0.lock().unwrap().entry(key.to_owned()).or_default() += 1;
    }
}

/// A step, a transaction step, a step.
async fn work(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<i64> {
    let (tally, pool) = (cx.state::<Arc<Tally>>()?, cx.state::<Arc<TokioPostgres>>()?);
    let run = cx.run_id().to_string();
    for name in ["first", "second"] {
        cx.step_with(name, |attempt| {
            tally.note(&attempt.idempotency_key());
            async { Ok::<_, Error>(()) }
        })
        .await?;
    }
    let count = cx.transaction("count").run(&*pool, async |tx| {
        let row = tx.query_one("insert into counted (run) values ($1) returning 1::int8", &[&run]).await?;
        Ok::<i64, Error>(row.get(0))
    });
    Ok(count.await?)
}

async fn prepare(db: &Database) {
    db.sql.batch_execute("create table counted (n bigserial primary key, run text)").await.unwrap();
}

async fn start(db: &Database, tally: &Arc<Tally>, in_flight: usize) -> Worker {
    let url = db.url.clone();
    let pool = TokioPostgres::new(move || {
        let url = url.clone();
        async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        }
    });
    let worker = Worker::builder(&db.client).workflow_fn("work", work).max_in_flight(in_flight);
    worker.state(tally.clone()).state(Arc::new(pool)).start().await.expect("worker")
}

async fn enqueue(db: &Database, runs: usize) -> Vec<Handle<Untyped>> {
    let all = ambo::enqueue_all(&db.client, (0..runs).map(|n| Enqueue::named("work", &n))).await.unwrap();
    all.into_iter().map(|enqueued| db.client.handle(enqueued.run)).collect()
}

/// Awaits all results at once, as their callers would have since before the outage.
fn await_results(handles: Vec<Handle<Untyped>>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        for handle in handles {
            let result: Result<i64, Failure<Error>> = handle.result_as().await;
            assert_eq!(result.expect("a run did not succeed"), 1);
        }
    })
}

/// Every run once, and every step of it once.
async fn assert_exact(db: &Database, tally: &Tally, runs: i64) {
    for (what, sql) in [
        ("outcomes", "select count(*) from ambo.outcome where status = 'succeeded'"),
        ("transaction steps", "select count(*) from counted"),
        ("runs with a transaction step", "select count(distinct run) from counted"),
    ] {
        assert_eq!(db.number(sql).await, runs, "{what}");
    }
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 3 * runs);
    db.until("select count(*) = 0 from ambo.claim").await;
    let leftover =
        "select (select count(*) from ambo.ready) + (select count(*) from ambo.transaction_marker)";
    assert_eq!(db.number(leftover).await, 0);
    let tally = tally.0.lock().unwrap();
    assert_eq!(tally.len() as i64, 2 * runs, "each step has its key");
    let repeated: Vec<_> = tally.iter().filter(|(_, times)| **times != 1).collect();
    assert!(repeated.is_empty(), "steps were executed more than once: {repeated:?}");
}

pub(crate) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.expect("the act")
}

pub(crate) async fn own_server() -> Arc<Cluster> {
    blocking(|| {
        Arc::new(Cluster::builder().temporary(Place::Memory).durable(false).start().expect("a server"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_load_costs_nothing_but_time() {
    let cluster = own_server().await;
    let mut db = database_at(&cluster.url("postgres")).await;
    prepare(&db).await;
    let tally = Arc::new(Tally::default());
    let handles = enqueue(&db, 1500).await;
    let results = await_results(handles);
    let worker = start(&db, &tally, 100).await;
    for at_least in [100, 600] {
        db.until(&format!("select count(*) > {at_least} from ambo.outcome")).await;
        let server = cluster.clone();
        blocking(move || {
            server.kill().expect("kill");
            server.start().expect("start");
        })
        .await;
        db.sql = connect(&db.url).await;
    }
    results.await.expect("all results");
    assert_exact(&db, &tally, 1500).await;
    assert_eq!(db.number("select max(id) from ambo.worker").await, 1, "the worker was not declared dead");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_read_only_until_its_promotion_is_waited_out() {
    let cluster = own_server().await;
    let mut db = database_at(&cluster.url("postgres")).await;
    prepare(&db).await;
    let tally = Arc::new(Tally::default());
    let results = await_results(enqueue(&db, 1500).await);
    let worker = start(&db, &tally, 100).await;
    db.until("select count(*) > 100 from ambo.outcome").await;
    let server = cluster.clone();
    blocking(move || {
        server.stop(Shutdown::Fast).expect("stop");
        std::fs::write(server.data_dir().join("standby.signal"), "").expect("standby.signal");
        server.start().expect("start as a standby");
    })
    .await;
    db.sql = connect(&db.url).await;
    let refused = Enqueue::named("work", &0).on(&db.client).await.expect_err("a standby takes no enqueue");
    assert!(refused.is_unavailable(), "{refused}");
    let ended = db.number("select count(*) from ambo.outcome").await;
    assert!(ended < 1500);
    // The worker has come back to it, and cannot write.
    db.until("select count(*) > 0 from pg_stat_activity where application_name = 'ambo worker control'")
        .await;
    db.sql.batch_execute("select pg_promote()").await.unwrap();
    results.await.expect("all results");
    assert_exact(&db, &tally, 1500).await;
    worker.drain(Duration::ZERO).await;
}

/// Ends the connections with a role, again and again, while there is work to do.
async fn cut_again_and_again(role: &str, times: i64, in_flight: usize) {
    let db = database().await;
    prepare(&db).await;
    let tally = Arc::new(Tally::default());
    let worker = start(&db, &tally, in_flight).await;
    // Mostly when they are in the midst of something.
    let cut = format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and application_name = '{role}' and (state = 'active' or random() < 0.1)"
    );
    let (mut cuts, mut handles) = (0, Vec::new());
    while cuts < times {
        if db.number("select count(*) from (select from ambo.ready limit 20) r").await < 20 {
            handles.extend(enqueue(&db, 100).await);
        }
        cuts += db.number(&cut).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let runs = handles.len() as i64;
    println!("{cuts} connections of {role:?} were cut during {runs} runs");
    let results = tokio::time::timeout(Duration::from_secs(30), await_results(handles)).await;
    results.expect("a run is stranded").expect("all results");
    assert_exact(&db, &tally, runs).await;
    assert_eq!(db.number("select max(id) from ambo.worker").await, 1, "the worker was not declared dead");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn journals_cut_in_the_midst_of_a_flush_lose_nothing_and_repeat_nothing() {
    cut_again_and_again("ambo worker journal", 30, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_whose_answer_was_lost_are_not_stranded() {
    cut_again_and_again("ambo worker claims", 12, 100).await;
}

/// A worker that has just been given runs holds claims that it does not know yet, and one that is busy always has: looking at
/// all its claims until it knows each would be a walk over what is dead, each second.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_suspects_a_lost_claim_looks_at_all_its_claims_once() {
    let db = database().await;
    prepare(&db).await;
    db.sql
        .batch_execute(
            "create table look (id bigint generated always as identity);
             create or replace function ambo.claims_of(
                 p_worker bigint, p_page bigint, out runs uuid[], out attempts integer[], out next_page bigint)
             language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
             as $$ begin
                 insert into public.look default values;
                 runs := array[gen_random_uuid()];
                 attempts := '{1}';
             end $$",
        )
        .await
        .unwrap();
    let worker = start(&db, &Arc::new(Tally::default()), 100).await;
    let cut = "select count(pg_terminate_backend(pid)) = 1 from pg_stat_activity
        where datname = current_database() and application_name = 'ambo worker claims'";
    db.until(cut).await;
    db.until("select count(*) > 0 from look").await;
    db.heartbeats(4).await;
    // Another time when the backend that was ended is gone.
    assert!(db.number("select count(*) from look").await <= 2, "it looks again and again");
    worker.drain(Duration::ZERO).await;
}

/// What committed a park is not heard of; the run is woken and claimed again by its worker, which then learns that the
/// earlier claim is gone. It must not take the later one for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_claimed_again_before_its_park_was_heard_of_goes_on() {
    let db = database().await;
    let proxy = Proxy::before(&db.url).await;
    let client = ambo::Client::connect(&proxy.url).await.unwrap();
    let worker =
        Worker::builder(&client).workflow_fn("wait", async |mut cx: Ctx<'_>, (): ()| -> Result<i64> {
            let first: i64 = cx.signal("first").await?;
            let second: i64 = cx.signal("second").await?;
            Ok(first + second)
        });
    let worker = worker.workflow_fn("noop", async |_: Ctx<'_>, (): ()| -> Result<()> { Ok(()) });
    let worker = worker.max_in_flight(2).start().await.unwrap();
    // Until both lanes of the journal have their connection.
    let lanes = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'ambo worker journal'";
    while db.number(lanes).await < 2 {
        let noop = ambo::enqueue_all(&db.client, [Enqueue::named("noop", &())]).await.unwrap()[0].run;
        let handle: Handle<Untyped> = db.client.handle(noop);
        handle.result_as::<(), Error>().await.unwrap();
    }
    let run = ambo::enqueue_all(&db.client, [Enqueue::named("wait", &())]).await.unwrap()[0].run;
    db.until("select count(*) = 1 from ambo.claim").await;
    proxy.mute("ambo worker journal");
    db.until("select count(*) = 0 from ambo.claim").await;
    SendSignal::new(run, "first", &1).on(&db.client).await.unwrap();
    db.until("select count(*) = 1 from ambo.claim where attempt = 2").await;
    proxy.cut("ambo worker journal");
    db.until("select count(*) = 0 from ambo.claim").await;
    SendSignal::new(run, "second", &2).on(&db.client).await.unwrap();
    let handle: Handle<Untyped> = db.client.handle(run);
    let result = tokio::time::timeout(Duration::from_secs(20), handle.result_as::<i64, Error>()).await;
    assert_eq!(result.expect("the run is stranded").unwrap(), 3);
    // A place that is never free again would stand here for ever.
    db.until("select in_flight = 0 from ambo.heartbeat").await;
    worker.drain(Duration::ZERO).await;
}

/// The network goes, and the server knows nothing of it: a claim that the worker has given up commits long after.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_commits_after_its_worker_has_given_it_up_is_not_stranded() {
    let db = database().await;
    // The first claim sleeps in the midst of it.
    db.sql
        .batch_execute(
            "create table gate (is_open bool);
             create function keep_waiting() returns trigger language plpgsql as $$ begin
                 while not exists (select from public.gate) loop perform pg_sleep(0.01); end loop;
                 return new;
             end $$;
             create trigger keep_waiting before insert on ambo.claim for each row execute function keep_waiting()",
        )
        .await
        .unwrap();
    let proxy = Proxy::before(&db.url).await;
    let client = ambo::Client::connect(&proxy.url).await.unwrap();
    let worker =
        Worker::builder(&client).workflow_fn("noop", async |_: Ctx<'_>, (): ()| -> Result<i64> { Ok(7) });
    let worker = worker.start().await.unwrap();
    let run = ambo::enqueue_all(&db.client, [Enqueue::named("noop", &())]).await.unwrap()[0].run;
    db.until(
        "select count(*) = 1 from pg_stat_activity where datname = current_database()
         and application_name = 'ambo worker claims' and wait_event = 'PgSleep'",
    )
    .await;
    proxy.cut("ambo worker claims");
    // By then the worker has looked for claims that it does not know, and found none.
    db.sql.batch_execute("create table cut_at as select clock_timestamp() as at").await.unwrap();
    db.until("select h.at > c.at + interval '2.5 s' from ambo.heartbeat h, cut_at c").await;
    db.sql.batch_execute("insert into gate values (true)").await.unwrap();
    let handle: Handle<Untyped> = db.client.handle(run);
    let result = tokio::time::timeout(Duration::from_secs(20), handle.result_as::<i64, Error>()).await;
    assert_eq!(result.expect("the run is stranded").unwrap(), 7);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_heartbeat_is_cut_keeps_its_runs() {
    cut_again_and_again("ambo worker control", 8, 5).await;
}

/// Commits wait for a standby that there is not. Ending such a connection commits, and loses the answer; ending its
/// wait commits, and gives it: one or the other, by chance.
#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answers_were_lost_are_read_back_and_not_repeated() {
    let cluster = own_server().await;
    let db = database_at(&cluster.url("postgres")).await;
    prepare(&db).await;
    let tally = Arc::new(Tally::default());
    let handles = enqueue(&db, 40).await;
    db.sql.batch_execute("set synchronous_commit = local").await.unwrap();
    db.sql.batch_execute("alter system set synchronous_standby_names = 'nobody'").await.unwrap();
    let worker = start(&db, &tally, 5);
    let cut = "select coalesce(array_agg(w.role) filter (where w.cut), '{}') from (
        select application_name as role, c.cut, case when c.cut then pg_terminate_backend(pid) else pg_cancel_backend(pid) end
        from pg_stat_activity, lateral (select random() < 0.5 and pid > 0 as cut) c
        where wait_event = 'SyncRep' and datname = current_database()) w";
    let roles = ["ambo worker journal", "ambo worker claims", "ambo worker control", "ambo step of worker 1"];
    let mut cuts: BTreeMap<String, u32> = BTreeMap::new();
    let worker = worker.await;
    let results = await_results(handles);
    db.sql.batch_execute("select pg_reload_conf()").await.unwrap();
    while roles.iter().any(|role| cuts.get(*role).is_none_or(|cuts| *cuts < 3)) {
        for role in db.sql.query_one(cut, &[]).await.unwrap().get::<_, Vec<String>>(0) {
            *cuts.entry(role).or_default() += 1;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    println!("answers lost: {cuts:?}");
    db.sql.batch_execute("alter system reset synchronous_standby_names").await.unwrap();
    db.sql.batch_execute("select pg_reload_conf()").await.unwrap();
    results.await.expect("all results");
    assert_exact(&db, &tally, 40).await;
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_of_a_database_do_not_get_in_the_way() {
    let db = database().await;
    prepare(&db).await;
    let defaults = "do $$ declare d text := current_database(); begin
        execute format('alter database %I set default_transaction_read_only = on', d);
        execute format('alter database %I set default_transaction_isolation = serializable', d);
        execute format('alter database %I set synchronous_commit = off', d);
        execute format('alter database %I set search_path = nowhere', d);
        execute format('alter database %I set standard_conforming_strings = off', d);
        execute format('alter database %I set bytea_output = escape', d);
        execute format('alter database %I set datestyle = german', d);
        execute format('alter database %I set intervalstyle = sql_standard', d);
        execute format('alter database %I set timezone = ''Asia/Kathmandu''', d);
        end $$";
    // What holds in the sessions that record.
    let note = "create table noted (level text);
        create function note() returns trigger language plpgsql as $$ begin
            insert into public.noted values (current_setting('synchronous_commit') || ', ' || current_setting('transaction_isolation'));
            return null; end $$;
        create trigger note after insert on ambo.checkpoint for each row execute function note();
        create trigger note after insert on ambo.outcome for each row execute function note();";
    db.sql.batch_execute(note).await.unwrap();
    db.sql.batch_execute(defaults).await.unwrap();
    let client = ambo::Client::connect(&db.url).await.unwrap();
    client.migrate().await.unwrap();
    let worker =
        Worker::builder(&client).workflow_fn("plain", async |mut cx: Ctx<'_>, n: i64| -> Result<i64> {
            Ok(cx.step("double", async || Ok::<_, Error>(2 * n)).await?)
        });
    let worker = worker.start().await.unwrap();
    let run = Enqueue::named("plain", &21).delay(Duration::from_millis(10)).on(&client).await.unwrap();
    let result: Result<i64, Failure<Error>> = client.handle::<Untyped>(run.run).result_as().await;
    assert_eq!(result.unwrap(), 42);
    assert_eq!(db.number("select count(*) from noted where level = 'on, read committed'").await, 2);
    assert_eq!(db.number("select count(*) from noted").await, 2);
    worker.drain(Duration::ZERO).await;
}

/// A busy pooler gives two connections two servers, as if it were none; but it hands on no options.
#[tokio::test]
async fn a_pooler_is_known_by_the_options_that_it_keeps() {
    let db = database().await;
    let proxy = Proxy::before(&db.url).await;
    assert!(!ambo::Client::connect(&proxy.url).await.unwrap().is_pooled(), "a plain proxy is no pooler");
    proxy.keep_options();
    assert!(ambo::Client::connect(&proxy.url).await.unwrap().is_pooled());
    let with_options = format!("{}?options=-c%20work_mem%3D5MB", db.url);
    assert!(!ambo::Client::connect(&with_options).await.unwrap().is_pooled());
    // Nothing can be set there: defaults that are not safe are refused.
    for unsafe_default in ["synchronous_commit = off", "default_transaction_isolation = serializable"] {
        let name = unsafe_default.split(' ').next().unwrap();
        let alter = |what: &str| {
            format!("do $$ begin execute format('alter database %I {what}', current_database()); end $$")
        };
        db.sql.batch_execute(&alter(&format!("set {unsafe_default}"))).await.unwrap();
        let refused = ambo::Client::connect(&proxy.url).await.unwrap_err();
        assert!(
            refused.code() == ambo::Code::Configuration && refused.to_string().contains(unsafe_default),
            "{refused}"
        );
        db.sql.batch_execute(&alter(&format!("reset {name}"))).await.unwrap();
    }
    ambo::Client::connect(&proxy.url).await.unwrap();
}

/// As behind a pooler, where nobody can tell when the backend of a lost answer is done: what the first flush recorded may
/// appear after it was looked for.
#[tokio::test]
async fn facts_that_appear_after_they_were_read_back_are_taken_for_what_they_are() {
    let db = database().await;
    let url = Arc::new(db.url.clone());
    let run = async |mut cx: Ctx<'_>, late: bool| -> Result<i64> {
        let (url, run) = (cx.state::<Arc<String>>()?, cx.run_id().as_uuid());
        let sql = connect(&url).await;
        let call = cx.step("late", async || {
            let fact = "insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output)
                select c.run_id, c.attempt, 1, '1', 'late', '42' from ambo.claim c where c.run_id = $1 and $2";
            sql.execute(fact, &[&run, &late]).await.unwrap();
            Ok::<_, Error>(42)
        });
        let answer = call.await?;
        cx.step("next", async || Ok::<_, Error>(answer)).await.map_err(Into::into)
    };
    let worker = Worker::builder(&db.client).workflow_fn("run", run).state(url).start().await.unwrap();
    let runs = ambo::enqueue_all(&db.client, (0..20).map(|n| Enqueue::named("run", &(n % 2 == 0)))).await;
    for run in runs.unwrap() {
        let result: Result<i64, Failure<Error>> = db.client.handle::<Untyped>(run.run).result_as().await;
        assert_eq!(result.expect("a run did not succeed"), 42);
    }
    assert_eq!(db.number("select count(*) from ambo.checkpoint").await, 40);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_database_starts_no_worker_before_it_is_adopted() {
    let origin = database().await;
    let run = Enqueue::named("plain", &21).on(&origin.client).await.unwrap().run;
    let (server, name) = origin.url.rsplit_once('/').unwrap();
    let admin = connect(&format!("{server}/postgres")).await;
    // A template has no other sessions.
    let clone = format!(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{name}';
         create database {name}_clone template {name}"
    );
    for statement in clone.split(';') {
        admin.batch_execute(statement).await.unwrap();
    }
    let client = ambo::Client::connect(&format!("{server}/{name}_clone")).await.unwrap();
    let worker = || {
        Worker::builder(&client)
            .workflow_fn("plain", async |_: Ctx<'_>, n: i64| -> Result<i64> { Ok(2 * n) })
            .start()
    };
    assert_eq!(worker().await.unwrap_err().code(), Code::NotAdopted);
    assert!(!client.show_run(run).await.unwrap().summary.state.contains("succeeded"));
    client.adopt().await.unwrap();
    let worker = worker().await.unwrap();
    let result: Result<i64, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    assert_eq!(result.unwrap(), 42);
    worker.drain(Duration::ZERO).await;
    admin.batch_execute(&format!("drop database {name}_clone with (force)")).await.unwrap();
}
