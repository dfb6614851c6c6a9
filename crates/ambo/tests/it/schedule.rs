//! Schedules: one run a tick, whoever dies; what overlaps, what was missed, what is made up for.

use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Overlap, Result, RunId, Schedule, Untyped, Worker};

use crate::child::Child;
use crate::harness::{Database, connect, database};
use crate::recovery::take_keeper;
use crate::workflows::Ledger;

fn report() -> Enqueue<Untyped> {
    Enqueue::named("report", &"daily")
}

/// A schedule whose next tick is so long ago.
async fn due(db: &Database, name: &str, ago: &str, schedule: Schedule<Untyped>) {
    schedule.set(&db.client).await.unwrap();
    let past = format!(
        "update ambo.schedule set next_at = date_trunc('second', now() - interval '{ago}') where name = '{name}'"
    );
    db.sql.batch_execute(&past).await.unwrap();
}

/// What the keeper does with it; nobody else is there.
async fn tick(db: &Database, name: &str) -> String {
    let tick = "select ambo.tick_schedule(name, next_at, now() - interval '1 ms') from ambo.schedule where name = $1";
    db.sql.query_one(tick, &[&name]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_is_one_run_though_its_keeper_dies() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Child::worker(&db.url, &[]).await);
    }
    let every_second =
        Schedule::every("beat", Duration::from_secs(1), Enqueue::<Untyped>::named("short", &1));
    every_second.overlap(Overlap::Allow).set(&db.client).await.unwrap();
    for ticks in [2, 5] {
        db.until(&format!("select count(*) >= {ticks} from ambo.run where key like 'beat@%'")).await;
        take_keeper(&db, &mut workers).await.0.kill().await;
    }
    db.until("select count(*) >= 9 from ambo.run where key like 'beat@%'").await;
    // Every second from the first to the last, each once: a key is one run, and no key is missing.
    let gaps = "with tick as (select split_part(key, '@', 2)::timestamptz as at from ambo.run where key like 'beat@%')
        select extract(epoch from max(at) - min(at))::bigint + 1 - count(*) from tick";
    assert_eq!(db.number(gaps).await, 0, "a tick has no run, or two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_meets_the_run_before_does_as_it_was_told() {
    let db = database().await;
    let live = "select count(*) from ambo.ready where not wakes";
    for (name, overlap, said, runs) in [
        ("skip", Overlap::Skip, "skipped", 1),
        ("queue", Overlap::Queue, "waits", 1),
        ("cancel", Overlap::Cancel, "ran", 1),
        ("allow", Overlap::Allow, "ran", 2),
    ] {
        due(&db, name, "1 s", Schedule::cron(name, "* * * * *", report()).overlap(overlap)).await;
        assert_eq!(tick(&db, name).await, "ran", "{name}");
        assert_eq!(tick(&db, name).await, said, "{name}");
        assert_eq!(db.number(live).await, runs, "{name}");
        db.sql.batch_execute("delete from ambo.ready").await.unwrap();
    }
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'cancelled'").await, 1);
    db.sql
        .batch_execute("insert into ambo.outcome (run_id, attempt, status) select last_run, 1, 'succeeded' from ambo.schedule where name = 'queue'")
        .await
        .unwrap();
    assert_eq!(tick(&db, "queue").await, "ran", "the one before has ended");
    assert_eq!(db.number("select skipped from ambo.schedule where name = 'skip'").await, 1);
}

