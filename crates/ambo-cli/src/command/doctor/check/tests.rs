//! Each check, on figures that are well and on those that are not.

use ambo::admin::VitalSign;
use expect_test::{Expect, expect};

use super::*;

/// A healthy installation, with some figures replaced or added.
#[track_caller]
fn check(changed: &[(&str, &str)], expected: Expect) {
    let healthy = [
        ("adopted", "true"),
        ("partition_now", "true"),
        ("partitions_ahead", "7"),
        ("workers_alive", "2"),
        ("workers_registered", "2"),
        ("keeper_silent_ms", "300"),
        ("notification_queue_percent", "0"),
        ("oldest_snapshot_seconds", "0"),
        ("dead_rows_ready", "12"),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
    ];
    let kept = healthy.iter().filter(|(name, _)| changed.iter().all(|(other, _)| other != name));
    let signs: Vec<VitalSign> = kept
        .chain(changed)
        .map(|(name, value)| VitalSign { name: (*name).to_owned(), value: (*value).to_owned() })
        .collect();
    let checks = all(&Figures::new(&signs));
    let faults = checks.iter().filter(|check| changed.is_empty() || check.status != Status::Ok);
    let lines: Vec<String> = faults
        .map(|check| {
            let advice = check.advice.as_ref().map(|advice| format!("\n  {advice}")).unwrap_or_default();
            format!("{} {}: {}{advice}", check.status.name(), check.name, check.message)
        })
        .collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn a_healthy_installation_is_well() {
    check(
        &[],
        expect![[r#"
            ok adoption: this database is the one that Ambo was installed in
            ok roles: all four are there
            ok partitions: 7 ahead
            ok retention: nothing keeps the oldest history
            ok workers: 2 alive
            ok keeper: at work
            ok unserved_runs: none: every run that waits has a worker that knows it
            ok paused_queues: none
            ok paused_groups: none
            ok blocked_groups: none
            ok draining: none
            ok dead_letters: none
            ok locks: Ambo waits for none
            ok open_transactions: none has long had rows of Ambo's tables locked
            ok notifications: the server's queue is 0% full
            ok oldest_snapshot: 0s
            ok dead_rows: 12 on the hot tables
            ok fsync: on
            ok synchronous_commit: on"#]],
    );
}

#[test]
fn what_somebody_holds_up_is_named() {
    check(
        &[
            ("paused_group", r#"["mail","a"]"#),
            ("paused_group", r#"["mail","b"]"#),
            ("blocked_group", r#"["ledger","7"]"#),
            ("draining_queue", "slow"),
            ("draining_group", r#"["mail","c"]"#),
        ],
        expect![[r#"
        warn paused_groups: paused: a (queue mail), b (queue mail)
          `ambo queue resume QUEUE --group GROUP` lets their runs be claimed again; `ambo queue groups` shows them all
        warn blocked_groups: they stand still because a run of theirs failed: 7 (queue ledger)
          `ambo queue blocked` shows which run: retry it, or let the group go on without it (`ambo queue unblock`)
        warn draining: take no new runs (AMBO009): queue slow, group c (queue mail)
          `ambo queue resume NAME`, with `--group GROUP` for a group, lets them take runs again"#]],
    );
}

#[test]
fn without_a_partition_for_now_nothing_can_be_enqueued() {
    check(
        &[("partition_now", "false"), ("partitions_ahead", "0")],
        expect![[r#"
        bad partitions: none for the present time: nothing can be enqueued (AMBO012)
          run `ambo migrate`, which makes them, and keep a worker running, which goes on making them"#]],
    );
    check(
        &[("partitions_ahead", "1")],
        expect![[r#"
        warn partitions: only 1 ahead
          a live worker makes them; without one run `ambo migrate` now and then"#]],
    );
}

#[test]
fn what_keeps_history_past_its_time_is_named() {
    let parent = "01a2237e-c3f2-7c83-bcb4-edc16f482eec";
    check(
        &[("standing_partition", &format!(r#"["20261001_0000", 1, 12000, "{parent}", 11999]"#))],
        expect![[r#"
            warn retention: partition 20261001_0000 and all newer history stay past their time: 12000 of its runs are children (or members of a fan-in) whose parent lives or may be retried, most of them (11999) of 01a2237e-c3f2-7c83-bcb4-edc16f482eec; more than 10000 are not carried over
              let such parents end (`ambo run why 01a2237e-c3f2-7c83-bcb4-edc16f482eec`) or cancel them; a workflow that goes on for ever continues as new, and starts `detached()` what it does not ask for"#]],
    );
    check(
        &[("standing_partition", r#"["20261001_0000", 100000, null, null, null]"#)],
        expect![[r#"
        warn retention: partition 20261001_0000 and all newer history stay past their time: 100000 or more of its runs have not ended, or are dead and kept; more than 1000 are not carried over
          see what they wait for (`ambo run list`, `ambo run why ID`) and cancel what is not wanted any more; `ambo dead` redrives or purges the dead"#]],
    );
}

#[test]
fn workers_that_died_are_told_apart_from_none() {
    check(
        &[("workers_alive", "0"), ("workers_registered", "0")],
        expect![[r#"
        warn workers: none is alive
          nothing is executed until a program with a worker starts"#]],
    );
    check(
        &[("workers_alive", "0"), ("workers_registered", "2")],
        expect![[r#"
        warn workers: none is alive, 2 silent
          nothing is executed until a program with a worker starts"#]],
    );
    check(
        &[("workers_registered", "3")],
        expect![[r#"
        warn workers: 2 alive, 1 silent
          those that died lose their runs to the others within seconds; `ambo worker list` shows them"#]],
    );
    check(
        &[("keeper_silent_ms", "600000")],
        expect![[r#"
        bad keeper: silent for 10m, though workers are alive
          nobody recovers dead workers or fires timers: look for `ambo` warnings in the workers' logs, and for a lock on the table `keeper` (open_transactions)"#]],
    );
}

#[test]
fn what_keeps_runs_from_being_claimed_is_named() {
    check(
        &[
            ("missing_role", "ambo_worker"),
            ("paused_queue", "mail"),
            ("unserved_lane", r#"["default", "fulfill"]"#),
            ("unserved_lane", r#"["mail", "send"]"#),
            ("adopted", "false"),
        ],
        expect![[r#"
            bad adoption: restored or cloned from another database; no worker starts (AMBO011)
              if its origin does not run any more: ambo adopt --yes
            warn roles: not there, for the owner may not make roles: ambo_worker
              whoever may: create role ambo_worker nologin, ...; then the owner: select grant_privileges() in Ambo's schema (docs/guide/roles.md)
            warn unserved_runs: runs wait for workflows that no live worker knows: fulfill (queue default), send (queue mail)
              start a worker that registers the workflow and serves the queue, or correct the name
            warn paused_queues: paused: mail
              `ambo queue resume NAME` lets their runs be claimed again"#]],
    );
}

#[test]
fn what_waits_for_a_version_that_is_gone_is_named() {
    check(
        &[("unserved_pin", r#"["default", "fulfil", "1.4"]"#)],
        expect![[r#"
            warn unserved_runs: runs wait for the version that they are pinned to, of which no worker lives: fulfil of version 1.4 (queue default)
              start a worker of that version, or wait: after `pin_grace`, a minute by default, any worker may have them"#]],
    );
}

#[test]
fn who_holds_a_lock_that_ambo_waits_for_is_named() {
    let holder = "process 7, user ann, psql, idle in transaction";
    check(
        &[
            ("blocked", &format!(r#"["ambo worker claims", "{holder}"]"#)),
            ("blocked", &format!(r#"["ambo worker journal", "{holder}"]"#)),
        ],
        expect![[r#"
            warn locks: sessions of Ambo's wait for locks of others: ambo worker claims and ambo worker journal for process 7, user ann, psql, idle in transaction
              end that session, or pg_terminate_backend(its process); whoever may connect to a database may take advisory locks in it"#]],
    );
}

#[test]
fn the_oldest_transaction_that_has_rows_locked_is_named() {
    let younger = r#"["prepared transaction 'x' (bob)","rollback prepared 'x'",6,["timer"]]"#;
    let older = r#"["session 7 (ann, psql)","select pg_terminate_backend(7)",90,["queue","ready"]]"#;
    let unknown = r#"["session 9 (eve)","select pg_terminate_backend(9)",null,["keeper"]]"#;
    check(
        &[("lock_holder", younger), ("lock_holder", older), ("lock_holder", unknown)],
        expect![[r#"
        warn open_transactions: 2 transactions have been open for more than 5s with rows of Ambo's tables written or locked: the oldest is session 7 (ann, psql), 90s old, tables queue, ready
          what it has locked waits for it: commit or roll back there, or, from elsewhere, `select pg_terminate_backend(7)`"#]],
    );
    check(
        &[("lock_holder", younger)],
        expect![[r#"
        warn open_transactions: 1 transaction has been open for more than 5s with rows of Ambo's tables written or locked: prepared transaction 'x' (bob), 6s old, tables timer
          what it has locked waits for it: commit or roll back there, or, from elsewhere, `rollback prepared 'x'`"#]],
    );
    // Not to be warned of: it may be as young as any that enqueues.
    check(&[("lock_holder", unknown)], expect![""]);
}

#[test]
fn what_makes_tables_rot_is_named() {
    check(
        &[
            ("oldest_snapshot_seconds", "4000"),
            ("oldest_snapshot_holder", "process 7, user ann, psql, idle in transaction"),
            ("dead_rows_ready", "2000000"),
            ("dead_rows_heartbeat", "30000"),
            ("dead_rows_claim", "400000"),
        ],
        expect![[r#"
            warn oldest_snapshot: 66m old, held by process 7, user ann, psql, idle in transaction
              nothing that died since can be vacuumed: end that transaction, or pg_terminate_backend(its process)
            warn dead_rows: ready 2000000, heartbeat 30000
              vacuum does not keep up: see oldest_snapshot, and whether autovacuum is on"#]],
    );
}

#[test]
fn settings_that_break_a_promise_are_named() {
    check(
        &[("fsync", "off"), ("synchronous_commit", "off")],
        expect![[r#"
        bad fsync: off: a crash of the machine can lose or corrupt everything
          set fsync = on, except where all data may be lost, as in tests
        warn synchronous_commit: off by default: a crash can lose the last of your own commits, with what they enqueued
          set synchronous_commit = on for the roles that enqueue; Ambo's own commits are safe"#]],
    );
}

#[test]
fn a_queue_of_notifications_that_fills_is_told() {
    check(&[("notification_queue_percent", "49")], expect![[r#""#]]);
    check(
        &[("notification_queue_percent", "50")],
        expect![[r#"
        warn notifications: the server's queue is 50% full: workers are not notified any more, they poll
          some session of the server, of any database, has sent LISTEN and stays in a transaction: end that (the server's log names its process)"#]],
    );
}
