//! `children`: fan out and gather.

use std::time::Instant;

use ambo::Enqueue;
use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::waiting::{Parent, launch};
use crate::report::{Bar, Better, Line};

const METRIC: &str = "children_per_s";
const NOTE: &str = "one run starts 10,000 one-step children (--quick: 2,000), awaits them all and adds up their results; \
    from its enqueue to its result";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let samples =
        bench.rounds("children", 1, &["ambo"], async |_, database| measure(bench, database).await).await?;
    let line = Line::new("children", METRIC, Better::Higher, Bar::Open, NOTE);
    Ok(vec![line.peers(&samples, &["ambo"])])
}

async fn measure(bench: &Bench, database: &Database) -> Result<Sample> {
    let children: i64 = if bench.quick { 2000 } else { 10_000 };
    let worker = launch(&database.url, None).await?;
    let gather = async |children: i64| {
        let began = Instant::now();
        let sum = Enqueue::<Parent>::new(children).start(&worker).await?.result().await?;
        ensure!(sum == children * (children + 1) / 2, "the results add up to {sum}");
        Ok::<_, anyhow::Error>(began.elapsed().as_secs_f64())
    };
    gather(100).await?;
    let seconds = gather(children).await?;
    worker.drain(std::time::Duration::from_secs(5)).await;
    Ok(vec![(METRIC, children as f64 / seconds)])
}
