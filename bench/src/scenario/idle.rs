//! `idle`: what a worker with nothing to do commits.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::Engine;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::report::{Bar, Better, Line};

const METRIC: &str = "commits_per_s";
/// Start-up is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(10_000, 30_000);
    let peers = ["ambo", "dbos", "durare"];
    let samples = bench
        .rounds("idle", 1, &peers, async |competitor, database| match competitor {
            "dbos" => measure::<Dbos>(bench, database, time).await,
            "durare" => measure::<Durare>(bench, database, time).await,
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let note = format!(
        "one worker in its default settings with one queue and nothing to do; commits of its \
         database in {} s by pg_stat_database, asked from another database",
        time.as_secs()
    );
    let line = Line::new("idle", METRIC, Better::Lower, Bar::AtMost(3.0), note).peers(&samples, &peers);
    Ok(vec![line])
}

async fn measure<E: Engine>(bench: &Bench, database: &Database, time: Duration) -> Result<Sample> {
    let engine = E::launch(&database.url, bench.for_rest()).await?;
    tokio::time::sleep(SETTLE).await;
    let before = database.commits().await?;
    tokio::time::sleep(time).await;
    let commits = database.commits().await? - before;
    engine.stop().await?;
    Ok(vec![(METRIC, commits as f64 / time.as_secs_f64())])
}
