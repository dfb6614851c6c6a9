//! Queues with groups and limits, as an operator sets and questions them.

use expect_test::expect;

use crate::harness::Database;

#[test]
fn limits_are_set_listed_taken_away_and_explained() {
    let db = Database::migrated();
    let settings = ["--concurrency", "50", "--rate", "1000/1m:100", "--ordered", "block", "--ageing", "30s"];
    expect![[r#"
        stderr: queue mail: set, from the next claim on
    "#]]
    .assert_eq(&db.ambo(&[&["queue", "set", "mail"], &settings[..]].concat()).shown());
    expect![[r#"
        {"name":"mail","settings":{"rate":null,"ageing":null}}
        stderr: queue mail: set, from the next claim on
    "#]]
    .assert_eq(&db.ambo(&["queue", "set", "mail", "--rate", "none", "--ageing", "none", "--json"]).shown());
    expect![[r#"
        QUEUE    STATE   READY  OLDEST  LIMITS
        default  active      0
        mail     active      0          concurrency 50, groups, ordered block
    "#]]
    .assert_eq(&db.ambo(&["queue", "list"]).shown());
    expect![[r#"
        stderr: error: invalid value 'fast' for '--rate <RATE|none>': write it as 100/1m, or with what is allowed at once as 100/1m:10
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]].assert_eq(&db.ambo(&["queue", "set", "mail", "--rate", "fast"]).shown());
    expect![[r#"
        stderr: error: AMBO008: queue 'default' has no groups (Give it groups, once: select ambo.set_queue('default', '{"groups": true}').)
        stderr:   see docs/errors/AMBO008.md
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "enqueue", "w", "--group", "a"]).shown());
    let id = db.ambo(&["run", "enqueue", "w", "--queue", "mail", "--group", "a", "--weight", "3"]).done();
    expect![[r#"
        stderr: queue mail, group a: paused; runs in execution go on
    "#]]
    .assert_eq(&db.ambo(&["queue", "pause", "mail", "--group", "a"]).shown());
    expect![[r#"
        no worker: no live worker serves the queue 'mail'
        group paused: the group 'a' is paused
    "#]]
    .assert_eq(&db.ambo(&["run", "why", id.trim()]).shown());
    expect![[r#"
        {"reason":"no worker","explanation":"no live worker serves the queue 'mail'","run":null,"until":null}
        {"reason":"group paused","explanation":"the group 'a' is paused","run":null,"until":null}
    "#]]
    .assert_eq(&db.ambo(&["run", "why", id.trim(), "--json"]).shown());
    expect![[r#"
        stderr: queue mail, group a: its share is set
    "#]]
    .assert_eq(&db.ambo(&["queue", "share", "mail", "a", "5"]).shown());
    expect![[r#"
        stderr: no group is blocked
    "#]]
    .assert_eq(&db.ambo(&["queue", "blocked"]).shown());
    expect![[r#"
        stderr: queue mail, group a: was not blocked
    "#]]
    .assert_eq(&db.ambo(&["queue", "unblock", "mail", "a"]).shown());
    for unknown in [&["blocked", "post"][..], &["unblock", "post", "a"]] {
        expect![[r#"
            stderr: error: AMBO002: there is no queue 'post' (Create it with ambo.create_queue(name), or start a worker that serves it.)
            stderr:   `ambo queue list` shows the queues, `ambo queue create NAME` makes one (docs/errors/AMBO002.md)
            exit status: 1
        "#]].assert_eq(&db.ambo(&[&["queue"], unknown].concat()).shown());
    }
}

#[test]
fn groups_that_are_held_up_or_have_a_share_are_shown() {
    let db = Database::migrated();
    db.ambo(&["queue", "set", "mail", "--ordered", "block"]).done();
    expect![[r#"
        stderr: no group is paused, drained or blocked, or has a share of its own
    "#]]
    .assert_eq(&db.ambo(&["queue", "groups"]).shown());
    db.ambo(&["queue", "pause", "mail", "--group", "a"]).done();
    db.ambo(&["queue", "drain", "mail", "--group", "a"]).done();
    db.ambo(&["queue", "share", "mail", "b", "3"]).done();
    db.ambo(&["queue", "pause", "mail", "--group", "c"]).done();
    expect![[r#"
        {"name":"mail","group":"c","paused":false,"draining":false}
        stderr: queue mail, group c: active
    "#]]
    .assert_eq(&db.ambo(&["queue", "resume", "mail", "--group", "c", "--json"]).shown());
    let id = db.ambo(&["run", "enqueue", "w", "--queue", "mail", "--group", "d"]).done();
    let block = "insert into ambo.head (queue, group_key, run_id) select 'mail', 'd', run_id from ambo.ready;
         insert into ambo.outcome (run_id, attempt, status) select run_id, 1, 'dead' from ambo.ready; delete from ambo.ready";
    db.sql.run(block);
    expect![[r#"
        QUEUE  GROUP  STATE             SHARE  RUN THAT FAILED
        mail   a      paused, draining      1
        mail   b      active                3
        mail   d      blocked               1  00000000-0000-0000-0000-000000000000
    "#]]
    .assert_eq(&db.ambo(&["queue", "groups", "mail"]).shown());
    let json = db.ambo(&["queue", "groups", "--json"]).done();
    let first = r#"{"queue":"mail","group":"a","paused":true,"draining":true,"share":1,"blocked_by":null}"#;
    assert_eq!((json.lines().next(), json.lines().count()), (Some(first), 3), "{json}");
    let doctor = db.ambo(&["doctor"]).shown();
    for said in [
        "paused: a (queue mail)",
        "because a run of theirs failed: d",
        "take no new runs (AMBO009): group a (queue mail)",
        "ok    dead_letters        1\n",
    ] {
        assert!(doctor.contains(said), "{said}:\n{doctor}");
    }
    // A run tells its group, and is found by it.
    assert!(db.ambo(&["run", "show", id.trim()]).shown().contains("group       d\n"));
    db.ambo(&["run", "enqueue", "w", "--queue", "mail", "--group", "e"]).done();
    expect![[r#"
        ID                                    WORKFLOW  GROUP  STATE  ATTEMPT  AGE
        00000000-0000-0000-0000-000000000000  w         d      dead         1  AGE
    "#]]
    .assert_eq(&db.ambo(&["run", "list", "--group", "d"]).shown());
    assert!(db.ambo(&["dead", "list", "--group", "e"]).shown().contains("no dead"));
    assert!(db.ambo(&["dead", "list", "--group", "d", "--json"]).done().contains("\"group\":\"d\""));
    assert!(db.ambo(&["run", "cancel", "--group", "e", "--yes"]).shown().contains("done: 1 of 1 run"));
    expect![[r#"
        stderr: error: AMBO002: there is no queue 'post' (Create it with ambo.create_queue(name), or start a worker that serves it.)
        stderr:   `ambo queue list` shows the queues, `ambo queue create NAME` makes one (docs/errors/AMBO002.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["queue", "groups", "post"]).shown());
}
