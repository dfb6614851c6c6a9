//! `signals`: a signal to a run and its answer, in memory and parked.

use std::time::{Duration, Instant};

use ambo::{Client, Enqueue, RunId, SendSignal, Worker};
use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::waiting::{ANSWERED, ASKED, Talker, launch};
use crate::load::sum;
use crate::report::{Bar, Better, Line};

/// Runs that are spoken to at once, each by its own caller.
const RUNS: i64 = 64;
/// Clients that the callers share: as many connections as everybody has elsewhere.
const CLIENTS: usize = 4;
/// As often as nobody will ask in the time.
const TIMES: i64 = 1_000_000;

const NOTE: &str = "64 runs, each with a caller that sends a signal, awaits the event that answers it, and goes on; \
    16 clients; parked: the worker parks a run as soon as it waits";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let samples = bench
        .rounds("signals", 1, &["ambo"], async |_, database| {
            let in_memory = measure(bench, database, None).await?;
            let parked = measure(bench, database, Some(Duration::ZERO)).await?;
            Ok::<Sample, _>(vec![("in_memory_per_s", in_memory), ("parked_per_s", parked)])
        })
        .await?;
    let line =
        |metric| Line::new("signals", metric, Better::Higher, Bar::Open, NOTE).peers(&samples, &["ambo"]);
    Ok(vec![line("in_memory_per_s"), line("parked_per_s")])
}

async fn measure(bench: &Bench, database: &Database, park_after: Option<Duration>) -> Result<f64> {
    let worker = launch(&database.url, park_after).await?;
    let (mut clients, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        clients.push(Client::connect(&database.url).await?);
    }
    for _ in 0..RUNS {
        runs.push(Enqueue::<Talker>::new(TIMES).on(worker.client()).await?.run);
    }
    let time = bench.time(3000, 10_000);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (caller, run) in runs.iter().copied().enumerate() {
        tasks.spawn(talk(clients[caller % CLIENTS].clone(), run, began + time));
    }
    let spoken = sum(tasks).await?;
    let rate = spoken as f64 / began.elapsed().as_secs_f64();
    for run in runs {
        worker.client().cancel(run, "the measurement is over").await?;
    }
    Worker::drain(worker, Duration::from_secs(5)).await;
    Ok(rate)
}

async fn talk(client: Client, run: RunId, until: Instant) -> Result<i64> {
    let mut asked = 0;
    while Instant::now() < until {
        asked += 1;
        SendSignal::new(run, ASKED, &asked).on(&client).await?;
        let answers = client.next_events::<i64>(run, ANSWERED, u32::try_from(asked - 1)?).await?;
        ensure!(answers.len() == 1 && answers[0].1 == asked, "signal {asked} was answered with another");
    }
    Ok(asked)
}
