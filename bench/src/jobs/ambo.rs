//! Ambo as a job queue: a workflow without steps, enqueued in bulk.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ambo::{Client, Ctx, Enqueue, QueueSettings, Rate, Worker, enqueue_all};
use anyhow::Result;

use super::JobQueue;
use crate::database::connect;
use crate::engine::ambo::{Body, install};
use crate::engine::{QUEUE, count_ended};
use crate::process::serve;

/// Groups of the limited queue.
const GROUPS: i64 = 1000;

/// In one call of `ambo.enqueue_workflows`, where a queue is filled.
const FILL: i64 = 10_000;

/// A job that does nothing.
pub struct Noop;

impl ambo::Workflow for Noop {
    type Input = i64;
    type Output = ();
    type Error = ambo::Error;
    const NAME: &'static str = "noop";

    fn run<'run>(_: Ctx<'run>, _: i64) -> Body<'run, ()> {
        Box::pin(async move {
            count_ended();
            Ok(())
        })
    }
}

/// A client and a worker.
pub struct Ambo {
    client: Client,
    worker: Worker,
    /// The next job's number; none where jobs have no group.
    next: Option<AtomicI64>,
}

impl Ambo {
    /// With a queue that has limits of every kind, of which none holds anything up but one at once in each of 1,000 groups.
    pub async fn limited(url: &str) -> Result<Ambo> {
        install(url).await?;
        let rate = Rate::new(1_000_000, Duration::from_secs(1));
        let settings = QueueSettings::default().concurrency(2000).rate(rate).group_concurrency(1);
        Client::connect(url).await?.set_queue(QUEUE, &settings).await?;
        Ok(Ambo { next: Some(AtomicI64::new(0)), ..Ambo::launch(url).await? })
    }

    fn job(&self, number: i64) -> Enqueue<Noop> {
        let job = Enqueue::<Noop>::new(number).queue(QUEUE);
        match &self.next {
            Some(next) => job.group(format!("g{}", next.fetch_add(1, Ordering::Relaxed) % GROUPS)),
            None => job,
        }
    }
}

impl JobQueue for Ambo {
    const OPEN: &'static str = "select (select count(*) from ambo.ready) + (select count(*) from ambo.claim)";
    const SUCCEEDED: Option<&'static str> =
        Some("select count(*) from ambo.outcome where status = 'succeeded'");

    async fn launch(url: &str) -> Result<Ambo> {
        install(url).await?;
        let client = Client::connect(url).await?;
        let worker = Worker::builder(&client).workflow::<Noop>().queue(QUEUE).start().await?;
        Ok(Ambo { client, worker, next: None })
    }

    async fn enqueue(&self, count: i64) -> Result<()> {
        enqueue_all(&self.client, (0..count).map(|number| self.job(number))).await?;
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        self.worker.drain(Duration::from_secs(5)).await;
        Ok(())
    }
}

/// Fills the queue with jobs of this workflow, in one group or in none; two connections share the
/// work.
pub async fn fill(url: &str, workflow: &str, jobs: i64, group: Option<&str>) -> Result<()> {
    let sql = "select count(*) from ambo.enqueue_workflows(array_fill($1::text, array[$2::int]),
               array_fill('-1'::json, array[$2::int]), array_fill($3::text, array[$2::int]),
               group_keys => case when $4::text is not null then array_fill($4::text, array[$2::int]) end)";
    let next = AtomicI64::new(0);
    let part = async || -> Result<()> {
        let connection = connect(url).await?;
        // Durable by the checkpoint that follows.
        connection.batch_execute("set synchronous_commit = off").await?;
        let statement = connection.prepare(sql).await?;
        loop {
            let left = jobs - next.fetch_add(FILL, Ordering::Relaxed);
            if left <= 0 {
                return Ok(());
            }
            let batch = i32::try_from(left.min(FILL))?;
            connection.query_one(&statement, &[&workflow, &batch, &QUEUE, &group]).await?;
        }
    };
    tokio::try_join!(part(), part())?;
    Ok(())
}

/// The hidden process of `fleet`: a worker until its standard input ends.
pub async fn work(url: &str) -> Result<()> {
    let client = Client::connect(url).await?;
    let _worker = Worker::builder(&client).workflow::<Noop>().queue(QUEUE).start().await?;
    serve().await
}
