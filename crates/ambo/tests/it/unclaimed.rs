//! Cancelled runs that nobody has in execution when their grace is over: the keeper ends them, whatever keeps them waiting.

use std::sync::Arc;
use std::time::Duration;

use ambo::{Cancel, Code, Ctx, Enqueue, Error, Ordered, QueueSettings, Result, Retry, RunId, Worker};
use tokio::sync::Semaphore;

use crate::harness::{Database, connect, database};
use crate::undo::{HOUR, Journal, ended, note, trip};

const MOMENT: Duration = Duration::from_millis(100);

async fn cancel(db: &Database, run: RunId, grace: Duration) {
    db.client.cancel(run, Cancel::new("withdrawn").grace(grace)).await.unwrap();
}

async fn state(db: &Database, run: RunId) -> String {
    db.client.show_run(run).await.unwrap().summary.state
}

/// It is dead for that it was not in execution, and says so.
async fn is_unclaimed(db: &Database, run: RunId) {
    let error = ended(&db.client, run).await.unwrap_err();
    assert_eq!(error.code(), Code::GraceOver);
    assert!(error.to_string().contains("while the run was not in execution"), "{error}");
    assert_eq!(state(db, run).await, "dead");
}

async fn parked(db: &Database, runs: usize) {
    db.until(&format!("select count(*) = {runs} from ambo.timer where attempt > 0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_ends_what_is_parked_in_a_paused_queue_and_a_retry_goes_on() {
    let db = database().await;
    let journal = Journal::default();
    let _worker =
        Worker::builder(&db.client).workflow::<trip>().state(journal.clone()).start().await.unwrap();
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(trip::enqueue("waits".into()).on(&db.client).await.unwrap().run);
    }
    parked(&db, 3).await;
    db.client.pause_queue("default", true).await.unwrap();
    // One has time enough, and one all the time that there is.
    cancel(&db, runs[1], HOUR).await;
    db.client.cancel(runs[2], "withdrawn").await.unwrap();
    cancel(&db, runs[0], MOMENT).await;
    is_unclaimed(&db, runs[0]).await;
    assert_eq!(db.client.dead_letters(&Default::default()).await.unwrap().len(), 1);
    assert_eq!(db.number("select count(*) from ambo.cancel_request").await, 2);
    db.client.retry(runs[0]).await.unwrap();
    db.heartbeats(3).await;
    assert_eq!(db.number("select count(*) from ambo.outcome").await, 0, "the others have their time");
    assert_eq!(journal.all().len(), 6, "nothing is undone: {:?}", journal.all());
    db.client.pause_queue("default", false).await.unwrap();
    for run in runs {
        let error = ended(&db.client, run).await.unwrap_err();
        assert_eq!(error.code(), Code::Cancelled);
        assert!(error.to_string().contains("withdrawn"), "{error}");
    }
    let undone = journal.all().iter().filter(|entry| entry.starts_with("undo ")).count();
    assert_eq!(undone, 6, "{:?}", journal.all());
}

/// Undoes the hotel for as long as it is not let, and then the flight.
#[ambo::workflow]
async fn lingers(cx: Ctx, _: u32) -> Result<()> {
    let (journal, gate) = (cx.state::<Journal>()?, cx.state::<Arc<Semaphore>>()?);
    note(&mut cx, &journal, "flight").await?;
    let undoing = journal.clone();
    cx.compensate_with("undo hotel", Retry::none(), move |_| {
        let (journal, gate) = (undoing.clone(), gate.clone());
        async move {
            journal.note("undoing");
            gate.acquire().await.map_err(Error::other)?.forget();
            Ok::<_, Error>(())
        }
    });
    cx.signal("never").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_ends_what_no_worker_serves_also_where_it_is_undone_in_half() {
    let db = database().await;
    let (journal, gate) = (Journal::default(), Arc::new(Semaphore::new(0)));
    let served =
        || Worker::builder(&db.client).workflow::<lingers>().state(journal.clone()).state(gate.clone());
    let worker = served().start().await.unwrap();
    let undoing = lingers::enqueue(1).on(&db.client).await.unwrap().run;
    let waits = lingers::enqueue(2).on(&db.client).await.unwrap().run;
    parked(&db, 2).await;
    db.client.cancel(undoing, "withdrawn").await.unwrap();
    journal.until("undoing").await;
    worker.drain(Duration::ZERO).await;
    assert_eq!(db.number("select count(*) from ambo.ready where attempt > 0").await, 1, "it was handed back");
    let _keeper = served().queue("elsewhere").start().await.unwrap();
    for run in [undoing, waits] {
        cancel(&db, run, MOMENT).await;
        is_unclaimed(&db, run).await;
        db.client.retry(run).await.unwrap();
    }
    gate.add_permits(2);
    let _worker = served().start().await.unwrap();
    for run in [undoing, waits] {
        assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    }
    let mut done = journal.all();
    done.sort();
    assert_eq!(
        done,
        ["flight", "flight", "undo flight", "undo flight", "undoing", "undoing", "undoing"],
        "one of them twice"
    );
}

/// Waits for a child in a queue of its own.
#[ambo::workflow]
async fn parent(cx: Ctx) -> Result<u32> {
    let journal = cx.state::<Journal>()?;
    note(&mut cx, &journal, "parent").await?;
    let child = cx.child::<trip>("waits".into()).with(|child| child.queue("children")).start()?;
    Ok(cx.result_of(child).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_holds_for_children_whose_queue_is_paused() {
    let db = database().await;
    let journal = Journal::default();
    let _worker = Worker::builder(&db.client)
        .queue("default")
        .queue("children")
        .workflow::<parent>()
        .workflow::<trip>()
        .state(journal.clone())
        .start()
        .await
        .unwrap();
    let run = parent::enqueue().on(&db.client).await.unwrap().run;
    parked(&db, 2).await;
    db.client.pause_queue("children", true).await.unwrap();
    cancel(&db, run, Duration::from_secs(2)).await;
    // The parent is undone in time, its child cannot be.
    assert_eq!(ended(&db.client, run).await.unwrap_err().code(), Code::Cancelled);
    let child: uuid::Uuid = db.sql.query_one("select child_id from ambo.child", &[]).await.unwrap().get(0);
    is_unclaimed(&db, RunId::from(child)).await;
    assert_eq!(journal.all(), ["parent", "flight", "hotel", "undo parent"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancel_ends_what_finds_no_room_and_its_group_goes_on() {
    let db = database().await;
    let journal = Journal::default();
    let _worker =
        Worker::builder(&db.client).workflow::<trip>().state(journal.clone()).start().await.unwrap();
    let settings = QueueSettings::default().concurrency(1).ordered(Ordered::Skip);
    db.client.set_queue("default", &settings).await.unwrap();
    let enqueue = async |then: &str, group: &str| {
        Enqueue::named("trip", &then).group(group).on(&db.client).await.unwrap().run
    };
    let first = enqueue("waits", "a").await;
    parked(&db, 1).await;
    let next = enqueue("", "a").await;
    let busy = enqueue("hangs at once", "b").await;
    journal.until("begun").await;
    cancel(&db, first, MOMENT).await;
    is_unclaimed(&db, first).await;
    assert_eq!((state(&db, next).await, state(&db, busy).await), ("ready".into(), "running".into()));
    db.client.cancel(busy, "enough").await.unwrap();
    assert_eq!(ended(&db.client, next).await.unwrap(), 1);
}

/// Makes runs that are parked and whose grace was over a while ago, with their requests in the order given.
async fn overdue(sql: &tokio_postgres::Client, runs: u32) -> Vec<uuid::Uuid> {
    let make = format!(
        "with made as (select e.run_id, n from generate_series(1, {runs}) n cross join lateral ambo.enqueue_workflow('w', to_json(n)) e (run_id)),
              asked as (insert into ambo.cancel_request (run_id, undo_by)
                        select run_id, now() - interval '1 hour' + n * interval '1 ms' from made),
              put as (insert into ambo.timer (run_id, due_at, attempt, losses) select run_id, 'infinity', 1, 0 from made)
         select run_id from made order by n"
    );
    let made = sql.query(&make, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    sql.batch_execute("delete from ambo.ready").await.unwrap();
    made
}

/// Looks as the keeper does.
struct Keeper<'d>(&'d tokio_postgres::Client, Option<String>, Option<String>);

impl Keeper<'_> {
    /// How many it ended, whether there is more, and whether a heartbeat finds something to look at.
    async fn looks(&mut self, limit: i32) -> (i32, bool, bool) {
        let look = "select ended, after::text, since::text, more
            from ambo.end_unclaimed($1, $2::text::timestamptz, $3::text::pg_snapshot)";
        let row = self.0.query_one(look, &[&limit, &self.1, &self.2]).await.unwrap();
        (self.1, self.2) = (row.get(1), row.get(2));
        let over = "select ambo.graces_over($1::text::timestamptz, clock_timestamp())";
        let is_over = self.0.query_one(over, &[&self.1]).await.unwrap().get(0);
        (row.get(0), row.get(3), is_over)
    }
}

#[tokio::test]
async fn the_looks_for_graces_that_are_over_miss_none() {
    let db = database().await;
    let other = connect(&db.url).await;
    let mut keeper = Keeper(&db.sql, None, None);
    assert_eq!(keeper.looks(10).await, (0, false, false));
    let runs = overdue(&other, 5).await;
    // They came below the mark, as by a commit that was long in coming; and nobody has had a moment to claim them.
    keeper.1 = None;
    assert_eq!(keeper.looks(2).await, (0, false, true));
    // Of two, then of all, somebody has one in execution and one locked.
    let moved = "delete from ambo.timer where run_id = $1";
    other.execute(moved, &[&runs[0]]).await.unwrap();
    let claim = "insert into ambo.claim (run_id, worker_id, attempt, losses) values ($1, 0, 2, 0)";
    other.execute(claim, &[&runs[0]]).await.unwrap();
    other.batch_execute("begin").await.unwrap();
    other.execute("select from ambo.timer where run_id = $1 for update", &[&runs[3]]).await.unwrap();
    assert_eq!(keeper.looks(2).await, (1, true, true));
    assert_eq!(keeper.looks(2).await, (1, true, true));
    assert_eq!(keeper.looks(2).await, (0, false, true), "the two that are held");
    assert_eq!(keeper.looks(10).await, (1, false, true));
    // Let go they are found, the one where it stood, the other when it has stood a moment.
    other.batch_execute("commit").await.unwrap();
    assert_eq!(keeper.looks(10).await, (1, false, true));
    other.execute("delete from ambo.claim where run_id = $1", &[&runs[0]]).await.unwrap();
    let back = "insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow)
        values (nextval('ambo.ready_seq'), pg_current_xact_id(), $1, 2, 0, 0, 'default', ambo.lane('w', '7', null, true))";
    other.execute(back, &[&runs[0]]).await.unwrap();
    assert_eq!(keeper.looks(10).await, (0, false, true));
    assert_eq!(keeper.looks(10).await, (1, false, false));
    let told = "select error ->> 'message' like '% version ''7''%' from ambo.outcome where run_id = $1";
    assert!(other.query_one(told, &[&runs[0]]).await.unwrap().get::<_, bool>(0));
    // A request that outlived its run is passed.
    let late = "insert into ambo.cancel_request (run_id, undo_by) values ($1, clock_timestamp())";
    other.execute(late, &[&runs[0]]).await.unwrap();
    assert_eq!(keeper.looks(10).await, (0, false, false));
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'dead'").await, 5);
    assert_eq!(db.number("select count(*) from ambo.checkpoint where name = 'ambo:undo'").await, 5);
    assert_eq!(db.number("select count(*) from ambo.timer").await, 0);
}
