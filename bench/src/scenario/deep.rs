//! `deep`: claims from a queue in which ten million runs wait, against one in which ten thousand do.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use ambo::{Client, Ctx, Worker};
use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::QUEUE;
use crate::engine::ambo::{Body, install};
use crate::jobs::ambo::fill;
use crate::report::{Bar, Better, Line, median};

const METRIC: &str = "claims_per_s";
const FRACTION: &str = "fraction_of_shallow";
const SHALLOW: i64 = 10_000;
const TIMES: usize = 9;
const NOTE: &str = "no-op jobs wait, 10,000,000 of them (--quick: 1,000,000) or 10,000; a worker is started 9 times; \
    from the first job that begins to the 10,000th, the median";

/// Counts itself, and notes when the first and the last began.
struct Counted;

#[derive(Default)]
struct Count {
    begun: AtomicI64,
    first: std::sync::OnceLock<Instant>,
    last: std::sync::OnceLock<Instant>,
}

impl ambo::Workflow for Counted {
    type Input = i64;
    type Output = ();
    type Error = ambo::Error;
    const NAME: &'static str = "counted";

    fn run<'run>(cx: Ctx<'run>, _: i64) -> Body<'run, ()> {
        Box::pin(async move {
            let count = cx.state::<Arc<Count>>()?;
            match count.begun.fetch_add(1, Ordering::Relaxed) + 1 {
                1 => count.first.set(Instant::now()).unwrap_or_default(),
                SHALLOW => count.last.set(Instant::now()).unwrap_or_default(),
                _ => {}
            }
            Ok(())
        })
    }
}

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let rounds = bench.rounds("deep", 1, &["shallow", "ambo"], async |competitor, database| {
        match (competitor, bench.quick) {
            ("shallow", _) => measure(database, SHALLOW).await,
            (_, true) => measure(database, 1_000_000).await,
            (_, false) => measure(database, 10_000_000).await,
        }
    });
    let samples = rounds.await?;
    let fractions = samples.divided((METRIC, "ambo"), (METRIC, "shallow"), (FRACTION, "ambo"));
    Ok(vec![
        Line::new("deep", FRACTION, Better::Higher, Bar::AtLeast(0.8), NOTE).peers(&fractions, &["ambo"]),
        Line::new("deep", METRIC, Better::Higher, Bar::Open, NOTE)
            .peers(&samples, &["ambo"])
            .yardstick(&samples, "shallow", None),
    ])
}

async fn measure(database: &Database, depth: i64) -> Result<Sample> {
    install(&database.url).await?;
    let client = Client::connect(&database.url).await?;
    fill(&database.url, "counted", depth, None).await?;
    database.control.batch_execute("checkpoint").await?;
    let mut rates = Vec::new();
    for _ in 0..TIMES {
        let count = Arc::new(Count::default());
        let builder = Worker::builder(&client).workflow::<Counted>().state(count.clone());
        let start = Instant::now();
        let worker = builder.queue(QUEUE).start().await?;
        while count.last.get().is_none() {
            ensure!(start.elapsed() < Duration::from_secs(60), "the jobs do not begin");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        worker.drain(Duration::from_secs(5)).await;
        if let (Some(first), Some(last)) = (count.first.get(), count.last.get()) {
            rates.push((SHALLOW - 1) as f64 / last.duration_since(*first).as_secs_f64());
        }
        if depth == SHALLOW {
            fill(&database.url, "counted", SHALLOW, None).await?;
        }
    }
    Ok(vec![(METRIC, median(&rates).unwrap_or_default())])
}
