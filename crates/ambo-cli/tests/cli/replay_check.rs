//! The replay check, as an operator asks for it.

use expect_test::expect;

use crate::harness::Database;

/// A program that answers as a worker does.
fn answering(db: &Database, answer: &str) -> String {
    let script = format!(
        "[ -n \"$DATABASE_URL\" ] && echo \"asked: $AMBO_REPLAY_CHECK\" >&2; echo noise; echo '{answer}'"
    );
    db.ambo(&["replay-check", "--workflow", "fulfil", "--limit", "7", "--", "sh", "-c", &script]).shown()
}

#[test]
fn what_a_program_finds_is_shown() {
    let db = Database::migrated();
    expect![[r#"
        stderr: asked: {"limit":7,"state":null,"workflow":"fulfil"}
        stderr: 3 runs checked: the code does what they recorded
    "#]]
    .assert_eq(&answering(&db, r#"AMBO_REPLAY_CHECK {"checked": 3, "differences": []}"#));
    expect![[r#"
        stderr: asked: {"limit":7,"state":null,"workflow":"fulfil"}
        stderr: error: nothing was checked: no such run is recorded
        stderr:   `ambo run list` shows the runs, `ambo workflow list` the names of workflows
        exit status: 1
    "#]]
    .assert_eq(&answering(&db, r#"AMBO_REPLAY_CHECK {"checked": 0, "differences": []}"#));
    let difference =
        r#"{"run": "0199c1a0-0000-7000-8000-000000000001", "workflow": "fulfil", "position": "2",
        "text": "position 2 holds \"ship\", but the code now calls \"pack\" there"}"#
            .replace('\n', " ");
    let answer = format!(r#"AMBO_REPLAY_CHECK {{"checked": 3, "differences": [{difference}]}}"#);
    expect![[r#"
        RUN                                   WORKFLOW  POSITION  DIFFERENCE
        00000000-0000-0000-0000-000000000000  fulfil    2         position 2 holds "shi…
        stderr: asked: {"limit":7,"state":null,"workflow":"fulfil"}
        stderr: fulfil 00000000-0000-0000-0000-000000000000: position 2 holds "ship", but the code now calls "pack" there
        stderr: 3 runs checked: the code differs from 1; change it under `cx.patched`, or pin versions
        exit status: 1
    "#]].assert_eq(&answering(&db, &answer));
    let unread = difference.replace('}', r#", "is_unread": true}"#);
    let answer = format!(r#"AMBO_REPLAY_CHECK {{"checked": 3, "differences": [{unread}]}}"#);
    let shown = answering(&db, &answer);
    expect![[r#"
        stderr: 1 run not checked: the program cannot read what is recorded; give it the keys and the object store
        stderr: 2 runs checked: the code does what they recorded
        exit status: 1
    "#]]
    .assert_eq(&shown.lines().skip(4).map(|line| format!("{line}\n")).collect::<String>());
    let two = r#"AMBO_REPLAY_CHECK {"checked": 3, "unknown": {"gone": 2}, "differences": []}"#;
    expect![[r#"
        stderr: asked: {"limit":7,"state":null,"workflow":"fulfil"}
        stderr: not checked: 2 runs of "gone", which this program does not register
        stderr: 3 runs checked: the code does what they recorded
    "#]]
    .assert_eq(&answering(&db, two));
    let none = r#"AMBO_REPLAY_CHECK {"checked": 0, "unknown": {"gone": 1}, "differences": []}"#;
    expect![[r#"
        stderr: asked: {"limit":7,"state":null,"workflow":"fulfil"}
        stderr: not checked: 1 run of "gone", which this program does not register
        stderr: error: nothing was checked: the program has no such workflow
        stderr:   name the program whose worker runs them, or with --workflow one that this program has
        exit status: 1
    "#]]
    .assert_eq(&answering(&db, none));
    expect![[r#"
        stderr: boom
        stderr: error: `sh` ended without a check (exit status: 3)
        stderr:   name the program that starts the worker, built with this version of the library
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["replay-check", "--", "sh", "-c", "echo boom >&2; exit 3"]).shown());
    expect![[r#"
        stderr: error: invalid value 'bogus' for '--state <STATE>'
        stderr:   [possible values: ready, delayed, running, parked, succeeded, failed, cancelled, dead]
        stderr: 
        stderr: For more information, try '--help'.
        exit status: 2
    "#]]
    .assert_eq(&db.ambo(&["replay-check", "--state", "bogus", "--", "sh"]).shown());
    expect![[r#"
        stderr: asked: {"limit":7,"state":null,"workflow":"fulfil"}
        stderr: error: `sh` ended without a check (exit status: 0)
        stderr:   name the program that starts the worker, built with this version of the library
        exit status: 1
    "#]]
    .assert_eq(&answering(&db, "nothing"));
    expect![[r#"
        stderr: error: cannot run `no-such-program`: No such file or directory (os error 2)
        stderr:   is it installed and spelt so?
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["replay-check", "--", "no-such-program"]).shown());
}
