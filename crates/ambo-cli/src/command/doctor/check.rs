//! What each figure means: well, worth a look, or bad, and what to do. No database here.

use ambo::ScheduleSummary;
use serde::Serialize;

use super::figures::Figures;
use super::held;
use crate::output::length;

/// The oldest snapshot that is nothing to speak of, in seconds.
const SNAPSHOT_SECONDS_MAX: i64 = 300;
/// Dead rows behind which claims are still as fast as ever.
const DEAD_ROWS_MAX: i64 = 500_000;
/// The same for tables of a row or a few, which are read and written every second.
const DEAD_ROWS_OF_FEW_MAX: i64 = 20_000;
/// How long the keeper may be silent before another worker should long have taken over.
const KEEPER_SILENT_MS_MAX: i64 = 10_000;
/// The fewest partitions that should lie in the future.
const PARTITIONS_AHEAD_MIN: i64 = 2;
/// How full the server's queue of notifications may be: from then on Ambo sends none.
const NOTIFICATIONS_PERCENT_MAX: i64 = 50;
/// How far the runs are counted that keep a partition: see `partition.sql`.
const KEPT_RUNS_COUNTED: i64 = 100_000;

/// How a check ended, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// Deserves a look.
    Warn,
    /// Something does not work, or a guarantee does not hold.
    Bad,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// Its name; stable.
    pub(super) name: &'static str,
    pub(super) status: Status,
    /// What was found.
    pub(super) message: String,
    /// What to do about it.
    pub(super) advice: Option<String>,
    /// Nothing more can be looked at.
    #[serde(skip)]
    pub(super) is_final: bool,
}

pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, message: message.into(), advice: None, is_final: false }
}

pub(super) fn warn(name: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { status: Status::Warn, advice: Some(advice.into()), ..ok(name, message) }
}

fn bad(name: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { status: Status::Bad, advice: Some(advice.into()), ..ok(name, message) }
}

/// Whether the schema fits this program; `migrate` is what to type if it does not.
pub(super) fn schema((found, serves_from): (i32, i32), wanted: i32, migrate: &str) -> Check {
    let run = format!("run: {migrate}");
    let check = match found {
        found if found == wanted => return ok("schema", format!("version {found}")),
        0 => bad("schema", "the database holds no schema of Ambo (AMBO010)", run),
        found if found > wanted && serves_from <= wanted => {
            return ok("schema", format!("version {found}, which serves this program of version {wanted}"));
        }
        found if found < wanted => {
            bad("schema", format!("version {found}; this program needs {wanted} (AMBO010)"), run)
        }
        found => bad(
            "schema",
            format!("version {found}; this program is of version {wanted} (AMBO010)"),
            "use an `ambo` of the version that migrated it",
        ),
    };
    Check { is_final: true, ..check }
}

/// Whether the server takes writes.
pub(super) fn connection(figures: &Figures<'_>) -> Check {
    let version = figures.text("server_version").unwrap_or("?");
    if figures.is("in_recovery") {
        let message = format!("PostgreSQL {version}, a read-only standby");
        return bad("connection", message, "connect to the primary: target_session_attrs=read-write");
    }
    ok("connection", format!("PostgreSQL {version}"))
}

/// Whether a transaction pooler stands in between.
pub(super) fn pooler(is_pooled: bool) -> Check {
    if is_pooled {
        return warn(
            "pooler",
            "a transaction pooler stands before the database: workers there are not notified, they poll",
            "for the shortest latency give workers a direct connection",
        );
    }
    ok("pooler", "none: workers are notified")
}

/// Whether each schedule will come again, and its last tick could be enqueued.
pub(super) fn schedules(schedules: &[ScheduleSummary]) -> Check {
    let failing: Vec<String> = (schedules.iter())
        .filter_map(|schedule| Some(format!("{}: {}", schedule.name, schedule.error.as_ref()?)))
        .collect();
    if failing.is_empty() {
        return ok("schedules", format!("{}, none of them failing", schedules.len()));
    }
    warn(
        "schedules",
        listed(&failing),
        "set the schedule again with what is right; one that is paused then: `ambo schedule resume NAME`",
    )
}

