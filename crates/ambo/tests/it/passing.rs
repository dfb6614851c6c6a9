//! What the database refuses for a while, or by a setting, repeats nothing and loses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ambo::{Client, Code, Ctx, Enqueue, Error, Result, RunId, Untyped, Worker};
use tokio::sync::Notify;

use crate::harness::{Database, connect, database, database_at};
use crate::outage::{blocking, own_server};
use crate::privilege::{remove_users, user};
use crate::stage::pool;

#[derive(Default)]
struct Deed {
    done: AtomicU32,
    go_on: Notify,
}

/// Does a step that ends when it is told to.
async fn act(mut cx: Ctx<'_>, _: ()) -> Result<()> {
    let deed = cx.state::<Arc<Deed>>()?;
    let step = cx.step("act", || async {
        deed.done.fetch_add(1, Ordering::SeqCst);
        deed.go_on.notified().await;
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

async fn start(client: &Client) -> (Worker, Arc<Deed>) {
    let deed = Arc::new(Deed::default());
    let builder = Worker::builder(client).workflow_fn("act", act).state(deed.clone());
    (builder.start().await.unwrap(), deed)
}

async fn begun(db: &Database) -> RunId {
    let run = Enqueue::<Untyped>::named("act", &()).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.claim").await;
    run
}

/// The run ended under its first claim, and what it did it did once.
async fn ended(db: &Database, run: RunId, deed: &Deed) {
    db.client.handle::<Untyped>(run).result_as::<(), Error>().await.unwrap();
    assert_eq!(db.number("select attempt::bigint from ambo.outcome").await, 1);
    assert_eq!(deed.done.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privilege_that_is_taken_away_for_a_while_costs_no_step() {
    let db = database().await;
    let url = user(&db, "ambo", "worker").await;
    let (worker, deed) = start(&Client::connect(&url).await.unwrap()).await;
    let run = begun(&db).await;
    let name = url.split_once("//").and_then(|(_, rest)| rest.split_once('@')).unwrap().0;
    db.sql.batch_execute(&format!("revoke ambo_worker from {name}")).await.unwrap();
    deed.go_on.notify_one();
    // It asks a second time, on another connection: the first was refused.
    let asks = "from pg_stat_activity where datname = current_database() and application_name = 'ambo worker journal'";
    let latest =
        format!("select coalesce(max(extract(epoch from backend_start) * 1000000), 0)::bigint {asks}");
    db.until(&format!("select exists (select {asks})")).await;
    let first = db.number(&latest).await;
    db.until(&format!("select ({latest}) > {first}")).await;
    db.sql.batch_execute(&format!("grant ambo_worker to {name}")).await.unwrap();
    ended(&db, run, &deed).await;
    drop(worker);
    remove_users(&db).await;
}

async fn version(db: &Database) -> i64 {
    db.number("select current_setting('server_version_num')::bigint / 10000").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_transactions_that_the_database_has_is_not_ambos() {
    let db = database().await;
    if version(&db).await < 17 {
        eprintln!("PostgreSQL before 17 has no transaction_timeout");
        return;
    }
    let limit = "do $$ begin execute format('alter database %I set transaction_timeout = 200', current_database()); end $$";
    db.sql.batch_execute(limit).await.unwrap();
    let holder = connect(&db.url).await;
    holder.batch_execute("set transaction_timeout = 0").await.unwrap();
    let (_worker, deed) = start(&db.client).await;
    let run = begun(&db).await;
    holder.batch_execute("begin; lock table ambo.checkpoint in exclusive mode").await.unwrap();
    deed.go_on.notify_one();
    let waits = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
        and query like '%ambo.flush%' and query_start < clock_timestamp() - interval '600 ms')";
    db.until(waits).await;
    holder.batch_execute("commit").await.unwrap();
    ended(&db, run, &deed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_notifications_that_nobody_reads_fails_no_commit() {
    let cluster = own_server().await;
    let mut db = database_at(&cluster.url("postgres")).await;
    if version(&db).await < 17 {
        eprintln!("before PostgreSQL 17 the queue of notifications has 8 GB");
        return;
    }
    db.sql.batch_execute("alter system set max_notify_queue_pages = 64").await.unwrap();
    let server = cluster.clone();
    blocking(move || server.restart(ambo_postgres::Shutdown::Fast).unwrap()).await;
    db.sql = connect(&db.url).await;
    // It listens, and is in the midst of a transaction.
    let deaf = connect(&db.url).await;
    deaf.batch_execute("listen elsewhere").await.unwrap();
    deaf.batch_execute("begin; select 1").await.unwrap();
    let fill = "select pg_notify('elsewhere', g || repeat('x', 7000)) from generate_series(1, 8) g";
    while db.sql.execute(fill, &[]).await.is_ok() {}
    let told = "select value::integer from ambo.vital_signs() where name = 'notification_queue_percent'";
    assert!(db.number(&format!("select ({told})::int8")).await > 90);
    let (_worker, deed) = start(&db.client).await;
    // It sleeps, and would be told.
    db.until("select ambo.is_awaited(hashtext('ambo.sleep'))").await;
    deed.go_on.notify_one();
    let run = Enqueue::<Untyped>::named("act", &()).on(&db.client).await.unwrap().run;
    ended(&db, run, &deed).await;
}

#[tokio::test]
async fn an_operator_whose_session_knows_no_nulls_in_arrays_retries_and_forks() {
    let db = database().await;
    db.sql.batch_execute("set array_nulls = off").await.unwrap();
    let run = Enqueue::<Untyped>::named("nobody", &()).on(&db.client).await.unwrap().run;
    for act in ["select ambo.retry_run($1)", "select ambo.rewind_run($1, '1')", "select ambo.fork_run($1)"] {
        db.client.cancel(run, "").await.unwrap();
        db.sql.execute(act, &[&run.as_uuid()]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_for_which_there_is_no_partition_says_so_with_every_driver() {
    let db = database().await;
    let detach = "do $$ declare p regclass; begin
        for p in select inhrelid::regclass from pg_inherits where inhparent = 'ambo.run'::regclass loop
            execute format('alter table ambo.run detach partition %s', p);
        end loop; end $$";
    db.sql.batch_execute(detach).await.unwrap();
    let enqueue = || Enqueue::<Untyped>::named("act", &());
    let mut sqlx = pool(&db.url).await.acquire().await.unwrap();
    let refused = [
        enqueue().on(&db.client).await.unwrap_err(),
        enqueue().on(&db.sql).await.unwrap_err(),
        enqueue().on(&mut *sqlx).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.code(), Code::NoPartition, "{error}");
    }
}
