//! Fan-in: what comes when all of a batch have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ambo::admin::{Act, Filter, RunDetail};
use ambo::{Code, Ctx, Enqueue, Error, Failure, FanIn, Result, RunId, Untyped, Worker};

use crate::harness::{connect, database};

async fn part(_: Ctx<'_>, n: i64) -> Result<i64> {
    if n % 10 == 3 { Err(Error::message("three")) } else { Ok(n) }
}

async fn whole(cx: Ctx<'_>, n: i64) -> Result<i64> {
    cx.state::<Arc<AtomicU32>>()?.fetch_add(1, Ordering::SeqCst);
    Ok(n)
}

fn parts(count: i64) -> impl Iterator<Item = Enqueue<Untyped>> {
    (0..count).map(|n| Enqueue::named("part", &n))
}

async fn result(client: &ambo::Client, run: RunId) -> i64 {
    let result: Result<i64, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    result.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_last_starts_when_all_members_have_ended() {
    let db = database().await;
    let begun = Arc::new(AtomicU32::new(0));
    let mut caller = connect(&db.url).await;
    let tx = caller.transaction().await.unwrap();
    let gone = FanIn::of(parts(3)).then(Enqueue::named("whole", &1)).on(&tx).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(db.number("select count(*) from ambo.run").await, 0, "nor is {gone:?} there");
    let tx = caller.transaction().await.unwrap();
    let all = FanIn::of(parts(50)).and([Enqueue::named("part", &99).delay(Duration::from_millis(300))]);
    let all = all.then(Enqueue::named("whole", &7).key("all")).on(&tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((all.then.is_new, all.members.len()), (true, 51));
    let cancelled = all.members[0].run;
    db.client.cancel(cancelled, "not this one").await.unwrap();
    let builder = Worker::builder(&db.client).workflow_fn("part", part).workflow_fn("whole", whole);
    let _worker = builder.state(begun.clone()).start().await.unwrap();
    assert_eq!(result(&db.client, all.then.run).await, 7);
    let left = "select count(*) from ambo.child c
        where not exists (select from ambo.outcome o where o.run_id = c.child_id)";
    assert_eq!((db.number(left).await, begun.load(Ordering::SeqCst)), (0, 1));
    let members = Filter { parent: Some(all.then.run), limit: 100, ..Filter::default() };
    assert_eq!(db.client.list_runs(&members).await.unwrap().len(), 51);
    assert_eq!(db.number("select count(*) from ambo.fan_in").await, 0);
    // Asked again, by the key of the last one.
    let again = FanIn::of(parts(50)).and([Enqueue::named("part", &99)]);
    let again = again.then(Enqueue::named("whole", &7).key("all")).on(&db.client).await.unwrap();
    assert_eq!((again.then.run, again.then.is_new, again.members.len()), (all.then.run, false, 51));
    // Of nothing.
    let none = FanIn::of(parts(0)).then(Enqueue::named("whole", &8)).on(&db.client).await.unwrap();
    assert_eq!(result(&db.client, none.then.run).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_members_that_end_at_once_neither_is_forgotten() {
    let db = database().await;
    let all = FanIn::of(parts(2)).then(Enqueue::named("whole", &1)).on(&db.client).await.unwrap();
    let begun = Arc::new(AtomicU32::new(0));
    let _worker =
        Worker::builder(&db.client).workflow_fn("whole", whole).state(begun.clone()).start().await.unwrap();
    // Two transactions end one each, and neither sees the other.
    let (mut left, mut right) = (connect(&db.url).await, connect(&db.url).await);
    let (one, two) = (left.transaction().await.unwrap(), right.transaction().await.unwrap());
    for (tx, member) in [(&one, &all.members[0]), (&two, &all.members[1])] {
        let cancel = "select ambo.cancel_run($1)";
        assert_eq!(
            tx.query_one(cancel, &[&member.run.as_uuid()]).await.unwrap().get::<_, String>(0),
            "cancelled"
        );
    }
    one.commit().await.unwrap();
    db.until("select not exists (select from ambo.ready where wakes)").await;
    assert_eq!(begun.load(Ordering::SeqCst), 0, "one is left");
    two.commit().await.unwrap();
    assert_eq!(result(&db.client, all.then.run).await, 1);
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_an_open_transaction_cancels_holds_up_nobody_and_goes_on_if_that_is_rolled_back() {
    let db = database().await;
    let all = FanIn::of(parts(2)).then(Enqueue::named("whole", &1)).on(&db.client).await.unwrap();
    let mut caller = connect(&db.url).await;
    let tx = caller.transaction().await.unwrap();
    tx.query_one("select ambo.cancel_run($1)", &[&all.then.run.as_uuid()]).await.unwrap();
    // Both members end: what wakes the last one comes first at every claim.
    for member in &all.members {
        db.client.cancel(member.run, "").await.unwrap();
    }
    let begun = Arc::new(AtomicU32::new(0));
    let builder = Worker::builder(&db.client).workflow_fn("part", part).workflow_fn("whole", whole);
    let _worker = builder.state(begun.clone()).start().await.unwrap();
    for other in ambo::enqueue_all(&db.client, parts(3).collect::<Vec<_>>()).await.unwrap() {
        let ended = tokio::time::timeout(Duration::from_secs(30), result(&db.client, other.run)).await;
        ended.expect("a claim that waits for the lock takes back what it has claimed");
    }
    assert_eq!(begun.load(Ordering::SeqCst), 0);
    tx.rollback().await.unwrap();
    assert_eq!(result(&db.client, all.then.run).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_last_and_is_retried_waits_for_its_members_again() {
    let db = database().await;
    let begun = Arc::new(AtomicU32::new(0));
    let worker = Worker::builder(&db.client).workflow_fn("whole", whole).state(begun.clone());
    let _worker = worker.start().await.unwrap();
    let all = FanIn::of(parts(3)).then(Enqueue::named("whole", &1)).on(&db.client).await.unwrap();
    for act in [Act::Retry, Act::Rewind("1".into())] {
        db.client.cancel(all.then.run, "not now").await.unwrap();
        assert_eq!(db.client.act(&act, &[all.then.run]).await.unwrap()[0].answer, "delayed", "{act:?}");
        let why = db.client.why(all.then.run).await.unwrap();
        assert_eq!((why[0].reason.as_str(), why[0].run), ("members", Some(all.members[0].run)));
        db.until("select not exists (select from ambo.ready where wakes)").await;
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }
    db.client.cancel(all.then.run, "not now").await.unwrap();
    for member in &all.members[..2] {
        db.client.cancel(member.run, "enough").await.unwrap();
    }
    // The last one ends while nobody waits for it, in a transaction that the retry does not see: neither sees the other.
    let mut caller = connect(&db.url).await;
    let (tx, ending) = (caller.transaction().await.unwrap(), connect(&db.url).await);
    tx.execute("select ambo.retry_run($1)", &[&all.then.run.as_uuid()]).await.unwrap();
    ending.execute("select ambo.cancel_run($1)", &[&all.members[2].run.as_uuid()]).await.unwrap();
    db.until("select not exists (select from ambo.ready where wakes)").await;
    tx.commit().await.unwrap();
    assert_eq!(result(&db.client, all.then.run).await, 1);
    assert_eq!(db.number("select count(*) from ambo.fan_in").await, 0);
    // None is left to wait for.
    let none = FanIn::of(parts(1)).then(Enqueue::named("whole", &2)).on(&db.client).await.unwrap();
    db.client.cancel(none.then.run, "not now").await.unwrap();
    db.client.cancel(none.members[0].run, "enough").await.unwrap();
    db.client.retry(none.then.run).await.unwrap();
    assert_eq!(result(&db.client, none.then.run).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fan_in_of_ten_thousand_takes_as_long_as_its_members() {
    let db = database().await;
    let begun = Arc::new(AtomicU32::new(0));
    let all = FanIn::of(parts(10_000)).then(Enqueue::named("whole", &1)).on(&db.client).await.unwrap();
    let builder = Worker::builder(&db.client).workflow_fn("part", part).workflow_fn("whole", whole);
    let started = Instant::now();
    let _worker = builder.state(begun.clone()).start().await.unwrap();
    assert_eq!(result(&db.client, all.then.run).await, 1);
    let took = started.elapsed();
    // Each look reads what has ended since: far from a member for each member, which would take minutes.
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    println!("10,000 members: {took:?}");
}

#[tokio::test]
async fn a_fan_in_refuses_what_it_does_not_know() {
    let db = database().await;
    let then = || Enqueue::named("whole", &1);
    let old = Enqueue::named("part", &1).key("old").on(&db.client).await.unwrap();
    assert!(old.is_new);
    let refused = [
        FanIn::of([Enqueue::named("part", &1).key("old")]).then(then()),
        FanIn::of([Enqueue::named("part", &1).key("k").dedup()]).then(then()),
        FanIn::of(parts(1)).then(then().delay(Duration::from_secs(1))),
    ];
    for fan_in in refused {
        assert_eq!(fan_in.on(&db.client).await.unwrap_err().code(), Code::InvalidOption);
    }
    let nowhere = FanIn::of(parts(1)).then(then().queue("nowhere")).on(&db.client).await;
    assert_eq!(nowhere.unwrap_err().code(), Code::UnknownQueue);
    for wrong in [
        r#"'[{"workflow": "part", "prority": 1}]', '{"workflow": "whole"}'"#,
        r#"'[{"workflow": "part", "priority": "x"}]', '{"workflow": "whole"}'"#,
        r#"'[{"workflow": "part", "at": "soon"}]', '{"workflow": "whole"}'"#,
        r#"'[]', '{"workflow": "whole", "timeout": "long"}'"#,
        r#"'[]', '{"workflow": "whole", "weight": 99999999999}'"#,
    ] {
        let error = db.sql.query(&format!("select ambo.enqueue_fan_in({wrong})"), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "AM005", "{wrong}: {error:?}");
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 1);
    // What comes last is cancelled: the members are not there for its sake.
    let all = FanIn::of(parts(2)).then(then()).on(&db.client).await.unwrap();
    db.client.cancel(all.then.run, "no").await.unwrap();
    assert_eq!(db.client.show_run(all.members[0].run).await.unwrap().summary.state, "ready");
    assert_eq!(db.number("select count(*) from ambo.fan_in").await, 0);
}

/// Whoever may enqueue can ask again by the key: what an id lets its holder read is for those who know the members.
#[tokio::test]
async fn a_fan_in_tells_its_members_only_to_who_names_them() {
    let db = database().await;
    let ask = |members: &str| {
        format!(
            r#"select ambo.enqueue_fan_in('{members}', '{{"workflow": "whole", "input": 7, "key": "album"}}')::text"#
        )
    };
    let members = r#"[{"workflow": "part", "input": 1}, {"workflow": "part", "input": {"n": [2, null]}}]"#;
    let members_of = |answer: tokio_postgres::Row| {
        let answer: serde_json::Value = serde_json::from_str(answer.get(0)).unwrap();
        answer["members"].as_array().unwrap().iter().map(|member| member["run"].clone()).collect::<Vec<_>>()
    };
    let first = members_of(db.sql.query_one(&ask(members), &[]).await.unwrap());
    assert_eq!(first.len(), 2);
    // One that it started itself is none of them.
    let start = "insert into ambo.child (run_id, child_id)
        select c.run_id, ambo.enqueue_workflow('part', '9') from ambo.child c limit 1";
    db.sql.batch_execute(start).await.unwrap();
    assert_eq!(members_of(db.sql.query_one(&ask(members), &[]).await.unwrap()), first);
    for other in [
        "[]",
        r#"[{"workflow": "part", "input": 1}]"#,
        r#"[{"workflow": "part", "input": 2}]"#,
        r#"[{"workflow": "other", "input": 1}]"#,
        r#"[{"workflow": "part", "input": 1}, {"workflow": "part", "input": {"n": [2, null]}}, {"workflow": "part", "input": 3}]"#,
    ] {
        let error = db.sql.query_one(&ask(other), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "AM003", "{other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_his_runs_those_of_a_run_of_somebody_else() {
    let db = database().await;
    let other = Enqueue::<Untyped>::named("whole", &1).delay(Duration::from_secs(3600));
    let other = other.on(&db.client).await.unwrap().run;
    for terms in ["", ", start_withins => array['1 hour'::interval]"] {
        let sql =
            format!("select * from ambo.enqueue_workflows('{{part}}', array['1'::json]{terms}, batch => $1)");
        let error = db.sql.query(&sql, &[&other.as_uuid()]).await.unwrap_err();
        assert_eq!(error.code().map(|state| state.code()), Some("AM005"), "{error:?}");
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 1);
}

/// JSON is kept as text: PostgreSQL, which takes no object apart that holds U+0000, need not read it.
#[tokio::test]
async fn an_input_in_a_fan_in_may_hold_what_a_plain_one_may() {
    let db = database().await;
    let read = |shown: &RunDetail| -> serde_json::Value {
        serde_json::from_str(shown.input.as_ref().unwrap().get()).unwrap()
    };
    let inputs = ["\0", "a\0\0\\u0000\\\0\\", "\u{e9}/\u{1}"];
    let ask = || {
        let members = inputs.map(|input| Enqueue::<Untyped>::named("part", &input));
        FanIn::of(members).then(Enqueue::<Untyped>::named("whole", &serde_json::json!({"\0": "\0"})).key("k"))
    };
    let all = ask().on(&db.client).await.unwrap();
    for (member, input) in all.members.iter().zip(inputs) {
        let shown = db.client.show_run(member.run).await.unwrap();
        assert_eq!(read(&shown), serde_json::json!(input));
    }
    let then = db.client.show_run(all.then.run).await.unwrap();
    assert_eq!(read(&then), serde_json::json!({"\0": "\0"}));
    let again = ask().on(&db.client).await.unwrap();
    assert_eq!(
        (again.then.is_new, again.members.len(), again.members[1].run),
        (false, 3, all.members[1].run)
    );
    for (wrong, code) in [
        (r#"'[{"workflow": "pa\u0000rt"}]', '{"workflow": "whole"}'"#, "AM001"),
        (r#"'[]', '{"workflow": "whole", "key": "\u0000"}'"#, "AM001"),
        (r#"'[{"workflow": "part", "attributes": {"a": "\u0000"}}]', '{"workflow": "whole"}'"#, "AM001"),
        (r#"'[{"workflow": "part", "input": "\ud800"}]', '{"workflow": "whole"}'"#, "AM005"),
    ] {
        let error = db.sql.query(&format!("select ambo.enqueue_fan_in({wrong})"), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), code, "{wrong}: {error:?}");
    }
    assert_eq!(db.number("select count(*) from ambo.run").await, 4);
}