/// The keeper makes ticks between its heartbeats: with two dozen schedules whose runs a user was about to cancel, workers that were alive
/// were declared dead.
#[tokio::test]
async fn a_tick_waits_for_no_transaction_that_cancels_the_run_before() {
    let db = database().await;
    let again = Schedule::cron("again", "* * * * *", report()).overlap(Overlap::Cancel);
    due(&db, "again", "1 s", again).await;
    assert_eq!(tick(&db, "again").await, "ran");
    let holder = connect(&db.url).await;
    holder.batch_execute("begin; select ambo.cancel_run(last_run) from ambo.schedule").await.unwrap();
    let sql =
        "select ambo.tick_schedule(s.name, s.next_at, s.next_at + interval '1 min') from ambo.schedule s";
    let ticked = tokio::time::timeout(Duration::from_secs(20), db.sql.query(sql, &[])).await;
    let error = ticked.expect("it gives up").expect_err("the run before is locked");
    assert_eq!(error.code().unwrap().code(), "55P03");
    holder.batch_execute("rollback").await.unwrap();
    assert_eq!(tick(&db, "again").await, "ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_for_too_long_is_not_made_up_for() {
    let db = database().await;
    due(&db, "late", "50 s", Schedule::cron("late", "* * * * *", report())).await;
    assert_eq!(tick(&db, "late").await, "ran");
    due(&db, "later", "70 s", Schedule::cron("later", "* * * * *", report())).await;
    assert_eq!(tick(&db, "later").await, "missed");
    let patient = Schedule::cron("patient", "* * * * *", report()).catch_up(Duration::from_secs(3600));
    due(&db, "patient", "50 min", patient).await;
    assert_eq!(tick(&db, "patient").await, "ran");
    due(
        &db,
        "jittered",
        "1 s",
        Schedule::cron("jittered", "* * * * *", report()).jitter(Duration::from_secs(86_400)),
    )
    .await;
    assert_eq!(tick(&db, "jittered").await, "ran");
    assert_eq!(db.number("select count(*) from ambo.timer").await, 1, "it begins later");
    due(&db, "lost", "1 s", Schedule::cron("lost", "* * * * *", report())).await;
    db.sql.batch_execute("update ambo.schedule set queue = 'gone' where name = 'lost'").await.unwrap();
    assert_eq!(tick(&db, "lost").await, "refused");
    let listed = db.client.list_schedules().await.unwrap();
    let lost = listed.iter().find(|schedule| schedule.name == "lost").unwrap();
    assert!(lost.error.as_deref().unwrap().starts_with("AMBO002"), "{lost:?}");
}

/// A lock that is not to be had, a full disk: that passes.
#[tokio::test]
async fn a_tick_that_cannot_be_made_just_now_is_made_later() {
    let db = database().await;
    due(&db, "nightly", "1 s", Schedule::cron("nightly", "* * * * *", report())).await;
    let user = crate::harness::connect(&db.url).await;
    user.batch_execute("begin; lock table ambo.run").await.unwrap();
    db.sql.batch_execute("set lock_timeout = '50ms'").await.unwrap();
    let tick_now = "select ambo.tick_schedule(name, next_at, now() + interval '1 h') from ambo.schedule";
    let error = db.sql.query_one(tick_now, &[]).await.unwrap_err();
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("55P03"), "{error}");
    user.batch_execute("rollback").await.unwrap();
    assert_eq!(tick(&db, "nightly").await, "ran");
    assert_eq!(db.number("select skipped from ambo.schedule").await, 0);
}

