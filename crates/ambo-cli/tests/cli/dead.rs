//! Dead letters, and queues that are drained and purged.

use expect_test::expect;

use crate::harness::Database;

/// Three dead runs, as a worker would leave them.
fn three_dead(db: &Database) {
    db.sql.run("select ambo.create_queue('slow')");
    for n in 0..3 {
        db.ambo(&["run", "enqueue", "mail", &n.to_string()]).done();
    }
    db.sql.run(
        "insert into ambo.outcome (run_id, attempt, status, error)
         select run_id, 2, 'dead', json_build_object('code', 'AMBO027', 'message', 'mailbox ' || seq || ' is full') from ambo.ready;
         delete from ambo.ready",
    );
}

#[test]
fn the_dead_are_listed_grouped_redriven_and_purged() {
    let db = Database::migrated();
    assert_eq!(db.ambo(&["dead", "list"]).done(), "");
    three_dead(&db);
    let list = db.ambo(&["dead", "list", "--json", "--workflow", "mail"]).done();
    assert_eq!(list.lines().count(), 3);
    assert!(list.contains("\"code\":\"AMBO027\"") && list.contains("\"attempts\":2"), "{list}");
    db.sql.run("update ambo.outcome set error = json_build_object('code', 'AMBO027', 'message', (error ->> 'message') || repeat(' indeed', 20))");
    assert_eq!(
        db.ambo(&["dead", "list"]).shown().matches(&" indeed".repeat(20)).count(),
        3,
        "whole when piped"
    );
    let errors = db.ambo(&["dead", "errors"]).shown();
    assert!(
        errors.contains("3  mail      default  AMBO027") && errors.contains("mailbox # is full"),
        "{errors}"
    );
    let errors = db.ambo(&["dead", "errors", "--text", "zzzznotthere"]).shown();
    assert!(errors.contains("no dead"), "{errors}");
    for command in ["list", "errors", "redrive", "purge"] {
        let refused = db.ambo(&["dead", command, "--state", "failed"]).shown();
        assert!(refused.contains("unexpected argument '--state'"), "{refused}");
    }
    // A dry run first.
    let dry = db.ambo(&["dead", "redrive", "--to-queue", "slow", "--rate", "0.5"]).shown();
    assert!(dry.contains("nothing was done; add --yes to redrive 3 runs"), "{dry}");
    assert_eq!(db.sql.text("select count(*) from ambo.outcome"), "3");
    let done = db
        .ambo(&["dead", "redrive", "--to-queue", "slow", "--rate", "0.5", "--text", "mailbox", "--yes"])
        .shown();
    assert!(done.contains("done: 3 of 3 runs"), "{done}");
    assert_eq!(
        db.sql.text("select count(*) from ambo.ready union all select count(*) from ambo.timer"),
        "1\n2"
    );
    assert_eq!(db.sql.text("select distinct queue from ambo.run"), "slow");
    three_dead(&db);
    let one = db.sql.text("select run_id from ambo.outcome limit 1");
    assert!(db.ambo(&["dead", "purge", &one]).shown().contains("gone"));
    assert!(db.ambo(&["dead", "purge", "--yes"]).shown().contains("done: "), "the rest");
    assert_eq!(db.sql.text("select count(*) from ambo.outcome"), "0");
}

#[test]
fn a_queue_is_drained_purged_and_resumed() {
    let db = Database::migrated();
    for n in 0..3 {
        db.ambo(&["run", "enqueue", "mail", &n.to_string(), "--key", "k", "--dedup"]).done();
    }
    db.ambo(&["run", "enqueue", "other", "--start-within", "1h"]).done();
    db.ambo(&["queue", "drain", "default"]).done();
    expect![[r#"
        QUEUE    STATE     READY  OLDEST  LIMITS
        default  draining      2  AGE
    "#]]
    .assert_eq(&db.ambo(&["queue", "list"]).shown());
    assert!(db.ambo(&["run", "enqueue", "mail"]).shown().contains("AMBO009"));
    let dry = db.ambo(&["queue", "purge", "default", "--workflow", "mail"]).shown();
    assert!(dry.contains("1 run would be cancelled; nothing was done"), "{dry}");
    assert!(db.ambo(&["queue", "purge", "default", "--yes"]).shown().contains("2 runs cancelled"));
    db.ambo(&["queue", "resume", "default"]).done();
    db.ambo(&["run", "enqueue", "mail"]).done();
}

#[test]
fn a_group_is_drained_purged_and_resumed() {
    let db = Database::migrated();
    db.ambo(&["queue", "set", "mail", "--groups"]).done();
    let enqueue = |group: &str| db.ambo(&["run", "enqueue", "letter", "--queue", "mail", "--group", group]);
    enqueue("a").done();
    enqueue("b").done();
    db.ambo(&["queue", "drain", "mail", "--group", "a"]).done();
    assert!(enqueue("a").shown().contains("AMBO009"));
    enqueue("b").done();
    assert!(
        db.ambo(&["queue", "purge", "mail", "--group", "a", "--yes"]).shown().contains("1 run cancelled")
    );
    assert_eq!(db.sql.text("select count(*) from ambo.ready"), "2");
    db.ambo(&["queue", "resume", "mail", "--group", "a"]).done();
    enqueue("a").done();
}

#[test]
fn how_long_what_has_ended_is_kept_is_said_and_set() {
    let db = Database::migrated();
    expect![[r#"
        history  30 days
        dead     as long as other history
        keys     30 days
    "#]]
    .assert_eq(&db.ambo(&["retention"]).shown());
    expect![[r#"
        history  90 days
        dead     365 days
        keys     30 days
    "#]]
    .assert_eq(&db.ambo(&["retention", "--history", "90d", "--dead", "365d"]).shown());
    let json = db.ambo(&["retention", "--dead", "none", "--json"]).done();
    assert_eq!(json.trim(), r#"{"history":"90 days","dead":null,"keys":"30 days"}"#);
    assert!(db.ambo(&["retention", "--history", "1m"]).shown().contains("AMBO005"));
}