/// Everything else.
pub(super) fn all(figures: &Figures<'_>) -> Vec<Check> {
    let checks = [
        adoption,
        held::roles,
        partitions,
        retention,
        workers,
        keeper,
        unserved_runs,
        held::paused_queues,
        held::paused_groups,
        held::blocked_groups,
        held::draining,
        held::dead_letters,
        held::locks,
        held::open_transactions,
        notifications,
        oldest_snapshot,
    ];
    let mut checks: Vec<Check> = checks.iter().map(|check| check(figures)).collect();
    checks.extend([dead_rows(figures), fsync(figures), synchronous_commit(figures)]);
    checks
}

fn adoption(figures: &Figures<'_>) -> Check {
    if figures.is("adopted") {
        return ok("adoption", "this database is the one that Ambo was installed in");
    }
    bad(
        "adoption",
        "restored or cloned from another database; no worker starts (AMBO011)",
        "if its origin does not run any more: ambo adopt --yes",
    )
}

fn partitions(figures: &Figures<'_>) -> Check {
    let ahead = figures.number("partitions_ahead").unwrap_or(0);
    if !figures.is("partition_now") {
        return bad(
            "partitions",
            "none for the present time: nothing can be enqueued (AMBO012)",
            "run `ambo migrate`, which makes them, and keep a worker running, which goes on making them",
        );
    }
    if ahead < PARTITIONS_AHEAD_MIN {
        return warn(
            "partitions",
            format!("only {ahead} ahead"),
            "a live worker makes them; without one run `ambo migrate` now and then",
        );
    }
    ok("partitions", format!("{ahead} ahead"))
}

/// Whether history leaves: a partition in which much is alive, or awaited by what is, stays, and all that came after it too.
fn retention(figures: &Figures<'_>) -> Check {
    type Standing = (String, i64, Option<i64>, Option<String>, Option<i64>);
    let standing = figures.text("standing_partition");
    let Some((partition, alive, awaited, parent, of_parent)) =
        standing.and_then(|standing| serde_json::from_str::<Standing>(standing).ok())
    else {
        return ok("retention", "nothing keeps the oldest history");
    };
    let count =
        |count: i64| if count < KEPT_RUNS_COUNTED { count.to_string() } else { format!("{count} or more") };
    let stands = format!("partition {partition} and all newer history stay past their time");
    match (awaited, parent) {
        (Some(awaited), Some(parent)) => warn(
            "retention",
            format!(
                "{stands}: {} of its runs are children (or members of a fan-in) whose parent lives or may be retried, most of \
                 them ({}) of {parent}; more than 10000 are not carried over",
                count(awaited),
                count(of_parent.unwrap_or(0))
            ),
            format!(
                "let such parents end (`ambo run why {parent}`) or cancel them; a workflow that goes on for ever continues as new, \
                 and starts `detached()` what it does not ask for"
            ),
        ),
        _ => warn(
            "retention",
            format!(
                "{stands}: {} of its runs have not ended, or are dead and kept; more than 1000 are not carried over",
                count(alive)
            ),
            "see what they wait for (`ambo run list`, `ambo run why ID`) and cancel what is not wanted any more; `ambo dead` redrives or \
             purges the dead",
        ),
    }
}

fn workers(figures: &Figures<'_>) -> Check {
    let alive = figures.number("workers_alive").unwrap_or(0);
    let silent = figures.number("workers_registered").unwrap_or(0) - alive;
    if alive == 0 {
        let message =
            if silent > 0 { format!("none is alive, {silent} silent") } else { "none is alive".into() };
        return warn("workers", message, "nothing is executed until a program with a worker starts");
    }
    if silent > 0 {
        return warn(
            "workers",
            format!("{alive} alive, {silent} silent"),
            "those that died lose their runs to the others within seconds; `ambo worker list` shows them",
        );
    }
    ok("workers", format!("{alive} alive"))
}

fn keeper(figures: &Figures<'_>) -> Check {
    if figures.number("workers_alive").unwrap_or(0) == 0 {
        return ok("keeper", "none without a worker");
    }
    match figures.number("keeper_silent_ms") {
        Some(silent) if silent <= KEEPER_SILENT_MS_MAX => ok("keeper", "at work"),
        silent => {
            let message = match silent {
                Some(silent) => format!("silent for {}, though workers are alive", span(silent / 1000)),
                None => "there is none, though workers are alive".to_owned(),
            };
            bad(
                "keeper",
                message,
                "nobody recovers dead workers or fires timers: look for `ambo` warnings in the workers' logs, and for a \
                 lock on the table `keeper` (open_transactions)",
            )
        }
    }
}

