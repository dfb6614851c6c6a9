//! The crate `graphile_worker` 0.14. It deletes a job that is done: no history.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, Worker, WorkerContext, WorkerOptions,
    WorkerUtils,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::JobQueue;
use crate::engine::{CONNECTIONS, count_ended};

#[derive(Clone, Serialize, Deserialize)]
struct Noop(i64);

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        count_ended();
        Ok::<(), String>(())
    }
}

/// A worker as in the crate's own benchmark: jobs fetched by the thousand, completions gathered for 5 ms.
pub struct Graphile {
    worker: Arc<Worker>,
    utils: WorkerUtils,
    running: JoinHandle<Result<()>>,
}

impl JobQueue for Graphile {
    const OPEN: &'static str = "select count(*) from graphile_worker._private_jobs";
    const SUCCEEDED: Option<&'static str> = None;

    async fn launch(url: &str) -> Result<Graphile> {
        let worker = WorkerOptions::default()
            .database_url(url)
            .max_pg_conn(CONNECTIONS)
            .concurrency(500)
            .poll_interval(Duration::from_millis(5))
            .complete_job_batch_delay(Duration::from_millis(5))
            .local_queue(LocalQueueConfig::default().with_size(5000))
            .listen_os_shutdown_signals(false)
            .define_job::<Noop>()
            .init()
            .await
            .context("graphile_worker does not start")?;
        let utils = worker.create_utils();
        let worker = Arc::new(worker);
        let running = worker.clone();
        let running = tokio::spawn(async move { Ok(running.run().await?) });
        Ok(Graphile { worker, utils, running })
    }

    async fn enqueue(&self, count: i64) -> Result<()> {
        let spec = JobSpec::default();
        let jobs: Vec<_> = (0..count).map(|number| (Noop(number), &spec)).collect();
        self.utils.add_jobs(&jobs).await?;
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        self.worker.request_shutdown();
        self.running.await?
    }
}
