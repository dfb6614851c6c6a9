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
        stderr: 3 runs checked: the code does what they recorded
    "#]]
    .assert_eq(&answering(&db, r#"AMBO_REPLAY_CHECK {"checked": 3, "differences": []}"#));
    expect![[r#"
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
        stderr: the first one: fulfil 00000000-0000-0000-0000-000000000000: position 2 holds "ship", but the code now calls "pack" there
        stderr: 3 runs checked: the code differs from 1; change it under `cx.patched`, or pin versions
        exit status: 1
    "#]].assert_eq(&answering(&db, &answer));
    expect![[r#"
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
