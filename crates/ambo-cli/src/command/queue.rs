//! `ambo queue`: where runs wait.

use anyhow::Result;
use serde::Serialize;

use crate::args::Queue;
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
}

/// `ambo queue ...`
pub(crate) async fn queue(wanted: Queue, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    let (sentence, changed) = match &wanted {
        Queue::List => return list(&client, output).await,
        Queue::Create(queue) => {
            let is_new = client.create_queue(&queue.name).await?;
            let what = if is_new { "created" } else { "there already, unchanged" };
            (what, Changed { name: &queue.name, is_new: Some(is_new), paused: None })
        }
        Queue::Pause(queue) => {
            client.pause_queue(&queue.name, true).await?;
            let what = "paused; runs in execution go on";
            (what, Changed { name: &queue.name, is_new: None, paused: Some(true) })
        }
        Queue::Resume(queue) => {
            client.pause_queue(&queue.name, false).await?;
            ("active", Changed { name: &queue.name, is_new: None, paused: Some(false) })
        }
    };
    output.say(&format!("queue {}: {sentence}", changed.name));
    if output.is_json {
        output.json(&changed)?;
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
        let state: Cell = if queue.paused { Cell::styled("paused", WARN) } else { "active".into() };
        let more = if queue.ready_is_capped { "+" } else { "" };
        let oldest = queue.oldest_ready_at.map(|then| age(now, then)).unwrap_or_default();
        table.row([(&queue.name).into(), state, format!("{}{more}", queue.ready).into(), oldest.into()]);
    }
    Ok(output.table(&table)?)
}