fn unserved_runs(figures: &Figures<'_>) -> Check {
    let lanes: Vec<String> = (figures.all("unserved_lane"))
        .filter_map(|lane| serde_json::from_str::<(String, String)>(lane).ok())
        .map(|(queue, workflow)| format!("{workflow} (queue {queue})"))
        .collect();
    if !lanes.is_empty() {
        return warn(
            "unserved_runs",
            format!("runs wait for workflows that no live worker knows: {}", listed(&lanes)),
            "start a worker that registers the workflow and serves the queue, or correct the name",
        );
    }
    let pins: Vec<String> = (figures.all("unserved_pin"))
        .filter_map(|pin| serde_json::from_str::<(String, String, String)>(pin).ok())
        .map(|(queue, workflow, version)| format!("{workflow} of version {version} (queue {queue})"))
        .collect();
    if pins.is_empty() {
        return ok("unserved_runs", "none: every run that waits has a worker that knows it");
    }
    warn(
        "unserved_runs",
        format!(
            "runs wait for the version that they are pinned to, of which no worker lives: {}",
            listed(&pins)
        ),
        "start a worker of that version, or wait: after `pin_grace`, a minute by default, any worker may have them",
    )
}

fn oldest_snapshot(figures: &Figures<'_>) -> Check {
    let seconds = figures.number("oldest_snapshot_seconds").unwrap_or(0);
    if seconds <= SNAPSHOT_SECONDS_MAX {
        return ok("oldest_snapshot", span(seconds));
    }
    let holder = figures.text("oldest_snapshot_holder").unwrap_or("unknown");
    warn(
        "oldest_snapshot",
        format!("{} old, held by {holder}", span(seconds)),
        "nothing that died since can be vacuumed: end that transaction, or pg_terminate_backend(its process)",
    )
}

/// Whether hints are still sent: see `send_hint` in `wake.sql`.
fn notifications(figures: &Figures<'_>) -> Check {
    let percent = figures.number("notification_queue_percent").unwrap_or(0);
    if percent < NOTIFICATIONS_PERCENT_MAX {
        return ok("notifications", format!("the server's queue is {percent}% full"));
    }
    warn(
        "notifications",
        format!("the server's queue is {percent}% full: workers are not notified any more, they poll"),
        "some session of the server, of any database, has sent LISTEN and stays in a transaction: end that (the server's log \
         names its process)",
    )
}

fn dead_rows(figures: &Figures<'_>) -> Check {
    let mut most: Vec<(&str, i64)> = figures.numbers("dead_rows_").collect();
    most.sort_by_key(|(table, count)| (-count, *table));
    let over: Vec<String> = (most.iter())
        .filter(|(table, count)| {
            let few = matches!(*table, "heartbeat" | "keeper");
            *count > if few { DEAD_ROWS_OF_FEW_MAX } else { DEAD_ROWS_MAX }
        })
        .map(|(table, count)| format!("{table} {count}"))
        .collect();
    if over.is_empty() {
        return ok(
            "dead_rows",
            format!("{} on the hot tables", most.iter().map(|(_, count)| count).sum::<i64>()),
        );
    }
    warn(
        "dead_rows",
        listed(&over),
        "vacuum does not keep up: see oldest_snapshot, and whether autovacuum is on",
    )
}

fn fsync(figures: &Figures<'_>) -> Check {
    if figures.text("fsync") == Some("off") {
        return bad(
            "fsync",
            "off: a crash of the machine can lose or corrupt everything",
            "set fsync = on, except where all data may be lost, as in tests",
        );
    }
    ok("fsync", "on")
}

fn synchronous_commit(figures: &Figures<'_>) -> Check {
    let setting = figures.text("synchronous_commit").unwrap_or("on");
    if matches!(setting, "off" | "local") {
        return warn(
            "synchronous_commit",
            format!(
                "{setting} by default: a crash can lose the last of your own commits, with what they enqueued"
            ),
            "set synchronous_commit = on for the roles that enqueue; Ambo's own commits are safe",
        );
    }
    ok("synchronous_commit", setting)
}

/// Up to five names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

/// A length of time that the database gave.
pub(super) fn span(seconds: i64) -> String {
    length(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests;
