//! The crate `apalis-postgres` 1.0, with workers of `apalis`. It keeps what is done.

use anyhow::{Context, Result};
use apalis::prelude::{BoxDynError, ParallelizeExt as _, TaskBuilder, WorkerBuilder};
use apalis_postgres::queries::push_tasks;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use sqlx::postgres::PgPoolOptions;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::JobQueue;
use crate::engine::{CONNECTIONS, QUEUE, count_ended};

async fn noop(_: i64) -> Result<(), BoxDynError> {
    count_ended();
    Ok(())
}

/// A worker that fetches 1,000 at once, is woken by notifications, and locks what it fetches once instead of twice.
pub struct Apalis {
    pool: PgPool,
    stop: oneshot::Sender<()>,
}

impl JobQueue for Apalis {
    const OPEN: &'static str = "select count(*) from apalis.jobs where status <> 'Done'";
    const SUCCEEDED: Option<&'static str> = Some("select count(*) from apalis.jobs where status = 'Done'");

    async fn launch(url: &str) -> Result<Apalis> {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
        let pool = options.connect(url).await?;
        PostgresStorage::setup(&pool).await.context("apalis-postgres does not install")?;
        let config = Config::default().queue(QUEUE).batch_size(1000).lock_tasks(false);
        let backend = PostgresStorage::<i64>::new(&pool).with_config(config).with_pubsub();
        let worker = WorkerBuilder::new("bench").backend(backend).parallelize(tokio::spawn).build(noop);
        let (stop, stopped) = oneshot::channel::<()>();
        // Its future is not `Send` for all that the compiler can see; its jobs run where all others do.
        let runtime = Handle::current();
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = worker.run() => eprintln!("apalis ended: {ended:?}"),
                    _ = stopped => {}
                }
            });
        });
        Ok(Apalis { pool, stop })
    }

    async fn enqueue(&self, count: i64) -> Result<()> {
        let tasks = (0..count).map(|number| Ok(TaskBuilder::new(serde_json::to_vec(&number)?).build()));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        push_tasks(&mut *self.pool.acquire().await?, QUEUE, tasks).await?;
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.pool.close().await;
        Ok(())
    }
}
