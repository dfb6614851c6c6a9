//! `sleepers`: runs that sleep, what they cost the worker, how fast it restarts beside them and wakes them.

use std::time::{Duration, Instant};

use ambo::{Client, Enqueue};
use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::{Database, connect};
use crate::engine::ambo::{Ambo, OneStep, install};
use crate::process::Process;
use crate::report::{Bar, Better, Line};
use crate::scenario::runs;

/// In one call of `ambo.enqueue_workflows`.
const BATCH: i64 = 10_000;
const SLEEPING: &str = "select count(*) from ambo.timer";
const ENDED: &str = "select count(*) from ambo.outcome where status = 'succeeded'";

const NOTE: &str = "one worker process; runs that sleep for a day, then 100,000 more (--quick: 10,000) that are all due \
    at one time, woken while the others sleep; resident memory of the process above what it was after its first runs";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let samples = bench
        .rounds("sleepers", 1, &["ambo", "runs"], async |competitor, database| match competitor {
            "ambo" => measure(bench, database).await,
            // What a run costs that does not sleep.
            _ => {
                let sample = runs::measure::<Ambo>(bench, database).await?;
                Ok(sample.into_iter().map(|(_, rate)| ("wakes_per_s", rate)).collect())
            }
        })
        .await?;
    let line =
        |metric, better, bar| Line::new("sleepers", metric, better, bar, NOTE).peers(&samples, &["ambo"]);
    Ok(vec![
        line("worker_mib_above_base", Better::Lower, Bar::AtMost(64.0)),
        line("restart_s", Better::Lower, Bar::AtMost(2.0)),
        line("wakes_per_s", Better::Higher, Bar::Open).yardstick(&samples, "runs", Some(0.5)),
        line("waking_mib_above_base", Better::Lower, Bar::Open),
        line("parks_per_s", Better::Higher, Bar::Open),
    ])
}

async fn measure(bench: &Bench, database: &Database) -> Result<Sample> {
    let (sleepers, due) = if bench.quick { (50_000, 10_000) } else { (1_000_000, 100_000) };
    install(&database.url).await?;
    let client = Client::connect(&database.url).await?;
    let worker = Process::start("work", &database.url).await?;
    for n in 0..2000 {
        Enqueue::<OneStep>::new(n).on(&client).await?;
    }
    database.until(ENDED, 2000).await?;
    let base = worker.resident()?;

    let began = Instant::now();
    let now = client.now().await?.as_millisecond();
    enqueue(database, sleepers, now + 24 * 3_600_000).await?;
    database.until(SLEEPING, sleepers).await?;
    let parks = sleepers as f64 / began.elapsed().as_secs_f64();
    let asleep = worker.resident()?;

    drop(worker);
    let began = Instant::now();
    let worker = Process::start("work", &database.url).await?;
    let probe = Enqueue::<OneStep>::new(1).on(&client).await?;
    ensure!(client.handle::<OneStep>(probe.run).result().await? == 2);
    let restart = began.elapsed().as_secs_f64();

    let base_again = worker.resident()?;
    let at = client.now().await?.as_millisecond() + if bench.quick { 5_000 } else { 20_000 };
    enqueue(database, due, at).await?;
    database.until(SLEEPING, sleepers + due).await?;
    let left = at - client.now().await?.as_millisecond();
    ensure!(left > 0, "the runs were due before they all slept");
    tokio::time::sleep(Duration::from_millis(left.unsigned_abs())).await;
    let began = Instant::now();
    let mut most = 0.0f64;
    loop {
        most = most.max(worker.resident()?);
        if database.count(ENDED).await? >= 2001 + due {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let wakes = due as f64 / began.elapsed().as_secs_f64();
    ensure!(database.count(SLEEPING).await? == sleepers, "the others sleep on");
    Ok(vec![
        ("worker_mib_above_base", asleep - base),
        ("restart_s", restart),
        ("wakes_per_s", wakes),
        ("waking_mib_above_base", most - base_again),
        ("parks_per_s", parks),
    ])
}

async fn enqueue(database: &Database, runs: i64, until: i64) -> Result<()> {
    let sql = "select count(*) from ambo.enqueue_workflows(array_fill('sleeper'::text, array[$1::int]),
               array_fill(to_json($2::bigint), array[$1::int]))";
    let connection = connect(&database.url).await?;
    let statement = connection.prepare(sql).await?;
    let mut left = runs;
    while left > 0 {
        let batch = i32::try_from(left.min(BATCH))?;
        connection.query_one(&statement, &[&batch, &until]).await?;
        left -= i64::from(batch);
    }
    Ok(())
}
