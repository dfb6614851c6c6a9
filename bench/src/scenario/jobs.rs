//! `jobs` and `limited`: plain no-op jobs through a queue, and the same under limits that hold nothing up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::jobs::ambo::Ambo;
use crate::jobs::apalis::Apalis;
use crate::jobs::awa::Awa;
use crate::jobs::durable::Durable;
use crate::jobs::graphile::Graphile;
use crate::jobs::{JobQueue, produce};
use crate::report::{Bar, Better, Line};

const METRIC: &str = "jobs_per_s";
const FRACTION: &str = "fraction_of_jobs";
const JOBS_NOTE: &str = "4 producers enqueue no-op jobs 500 a call, at most 20,000 of them open; one worker; first \
    enqueue to last job ended, in the database; history kept, but by graphile_worker, which deletes what is done";
const LIMITED_NOTE: &str = "the work of `jobs` without limits and then in a queue with at most 2,000 at once, 1,000,000 \
    a second, and one at once in each of 1,000 groups, jobs spread evenly";

/// Measures `jobs`.
pub async fn jobs(bench: &Bench) -> Result<Vec<Line>> {
    let keeping = ["ambo", "apalis", "awa", "dbos", "durare"];
    let mut all = vec!["ambo", "apalis", "dbos", "durare", "graphile"];
    // It did not get through this load within minutes, set up as it is here: on request only.
    if bench.only.iter().any(|only| only == "awa") {
        all.push("awa");
    }
    let samples = bench
        .rounds("jobs", 2, &all, async |competitor, database| {
            let url = &database.url;
            match competitor {
                "ambo" => sample(bench, database, Ambo::launch(url).await?).await,
                "apalis" => sample(bench, database, Apalis::launch(url).await?).await,
                "awa" => sample(bench, database, Awa::launch(url).await?).await,
                "graphile" => sample(bench, database, Graphile::launch(url).await?).await,
                "durare" => sample(bench, database, Durable::<Durare>::launch(url).await?).await,
                "dbos" => {
                    let queue = Durable::<Dbos>::launch(url).await?;
                    queue.settle(bench.time(3000, 10_000)).await;
                    sample(bench, database, queue).await
                }
                other => anyhow::bail!("no {other} here"),
            }
        })
        .await?;
    let line = Line::new("jobs", METRIC, Better::Higher, Bar::Ratio(2.0), JOBS_NOTE);
    Ok(vec![line.peers(&samples, &keeping).yardstick(&samples, "graphile", Some(1.0))])
}

/// Measures `limited`: on the same server, one after the other.
pub async fn limited(bench: &Bench) -> Result<Vec<Line>> {
    let samples = bench
        .rounds("limited", 2, &["free", "ambo"], async |competitor, database| match competitor {
            "free" => sample(bench, database, Ambo::launch(&database.url).await?).await,
            _ => sample(bench, database, Ambo::limited(&database.url).await?).await,
        })
        .await?;
    let fractions = samples.divided((METRIC, "ambo"), (METRIC, "free"), (FRACTION, "ambo"));
    Ok(vec![
        Line::new("limited", FRACTION, Better::Higher, Bar::AtLeast(0.7), LIMITED_NOTE)
            .peers(&fractions, &["ambo"]),
        Line::new("limited", METRIC, Better::Higher, Bar::Open, LIMITED_NOTE)
            .peers(&samples, &["ambo"])
            .yardstick(&samples, "free", None),
    ])
}

async fn sample<Q: JobQueue>(bench: &Bench, database: &Database, queue: Q) -> Result<Sample> {
    let queue = Arc::new(queue);
    produce(database, &queue, Duration::ZERO).await?;
    let done = produce(database, &queue, bench.time(2000, 5000)).await?;
    Arc::into_inner(queue).context("the queue is still in use")?.stop().await?;
    Ok(vec![(METRIC, done.runs as f64 / done.elapsed.as_secs_f64())])
}
