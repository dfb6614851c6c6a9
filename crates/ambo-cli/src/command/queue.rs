//! `ambo queue`: where runs wait.

use ambo::admin::Purge;
use anyhow::Result;
use serde::Serialize;

use crate::args::{Queue, QueuePurge};
use crate::database::Database;
use crate::output::{Cell, Column, Output, Table, WARN, age};

const COLUMNS: &[Column] =
    &[Column::text("QUEUE"), Column::whole("STATE"), Column::number("READY"), Column::number("OLDEST")];

/// What an act did to a queue.
#[derive(Debug, Serialize)]
struct Changed<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_new: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draining: Option<bool>,
}

impl<'a> Changed<'a> {
    fn of(name: &'a str) -> Self {
        Changed { name, is_new: None, paused: None, draining: None }
    }
}

/// `ambo queue ...`
pub(crate) async fn queue(wanted: Queue, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    let (sentence, changed) = match &wanted {
        Queue::List => return list(&client, output).await,
        Queue::Create(queue) => {
            let is_new = client.create_queue(&queue.name).await?;
            let what = if is_new { "created" } else { "there already, unchanged" };
            (what, Changed { is_new: Some(is_new), ..Changed::of(&queue.name) })
        }
        Queue::Pause(queue) => {
            client.pause_queue(&queue.name, true).await?;
            let what = "paused; runs in execution go on";
            (what, Changed { paused: Some(true), ..Changed::of(&queue.name) })
        }
        Queue::Resume(queue) => {
            client.pause_queue(&queue.name, false).await?;
            client.drain_queue(&queue.name, false).await?;
            ("active", Changed { paused: Some(false), ..Changed::of(&queue.name) })
        }
        Queue::Drain(queue) => {
            client.drain_queue(&queue.name, true).await?;
            let what = "takes no new runs; those that wait are worked off";
            (what, Changed { draining: Some(true), ..Changed::of(&queue.name) })
        }
        Queue::Purge(wanted) => return purge(wanted, &client, output).await,
    };
    output.say(&format!("queue {}: {sentence}", changed.name));
    if output.is_json {
        output.json(&changed)?;
    }
    Ok(())
}

async fn purge(wanted: &QueuePurge, client: &ambo::Client, output: Output) -> Result<()> {
    let QueuePurge { name, workflow, until, yes } = wanted;
    let purge = Purge { queue: name.clone(), workflow: workflow.clone(), until: *until, dry_run: !yes };
    let runs = client.purge_queue(&purge).await?;
    let what = if runs == 1 { "run" } else { "runs" };
    if *yes {
        output.say(&format!("queue {name}: {runs} {what} cancelled"));
    } else {
        output.say(&format!(
            "queue {name}: {runs} {what} would be cancelled; nothing was done, add --yes to do it"
        ));
    }
    if output.is_json {
        output.json(&serde_json::json!({ "name": name, "purged": runs, "dry_run": !yes }))?;
    }
    Ok(())
}

async fn list(client: &ambo::Client, output: Output) -> Result<()> {
    let queues = client.list_queues().await?;
    if output.is_json {
        return Ok(queues.iter().try_for_each(|queue| output.json(queue))?);
    }
    let now = client.now().await?;
    let mut table = Table::new(COLUMNS);
    for queue in &queues {
        let state: Cell = match (queue.paused, queue.draining) {
            (true, _) => Cell::styled("paused", WARN),
            (_, true) => Cell::styled("draining", WARN),
            _ => "active".into(),
        };
        let more = if queue.ready_is_capped { "+" } else { "" };
        let oldest = queue.oldest_ready_at.map(|then| age(now, then)).unwrap_or_default();
        table.row([(&queue.name).into(), state, format!("{}{more}", queue.ready).into(), oldest.into()]);
    }
    Ok(output.table(&table)?)
}
