//! What tests of transaction steps need: tables, a pool, workers whose bodies can be held, and a thief of claims.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ambo::{Enqueue, Error, Failure, RunId, Untyped, Worker, WorkerBuilder};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::sync::Semaphore;

use crate::harness::{Database, database};

/// Where bodies meet their test.
pub(crate) struct Gate {
    reached: Semaphore,
    open: Semaphore,
    bodies: AtomicU32,
}

impl Gate {
    fn new() -> Arc<Gate> {
        Arc::new(Gate { reached: Semaphore::new(0), open: Semaphore::new(0), bodies: AtomicU32::new(0) })
    }

    /// A body begins.
    pub(crate) fn count(&self) {
        self.bodies.fetch_add(1, Ordering::SeqCst);
    }

    /// How many bodies have begun.
    pub(crate) fn bodies(&self) -> u32 {
        self.bodies.load(Ordering::SeqCst)
    }

    /// In a body: says that it is here, and waits to be let through.
    pub(crate) async fn wait(&self) {
        self.reached.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }

    /// In a test: until a body is here.
    pub(crate) async fn reached(&self) {
        self.reached.acquire().await.expect("never closed").forget();
    }

    /// In a test: lets one through.
    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}

pub(crate) struct Stage {
    pub(crate) db: Database,
    pub(crate) pool: PgPool,
    pub(crate) gate: Arc<Gate>,
}

/// A pool as users have it.
pub(crate) async fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(8).connect(url).await.expect("a pool")
}

impl Stage {
    /// A database with a table for effects, one row each.
    pub(crate) async fn set() -> Stage {
        let db = database().await;
        let tables = "create table effect (n bigserial primary key, what text not null);
            create table counter (id int primary key, value int not null);
            insert into counter select g, 0 from generate_series(1, 64) g;";
        db.sql.batch_execute(tables).await.expect(tables);
        let pool = pool(&db.url).await;
        Stage { db, pool, gate: Gate::new() }
    }

    /// A worker that has the pool and the gate.
    pub(crate) fn worker(&self) -> WorkerBuilder {
        Worker::builder(&self.db.client).state(self.pool.clone()).state(self.gate.clone())
    }

    pub(crate) async fn enqueue(&self, workflow: &str) -> RunId {
        Enqueue::named(workflow, &0).on(&self.db.client).await.expect("enqueue").run
    }

    pub(crate) async fn end(&self, run: RunId) -> Result<serde_json::Value, Error> {
        let ended: Result<_, Failure<Error>> = self.db.client.handle::<Untyped>(run).result_as().await;
        ended.map_err(Error::from)
    }

    /// Enqueues, and waits for the end.
    pub(crate) async fn run(&self, workflow: &str) -> Result<serde_json::Value, Error> {
        let run = self.enqueue(workflow).await;
        self.end(run).await
    }

    pub(crate) async fn state(&self, run: RunId) -> String {
        self.db.client.show_run(run).await.expect("the run").summary.state
    }

    pub(crate) async fn effects(&self) -> i64 {
        self.db.number("select count(*) from effect").await
    }

    pub(crate) async fn checkpoints(&self) -> i64 {
        self.db.number("select count(*) from ambo.checkpoint").await
    }

    /// Takes a run from its worker, as the keeper does with those of a dead one.
    pub(crate) async fn steal(&self, run: RunId) {
        let steal = format!(
            "with taken as (delete from ambo.claim where run_id = '{run}' returning *)
             insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow, timeout)
             select nextval('ambo.ready_seq'), pg_current_xact_id(), r.id, t.attempt, 0, r.priority, r.queue,
                    r.workflow, r.timeout
             from taken t join ambo.run r on r.id = t.run_id;
             select ambo.wake();"
        );
        self.db.sql.batch_execute(&steal).await.expect("steal");
    }
}
