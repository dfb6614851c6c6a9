//! The crate `awa` 0.6 on its queue storage. It keeps what is done for a day.

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
    const OPEN: &'static str = "select count(*) from awa.jobs where state <> 'completed'";
    const SUCCEEDED: Option<&'static str> = Some("select count(*) from awa.jobs where state = 'completed'");

    async fn launch(url: &str) -> Result<Awa> {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
        let pool = options.connect(url).await?;
        // Its future is not `Send` for all that the compiler can see.
        let install = || Handle::current().block_on(awa::migrations::run(&pool));
        tokio::task::block_in_place(install).context("awa does not install")?;
        let queue = QueueConfig {
            max_workers: 500,
            poll_interval: Duration::from_millis(10),
            deadline_duration: Duration::ZERO,
            ..QueueConfig::default()
        };
        let client = Client::builder(pool.clone())
            .queue(QUEUE, queue)
            .register::<Noop, _, _>(|_: Noop, _: &JobContext| async {
                count_ended();
                Ok::<_, JobError>(JobResult::Completed)
            })
            .build()?;
        client.start().await?;
        let store = QueueStorage::new(QueueStorageConfig::default())?;
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
