//! `ambo doctor`: asks the database how it is, and prints what was found and what to do.

mod check;
pub(crate) mod figures;
pub(crate) mod held;

use std::process::ExitCode;

use ambo::Client;
use ambo::admin::VitalSign;
use anyhow::Result;
use serde::Serialize;

use crate::database::Database;
use crate::failure::Failure;
use crate::output::{BAD, FAINT, GOOD, Output, WARN, clean, styled, wrap};
use check::{Check, Status};
use figures::Figures;

/// The whole of it, as JSON shows it.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of all checks.
    status: Status,
    schema: String,
    checks: Vec<Check>,
    /// What the checks are drawn from.
    figures: Vec<VitalSign>,
}

/// `ambo doctor`
pub(crate) async fn doctor(database: &Database, output: Output) -> Result<ExitCode> {
    let mut checks = Vec::new();
    let figures = examine(database, &mut checks).await;
    let status = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let report = Report { status, schema: database.schema().to_owned(), checks, figures };
    if output.is_json {
        output.json(&report)?;
    } else {
        print(&report, output)?;
    }
    Ok(if status == Status::Bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Fills in the checks as far as the database lets us look.
async fn examine(database: &Database, checks: &mut Vec<Check>) -> Vec<VitalSign> {
    let client = match database.connect_unchecked().await {
        Ok(client) => client,
        Err(failure) => {
            checks.push(failed("connection", failure));
            return Vec::new();
        }
    };
    match client.schema_version().await {
        Ok(found) => checks.push(check::schema(found, Client::SCHEMA_VERSION, &database.migrate_command())),
        Err(error) => checks.push(failed("schema", database.explain(&error))),
    }
    if checks.iter().any(|check| check.status == Status::Bad && check.is_final) {
        return Vec::new();
    }
    match client.vital_signs().await {
        Ok(signs) => {
            checks
                .splice(0..0, [check::connection(&Figures::new(&signs)), check::pooler(client.is_pooled())]);
            checks.extend(check::all(&Figures::new(&signs)));
            match client.list_schedules().await {
                Ok(schedules) => checks.push(check::schedules(&schedules)),
                Err(error) => checks.push(failed("schedules", database.explain(&error))),
            }
            signs
        }
        Err(error) => {
            checks.push(failed("figures", database.explain(&error)));
            Vec::new()
        }
    }
}

fn failed(name: &'static str, failure: Failure) -> Check {
    Check { name, status: Status::Bad, message: failure.message, advice: failure.advice, is_final: true }
}

fn print(report: &Report, output: Output) -> Result<()> {
    let names = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let indent = 4 + 2 + names + 2;
    let room = output.width.saturating_sub(indent).max(30);
    for check in &report.checks {
        let style = match check.status {
            Status::Ok => GOOD,
            Status::Warn => WARN,
            Status::Bad => BAD,
        };
        let head =
            format!("{}  {:<names$}  ", styled(style, &format!("{:<4}", check.status.name())), check.name);
        for (number, line) in wrap(&clean(&check.message), room).iter().enumerate() {
            let head = if number == 0 { head.clone() } else { " ".repeat(indent) };
            output.line(&format!("{head}{line}"))?;
        }
        for line in check.advice.iter().flat_map(|advice| wrap(&clean(advice), room)) {
            output.line(&format!("{}{}", " ".repeat(indent), styled(FAINT, &line)))?;
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    output.say(&match (count(Status::Bad), count(Status::Warn)) {
        (0, 0) => "all is well".to_owned(),
        (0, warnings) => format!("nothing bad; {warnings} to look at"),
        (bad, 0) => format!("{bad} bad"),
        (bad, warnings) => format!("{bad} bad; {warnings} to look at"),
    });
    Ok(())
}
