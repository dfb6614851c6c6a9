//! `ambo queue`: where runs wait.

use ambo::admin::Purge;
use anyhow::Result;
use serde::Serialize;

use crate::args::{Queue, QueuePause, QueuePurge};
use crate::database::Database;
use crate::output::{Cell, Column, Output, Table, WARN, age};

const COLUMNS: &[Column] = &[
    Column::text("QUEUE"),
    Column::whole("STATE"),
    Column::number("READY"),
    Column::number("OLDEST"),
    Column::text("LIMITS"),
];

const GROUPS: &[Column] = &[
    Column::text("QUEUE"),
    Column::text("GROUP"),
    Column::whole("STATE"),
    Column::number("SHARE"),
    Column::whole("RUN THAT FAILED"),
];

const BLOCKED: &[Column] = &[
    Column::text("QUEUE"),
    Column::text("GROUP"),
    Column::whole("RUN THAT FAILED"),
    Column::number("SINCE"),
];

/// What an act did to a queue.
#[derive(Debug, Default, Serialize)]
struct Changed<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_new: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draining: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<ambo::QueueSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    was_blocked: Option<bool>,
}

/// `ambo queue ...`
pub(crate) async fn queue(wanted: Queue, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    let (sentence, changed) = match &wanted {
        Queue::List => return list(&client, output).await,
        Queue::Groups(queue) => return groups(queue.name.as_deref(), &client, output).await,
        Queue::Blocked(queue) => return blocked(queue.name.as_deref(), &client, output).await,
        Queue::Create(queue) => {
            let is_new = client.create_queue(&queue.name).await?;
            let what = if is_new { "created" } else { "there already, unchanged" };
            (what, Changed { name: &queue.name, is_new: Some(is_new), ..Changed::default() })
        }
        Queue::Set(set) => {
            let settings = set.settings();
            client.set_queue(&set.name, &settings).await?;
            let changed = Changed { name: &set.name, settings: Some(settings), ..Changed::default() };
            ("set, from the next claim on", changed)
        }
        Queue::Pause(queue) => {
            pause(&client, queue, true).await?;
            ("paused; runs in execution go on", paused(queue, true))
        }
        Queue::Resume(queue) => {
            pause(&client, queue, false).await?;
            drain(&client, queue, false).await?;
            ("active", Changed { draining: Some(false), ..paused(queue, false) })
        }
        Queue::Share(wanted) => {
            client.share_group(&wanted.name, &wanted.group, wanted.share).await?;
            let (group, share) = (Some(&*wanted.group), Some(wanted.share));
            ("its share is set", Changed { name: &wanted.name, group, share, ..Changed::default() })
        }
        Queue::Unblock(wanted) => {
            let was_blocked = client.unblock_group(&wanted.name, &wanted.group).await?;
            let what = if was_blocked { "goes on" } else { "was not blocked" };
            let group = Some(&*wanted.group);
            (
                what,
                Changed { name: &wanted.name, group, was_blocked: Some(was_blocked), ..Changed::default() },
            )
        }
        Queue::Drain(queue) => {
            drain(&client, queue, true).await?;
            let what = "takes no new runs; those that wait are worked off";
            let (group, draining) = (queue.group.as_deref(), Some(true));
            (what, Changed { name: &queue.name, group, draining, ..Changed::default() })
        }
        Queue::Purge(wanted) => return purge(wanted, &client, output).await,
    };
    let group = changed.group.map(|group| format!(", group {group}")).unwrap_or_default();
    output.say(&format!("queue {}{group}: {sentence}", changed.name));
    if output.is_json {
        output.json(&changed)?;
    }
    Ok(())
}

async fn purge(wanted: &QueuePurge, client: &ambo::Client, output: Output) -> Result<()> {
    let QueuePurge { name, group, workflow, until, yes } = wanted;
    let purge = Purge {
        queue: name.clone(),
        group: group.clone(),
        workflow: workflow.clone(),
        until: *until,
        dry_run: !yes,
    };
    let runs = client.purge_queue(&purge).await?;
    let what = if runs == 1 { "run" } else { "runs" };
    let of_group = group.as_ref().map(|group| format!(", group {group}")).unwrap_or_default();
    if *yes {
        output.say(&format!("queue {name}{of_group}: {runs} {what} cancelled"));
    } else {
        output.say(&format!(
            "queue {name}{of_group}: {runs} {what} would be cancelled; nothing was done, add --yes to do it"
        ));
    }
    if output.is_json {
        output.json(&serde_json::json!({ "name": name, "group": group, "purged": runs, "dry_run": !yes }))?;
    }
    Ok(())
}

