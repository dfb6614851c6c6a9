//! `ambo run show`: one run on a page. Its payloads are cut to a line; whole they are in `--json`.

use ambo::admin::{RunDetail, StepSummary};
use ambo::{Client, RunId};
use anyhow::Result;
use serde_json::value::RawValue;

use crate::output::{
    BAD, Cell, Column, FAINT, HEAD, Output, Table, WARN, clean, cut, moment, one_line, state_style, styled,
};

const STEPS: &[Column] = &[
    Column::whole("POSITION"),
    Column::text("STEP"),
    Column::number("ATTEMPT"),
    Column::number("TOOK"),
    Column::text("RESULT"),
];

/// The width of the names of fields.
const NAME: usize = 10;

/// `ambo run show ID`
pub(crate) async fn show(id: RunId, client: &Client, output: Output) -> Result<()> {
    let run = client.show_run(id).await?;
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
            None => step.output.as_deref().map(|json| one_line(json.get())).unwrap_or_default().into(),
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
    field("attempt", &summary.attempt.to_string())?;
    if let Some(worker) = summary.worker {
        field("worker", &worker.to_string())?;
    }
    field("enqueued", &moment(now, summary.enqueued_at))?;
    if let Some(ended_at) = summary.ended_at {
        field("ended", &moment(now, ended_at))?;
    }
    if let Some(input) = &run.input {
        field("input", &one_line(input.get()))?;
    }
    if let Some(result) = &run.output {
        field("output", &one_line(result.get()))?;
    }
    if let Some(error) = &summary.error {
        // Not cut: it is what one came for.
        plain("error", &message(error), BAD)?;
        let code = serde_json::from_str::<ambo::Error>(error.get()).map(|error| error.code());
        if let Ok(code) = code.as_ref().copied() {
            plain("", &format!("docs/errors/{code}.md"), FAINT)?;
        }
    }
    Ok(())
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
