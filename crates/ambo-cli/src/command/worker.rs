//! `ambo worker`: the processes that run workflows.

use std::time::Duration;

use ambo::admin::WorkerSummary;
use anyhow::Result;

use crate::args::Worker;
use crate::database::Database;
use crate::output::{Cell, Column, Output, Table, WARN, age, length};

/// A worker tells of itself once a second; after this long without a word, something keeps it.
const SILENT: Duration = Duration::from_secs(5);

const COLUMNS: &[Column] = &[
    Column::number("ID"),
    Column::text("NAME"),
    Column::text("VERSION"),
    Column::whole("STATE"),
    Column::number("RUNS"),
    Column::number("UP"),
    Column::text("QUEUES"),
    Column::text("WORKFLOWS"),
];

/// `ambo worker ...`
pub(crate) async fn worker(wanted: &Worker, database: &Database, output: Output) -> Result<()> {
    let Worker::List = wanted;
    let client = database.connect().await?;
    let workers = client.list_workers().await?;
    if output.is_json {
        return Ok(workers.iter().try_for_each(|worker| output.json(worker))?);
    }
    if workers.is_empty() {
        output.say("no worker is registered: start a program that has one");
        return Ok(());
    }
    let now = client.now().await?;
    let mut table = Table::new(COLUMNS);
    for worker in &workers {
        table.row([
            worker.id.to_string().into(),
            (&worker.name).into(),
            (&worker.version).into(),
            state(worker),
            worker.in_flight.to_string().into(),
            age(now, worker.started_at).into(),
            worker.queues.join(",").into(),
            worker.workflows.join(",").into(),
        ]);
    }
    Ok(output.table(&table)?)
}

fn state(worker: &WorkerSummary) -> Cell {
    let silent = Duration::from_millis(u64::try_from(worker.silent_ms).unwrap_or(0));
    if silent > SILENT {
        Cell::styled(format!("silent {}", length(silent.as_secs())), WARN)
    } else if worker.draining {
        "draining".into()
    } else if worker.is_keeper {
        "keeper".into()
    } else {
        "alive".into()
    }
}
