//! `idle`: what a worker with nothing to do commits.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::Engine;
use crate::engine::ambo::Ambo;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::report::{Bar, Better, Line};
use crate::statement_log::{StatementLog, logged};

const METRIC: &str = "commits_per_s";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(9000, 30_000);
    let peers = ["ambo", "dbos", "durare"];
    let samples = bench
        .rounds("idle", 1, &peers, async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(bench, database, time).await,
            "dbos" => measure::<Dbos>(bench, database, time).await,
            "durare" => measure::<Durare>(bench, database, time).await,
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let note = format!(
        "one worker in its default settings with one queue and nothing to do; commits of its \
         connections in {} s, read-only ones too, counted in the server's log",
        time.as_secs()
    );
    let line = Line::new("idle", METRIC, Better::Lower, Bar::AtMost(3.0), note).peers(&samples, &peers);
    Ok(vec![line])
}

async fn measure<E: Engine>(bench: &Bench, database: &Database, time: Duration) -> Result<Sample> {
    let engine = E::launch(&logged(&database.url), bench.for_rest()).await?;
    // Start-up is over by then.
    tokio::time::sleep(bench.time(1000, 5000)).await;
    let log = StatementLog::open(&database.control).await?;
    let from = log.mark(&database.control).await?;
    let start = Instant::now();
    tokio::time::sleep(time).await;
    let seconds = start.elapsed().as_secs_f64();
    let to = log.mark(&database.control).await?;
    engine.stop().await?;
    let spoken = log.read(&database.control, from, to).await?;
    Ok(vec![(METRIC, spoken.commits as f64 / seconds)])
}
