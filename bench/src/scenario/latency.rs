//! `latency`: an idle system; another process enqueues in a transaction; a handle here awaits the result.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::ambo::{Ambo, AmboProducer};
use crate::engine::dbos::{Dbos, DbosProducer};
use crate::engine::durare::{Durare, DurareProducer};
use crate::engine::{Engine, Producer, Workflow};
use crate::report::{Bar, Better, Line};
use crate::yardstick::pgbench::mix;

const NOTE: &str = "every engine in its default settings and idle; another process begins, enqueues \
    a one-step run and commits; the clock runs from before its begin until a handle here has the \
    result; dbos and durare enqueue by their own client, in a transaction of its own";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let peers = ["ambo", "dbos", "durare"];
    // How many samples, and the longest pause before one.
    let (few, many) = if bench.quick { ((5, 1000), (40, 400)) } else { ((20, 1000), (200, 600)) };
    let samples = bench
        .rounds("latency", 1, &peers, async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(bench, database, many).await,
            "dbos" => measure::<Dbos>(bench, database, few).await,
            "durare" => measure::<Durare>(bench, database, few).await,
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = |metric, most| {
        Line::new("latency", metric, Better::Lower, Bar::AtMost(most), NOTE).peers(&samples, &peers)
    };
    Ok(vec![line("p50_ms", 5.0), line("p99_ms", 25.0)])
}

async fn measure<E: Engine>(
    bench: &Bench,
    database: &Database,
    (count, pause_ms): (i64, u64),
) -> Result<Sample> {
    let engine = E::launch(&database.url, bench.for_rest()).await?;
    engine.settle(Duration::from_secs(2)).await;
    let mut other = Command::new(std::env::current_exe()?)
        .args(["enqueue-on-demand", E::NAME, &database.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut ask = other.stdin.take().context("the other process has no stdin")?;
    let answers = other.stdout.take().context("the other process has no stdout")?;
    let mut answers = BufReader::new(answers).lines();
    let mut histogram = Histogram::<u64>::new(3)?;
    for input in -1..count {
        // Long enough to fall idle; for the peers, at any moment between two polls of a second.
        tokio::time::sleep(Duration::from_millis(100 + mix(input.unsigned_abs()) % pause_ms)).await;
        ask.write_all(format!("{input}\n").as_bytes()).await?;
        let answer = answers.next_line().await?.context("the other process ended")?;
        let (id, began) = answer.split_once(' ').context("the other process said nonsense")?;
        let output = engine.wait(id).await?;
        let elapsed = now().saturating_sub(Duration::from_nanos(began.parse()?));
        ensure!(output == Workflow::OneStep.expected(input), "{input} gave {output}");
        // The first opens the connections.
        if input >= 0 {
            histogram.record(elapsed.as_micros().try_into()?)?;
        }
    }
    drop(ask);
    other.wait().await?;
    engine.stop().await?;
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(vec![("p50_ms", at(0.5)), ("p99_ms", at(0.99))])
}

/// The clock that two processes of one machine share.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The other process: for each line on stdin, enqueues it as input; answers with the run's id and the time
/// before the transaction began, in nanoseconds.
pub async fn enqueue_on_demand(engine: &str, url: &str) -> Result<()> {
    match engine {
        "ambo" => answer::<AmboProducer>(url).await,
        "dbos" => answer::<DbosProducer>(url).await,
        "durare" => answer::<DurareProducer>(url).await,
        other => bail!("there is no engine {other}"),
    }
}

async fn answer<P: Producer>(url: &str) -> Result<()> {
    let producer = P::connect(url).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut answers = tokio::io::stdout();
    while let Some(line) = lines.next_line().await? {
        let input = line.parse()?;
        let began = now().as_nanos();
        let id = producer.enqueue_in_transaction(input).await?;
        answers.write_all(format!("{id} {began}\n").as_bytes()).await?;
        answers.flush().await?;
    }
    producer.close().await;
    Ok(())
}
