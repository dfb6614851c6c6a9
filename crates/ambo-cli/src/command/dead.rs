//! `ambo dead`: runs that ended as dead.

use ambo::Client;
use ambo::admin::{Act, Filter};
use anyhow::Result;

use super::run::{act, marked};
use crate::args::{Dead, DeadList, Marks};
use crate::database::Database;
use crate::output::{Cell, Column, Output, Table, age};

const LETTERS: &[Column] = &[
    Column::whole("RUN"),
    Column::text("WORKFLOW"),
    Column::text("GROUP").if_any().giving_way(),
    Column::whole("CODE"),
    Column::number("DIED").giving_way(),
    Column::number("ATTEMPTS").giving_way(),
    Column::number("RETRIES").giving_way(),
    Column::message("MESSAGE"),
];
const ERRORS: &[Column] = &[
    Column::number("RUNS"),
    Column::text("WORKFLOW"),
    Column::text("QUEUE"),
    Column::whole("CODE"),
    Column::number("LAST").giving_way(),
    Column::message("MESSAGE"),
];

/// `ambo dead ...`
pub(crate) async fn dead(wanted: Dead, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    match wanted {
        Dead::List(wanted) => list(&wanted, &client, output).await,
        Dead::Errors(wanted) => errors(&wanted.marks, &client, output).await,
        Dead::Redrive(wanted) => {
            let redrive = Act::Redrive { queue: wanted.to_queue, per_second: wanted.rate };
            act::act(&redrive, &wanted.targets.into(), &client, output).await
        }
        Dead::Purge(targets) => act::act(&Act::PurgeDead, &targets.into(), &client, output).await,
    }
}

async fn list(wanted: &DeadList, client: &Client, output: Output) -> Result<()> {
    let filter = Filter { before: wanted.before, limit: wanted.limit, ..marked(&wanted.marks) };
    let letters = client.dead_letters(&filter).await?;
    if output.is_json {
        return Ok(letters.iter().try_for_each(|letter| output.json(letter))?);
    }
    if letters.is_empty() {
        output.say("no dead");
        return Ok(());
    }
    let now = client.now().await?;
    let mut table = Table::new(LETTERS);
    for letter in &letters {
        table.row([
            letter.id.to_string().into(),
            (&letter.workflow).into(),
            cell(letter.group.as_deref()),
            cell(letter.code.as_deref()),
            age(now, letter.died_at).into(),
            letter.attempts.to_string().into(),
            letter.tries.to_string().into(),
            cell(letter.message.as_deref()),
        ]);
    }
    Ok(output.table(&table)?)
}

async fn errors(marks: &Marks, client: &Client, output: Output) -> Result<()> {
    let errors = client.dead_errors(&marked(marks)).await?;
    if output.is_json {
        return Ok(errors.iter().try_for_each(|error| output.json(error))?);
    }
    if errors.is_empty() {
        output.say("no dead");
        return Ok(());
    }
    let now = client.now().await?;
    let mut table = Table::new(ERRORS);
    for error in &errors {
        table.row([
            error.runs.to_string().into(),
            (&error.workflow).into(),
            (&error.queue).into(),
            cell(error.code.as_deref()),
            age(now, error.last_at).into(),
            cell(error.message.as_deref()),
        ]);
    }
    output.table(&table)?;
    if errors.iter().any(|error| error.is_capped) {
        output.say("there are more than the newest 100000, which were looked at");
    }
    Ok(())
}

fn cell(text: Option<&str>) -> Cell {
    text.unwrap_or_default().to_owned().into()
}
