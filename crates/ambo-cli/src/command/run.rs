//! `ambo run`: what was asked, how it stands, and what an operator may do about it.

pub(super) mod act;
mod show;

use std::io::Read as _;

use ambo::admin::{Act, Filter, RunSummary};
use ambo::{Client, Enqueue, RunId, SendSignal};
use anyhow::{Context as _, Result};
use serde_json::json;
use serde_json::value::RawValue;

use crate::args::{
    self, Input, Marks, Run, RunDropSignal, RunEnqueue, RunEvents, RunList, RunShow, RunSignal, RunUpdate,
    Selection, State,
};
use crate::database::Database;
use crate::failure::Failure;
use crate::output::{Cell, Column, Output, Table, age, clean, state_style};

const COLUMNS: &[Column] = &[
    Column::whole("ID"),
    Column::text("WORKFLOW"),
    Column::text("GROUP").if_any(),
    Column::whole("STATE"),
    Column::number("ATTEMPT"),
    Column::number("AGE"),
];

const SIGNALS: &[Column] = &[
    Column::number("NUMBER"),
    Column::text("TOPIC"),
    Column::text("KEY"),
    Column::number("AGE"),
    Column::text("PAYLOAD"),
];

const EVENTS: &[Column] = &[Column::text("KEY"), Column::number("VALUES")];

/// `ambo run ...`
pub(crate) async fn run(wanted: Run, database: &Database, output: Output) -> Result<()> {
    // What is wrong with the input is said before the database is asked.
    let input = match &wanted {
        Run::Enqueue(RunEnqueue { input: Input::Stdin, .. }) => Some(read_stdin()?),
        Run::Enqueue(RunEnqueue { input: Input::Json(json), .. }) => Some(json.clone()),
        _ => None,
    };
    let client = database.connect().await?;
    match wanted {
        Run::List(wanted) => list(&wanted, &client, output).await,
        Run::Show(wanted) => show::show(&wanted, &client, output).await,
        Run::Enqueue(wanted) => {
            let run = Enqueue::named(&wanted.workflow, &input);
            enqueue(options(run, &wanted), &client, output).await
        }
        Run::Cancel(wanted) => act::cancel(&wanted, &client, output).await,
        Run::Retry(targets) => act::act(&Act::Retry, &targets, &client, output).await,
        Run::Rewind(wanted) => act::act(&Act::Rewind(wanted.to), &wanted.targets, &client, output).await,
        Run::Fork(wanted) => act::act(&Act::Fork(wanted.at), &wanted.targets, &client, output).await,
        Run::Signal(wanted) => signal(&wanted, &client, output).await,
        Run::Signals(wanted) => signals(&wanted, &client, output).await,
        Run::DropSignal(wanted) => drop_signal(&wanted, &client, output).await,
        Run::Update(wanted) => {
            let RunUpdate { id, topic, payload, key } = &wanted;
            let answer: Box<RawValue> = client.update(*id, topic, payload, key).await?;
            Ok(output.line(answer.get())?)
        }
        Run::Events(wanted) => events(&wanted, &client, output).await,
        Run::Why(run) => why(run.id, &client, output).await,
    }
}

async fn why(run: RunId, client: &Client, output: Output) -> Result<()> {
    let reasons = client.why(run).await?;
    if output.is_json {
        return Ok(reasons.iter().try_for_each(|reason| output.json(reason))?);
    }
    for reason in &reasons {
        let in_the_way = match reason.run {
            Some(run) if !reason.explanation.contains(&run.to_string()) => format!(" (run {run})"),
            _ => String::new(),
        };
        let until = reason.until.map(|until| format!(", until {until:.0}")).unwrap_or_default();
        let text = format!("{}: {}{in_the_way}{until}", reason.reason, reason.explanation);
        for (n, line) in output.message(&clean(&text), 2).iter().enumerate() {
            output.line(&format!("{}{line}", if n == 0 { "" } else { "  " }))?;
        }
    }
    Ok(())
}

