//! `fair`: one tenant with a million waiting runs must not delay those who have one each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambo::{Client, Ctx, Enqueue, QueueSettings, Worker, enqueue_all};
use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::QUEUE;
use crate::engine::ambo::{Body, install};
use crate::jobs::ambo::fill;
use crate::report::{Bar, Better, Line, median};

const WAITING: i64 = 1_000_000;
const TENANTS: i64 = 100;
const WAVES: i64 = 20;
const NOTE: &str = "1,000,000 no-op jobs of one tenant wait and one worker is busy with them, 1,000 at once at most; 20 times \
    100 other tenants enqueue one each, in one call; from before that call until a job has begun: the median of all, and of \
    the last of each hundred";

/// Tells when it began, unless it is one of the million.
struct Timed;

/// When jobs began, by their input.
type Begun = Mutex<Vec<(i64, Instant)>>;

impl ambo::Workflow for Timed {
    type Input = i64;
    type Output = ();
    type Error = ambo::Error;
    const NAME: &'static str = "timed";

    fn run<'run>(cx: Ctx<'run>, input: i64) -> Body<'run, ()> {
        Box::pin(async move {
            if input >= 0 {
                let begun = cx.state::<Arc<Begun>>()?;
                begun.lock().unwrap_or_else(PoisonError::into_inner).push((input, Instant::now()));
            }
            Ok(())
        })
    }
}

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let samples = bench.rounds("fair", 1, &["ambo"], async |_, database| measure(database).await).await?;
    let line = |metric, bar| Line::new("fair", metric, Better::Lower, bar, NOTE).peers(&samples, &["ambo"]);
    Ok(vec![line("start_ms", Bar::AtMost(100.0)), line("last_start_ms", Bar::AtMost(100.0))])
}

async fn measure(database: &Database) -> Result<Sample> {
    install(&database.url).await?;
    let client = Client::connect(&database.url).await?;
    client.set_queue(QUEUE, &QueueSettings::default().groups().concurrency(1000)).await?;
    fill(&database.url, "timed", WAITING, Some("big")).await?;
    database.control.batch_execute("checkpoint").await?;
    let begun = Arc::new(Begun::default());
    let builder = Worker::builder(&client).workflow::<Timed>().state(begun.clone());
    let worker = builder.queue(QUEUE).start().await?;
    database.until("select count(*) from ambo.outcome", 5000).await?;

    let (mut each, mut last) = (Vec::new(), Vec::new());
    for wave in 0..WAVES {
        let job = |n| Enqueue::<Timed>::new(wave * TENANTS + n).queue(QUEUE).group(format!("t{n}"));
        let start = Instant::now();
        enqueue_all(&client, (0..TENANTS).map(job)).await?;
        let times = loop {
            let all = std::mem::take(&mut *begun.lock().unwrap_or_else(PoisonError::into_inner));
            if all.len() as i64 == TENANTS {
                break all;
            }
            ensure!(start.elapsed() < Duration::from_secs(30), "{} of {TENANTS} began", all.len());
            begun.lock().unwrap_or_else(PoisonError::into_inner).extend(all);
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        ensure!(times.iter().all(|(input, _)| input / TENANTS == wave), "a job of another wave");
        let mut times: Vec<f64> =
            times.iter().map(|(_, at)| at.duration_since(start).as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        last.extend(times.last());
        each.extend(times);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = database.count("select count(*) from ambo.ready").await?;
    ensure!(left > 0, "the big tenant's jobs did not last");
    worker.drain(Duration::from_secs(5)).await;
    let median = |figures: &[f64]| median(figures).unwrap_or_default();
    Ok(vec![("start_ms", median(&each)), ("last_start_ms", median(&last))])
}
