//! `pinned`: what becomes of a queue when nothing can be vacuumed: the load of `runs` at 70% of its maximum, clean, behind
//! an old snapshot, behind an old writing transaction, beside overlapping short queries, and after their end.

mod phase;
mod pulse;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::Database;
use crate::engine::ambo::Ambo;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Producer};
use crate::load::{enqueue_for, stop, warm_up};
use crate::report::{Bar, Better, Line};
use crate::scenario::runs::PRODUCERS;

use phase::{PHASES, Phase};
use pulse::Pulse;

pub use pulse::note_start;
pub use soak::run as soak;

mod soak;

/// Of the maximum.
const LOAD: f64 = 0.7;
/// How long something is held open, in seconds.
const HELD: u64 = 600;
const FRACTION: &str = "fraction_of_clean";
const SERVED: &str = "served_of_offered";
const LATENCY: &str = "p99_of_clean";
const RECOVERY: &str = "seconds_to_clean";
const HOTTEST: &str = "updates_per_row_s";
const NOTE: &str = "one-step runs at 70% of what `runs` does; clean, behind a repeatable-read snapshot, behind a writing transaction, \
    beside overlapping two-second queries, and after the end of each; worst phase: runs served of those of the clean one, and of \
    those offered; p99 from commit to start over that of the clean one; after an end: seconds until both are as they were, by spans of ten; updates a second of the row that is updated most";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let peers = ["ambo", "dbos", "durare"];
    let samples = bench
        .rounds_with("pinned", (1, 1), &peers, "template0", async |competitor, database| match competitor {
            "ambo" => measure::<Ambo>(bench, database).await,
            "dbos" => measure::<Dbos>(bench, database).await,
            "durare" => measure::<Durare>(bench, database).await,
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = |metric, better, bar| Line::new("pinned", metric, better, bar, NOTE).peers(&samples, &peers);
    Ok(vec![
        line(FRACTION, Better::Higher, Bar::AtLeast(0.95)),
        line(SERVED, Better::Higher, Bar::AtLeast(0.95)),
        line(LATENCY, Better::Lower, Bar::AtMost(2.0)),
        line(RECOVERY, Better::Lower, Bar::AtMost(60.0)),
        line(HOTTEST, Better::Lower, Bar::AtMost(2.0)),
        line("offered_per_s", Better::Higher, Bar::Open),
        line("clean_p50_ms", Better::Lower, Bar::Open),
        line("clean_p99_ms", Better::Lower, Bar::Open),
        line("worst_p99_ms", Better::Lower, Bar::Open),
        line("dead_rows", Better::Lower, Bar::Open),
        line("mib", Better::Lower, Bar::Open),
    ])
}

async fn measure<E: Engine>(bench: &Bench, database: &Database) -> Result<Sample> {
    let engine = E::launch(&database.url, bench.for_speed()).await?;
    let producer = E::Producer::connect(&database.url).await?;
    engine.settle(bench.time(3000, 10_000)).await;
    warm_up::<E>(database, &producer).await?;
    let most = enqueue_for::<E>(database, &producer, PRODUCERS, bench.time(2000, 5000)).await?;
    let rate = LOAD * most.runs as f64 / most.elapsed.as_secs_f64();
    eprintln!("pinned: {}: {rate:.0} runs a second are offered", E::NAME);
    let before = database.count(E::SUCCEEDED).await?;

    let pulse = Pulse::start(&producer, rate);
    // What the start leaves behind is not the clean phase's.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut phases: Vec<Phase> = Vec::new();
    for name in PHASES {
        let time = bench.time(10_000, name.seconds(bench.held.unwrap_or(HELD)) * 1000);
        let phase = phase::watch(name, database, &pulse, time).await?;
        eprintln!("pinned: {}: {phase}", E::NAME);
        phases.push(phase);
    }
    let enqueued = pulse.stop().await?;
    database.until(E::SUCCEEDED, before + enqueued).await?;
    ensure!(database.count(E::SUCCEEDED).await? == before + enqueued, "more outcomes than runs");
    stop(engine, producer).await?;
    Ok(sum_up(rate, &phases))
}

fn sum_up(rate: f64, phases: &[Phase]) -> Sample {
    let (clean, others) = (&phases[0], &phases[1..]);
    let worst = |figure: &dyn Fn(&Phase) -> f64| others.iter().map(figure).fold(0.0, f64::max);
    let served = others.iter().map(|phase| phase.served / clean.served).fold(f64::INFINITY, f64::min);
    // Below a millisecond a ratio says more about the machine than about the queue.
    let p99 = |phase: &Phase| phase.p99_ms.max(1.0);
    let of_offered = phases.iter().map(Phase::served_of_offered).fold(f64::INFINITY, f64::min);
    let until_clean = |phase: &Phase| match phase.is_released() {
        true => phase.seconds_until(0.95 * clean.served, 2.0 * p99(clean)),
        false => 0.0,
    };
    vec![
        (FRACTION, served),
        (SERVED, of_offered),
        (LATENCY, worst(&|phase| p99(phase)) / p99(clean)),
        (RECOVERY, worst(&until_clean)),
        (HOTTEST, worst(&|phase| phase.hottest)),
        ("offered_per_s", rate),
        ("clean_p50_ms", clean.p50_ms),
        ("clean_p99_ms", clean.p99_ms),
        ("worst_p99_ms", worst(&|phase| phase.p99_ms)),
        ("dead_rows", worst(&|phase| phase.dead_rows)),
        ("mib", worst(&|phase| phase.mib)),
    ]
}
