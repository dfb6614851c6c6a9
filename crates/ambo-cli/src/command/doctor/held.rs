//! What somebody, or a failure, holds up: queues and groups of which nothing is claimed or which take nothing, and the dead.

use std::collections::BTreeMap;

use super::check::{Check, listed, ok, span, warn};
use super::figures::Figures;

/// How far the dead are counted: see `doctor.sql`.
const DEAD_RUNS_COUNTED: i64 = 10_000;
/// How many transactions are told that have rows locked: see `doctor.sql`.
const LOCK_HOLDERS_TOLD: usize = 20;

/// What `ambo migrate` says of roles that it could not make.
pub(crate) fn missing_roles(figures: &Figures<'_>) -> Option<(String, String)> {
    let roles: Vec<String> = figures.all("missing_role").map(str::to_owned).collect();
    let first = roles.first()?;
    Some((
        format!("not there, for the owner may not make roles: {}", roles.join(", ")),
        format!(
            "whoever may: create role {first} nologin, ...; then the owner: select grant_privileges() in Ambo's schema \
             (docs/guide/roles.md)"
        ),
    ))
}

pub(super) fn roles(figures: &Figures<'_>) -> Check {
    match missing_roles(figures) {
        None => ok("roles", "all four are there"),
        Some((message, advice)) => warn("roles", message, advice),
    }
}

pub(super) fn paused_queues(figures: &Figures<'_>) -> Check {
    let queues: Vec<String> = figures.all("paused_queue").map(str::to_owned).collect();
    if queues.is_empty() {
        return ok("paused_queues", "none");
    }
    warn(
        "paused_queues",
        format!("paused: {}", listed(&queues)),
        "`ambo queue resume NAME` lets their runs be claimed again",
    )
}

/// Groups of which a figure says something.
fn groups(figures: &Figures<'_>, name: &str) -> Vec<String> {
    (figures.all(name))
        .filter_map(|group| serde_json::from_str::<(String, String)>(group).ok())
        .map(|(queue, group)| format!("{group} (queue {queue})"))
        .collect()
}

pub(super) fn paused_groups(figures: &Figures<'_>) -> Check {
    let groups = groups(figures, "paused_group");
    if groups.is_empty() {
        return ok("paused_groups", "none");
    }
    warn(
        "paused_groups",
        format!("paused: {}", listed(&groups)),
        "`ambo queue resume QUEUE --group GROUP` lets their runs be claimed again; `ambo queue groups` shows them all",
    )
}

pub(super) fn blocked_groups(figures: &Figures<'_>) -> Check {
    let groups = groups(figures, "blocked_group");
    if groups.is_empty() {
        return ok("blocked_groups", "none");
    }
    warn(
        "blocked_groups",
        format!("they stand still because a run of theirs failed: {}", listed(&groups)),
        "`ambo queue blocked` shows which run: retry it, or let the group go on without it (`ambo queue unblock`)",
    )
}

pub(super) fn draining(figures: &Figures<'_>) -> Check {
    let queues = figures.all("draining_queue").map(|queue| format!("queue {queue}"));
    let groups = groups(figures, "draining_group").into_iter().map(|group| format!("group {group}"));
    let all: Vec<String> = queues.chain(groups).collect();
    if all.is_empty() {
        return ok("draining", "none");
    }
    warn(
        "draining",
        format!("take no new runs (AMBO009): {}", listed(&all)),
        "`ambo queue resume NAME`, with `--group GROUP` for a group, lets them take runs again",
    )
}

/// A note: that there are some is no fault of the installation.
pub(super) fn dead_letters(figures: &Figures<'_>) -> Check {
    let dead = figures.number("dead_runs").unwrap_or(0);
    if dead == 0 {
        return ok("dead_letters", "none");
    }
    let more = if dead >= DEAD_RUNS_COUNTED { " or more" } else { "" };
    let advice = "`ambo dead errors` says what they died of; redrive or purge them".to_owned();
    Check { advice: Some(advice), ..ok("dead_letters", format!("{dead}{more}")) }
}

/// Whether a session of Ambo's waits for a lock of somebody else's.
pub(super) fn locks(figures: &Figures<'_>) -> Check {
    let mut by_holder: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for blocked in figures.all("blocked") {
        if let Ok((waits, holder)) = serde_json::from_str::<(String, String)>(blocked) {
            by_holder.entry(holder).or_default().push(waits);
        }
    }
    if by_holder.is_empty() {
        return ok("locks", "Ambo waits for none");
    }
    let held: Vec<String> =
        by_holder.iter().map(|(holder, waits)| format!("{} for {holder}", waits.join(" and "))).collect();
    warn(
        "locks",
        format!("sessions of Ambo's wait for locks of others: {}", listed(&held)),
        "end that session, or pg_terminate_backend(its process); whoever may connect to a database may take advisory locks in it",
    )
}

/// Whether a transaction of somebody else's has long had rows of Ambo's tables locked: Ambo passes over these, and waits for none.
pub(super) fn open_transactions(figures: &Figures<'_>) -> Check {
    type Holder = (String, String, Option<i64>, Vec<String>);
    let holders: Vec<Holder> =
        figures.all("lock_holder").filter_map(|holder| serde_json::from_str(holder).ok()).collect();
    let old: Vec<(&Holder, i64)> = holders.iter().filter_map(|holder| Some((holder, holder.2?))).collect();
    let Some(((holder, ending, _, tables), seconds)) = old.iter().max_by_key(|(_, seconds)| *seconds) else {
        let none = "none has long had rows of Ambo's tables locked";
        if holders.is_empty() {
            return ok("open_transactions", none);
        }
        let advice = "grant pg_read_all_stats to the owner of Ambo's schema".to_owned();
        let message = format!("{none}, as far as may be seen: of {} the age is not known", holders.len());
        return Check { advice: Some(advice), ..ok("open_transactions", message) };
    };
    let (count, oldest) = match old.len() {
        1 => ("1 transaction has".to_owned(), ""),
        count if count < LOCK_HOLDERS_TOLD => (format!("{count} transactions have"), "the oldest is "),
        count => (format!("{count} or more transactions have"), "the oldest is "),
    };
    warn(
        "open_transactions",
        format!(
            "{count} been open for more than 5s with rows of Ambo's tables written or locked: {oldest}{holder}, {} old, tables {}",
            span(*seconds),
            tables.join(", ")
        ),
        format!("what it has locked waits for it: commit or roll back there, or, from elsewhere, `{ending}`"),
    )
}
