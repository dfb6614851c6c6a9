//! Why a run is not running: each reason, told as an operator needs it.

use std::time::Duration;

use ambo::{Enqueue, Ordered, QueueSettings, Rate, RunId, Untyped};

use crate::harness::{Database, database};

async fn run(db: &Database, group: Option<&str>) -> RunId {
    let run = Enqueue::<Untyped>::named("w", &1).queue("q");
    let run = if let Some(group) = group { run.group(group) } else { run };
    run.on(&db.client).await.unwrap().run
}

async fn why(db: &Database, run: RunId) -> Vec<String> {
    db.client.why(run).await.unwrap().into_iter().map(|reason| reason.reason).collect()
}

/// Claims, as a worker does, so many runs of the lanes of `groups`.
async fn claim(db: &Database, groups: &[&str]) {
    for group in groups {
        let lane = format!("w\u{1f}\u{1f}{group}");
        let sql = "select cardinality(runs) from ambo.claim_queue(1, 'q', 1, null, array[$1], '{0}', '{1}', '{1}', '{0}', '{1}', '{0}', 0, 0,
                       array(select slot from ambo.claim where slot is not null), (select coalesce(max(slot), 0) from ambo.claim))";
        let claimed: Option<i32> = db.sql.query_one(sql, &[&lane]).await.unwrap().get(0);
        assert_eq!(claimed, Some(1), "{group}");
    }
}

async fn worker(db: &Database) {
    let sql = "select ambo.register_worker('host', '1', 1, '{q}', '{w}', false)";
    db.sql.query(sql, &[]).await.unwrap();
}

