//! `steps`: 1,000 concurrent runs of ten no-op steps, started directly, all awaited.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::ambo::{Ambo, install};
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Setting, Workflow};
use crate::load::call_for;
use crate::report::{Bar, Better, Line};
use crate::yardstick::checkpoint_rows;

const METRIC: &str = "steps_per_s";
const CALLERS: i64 = 1000;
const STEPS: f64 = 10.0;
const NOTE: &str = "1,000 callers start ten-step runs directly and await each result; \
    pools of 16; limit: the same rows by bare inserts of 1,000-row arrays on 2 connections";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(1000, 3000);
    let setting = bench.for_speed();
    let peers = ["ambo", "dbos", "durare"];
    let all = ["ambo", "dbos", "durare", "limit"];
    let samples = bench
        .rounds("steps", 2, &all, async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(database, setting, time).await,
            "dbos" => measure::<Dbos>(database, setting, time).await,
            "durare" => measure::<Durare>(database, setting, time).await,
            "limit" => Ok(vec![(METRIC, limit(database, time).await?)]),
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = Line::new("steps", METRIC, Better::Higher, Bar::Ratio(40.0), NOTE)
        .peers(&samples, &peers)
        .yardstick(&samples, "limit", Some(0.5));
    Ok(vec![line])
}

/// Steps a second of one engine; a step is a checkpoint row.
pub async fn rate<E: Engine>(database: &Database, setting: Setting, time: Duration) -> Result<f64> {
    let engine = E::launch(&database.url, setting).await?;
    let runs = call_for(database, &engine, Workflow::TenSteps, CALLERS, time).await?;
    engine.stop().await?;
    Ok(runs * STEPS)
}

/// Rows a second of the yardstick.
pub async fn limit(database: &Database, time: Duration) -> Result<f64> {
    install(&database.url).await?;
    checkpoint_rows::insert_for(database, time).await
}

async fn measure<E: Engine>(database: &Database, setting: Setting, time: Duration) -> Result<Sample> {
    Ok(vec![(METRIC, rate::<E>(database, setting, time).await?)])
}
