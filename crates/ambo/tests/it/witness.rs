//! Transaction steps in a second database: exactly once there too, also with workers that were thought dead.

use std::sync::Arc;

use ambo::{Code, Ctx, Error, Result, RunId, Worker};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::harness::{connect, empty_database};
use crate::proxy::{Lose, Proxy};
use crate::stage::{Gate, Stage, pool};

/// The pool of the other database.
#[derive(Clone)]
struct Elsewhere(PgPool);

struct Two {
    stage: Stage,
    /// The other database: its address, and a connection to look at it.
    url: String,
    sql: tokio_postgres::Client,
}

impl Two {
    async fn set() -> Two {
        let stage = Stage::set().await;
        let (url, _) = empty_database().await;
        let sql = connect(&url).await;
        sql.batch_execute("create table booking (n bigserial primary key, attempt int not null)")
            .await
            .unwrap();
        ambo::install_witness(&pool(&url).await).await.unwrap();
        Two { stage, url, sql }
    }

    /// A worker for one run at a time, so that a second one gets what the first one loses.
    async fn worker(&self, other: PgPool) -> Worker {
        let builder = self.stage.worker().max_in_flight(1).state(Elsewhere(other));
        builder.workflow::<book>().start().await.unwrap()
    }

    async fn enqueue(&self, how: &str) -> RunId {
        book::enqueue(how.to_owned()).on(&self.stage.db.client).await.unwrap().run
    }

