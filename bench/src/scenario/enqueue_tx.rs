//! `enqueue_tx`: one enqueue inside a user's transaction, beside one insert of the user's.

use anyhow::{Result, ensure};

use crate::bench::Bench;
use crate::engine::ambo::{ENQUEUE, install};
use crate::report::{Bar, Better, Line};
use crate::yardstick::user_transaction::commit_for;

const METRIC: &str = "enqueues_per_s";
const NOTE: &str = "32 connections, each begin, insert, [enqueue,] commit, a round trip each; \
    insert_alone: without the enqueue; no worker runs; dbos and durare cannot enqueue in the \
    caller's transaction";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(3000, 6000);
    let samples = bench
        .rounds("enqueue_tx", 3, &["ambo", "insert_alone"], async |competitor, database| match competitor {
            "ambo" => {
                install(&database.url).await?;
                let rate = commit_for(database, Some(ENQUEUE), time).await?;
                let runs = database.count("select count(*) from ambo.run").await?;
                let rows = database.count("select count(*) from customer_order").await?;
                ensure!(runs == rows, "{runs} runs for {rows} transactions");
                Ok(vec![(METRIC, rate)])
            }
            "insert_alone" => Ok(vec![(METRIC, commit_for(database, None, time).await?)]),
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = Line::new("enqueue_tx", METRIC, Better::Higher, Bar::Ratio(0.6), NOTE)
        .peers(&samples, &["ambo"])
        .yardstick(&samples, "insert_alone", None);
    Ok(vec![line])
}
