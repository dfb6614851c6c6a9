//! `transaction`: runs of one transaction step with pgbench's statements, 16 at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::ambo::Ambo;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Setting};
use crate::load::sum;
use crate::report::{Bar, Better, Line};
use crate::yardstick::pgbench::{CLIENTS, initialize, run_for, transfer};

const METRIC: &str = "runs_per_s";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let scale = if bench.quick { 10 } else { 50 };
    let time = bench.time(3000, 10_000);
    let setting = bench.for_speed();
    let pgbench = bench.server.program("pgbench").await?;
    let template = bench.server.fresh().await?;
    eprintln!("transaction: pgbench -i -s {scale}");
    initialize(&pgbench, &template.url, scale).await?;
    let all = ["ambo", "durare", "pgbench"];
    let samples = bench
        .rounds_from("transaction", 2, &all, &template.name, async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(database, setting, scale, time).await,
            "durare" => measure::<Durare>(database, setting, scale, time).await,
            "pgbench" => Ok(vec![(METRIC, run_for(&pgbench, &database.url, time).await?)]),
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    bench.server.discard(template).await?;
    let note = format!(
        "runs of one transaction step with pgbench's TPC-B statements, 16 at once, on a copy of a \
         `pgbench -i -s {scale}` database, against `pgbench -M prepared -c 16 -j 2`; dbos has no \
         transaction step"
    );
    let line = Line::new("transaction", METRIC, Better::Higher, Bar::Ratio(0.6), note)
        .peers(&samples, &["ambo"])
        .aside(&samples, "durare")
        .yardstick(&samples, "pgbench", None);
    Ok(vec![line])
}

async fn measure<E: Engine>(
    database: &Database,
    setting: Setting,
    scale: u64,
    time: Duration,
) -> Result<Sample> {
    let engine = E::launch(&database.url, setting).await?;
    let warm_up = transfers(&engine, scale, Duration::ZERO).await?;
    let start = Instant::now();
    let runs = transfers(&engine, scale, time).await?;
    let seconds = start.elapsed().as_secs_f64();
    engine.stop().await?;
    let transfers = database.count("select count(*) from pgbench_history").await?;
    let recorded = database.count(E::SUCCEEDED).await?;
    let expected = runs + warm_up;
    ensure!(
        transfers == expected && recorded == expected,
        "{transfers} transfers and {recorded} outcomes for {expected} runs"
    );
    let sums = "select count(*) from (select sum(abalance) from pgbench_accounts union \
                select sum(tbalance) from pgbench_tellers union \
                select sum(bbalance) from pgbench_branches union \
                select sum(delta) from pgbench_history) as sums";
    ensure!(database.count(sums).await? == 1, "the balances do not add up");
    Ok(vec![(METRIC, runs as f64 / seconds)])
}

async fn transfers<E: Engine>(engine: &E, scale: u64, time: Duration) -> Result<i64> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let engine = engine.clone();
        tasks.spawn(async move {
            let mut runs = 0;
            while runs == 0 || start.elapsed() < time {
                let number = (client * 1_000_000 + runs).unsigned_abs();
                engine.transfer(transfer(number, scale)).await?;
                runs += 1;
            }
            Ok(runs)
        });
    }
    sum(tasks).await
}
