//! Runs that are found and acted on, spoken to, and listened to.

use expect_test::expect;

use crate::harness::Database;

fn enqueue(db: &Database, arguments: &[&str]) -> String {
    db.ambo(&[&["run", "enqueue"], arguments].concat()).done().trim().to_owned()
}

#[test]
fn runs_are_found_by_what_they_are() {
    let db = Database::migrated();
    let one = enqueue(
        &db,
        &["fulfil", "{\"note\": \"Fragile\"}", "--attribute", "customer=7", "--attribute", "city=Bern"],
    );
    enqueue(&db, &["remind"]);
    for found in [
        ["--attribute", "customer=7", "--attribute", "city=Bern"].as_slice(),
        &["--text", "fragile"],
        &["--workflow", "fulfil", "--since", "1h"],
        &["--until", "2100-01-01T00:00:00Z", "--workflow", "fulfil"],
    ] {
        let listed = db.ambo(&[&["run", "list", "--json"], found].concat()).done();
        assert_eq!(listed.lines().count(), 1, "{found:?}: {listed}");
        assert!(listed.contains(&one), "{found:?}: {listed}");
    }
    for none in [["--attribute", "customer=8"], ["--since", "2100-01-01T00:00:00Z"], ["--parent", &one]] {
        assert_eq!(db.ambo(&[&["run", "list"], none.as_slice()].concat()).done(), "", "{none:?}");
    }
    expect![[r#"
        stderr: error: invalid value 'customer' for '--attribute <KEY=VALUE>': expected KEY=VALUE, such as customer=1001
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]].assert_eq(&db.ambo(&["run", "list", "--attribute", "customer"]).shown());
    expect![[r#"
        stderr: error: invalid value 'soon' for '--since <TIME>': expected a time such as TIME, or a span such as 2d
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]].assert_eq(&db.ambo(&["run", "list", "--since", "soon"]).shown());
    expect![[r#"
        run         00000000-0000-0000-0000-000000000000
        workflow    fulfil
        queue       default
        attributes  {"city": "Bern", "customer": 7}
        state       ready
        attempt     -
        enqueued    TIME UTC (AGE ago)
        input       {"note": "Fragile"}
        stderr: no step is recorded
    "#]]
    .assert_eq(&db.ambo(&["run", "show", &one, "--payload"]).shown());
}

#[test]
fn many_runs_are_shown_before_they_are_cancelled() {
    let db = Database::migrated();
    for n in 0..12 {
        enqueue(&db, &["fulfil", &n.to_string()]);
    }
    let other = enqueue(&db, &["remind"]);
    expect![[r#"
        ID                                    WORKFLOW  STATE  ATTEMPT  AGE
        00000000-0000-0000-0000-000000000000  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000001  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000002  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000003  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000004  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000005  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000006  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000007  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000008  fulfil    ready        -  AGE
        00000000-0000-0000-0000-000000000009  fulfil    ready        -  AGE
        stderr: ... and 2 more
        stderr: nothing was done; add --yes to cancel 12 runs
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", "--workflow", "fulfil"]).shown());
    assert_eq!(db.sql.text("select count(*) from ambo.outcome"), "0", "nothing was done");
    expect![[r#"
        stderr: done: 12 of 12 runs
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", "--workflow", "fulfil", "--yes"]).shown());
    assert_eq!(db.sql.text("select count(*) from ambo.outcome where status = 'cancelled'"), "12");
    expect![[r#"
        stderr: error: no run was named
        stderr:   give ids, or options such as --workflow and --state
        exit status: 2
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel"]).shown());
    expect![[r#"
        stderr: error: both ids and options that find runs were given
        stderr:   give ids, or options such as --workflow and --state
        exit status: 2
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", &other, "--workflow", "remind"]).shown());
    expect![[r#"
        stderr: no such runs
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", "--workflow", "nobody", "--yes"]).shown());
    let cancelled = db.ambo(&["run", "list", "--state", "cancelled", "--limit", "1", "--json"]).done();
    let cancelled: serde_json::Value = serde_json::from_str(&cancelled).expect("a run");
    let cancelled = cancelled["id"].as_str().expect("an id").to_owned();
    expect![[r#"
        stderr: refused, 1 run: AMBO034: run 00000000-0000-0000-0000-000000000000 is ready; only a failed, cancelled or dead run can be retried
        stderr: done: 1 of 2 runs
    "#]].assert_eq(&db.ambo(&["run", "retry", &cancelled, &other]).shown());
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","reason":"AMBO034: run 00000000-0000-0000-0000-000000000000 is ready; only a failed, cancelled or dead run can be retried","refused":"AM034"}
        {"id":"00000000-0000-0000-0000-000000000000","reason":"AMBO034: run 00000000-0000-0000-0000-000000000000 is ready; only a failed, cancelled or dead run can be retried","refused":"AM034"}
        stderr: refused, 2 runs: AMBO034: run 00000000-0000-0000-0000-000000000000 is ready; only a failed, cancelled or dead run can be retried
        stderr: done: 0 of 2 runs
        stderr: error: every one of them refused
        stderr:   see the reasons above
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "retry", &other, &other, "--json"]).shown());
}

#[test]
fn a_run_is_rewound_and_forked() {
    let db = Database::migrated();
    let run = enqueue(&db, &["fulfil"]);
    db.sql.run(&format!(
        "delete from ambo.ready;
         insert into ambo.outcome (run_id, attempt, status) values ('{run}', 1, 'succeeded');
         insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output) values
             ('{run}', 1, 1, '1', 'one', '1'), ('{run}', 1, 1, '2', 'two', '2');"
    ));
    expect![[r#"
        00000000-0000-0000-0000-000000000000
        stderr: run 00000000-0000-0000-0000-000000000000: forked
    "#]]
    .assert_eq(&db.ambo(&["run", "fork", &run, "--at", "2"]).shown());
    assert_eq!(db.sql.text("select count(*) from ambo.checkpoint"), "3");
    expect![[r#"
        stderr: error: AMBO005: 'x' is not a position
        stderr:   `ambo run show 00000000-0000-0000-0000-000000000000` says how it stands (docs/errors/AMBO005.md)
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["run", "rewind", &run, "--to", "x"]).shown());
    for act in [&["rewind", "--to", "999"], &["fork", "--at", "999"]] {
        expect![[r#"
            stderr: error: AMBO005: run 00000000-0000-0000-0000-000000000000 has no position 999: its positions are 1 to 3
            stderr:   `ambo run show 00000000-0000-0000-0000-000000000000` says how it stands (docs/errors/AMBO005.md)
            exit status: 1
        "#]].assert_eq(&db.ambo(&[&["run"], act.as_slice(), &[&run]].concat()).shown());
    }
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","state":"ready"}
        stderr: run 00000000-0000-0000-0000-000000000000: ready to run again, from there
    "#]]
    .assert_eq(&db.ambo(&["run", "rewind", &run, "--to", "1", "--json"]).shown());
    assert_eq!(db.sql.text("select count(*) from ambo.checkpoint"), "1", "that of the fork");
    let nobody = "00000000-0000-7000-8000-000000000000";
    expect![[r#"
        stderr: error: AMBO033: there is no run 00000000-0000-0000-0000-000000000000
        stderr:   `ambo run list` shows the runs; history older than the retention is dropped (docs/errors/AMBO033.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "fork", nobody]).shown());
    expect![[r#"
        stderr: error: AMBO034: run 00000000-0000-0000-0000-000000000000 is ready; only one that has ended or is parked can be rewound
        stderr:   `ambo run show 00000000-0000-0000-0000-000000000000` says how it stands (docs/errors/AMBO034.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "rewind", &run, "--to", "1"]).shown());
}

#[test]
fn the_signals_that_wait_for_a_run_are_shown_and_what_they_say_only_when_asked_for() {
    let db = Database::migrated();
    let run = enqueue(&db, &["approve"]);
    let signals = |more: &[&str]| db.ambo(&[&["run", "signals", &run], more].concat()).shown();
    expect![[r#"
        stderr: no signal waits for run 00000000-0000-0000-0000-000000000000
    "#]]
    .assert_eq(&signals(&[]));
    for (topic, payload, key) in
        [("go", "1", "a"), ("decision", "\"secret\"", "b"), ("go", "{\"ok\": true}", "c")]
    {
        db.ambo(&["run", "signal", &run, topic, payload, "--key", key]).done();
    }
    // One that is taken, and a request.
    db.ambo(&["run", "signal", &run, "go", "\"taken\""]).done();
    db.sql.run(&format!(
        "select ambo.send_signal('{run}', 'add', '{{\"value\": 5, \"key\": \"d\"}}', 'ambo:answer d');
         update ambo.signal set sent_at = now() - interval '5 seconds';
         insert into ambo.checkpoint (run_id, recorded_at, attempt, elapsed_ms, position, name, output)
         select run_id, now(), 1, 0, '1', 'ambo:signal go', json_build_object('seq', seq, 'payload', payload)
         from ambo.signal where key is null"
    ));
    expect![[r#"
        NUMBER  TOPIC     KEY         AGE  PAYLOAD
             1  go        a            5s  (1 bytes; --payload shows them)
             2  decision  b            5s  (8 bytes; --payload shows them)
             3  go        c            5s  (12 bytes; --payload shows them)
             5  add       d (update)   5s  (24 bytes; --payload shows them)
    "#]]
    .assert_eq(&signals(&[]));
    expect![[r#"
        NUMBER  TOPIC     KEY         AGE  PAYLOAD
             1  go        a            5s  1
             2  decision  b            5s  "secret"
             3  go        c            5s  {"ok": true}
             5  add       d (update)   5s  {"value": 5, "key": "d"}
    "#]]
    .assert_eq(&signals(&["--payload"]));
    let lines = signals(&["--json"]);
    expect![[r#"
        {"number":1,"topic":"go","key":"a","is_update":false,"sent_at":"TIME","payload":{"ambo:redacted":{"bytes":1}}}"#]]
    .assert_eq(lines.lines().next().expect("a signal"));
    assert!(!lines.contains("secret") && signals(&["--json", "--payload"]).contains("\"secret\""), "{lines}");
    let shown = db.ambo(&["run", "show", &run]).shown();
    for said in ["2 under \"go\", the oldest since", "1 under \"decision\"", "1 under \"add\""] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    let shown = db.ambo(&["run", "show", &run, "--json"]).shown();
    assert!(shown.contains(r#"{"topic":"go","count":2,"oldest_at":"TIME"}"#), "{shown}");
    let nobody = "00000000-0000-7000-8000-000000000000";
    assert!(db.ambo(&["run", "signals", nobody]).failed(1).contains("AMBO033"));
}

#[test]
fn a_run_is_sent_signals_and_its_events_are_read() {
    let db = Database::migrated();
    let run = enqueue(&db, &["approve"]);
    let send = |payload: &str, more: &[&str]| {
        db.ambo(&[&["run", "signal", &run, "decision", payload], more].concat()).shown()
    };
    let read = |more: &[&str]| db.ambo(&[&["run", "events", &run, "progress"], more].concat()).shown();
    let keys = |more: &[&str]| db.ambo(&[&["run", "events", &run], more].concat()).shown();
    expect![[r#"
        stderr: signal to run 00000000-0000-0000-0000-000000000000: sent
    "#]]
    .assert_eq(&send("{\"ok\": true}", &["--key", "d-1"]));
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","is_new":false,"topic":"decision"}
        stderr: signal to run 00000000-0000-0000-0000-000000000000: its key was used for it before; nothing was sent
    "#]].assert_eq(&send("{\"ok\": true}", &["--key", "d-1", "--json"]));
    expect![[r#"
        stderr: error: AMBO003: key 'd-1' of run 00000000-0000-0000-0000-000000000000 names another signal (A key means one signal: use another key for another one.)
        stderr:   see docs/errors/AMBO003.md
        exit status: 1
    "#]].assert_eq(&send("{\"ok\": false}", &["--key", "d-1"]));
    expect![[r#"
        stderr: error: invalid value 'yes' for '[PAYLOAD]': not JSON: expected value at line 1 column 1; a text needs its quotes, as in '"text"'
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]].assert_eq(&send("yes", &[]));
    let nobody = "00000000-0000-7000-8000-000000000000";
    expect![[r#"
        stderr: error: AMBO033: there is no run 00000000-0000-0000-0000-000000000000
        stderr:   `ambo run list` shows the runs; history older than the retention is dropped (docs/errors/AMBO033.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "signal", nobody, "decision"]).shown());
    let number = db.sql.text("select seq::text from ambo.signal");
    for (number, said) in [
        (number.as_str(), "stderr: signal {n} to run 00000000-0000-0000-0000-000000000000: dropped\n"),
        (
            "7000000",
            "stderr: error: no signal {n} waits for run 00000000-0000-0000-0000-000000000000\n\
             stderr:   `ambo run signals ID` shows those that do\n\
             exit status: 1\n",
        ),
    ] {
        let dropped = db.ambo(&["run", "drop-signal", &run, number]).shown();
        assert_eq!(dropped, said.replace("{n}", number));
    }
    for more in [&[][..], &["--json"], &["--follow"]] {
        expect![[r#"
            stderr: error: AMBO033: there is no run 00000000-0000-0000-0000-000000000000
            stderr:   `ambo run list` shows the runs; history older than the retention is dropped (docs/errors/AMBO033.md)
            exit status: 1
        "#]].assert_eq(&db.ambo(&[&["run", "events", nobody, "progress"], more].concat()).shown());
    }
    expect![[r#"
        stderr: run 00000000-0000-0000-0000-000000000000 has published nothing under "progress" after number 0
    "#]]
    .assert_eq(&read(&[]));
    db.sql.run(&format!(
        "insert into ambo.event (run_id, key, number, value)
         values ('{run}', 'progress', 1, '10'), ('{run}', 'progress', 2, '20')"
    ));
    expect![[r#"
        1  10
        2  20
    "#]]
    .assert_eq(&read(&[]));
    expect![[r#"
        {"number":2,"value":20}
    "#]]
    .assert_eq(&read(&["--after", "1", "--json"]));
    db.ambo(&["run", "cancel", &run]).done();
    expect![[r#"
        1  10
        2  20
    "#]]
    .assert_eq(&read(&["--follow"]));
    expect![[r#"
        stderr: error: AMBO034: run 00000000-0000-0000-0000-000000000000 has ended and takes no more signals
        stderr:   `ambo run show ID` says how it stands (docs/errors/AMBO034.md)
        exit status: 1
    "#]]
    .assert_eq(&send("null", &[]));
    expect![[r#"
        KEY       VALUES
        progress       2
    "#]]
    .assert_eq(&keys(&[]));
    expect![[r#"
        {"key":"progress","last":2}
    "#]]
    .assert_eq(&keys(&["--json"]));
    expect![[r#"
        stderr: error: the following required arguments were not provided:
        stderr:   <KEY>
        stderr: 
        stderr: Usage: ambo run events --follow --database-url <URL> <ID> <KEY>
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]]
    .assert_eq(&keys(&["--follow"]));
}
