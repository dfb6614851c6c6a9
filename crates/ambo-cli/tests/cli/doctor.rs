//! `ambo doctor` and `ambo adopt` on databases that are well, bare, stale and cloned.

use expect_test::expect;
use serde_json::Value;

use crate::harness::{Database, Ended, Sql, command};

/// The checks that are not ok, a line each. Whether the tests' server may lose data is its own affair.
fn faults(ended: &Ended) -> String {
    let report: Value = serde_json::from_str(&ended.stdout).expect("a report");
    let checks = report["checks"].as_array().expect("checks");
    let faults = checks.iter().filter(|check| check["status"] != "ok" && check["name"] != "fsync");
    let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    let lines = faults.map(|check| {
        format!("{} {}: {}\n", text(check, "status"), text(check, "name"), text(check, "message"))
    });
    lines.collect()
}

#[test]
fn a_database_without_schema_is_told_so() {
    let db = Database::empty();
    expect![[r#"
        bad   schema  the database holds no schema of Ambo (AMBO010)
                      run: ambo migrate
        stderr: 1 bad
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["doctor"]).shown());
    expect![[r#"
        {"status":"bad","schema":"jobs","checks":[{"name":"schema","status":"bad","message":"the database holds no schema of Ambo (AMBO010)","advice":"run: ambo migrate --schema jobs"}],"figures":[]}
        exit status: 1
    "#]].assert_eq(&db.ambo(&["doctor", "--json", "--schema", "jobs"]).shown());
}

#[test]
fn a_server_that_is_away_is_a_finding() {
    let mut doctor = command(&["doctor", "--database-url", "postgres://ann:s3cret@127.0.0.1:1/shop"]);
    expect![[r#"
        bad   connection  AMBO040: error connecting to server: Connection refused (os
                          error 111)
                          is a PostgreSQL server running at
                          postgres://ann@127.0.0.1:1/shop, and can it be reached from
                          here? (docs/errors/AMBO040.md)
        stderr: 1 bad
        exit status: 1
    "#]]
    .assert_eq(&Ended::of(&mut doctor, "").shown());
}

#[test]
fn an_old_schema_and_a_new_one_are_told_apart() {
    let db = Database::migrated();
    db.sql.run("update ambo.installation set schema_version = 99, serves_from = 98");
    expect![[r#"
        bad   schema  version 99; this program is of version 1 (AMBO010)
                      use an `ambo` of the version that migrated it
        stderr: 1 bad
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["doctor"]).shown());
    db.sql.run("update ambo.installation set schema_version = -1");
    expect![[r#"
        bad   schema  version -1; this program needs 1 (AMBO010)
                      run: ambo migrate
        stderr: 1 bad
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["doctor"]).shown());
}

#[test]
fn an_installation_that_nobody_looked_after_is_stale() {
    let db = Database::migrated();
    db.ambo(&["run", "enqueue", "fulfill"]).done();
    db.ambo(&["queue", "create", "mail"]).done();
    db.ambo(&["run", "enqueue", "send", "--queue", "mail"]).done();
    db.ambo(&["queue", "pause", "mail"]).done();
    db.sql.run(
        "do $$ declare part text; begin
             for part in select to_char(starts_at at time zone 'UTC', 'YYYYMMDD_HH24MI') from ambo.history_partition loop
                 execute format('drop table ambo.%I, ambo.%I, ambo.%I, ambo.%I, ambo.%I, ambo.%I, ambo.%I',
                                'run_' || part, 'outcome_' || part, 'child_' || part, 'attribute_' || part,
                                'checkpoint_' || part, 'signal_' || part, 'event_' || part);
             end loop;
         end $$;
         delete from ambo.history_partition;
         select ambo.register_worker('host-1', '1', 1, '{default}', '{fulfil}', false);
         select ambo.register_worker('host-2', '1', 1, '{mail}', '{send}', false);
         update ambo.heartbeat set at = now() - interval '1 hour' where worker_id = 1;
         update ambo.heartbeat set at = now() + interval '1 hour' where worker_id = 2;
         update ambo.keeper set worker_id = 1, renewed_at = now() - interval '1 hour';",
    );
    let doctor = db.ambo(&["doctor", "--json"]);
    assert_eq!(doctor.code, 1);
    expect![[r#"
        bad partitions: none for the present time: nothing can be enqueued (AMBO012)
        warn workers: 1 alive, 1 silent
        bad keeper: silent for 60m, though workers are alive
        warn unserved_runs: runs wait for workflows that no live worker knows: fulfill (queue default)
        warn paused_queues: paused: mail
    "#]]
    .assert_eq(&faults(&doctor));
    // What it advises helps.
    db.ambo(&["migrate"]).done();
    db.ambo(&["queue", "resume", "mail"]).done();
    expect![[r#"
        warn workers: 1 alive, 1 silent
        bad keeper: silent for 60m, though workers are alive
        warn unserved_runs: runs wait for workflows that no live worker knows: fulfill (queue default)
    "#]]
    .assert_eq(&faults(&db.ambo(&["doctor", "--json"])));
    let enqueued = db.ambo(&["run", "enqueue", "send", "--queue", "mail"]);
    assert_eq!(enqueued.code, 0, "{enqueued:?}");
}

#[test]
fn a_long_name_makes_no_line_longer_and_none_is_turned_round() {
    let db = Database::migrated();
    let long = "q".repeat(150);
    db.sql.run(&format!(
        "select ambo.create_queue(q), ambo.pause_queue(q, true) from unnest(array['{long}', 'lif\u{202e}luf']) q"
    ));
    for arguments in [&["doctor"][..], &["queue", "list"]] {
        let shown = db.ambo(arguments).stdout;
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(shown.contains("lif\\u{202e}luf") && !shown.contains('\u{202e}'), "{shown}");
    }
}

#[test]
fn the_holder_of_a_snapshot_is_named() {
    let db = Database::migrated();
    db.sql.run("set application_name = 'report'; begin isolation level repeatable read; select 1");
    let doctor = db.ambo(&["doctor", "--json"]);
    let report: Value = serde_json::from_str(&doctor.stdout).expect("a report");
    let figures = report["figures"].as_array().expect("figures");
    let holder = figures.iter().find(|figure| figure["name"] == "oldest_snapshot_holder").expect("a holder");
    let holder = holder["value"].as_str().expect("text");
    assert!(holder.contains("report") && holder.contains("idle in transaction"), "{holder}");
}

/// Everybody who may connect may take advisory locks.
#[test]
fn who_holds_what_ambo_waits_for_is_named() {
    let db = Database::migrated();
    db.sql.run("set application_name = 'report'; select pg_advisory_lock(hashtext('ambo.fence'), 7)");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            Sql::connect(&db.url).run("set application_name = 'ambo worker claims'; select pg_advisory_lock(hashtext('ambo.fence'), 7)")
        });
        let began = std::time::Instant::now();
        loop {
            let shown = faults(&db.ambo(&["doctor", "--json"]));
            if let Some(locks) = shown.lines().find(|line| line.starts_with("warn locks: ")) {
                assert!(
                    locks.contains("ambo worker claims for process") && locks.contains("report"),
                    "{locks}"
                );
                break;
            }
            assert!(began.elapsed().as_secs() < 20, "{shown}");
        }
        db.sql.run("select pg_advisory_unlock(hashtext('ambo.fence'), 7)");
        waits.join().expect("the lock is free");
    });
    assert!(!faults(&db.ambo(&["doctor", "--json"])).contains("locks"));
}

/// Ambo passes over locked rows: nothing of its own waits, and nothing but this check tells.
#[test]
fn who_has_long_had_rows_locked_is_named() {
    let db = Database::migrated();
    let pid = db.sql.text("select pg_backend_pid()");
    db.sql.run("set application_name = 'report'; begin; select from ambo.keeper for update");
    let began = std::time::Instant::now();
    let found = loop {
        // It fails by the fsync of the tests' server.
        let doctor = db.ambo(&["doctor", "--json"]).stdout;
        let report: Value = serde_json::from_str(&doctor).expect("a report");
        let checks = report["checks"].as_array().expect("checks");
        let check = checks.iter().find(|check| check["name"] == "open_transactions").expect("the check");
        if check["status"] == "warn" {
            break check.clone();
        }
        assert!(began.elapsed().as_secs() < 30, "{doctor}");
    };
    let message = found["message"].as_str().expect("text");
    let start =
        "1 transaction has been open for more than 5s with rows of Ambo's tables written or locked: session ";
    assert!(message.starts_with(&format!("{start}{pid} (")), "{message}");
    assert!(message.contains(", report), ") && message.ends_with("s old, tables keeper"), "{message}");
    let ending = format!("`select pg_terminate_backend({pid})`");
    assert!(found["advice"].as_str().expect("text").ends_with(&ending), "{found}");
    db.sql.run("rollback");
    assert!(!faults(&db.ambo(&["doctor", "--json"])).contains("open_transactions"));
}

/// A parent that lives and its children, which ended long ago: more than are carried over when their history is dropped.
#[test]
fn what_keeps_old_history_is_named() {
    let db = Database::migrated();
    db.sql.run(
        "insert into ambo.history_partition
         select d - interval '2 hours', d - interval '1 hour' from (values (date_trunc('day', now(), 'UTC'))) day (d);
         update ambo.installation set retention = '1 hour';
         create table family as select n, ambo.run_id_floor(min(starts_at) + n * interval '10 ms') as id
             from ambo.history_partition, generate_series(0, 10001) n group by n;
         insert into ambo.run (id, attempts_max, priority, workflow, queue, input, parent_id)
             select id, 5, 0, 'wait', 'default', 'null', case when n > 0 then (select id from family where n = 0) end from family;
         insert into ambo.child (run_id, child_id) select p.id, c.id from family p, family c where p.n = 0 and c.n > 0;
         insert into ambo.timer (run_id, due_at, attempt, losses) select id, 'infinity', 1, 0 from family where n = 0;
         insert into ambo.outcome (run_id, attempt, status) select id, 1, 'succeeded' from family where n > 0;",
    );
    let retention = || {
        let shown = faults(&db.ambo(&["doctor", "--json"]));
        let shown: String = shown.lines().filter(|line| line.contains(" retention:")).collect();
        let [partition, parent] = [
            "select to_char(min(starts_at) at time zone 'UTC', 'YYYYMMDD_HH24MI') from ambo.history_partition",
            "select id::text from family where n = 0",
        ]
        .map(|sql| db.sql.text(sql));
        shown.replace(&partition, "PARTITION").replace(&parent, "PARENT")
    };
    expect!["warn retention: partition PARTITION and all newer history stay past their time: 10001 of its runs are children (or members of a fan-in) whose parent lives or may be retried, most of them (10001) of PARENT; more than 10000 are not carried over"].assert_eq(&retention());
    // One child fewer than that is none too many.
    db.sql.run("delete from ambo.child where child_id = (select id from family where n = 1)");
    assert_eq!(retention(), "");
    // Nor is any where nobody asks for them.
    db.sql.run("insert into ambo.child (run_id, child_id) select p.id, c.id from family p, family c where p.n = 0 and c.n = 1");
    db.sql.run("delete from ambo.timer; insert into ambo.outcome (run_id, attempt, status) select id, 1, 'succeeded' from family where n = 0");
    assert_eq!(retention(), "");
    // What keeps it beside that are runs that have not ended.
    db.sql.run("insert into ambo.timer (run_id, due_at, attempt, losses) select id, 'infinity', 1, 0 from family where n <= 1000");
    expect!["warn retention: partition PARTITION and all newer history stay past their time: 1001 of its runs have not ended, or are dead and kept; more than 1000 are not carried over"].assert_eq(&retention());
}

#[test]
fn a_cloned_database_waits_to_be_adopted() {
    let origin = Database::migrated();
    expect![[r#"
        {"adopted":false}
        stderr: PLACE is neither restored nor cloned: there is nothing to adopt
    "#]]
    .assert_eq(&origin.ambo(&["adopt", "--json"]).shown().replace(place(&origin), "PLACE"));
    let clone = origin.cloned();
    assert!(faults(&clone.ambo(&["doctor", "--json"])).contains("bad adoption"));
    expect![[r#"
        stderr: error: PLACE was restored or cloned; if its origin still runs, its runs would run twice
        stderr:   if the origin runs no more, type: ambo adopt --yes
        exit status: 2
    "#]]
    .assert_eq(&clone.ambo(&["adopt"]).shown().replace(place(&clone), "PLACE"));
    expect![[r#"
        stderr: adopted PLACE: workers may start
    "#]]
    .assert_eq(&clone.ambo(&["adopt", "--yes"]).shown().replace(place(&clone), "PLACE"));
    assert!(!faults(&clone.ambo(&["doctor", "--json"])).contains("adoption"));
}

/// The database as it is named; the tests' URL has no password.
fn place(db: &Database) -> &str {
    &db.url
}
