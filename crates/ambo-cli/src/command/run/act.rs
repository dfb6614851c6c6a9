//! `ambo run cancel`, `retry`, `rewind` and `fork`: on runs that are named, or on those that are found, after they were shown.

use std::collections::BTreeMap;

use ambo::admin::{Act, Acted, Filter};
use ambo::{Cancel, Client, RunId};
use anyhow::Result;
use serde_json::json;

use super::{filter, table};
use crate::args::{RunCancel, Targets};
use crate::failure::Failure;
use crate::output::Output;

/// Runs found at a time.
const PAGE: u32 = 1000;
/// Of the runs that were found, so many are shown.
const SHOWN: usize = 10;

/// `ambo run cancel`
pub(crate) async fn cancel(wanted: &RunCancel, client: &Client, output: Output) -> Result<()> {
    let mut cancel = Cancel::new(wanted.reason.clone());
    if let Some(grace) = wanted.grace {
        cancel = cancel.grace(grace);
    }
    act(&Act::Cancel(cancel), &wanted.targets, client, output).await
}

/// The others.
pub(crate) async fn act(act: &Act, targets: &Targets, client: &Client, output: Output) -> Result<()> {
    let wanted = filter(&targets.selection);
    let named = !targets.ids.is_empty();
    if named == is_selective(&wanted) {
        return Err(Failure::usage(
            if named { "both ids and options that find runs were given" } else { "no run was named" },
            "give ids, or options such as --workflow and --state",
        )
        .into());
    }
    let runs = if named {
        targets.ids.clone()
    } else {
        let Some(found) = find(act, wanted, targets.yes, client, output).await? else { return Ok(()) };
        found
    };
    let acted = client.act(act, &runs).await?;
    if let ([only], true) = (&acted[..], named) {
        return one(act, only, output);
    }
    many(act, &acted, output)
}

fn is_selective(filter: &Filter) -> bool {
    let Filter { workflow, queue, group, state, since, until, attributes, parent, text, .. } = filter;
    workflow.is_some()
        || queue.is_some()
        || group.is_some()
        || state.is_some()
        || since.is_some()
        || until.is_some()
        || attributes.is_some()
        || parent.is_some()
        || text.is_some()
}

/// The runs that the options find; `None` if they were only to be shown.
async fn find(
    act: &Act,
    mut wanted: Filter,
    yes: bool,
    client: &Client,
    output: Output,
) -> Result<Option<Vec<RunId>>> {
    let parent = wanted.parent;
    wanted.limit = PAGE;
    let (mut found, mut first) = (Vec::new(), Vec::new());
    loop {
        let mut page = client.list_runs(&wanted).await?;
        wanted.before = page.last().map(|run| run.id);
        let is_last = page.len() < PAGE as usize;
        if wanted.state.is_none() {
            page.retain(|run| concerns(act, &run.state));
        }
        found.extend(page.iter().map(|run| run.id));
        if output.is_json && !yes {
            page.iter().try_for_each(|run| output.json(run))?;
        }
        first.extend(page.into_iter().take(SHOWN.saturating_sub(first.len())));
        if is_last {
            break;
        }
    }
    if found.is_empty() {
        output.say("no such runs");
        return Ok(None);
    }
    if yes {
        return Ok(Some(found));
    }
    if !output.is_json {
        table(&first, parent, client, output).await?;
        if found.len() > first.len() {
            output.say(&format!("... and {} more", found.len() - first.len()));
        }
    }
    output.say(&format!("nothing was done; add --yes to {} {}", verb(act), count(found.len())));
    Ok(None)
}

/// Whether runs in this state are meant where none was named: of the others each would be refused.
fn concerns(act: &Act, state: &str) -> bool {
    match act {
        Act::Cancel(_) => matches!(state, "ready" | "delayed" | "running" | "parked"),
        Act::Retry => matches!(state, "failed" | "cancelled" | "dead"),
        Act::Redrive { .. } | Act::PurgeDead => state == "dead",
        _ => true,
    }
}

fn one(act: &Act, acted: &Acted, output: Output) -> Result<()> {
    let Acted { id, answer, refused } = acted;
    if refused.is_some() {
        let page = answer.split(':').next().unwrap_or_default();
        let advice = if page == "AMBO033" {
            format!(
                "`ambo run list` shows the runs; history older than the retention is dropped (docs/errors/{page}.md)"
            )
        } else {
            format!("`ambo run show {id}` says how it stands (docs/errors/{page}.md)")
        };
        return Err(Failure::failed(answer.clone(), advice).into());
    }
    let sentence = match (act, answer.as_str()) {
        (Act::Cancel(_), "cancelled") => "cancelled",
        (Act::Cancel(_), "requested") => {
            "asked to end; it does at its next durable call, or at once where it may"
        }
        (Act::Cancel(_), state) => {
            let (what, advice) = if state == "dead" {
                let advice = format!(
                    "what it did stands: `ambo run show {id}` shows it, docs/guide/sagas.md how to have it undone"
                );
                (format!("run {id} has died already: it does nothing that could be cancelled"), advice)
            } else {
                let what = format!("run {id} has {state} already: nothing is left to cancel");
                (what, format!("`ambo run show {id}` shows how"))
            };
            return Err(Failure::failed(what, advice).into());
        }
        (Act::Retry | Act::Rewind(_), "delayed") => "begins when its members have ended",
        (Act::Redrive { .. }, "delayed") => "will run again, in its turn",
        (Act::PurgeDead, _) => "gone",
        (Act::Rewind(_), _) => "ready to run again, from there",
        (Act::Fork(_), _) => "forked",
        _ => "ready to run again, from its checkpoints",
    };
    output.say(&format!("run {id}: {sentence}"));
    if output.is_json {
        output.json(&said(act, acted))?;
    } else if let Act::Fork(_) = act {
        output.line(answer)?;
    }
    Ok(())
}

fn said(act: &Act, acted: &Acted) -> serde_json::Value {
    let Acted { id, answer, refused } = acted;
    match act {
        _ if refused.is_some() => json!({ "id": id, "refused": refused, "reason": answer }),
        Act::Cancel(_) => json!({ "id": id, "result": answer }),
        Act::Fork(_) => json!({ "id": id, "fork": answer }),
        _ => json!({ "id": id, "state": answer }),
    }
}

fn many(act: &Act, acted: &[Acted], output: Output) -> Result<()> {
    if output.is_json {
        acted.iter().try_for_each(|acted| output.json(&said(act, acted)))?;
    } else if let Act::Fork(_) = act {
        let forks = acted.iter().filter(|acted| acted.refused.is_none());
        forks.into_iter().try_for_each(|acted| output.line(&acted.answer))?;
    }
    let refused = acted.iter().filter(|acted| acted.refused.is_some());
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for refusal in refused.clone() {
        *reasons.entry(&refusal.answer).or_default() += 1;
    }
    for (reason, times) in reasons.iter().take(SHOWN) {
        output.say(&format!("refused, {}: {reason}", count(*times)));
    }
    let refused = refused.count();
    output.say(&format!("done: {} of {}", acted.len() - refused, count(acted.len())));
    if refused == acted.len() {
        return Err(Failure::failed("every one of them refused", "see the reasons above").into());
    }
    Ok(())
}

fn verb(act: &Act) -> &'static str {
    match act {
        Act::Cancel(_) => "cancel",
        Act::Rewind(_) => "rewind",
        Act::Fork(_) => "fork",
        Act::Redrive { .. } => "redrive",
        Act::PurgeDead => "purge",
        _ => "retry",
    }
}

pub(in crate::command) fn count(runs: usize) -> String {
    if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") }
}
