//! `wal`: what a queued one-step run costs at load in WAL bytes, commits and statements.
//!
//! WAL is the whole server's, enqueue included, by the difference of `pg_current_wal_insert_lsn()`; the
//! full-page images in it are found by `pg_walinspect`, or at their largest by `pg_stat_wal`. The worker's
//! connections have `log_statement = all` in their startup options and nobody else has: each line in the log
//! is a message that the worker sent, and its virtual transaction id tells transactions apart exactly.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::bench::{Bench, Sample};
use crate::database::{Database, connect, url_with};
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Producer};
use crate::load::{enqueue_for, stop, warm_up};
use crate::report::{Bar, Better, Line};
use crate::scenario::runs::{PRODUCERS, producing};
use crate::server::LOG_LINE_PREFIX;

const BYTES: &str = "bytes_per_run";
const IMAGES: &str = "image_bytes_per_run";
const COMMITS: &str = "commits_per_run";
const STATEMENTS: &str = "statements_per_run";
const NOTE: &str = "the work of `runs`; bytes: WAL of the whole server, enqueue included, full-page \
    images apart; commits and statements: of the worker's connections, counted in the server's log \
    by virtual transaction id";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let peers = ["ambo", "dbos", "durare"];
    let samples = bench
        .rounds("wal", 1, &peers, async |competitor, database| match competitor {
            "dbos" => measure::<Dbos>(bench, database).await,
            "durare" => measure::<Durare>(bench, database).await,
            other => anyhow::bail!("no {other} here"),
        })
        .await?;
    let line = |metric, bar| Line::new("wal", metric, Better::Lower, bar, NOTE).peers(&samples, &peers);
    Ok(vec![
        line(BYTES, Bar::AtMost(1300.0)),
        line(IMAGES, Bar::Open),
        line(COMMITS, Bar::AtMost(0.1)),
        line(STATEMENTS, Bar::AtMost(0.1)),
    ])
}

async fn measure<E: Engine>(bench: &Bench, database: &Database) -> Result<Sample> {
    let worker_url = url_with(&database.url, "options=-c%20log_statement%3Dall");
    let engine = E::launch(&worker_url, bench.for_speed()).await?;
    let producer = E::Producer::connect(&database.url).await?;
    engine.settle(bench.time(3000, 10_000)).await;
    warm_up::<E>(database, &producer).await?;

    let log = Log::open(&database.control).await?;
    let from = log.mark(&database.control).await?;
    let (wal_before, images_before) = (database.wal_position().await?, images(database).await?);
    let done = enqueue_for::<E>(database, &producer, PRODUCERS, producing(bench)).await?;
    let wal = database.wal_position().await?;
    let to = log.mark(&database.control).await?;
    stop(engine, producer).await?;

    let image_bytes = match inspect_images(database, wal_before, wal).await {
        Some(bytes) => bytes,
        None => (images(database).await? - images_before) * 8192,
    };
    let spoken = log.read(&database.control, from, to).await?;
    ensure!(spoken.statements > 0, "the worker's statements are not in the log");
    let a_run = |total: i64| total as f64 / done.runs as f64;
    Ok(vec![
        (BYTES, a_run(wal - wal_before - image_bytes)),
        (IMAGES, a_run(image_bytes)),
        (COMMITS, a_run(spoken.commits)),
        (STATEMENTS, a_run(spoken.statements)),
    ])
}

/// Full-page images written by the server so far.
async fn images(database: &Database) -> Result<i64> {
    database.ask("select wal_fpi from pg_stat_wal", &[]).await
}

/// Bytes of full-page images between two positions, where the extension is there.
async fn inspect_images(database: &Database, from: i64, to: i64) -> Option<i64> {
    let client = connect(&database.url).await.ok()?;
    client.batch_execute("create extension pg_walinspect").await.ok()?;
    let sql = "select sum(fpi_size)::int8 from pg_get_wal_stats('0/0'::pg_lsn + $1::int8::numeric, \
               '0/0'::pg_lsn + $2::int8::numeric)";
    client.query_one(sql, &[&from, &to]).await.ok()?.try_get(0).ok()
}

