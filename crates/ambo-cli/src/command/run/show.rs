//! `ambo run show`: one run on a page. Its payloads are shown only when asked for; then they are cut to a line, and whole in
//! `--json`.

use ambo::Client;
use ambo::admin::{RunDetail, StepSummary};
use anyhow::Result;
use serde_json::value::RawValue;

use crate::args::RunShow;
use crate::output::{
    BAD, Cell, Column, FAINT, HEAD, Output, Table, WARN, age, clean, cut, moment, one_line, state_style,
    styled,
};

const STEPS: &[Column] = &[
    Column::whole("POSITION"),
    Column::text("STEP"),
    Column::number("ATTEMPT"),
    Column::number("TOOK"),
    Column::text("RESULT"),
];

/// What stands in place of a payload that is not shown; such keys are Ambo's own.
const REDACTED: &str = "ambo:redacted";

/// The width of the names of fields.
const NAME: usize = 10;

/// `ambo run show ID`
pub(crate) async fn show(wanted: &RunShow, client: &Client, output: Output) -> Result<()> {
    let mut run = client.show_run(wanted.id).await?;
    if !wanted.payload {
        redact(&mut run);
    }
    if output.is_json {
        return Ok(output.json(&run)?);
    }
    let now = client.now().await?;
    header(&run, now, output)?;
    if run.steps.is_empty() {
        output.say("no step is recorded");
        return Ok(());
    }
    let mut table = Table::new(STEPS);
    for step in &run.steps {
        let result = match &step.error {
            Some(error) => Cell::styled(message(error), BAD),
            None => step.output.as_deref().map(legible).unwrap_or_default().into(),
        };
        table.row([
            (&step.position).into(),
            (&step.name).into(),
            step.attempt.to_string().into(),
            took(step).into(),
            result,
        ]);
    }
    output.line("")?;
    Ok(output.table(&table)?)
}

/// Calls of which nothing is recorded that somebody gave.
const PLAIN: [&str; 11] = [
    "ambo:now",
    "ambo:random",
    "ambo:uuid",
    "ambo:sleep",
    "ambo:until",
    "ambo:race",
    "ambo:child",
    "ambo:event",
    "ambo:attribute",
    "ambo:patch",
    "ambo:retry",
];

/// Leaves of each payload only how large it is.
fn redact(run: &mut RunDetail) {
    let steps = run.steps.iter_mut();
    let outputs = steps.flat_map(|step| {
        redact_error(&mut step.error);
        // Of what is Ambo's own, times, numbers and ids are no payloads.
        let kind = step.name.split_once(' ').map_or(&*step.name, |(kind, _)| kind);
        (!PLAIN.contains(&kind)).then_some(&mut step.output)
    });
    outputs.chain([&mut run.input, &mut run.output]).for_each(redact_payload);
    redact_error(&mut run.summary.error);
}

/// Leaves only how large it is.
pub(super) fn redact_payload(payload: &mut Option<Box<RawValue>>) {
    if let Some(json) = payload.take_if(|json| json.get() != "null") {
        let redacted = serde_json::json!({ REDACTED: { "bytes": json.get().len() } });
        *payload = RawValue::from_string(redacted.to_string()).ok();
    }
}

/// Leaves out the application's details of an error.
pub(super) fn redact_error(error: &mut Option<Box<RawValue>>) {
    let Some(json) = error else { return };
    let Ok(mut fields) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json.get())
    else {
        return;
    };
    if fields.remove("application").is_some() {
        *error = serde_json::to_string(&fields).ok().and_then(|fields| RawValue::from_string(fields).ok());
    }
}

fn header(run: &RunDetail, now: jiff::Timestamp, output: Output) -> Result<()> {
    let summary = &run.summary;
    let field = |name: &str, text: &str| {
        let text = cut(&clean(text), output.width.saturating_sub(NAME + 2));
        output.line(&format!("{}  {text}", styled(HEAD, &format!("{name:<NAME$}"))))
    };
    let plain = |name: &str, text: &str, style| {
        output.line(&format!("{}  {}", styled(HEAD, &format!("{name:<NAME$}")), styled(style, text)))
    };
    field("run", &summary.id.to_string())?;
    field("workflow", &summary.workflow)?;
    field("queue", &summary.queue)?;
    if let Some(group) = &summary.group {
        field("group", group)?;
    }
    if summary.priority != 0 {
        field("priority", &summary.priority.to_string())?;
    }
    if let Some(key) = &summary.key {
        field("key", key)?;
    }
    if let Some(parent) = &summary.parent {
        field("parent", &parent.to_string())?;
    }
    if let Some(attributes) = &summary.attributes {
        field("attributes", &one_line(attributes.get()))?;
    }
    plain("state", &summary.state, state_style(&summary.state))?;
    if run.cancel_requested {
        plain("", "asked to end; it does at its next durable call", WARN)?;
    }
    if let Some(by) = run.undo_by {
        plain("", &format!("it has ended by {}, undone or not", moment(now, by)), WARN)?;
    }
    field("attempt", &super::attempts(&summary.state, summary.attempt))?;
    if let Some(worker) = summary.worker {
        field("worker", &worker.to_string())?;
    }
    field("enqueued", &moment(now, summary.enqueued_at))?;
    if let Some(ended_at) = summary.ended_at {
        field("ended", &moment(now, ended_at))?;
    }
    for (n, waiting) in run.signals.iter().enumerate() {
        let since = age(now, waiting.oldest_at);
        let text = format!("{} under {:?}, the oldest since {since}", waiting.count, waiting.topic);
        field(if n == 0 { "signals" } else { "" }, &text)?;
    }
    if let Some(input) = &run.input {
        field("input", &legible(input))?;
    }
    if let Some(result) = &run.output {
        field("output", &legible(result))?;
    }
    if let Some(error) = &summary.error {
        // Not cut: it is what one came for.
        for (n, line) in output.message(&message(error), NAME + 2).iter().enumerate() {
            plain(if n == 0 { "error" } else { "" }, line, BAD)?;
        }
        let code = serde_json::from_str::<ambo::Error>(error.get()).map(|error| error.code());
        if let Ok(code) = code.as_ref().copied() {
            plain("", &format!("docs/errors/{code}.md"), FAINT)?;
        }
    }
    Ok(())
}

/// A payload on a line, or what stands in its place.
pub(super) fn legible(json: &RawValue) -> String {
    let redacted = serde_json::from_str::<serde_json::Value>(json.get()).ok();
    match redacted.as_ref().and_then(|json| json.get(REDACTED)?.get("bytes")) {
        Some(bytes) => format!("({bytes} bytes; --payload shows them)"),
        None => one_line(json.get()),
    }
}

/// A recorded error as it reads: its code and message.
fn message(error: &RawValue) -> String {
    match serde_json::from_str::<ambo::Error>(error.get()) {
        Ok(error) => clean(&error.to_string()),
        Err(_) => one_line(error.get()),
    }
}

fn took(step: &StepSummary) -> String {
    match step.elapsed_ms {
        ms @ ..10_000 => format!("{ms}ms"),
        ms @ 10_000..600_000 => format!("{}s", ms / 1_000),
        ms => format!("{}m", ms / 60_000),
    }
}
