//! `wal`: what a queued one-step run costs at load in WAL bytes, commits and statements.
//!
//! WAL is the whole server's, enqueue included, by the difference of `pg_current_wal_insert_lsn()`; the
//! full-page images in it are found by `pg_walinspect`, or at their largest by `pg_stat_wal`. Commits and
//! statements are counted in the [`StatementLog`].

use anyhow::{Result, ensure};

use crate::bench::{Bench, Sample};
use crate::database::{Database, connect};
use crate::engine::ambo::Ambo;
use crate::engine::dbos::Dbos;
use crate::engine::durare::Durare;
use crate::engine::{Engine, Producer};
use crate::load::{enqueue_for, stop, warm_up};
use crate::report::{Bar, Better, Line};
use crate::scenario::runs::{PRODUCERS, producing};
use crate::statement_log::{StatementLog, logged};

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
            "ambo" => measure::<Ambo>(bench, database).await,
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
    let engine = E::launch(&logged(&database.url), bench.for_speed()).await?;
    let producer = E::Producer::connect(&database.url).await?;
    engine.settle(bench.time(3000, 10_000)).await;
    warm_up::<E>(database, &producer).await?;

    let log = StatementLog::open(&database.control).await?;
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