async fn pause(client: &ambo::Client, queue: &QueuePause, paused: bool) -> Result<()> {
    match &queue.group {
        Some(group) => client.pause_group(&queue.name, group, paused).await?,
        None => client.pause_queue(&queue.name, paused).await?,
    }
    Ok(())
}

async fn drain(client: &ambo::Client, queue: &QueuePause, draining: bool) -> Result<()> {
    match &queue.group {
        Some(group) => client.drain_group(&queue.name, group, draining).await?,
        None => client.drain_queue(&queue.name, draining).await?,
    }
    Ok(())
}

fn paused(queue: &QueuePause, paused: bool) -> Changed<'_> {
    Changed { name: &queue.name, group: queue.group.as_deref(), paused: Some(paused), ..Changed::default() }
}

async fn groups(queue: Option<&str>, client: &ambo::Client, output: Output) -> Result<()> {
    let groups = client.list_groups(queue).await?;
    if output.is_json {
        return Ok(groups.iter().try_for_each(|group| output.json(group))?);
    }
    if groups.is_empty() {
        output.say("no group is paused, drained or blocked, or has a share of its own");
        return Ok(());
    }
    let mut table = Table::new(GROUPS);
    for group in &groups {
        table.row([
            (&group.queue).into(),
            (&group.group).into(),
            state(&[
                ("paused", group.paused),
                ("draining", group.draining),
                ("blocked", group.blocked_by.is_some()),
            ]),
            group.share.to_string().into(),
            group.blocked_by.map(|run| run.to_string()).unwrap_or_default().into(),
        ]);
    }
    Ok(output.table(&table)?)
}

/// What holds up a queue or a group, all of it.
fn state(holds: &[(&str, bool)]) -> Cell {
    let holds: Vec<&str> = holds.iter().filter(|(_, is_so)| *is_so).map(|(name, _)| *name).collect();
    if holds.is_empty() { "active".into() } else { Cell::styled(holds.join(", "), WARN) }
}

async fn blocked(queue: Option<&str>, client: &ambo::Client, output: Output) -> Result<()> {
    let groups = client.blocked_groups(queue).await?;
    if output.is_json {
        return Ok(groups.iter().try_for_each(|group| output.json(group))?);
    }
    if groups.is_empty() {
        output.say("no group is blocked");
        return Ok(());
    }
    let now = client.now().await?;
    let mut table = Table::new(BLOCKED);
    for group in &groups {
        let name = group.group.as_deref().unwrap_or_default();
        table.row([
            (&group.queue).into(),
            name.into(),
            group.run.to_string().into(),
            age(now, group.since).into(),
        ]);
    }
    output.table(&table)?;
    output.say("retry the run, or let its group go on without it: ambo queue unblock QUEUE GROUP");
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
        let more = if queue.ready_is_capped { "+" } else { "" };
        let oldest = queue.oldest_ready_at.map(|then| age(now, then)).unwrap_or_default();
        table.row([
            (&queue.name).into(),
            state(&[("paused", queue.paused), ("draining", queue.draining)]),
            format!("{}{more}", queue.ready).into(),
            oldest.into(),
            limits(queue).into(),
        ]);
    }
    Ok(output.table(&table)?)
}

/// What limits a queue, in short.
fn limits(queue: &ambo::admin::QueueSummary) -> String {
    let settings: serde_json::Map<String, serde_json::Value> =
        queue.settings.as_ref().and_then(|json| serde_json::from_str(json.get()).ok()).unwrap_or_default();
    let short = |(name, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::Bool(_) => name.clone(),
        serde_json::Value::Object(rate) => format!(
            "{name} {}/{}:{}",
            rate["limit"],
            rate["period"].as_str().unwrap_or_default(),
            rate["burst"]
        ),
        serde_json::Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    };
    settings.iter().map(short).collect::<Vec<_>>().join(", ")
}
