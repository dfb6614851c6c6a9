//! Drain and purge of queues.

use std::time::Duration;

use ambo::admin::{Act, Purge};
use ambo::{Code, Ctx, Enqueue, Ordered, QueueSettings, Result, Untyped, Worker};

use crate::harness::database;

async fn parent(mut cx: Ctx<'_>, _: i64) -> Result<i64> {
    let child = cx.child::<leaf>(1).with(|child| child.queue("mail")).start()?;
    Ok(cx.result_of(child).await?)
}

#[ambo::workflow]
async fn leaf(_cx: Ctx, n: i64) -> Result<i64> {
    Ok(n + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_drained_takes_nothing_new_and_is_worked_off() {
    let db = database().await;
    db.client.create_queue("mail").await.unwrap();
    let before = Enqueue::named("parent", &0).queue("mail").on(&db.client).await.unwrap().run;
    db.client.drain_queue("mail", true).await.unwrap();
    let new = || Enqueue::named("parent", &0).queue("mail");
    assert_eq!(new().on(&db.client).await.unwrap_err().code(), Code::Draining);
    assert_eq!(new().on(&db.sql).await.unwrap_err().code(), Code::Draining);
    assert_eq!(ambo::enqueue_all(&db.client, [new()]).await.unwrap_err().code(), Code::Draining);
    db.client.drain_queue("default", true).await.unwrap();
    let two = (0..2).map(|n| Enqueue::named("parent", &n));
    assert_eq!(ambo::enqueue_all(&db.client, two).await.unwrap_err().code(), Code::Draining);
    db.client.drain_queue("default", false).await.unwrap();
    let worker = Worker::builder(&db.client).queue("mail").workflow::<leaf>().workflow_fn("parent", parent);
    let _worker = worker.start().await.unwrap();
    let result = db.client.handle::<Untyped>(before).result_as::<i64, ambo::Error>().await;
    assert_eq!(result.unwrap(), 2, "its children are part of what is worked off");
    assert!(
        db.client.list_queues().await.unwrap().iter().any(|queue| queue.name == "mail" && queue.draining)
    );
    db.client.drain_queue("mail", false).await.unwrap();
    new().on(&db.client).await.unwrap();
    assert_eq!(db.client.drain_queue("nowhere", true).await.unwrap_err().code(), Code::UnknownQueue);
}

#[tokio::test]
async fn what_is_drained_takes_nothing_back() {
    let db = database().await;
    let blocks = QueueSettings::default().ordered(Ordered::Block);
    db.client.set_queue("mail", &blocks).await.unwrap();
    let new = |n: i64| Enqueue::<Untyped>::named("w", &n).queue("mail").group("g");
    let dead = new(1).on(&db.client).await.unwrap().run;
    let elsewhere = Enqueue::<Untyped>::named("w", &2).on(&db.client).await.unwrap().run;
    let die = "delete from ambo.ready; delete from ambo.head; insert into ambo.outcome (run_id, attempt, status, error)
        select id, 1, 'dead', '{}' from ambo.run on conflict do nothing";
    db.sql.batch_execute(die).await.unwrap();
    let redrive = |queue: Option<&str>| Act::Redrive { queue: queue.map(str::to_owned), per_second: None };
    for group in [None, Some("g")] {
        let drain = async |draining| match group {
            None => db.client.drain_queue("mail", draining).await.unwrap(),
            Some(group) => db.client.drain_group("mail", group, draining).await.unwrap(),
        };
        drain(true).await;
        for act in [Act::Retry, Act::Rewind("1".into()), Act::Fork(None), redrive(None)] {
            let acted = db.client.act(&act, &[dead]).await.unwrap();
            assert_eq!(acted[0].refused.as_deref(), Some("AM009"), "{act:?}: {}", acted[0].answer);
        }
        if group.is_none() {
            let acted = db.client.act(&redrive(Some("mail")), &[elsewhere]).await.unwrap();
            assert_eq!(acted[0].refused.as_deref(), Some("AM009"), "{}", acted[0].answer);
            assert_eq!(db.client.show_run(elsewhere).await.unwrap().summary.queue, "default");
        }
        assert_eq!(db.number("select count(*) from ambo.ready").await, 0);
        drain(false).await;
    }
    // What blocks its group is what there is to be worked off.
    db.client.drain_queue("mail", true).await.unwrap();
    let block = "insert into ambo.head (queue, group_key, run_id) select 'mail', 'g', $1";
    db.sql.execute(block, &[&dead.as_uuid()]).await.unwrap();
    db.client.retry(dead).await.unwrap();
}

#[tokio::test]
async fn a_purge_ends_what_waits_and_was_never_claimed() {
    let db = database().await;
    db.client.create_queue("mail").await.unwrap();
    let mail = |name: &str, n: i64| Enqueue::named(name, &n).queue("mail");
    let runs = (0..1500)
        .map(|n| mail(if n % 3 == 0 { "b" } else { "a" }, n).priority(i32::try_from(n % 2).unwrap()));
    ambo::enqueue_all(&db.client, runs).await.unwrap();
    let other = Enqueue::named("a", &1).on(&db.client).await.unwrap().run;
    let delayed = mail("a", 1).delay(Duration::from_secs(60)).on(&db.client).await.unwrap().run;
    // One that had begun, and one that only wakes, stay.
    db.sql
        .batch_execute(
            "update ambo.ready set attempt = 1 where run_id = (select id from ambo.run where input::text = '4' limit 1);
             select ambo.send_wakes(array[(select id from ambo.run where input::text = '5' limit 1)])",
        )
        .await
        .unwrap();
    let all = Purge { queue: "mail".into(), ..Purge::default() };
    let only_b = Purge { workflow: Some("b".into()), ..all.clone() };
    let dry = Purge { dry_run: true, ..all.clone() };
    assert_eq!(db.client.purge_queue(&dry).await.unwrap(), 1500);
    assert_eq!(db.number("select count(*) from ambo.outcome").await, 0, "a dry run does nothing");
    let early = Purge { until: Some("2020-01-01T00:00:00Z".parse().unwrap()), ..all.clone() };
    assert_eq!(db.client.purge_queue(&early).await.unwrap(), 0);
    assert_eq!(db.client.purge_queue(&only_b).await.unwrap(), 500);
    assert_eq!(db.client.purge_queue(&all).await.unwrap(), 1000);
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'cancelled'").await, 1500);
    assert_eq!(db.number("select count(*) from ambo.ready").await, 3);
    assert_eq!(db.client.show_run(other).await.unwrap().summary.state, "ready");
    assert_eq!(db.client.show_run(delayed).await.unwrap().summary.state, "cancelled");
    assert_eq!(db.client.purge_queue(&Purge::default()).await.unwrap_err().code(), Code::UnknownQueue);
}

#[tokio::test]
async fn a_group_that_is_drained_takes_nothing_new_and_the_others_do() {
    let db = database().await;
    db.client.set_queue("mail", &QueueSettings::default().groups()).await.unwrap();
    db.client.drain_group("mail", "a", true).await.unwrap();
    let of = |group: &str| Enqueue::named("leaf", &0).queue("mail").group(group);
    assert_eq!(of("a").on(&db.client).await.unwrap_err().code(), Code::Draining);
    assert_eq!(of("a").on(&db.sql).await.unwrap_err().code(), Code::Draining);
    assert_eq!(ambo::enqueue_all(&db.client, [of("b"), of("a")]).await.unwrap_err().code(), Code::Draining);
    ambo::enqueue_all(&db.client, [of("b"), of("c")]).await.unwrap();
    of("b").on(&db.client).await.unwrap();
    Enqueue::named("leaf", &0).queue("mail").on(&db.client).await.unwrap();
    Enqueue::named("leaf", &0).on(&db.client).await.unwrap();
    // What is said of a group afterwards does not undo it.
    db.client.pause_group("mail", "a", false).await.unwrap();
    assert_eq!(of("a").on(&db.client).await.unwrap_err().code(), Code::Draining);
    db.client.drain_group("mail", "a", false).await.unwrap();
    of("a").on(&db.client).await.unwrap();
    assert_eq!(db.client.drain_group("nowhere", "a", true).await.unwrap_err().code(), Code::UnknownQueue);
    assert_eq!(db.client.drain_group("default", "a", true).await.unwrap_err().code(), Code::NoGroups);
}

#[tokio::test]
async fn a_purge_of_a_group_leaves_the_other_groups() {
    let db = database().await;
    db.client.set_queue("mail", &QueueSettings::default().groups()).await.unwrap();
    let of = |group: &str, n: i32| {
        let name = if n % 2 == 0 { "a" } else { "b" };
        Enqueue::named(name, &n).queue("mail").group(group).priority(n % 3)
    };
    for group in ["b", "bb", "c"] {
        ambo::enqueue_all(&db.client, (0..1500).map(|n| of(group, n))).await.unwrap();
        of(group, 0).delay(Duration::from_secs(60)).on(&db.client).await.unwrap();
    }
    Enqueue::named("a", &0).queue("mail").on(&db.client).await.unwrap();
    let group = Purge { queue: "mail".into(), group: Some("bb".into()), ..Purge::default() };
    let dry = Purge { dry_run: true, ..group.clone() };
    assert_eq!(db.client.purge_queue(&dry).await.unwrap(), 1501);
    let only_b = Purge { workflow: Some("b".into()), ..group.clone() };
    assert_eq!(db.client.purge_queue(&only_b).await.unwrap(), 750);
    assert_eq!(db.client.purge_queue(&group).await.unwrap(), 751);
    let others =
        "select count(*) from ambo.outcome o join ambo.run r on r.id = o.run_id where r.group_key <> 'bb'";
    assert_eq!((db.number("select count(*) from ambo.outcome").await, db.number(others).await), (1501, 0));
    assert_eq!(db.number("select count(*) from ambo.ready").await, 3001);
    let all = Purge { group: None, ..group };
    assert_eq!(db.client.purge_queue(&all).await.unwrap(), 3003);
}
