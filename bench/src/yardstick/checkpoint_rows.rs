//! `limit`: checkpoint rows by bare inserts of arrays on two connections, with nothing else to do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::database::{Database, connect};
use crate::load::sum;

const CONNECTIONS: usize = 2;
const ROWS_AN_ARRAY: usize = 1000;
const STEPS_A_RUN: usize = 10;

/// The columns and indexes of `ambo.checkpoint`, whichever they are.
const TABLE: &str = "create table limit_checkpoint (like ambo.checkpoint including all)";

const INSERT: &str = "insert into limit_checkpoint \
    (run_id, attempt, elapsed_ms, position, name, output) \
    select run_id, 1, 0, position, 'step', output::json \
    from unnest($1::uuid[], $2::text[], $3::text[]) as row (run_id, position, output)";

/// Inserts for a while; gives the rows a second.
///
/// In the order in which `steps` makes them: a thousand runs at once, an array for the same step of each.
pub async fn insert_for(database: &Database, time: Duration) -> Result<f64> {
    connect(&database.url).await?.batch_execute(TABLE).await?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = connect(&database.url).await?;
        let insert = client.prepare(INSERT).await?;
        clients.push((client, insert));
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, insert) in clients {
        tasks.spawn(async move {
            let mut rows = 0;
            while start.elapsed() < time {
                let runs: Vec<Uuid> = (0..ROWS_AN_ARRAY).map(|_| Uuid::now_v7()).collect();
                for step in 0..STEPS_A_RUN {
                    let positions = vec![(step + 1).to_string(); ROWS_AN_ARRAY];
                    let outputs = vec![step.to_string(); ROWS_AN_ARRAY];
                    client.execute(&insert, &[&runs, &positions, &outputs]).await?;
                    rows += i64::try_from(ROWS_AN_ARRAY)?;
                }
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
