//! The crate `awa` 0.6 on its queue storage. It drops what is done with its segments, sixteen rotations later.

use std::time::Duration;

use anyhow::{Context, Result};
use awa::{
    Client, InsertOpts, JobArgs, JobContext, JobError, JobResult, QueueConfig, QueueStorage,
    QueueStorageConfig,
};
use serde::{Deserialize, Serialize};
use sqlx08::PgPool;
use sqlx08::postgres::PgPoolOptions;
use tokio::runtime::Handle;

use super::JobQueue;
use crate::engine::{CONNECTIONS, QUEUE, count_ended};

#[derive(Serialize, Deserialize, JobArgs)]
struct Noop {
    number: i64,
}

/// A worker with 500 places that claims 512 at once.
pub struct Awa {
    pool: PgPool,
    client: Client,
    store: QueueStorage,
}

impl JobQueue for Awa {
    // From its own counters: its view of all jobs takes many seconds.
    const OPEN: &'static str = "select s.last_value - coalesce((
        select sum(live_terminal_count) from awa.queue_terminal_live_counts), 0)::bigint - coalesce((
        select sum(terminal_delta) from awa.queue_terminal_count_deltas), 0)::bigint - coalesce((
        select sum(completed_count) from awa.receipt_completion_batches), 0)::bigint
        from awa.job_id_seq s where s.is_called";
    const SUCCEEDED: Option<&'static str> = Some(
        "select coalesce((
        select sum(live_terminal_count) from awa.queue_terminal_live_counts), 0)::bigint + coalesce((
        select sum(terminal_delta) from awa.queue_terminal_count_deltas), 0)::bigint + coalesce((
        select sum(completed_count) from awa.receipt_completion_batches), 0)::bigint",
    );

    async fn launch(url: &str) -> Result<Awa> {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
        let pool = options.connect(url).await?;
        // Its future is not `Send` for all that the compiler can see.
        let install = || Handle::current().block_on(awa::migrations::run(&pool));
        tokio::task::block_in_place(install).context("awa does not install")?;
        let storage = QueueStorageConfig::default();
        let store = QueueStorage::new(storage.clone())?;
        // As its own benchmark does: without this the worker serves the tables of its older storage.
        store.install(&pool).await?;
        let queue = QueueConfig {
            max_workers: 500,
            poll_interval: Duration::from_millis(10),
            deadline_duration: Duration::ZERO,
            ..QueueConfig::default()
        };
        let client = Client::builder(pool.clone())
            .queue(QUEUE, queue)
            // Segments of a minute instead of a second: history is kept here.
            .queue_storage(storage, Duration::from_secs(60), Duration::from_millis(50))
            .register::<Noop, _, _>(|_: Noop, _: &JobContext| async {
                count_ended();
                Ok::<_, JobError>(JobResult::Completed)
            })
            .build()?;
        client.start().await?;
        Ok(Awa { pool, client, store })
    }

    async fn enqueue(&self, count: i64) -> Result<()> {
        let job = |number| {
            let options = InsertOpts { queue: QUEUE.into(), ..InsertOpts::default() };
            awa::insert::params_with(&Noop { number }, options)
        };
        let jobs = (0..count).map(job).collect::<Result<Vec<_>, _>>()?;
        self.store.enqueue_params_copy(&self.pool, &jobs).await?;
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        self.client.shutdown(Duration::from_secs(5)).await;
        self.pool.close().await;
        Ok(())
    }
}
