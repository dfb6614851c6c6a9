//! The soak: Ambo at a steady load for as long as is asked, with retention on; memory, latency and disk are to stay flat.

use std::time::Duration;

use anyhow::{Context, Result};

use super::phase::{self, Name};
use super::pulse::Pulse;
use crate::bench::Bench;
use crate::database::{Database, connect};
use crate::engine::ambo::{Ambo, AmboProducer};
use crate::engine::{Engine, Producer};
use crate::load::{enqueue_for, stop, warm_up};
use crate::report::{Bar, Better, Line};
use crate::scenario::runs::PRODUCERS;

/// Of the maximum: what a system is run at for long.
const LOAD: f64 = 0.35;
const MIB: f64 = 1_048_576.0;
const NOTE: &str = "one-step runs at 35% of what `runs` does, history dropped after some minutes, a minute's partition at a \
    time; the last third over the second third";

/// Partitions of a minute and a retention of three: what happens in months otherwise. The checks forbid it for good reason.
const SHORT_LIVED: &str = "
    alter table ambo.installation drop constraint installation_retention_check;
    alter table ambo.installation drop constraint installation_partition_width_check;
    update ambo.installation set retention = '3 minutes', partition_width = '1 minute';
    do $$ declare p record; t text; begin
        for p in select to_char(starts_at at time zone 'UTC', 'YYYYMMDD_HH24MI') as name from ambo.history_partition loop
            foreach t in array array['run', 'outcome', 'child', 'attribute', 'checkpoint', 'signal', 'event'] loop
                execute format('drop table ambo.%I', t || '_' || p.name);
            end loop;
        end loop;
        delete from ambo.history_partition;
        insert into ambo.history_partition values (date_trunc('minute', now()) - interval '1 minute', date_trunc('minute', now()));
        perform ambo.make_partitions();
        delete from ambo.history_partition where ends_at <= now();
    end $$";

/// Measures it, for so many seconds.
pub async fn run(bench: &Bench, seconds: u64) -> Result<Vec<Line>> {
    let samples = bench
        .rounds_with("soak", (1, 1), &["ambo"], "template0", async |_, database| {
            measure(database, seconds).await
        })
        .await?;
    let line = |metric, bar| Line::new("soak", metric, Better::Lower, bar, NOTE).peers(&samples, &["ambo"]);
    Ok(vec![
        line("memory_growth", Bar::AtMost(1.1)),
        line("p50_growth", Bar::AtMost(1.5)),
        line("p99_growth", Bar::AtMost(1.5)),
        line("disk_growth", Bar::AtMost(1.1)),
        line("memory_mib", Bar::Open),
        line("p50_ms", Bar::Open),
        line("p99_ms", Bar::Open),
        line("disk_mib", Bar::Open),
        Line::new("soak", "served_of_offered", Better::Higher, Bar::AtLeast(0.99), NOTE)
            .peers(&samples, &["ambo"]),
    ])
}

async fn measure(database: &Database, seconds: u64) -> Result<Vec<(&'static str, f64)>> {
    let engine = Ambo::launch(&database.url, crate::engine::Setting::Default).await?;
    connect(&database.url).await?.batch_execute(SHORT_LIVED).await.context("partitions of a minute")?;
    let producer = AmboProducer::connect(&database.url).await?;
    warm_up::<Ambo>(database, &producer).await?;
    let most = enqueue_for::<Ambo>(database, &producer, PRODUCERS, Duration::from_secs(2)).await?;
    let rate = LOAD * most.runs as f64 / most.elapsed.as_secs_f64();
    let pulse = Pulse::start(&producer, rate);
    let slices = (seconds / 10).max(6);
    let mut figures = Vec::new();
    for slice in 0..slices {
        let phase = phase::watch(Name::Clean, database, &pulse, Duration::from_secs(10)).await?;
        let memory = resident_mib()?;
        eprintln!(
            "soak: {} s: {:.0} of {rate:.0} runs/s, p50 {:.2} ms, p99 {:.2} ms, {memory:.0} MiB of memory, {:.0} MiB of disk",
            (slice + 1) * 10,
            phase.served,
            phase.p50_ms,
            phase.p99_ms,
            phase.mib
        );
        figures.push([memory, phase.p99_ms, phase.mib, phase.served / rate, phase.p50_ms]);
    }
    pulse.stop().await?;
    stop(engine, producer).await?;
    let third = figures.len() / 3;
    let mean = |part: &[[f64; 5]], figure: fn(&[f64; 5]) -> f64| {
        part.iter().map(figure).sum::<f64>() / part.len() as f64
    };
    let (middle, last) = (&figures[third..2 * third], &figures[2 * third..]);
    let growth = |figure| mean(last, figure) / mean(middle, figure);
    Ok(vec![
        ("memory_growth", growth(|f| f[0])),
        ("p50_growth", growth(|f| f[4].max(1.0))),
        ("p99_growth", growth(|f| f[1].max(1.0))),
        ("disk_growth", growth(|f| f[2])),
        ("memory_mib", mean(last, |f| f[0])),
        ("p50_ms", mean(last, |f| f[4])),
        ("p99_ms", mean(last, |f| f[1])),
        ("disk_mib", mean(last, |f| f[2])),
        ("served_of_offered", mean(last, |f| f[3])),
    ])
}

/// Of this process: worker, producers and what they hold.
fn resident_mib() -> Result<f64> {
    let pages = std::fs::read_to_string("/proc/self/statm").context("memory is read from /proc")?;
    let pages: f64 = pages.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096.0 / MIB)
}
