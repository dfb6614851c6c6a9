//! One phase: what is held open during it, and what is seen.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use tokio_postgres::Client;

use super::pulse::{Pulse, served, take_seen};
use crate::database::{Database, connect};

/// In their order; the first is what the others are compared with.
pub const PHASES: [Name; 7] = [
    Name::Clean,
    Name::Snapshot,
    Name::Released,
    Name::Writer,
    Name::Released,
    Name::Queries,
    Name::Released,
];

/// Seconds of a phase that are told one by one.
const SLOWEST: usize = 8;

/// What goes on beside the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Clean,
    /// A repeatable-read transaction that has read something, and sits there.
    Snapshot,
    /// A transaction that has written something, and sits there.
    Writer,
    /// Queries of two seconds each, of which there are always two.
    Queries,
    /// Nothing again, after what was held open.
    Released,
}

impl Name {
    /// How long it lasts, without --quick, where something is held open for so many seconds.
    pub fn seconds(self, held: u64) -> u64 {
        match self {
            Name::Clean => 120,
            Name::Released => 90,
            _ => held,
        }
    }

    async fn hold(self, database: &Database) -> Result<Held> {
        let mut held = Held { open: Vec::new(), queries: Vec::new() };
        match self {
            Name::Clean | Name::Released => {}
            Name::Snapshot => {
                let sql = "begin isolation level repeatable read; select count(*) from pg_class";
                held.open.push(connect(&database.url).await?);
                held.open[0].batch_execute(sql).await?;
            }
            Name::Writer => {
                let sql =
                    "create table if not exists bystander (n int); begin; insert into bystander values (1)";
                held.open.push(connect(&database.url).await?);
                held.open[0].batch_execute(sql).await?;
            }
            Name::Queries => {
                for _ in 0..2 {
                    let client = connect(&database.url).await?;
                    held.queries.push(tokio::spawn(async move {
                        let query = "select count(*), pg_sleep(2) from pg_class";
                        while client.batch_execute(query).await.is_ok() {}
                    }));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        Ok(held)
    }
}

/// What is held open.
struct Held {
    open: Vec<Client>,
    queries: Vec<tokio::task::JoinHandle<()>>,
}

impl Held {
    async fn release(self) -> Result<()> {
        for client in self.open {
            client.batch_execute("commit").await?;
        }
        self.queries.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(())
    }
}

/// What was seen in a phase.
pub struct Phase {
    name: Name,
    /// Runs a second that ended.
    pub served: f64,
    offered: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// By the second: p99 in milliseconds.
    seconds: Vec<f64>,
    /// The same of spans of so many seconds, and how many runs ended in each second of it.
    spans: Vec<(f64, f64)>,
    span_seconds: usize,
    /// Updates a second of one row, in the table where there are most.
    pub hottest: f64,
    pub dead_rows: f64,
    pub mib: f64,
    /// Tables with most dead rows: name, dead rows, MiB of table and indexes.
    tables: Vec<(String, i64, f64, f64)>,
}

/// Watches the load for a while.
pub async fn watch(name: Name, database: &Database, pulse: &Pulse, time: Duration) -> Result<Phase> {
    let inside = connect(&database.url).await?;
    let held = name.hold(database).await?;
    let updates_before = updates(&inside).await?;
    take_seen();
    let (began, served_before) = (Instant::now(), served());
    let mut counted = vec![served_before];
    while began.elapsed() < time {
        let next = began + Duration::from_secs(counted.len() as u64);
        tokio::time::sleep_until(next.into()).await;
        counted.push(served());
    }
    let (took, seen) = (began.elapsed(), take_seen());
    held.release().await?;
    let mut all = Histogram::<u64>::new(3)?;
    let mut windows: Vec<Histogram<u64>> =
        counted.iter().map(|_| Histogram::new(3)).collect::<Result<_, _>>()?;
    for (committed, latency) in seen {
        let latency = (latency.as_micros() as u64).max(1);
        all.record(latency)?;
        let second = committed.saturating_duration_since(began).as_secs() as usize;
        if let Some(window) = windows.get_mut(second) {
            window.record(latency)?;
        }
    }
    let seconds = windows.iter().map(|window| ms(window, 0.99)).collect();
    // A second has too few stalls in it to be compared with a minute: it is chance whether there is one.
    let span_seconds = (time.as_secs() as usize / 9).clamp(1, 10);
    let mut spans = Vec::new();
    for (at, span) in windows.chunks_exact(span_seconds).enumerate() {
        let mut merged = Histogram::<u64>::new(3)?;
        span.iter().try_for_each(|window| merged.add(window))?;
        let at = at * span_seconds;
        let Some(end) = counted.get(at + span_seconds) else { break };
        spans.push(((end - counted[at]) as f64 / span_seconds as f64, ms(&merged, 0.99)));
    }
    let updates = updates(&inside).await? - updates_before;
    let tables = tables(&inside).await?;
    Ok(Phase {
        name,
        served: (counted[counted.len() - 1] - served_before) as f64 / took.as_secs_f64(),
        offered: pulse.rate,
        p50_ms: ms(&all, 0.5),
        p99_ms: ms(&all, 0.99),
        seconds,
        spans,
        span_seconds,
        hottest: updates / took.as_secs_f64(),
        dead_rows: tables.iter().map(|table| table.1 as f64).sum(),
        mib: tables.iter().map(|table| table.2 + table.3).sum(),
        tables,
    })
}

fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

/// Updates a live row has had so far, in the table where that is most.
async fn updates(inside: &Client) -> Result<f64> {
    // A table that holds one row has at least that one.
    let sql = "select coalesce(max(n_tup_upd::float8 / greatest(n_live_tup, 1)), 0) from pg_stat_user_tables";
    Ok(inside.query_one(sql, &[]).await?.try_get(0)?)
}

async fn tables(inside: &Client) -> Result<Vec<(String, i64, f64, f64)>> {
    let sql = "select schemaname || '.' || relname, n_dead_tup,
        -- Null of a partition that was dropped meanwhile.
        coalesce(pg_table_size(relid), 0)::float8 / 1048576, coalesce(pg_indexes_size(relid), 0)::float8 / 1048576
        from pg_stat_user_tables order by n_dead_tup desc";
    inside
        .query(sql, &[])
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))
        .collect()
}

impl Phase {
    /// What part of the offered runs have ended.
    pub fn served_of_offered(&self) -> f64 {
        self.served / self.offered
    }

