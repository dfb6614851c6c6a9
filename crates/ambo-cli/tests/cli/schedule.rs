//! Schedules, as an operator sees and steers them.

use expect_test::expect;

use crate::harness::Database;

#[test]
fn schedules_are_set_listed_paused_triggered_and_backfilled() {
    let db = Database::migrated();
    let ambo = |arguments: &[&str]| db.ambo(&[&["schedule"], arguments].concat()).shown();
    expect![[r#"
        stderr: no schedules
    "#]]
    .assert_eq(&ambo(&["list"]));
    let nightly = [
        "set",
        "nightly",
        "report",
        "{\"kind\": \"daily\"}",
        "--cron",
        "30 3 * * *",
        "--timezone",
        "Europe/Berlin",
    ];
    expect![[r#"
        stderr: schedule nightly: created
    "#]]
    .assert_eq(&ambo(&nightly));
    expect![[r#"
        {"is_new":false,"name":"nightly"}
        stderr: schedule nightly: changed
    "#]]
    .assert_eq(&ambo(&[nightly.as_slice(), &["--overlap", "queue", "--json"]].concat()));
    let often = ["set", "often", "report", "--every", "90s"];
    let options = ["--attribute", "team=7", "--priority", "-3", "--timeout", "5m", "--attempts", "2"];
    expect![[r#"
        stderr: schedule often: created
    "#]]
    .assert_eq(&ambo(&[&often[..], &options].concat()));
    expect![[r#"
        stderr: schedule often: paused
    "#]]
    .assert_eq(&ambo(&["pause", "often"]));
    assert!(ambo(&["list"]).lines().all(|line| line.chars().count() <= 80));
    assert!(ambo(&["list"]).contains("30 3 * * * Europe/Berlin"), "{}", ambo(&["list"]));
    assert!(ambo(&["list"]).contains("paused"));
    assert!(ambo(&["list"]).contains("every 1m 30s"), "{}", ambo(&["list"]));
    expect![[r#"
        00000000-0000-0000-0000-000000000000
    "#]]
    .assert_eq(&ambo(&["trigger", "often"]));
    let as_it_says =
        "select count(*)::text from ambo.run r where r.attributes ->> 'team' = '7' and r.priority = -3
        and r.timeout = '5 min' and r.attempts_max = 2";
    assert_eq!(db.sql.text(as_it_says), "1");
    expect![[r#"
        00000000-0000-0000-0000-000000000000
        00000000-0000-0000-0000-000000000001
        stderr: schedule nightly: 2 ticks in this time, each with its run
    "#]]
    .assert_eq(&ambo(&[
        "backfill",
        "nightly",
        "--from",
        "2026-03-28T00:00:00Z",
        "--to",
        "2026-03-30T00:00:00Z",
    ]));
    expect![[r#"
        {"name":"often","paused":false}
        stderr: schedule often: goes on
    "#]]
    .assert_eq(&ambo(&["resume", "often", "--json"]));
    expect![[r#"
        stderr: schedule often: deleted; its runs stay
    "#]]
    .assert_eq(&ambo(&["delete", "often"]));
    expect![[r#"
        stderr: error: AMBO035: there is no schedule 'often' (ambo schedule list shows those that there are.)
        stderr:   see docs/errors/AMBO035.md
        exit status: 1
    "#]]
    .assert_eq(&ambo(&["delete", "often"]));
    expect![[r#"
        stderr: error: AMBO005: the cron pattern "61 * * * *" cannot be read: "61" is no minute
        stderr:   see docs/errors/AMBO005.md
        exit status: 1
    "#]]
    .assert_eq(&ambo(&["set", "odd", "report", "--cron", "61 * * * *"]));
    expect![[r#"
        stderr: error: AMBO005: the cron pattern "@reboot" cannot be read: of this kind there are @yearly, @monthly, @weekly, @daily and @hourly
        stderr:   see docs/errors/AMBO005.md
        exit status: 1
    "#]].assert_eq(&ambo(&["set", "odd", "report", "--cron", "@reboot"]));
    expect![[r#"
        stderr: error: the following required arguments were not provided:
        stderr:   <--cron <PATTERN>|--every <TIME>>
        stderr: 
        stderr: Usage: ambo schedule set [OPTIONS] --cron <PATTERN> <NAME> <WORKFLOW> [INPUT]
        stderr:        ambo schedule set [OPTIONS] --every <TIME> <NAME> <WORKFLOW> [INPUT]
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]]
    .assert_eq(&ambo(&["set", "odd", "report"]));
    expect![[r#"
        stderr: error: AMBO005: a schedule comes once a second at most, not every 10ms
        stderr:   see docs/errors/AMBO005.md
        exit status: 1
    "#]]
    .assert_eq(&ambo(&["set", "odd", "report", "--every", "10ms"]));
}

#[test]
fn a_schedule_that_fails_is_told_apart_from_one_that_is_late() {
    let db = Database::migrated();
    for name in ["late", "odd", "stopped"] {
        db.ambo(&["schedule", "set", name, "report", "--cron", "* * * * *"]).done();
    }
    db.sql.run(
        "update ambo.schedule set next_at = now() - interval '2 hours';
         update ambo.schedule set cron = 'at dawn' where name = 'odd';
         update ambo.schedule set cron = '0 0 30 2 *', paused = true where name = 'stopped'",
    );
    expect![[r#"
        NAME     WORKFLOW  TIMES       NEXT        SKIPPED
        late     report    * * * * *   2h overdue        0
        odd      report    at dawn     failing           0
        stopped  report    0 0 30 2 *  stopped           0
        stderr: schedule odd: AMBO005: the cron pattern "at dawn" cannot be read: a pattern has 5 or 6 fields, not 2
        stderr: schedule stopped: it never comes again
    "#]]
    .assert_eq(&db.ambo(&["schedule", "list"]).shown());
    let doctor = db.ambo(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&doctor.stdout).expect("a report");
    let checks = report["checks"].as_array().expect("checks");
    let schedules = checks.iter().find(|check| check["name"] == "schedules").expect("a check of schedules");
    assert_eq!(schedules["status"], "warn");
    let message = schedules["message"].as_str().expect("a message");
    assert!(message.starts_with("odd: AMBO005"), "{message}");
    assert!(message.ends_with("stopped: it never comes again"), "{message}");
}
