//! `limit`: checkpoint rows by bare inserts of arrays on two connections, with nothing else to do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::database::{Database, connect};
use crate::load::sum;

const CONNECTIONS: usize = 2;
const RUNS_AN_ARRAY: usize = 100;
const STEPS_A_RUN: usize = 10;
const ROWS_AN_ARRAY: i64 = 1000;

/// The columns and indexes of `ambo.checkpoint`, whichever they are.
const TABLE: &str = "create table limit_checkpoint (like ambo.checkpoint including all)";

const INSERT: &str = "insert into limit_checkpoint \
    (run_id, attempt, elapsed_ms, position, name, output) \
    select run_id, 1, 0, position, 'step', output::json \
    from unnest($1::uuid[], $2::text[], $3::text[]) as row (run_id, position, output)";

/// Inserts for a while; gives the rows a second.
pub async fn insert_for(database: &Database, time: Duration) -> Result<f64> {
    connect(&database.url).await?.batch_execute(TABLE).await?;
    let positions: Vec<String> =
        (0..ROWS_AN_ARRAY as usize).map(|row| (row % STEPS_A_RUN + 1).to_string()).collect();
    let outputs: Vec<String> =
        (0..ROWS_AN_ARRAY as usize).map(|row| (row % STEPS_A_RUN).to_string()).collect();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = connect(&database.url).await?;
        let insert = client.prepare(INSERT).await?;
        clients.push((client, insert));
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, insert) in clients {
        let (positions, outputs) = (positions.clone(), outputs.clone());
        tasks.spawn(async move {
            let mut rows = 0;
            while start.elapsed() < time {
                let runs: Vec<Uuid> = (0..RUNS_AN_ARRAY).map(|_| Uuid::now_v7()).collect();
                let ids: Vec<Uuid> = runs.into_iter().flat_map(|id| [id; STEPS_A_RUN]).collect();
                client.execute(&insert, &[&ids, &positions, &outputs]).await?;
                rows += ROWS_AN_ARRAY;
            }
            Ok(rows)
        });
    }
    let rows = sum(tasks).await?;
    let seconds = start.elapsed().as_secs_f64();
    let stored = database.count("select count(*) from limit_checkpoint").await?;
    ensure!(stored == rows, "{stored} rows stored of {rows}");
    Ok(rows as f64 / seconds)
}
