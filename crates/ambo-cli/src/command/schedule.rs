//! `ambo schedule`: what comes again, and when.

use ambo::{Client, Enqueue, Overlap, Schedule, ScheduleSummary, Untyped};
use anyhow::Result;
use serde_json::json;

use crate::args::{self, ScheduleBackfill, ScheduleSet};
use crate::command::run::attributes;
use crate::database::Database;
use crate::output::{BAD, Cell, Column, Output, Table, WARN, age, clean};

const COLUMNS: &[Column] = &[
    Column::text("NAME"),
    Column::text("WORKFLOW"),
    Column::text("TIMES"),
    Column::text("NEXT"),
    Column::number("SKIPPED"),
];

/// `ambo schedule ...`
pub(crate) async fn schedule(wanted: args::Schedule, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    match wanted {
        args::Schedule::List => list(&client, output).await,
        args::Schedule::Set(wanted) => set(wanted, &client, output).await,
        args::Schedule::Pause(schedule) => pause(&schedule.name, true, &client, output).await,
        args::Schedule::Resume(schedule) => pause(&schedule.name, false, &client, output).await,
        args::Schedule::Trigger(schedule) => {
            let run = client.trigger_schedule(&schedule.name).await?;
            if output.is_json {
                return Ok(output.json(&json!({ "name": schedule.name, "run": run }))?);
            }
            Ok(output.line(&run.to_string())?)
        }
        args::Schedule::Backfill(wanted) => backfill(&wanted, &client, output).await,
        args::Schedule::Delete(schedule) => {
            client.delete_schedule(&schedule.name).await?;
            said(
                &schedule.name,
                "deleted; its runs stay",
                json!({ "name": schedule.name, "deleted": true }),
                output,
            )
        }
    }
}

fn said(name: &str, sentence: &str, json: serde_json::Value, output: Output) -> Result<()> {
    output.say(&format!("schedule {name}: {sentence}"));
    if output.is_json {
        output.json(&json)?;
    }
    Ok(())
}

async fn set(wanted: ScheduleSet, client: &Client, output: Output) -> Result<()> {
    let ScheduleSet { name, workflow, input, cron, every, timezone, overlap, jitter, catch_up, .. } = wanted;
    let mut run = Enqueue::<Untyped>::named(workflow, &input)
        .queue(wanted.queue)
        .priority(wanted.priority.into())
        .attempts(wanted.attempts);
    if let Some(attributes) = attributes(&wanted.attribute) {
        run = run.attributes(&attributes);
    }
    if let Some(timeout) = wanted.timeout {
        run = run.timeout(timeout);
    }
    let mut schedule = match (cron, every) {
        (Some(pattern), _) => Schedule::cron(&name, pattern, run),
        (None, every) => Schedule::every(&name, every.unwrap_or_default(), run),
    };
    if let Some(timezone) = timezone {
        schedule = schedule.timezone(timezone);
    }
    let overlap = match overlap {
        args::Overlap::Skip => Overlap::Skip,
        args::Overlap::Queue => Overlap::Queue,
        args::Overlap::Cancel => Overlap::Cancel,
        args::Overlap::Allow => Overlap::Allow,
    };
    let is_new = schedule.overlap(overlap).jitter(jitter).catch_up(catch_up).set(client).await?;
    let sentence = if is_new { "created" } else { "changed" };
    said(&name, sentence, json!({ "name": name, "is_new": is_new }), output)
}

async fn pause(name: &str, paused: bool, client: &Client, output: Output) -> Result<()> {
    client.pause_schedule(name, paused).await?;
    let sentence = if paused { "paused" } else { "goes on" };
    said(name, sentence, json!({ "name": name, "paused": paused }), output)
}

async fn backfill(wanted: &ScheduleBackfill, client: &Client, output: Output) -> Result<()> {
    let to = match wanted.to {
        Some(to) => to,
        None => client.now().await?,
    };
    let runs = client.backfill_schedule(&wanted.name, wanted.from..to).await?;
    for run in &runs {
        if output.is_json {
            output.json(&json!({ "name": wanted.name, "run": run }))?;
        } else {
            output.line(&run.to_string())?;
        }
    }
    output.say(&format!("schedule {}: {} ticks in this time, each with its run", wanted.name, runs.len()));
    Ok(())
}

async fn list(client: &Client, output: Output) -> Result<()> {
    let schedules = client.list_schedules().await?;
    if output.is_json {
        return Ok(schedules.iter().try_for_each(|schedule| output.json(schedule))?);
    }
    if schedules.is_empty() {
        output.say("no schedules");
        return Ok(());
    }
    let now = client.now().await?;
    let mut table = Table::new(COLUMNS);
    for schedule in &schedules {
        let ScheduleSummary { name, workflow, times, timezone, skipped, .. } = schedule;
        let zone = timezone.as_deref().filter(|zone| *zone != "UTC").map(|zone| format!(" {zone}"));
        let next = match (&schedule.error, schedule.paused) {
            (Some(_), true) => Cell::styled("stopped", BAD),
            (Some(_), false) => Cell::styled("failing", BAD),
            (None, true) => Cell::styled("paused", WARN),
            (None, _) if schedule.next_at == jiff::Timestamp::UNIX_EPOCH => "not reckoned yet".into(),
            (None, _) if schedule.next_at < now => {
                Cell::styled(format!("{} overdue", age(now, schedule.next_at)), WARN)
            }
            (None, _) => age(now, schedule.next_at).into(),
        };
        table.row([
            name.into(),
            workflow.into(),
            format!("{times}{}", zone.unwrap_or_default()).into(),
            next,
            skipped.to_string().into(),
        ]);
    }
    output.table(&table)?;
    for schedule in &schedules {
        if let Some(error) = &schedule.error {
            output.say(&clean(&format!("schedule {}: {error}", schedule.name)));
        }
    }
    Ok(())
}
