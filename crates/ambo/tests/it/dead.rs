//! Dead letters: found, grouped, run again at a rate or elsewhere, thrown away, kept for as long as they are to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambo::admin::{Act, Filter};
use ambo::{
    Code, Ctx, Enqueue, Error, Failure, Ordered, QueueSettings, Result, Retention, Retry, RunId, Untyped,
    Worker,
};

use crate::harness::{Database, connect, database};
use crate::limits::{Bench, Job, job};

/// Fails until it is mended; what it did before stays done.
async fn mail(mut cx: Ctx<'_>, n: i64) -> Result<i64> {
    cx.step("write", || async { Ok::<_, Error>(()) }).await?;
    match cx.state::<Arc<AtomicBool>>()?.load(Ordering::SeqCst) {
        true => Ok(n),
        false => Err(Error::message(format!("mailbox {n} is full"))),
    }
}

async fn end(db: &Database, run: RunId) -> Result<i64, Error> {
    let result: Result<i64, Failure<Error>> = db.client.handle::<Untyped>(run).result_as().await;
    result.map_err(Error::from)
}

async fn worker(db: &Database, mended: &Arc<AtomicBool>) -> Worker {
    let retry = Retry::fixed(Duration::from_millis(1)).max_attempts(2);
    let builder = Worker::builder(&db.client).workflow_fn("mail", mail).retry("mail", retry);
    builder.queue("default").queue("slow").state(mended.clone()).start().await.unwrap()
}

