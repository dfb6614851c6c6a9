//! Runs, queues and workers, as an operator sees and steers them.

use expect_test::expect;

use crate::harness::Database;

/// Runs in five states, a worker, and steps of two of the runs.
fn stage() -> Database {
    let db = Database::migrated();
    db.ambo(&["queue", "create", "mail"]).done();
    let enqueue = |arguments: &[&str]| {
        let arguments = [&["run", "enqueue"], arguments].concat();
        db.ambo(&arguments).done().trim().to_owned()
    };
    let failed = enqueue(&[
        "fulfil",
        "{\"id\": 1001,\n \"note\": \"a text that goes on for longer than a line has room, and on\"}",
        "--key",
        "order-1001",
    ]);
    let running = enqueue(&["fulfil", "{\"id\": 1002}", "--priority", "-5"]);
    enqueue(&["a-workflow-whose-name-is-longer-than-its-column", "--queue", "mail"]);
    enqueue(&["remind", "--delay", "2d"]);
    let succeeded = enqueue(&["greet", "\"world\""]);
    db.sql.run(&format!(
        "select ambo.register_worker('host-1', '1.4.0', 4711, '{{default,mail}}', '{{fulfil,greet}}', false);
         select ambo.heartbeat(1, 1, false);
         update ambo.heartbeat set at = at + interval '1 hour';
         delete from ambo.ready where run_id in ('{failed}', '{running}', '{succeeded}');
         insert into ambo.claim (run_id, worker_id, attempt, losses) values ('{running}', 1, 2, 0);
         insert into ambo.outcome (run_id, attempt, status, error) values
             ('{failed}', 1, 'failed', '{{\"code\":\"AMBO027\",\"message\":\"card declined\"}}');
         insert into ambo.outcome (run_id, attempt, status, output) values ('{succeeded}', 1, 'succeeded', '\"hello\"');
         insert into ambo.checkpoint (run_id, recorded_at, attempt, elapsed_ms, position, name, output, error) values
             ('{failed}', now() - interval '2 seconds', 1, 12, '0', 'reserve stock', '{{\"left\": 3}}', null),
             ('{failed}', now() - interval '1 second', 1, 61250, '1', 'charge', null,
              '{{\"code\":\"AMBO027\",\"message\":\"card declined\"}}');"
    ));
    db
}

fn id(db: &Database, state: &str) -> String {
    let line = db.ambo(&["run", "list", "--state", state, "--limit", "1", "--json"]).done();
    let run: serde_json::Value = serde_json::from_str(&line).expect("a run");
    run["id"].as_str().expect("an id").to_owned()
}