async fn signal(wanted: &RunSignal, client: &Client, output: Output) -> Result<()> {
    let mut signal = SendSignal::new(wanted.id, &wanted.topic, &wanted.payload);
    if let Some(key) = &wanted.key {
        signal = signal.key(key);
    }
    let is_new = signal.on(client).await?;
    let sentence = if is_new { "sent" } else { "its key was used for it before; nothing was sent" };
    output.say(&format!("signal to run {}: {sentence}", wanted.id));
    if output.is_json {
        output.json(&json!({ "id": wanted.id, "topic": wanted.topic, "is_new": is_new }))?;
    }
    Ok(())
}

async fn signals(wanted: &RunShow, client: &Client, output: Output) -> Result<()> {
    let mut signals = client.list_signals(wanted.id).await?;
    if !wanted.payload {
        signals.iter_mut().for_each(|signal| show::redact_payload(&mut signal.payload));
    }
    if output.is_json {
        return Ok(signals.iter().try_for_each(|signal| output.json(signal))?);
    }
    if signals.is_empty() {
        output.say(&format!("no signal waits for run {}", wanted.id));
        return Ok(());
    }
    let now = client.now().await?;
    let mut table = Table::new(SIGNALS);
    for signal in &signals {
        let key = signal.key.as_deref().unwrap_or_default();
        table.row([
            signal.number.to_string().into(),
            (&signal.topic).into(),
            if signal.is_update { format!("{key} (update)").into() } else { key.into() },
            age(now, signal.sent_at).into(),
            signal.payload.as_deref().map(show::legible).unwrap_or_default().into(),
        ]);
    }
    output.table(&table)?;
    if signals.len() == 1000 {
        output.say("there may be more: these are the oldest 1000");
    }
    Ok(())
}

async fn drop_signal(wanted: &RunDropSignal, client: &Client, output: Output) -> Result<()> {
    let RunDropSignal { id, number } = *wanted;
    let dropped = client.drop_signal(id, number).await?;
    if output.is_json {
        output.json(&json!({ "id": id, "number": number, "dropped": dropped }))?;
    }
    if !dropped {
        let message = format!("no signal {number} waits for run {id}");
        return Err(Failure::failed(message, "`ambo run signals ID` shows those that do").into());
    }
    output.say(&format!("signal {number} to run {id}: dropped"));
    Ok(())
}

async fn events(wanted: &RunEvents, client: &Client, output: Output) -> Result<()> {
    let Some(key) = &wanted.key else { return event_keys(wanted.id, client, output).await };
    let mut after = wanted.after;
    loop {
        let values: Vec<(u32, Box<RawValue>)> = if wanted.follow {
            client.next_events(wanted.id, key, after).await?
        } else {
            client.events(wanted.id, key, after).await?
        };
        let Some((last, _)) = values.last() else { break };
        after = *last;
        for (number, value) in &values {
            if output.is_json {
                output.json(&json!({ "number": number, "value": value }))?;
            } else {
                output.line(&format!("{number}  {value}"))?;
            }
        }
    }
    if after == wanted.after {
        output.say(&format!("run {} has published nothing under {key:?} after number {after}", wanted.id));
    }
    Ok(())
}

async fn event_keys(run: RunId, client: &Client, output: Output) -> Result<()> {
    let keys = client.event_keys(run).await?;
    if output.is_json {
        return Ok(keys
            .iter()
            .try_for_each(|(key, last)| output.json(&json!({ "key": key, "last": last })))?);
    }
    if keys.is_empty() {
        output.say(&format!("run {run} has published nothing"));
        return Ok(());
    }
    let mut table = Table::new(EVENTS);
    for (key, last) in &keys {
        table.row([key.into(), last.to_string().into()]);
    }
    Ok(output.table(&table)?)
}