#[tokio::test]
async fn each_reason_why_a_run_is_not_running_is_told() {
    let db = database().await;
    let settings = QueueSettings::default().groups();
    db.client.set_queue("q", &settings).await.unwrap();
    let first = run(&db, Some("a")).await;
    assert_eq!(why(&db, first).await, ["no worker"]);
    worker(&db).await;
    assert_eq!(why(&db, first).await, ["ready"]);

    let second = run(&db, Some("a")).await;
    let reasons = db.client.why(second).await.unwrap();
    assert_eq!((reasons[0].reason.as_str(), reasons[0].run), ("behind others", Some(first)));
    db.client.pause_queue("q", true).await.unwrap();
    db.client.pause_group("q", "a", true).await.unwrap();
    assert_eq!(why(&db, second).await, ["queue paused", "group paused", "behind others"]);
    db.client.pause_queue("q", false).await.unwrap();
    db.client.pause_group("q", "a", false).await.unwrap();

    db.client.set_queue("q", &settings.clone().group_concurrency(1).concurrency(2)).await.unwrap();
    claim(&db, &["a"]).await;
    assert_eq!(why(&db, first).await, ["running"]);
    let reasons = db.client.why(second).await.unwrap();
    assert_eq!((reasons[0].reason.as_str(), reasons[0].run), ("group limit", Some(first)));
    let other = run(&db, Some("b")).await;
    let third = run(&db, Some("c")).await;
    claim(&db, &["b"]).await;
    assert_eq!(why(&db, third).await, ["queue limit"]);
    assert_eq!(why(&db, other).await, ["running"]);

    let rate = Rate::new(1, Duration::from_secs(3600));
    db.client.set_queue("q", &settings.clone().concurrency(None).rate(rate)).await.unwrap();
    claim(&db, &["c"]).await;
    let fourth = run(&db, Some("d")).await;
    let now = db.client.now().await.unwrap();
    let reasons = db.client.why(fourth).await.unwrap();
    assert_eq!(reasons[0].reason, "rate");
    assert!(reasons[0].until.is_some_and(|until| until > now));

    db.client.set_queue("q", &settings.clone().rate(None).ordered(Ordered::Block)).await.unwrap();
    let reasons = db.client.why(second).await.unwrap();
    assert_eq!((reasons[0].reason.as_str(), reasons[0].run), ("group in order", Some(first)));

    let any_order = || QueueSettings::default().ordered(None);
    // A limit of nothing, one of each worker, and a weight.
    db.client.set_queue("q", &any_order().concurrency(0)).await.unwrap();
    assert_eq!(why(&db, fourth).await, ["queue limit"]);
    db.client.set_queue("q", &any_order().concurrency(None).group_concurrency(0)).await.unwrap();
    assert_eq!(why(&db, fourth).await, ["group limit"]);
    db.client.set_queue("q", &any_order().group_concurrency(None).worker_concurrency(4)).await.unwrap();
    let heavy = Enqueue::<Untyped>::named("w", &1).queue("q").group("e").weight(9);
    let heavy = heavy.on(&db.client).await.unwrap().run;
    let reasons = db.client.why(heavy).await.unwrap();
    assert_eq!(reasons[0].reason, "worker limit");
    assert_eq!(reasons[0].explanation, "each worker that could take it has 3 of 4 in execution; it weighs 9");
    assert_eq!(why(&db, fourth).await, ["ready"]);

    let delayed = Enqueue::<Untyped>::named("w", &1).delay(Duration::from_secs(60));
    let delayed = delayed.on(&db.client).await.unwrap().run;
    assert_eq!(why(&db, delayed).await, ["delayed"]);
    db.client.cancel(delayed, "no more").await.unwrap();
    assert_eq!(why(&db, delayed).await, ["ended"]);
    let unknown: RunId = "0199c1a0-0000-7000-8000-000000000001".parse().unwrap();
    assert_eq!(db.client.why(unknown).await.unwrap_err().code(), ambo::Code::UnknownRun);
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let db = database().await;
    let bad = [
        "null",
        "1",
        "[]",
        r#"{"nothing": 1}"#,
        r#"{"concurrency": -1}"#,
        r#"{"concurrency": 1.5}"#,
        r#"{"concurrency": "many"}"#,
        r#"{"concurrency": 99999999999}"#,
        r#"{"rate": 5}"#,
        r#"{"rate": {"limit": 1}}"#,
        r#"{"rate": {"limit": 0, "period": "1 s"}}"#,
        r#"{"rate": {"limit": 1, "period": "0 s"}}"#,
        r#"{"rate": {"limit": 1, "period": "soon"}}"#,
        r#"{"rate": {"limit": 1, "period": "1 s", "burst": 0}}"#,
        r#"{"rate": {"limit": 1, "period": "1 s", "more": 0}}"#,
        r#"{"ordered": "perhaps"}"#,
        r#"{"ageing": "-1 s"}"#,
        r#"{"groups": false}"#,
    ];
    for settings in bad {
        let sql = format!("select ambo.set_queue('q', '{settings}')");
        let error = db.sql.batch_execute(&sql).await.expect_err(settings);
        assert_eq!(error.as_db_error().unwrap().code().code(), "AM005", "{settings}: {error:?}");
    }
    for name in ["''", "null", &format!("'{}'", "x".repeat(65536))] {
        let error =
            db.sql.batch_execute(&format!("select ambo.set_queue({name}, '{{}}')")).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().code().code(), "AM001");
    }
    let plain = db.client.pause_group("default", "a", true).await.unwrap_err();
    assert_eq!(plain.code(), ambo::Code::NoGroups);
    let nowhere = db.client.pause_group("nowhere", "a", true).await.unwrap_err();
    assert_eq!(nowhere.code(), ambo::Code::UnknownQueue);
    db.client.set_queue("q", &QueueSettings::default().groups()).await.unwrap();
    for (group, weight, code) in [("", 1, "AM001"), ("g", 0, "AM005"), ("g", 10_001, "AM005")] {
        let sql = "select ambo.enqueue_workflow('w', queue => 'q', group_key => $1, weight => $2)";
        let error = db.sql.query(sql, &[&group, &weight]).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().code().code(), code, "{group} {weight}");
    }
}
