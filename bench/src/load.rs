//! The two ways in which the scenarios load an engine: callers that await results, and producers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::database::{Database, connect};
use crate::engine::{Engine, Producer, Workflow, ended};

/// How long a round may take until it counts as failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Awaits all tasks and sums what they return; the first error ends it.
pub async fn sum(mut tasks: JoinSet<Result<i64>>) -> Result<i64> {
    let mut sum = 0;
    while let Some(task) = tasks.join_next().await {
        sum += task??;
    }
    Ok(sum)
}

/// Runs a second: `callers` at once, each starting a run and awaiting its result, again and again.
///
/// Each caller makes at least one run; the clock stops when the last result is there. The results are
/// compared with what the workflow must return, and the outcomes counted in the database.
pub async fn call_for<E: Engine>(
    database: &Database,
    engine: &E,
    workflow: Workflow,
    callers: i64,
    time: Duration,
) -> Result<f64> {
    let warm_up = call(engine, workflow, callers.min(64), Duration::ZERO).await?;
    let start = Instant::now();
    let runs = call(engine, workflow, callers, time).await?;
    let seconds = start.elapsed().as_secs_f64();
    let recorded = database.count(E::SUCCEEDED).await?;
    ensure!(recorded == runs + warm_up, "{recorded} outcomes recorded for {} runs", runs + warm_up);
    Ok(runs as f64 / seconds)
}

async fn call<E: Engine>(engine: &E, workflow: Workflow, callers: i64, time: Duration) -> Result<i64> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let engine = engine.clone();
        tasks.spawn(async move {
            let mut runs = 0;
            while runs == 0 || start.elapsed() < time {
                let input = caller * 1_000_000 + runs;
                let output = engine.call(workflow, input).await?;
                ensure!(output == workflow.expected(input), "{input} gave {output}");
                runs += 1;
            }
            Ok(runs)
        });
    }
    sum(tasks).await
}

/// What [`enqueue_for`] did.
#[derive(Clone, Copy, Debug)]
pub struct Produced {
    pub runs: i64,
    /// From the first enqueue to the last outcome.
    pub elapsed: Duration,
}

/// Producers that enqueue one-step runs for a while, each awaiting that its enqueue is durable; then the
/// worker's last outcome is awaited in the database.
pub async fn enqueue_for<E: Engine>(
    database: &Database,
    producer: &E::Producer,
    producers: i64,
    time: Duration,
) -> Result<Produced> {
    let inside = connect(&database.url).await?;
    let succeeded = inside.prepare(E::SUCCEEDED).await?;
    let recorded_before: i64 = inside.query_one(&succeeded, &[]).await?.try_get(0)?;
    let ended_before = ended();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..producers {
        let producer = producer.clone();
        tasks.spawn(async move {
            let mut runs = 0;
            while runs == 0 || start.elapsed() < time {
                producer.enqueue(Workflow::OneStep, number * 1_000_000 + runs).await?;
                runs += 1;
            }
            Ok(runs)
        });
    }
    let runs = sum(tasks).await?;
    loop {
        ensure!(start.elapsed() < PATIENCE, "{} of {runs} runs ended", ended() - ended_before);
        if ended() - ended_before >= runs {
            let recorded: i64 = inside.query_one(&succeeded, &[]).await?.try_get(0)?;
            if recorded - recorded_before >= runs {
                ensure!(recorded - recorded_before == runs, "more outcomes than runs");
                return Ok(Produced { runs, elapsed: start.elapsed() });
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Opens every connection and fills every cache before the clock starts.
pub async fn warm_up<E: Engine>(database: &Database, producer: &E::Producer) -> Result<()> {
    enqueue_for::<E>(database, producer, 100, Duration::ZERO).await.map(drop)
}

/// Closes a producer and stops its engine.
pub async fn stop<E: Engine>(engine: E, producer: E::Producer) -> Result<()> {
    producer.close().await;
    engine.stop().await
}