/// Five dead, and one that could not be read.
async fn six_dead(db: &Database) -> Vec<RunId> {
    let mut runs = Vec::new();
    for n in 0..5 {
        runs.push(
            Enqueue::named("mail", &n)
                .attributes(&serde_json::json!({"n": n}))
                .on(&db.client)
                .await
                .unwrap()
                .run,
        );
    }
    runs.push(Enqueue::named("mail", &"seven").on(&db.client).await.unwrap().run);
    for run in &runs {
        end(db, *run).await.unwrap_err();
    }
    runs
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_listed_and_grouped_by_what_they_died_of() {
    let db = database().await;
    let _worker = worker(&db, &Arc::default()).await;
    let runs = six_dead(&db).await;
    let letters = db.client.dead_letters(&Filter::default()).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.id).rev().collect::<Vec<_>>(), runs, "newest first");
    assert_eq!(letters[0].code.as_deref(), Some("AMBO028"));
    let first = &letters[5];
    assert_eq!((first.attempts, first.tries), (2, 1), "claimed twice, and once a try had failed before");
    assert_eq!(first.message.as_deref(), Some("mailbox 0 is full"));
    let some = Filter { text: Some("mailbox 3".into()), ..Filter::default() };
    assert_eq!(db.client.dead_letters(&some).await.unwrap().len(), 1);
    let errors = db.client.dead_errors(&Filter::default()).await.unwrap();
    let groups: Vec<_> = errors.iter().map(|error| (error.runs, error.code.as_deref().unwrap())).collect();
    assert_eq!(groups, [(5, "AMBO027"), (1, "AMBO028")]);
    assert_eq!(errors[0].message.as_deref(), Some("mailbox # is full"));
    assert_eq!(errors[0].newest, runs[4]);
    let none = Filter { workflow: Some("other".into()), ..Filter::default() };
    assert!(db.client.dead_errors(&none).await.unwrap().is_empty());
    let some = [
        Filter { text: Some("mailbox 3".into()), ..Filter::default() },
        Filter { attributes: Some(serde_json::json!({"n": 3})), ..Filter::default() },
        Filter { before: Some(runs[1]), state: Some("dead".into()), ..Filter::default() },
    ];
    for filter in some {
        let errors = db.client.dead_errors(&filter).await.unwrap();
        assert_eq!((errors.len(), errors[0].runs), (1, 1), "{filter:?}");
    }
    let of_nobody = Filter { parent: Some(runs[0]), ..Filter::default() };
    let of_no_group = Filter { group: Some("g".into()), ..Filter::default() };
    for filter in [of_nobody, of_no_group] {
        assert!(db.client.dead_errors(&filter).await.unwrap().is_empty(), "{filter:?}");
    }
    let living = Filter { state: Some("failed".into()), ..Filter::default() };
    assert_eq!(db.client.dead_errors(&living).await.unwrap_err().code(), Code::InvalidOption);
    assert_eq!(db.client.dead_letters(&living).await.unwrap_err().code(), Code::InvalidOption);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dead_are_run_again_at_a_rate_and_in_another_queue() {
    let db = database().await;
    let mended = Arc::new(AtomicBool::new(false));
    let _worker = worker(&db, &mended).await;
    let runs = six_dead(&db).await;
    mended.store(true, Ordering::SeqCst);
    let alive = Enqueue::named("mail", &9).on(&db.client).await.unwrap().run;
    end(&db, alive).await.unwrap();
    let slowly = Act::Redrive { queue: Some("slow".into()), per_second: Some(0.01) };
    let acted = db.client.act(&slowly, &[runs[0], alive, runs[1], runs[2]]).await.unwrap();
    let answers: Vec<_> = acted.iter().map(|one| one.refused.as_deref().unwrap_or(&one.answer)).collect();
    assert_eq!(
        answers,
        ["ready", "AM034", "delayed", "delayed"],
        "one refusal takes no turn and keeps nobody back"
    );
    assert_eq!(end(&db, runs[0]).await.unwrap(), 0);
    let shown = db.client.show_run(runs[0]).await.unwrap();
    assert_eq!((shown.summary.queue.as_str(), shown.steps.len()), ("slow", 1), "from its checkpoints");
    let turns = "select array_agg(round(extract(epoch from t.due_at - (select o.ended_at from ambo.outcome o where o.run_id = $1)) / 100)::int8 order by due_at) from ambo.timer t";
    let turns: Vec<i64> = db.sql.query_one(turns, &[&runs[0].as_uuid()]).await.unwrap().get(0);
    assert_eq!(turns, [1, 2], "100 s and 200 s from then: in the database, whoever goes away");
    let at_once = Act::Redrive { queue: None, per_second: None };
    assert_eq!(db.client.act(&at_once, &[runs[3]]).await.unwrap()[0].answer, "ready");
    assert_eq!(end(&db, runs[3]).await.unwrap(), 3);
    let wrong = Act::Redrive { queue: Some("nowhere".into()), per_second: None };
    assert_eq!(db.client.act(&wrong, &[runs[4]]).await.unwrap_err().code(), Code::UnknownQueue);
    let wrong = Act::Redrive { queue: None, per_second: Some(0.0) };
    assert_eq!(db.client.act(&wrong, &[runs[4]]).await.unwrap_err().code(), Code::InvalidOption);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redriven_or_retried_in_bulk_keeps_the_order_of_its_group() {
    let bench = Bench::new(QueueSettings::default().ordered(Ordered::Dead), 1, 1).await;
    bench.enqueue((0..8).map(|n| Job { fails: true, ..job("g", n) })).await;
    bench.all_ended(8).await;
    let client = &bench.db.client;
    // Newest first, as lists are.
    let runs: Vec<RunId> =
        client.dead_letters(&Filter::default()).await.unwrap().iter().map(|dead| dead.id).collect();
    let redrive = |per_second| Act::Redrive { queue: None, per_second };
    for act in [redrive(None), redrive(Some(50.0)), Act::Retry] {
        let begun = bench.gauge.begun.lock().unwrap().len();
        let acted = client.act(&act, &runs).await.unwrap();
        assert_eq!(
            acted.iter().map(|acted| acted.id).collect::<Vec<_>>(),
            runs,
            "answers as they were given"
        );
        bench.begun(begun + 8).await;
        bench.all_ended(8).await;
    }
    for sql in [
        "ambo.redrive_dead(array(select id from ambo.dead_letters()))",
        "ambo.redrive_dead(array(select id from ambo.dead_letters()), p_per_second => 50)",
        "ambo.act_on_runs('retry', array(select id from ambo.dead_letters()))",
    ] {
        let begun = bench.gauge.begun.lock().unwrap().len();
        assert_eq!(bench.db.number(&format!("select count(*) from {sql} where code is null")).await, 8);
        bench.begun(begun + 8).await;
        bench.all_ended(8).await;
    }
    let begun: Vec<u32> = bench.gauge.begun.lock().unwrap().iter().map(|(_, number)| *number).collect();
    assert_eq!(begun, (0..7).flat_map(|_| 0..8).collect::<Vec<u32>>());
}

/// The redrive is held up in its midst until the times of those behind have come: they wait for their turn all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_that_is_held_up_keeps_the_order_of_its_group() {
    let bench = Bench::new(QueueSettings::default().ordered(Ordered::Dead), 1, 1).await;
    let runs = bench.enqueue((0..4).map(|n| Job { fails: true, ..job("g", n) })).await;
    bench.all_ended(4).await;
    let mut holder = connect(&bench.db.url).await;
    let held = holder.transaction().await.unwrap();
    let hold = "select from ambo.outcome where run_id = $1 for update";
    held.execute(hold, &[&runs[2].as_uuid()]).await.unwrap();
    let client = bench.db.client.clone();
    let asked = runs.clone();
    let slowly = Act::Redrive { queue: None, per_second: Some(5.0) };
    let acted = tokio::spawn(async move { client.act(&slowly, &asked).await });
    // The second is due 200 ms after its beginning, the third 400.
    let waits = "select count(*) = 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
        and clock_timestamp() > xact_start + interval '410 ms'";
    bench.db.until(waits).await;
    held.rollback().await.unwrap();
    let answers = acted.await.unwrap().unwrap();
    let answers: Vec<_> = answers.iter().map(|one| one.answer.as_str()).collect();
    assert_eq!(answers, ["ready", "delayed", "delayed", "delayed"]);
    bench.begun(8).await;
    let begun: Vec<u32> = bench.gauge.begun.lock().unwrap().iter().map(|(_, number)| *number).collect();
    assert_eq!(begun, [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_of_the_dead_leaves_nothing() {
    let db = database().await;
    let _worker = worker(&db, &Arc::default()).await;
    let runs = six_dead(&db).await;
    let living = Enqueue::named("nobody", &1).on(&db.client).await.unwrap().run;
    let acted = db.client.act(&Act::PurgeDead, &[runs[0], living, runs[1]]).await.unwrap();
    let answers: Vec<_> = acted.iter().map(|one| one.refused.as_deref().unwrap_or(&one.answer)).collect();
    assert_eq!(answers, ["purged", "AM034", "purged"]);
    assert_eq!(db.client.show_run(runs[0]).await.unwrap_err().code(), Code::UnknownRun);
    let left = "select (select count(*) from ambo.run) + 100 * (select count(*) from ambo.outcome)
        + 10000 * (select count(distinct run_id) from ambo.checkpoint) + 1000000 * (select count(*) from ambo.attribute)";
    assert_eq!(
        db.number(left).await,
        3_030_405,
        "the four dead, of which one recorded nothing, and the living one"
    );
    // A lifetime of their own, shorter than that of other history.
    assert_eq!(db.number("select ambo.expire_dead(10)::int8").await, 0);
    db.client.set_retention(&Retention::default().dead(Duration::from_micros(1))).await.unwrap();
    assert_eq!(db.number("select ambo.expire_dead(10)::int8").await, 4);
    assert_eq!(db.number("select count(*) from ambo.run").await, 1);
}

#[tokio::test]
async fn the_dead_may_be_kept_longer_than_other_history() {
    let db = database().await;
    let kept = Enqueue::named("mail", &1).on(&db.client).await.unwrap().run;
    let dropped = Enqueue::named("mail", &2).on(&db.client).await.unwrap().run;
    db.client.cancel(dropped, "enough").await.unwrap();
    db.sql
        .batch_execute(
            "delete from ambo.ready;
             insert into ambo.outcome (run_id, attempt, status, error) select id, 1, 'dead', '{}' from ambo.run r
             where not exists (select from ambo.outcome o where o.run_id = r.id);
             update ambo.installation set dead_lifetime = '40 days', retention = '1 hour';",
        )
        .await
        .unwrap();
    // As the clock cannot be set, the partition of today is looked at.
    let live = "select ambo.live_runs(p.starts_at, p.ends_at, 10) from ambo.history_partition p order by 1 desc limit 1";
    let row = db.sql.query_one(live, &[]).await.unwrap();
    assert_eq!(row.get::<_, Vec<uuid::Uuid>>(0), [kept.as_uuid()]);
}

#[tokio::test]
async fn how_long_what_has_ended_is_kept_is_set_by_whoever_operates() {
    const DAY: Duration = Duration::from_secs(86_400);
    let db = database().await;
    let kept = async || {
        let kept = db.client.retention().await.unwrap();
        (kept.history, kept.dead, kept.keys)
    };
    let days = |days: u32| format!("{days} days");
    assert_eq!(kept().await, (days(30), None, days(30)));
    let retention = Retention::default().dead(365 * DAY).keys(7 * DAY);
    db.client.set_retention(&retention).await.unwrap();
    assert_eq!(kept().await, (days(30), Some(days(365)), days(7)), "what is not named stays");
    db.client.set_retention(&Retention::default().history(90 * DAY).dead(None)).await.unwrap();
    assert_eq!(kept().await, (days(90), None, days(7)));
    for wrong in [
        r#"{"history": "59 minutes"}"#,
        r#"{"history": null}"#,
        r#"{"dead": "0"}"#,
        r#"{"keys": "101 years"}"#,
        r#"{"dead_lifetime": "1 day"}"#,
        "[]",
        "null",
    ] {
        let sql = format!("select ambo.set_retention('{wrong}')");
        let refused = db.sql.batch_execute(&sql).await.unwrap_err();
        assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("AM005"), "{wrong}");
    }
    assert_eq!(kept().await, (days(90), None, days(7)));
}

/// PostgreSQL reads nothing out of JSON that has a NUL in it, and one such error must not keep all others from being read.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_with_a_nul_hides_no_dead_and_can_be_retried() {
    let db = database().await;
    let body = async |_: Ctx<'_>, _: i64| -> Result<i64> {
        let details = serde_json::json!({"why\0": "no\0ne", "path": "c:\\u0000"});
        Err(Error::application(&details, "declined\0 by \\u0000"))
    };
    let retry = Retry::fixed(Duration::from_millis(1)).max_attempts(2);
    let builder = Worker::builder(&db.client).workflow_fn("decline", body).retry("decline", retry);
    let _worker = builder.start().await.unwrap();
    let run = Enqueue::named("decline", &1).on(&db.client).await.unwrap().run;
    let error = end(&db, run).await.unwrap_err();
    assert!(error.to_string().ends_with("declined\u{fffd} by \\u0000"), "{error}");
    let details: serde_json::Value = error.details().unwrap();
    assert_eq!(details, serde_json::json!({"why\u{fffd}": "no\u{fffd}ne", "path": "c:\\u0000"}));
    let letters = db.client.dead_letters(&Filter::default()).await.unwrap();
    assert_eq!(letters[0].message.as_deref(), Some("declined\u{fffd} by \\u0000"));
    assert_eq!(db.client.dead_errors(&Filter::default()).await.unwrap().len(), 1);
    assert!(!db.client.why(run).await.unwrap().is_empty());
    db.client.retry(run).await.unwrap();
    end(&db, run).await.unwrap_err();
}

