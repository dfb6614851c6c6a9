//! Workflows, as an operator sees them.

use expect_test::expect;

use crate::harness::Database;

const DECLARE: &str = r#"
    select ambo.declare_workflows('7', '[
        {"name": "plain", "input": "u64", "output": "()", "tries": 5},
        {"name": "fulfil", "input": "Order", "output": "Receipt", "tries": 1, "graph": {"output": 3, "nodes": [
            {"name": "input", "kind": "input", "inputs": [], "gives": "Order"},
            {"name": "reserve \"stock\"", "kind": "step", "inputs": [0], "gives": "Vec<u8>"},
            {"name": "pay", "kind": "sequence", "inputs": [0], "gives": "()"},
            {"name": "ship", "kind": "step", "inputs": [1, 2], "gives": "Receipt"}]}}]');
    select ambo.register_worker('w', '7', 1, '{default}', '{plain}', false);
    select ambo.register_worker('w', '8', 1, '{default}', '{plain}', false)"#;

#[test]
fn workflows_are_listed_and_drawn() {
    let db = Database::migrated();
    let ambo = |arguments: &[&str]| db.ambo(&[&["workflow"], arguments].concat()).shown();
    expect![[r#"
        stderr: no workflow is registered: start a program that has a worker
    "#]]
    .assert_eq(&ambo(&["list"]));
    db.sql.run(DECLARE);
    expect![[r#"
        NAME    WORKERS  VERSIONS  NODES  INPUT  OUTPUT
        fulfil        0                4  Order  Receipt
        plain         2  7,8              u64    ()
    "#]]
    .assert_eq(&ambo(&["list"]));
    let shown = ambo(&["show", "fulfil"]);
    let drawn = shown.split_once("\n\n").expect("a header and a drawing").1;
    expect![[r#"
        ●  input: Order
        ├─╮
        ● │  reserve "stock": Vec<u8>  ← input
        │ ●  pay: ()  ← input
        ├─╯
        ●  ship: Receipt  ← reserve "stock", pay  → the run's result
    "#]]
    .assert_eq(drawn);
    expect![[r#"
        flowchart TD
            n0(["input"])
            n1["reserve #quot;stock#quot;"]
            n2[["pay"]]
            n3["ship"]
            n0 -->|"Order"| n1
            n0 -->|"Order"| n2
            n1 -->|"Vec#lt;u8#gt;"| n3
            n2 -->|"()"| n3
            n3 --> result(["Receipt"])
    "#]]
    .assert_eq(&ambo(&["show", "fulfil", "--mermaid"]));
    assert!(ambo(&["show", "fulfil", "--json"]).contains(r#""graph":{"nodes":[{"name":"input""#));
    let shown = ambo(&["show", "plain"]);
    assert!(shown.contains("workers     2, version 7, 8") && shown.contains("tries       5"), "{shown}");
    assert!(shown.contains("has no run to tell of its calls"), "{shown}");
    db.sql.run(
        "with r as (select ambo.enqueue_workflow('plain', '1') as id)
         insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output)
         select r.id, 1, 0, v.p, v.n, '1' from r, (values ('1', 'charge'), ('2', 'ambo:sleep'), ('10', 'ship')) v (p, n)",
    );
    let shown = ambo(&["show", "plain"]);
    expect![[r#"
        1           charge
        2           ambo:sleep
        10          ship
        stderr: it is code, not a graph; these are the calls of its newest run, 00000000-0000-0000-0000-000000000000 (ready)
    "#]].assert_eq(shown.split_once("\n\n").expect("calls").1);
    expect![[r#"
        stderr: error: plain is not declared as a graph
        stderr:   what it does is in its code; ambo workflow show prints what is known
        exit status: 1
    "#]]
    .assert_eq(&ambo(&["show", "plain", "--mermaid"]));
    expect![[r#"
        stderr: error: no worker has registered a workflow "none"
        stderr:   ambo workflow list shows those that are known
        exit status: 1
    "#]]
    .assert_eq(&ambo(&["show", "none"]));
}