async fn list(wanted: &RunList, client: &Client, output: Output) -> Result<()> {
    let filter = Filter { before: wanted.before, limit: wanted.limit, ..filter(&wanted.selection) };
    let mut runs = client.list_runs(&filter).await?;
    if output.is_json {
        runs.iter_mut().for_each(|run| show::redact_error(&mut run.error));
        return Ok(runs.iter().try_for_each(|run| output.json(run))?);
    }
    if runs.is_empty() {
        output.say("no such runs");
        return Ok(());
    }
    table(&runs, wanted.selection.marks.parent, client, output).await?;
    if let Some(last) = runs.last().filter(|_| u32::try_from(runs.len()) == Ok(wanted.limit)) {
        output.say(&format!("there may be more: --before {}", last.id));
    }
    Ok(())
}

pub(super) fn attributes(given: &[(String, serde_json::Value)]) -> Option<serde_json::Value> {
    (!given.is_empty()).then(|| given.iter().cloned().collect::<serde_json::Map<_, _>>().into())
}

fn filter(selection: &Selection) -> Filter {
    Filter { state: selection.state.and_then(State::name), ..marked(&selection.marks) }
}

/// Whatever state they are in.
pub(super) fn marked(marks: &Marks) -> Filter {
    Filter {
        workflow: marks.workflow.clone(),
        queue: marks.queue.clone(),
        group: marks.group.clone(),
        since: marks.since,
        until: marks.until,
        attributes: attributes(&marks.attribute),
        parent: marks.parent,
        text: marks.text.clone(),
        ..Filter::default()
    }
}

/// With a parent they are its children, and one that does not name it is detached.
async fn table(runs: &[RunSummary], parent: Option<RunId>, client: &Client, output: Output) -> Result<()> {
    let now = client.now().await?;
    let mut table = Table::new(COLUMNS);
    for run in runs {
        let RunSummary { id, workflow, group, state, attempt, enqueued_at, .. } = run;
        let detached = if parent.is_some() && run.parent.is_none() { " (detached)" } else { "" };
        table.row([
            id.to_string().into(),
            format!("{workflow}{detached}").into(),
            group.as_deref().unwrap_or_default().into(),
            Cell::styled(state, state_style(state)),
            attempts(state, *attempt).into(),
            age(now, *enqueued_at).into(),
        ]);
    }
    Ok(output.table(&table)?)
}

/// How often a run was claimed; of what is ready that is not told.
pub(crate) fn attempts(state: &str, attempt: i32) -> String {
    if state == "ready" { "-".to_owned() } else { attempt.to_string() }
}

fn read_stdin() -> Result<Box<serde_json::value::RawValue>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the input from stdin")?;
    let advice = "for a run without input, leave it out";
    args::json(&text).map_err(|wrong| Failure::usage(format!("the input on stdin is {wrong}"), advice).into())
}

fn options<W>(mut run: Enqueue<W>, wanted: &RunEnqueue) -> Enqueue<W> {
    run = run
        .queue(&wanted.queue)
        .priority(wanted.priority.into())
        .attempts(wanted.attempts)
        .weight(wanted.weight);
    if let Some(group) = &wanted.group {
        run = run.group(group);
    }
    if let Some(key) = &wanted.key {
        run = run.key(key);
    }
    if let Some(attributes) = attributes(&wanted.attribute) {
        run = run.attributes(&attributes);
    }
    if let Some(delay) = wanted.delay {
        run = run.delay(delay);
    }
    if let Some(timeout) = wanted.timeout {
        run = run.timeout(timeout);
    }
    wanted.terms.give(run)
}

async fn enqueue<W>(run: Enqueue<W>, client: &Client, output: Output) -> Result<()> {
    let enqueued = run.on(client).await?;
    if output.is_json {
        return Ok(output.json(&json!({ "id": enqueued.run, "is_new": enqueued.is_new }))?);
    }
    if !enqueued.is_new {
        output.say("the key names a run that is there already; nothing was enqueued");
    }
    Ok(output.line(&enqueued.run.to_string())?)
}
