//! `alone`: ten-step runs, one at a time.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::ambo::Ambo;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Setting, Workflow};
use crate::load::call_for;
use crate::report::{Bar, Better, Line};

const METRIC: &str = "runs_per_s";
const CALLERS: i64 = 1;
const NOTE: &str = "one caller starts ten-step runs directly and awaits each result; pools of 16";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(1500, 3000);
    let setting = bench.for_speed();
    let peers = ["ambo", "dbos", "durare"];
    let samples = bench
        .rounds("alone", 3, &peers, async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(database, setting, time).await,
            "dbos" => measure::<Dbos>(database, setting, time).await,
            "durare" => measure::<Durare>(database, setting, time).await,
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = Line::new("alone", METRIC, Better::Higher, Bar::Ratio(2.0), NOTE).peers(&samples, &peers);
    Ok(vec![line])
}

async fn measure<E: Engine>(database: &Database, setting: Setting, time: Duration) -> Result<Sample> {
    let engine = E::launch(&database.url, setting).await?;
    let rate = call_for(database, &engine, Workflow::TenSteps, CALLERS, time).await?;
    engine.stop().await?;
    Ok(vec![(METRIC, rate)])
}