    /// The attempts whose effect is in the other database.
    async fn bookings(&self) -> Vec<i32> {
        let rows = self.sql.query("select attempt from booking order by n", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// State and attempt of the one witness.
    async fn witness(&self) -> Option<(String, i32)> {
        let rows = self.sql.query("select state, attempt from ambo_witness.witness", &[]).await.unwrap();
        rows.first().map(|row| (row.get(0), row.get(1)))
    }

    async fn until_elsewhere(&self, sql: &str) {
        for _ in 0..3000 {
            if self.sql.query_one(sql, &[]).await.expect(sql).get::<_, bool>(0) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("never became true elsewhere: {sql}");
    }
}

/// Books in the other database, then one step more.
#[ambo::workflow]
async fn book(cx: Ctx, how: String) -> Result<i64> {
    let (other, gate) = (cx.state::<Elsewhere>()?, cx.state::<Arc<Gate>>()?);
    let attempt = i32::try_from(cx.attempt()).map_err(Error::other)?;
    let step = cx.transaction("book").witnessed().run(&other.0, async |mut tx| {
        gate.count();
        let insert = "insert into booking (attempt) values ($1) returning n";
        let n: i64 = sqlx::query_scalar(insert).bind(attempt).fetch_one(&mut *tx).await?;
        match (&*how, attempt) {
            ("hold", 1) => gate.wait().await,
            ("fail the heir", 2) | ("fail", _) => return Err(Error::message("full")),
            ("by hand", 1) => {
                sqlx::raw_sql("commit").execute(&mut *tx).await?;
            }
            _ => {}
        }
        Ok(n)
    });
    let n = step.await?;
    cx.step("after", async || Ok::<_, Error>(())).await?;
    Ok(n)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_witness_commits_with_the_effect_and_the_checkpoint_follows() {
    let two = Two::set().await;
    let _worker = two.worker(pool(&two.url).await).await;
    let run = two.enqueue("").await;
    assert_eq!(two.stage.end(run).await.unwrap(), 1);
    let together = "select count(*) = 1 from booking b, ambo_witness.witness w
        where b.xmin = w.xmin and w.state = 'done' and w.output::text = '1'";
    two.until_elsewhere(together).await;
    assert_eq!(two.stage.checkpoints().await, 2);
    // A failure leaves neither, and is recorded.
    let run = two.enqueue("fail").await;
    assert_eq!(two.stage.end(run).await.unwrap_err().to_string(), "AMBO027: full");
    assert_eq!(two.bookings().await, [1]);
    assert_eq!(two.stage.checkpoints().await, 3);
    // Installing again, by several at once, changes nothing.
    let other = pool(&two.url).await;
    let installs = (0..4).map(|_| ambo::install_witness(&other));
    futures_util::future::try_join_all(installs).await.unwrap();
    assert_eq!(two.witness().await, Some(("done".to_owned(), 1)));
    assert!(ambo::WITNESS_SQL.contains("create table if not exists ambo_witness.witness"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_lost_between_the_two_commits_leaves_exactly_one_effect() {
    let two = Two::set().await;
    let first = two.worker(pool(&two.url).await).await;
    // Its journal cannot flush while somebody else holds its fence.
    let mut holder = connect(&two.stage.db.url).await;
    let fence = holder.transaction().await.unwrap();
    let hold = "select pg_advisory_xact_lock(hashtext('ambo.fence'), $1)";
    // It claims under the same lock: only after that.
    let run = two.enqueue("hold").await;
    two.stage.gate.reached().await;
    let id: i32 = first.id().unwrap().to_string().parse().unwrap();
    fence.execute(hold, &[&id]).await.unwrap();
    two.stage.gate.open();
    two.until_elsewhere("select count(*) = 1 from ambo_witness.witness where state = 'done'").await;
    assert_eq!(two.stage.checkpoints().await, 0, "between the two commits");
    let _heir = two.worker(pool(&two.url).await).await;
    two.stage.steal(run).await;
    assert_eq!(two.stage.end(run).await.unwrap(), 1, "the witness tells what came of it");
    fence.rollback().await.unwrap();
    assert_eq!(two.bookings().await, [1]);
    assert_eq!(two.stage.gate.bodies(), 1, "the body was not run again");
    assert_eq!(two.stage.checkpoints().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_heir_waits_for_a_zombie_that_is_faster_and_takes_over_its_result() {
    let two = Two::set().await;
    let _zombie = two.worker(pool(&two.url).await).await;
    let run = two.enqueue("hold").await;
    two.stage.gate.reached().await;
    let _heir = two.worker(pool(&two.url).await).await;
    two.stage.steal(run).await;
    two.until_elsewhere(WAITING).await;
    two.stage.gate.open();
    assert_eq!(two.stage.end(run).await.unwrap(), 1);
    assert_eq!(two.bookings().await, [1], "the zombie's effect, once");
    assert_eq!(two.stage.gate.bodies(), 1);
    assert_eq!(two.stage.db.number("select attempt::int8 from ambo.outcome").await, 2);
}

/// Somebody waits for the witness of another transaction.
const WAITING: &str = "select count(*) = 1 from pg_stat_activity
    where datname = current_database() and wait_event = 'transactionid'";

#[tokio::test(flavor = "multi_thread")]
async fn an_heir_goes_on_where_a_zombie_dies() {
    let two = Two::set().await;
    let zombie = two.worker(pool(&two.url).await).await;
    let run = two.enqueue("hold").await;
    two.stage.gate.reached().await;
    let _heir = two.worker(pool(&two.url).await).await;
    two.stage.steal(run).await;
    two.until_elsewhere(WAITING).await;
    let end = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'ambo step of worker {}'
         and wait_event = 'ClientRead' and datname = current_database()",
        zombie.id().unwrap()
    );
    two.sql.batch_execute(&end).await.unwrap();
    assert_eq!(two.stage.end(run).await.unwrap(), 2);
    two.stage.gate.open();
    assert_eq!(two.bookings().await, [2], "the heir's effect, once");
}

/// A pool whose only connection is taken: a step that begins there waits.
async fn closed_door(url: &str) -> (PgPool, sqlx::pool::PoolConnection<sqlx::Postgres>) {
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await.unwrap();
    let key = pool.acquire().await.unwrap();
    (pool, key)
}

/// Until a worker has nothing in memory any more.
async fn until_idle(worker: &Worker) {
    while worker.in_flight() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_comes_after_a_failure_was_recorded_cannot_take_effect() {
    let two = Two::set().await;
    let (door, key) = closed_door(&two.url).await;
    let zombie = two.worker(door).await;
    let run = two.enqueue("fail the heir").await;
    two.stage.db.until("select count(*) = 1 from ambo.claim").await;
    let _heir = two.worker(pool(&two.url).await).await;
    two.stage.steal(run).await;
    assert_eq!(two.stage.end(run).await.unwrap_err().code(), Code::Application);
    assert_eq!(two.witness().await, Some(("void".to_owned(), 2)), "a tombstone");
    drop(key);
    until_idle(&zombie).await;
    assert_eq!(two.bookings().await, [0; 0]);
    assert_eq!(two.stage.gate.bodies(), 1, "the zombie found the tombstone before its body");
    // A later attempt may, once it is wanted.
    two.stage.db.client.retry(run).await.unwrap();
    two.stage.end(run).await.unwrap();
    assert_eq!(two.bookings().await, [3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_leaves_a_tombstone_for_its_zombie() {
    let two = Two::set().await;
    let (door, key) = closed_door(&two.url).await;
    let zombie = two.worker(door).await;
    let run = two.enqueue("").await;
    two.stage.db.until("select count(*) = 1 from ambo.claim").await;
    two.stage.db.client.cancel(run, "enough").await.unwrap();
    let _heir = two.worker(pool(&two.url).await).await;
    two.stage.steal(run).await;
    assert_eq!(two.stage.end(run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(two.witness().await, Some(("void".to_owned(), 2)));
    drop(key);
    until_idle(&zombie).await;
    assert_eq!(two.bookings().await, [0; 0]);
    assert_eq!(two.stage.state(run).await, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_knows_what_its_zombie_did() {
    let two = Two::set().await;
    let _zombie = two.worker(pool(&two.url).await).await;
    let run = two.enqueue("hold").await;
    two.stage.gate.reached().await;
    two.stage.db.client.cancel(run, "enough").await.unwrap();
    let _heir = two.worker(pool(&two.url).await).await;
    two.stage.steal(run).await;
    // The tombstone waits for the zombie's witness.
    two.until_elsewhere(WAITING).await;
    two.stage.gate.open();
    assert_eq!(two.stage.end(run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(two.bookings().await, [1]);
    let recorded = "select count(*) from ambo.checkpoint where name = 'book' and output::text = '1'";
    assert_eq!(two.stage.db.number(recorded).await, 1, "what took effect is recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_elsewhere_whose_answer_is_lost_is_read_back() {
    for (lose, bodies) in [(Lose::Answer, 1), (Lose::Commit, 2), (Lose::Everything, 2)] {
        let two = Two::set().await;
        let proxy = Proxy::before(&two.url).await;
        let _worker = two.worker(pool(&proxy.url).await).await;
        proxy.lose(lose);
        let run = two.enqueue("").await;
        two.stage.end(run).await.unwrap();
        assert_eq!(proxy.lost(), 1, "{lose:?}");
        assert_eq!(two.bookings().await, [1], "{lose:?}");
        assert_eq!(two.stage.gate.bodies(), bodies, "{lose:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_by_hand_elsewhere_stops_the_run_until_it_is_repaired() {
    let two = Two::set().await;
    let _worker = two.worker(pool(&two.url).await).await;
    let run = two.enqueue("by hand").await;
    assert_eq!(two.stage.end(run).await.unwrap_err().code(), Code::CommittedByHand);
    assert_eq!(two.stage.state(run).await, "dead");
    assert_eq!(two.witness().await, Some(("open".to_owned(), 1)), "the proof");
    two.stage.db.client.retry(run).await.unwrap();
    assert_eq!(
        two.stage.end(run).await.unwrap_err().code(),
        Code::CommittedByHand,
        "not before it is repaired"
    );
    two.sql.batch_execute("truncate booking; delete from ambo_witness.witness").await.unwrap();
    two.stage.db.client.retry(run).await.unwrap();
    two.stage.end(run).await.unwrap();
    assert_eq!(two.bookings().await, [3]);
    assert_eq!(two.stage.gate.bodies(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_witnesses_says_how_to_get_them() {
    let two = Two::set().await;
    let _worker = two.worker(pool(&two.url).await).await;
    two.sql.batch_execute("drop schema ambo_witness cascade").await.unwrap();
    let run = two.enqueue("").await;
    let error = two.stage.end(run).await.unwrap_err();
    assert_eq!(error.code(), Code::SchemaMismatch, "{error}");
    assert!(error.to_string().contains("install_witness"), "{error}");
    assert_eq!(two.bookings().await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn witnesses_are_pruned_by_their_age() {
    let two = Two::set().await;
    let _worker = two.worker(pool(&two.url).await).await;
    for _ in 0..2 {
        let run = two.enqueue("").await;
        two.stage.end(run).await.unwrap();
    }
    let prune = async |age: &str| -> i64 {
        let prune = format!("select ambo_witness.prune('{age}')");
        two.sql.query_one(&prune, &[]).await.unwrap().get(0)
    };
    assert_eq!(prune("1 day").await, 0);
    assert_eq!(prune("0 days").await, 2);
    assert_eq!(two.witness().await, None);
}

#[ambo::workflow]
async fn torn(cx: Ctx, witnessed_first: bool) -> Result<()> {
    let (other, gate) = (cx.state::<Elsewhere>()?, cx.state::<Arc<Gate>>()?);
    let step = cx.transaction("torn");
    let step = if witnessed_first { step.witnessed().completing() } else { step.completing().witnessed() };
    let step = step.run(&other.0, async |_| {
        gate.count();
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_not_completed_in_another_database() {
    let two = Two::set().await;
    let builder = two.stage.worker().state(Elsewhere(pool(&two.url).await));
    let _worker = builder.workflow::<torn>().start().await.unwrap();
    for witnessed_first in [true, false] {
        let run = torn::enqueue(witnessed_first).on(&two.stage.db.client).await.unwrap().run;
        let failure = two.stage.db.client.handle::<torn>(run).result().await.unwrap_err();
        let error = Error::from(failure);
        assert_eq!(error.code(), Code::InvalidOption, "{error}");
        assert!(error.to_string().contains("witnessed or completing"), "{error}");
    }
    assert_eq!(two.stage.gate.bodies(), 0);
}