    /// Whether it comes after what was held open.
    pub fn is_released(&self) -> bool {
        self.name == Name::Released
    }

    /// From which second on the phase was as good as this to its end; its length where it never was.
    pub fn seconds_until(&self, served: f64, p99_ms: f64) -> f64 {
        let bad = self.spans.iter().rposition(|(runs, p99)| *runs < served || *p99 > p99_ms);
        bad.map_or(0.0, |last| ((last + 1) * self.span_seconds) as f64)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{:?}", self.name).to_lowercase();
        write!(
            f,
            "{name}: {:.0} runs/s of {:.0} offered, p50 {:.2} ms, p99 {:.2} ms",
            self.served, self.offered, self.p50_ms, self.p99_ms
        )?;
        for (table, dead, table_mib, index_mib) in self.tables.iter().take(5).filter(|table| table.1 > 0) {
            write!(f, "; {table}: {dead} dead, {table_mib:.1} + {index_mib:.1} MiB")?;
        }
        // A p99 over minutes says whether there were stalls; these say when, to be laid beside the server's log.
        let mut slow: Vec<(usize, f64)> = self.seconds.iter().copied().enumerate().collect();
        slow.sort_by(|a, b| b.1.total_cmp(&a.1));
        slow.truncate(SLOWEST);
        slow.sort_unstable_by_key(|second| second.0);
        let slow = slow.iter().map(|(second, p99)| format!("{p99:.0} ms at {second} s"));
        write!(f, "; slowest seconds: {}", slow.collect::<Vec<_>>().join(", "))
    }
}
