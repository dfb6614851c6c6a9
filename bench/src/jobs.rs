//! The seam of `jobs` and its kin: what a job queue must do here, and the load that it is given.

pub mod ambo;
pub mod apalis;
pub mod awa;
pub mod durable;
pub mod graphile;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::database::{Database, connect};
use crate::engine::ended;
use crate::load::{Produced, sum};

/// Producers at once.
pub const PRODUCERS: i64 = 4;
/// Jobs in one call of a producer.
pub const BATCH: i64 = 500;
/// Producers hold on while so many jobs have not ended: a queue is measured, not how deep it gets.
const OPEN: i64 = 20_000;
/// How long a round may take until it counts as failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A job queue with a worker in this process. Its job does nothing but call [`count_ended`](crate::engine::count_ended).
pub trait JobQueue: Send + Sync + Sized + 'static {
    /// Counts the jobs that have not ended.
    const OPEN: &'static str;
    /// Counts the jobs that succeeded, where history is kept.
    const SUCCEEDED: Option<&'static str>;

    /// Installs the schema and starts the worker, in the settings that make it fastest.
    fn launch(url: &str) -> impl Future<Output = Result<Self>> + Send;
    /// Enqueues `count` jobs by one call of its bulk interface; durable when it returns.
    fn enqueue(&self, count: i64) -> impl Future<Output = Result<()>> + Send;
    /// Stops the worker and closes its connections.
    fn stop(self) -> impl Future<Output = Result<()>> + Send;
}

/// Producers enqueue for a while, then the worker's last job is awaited in the database.
pub async fn produce<Q: JobQueue>(database: &Database, queue: &Arc<Q>, time: Duration) -> Result<Produced> {
    let inside = connect(&database.url).await?;
    let open = inside.prepare(Q::OPEN).await?;
    let recorded_before = succeeded::<Q>(&inside).await?;
    let ended_before = ended();
    let enqueued = Arc::new(AtomicI64::new(0));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..PRODUCERS {
        let (queue, enqueued) = (queue.clone(), enqueued.clone());
        tasks.spawn(async move {
            let mut jobs = 0;
            while jobs == 0 || start.elapsed() < time {
                if enqueued.load(Ordering::Relaxed) - (ended() - ended_before) > OPEN {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                enqueued.fetch_add(BATCH, Ordering::Relaxed);
                queue.enqueue(BATCH).await?;
                jobs += BATCH;
            }
            Ok(jobs)
        });
    }
    let jobs = sum(tasks).await?;
    loop {
        ensure!(start.elapsed() < PATIENCE, "{} of {jobs} jobs ended", ended() - ended_before);
        if ended() - ended_before >= jobs && inside.query_one(&open, &[]).await?.try_get::<_, i64>(0)? == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let elapsed = start.elapsed();
    ensure!(ended() - ended_before == jobs, "{} jobs ran, of {jobs}", ended() - ended_before);
    let recorded = succeeded::<Q>(&inside).await? - recorded_before;
    ensure!(Q::SUCCEEDED.is_none() || recorded == jobs, "{recorded} of {jobs} jobs are in the history");
    Ok(Produced { runs: jobs, elapsed })
}

async fn succeeded<Q: JobQueue>(inside: &tokio_postgres::Client) -> Result<i64> {
    match Q::SUCCEEDED {
        Some(sql) => Ok(inside.query_one(sql, &[]).await?.try_get(0)?),
        None => Ok(0),
    }
}