/// Who may enqueue knows how the keys of ticks are written.
#[tokio::test]
async fn nobody_takes_the_key_of_a_tick_to_come() {
    let db = database().await;
    due(&db, "nightly", "1 s", Schedule::cron("nightly", "* * * * *", report())).await;
    let forged = "select ambo.enqueue_workflow('report', '\"forged\"', delay => '10 years',
            key => 'nightly@' || to_char(next_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'))
        from ambo.schedule";
    let forged: uuid::Uuid = db.sql.query_one(forged, &[]).await.unwrap().get(0);
    assert_eq!(tick(&db, "nightly").await, "ran");
    let ran = "select r.id from ambo.schedule s join ambo.run r on r.id = s.last_run
        where r.key like 'nightly@%' and r.input::text = '\"daily\"'";
    let ran: uuid::Uuid = db.sql.query_one(ran, &[]).await.unwrap().get(0);
    assert_ne!(ran, forged, "the tick has a run of its own");
}

async fn tell(cx: Ctx<'_>, _: String) -> Result<Option<String>> {
    Ok(cx.scheduled_at().map(|at| at.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_are_made_up_for_once_and_know_their_time() {
    let db = database().await;
    let _worker = Worker::builder(&db.client).workflow_fn("report", tell).start().await.unwrap();
    let nightly = || Schedule::cron("nightly", "30 3 * * *", report()).timezone("Europe/Berlin");
    assert!(nightly().set(&db.client).await.unwrap());
    assert!(!nightly().set(&db.client).await.unwrap(), "it is there");
    let days = "2026-03-28T12:00:00Z".parse().unwrap().."2026-03-31T00:00:00Z".parse().unwrap();
    let made = db.client.backfill_schedule("nightly", days).await.unwrap();
    let wider = "2026-03-28T00:00:00Z".parse().unwrap().."2026-03-31T00:00:00Z".parse().unwrap();
    let again = db.client.backfill_schedule("nightly", wider).await.unwrap();
    assert_eq!((made.len(), again.len()), (2, 3));
    assert_eq!(again[1..], made, "those that there were are the same");
    // Changed live: a tick that had its run keeps it, the others get one with the input of today.
    let other = Schedule::cron("nightly", "30 3 * * *", Enqueue::named("report", &"weekly"));
    assert!(!other.timezone("Europe/Berlin").set(&db.client).await.unwrap());
    let widest = "2026-03-27T00:00:00Z".parse().unwrap().."2026-03-31T00:00:00Z".parse().unwrap();
    let changed = db.client.backfill_schedule("nightly", widest.clone()).await.unwrap();
    assert_eq!((changed.len(), &changed[1..]), (4, &again[..]));
    let weekly = "select count(*) from ambo.run where workflow = 'report' and input::text = '\"weekly\"'";
    assert_eq!(db.number(weekly).await, 1);
    let told = async |run: RunId| {
        db.client.handle::<Untyped>(run).result_as::<Option<String>, Error>().await.unwrap()
    };
    assert_eq!(told(made[0]).await.as_deref(), Some("2026-03-29T01:30:00Z"), "half past three in summer");
    // A fork is for the same tick, which has its run all the same; and so is a fork of that.
    let fork = db.client.fork(made[0], Some("1")).await.unwrap();
    let fork = db.client.fork(fork, Some("1")).await.unwrap();
    assert_eq!(told(fork).await, told(made[0]).await);
    assert_eq!(db.client.backfill_schedule("nightly", widest).await.unwrap()[2], made[0]);
    let triggered = db.client.trigger_schedule("nightly").await.unwrap();
    assert!(told(triggered).await.is_some());
    db.client.pause_schedule("nightly", true).await.unwrap();
    db.client.trigger_schedule("nightly").await.unwrap();
    db.client.delete_schedule("nightly").await.unwrap();
    for gone in [
        db.client.delete_schedule("nightly").await,
        db.client.pause_schedule("nightly", false).await,
        db.client.trigger_schedule("nightly").await.map(drop),
        db.client
            .backfill_schedule(
                "nightly",
                "2026-01-01T00:00:00Z".parse().unwrap().."2026-01-02T00:00:00Z".parse().unwrap(),
            )
            .await
            .map(drop),
    ] {
        assert_eq!(gone.unwrap_err().code(), Code::UnknownSchedule);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_makes_no_sense_is_refused() {
    let db = database().await;
    let code = async |schedule: Schedule<Untyped>| schedule.set(&db.client).await.unwrap_err().code();
    let cron = |pattern: &str| Schedule::cron("s", pattern, report());
    assert_eq!(code(cron("")).await, Code::InvalidOption);
    assert_eq!(code(cron("99 * * * *")).await, Code::InvalidOption);
    assert_eq!(code(cron(&"*".repeat(65_536))).await, Code::InvalidOption);
    assert_eq!(code(cron("0 0 30 2 *")).await, Code::InvalidOption, "it never comes");
    assert_eq!(code(cron("* * * * *").timezone("Nowhere")).await, Code::InvalidOption);
    assert_eq!(code(Schedule::every("s", Duration::ZERO, report())).await, Code::InvalidOption);
    assert_eq!(code(Schedule::cron("s", "* * * * *", report().key("k"))).await, Code::InvalidOption);
    assert_eq!(
        code(Schedule::cron("s", "* * * * *", report().delay(Duration::from_secs(1)))).await,
        Code::InvalidOption
    );
    assert_eq!(code(Schedule::cron("", "* * * * *", report())).await, Code::InvalidName);
    assert_eq!(code(Schedule::cron("s\0", "* * * * *", report())).await, Code::InvalidName);
    assert_eq!(code(Schedule::cron("s".repeat(65_536), "* * * * *", report())).await, Code::InvalidName);
    assert_eq!(code(Schedule::cron("s", "* * * * *", report().queue("nowhere"))).await, Code::UnknownQueue);
    let from_sql = "select ambo.set_schedule('s', 'w', '\"secret\"', 'default', 0, null, null, 5, ";
    for wrong in [
        "'61 * * * *', 'UTC', null, 'skip', '0', '0', now())",
        "'* * * * *', 'Mars/Olympus', null, 'skip', '0', '0', now())",
        // A time zone to PostgreSQL, but not by its IANA name.
        "'* * * * *', 'XYZ-5', null, 'skip', '0', '0', now())",
        "null, null, '1 ms', 'skip', '0', '0', now())",
        "null, null, null, 'skip', '0', '0', now())",
        "null, 'UTC', '5 s', 'skip', '0', '0', now())",
        "'* * * * *', 'UTC', '5 s', 'skip', '0', '0', now())",
        "null, null, '5 s', 'never', '0', '0', now())",
        "null, null, '5 s', null, '0', '0', now())",
        "null, null, '5 s', 'skip', '-1 s', '0', now())",
        "null, null, '5 s', 'skip', '0', null, now())",
    ] {
        let refused = db.sql.query(&format!("{from_sql}{wrong}"), &[]).await.unwrap_err();
        let refused = refused.as_db_error().expect("an error of the server");
        assert_eq!(refused.code().code(), "AM005", "{wrong}: {refused}");
        assert!(!format!("{refused:?}").contains("secret"), "a payload in an error");
    }
    assert_eq!(db.number("select count(*) from ambo.schedule").await, 0);
    Schedule::every("s", Duration::from_secs(1), report()).set(&db.client).await.unwrap();
    let century = "2026-01-01T00:00:00Z".parse().unwrap().."2126-01-01T00:00:00Z".parse().unwrap();
    let backwards = century.end..century.start;
    for times in [century, backwards] {
        assert_eq!(db.client.backfill_schedule("s", times).await.unwrap_err().code(), Code::InvalidOption);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_sets_a_schedule_and_leaves_its_first_time_to_the_keeper() {
    let db = database().await;
    let set = async |sql: &str| db.sql.query(&format!("select ambo.set_schedule({sql})"), &[]).await.unwrap();
    set("'often', 'report', p_every => '1 hour'").await;
    let hours = "select round(extract(epoch from next_at - now()) / 3600)::bigint from ambo.schedule where name = 'often'";
    assert_eq!(db.number(hours).await, 1);
    set("'nightly', 'report', '1', p_cron => '30 3 * * *', p_timezone => 'Europe/Berlin'").await;
    set("'queued', 'report', p_cron => '* * * * *', p_overlap => 'queue', p_catch_up => '1 day'").await;
    set("'never', 'report', p_cron => '0 0 31 2 *'").await;
    let nothing = async |_: Ctx<'_>, (): ()| Ok::<_, Error>(());
    let _worker = Worker::builder(&db.client).workflow_fn("report", nothing).start().await.unwrap();
    db.until("select bool_and(next_at > now() - interval '1 minute' or paused) from ambo.schedule").await;
    let schedules = db.client.list_schedules().await.unwrap();
    let one = |name: &str| schedules.iter().find(|one| one.name == name).unwrap();
    assert_eq!(one("nightly").next_at.to_zoned(jiff::tz::TimeZone::get("Europe/Berlin").unwrap()).hour(), 3);
    // What was before it was set is nothing that it missed.
    assert!(schedules.iter().all(|one| one.skipped == 0));
    let early = "select count(*) from ambo.run where split_part(key, '@', 2)::timestamptz < now() - interval '1 minute'";
    assert_eq!(db.number(early).await, 0);
    assert!(one("never").paused);
    assert_eq!(one("never").error.as_deref(), Some("it never comes again"));
    // Set again as it is, it stays so; with times that come, it goes on; and who was paused by hand does not.
    set("'never', 'report', p_cron => '0 0 31 2 *'").await;
    let stopped = "select count(*) from ambo.schedule where paused and error is not null";
    assert_eq!(db.number(stopped).await, 1);
    set("'never', 'report', p_cron => '* * * * * *'").await;
    db.until("select last_at is not null and error is null from ambo.schedule where name = 'never'").await;
    db.client.pause_schedule("never", true).await.unwrap();
    set("'never', 'report', p_cron => '0 0 * * *'").await;
    assert_eq!(db.number("select count(*) from ambo.schedule where paused").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_cannot_be_read_says_which_field() {
    let db = database().await;
    for (pattern, why) in [
        ("61 * * * *", "\"61\" is no minute"),
        ("* * * * * FOO", "\"FOO\" is no day of the week"),
        ("0 0 32 * *", "\"32\" is no day of the month"),
        ("5 61 * * * *", "\"61\" is no minute"),
    ] {
        let refused = Schedule::cron("s", pattern, report()).set(&db.client).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("AMBO005: the cron pattern {pattern:?} cannot be read: {why}")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_a_schedule_have_bounds() {
    let db = database().await;
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    // Ten years, as PostgreSQL compares them: 12 months of 30 days each.
    let longest = 3_600 * day;
    let set = async |every: Duration, catch_up: Duration, jitter: Duration| {
        let schedule = Schedule::every("s", every, report()).catch_up(catch_up).jitter(jitter);
        schedule.set(&db.client).await.map(drop).map_err(|error| error.code())
    };
    for (every, catch_up, jitter) in [
        (second, Duration::ZERO, Duration::ZERO),
        (longest, longest, longest),
        (day, Duration::from_micros(1), Duration::from_micros(1)),
    ] {
        assert_eq!(set(every, catch_up, jitter).await, Ok(()), "{every:?} {catch_up:?} {jitter:?}");
    }
    let too_long = longest + second;
    for (every, catch_up, jitter) in [
        (Duration::ZERO, day, day),
        (second - Duration::from_micros(1), day, day),
        (too_long, day, day),
        (Duration::MAX, day, day),
        (day, too_long, day),
        (day, Duration::MAX, day),
        (day, day, too_long),
        (day, day, Duration::MAX),
    ] {
        let refused = set(every, catch_up, jitter).await;
        assert_eq!(refused, Err(Code::InvalidOption), "{every:?} {catch_up:?} {jitter:?}");
    }
    let from_sql = "select ambo.set_schedule('s', 'report', '1', 'default', 0, null, null, 5, null, null, ";
    for wrong in [
        "'0', 'skip', '0', '60 s', now())",
        "'-1 day', 'skip', '0', '60 s', now())",
        "'999999 microseconds', 'skip', '0', '60 s', now())",
        "'10 years 1 second', 'skip', '0', '60 s', now())",
        "'178000000 years', 'skip', '0', '60 s', now())",
        "'1 day', 'skip', '0', '-1 microsecond', now())",
        "'1 day', 'skip', '0', '10 years 1 second', now())",
        "'1 day', 'skip', '0', '178000000 years', now())",
        "'1 day', 'skip', '0', '-178000000 years', now())",
        "'1 day', 'skip', '-1 microsecond', '60 s', now())",
        "'1 day', 'skip', '10 years 1 second', '60 s', now())",
        "'1 day', 'skip', '0', '60 s', 'infinity')",
    ] {
        let refused = db.sql.query(&format!("{from_sql}{wrong}"), &[]).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("AM005"), "{wrong}: {refused}");
    }
    // Without anything to be made up for, a tick that is late by a moment is missed.
    due(&db, "strict", "1 s", Schedule::cron("strict", "* * * * *", report()).catch_up(Duration::ZERO)).await;
    assert_eq!(tick(&db, "strict").await, "missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_cannot_go_on_says_why() {
    let db = database().await;
    due(&db, "foreign", "1 s", Schedule::cron("foreign", "* * * * *", report())).await;
    due(&db, "ended", "1 s", Schedule::cron("ended", "* * * * *", report())).await;
    // As a version to come may write it; and a day that there never is.
    db.sql
        .batch_execute(
            "update ambo.schedule set cron = 'at dawn' where name = 'foreign';
             update ambo.schedule set cron = '0 0 30 2 *' where name = 'ended'",
        )
        .await
        .unwrap();
    let reasons = async || {
        let schedules = db.client.list_schedules().await.unwrap();
        let reasons =
            schedules.into_iter().map(|schedule| (schedule.paused, schedule.error.unwrap_or_default()));
        let [ended, foreign] = reasons.collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(ended.1, "it never comes again");
        assert!(foreign.1.starts_with("AMBO005: the cron pattern \"at dawn\" cannot be read"), "{foreign:?}");
        (ended.0, foreign.0)
    };
    assert_eq!(reasons().await, (false, false), "without a keeper");
    let _worker = Worker::builder(&db.client).workflow_fn("report", tell).start().await.unwrap();
    db.until("select bool_and(paused and error is not null) from ambo.schedule").await;
    assert_eq!(reasons().await, (true, true));
    // Set anew with what is right, and resumed, it goes on.
    Schedule::cron("ended", "* * * * * *", report()).set(&db.client).await.unwrap();
    db.client.pause_schedule("ended", false).await.unwrap();
    db.until("select last_run is not null and error is null from ambo.schedule where name = 'ended'").await;
}

#[tokio::test]
async fn what_stopped_a_schedule_is_kept_until_it_goes_on_or_has_other_times() {
    let db = database().await;
    let named = |name: &str, pattern: &str| Schedule::cron(name, pattern, report());
    for name in ["other", "s"] {
        due(&db, name, "1 s", named(name, "* * * * *")).await;
    }
    db.sql
        .batch_execute("update ambo.schedule set next_at = (select min(next_at) from ambo.schedule)")
        .await
        .unwrap();
    let listed = async || {
        let [other, s] = db.client.list_schedules().await.unwrap().try_into().unwrap();
        assert_eq!((other.paused, &other.error), (false, &None), "nothing was said of it");
        (s.paused, s.error, s.next_at)
    };
    let stop = async |tick: &str| {
        let stop =
            format!("select ambo.stop_schedule(name, {tick}, 'why') from ambo.schedule where name = 's'");
        db.sql.batch_execute(&stop).await.unwrap();
    };
    let (_, _, first) = listed().await;
    stop("next_at - interval '1 minute'").await;
    assert_eq!(listed().await, (false, None, first), "it does not stand there any more");
    stop("next_at").await;
    assert_eq!(listed().await, (true, Some("why".to_owned()), first));
    let ready = "select count(*) from ambo.due_schedules()";
    assert_eq!((db.number(ready).await, tick(&db, "s").await.as_str()), (1, "gone"), "it is paused");
    named("s", "* * * * *").set(&db.client).await.unwrap();
    assert_eq!(listed().await, (true, Some("why".to_owned()), first), "its times are what they were");
    stop("next_at").await;
    db.client.pause_schedule("s", false).await.unwrap();
    assert_eq!(listed().await, (false, None, first));
    // A tick that is refused says why, one that has its run forgets it.
    db.sql.batch_execute("update ambo.schedule set queue = 'gone' where name = 's'").await.unwrap();
    assert_eq!(tick(&db, "s").await, "refused");
    let (paused, error, _) = listed().await;
    assert!(!paused && error.as_deref().is_some_and(|error| error.starts_with("AMBO002")), "{error:?}");
    due(&db, "s", "1 s", named("s", "* * * * *")).await;
    db.sql.batch_execute("update ambo.schedule set error = 'AMBO002' where name = 's'").await.unwrap();
    assert_eq!(tick(&db, "s").await, "ran");
    let (_, error, before) = listed().await;
    assert_eq!(error, None);
    named("s", "0 0 1 1 *").set(&db.client).await.unwrap();
    assert!(listed().await.2 > before, "with other times it comes at those");
}
