//! Versions: a migration that nobody has to wait for, and programs of two versions side by side, both ways round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::child::Child;
use crate::harness::{Database, connect, database};
use crate::workflows::Ledger;

/// A program of the version to come: see `store/migrate/next.rs`.
const NEXT: (&str, &str) = ("AMBO_NEXT_VERSION", "1");

/// Enqueues on connections of its own until it is dropped.
struct Load {
    stopped: Arc<AtomicBool>,
    enqueued: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn begin(db: &Database) -> Load {
        let (stopped, enqueued) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        // Two in short transactions, one that takes its time: whoever wants the table for himself waits for it.
        let tasks = [0, 0, 300].map(|hold_ms| {
            let (url, stopped, enqueued) = (db.url.clone(), stopped.clone(), enqueued.clone());
            tokio::spawn(async move {
                let sql = connect(&url).await;
                sql.batch_execute("set application_name = 'enqueuer'").await.unwrap();
                while !stopped.load(Ordering::SeqCst) {
                    let enqueue = "begin; select ambo.enqueue_workflow('short', '1')";
                    sql.batch_execute(enqueue).await.unwrap();
                    // Load, not a wait for something.
                    tokio::time::sleep(Duration::from_millis(hold_ms)).await;
                    sql.batch_execute("commit").await.unwrap();
                    enqueued.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        });
        Load { stopped, enqueued, tasks: tasks.into() }
    }

    /// Waits until so many more have been enqueued.
    async fn goes_on(&self, more: u64) {
        let goal = self.enqueued.load(Ordering::SeqCst) + more;
        while self.enqueued.load(Ordering::SeqCst) < goal {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "an enqueue failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> u64 {
        self.stopped.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("an enqueue failed");
        }
        self.enqueued.load(Ordering::SeqCst)
    }
}

/// Watches how long anybody but the migration, enqueuers and workers, waits for a table: by the server's own account, whatever the
/// machine is busy with.
fn watch_waits(db: &Database) -> (Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let (longest_us, url) = (Arc::new(AtomicU64::new(0)), db.url.clone());
    let seen = longest_us.clone();
    let watching = tokio::spawn(async move {
        let sql = connect(&url).await;
        let waits =
            "select coalesce(max(extract(epoch from clock_timestamp() - l.waitstart) * 1000000), 0)::int8
            from pg_locks l join pg_stat_activity a on a.pid = l.pid
            where not l.granted and l.locktype = 'relation' and a.application_name <> 'ambo client'
              and a.datname = current_database()";
        let waits = sql.prepare(waits).await.unwrap();
        loop {
            let waited: i64 = sql.query_one(&waits, &[]).await.unwrap().get(0);
            seen.fetch_max(waited.unsigned_abs(), Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    (longest_us, watching)
}

async fn upgrade(db: &Database) {
    let mut next = Child::start("migrate", &db.url, &[NEXT]);
    assert_eq!(next.says("migrated").await, "1 2");
    next.ended().await;
}

/// Everything that was enqueued ends well.
async fn assert_all_ended(db: &Database, enqueued: u64) {
    db.until(&format!("select count(*) = {enqueued} from ambo.outcome where status = 'succeeded'")).await;
    assert_eq!(db.number("select count(*) from ambo.run").await, enqueued as i64);
    assert_eq!(db.number("select count(*) from ambo.ready").await, 0);
}

/// Waits until this process has executed runs that came after now.
async fn works(db: &Database, pid: u32) {
    let now = db.number("select coalesce(max(n), 0) from effect").await;
    db.until(&format!("select count(*) >= 3 from effect where pid = {pid} and n > {now}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_under_load_lets_nobody_wait_for_long() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let (_worker, _) = Child::worker(&db.url, &[]).await;
    let load = Load::begin(&db);
    load.goes_on(20).await;
    let (longest_us, watching) = watch_waits(&db);
    for _ in 0..3 {
        assert_eq!(db.client.migrate().await.unwrap(), (1, 1));
    }
    upgrade(&db).await;
    load.goes_on(20).await;
    watching.abort();
    let longest = Duration::from_micros(longest_us.load(Ordering::SeqCst));
    println!("nobody waited for longer than {longest:?}");
    assert!(longest < Duration::from_millis(100), "somebody waited for {longest:?}");
    let enqueued = load.end().await;
    assert_all_ended(&db, enqueued).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_two_versions_work_side_by_side_whichever_came_first() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let mut early = Child::start("worker", &db.url, &[NEXT]);
    assert!(!early.ended().await.success(), "a program that is newer than the schema is refused");

    let (mut old, _) = Child::worker(&db.url, &[("AMBO_CHILD_IN_FLIGHT", "2")]).await;
    let load = Load::begin(&db);
    works(&db, old.pid()).await;
    upgrade(&db).await;
    let (new, _) = Child::worker(&db.url, &[NEXT, ("AMBO_CHILD_IN_FLIGHT", "2")]).await;
    works(&db, old.pid()).await;
    works(&db, new.pid()).await;

    // Back again: a program of the old version is started on the new schema, and leaves it as it is.
    old.kill().await;
    let (again, _) = Child::worker(&db.url, &[("AMBO_CHILD_IN_FLIGHT", "2")]).await;
    works(&db, again.pid()).await;
    works(&db, new.pid()).await;
    assert_eq!(db.client.migrate().await.unwrap(), (2, 2));
    assert_eq!(db.client.schema_version().await.unwrap(), (2, 1));
    let parameters = "select pronargs::int8 from pg_proc where proname = 'hold_worker'";
    assert_eq!(
        db.number(parameters).await,
        2,
        "an older program has put its own function in the place of the newer"
    );
    let enqueued = load.end().await;
    assert_all_ended(&db, enqueued).await;
}

#[tokio::test]
async fn an_upgrade_that_was_cut_short_goes_on_where_it_stopped() {
    let db = database().await;
    // The tables have been brought to the next version, and then the process was killed.
    let half =
        "begin; alter table ambo.run add column shade text; alter table ambo.ready add column shade text;
        update ambo.installation set tables_version = 2; commit";
    db.sql.batch_execute(half).await.unwrap();
    // Until the functions follow, the schema is what it was.
    assert_eq!(db.client.schema_version().await.unwrap(), (1, 1));
    db.sql.batch_execute("select ambo.enqueue_workflow('short', '1')").await.unwrap();
    upgrade(&db).await;
    assert_eq!(db.client.schema_version().await.unwrap(), (2, 1));
}