#[test]
fn runs_are_listed_newest_first() {
    let db = stage();
    let list = db.ambo(&["run", "list"]);
    assert!(list.stdout.lines().all(|line| line.chars().count() <= 80), "{list:?}");
    expect![[r#"
        ID                                    WORKFLOW           STATE      ATTEMPT  AGE
        00000000-0000-0000-0000-000000000000  greet              succeeded        1  AGE
        00000000-0000-0000-0000-000000000001  remind             delayed          0  AGE
        00000000-0000-0000-0000-000000000002  a-workflow-whose…  ready            -  AGE
        00000000-0000-0000-0000-000000000003  fulfil             running          2  AGE
        00000000-0000-0000-0000-000000000004  fulfil             failed           1  AGE
    "#]]
    .assert_eq(&list.shown());
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","workflow":"greet","queue":"default","group":null,"state":"succeeded","attempt":1,"key":null,"priority":0,"enqueued_at":"TIME","ended_at":"TIME","worker":null,"error":null,"parent":null,"attributes":null}
        {"id":"00000000-0000-0000-0000-000000000001","workflow":"remind","queue":"default","group":null,"state":"delayed","attempt":0,"key":null,"priority":0,"enqueued_at":"TIME","ended_at":null,"worker":null,"error":null,"parent":null,"attributes":null}
    "#]].assert_eq(&db.ambo(&["run", "list", "--json", "--limit", "2"]).shown());
    expect![[r#"
        ID                                    WORKFLOW  STATE   ATTEMPT  AGE
        00000000-0000-0000-0000-000000000000  fulfil    failed        1  AGE
    "#]]
    .assert_eq(&db.ambo(&["run", "list", "--workflow", "fulfil", "--state", "failed"]).shown());
    expect![[r#"
        ID                                    WORKFLOW               STATE  ATTEMPT  AGE
        00000000-0000-0000-0000-000000000000  a-workflow-whose-nam…  ready        -  AGE
        stderr: there may be more: --before 00000000-0000-0000-0000-000000000000
    "#]]
    .assert_eq(&db.ambo(&["run", "list", "--queue", "mail", "--limit", "1"]).shown());
    expect![[r#"
        stderr: no such runs
    "#]]
    .assert_eq(&db.ambo(&["run", "list", "--workflow", "nobody"]).shown());
    let before = id(&db, "running");
    expect![[r#"
        ID                                    WORKFLOW  STATE   ATTEMPT  AGE
        00000000-0000-0000-0000-000000000000  fulfil    failed        1  AGE
    "#]]
    .assert_eq(&db.ambo(&["run", "list", "--before", &before]).shown());
}

#[test]
fn payloads_are_shown_only_when_asked_for() {
    let db = stage();
    let failed = id(&db, "failed");
    // Ambo's own records hold what was given to it too.
    db.sql.run(&format!(
        "insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output)
         select '{failed}', 1, 0, n::text, name, '{{\"input\": \"4111 1111 1111 1111\"}}'
         from unnest(array['ambo:continued', 'ambo:signal go', 'ambo:await k of r', 'ambo:result child']) with ordinality t (name, n)
         on conflict (run_id, position) do update set name = excluded.name, output = excluded.output, error = null"
    ));
    for form in [&["run", "show", &failed][..], &["run", "show", &failed, "--json"]] {
        let shown = db.ambo(form).shown();
        assert!(!shown.contains("a text that goes on") && !shown.contains("\"left\""), "{shown}");
        assert!(!shown.contains("4111") && shown.contains("ambo:continued"), "{shown}");
        assert!(
            shown.contains("84 bytes") || shown.contains("{\"ambo:redacted\":{\"bytes\":84}}"),
            "{shown}"
        );
    }
}

#[test]
fn a_run_is_shown_with_its_steps() {
    let db = stage();
    let failed = id(&db, "failed");
    let show = db.ambo(&["run", "show", &failed, "--payload"]);
    assert!(show.stdout.lines().all(|line| line.chars().count() <= 80), "{show:?}");
    expect![[r#"
        run         00000000-0000-0000-0000-000000000000
        workflow    fulfil
        queue       default
        key         order-1001
        state       failed
        attempt     1
        enqueued    TIME UTC (AGE ago)
        ended       TIME UTC (AGE ago)
        input       {"id": 1001, "note": "a text that goes on for longer than a line ha…
        error       AMBO027: card declined
                    docs/errors/AMBO027.md

        POSITION  STEP           ATTEMPT  TOOK  RESULT
        0         reserve stock        1  12ms  {"left": 3}
        1         charge               1   61s  AMBO027: card declined
    "#]]
    .assert_eq(&show.shown());
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","workflow":"fulfil","queue":"default","group":null,"state":"failed","attempt":1,"key":"order-1001","priority":0,"enqueued_at":"TIME","ended_at":"TIME","worker":null,"error":{"code":"AMBO027","message":"card declined"},"parent":null,"attributes":null,"input":{"id": 1001,  "note": "a text that goes on for longer than a line has room, and on"},"output":null,"cancel_requested":false,"undo_by":null,"signals":[],"steps":[{"position":"0","name":"reserve stock","attempt":1,"recorded_at":"TIME","elapsed_ms":12,"output":{"left": 3},"error":null},{"position":"1","name":"charge","attempt":1,"recorded_at":"TIME","elapsed_ms":61250,"output":null,"error":{"code":"AMBO027","message":"card declined"}}]}
    "#]].assert_eq(&db.ambo(&["run", "show", &failed, "--json", "--payload"]).shown());
    expect![[r#"
        run         00000000-0000-0000-0000-000000000000
        workflow    fulfil
        queue       default
        priority    -5
        state       running
        attempt     2
        worker      1
        enqueued    TIME UTC (AGE ago)
        input       {"id": 1002}
        stderr: no step is recorded
    "#]]
    .assert_eq(&db.ambo(&["run", "show", &id(&db, "running"), "--payload"]).shown());
    let missing = "00000000-0000-7000-8000-000000000000";
    expect![[r#"
        stderr: error: AMBO033: there is no run 00000000-0000-0000-0000-000000000000
        stderr:   `ambo run list` shows the runs; history older than the retention is dropped (docs/errors/AMBO033.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "show", missing]).shown());
}

#[test]
fn a_run_is_cancelled_and_retried() {
    let db = stage();
    let ready = id(&db, "ready");
    expect![[r#"
        stderr: run 00000000-0000-0000-0000-000000000000: cancelled
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", &ready, "--reason", "not wanted"]).shown());
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","result":"cancelled"}
        stderr: run 00000000-0000-0000-0000-000000000000: cancelled
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", &ready, "--json"]).shown());
    expect![[r#"
        stderr: run 00000000-0000-0000-0000-000000000000: ready to run again, from its checkpoints
    "#]]
    .assert_eq(&db.ambo(&["run", "retry", &ready]).shown());
    expect![[r#"
        stderr: error: AMBO034: run 00000000-0000-0000-0000-000000000000 is ready; only a failed, cancelled or dead run can be retried
        stderr:   `ambo run show 00000000-0000-0000-0000-000000000000` says how it stands (docs/errors/AMBO034.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "retry", &ready]).shown());
    let running = id(&db, "running");
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","result":"requested"}
        stderr: run 00000000-0000-0000-0000-000000000000: asked to end; it does at its next durable call, or at once where it may
    "#]]
    .assert_eq(&db.ambo(&["run", "cancel", &running, "--json"]).shown());
    let shown = db.ambo(&["run", "show", &running]).done();
    assert!(shown.contains("asked to end") && !shown.contains("undone or not"), "{shown}");
    let within = db.ambo(&["run", "cancel", &running, "--grace", "10m"]).shown();
    assert!(within.contains("asked to end") && !within.contains("exit status"), "{within}");
    let shown = db.ambo(&["run", "show", &running]).shown();
    assert!(shown.contains("it has ended by TIME UTC (in 9m), undone or not"), "{shown}");
    let shown = db.ambo(&["run", "show", &running, "--json"]).done();
    let by = db.sql.text("select to_json(undo_by) #>> '{}' from ambo.cancel_request");
    let told: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let moment = |text: &str| text.parse::<jiff::Timestamp>().expect("a time");
    assert_eq!(moment(told["undo_by"].as_str().expect("a time")), moment(&by));
    let at_most = db.ambo(&["run", "cancel", &running, "--grace", "20y"]).shown();
    assert!(at_most.contains("exit status"), "{at_most}");
    let none = db.ambo(&["run", "cancel", &running, "--grace", "0s"]).shown();
    assert!(none.contains("AMBO005: the grace of a cancel"), "{none}");
    expect![[r#"
        stderr: error: run 00000000-0000-0000-0000-000000000000 has succeeded already: nothing is left to cancel
        stderr:   `ambo run show 00000000-0000-0000-0000-000000000000` shows how
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "cancel", &id(&db, "succeeded")]).shown());
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","state":"ready"}
        stderr: run 00000000-0000-0000-0000-000000000000: ready to run again, from its checkpoints
    "#]]
    .assert_eq(&db.ambo(&["run", "retry", &id(&db, "failed"), "--json"]).shown());
    let missing = "00000000-0000-7000-8000-000000000000";
    db.ambo(&["run", "cancel", missing]).failed(1);
    db.ambo(&["run", "retry", missing]).failed(1);
}

#[test]
fn a_key_means_one_run() {
    let db = Database::migrated();
    let first = db.ambo(&["run", "enqueue", "fulfil", "{\"id\": 1}", "--key", "k"]).done();
    let second = db.ambo_reading("{\"id\":1}\n", &["run", "enqueue", "fulfil", "-", "--key", "k"]);
    assert_eq!(second.stdout, first);
    assert_eq!(second.stderr, "the key names a run that is there already; nothing was enqueued\n");
    expect![[r#"
        stderr: error: AMBO003: key 'k' of workflow 'fulfil' names a run that has another input (A key means one run: use another key for another input.)
        stderr:   see docs/errors/AMBO003.md
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "enqueue", "fulfil", "{\"id\": 2}", "--key", "k"]).shown());
    expect![[r#"
        stderr: error: AMBO002: there is no queue 'nowhere' (Create it with ambo.create_queue(name), or start a worker that serves it.)
        stderr:   `ambo queue list` shows the queues, `ambo queue create NAME` makes one (docs/errors/AMBO002.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["run", "enqueue", "fulfil", "--queue", "nowhere"]).shown());
    expect![[r#"
        stderr: error: the input on stdin is not JSON: EOF while parsing an object at line 1 column 1; a text needs its quotes, as in '"text"'
        stderr:   for a run without input, leave it out
        exit status: 2
    "#]].assert_eq(&db.ambo_reading("{", &["run", "enqueue", "fulfil", "-"]).shown());
    expect![[r#"
        {"id":"00000000-0000-0000-0000-000000000000","is_new":true}
    "#]]
    .assert_eq(&db.ambo(&["run", "enqueue", "fulfil", "--json"]).shown());
}

#[test]
fn queues_are_listed_created_paused_and_resumed() {
    let db = stage();
    expect![[r#"
        stderr: queue mail: paused; runs in execution go on
    "#]]
    .assert_eq(&db.ambo(&["queue", "pause", "mail"]).shown());
    expect![[r#"
        QUEUE    STATE   READY  OLDEST  LIMITS
        default  active      0
        mail     paused      1  AGE
    "#]]
    .assert_eq(&db.ambo(&["queue", "list"]).shown());
    expect![[r#"
        {"name":"default","paused":false,"draining":false,"ready":0,"ready_is_capped":false,"oldest_ready_at":null,"settings":{}}
        {"name":"mail","paused":true,"draining":false,"ready":1,"ready_is_capped":false,"oldest_ready_at":"TIME","settings":{}}
    "#]]
    .assert_eq(&db.ambo(&["queue", "list", "--json"]).shown());
    expect![[r#"
        {"name":"mail","paused":false,"draining":false}
        stderr: queue mail: active
    "#]]
    .assert_eq(&db.ambo(&["queue", "resume", "mail", "--json"]).shown());
    expect![[r#"
        {"name":"mail","is_new":false}
        stderr: queue mail: there already, unchanged
    "#]]
    .assert_eq(&db.ambo(&["queue", "create", "mail", "--json"]).shown());
    expect![[r#"
        stderr: error: AMBO002: there is no queue 'nowhere' (Create it with ambo.create_queue(name), or start a worker that serves it.)
        stderr:   `ambo queue list` shows the queues, `ambo queue create NAME` makes one (docs/errors/AMBO002.md)
        exit status: 1
    "#]].assert_eq(&db.ambo(&["queue", "pause", "nowhere"]).shown());
    expect![[r#"
        stderr: error: AMBO001: the name of a queue has 1 to 200 bytes, not 0
        stderr:   see docs/errors/AMBO001.md
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["queue", "create", ""]).shown());
}

#[test]
fn workers_are_listed() {
    let db = stage();
    db.sql.run(
        "select ambo.register_worker('a-host-with-a-name-that-is-rather-long', '', 7, '{default}',
                                     '{fulfil,greet,remind,report,and-some-more}', false);
         update ambo.heartbeat set at = now() - interval '3 hours' where worker_id = 2;
         update ambo.worker set started_at = now() - interval '2 days'",
    );
    let list = db.ambo(&["worker", "list"]);
    assert!(list.stdout.lines().all(|line| line.chars().count() <= 80), "{list:?}");
    expect![[r#"
        ID  NAME             VERSION  STATE      RUNS  UP  QUEUES        WORKFLOWS
         1  host-1           1.4.0    keeper        1  2d  default,mail  fulfil,greet
         2  a-host-with-a-…           silent 3h     0  2d  default       fulfil,greet,r…
    "#]]
    .assert_eq(&list.shown());
    let lines = db.ambo(&["worker", "list", "--json"]).done();
    let first: serde_json::Value =
        serde_json::from_str(lines.lines().next().expect("a worker")).expect("JSON");
    assert_eq!(
        (&first["name"], &first["is_keeper"], &first["in_flight"]),
        (&"host-1".into(), &true.into(), &1.into())
    );
    expect![[r#"
        stderr: no worker is registered: start a program that has one
    "#]]
    .assert_eq(&Database::migrated().ambo(&["worker", "list"]).shown());
}
