//! `runs`: one-step runs through a queue, from 200 producers to one worker process.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::ambo::Ambo;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Producer, Setting};
use crate::load::{enqueue_for, stop, warm_up};
use crate::report::{Bar, Better, Line};
use crate::yardstick::prototype;

const METRIC: &str = "runs_per_s";
/// Concurrent producers, each awaiting that its enqueue is durable.
pub const PRODUCERS: i64 = 200;
/// How long producers produce. Less where durare claims 100 runs a second.
pub fn producing(bench: &Bench) -> Duration {
    match bench.for_speed() {
        Setting::Fastest => bench.time(1000, 3000),
        Setting::Default => bench.time(200, 1000),
    }
}

const NOTE: &str = "200 producers enqueue one-step runs, each awaiting that its enqueue is durable; \
    one worker; first enqueue to last outcome; pools of 16 for the producers and for the worker; \
    peers' queues polled every 10 ms, durare claims up to 1,000 at once (--peers default: every \
    second, 100)";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let peers = ["ambo", "dbos", "durare"];
    let all = ["ambo", "dbos", "durare", "prototype"];
    let samples = bench
        .rounds("runs", 2, &all, async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(bench, database).await,
            "dbos" => measure::<Dbos>(bench, database).await,
            "durare" => measure::<Durare>(bench, database).await,
            "prototype" => {
                let rate = prototype::runs_for(database, PRODUCERS, producing(bench)).await?;
                Ok(vec![(METRIC, rate)])
            }
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = Line::new("runs", METRIC, Better::Higher, Bar::Ratio(40.0), NOTE)
        .peers(&samples, &peers)
        .yardstick(&samples, "prototype", Some(0.5));
    Ok(vec![line])
}

/// One round of an engine.
pub async fn measure<E: Engine>(bench: &Bench, database: &Database) -> Result<Sample> {
    let engine = E::launch(&database.url, bench.for_speed()).await?;
    let producer = E::Producer::connect(&database.url).await?;
    engine.settle(bench.time(3000, 10_000)).await;
    warm_up::<E>(database, &producer).await?;
    let done = enqueue_for::<E>(database, &producer, PRODUCERS, producing(bench)).await?;
    stop(engine, producer).await?;
    Ok(vec![(METRIC, done.runs as f64 / done.elapsed.as_secs_f64())])
}