/// The server's log file, read through SQL.
struct Log {
    path: String,
}

/// What a worker said to the server.
#[derive(Debug, Default, PartialEq, Eq)]
struct Spoken {
    /// Top-level statements: simple queries and executions.
    statements: i64,
    /// Transactions, those rolled back left out.
    commits: i64,
}

impl Log {
    async fn open(control: &Client) -> Result<Log> {
        let prefix: String = control.query_one("show log_line_prefix", &[]).await?.try_get(0)?;
        ensure!(prefix == LOG_LINE_PREFIX, "log_line_prefix must be {LOG_LINE_PREFIX:?}");
        let path: Option<String> = control.query_one("select pg_current_logfile()", &[]).await?.try_get(0)?;
        Ok(Log { path: path.context("logging_collector is off")? })
    }

    /// Writes a mark into the log and gives its position. What was logged before stands before it.
    async fn mark(&self, control: &Client) -> Result<i64> {
        let size = "select size from pg_stat_file($1)";
        let from: i64 = control.query_one(size, &[&self.path]).await?.try_get(0)?;
        let mark = format!("mark {}", Uuid::now_v7());
        control.batch_execute(&format!("do $$ begin raise log '{mark}'; end $$")).await?;
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let to: i64 = control.query_one(size, &[&self.path]).await?.try_get(0)?;
            let text = self.text(control, from, to).await?;
            if let Some(at) = text.windows(mark.len()).position(|part| part == mark.as_bytes()) {
                return Ok(from + i64::try_from(at)?);
            }
        }
        bail!("the log does not move")
    }

    async fn read(&self, control: &Client, from: i64, to: i64) -> Result<Spoken> {
        Ok(count(&String::from_utf8_lossy(&self.text(control, from, to).await?)))
    }

    async fn text(&self, control: &Client, from: i64, to: i64) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = from;
        while at < to {
            let length = (to - at).min(64 << 20);
            let sql = "select pg_read_binary_file($1, $2, $3)";
            let part: Vec<u8> = control.query_one(sql, &[&self.path, &at, &length]).await?.try_get(0)?;
            ensure!(!part.is_empty(), "the log shrank");
            at += i64::try_from(part.len())?;
            text.extend(part);
        }
        Ok(text)
    }
}

/// Counts statements and commits in log lines of the form `PID_VXID_LOG:  statement: ...`.
fn count(text: &str) -> Spoken {
    let mut spoken = Spoken::default();
    let mut committed: HashMap<(&str, &str), bool> = HashMap::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, '_');
        let (Some(pid), Some(transaction), Some(rest)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Some(said) = rest.strip_prefix("LOG:  ") else { continue };
        let Some((kind, sql)) = said.split_once(": ") else { continue };
        if kind != "statement" && !kind.starts_with("execute ") {
            continue;
        }
        spoken.statements += 1;
        let rolled_back = sql.trim_start().to_ascii_lowercase().starts_with("rollback");
        committed.insert((pid, transaction), !rolled_back);
    }
    spoken.commits = committed.values().filter(|committed| **committed).count() as i64;
    spoken
}

#[cfg(test)]
mod tests {
    use super::{Spoken, count};

    #[test]
    fn statements_of_one_transaction_are_one_commit() {
        let log = "7_3/1_LOG:  statement: BEGIN\n\
                   7_3/1_LOG:  execute s1: select 1\n\
                   7_3/1_DETAIL:  parameters: $1 = '1'\n\
                   7_3/1_LOG:  statement: COMMIT\n\
                   7_3/2_LOG:  execute <unnamed>: select\n\
                   \t2\n\
                   8_4/1_LOG:  statement: BEGIN\n\
                   8_4/1_LOG:  statement: ROLLBACK\n";
        assert_eq!(count(log), Spoken { statements: 6, commits: 2 });
    }
}
