//! `ambo workflow`: what workers said of their workflows when they registered.

use ambo::Client;
use ambo::admin::{Filter, WorkflowSummary};
use anyhow::Result;

use crate::args::{Workflow, WorkflowShow};
use crate::database::Database;
use crate::failure::Failure;
use crate::output::{Cell, Column, HEAD, Output, Table, WARN, clean, moment, styled};

const COLUMNS: &[Column] = &[
    Column::text("NAME"),
    Column::number("WORKERS"),
    Column::text("VERSIONS"),
    Column::number("NODES"),
    Column::text("INPUT"),
    Column::text("OUTPUT"),
];

/// The width of the names of fields.
const NAME: usize = 10;

/// `ambo workflow ...`
pub(crate) async fn workflow(wanted: &Workflow, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    match wanted {
        Workflow::List => list(&client, output).await,
        Workflow::Show(wanted) => show(wanted, &client, output).await,
    }
}

async fn list(client: &Client, output: Output) -> Result<()> {
    let workflows = client.list_workflows().await?;
    if output.is_json {
        return Ok(workflows.iter().try_for_each(|workflow| output.json(workflow))?);
    }
    if workflows.is_empty() {
        output.say("no workflow is registered: start a program that has a worker");
        return Ok(());
    }
    let mut table = Table::new(COLUMNS);
    for workflow in &workflows {
        let workers = workflow.workers.to_string();
        table.row([
            (&workflow.name).into(),
            if workflow.workers == 0 { Cell::styled(workers, WARN) } else { workers.into() },
            workflow.versions.join(",").into(),
            workflow.graph.as_ref().map(|graph| graph.nodes.len().to_string()).unwrap_or_default().into(),
            (&workflow.input).into(),
            (&workflow.output).into(),
        ]);
    }
    Ok(output.table(&table)?)
}

async fn show(wanted: &WorkflowShow, client: &Client, output: Output) -> Result<()> {
    let Some(workflow) = client.show_workflow(&wanted.name).await? else {
        return Err(Failure::failed(
            format!("no worker has registered a workflow {:?}", wanted.name),
            "ambo workflow list shows those that are known",
        )
        .into());
    };
    if output.is_json {
        return Ok(output.json(&workflow)?);
    }
    if wanted.mermaid {
        let Some(graph) = &workflow.graph else {
            return Err(Failure::failed(
                format!("{} is not declared as a graph", workflow.name),
                "what it does is in its code; ambo workflow show prints what is known",
            )
            .into());
        };
        return Ok(graph.mermaid().lines().try_for_each(|line| output.line(line))?);
    }
    header(&workflow, client.now().await?, output)?;
    output.line("")?;
    match &workflow.graph {
        Some(graph) => Ok(graph.text().lines().try_for_each(|line| output.line(&clean(line)))?),
        None => calls(&workflow, client, output).await,
    }
}

fn header(workflow: &WorkflowSummary, now: jiff::Timestamp, output: Output) -> Result<()> {
    let field = |name: &str, text: &str| {
        output.line(&format!("{}  {}", styled(HEAD, &format!("{name:<NAME$}")), clean(text)))
    };
    field("workflow", &workflow.name)?;
    field("input", &workflow.input)?;
    field("output", &workflow.output)?;
    if workflow.tries > 1 {
        field("tries", &workflow.tries.to_string())?;
    }
    let versions = match workflow.versions.join(", ") {
        none if none.is_empty() => String::new(),
        versions => format!(", version {versions}"),
    };
    field("workers", &format!("{}{versions}", workflow.workers))?;
    Ok(field("declared", &moment(now, workflow.declared_at))?)
}

/// Of a workflow that is code, what is known is what its runs have recorded: here the newest one.
async fn calls(workflow: &WorkflowSummary, client: &Client, output: Output) -> Result<()> {
    let newest = Filter { workflow: Some(workflow.name.clone()), limit: 1, ..Filter::default() };
    let Some(run) = client.list_runs(&newest).await?.into_iter().next() else {
        output.say("it is code, not a graph, and has no run to tell of its calls");
        return Ok(());
    };
    output.say(&format!(
        "it is code, not a graph; these are the calls of its newest run, {} ({})",
        run.id, run.state
    ));
    for step in client.show_run(run.id).await?.steps {
        output.line(&clean(&format!("{:<NAME$}  {}", step.position, step.name)))?;
    }
    Ok(())
}
