//! `ambo replay-check`: recorded runs against the code of a program, before it works on them.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};

use ambo::replay_check::Difference;
use anyhow::Result;
use serde::Deserialize;
use serde_json::json;

use crate::args::{ReplayCheck, State};
use crate::command::run::act::count;
use crate::database::Database;
use crate::failure::Failure;
use crate::output::{Column, Output, Table};

/// The variable that tells a worker to check, and what the line begins with on which it answers.
const VARIABLE: &str = "AMBO_REPLAY_CHECK";

/// Differences that are shown in full.
const SHOWN: usize = 10;

/// What the program answers.
#[derive(Debug, Deserialize)]
struct Report {
    checked: usize,
    /// How many runs there are besides, of workflows that it does not have.
    #[serde(default)]
    unknown: BTreeMap<String, usize>,
    differences: Vec<Difference>,
}

const COLUMNS: &[Column] =
    &[Column::whole("RUN"), Column::text("WORKFLOW"), Column::text("POSITION"), Column::text("DIFFERENCE")];

/// `ambo replay-check`
pub(crate) async fn replay_check(
    wanted: &ReplayCheck,
    database: &Database,
    output: Output,
) -> Result<ExitCode> {
    let report = ask(wanted, database).await?;
    let found = report.differences.len();
    if output.is_json {
        let Report { checked, unknown, differences } = &report;
        output.json(&json!({ "checked": checked, "unknown": unknown, "differences": differences }))?;
    } else if found > 0 {
        let mut table = Table::new(COLUMNS);
        for difference in &report.differences {
            table.row([
                difference.run.to_string().into(),
                (&difference.workflow).into(),
                difference.position.as_deref().unwrap_or("end").into(),
                (&difference.text).into(),
            ]);
        }
        output.table(&table)?;
        for difference in report.differences.iter().take(SHOWN) {
            output.say(&difference.to_string());
        }
        if found > SHOWN {
            output.say(&format!("and {} more: `--json` shows all in full", found - SHOWN));
        }
    }
    for (workflow, runs) in &report.unknown {
        let runs = count(*runs);
        output.say(&format!("not checked: {runs} of {workflow:?}, which this program does not register"));
    }
    if report.checked == 0 && !report.unknown.is_empty() {
        let hint = "name the program whose worker runs them, or with --workflow one that this program has";
        return Err(Failure::failed("nothing was checked: the program has no such workflow", hint).into());
    }
    if report.checked == 0 {
        return Err(Failure::failed(
            "nothing was checked: no such run is recorded",
            "`ambo run list` shows the runs, `ambo workflow list` the names of workflows",
        )
        .into());
    }
    let unread = report.differences.iter().filter(|difference| difference.is_unread).count();
    let (checked, differing) = (report.checked - unread, found - unread);
    if unread > 0 {
        let unread = count(unread);
        output.say(&format!(
            "{unread} not checked: the program cannot read what is recorded; give it the keys and the object store"
        ));
    }
    let runs = count(checked);
    if differing > 0 {
        output.say(&format!(
            "{runs} checked: the code differs from {differing}; change it under `cx.patched`, or pin versions"
        ));
    } else if checked > 0 {
        output.say(&format!("{runs} checked: the code does what they recorded"));
    }
    Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the program, which checks instead of working.
async fn ask(wanted: &ReplayCheck, database: &Database) -> Result<Report> {
    let Some((program, arguments)) = wanted.command.split_first() else {
        return Err(Failure::usage(
            "no program is named",
            "write it after `--`: ambo replay-check -- ./worker",
        )
        .into());
    };
    let state = wanted.state.and_then(State::name);
    let ask = json!({ "workflow": wanted.workflow, "state": state, "limit": wanted.limit });
    let ran = tokio::process::Command::new(program)
        .args(arguments)
        .env("DATABASE_URL", database.url())
        .env(VARIABLE, ask.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            Failure::failed(format!("cannot run `{program}`: {error}"), "is it installed and spelt so?")
        })?;
    // Not `output`, which would keep to itself what the program says on stderr.
    let ran = ran.wait_with_output().await?;
    let said = String::from_utf8_lossy(&ran.stdout);
    let answer = said.lines().find_map(|line| line.strip_prefix(VARIABLE));
    answer.and_then(|answer| serde_json::from_str(answer).ok()).ok_or_else(|| {
        Failure::failed(
            format!("`{program}` ended without a check ({})", ran.status),
            "name the program that starts the worker, built with this version of the library",
        )
        .into()
    })
}
