//! `fleet`: sixteen worker processes on the cores of four.

use ambo::Client;
use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::{Database, connect};
use crate::engine::QUEUE;
use crate::engine::ambo::install;
use crate::jobs::ambo::fill;
use crate::process::Process;
use crate::report::{Bar, Better, Line};

const METRIC: &str = "jobs_per_s";
const CONNECTIONS: &str = "connections_per_worker";
const FRACTION: &str = "fraction_of_four";
const NOTE: &str = "400,000 no-op jobs (--quick: 100,000) wait in a paused queue; 16 worker processes, or 4; from its \
    resumption to the last outcome, by the database's clock; the connections that a worker has then, besides the one of the client it was started from";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let samples = bench
        .rounds("fleet", 2, &["four", "ambo"], async |competitor, database| {
            measure(bench, database, if competitor == "four" { 4 } else { 16 }).await
        })
        .await?;
    let fractions = samples.divided((METRIC, "ambo"), (METRIC, "four"), (FRACTION, "ambo"));
    Ok(vec![
        Line::new("fleet", FRACTION, Better::Higher, Bar::AtLeast(0.9), NOTE).peers(&fractions, &["ambo"]),
        Line::new("fleet", METRIC, Better::Higher, Bar::Open, NOTE)
            .peers(&samples, &["ambo"])
            .yardstick(&samples, "four", None),
        Line::new("fleet", CONNECTIONS, Better::Lower, Bar::AtMost(4.0), NOTE).peers(&samples, &["ambo"]),
    ])
}

async fn measure(bench: &Bench, database: &Database, workers: usize) -> Result<Sample> {
    let jobs = if bench.quick { 100_000 } else { 400_000 };
    install(&database.url).await?;
    let client = Client::connect(&database.url).await?;
    client.pause_queue(QUEUE, true).await?;
    fill(&database.url, "noop", jobs, None).await?;
    database.control.batch_execute("checkpoint").await?;
    let ours = "select count(*) from pg_stat_activity
                where datname = current_database() and application_name like 'ambo worker%'";
    let before = database.count(ours).await?;
    let mut fleet = Vec::new();
    for _ in 0..workers {
        fleet.push(Process::start("work-jobs", &database.url).await?);
    }
    let sql = connect(&database.url).await?;
    let start: f64 =
        sql.query_one("select extract(epoch from clock_timestamp())::float8", &[]).await?.try_get(0)?;
    client.pause_queue(QUEUE, false).await?;
    database.until("select (not exists (select from ambo.ready) and not exists (select from ambo.claim))::int4::int8", 1).await?;
    let connections = database.count(ours).await? - before;
    let row = sql
        .query_one("select count(*), extract(epoch from max(ended_at))::float8 from ambo.outcome where status = 'succeeded'", &[])
        .await?;
    let (ended, last): (i64, f64) = (row.try_get(0)?, row.try_get(1)?);
    ensure!(ended == jobs, "{ended} of {jobs} jobs ended");
    drop(fleet);
    Ok(vec![(METRIC, jobs as f64 / (last - start)), (CONNECTIONS, connections as f64 / workers as f64)])
}