#[tokio::test]
async fn the_keys_of_what_is_purged_are_free() {
    let db = database().await;
    let asked = async |key: &str, dedup: bool| {
        let run = Enqueue::<Untyped>::named("w", &1).key(key).start_within(Duration::from_micros(1));
        let run = match key {
            "throttle" => run.throttle(Duration::from_secs(3600)),
            _ if dedup => run.dedup(),
            _ => run,
        };
        run.on(&db.client).await.unwrap()
    };
    for act in [
        "select count(*) from ambo.purge_dead(array(select id from ambo.run order by id limit 4))",
        "select ambo.expire_dead(10)::int8",
    ] {
        let first = [asked("plain", false).await, asked("throttle", false).await, asked("once", true).await];
        let other = asked("moved", true).await;
        assert_eq!(db.number("select expired::int8 from ambo.expire_runs(10)").await, 4);
        // Another one has this key since: that goes on naming it.
        let moved = Enqueue::<Untyped>::named("w", &1).key("moved").dedup().on(&db.client).await.unwrap();
        assert!(moved.is_new && moved.run != other.run);
        db.client.set_retention(&Retention::default().dead(Duration::from_micros(1))).await.unwrap();
        assert_eq!(db.number(act).await, 4, "{act}");
        assert_eq!(db.number("select count(*) from ambo.run_key").await, 1);
        let again = [asked("plain", false).await, asked("throttle", false).await, asked("once", true).await];
        for (first, again) in first.iter().zip(&again) {
            assert!(again.is_new && again.run != first.run, "{act}");
        }
        let found = asked("moved", true).await;
        assert_eq!((found.is_new, found.run), (false, moved.run));
        db.sql.batch_execute("truncate ambo.run, ambo.ready, ambo.run_key").await.unwrap();
    }
}
