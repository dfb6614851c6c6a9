//! `limit`: the checkpoint rows of `steps`, by Ambo and by bare inserts.

use anyhow::Result;

use crate::bench::Bench;
use crate::engine::ambo::Ambo;
use crate::report::{Bar, Better, Line};
use crate::scenario::steps;

const METRIC: &str = "rows_per_s";
const NOTE: &str = "ambo: the rows of `steps`; limit: the same rows by bare inserts of 1,000-row \
    arrays on 2 connections, into a table with the columns and indexes of ambo.checkpoint";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(2000, 5000);
    let samples = bench
        .rounds("limit", 3, &["ambo", "limit"], async |competitor, database| match competitor {
            "ambo" => {
                let rate = steps::rate::<Ambo>(database, bench.for_speed(), time).await?;
                Ok(vec![(METRIC, rate)])
            }
            "limit" => Ok(vec![(METRIC, steps::limit(database, time).await?)]),
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = Line::new("limit", METRIC, Better::Higher, Bar::Ratio(0.5), NOTE)
        .peers(&samples, &["ambo"])
        .yardstick(&samples, "limit", None);
    Ok(vec![line])
}
