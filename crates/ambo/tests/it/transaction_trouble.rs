//! Transaction steps whose bodies misbehave, whose connections are cut and whose databases are the wrong ones.

use std::sync::Arc;
use std::time::Duration;

use ambo::{Code, Ctx, Error, Result, Retry};
use sqlx::postgres::PgPool;

use crate::harness::{database, empty_database};
use crate::proxy::{Lose, Proxy};
use crate::stage::{Gate, Stage, pool};

type Held = (Arc<PgPool>, Arc<Gate>);

fn held(cx: &Ctx<'_>) -> Result<Held> {
    Ok((cx.state::<PgPool>()?, (*cx.state::<Arc<Gate>>()?).clone()))
}

const INSERT: &str = "insert into effect (what) values ('it')";

/// The first body ends its transaction by these words, and may fail after it.
#[ambo::workflow]
async fn by_hand(cx: Ctx, (words, fails): (String, bool)) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("by hand").retry(Retry::exponential()).run(&*pool, async |mut tx| {
        gate.count();
        sqlx::query(INSERT).execute(&mut *tx).await?;
        if gate.bodies() == 1 {
            sqlx::raw_sql(sqlx::AssertSqlSafe(words.as_str())).execute(&mut *tx).await?;
            if fails {
                return Err(Error::message("and it failed"));
            }
        }
        Ok(())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_ends_its_transaction_by_hand_stops_the_run_for_good() {
    for (words, fails, effects, marked) in [
        ("commit", false, 1, true),
        ("commit", true, 1, true),
        ("commit; begin", false, 1, true),
        ("commit; begin; select 1 / 0", true, 1, true),
        ("rollback", false, 0, false),
        ("rollback", true, 0, false),
        ("rollback; begin", true, 0, false),
    ] {
        let scene = format!("{words}, {fails}");
        let stage = Stage::set().await;
        let _worker = stage.worker().workflow::<by_hand>().start().await.unwrap();
        let input = (words.to_owned(), fails);
        let run = by_hand::enqueue(input).on(&stage.db.client).await.unwrap().run;
        let error = stage.end(run).await.unwrap_err();
        assert_eq!(error.code(), Code::CommittedByHand, "{scene}: {error}");
        assert_eq!(stage.state(run).await, "dead", "{scene}");
        assert_eq!(stage.gate.bodies(), 1, "{scene}: it was not run again");
        assert_eq!((stage.effects().await, stage.checkpoints().await), (effects, 0), "{scene}");
        let markers = "select count(*) from ambo.transaction_marker";
        assert_eq!(stage.db.number(markers).await, i64::from(marked), "{scene}: the marker is the proof");
        // Once it is repaired.
        stage.db.sql.batch_execute("truncate effect").await.unwrap();
        stage.db.client.retry(run).await.unwrap();
        stage.end(run).await.unwrap();
        assert_eq!((stage.effects().await, stage.checkpoints().await), (1, 1), "{scene}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_committed_by_hand_and_lost_its_worker_is_not_run_again() {
    let stage = Stage::set().await;
    let run = by_hand::enqueue(("commit".to_owned(), false)).on(&stage.db.client).await.unwrap().run;
    // What a worker leaves that died after that commit.
    let left = format!("insert into ambo.transaction_marker values ('{run}', '1', pg_current_xact_id())");
    stage.db.sql.batch_execute(&left).await.unwrap();
    let _worker = stage.worker().workflow::<by_hand>().start().await.unwrap();
    assert_eq!(stage.end(run).await.unwrap_err().code(), Code::CommittedByHand);
    assert_eq!((stage.gate.bodies(), stage.effects().await), (0, 0));
}

/// Bodies that misbehave otherwise.
#[ambo::workflow]
async fn misbehave(cx: Ctx, how: String) -> Result<i32> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("misbehave");
    let step = if how == "tarry" { step.timeout(Duration::from_millis(100)) } else { step };
    let ended = step.run(&*pool, async |mut tx| {
        gate.count();
        sqlx::query(INSERT).execute(&mut *tx).await?;
        match &*how {
            "panic" => panic!("oh no"),
            "leak" => std::mem::forget(tx),
            "swallow" => {
                let _ = sqlx::query("select 1 / 0").execute(&mut *tx).await;
            }
            "tarry" => {
                sqlx::query("select pg_sleep(3600)").execute(&mut *tx).await?;
            }
            "outgrow" => return Ok("x".repeat(3 * 1024 * 1024)),
            "defer" => {
                sqlx::query("insert into late values (1)").execute(&mut *tx).await?;
            }
            other => return Err(Error::message(other)),
        }
        Ok(String::new())
    });
    ended.await?;
    Ok(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_misbehaves_leaves_nothing_and_ends_with_a_code() {
    for (how, code, sqlstate) in [
        ("panic", Code::Panicked, None),
        ("leak", Code::CommittedByHand, None),
        ("swallow", Code::Database, Some("25P02")),
        ("tarry", Code::StepTimeout, None),
        ("outgrow", Code::TooLarge, None),
        ("defer", Code::Database, Some("P0001")),
    ] {
        let stage = Stage::set().await;
        let late = "create table late (n int);
            create function too_late() returns trigger language plpgsql as $$ begin raise 'too late'; end $$;
            create constraint trigger late after insert on late deferrable initially deferred
            for each row execute function too_late();";
        stage.db.sql.batch_execute(late).await.unwrap();
        let _worker = stage.worker().workflow::<misbehave>().start().await.unwrap();
        let run = misbehave::enqueue(how.to_owned()).on(&stage.db.client).await.unwrap().run;
        let error = stage.end(run).await.unwrap_err();
        assert_eq!((error.code(), error.sqlstate()), (code, sqlstate), "{how}: {error}");
        assert_eq!(stage.effects().await, 0, "{how}");
        assert_eq!(stage.gate.bodies(), 1, "{how}");
        if how != "leak" {
            stage.db.until("select count(*) = 0 from pg_stat_activity where datname = current_database() and backend_xid is not null").await;
            assert_eq!(stage.checkpoints().await, 1, "{how}: the failure is recorded");
        }
    }
}

/// What a body sees of its session: path, name, idle time.
#[ambo::workflow]
async fn look(cx: Ctx) -> Result<(String, String, String)> {
    let (pool, _) = held(&cx)?;
    let step = cx.transaction("look").run(&*pool, async |mut tx| {
        sqlx::query("insert into effect (what) values ('shop')").execute(&mut *tx).await?;
        let seen = "select current_setting('search_path'), current_setting('application_name'),
            current_setting('idle_in_transaction_session_timeout')";
        Ok::<(String, String, String), Error>(sqlx::query_as(seen).fetch_one(&mut *tx).await?)
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_a_step_is_the_users_own_and_as_it_was_afterwards() {
    let mut stage = Stage::set().await;
    stage.db.sql.batch_execute("create schema shop; create table shop.effect (what text)").await.unwrap();
    let options: sqlx::postgres::PgConnectOptions = stage.db.url.parse().unwrap();
    let options = options
        .application_name("shop")
        .options([("search_path", "shop,public"), ("idle_in_transaction_session_timeout", "77s")]);
    let one = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    stage.pool = one.connect_with(options).await.unwrap();
    let worker = stage.worker().workflow::<look>().start().await.unwrap();
    let run = look::enqueue().on(&stage.db.client).await.unwrap().run;
    let (path, name, idle): (String, String, String) =
        serde_json::from_value(stage.end(run).await.unwrap()).unwrap();
    assert_eq!(path, "shop,public");
    assert_eq!(name, format!("ambo step of worker {}", worker.id().unwrap()));
    assert_eq!(idle, "15s", "the lease");
    assert_eq!(stage.db.number("select count(*) from shop.effect").await, 1);
    let after = "select current_setting('search_path'), current_setting('application_name'),
        current_setting('idle_in_transaction_session_timeout')";
    let after: (String, String, String) = sqlx::query_as(after).fetch_one(&stage.pool).await.unwrap();
    assert_eq!(after, ("shop,public".into(), "shop".into(), "77s".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_a_wrong_database_says_so() {
    let (empty, _) = empty_database().await;
    let other = database().await;
    let table = "create table effect (what text)";
    other.sql.batch_execute(table).await.unwrap();
    crate::harness::connect(&empty).await.batch_execute(table).await.unwrap();
    for (url, code, words) in [
        (&empty, Code::SchemaMismatch, "the database that its run lives in"),
        (&other.url, Code::Configuration, "is not of this database"),
    ] {
        let mut stage = Stage::set().await;
        stage.pool = pool(url).await;
        let _worker = stage.worker().workflow::<by_hand>().start().await.unwrap();
        let run = by_hand::enqueue((String::new(), false)).on(&stage.db.client).await.unwrap().run;
        let error = stage.end(run).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let effects: i64 =
            sqlx::query_scalar("select count(*) from effect").fetch_one(&stage.pool).await.unwrap();
        assert_eq!(effects, 0);
    }
}

#[ambo::workflow]
async fn read_only(cx: Ctx) -> Result<()> {
    let (pool, _) = held(&cx)?;
    let step = cx.transaction("read only").run(&*pool, async |mut tx| {
        sqlx::query("set transaction read only").execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_lets_nothing_be_written_fails() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow::<read_only>().start().await.unwrap();
    let run = read_only::enqueue().on(&stage.db.client).await.unwrap().run;
    let error = stage.end(run).await.unwrap_err();
    assert_eq!(error.code(), Code::Database, "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
}

/// One effect, through whatever stands between.
#[ambo::workflow]
async fn once(cx: Ctx) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("once").run(&*pool, async |mut tx| {
        gate.count();
        sqlx::query(INSERT).execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_read_back() {
    for (lose, bodies) in [(Lose::Answer, 1), (Lose::Commit, 2), (Lose::Everything, 2)] {
        let mut stage = Stage::set().await;
        let proxy = Proxy::before(&stage.db.url).await;
        stage.pool = pool(&proxy.url).await;
        let _worker = stage.worker().workflow::<once>().start().await.unwrap();
        proxy.lose(lose);
        let run = once::enqueue().on(&stage.db.client).await.unwrap().run;
        stage.end(run).await.unwrap();
        assert_eq!(proxy.lost(), 1, "{lose:?}: a commit was lost");
        assert_eq!((stage.effects().await, stage.checkpoints().await), (1, 1), "{lose:?}");
        assert_eq!(stage.gate.bodies(), bodies, "{lose:?}");
    }
}

/// A step whose commit takes its time, dropped for something faster; then another effect, which looks for the first.
#[ambo::workflow]
async fn race(cx: Ctx) -> Result<(bool, i64)> {
    let (pool, gate) = held(&cx)?;
    let slow = cx.transaction("slow").run(&*pool, async |mut tx| {
        sqlx::query("insert into slow values (1)").execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    let lost = tokio::select! {
        ended = slow => { ended?; false }
        () = gate.wait() => true,
    };
    gate.wait().await;
    let next = cx.step("next", async || {
        Ok::<i64, Error>(sqlx::query_scalar("select count(*) from slow").fetch_one(&*pool).await?)
    });
    Ok((lost, next.await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_dropped_while_it_commits_is_decided_before_the_next_effect() {
    let stage = Stage::set().await;
    let slow = "create table slow (n int);
        create function wait() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock(99); return null; end $$;
        create constraint trigger slow after insert on slow deferrable initially deferred
        for each row execute function wait();
        select pg_advisory_lock(99);";
    stage.db.sql.batch_execute(slow).await.unwrap();
    let _worker = stage.worker().workflow::<race>().start().await.unwrap();
    let run = race::enqueue().on(&stage.db.client).await.unwrap().run;
    let committing = "select count(*) = 1 from pg_stat_activity
        where datname = current_database() and query ilike 'commit%' and wait_event = 'advisory'";
    stage.db.until(committing).await;
    stage.gate.open();
    stage.gate.reached().await;
    stage.gate.reached().await;
    stage.gate.open();
    stage.db.sql.batch_execute("select pg_advisory_unlock(99)").await.unwrap();
    assert_eq!(stage.end(run).await.unwrap(), serde_json::json!([true, 1]), "the next effect saw the commit");
    assert_eq!(stage.checkpoints().await, 2, "what was committed is recorded");
}

/// A body that waits for a second connection of a pool that has only one.
#[ambo::workflow]
async fn starve(cx: Ctx) -> Result<()> {
    let (pool, gate) = held(&cx)?;
    let step = cx.transaction("starve").run(&*pool, async |mut tx| {
        gate.count();
        sqlx::query(INSERT).execute(&mut *tx).await?;
        sqlx::query("select 1").execute(&*pool).await?;
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_can_never_succeed_does_not_go_on_for_ever() {
    let mut stage = Stage::set().await;
    let one =
        sqlx::postgres::PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(50));
    stage.pool = one.connect(&stage.db.url).await.unwrap();
    let _worker = stage.worker().workflow::<starve>().start().await.unwrap();
    let run = starve::enqueue().on(&stage.db.client).await.unwrap().run;
    let error = stage.end(run).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(stage.gate.bodies() <= 12, "{} bodies", stage.gate.bodies());
    assert_eq!(stage.effects().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_between_two_attempts_ends_the_step() {
    let stage = Stage::set().await;
    let _worker = stage.worker().workflow::<by_hand>().start().await.unwrap();
    // A body that always fails, and is tried again for long.
    stage.db.sql.batch_execute("alter table effect add constraint never check (what <> 'it')").await.unwrap();
    let run = by_hand::enqueue((String::new(), false)).on(&stage.db.client).await.unwrap().run;
    stage.db.until("select count(*) = 1 from ambo.claim").await;
    stage.db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(stage.end(run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(stage.state(run).await, "cancelled");
}
