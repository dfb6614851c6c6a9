//! What an enqueue on a caller's connection does, the same for every driver: one suite that each of them passes.
//!
//! A driver is a [`Caller`]; `conformance!` makes the tests of it.

use ambo::{Code, Enqueue, Enqueued, Error, Isolation, Result, TransactionStep, Untyped};

use crate::harness::{Database, database};
use crate::proxy::Proxy;

/// A connection of a driver, in or out of a transaction.
pub(crate) trait Caller: Sized {
    async fn connect(url: &str) -> Self;
    async fn begin(&mut self, isolation: Isolation) -> Result<()>;
    async fn commit(&mut self) -> Result<()>;
    async fn rollback(&mut self) -> Result<()>;
    /// Runs a statement of the user's, in the open transaction if there is one.
    async fn execute(&mut self, sql: &str) -> Result<()>;
    /// Enqueues, in the open transaction if there is one.
    async fn enqueue(&mut self, run: Enqueue<Untyped>) -> Result<Enqueued>;
    /// The same for many.
    async fn enqueue_all(&mut self, runs: Vec<Enqueue<Untyped>>) -> Result<Vec<Enqueued>>;
}

fn run(order: i32) -> Enqueue<Untyped> {
    Enqueue::named("fulfil", &order)
}

async fn set_up() -> Database {
    let db = database().await;
    db.sql.batch_execute("create table orders (id int primary key)").await.unwrap();
    db
}

/// Runs, keys and orders: what is there for everybody to see.
async fn there(db: &Database) -> (i64, i64, i64) {
    let count = "select (select count(*) from ambo.run r join ambo.ready y on y.run_id = r.id),
        (select count(*) from ambo.run_key), (select count(*) from orders)";
    let row = db.sql.query_one(count, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

pub(crate) async fn commit_and_rollback<C: Caller>() {
    let db = set_up().await;
    let mut caller = C::connect(&db.url).await;
    caller.begin(Isolation::ReadCommitted).await.unwrap();
    caller.execute("insert into orders values (1)").await.unwrap();
    let enqueued = caller.enqueue(run(1).key("order-1")).await.unwrap();
    assert!(enqueued.is_new);
    assert_eq!(there(&db).await, (0, 0, 0), "nothing is there before the commit");
    caller.commit().await.unwrap();
    assert_eq!(there(&db).await, (1, 1, 1), "order, run and key are there after it");
    assert_eq!(db.client.show_run(enqueued.run).await.unwrap().summary.state, "ready");

    caller.begin(Isolation::ReadCommitted).await.unwrap();
    caller.execute("insert into orders values (2)").await.unwrap();
    let gone = caller.enqueue(run(2).key("order-2")).await.unwrap();
    caller.rollback().await.unwrap();
    assert_eq!(there(&db).await, (1, 1, 1), "a rollback leaves nothing");
    assert_eq!(db.client.show_run(gone.run).await.unwrap_err().code(), Code::UnknownRun);

    caller.begin(Isolation::ReadCommitted).await.unwrap();
    caller.execute("insert into orders values (3)").await.unwrap();
    caller.enqueue(run(3).key("order-3")).await.unwrap();
    caller.execute("savepoint part").await.unwrap();
    caller.enqueue(run(4).key("order-4")).await.unwrap();
    caller.execute("rollback to savepoint part").await.unwrap();
    caller.commit().await.unwrap();
    assert_eq!(there(&db).await, (2, 2, 2), "a savepoint that was rolled back takes its run along");

    let alone = caller.enqueue(run(5)).await.unwrap();
    assert!(alone.is_new);
    assert_eq!(there(&db).await, (3, 2, 2), "without a transaction, it is there at once");
}

pub(crate) async fn keys<C: Caller>() {
    let db = set_up().await;
    let mut caller = C::connect(&db.url).await;
    let first = caller.enqueue(run(1).key("order-1")).await.unwrap();
    let again = caller.enqueue(run(1).key("order-1")).await.unwrap();
    assert_eq!((again.run, again.is_new), (first.run, false));

    caller.begin(Isolation::ReadCommitted).await.unwrap();
    let other = caller.enqueue(run(2).key("order-1")).await.unwrap_err();
    assert_eq!((other.code(), other.sqlstate()), (Code::KeyConflict, Some("AM003")));
    assert!(other.to_string().starts_with("AMBO003: key 'order-1'"), "{other}");
    let after = caller.execute("insert into orders values (1)").await.unwrap_err();
    assert_eq!(after.sqlstate(), Some("25P02"), "the transaction is failed, as after every error: {after}");
    caller.rollback().await.unwrap();

    // What becomes of the transaction is the caller's decision: with a savepoint, it goes on.
    caller.begin(Isolation::ReadCommitted).await.unwrap();
    caller.execute("insert into orders values (1)").await.unwrap();
    caller.execute("savepoint before").await.unwrap();
    caller.enqueue(run(2).key("order-1")).await.unwrap_err();
    caller.execute("rollback to savepoint before").await.unwrap();
    caller.commit().await.unwrap();
    assert_eq!(there(&db).await, (1, 1, 1));
}

pub(crate) async fn snapshots<C: Caller>() {
    let db = set_up().await;
    let (mut one, mut two) = (C::connect(&db.url).await, C::connect(&db.url).await);
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        one.begin(isolation).await.unwrap();
        one.execute("select count(*) from orders").await.unwrap();
        let key = format!("{isolation:?}");
        two.enqueue(run(1).key(&key)).await.unwrap();
        // The key is taken, by a run that this snapshot does not show.
        let conflict = one.enqueue(run(1).key(&key)).await.unwrap_err();
        assert!(conflict.is_conflict(), "{conflict}");
        assert_eq!(conflict.sqlstate(), Some("40001"));
        one.rollback().await.unwrap();
        one.begin(isolation).await.unwrap();
        assert!(!one.enqueue(run(1).key(&key)).await.unwrap().is_new, "in a new snapshot, it is found");
        one.enqueue(run(2)).await.unwrap();
        one.commit().await.unwrap();
    }
    assert_eq!(there(&db).await, (4, 2, 0));
}

/// Until so many statements wait for the lock of another transaction.
async fn until_waiting(db: &Database, count: i32) {
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'transactionid'";
    db.until(&format!("select ({waiting}) = {count}")).await;
}

pub(crate) async fn two_transactions<C: Caller>() {
    let db = set_up().await;
    let (mut one, mut two) = (C::connect(&db.url).await, C::connect(&db.url).await);
    for (first_commits, key) in [(true, "kept"), (false, "given up")] {
        one.begin(Isolation::ReadCommitted).await.unwrap();
        two.begin(Isolation::ReadCommitted).await.unwrap();
        let first = one.enqueue(run(1).key(key)).await.unwrap();
        let then = async {
            until_waiting(&db, 1).await;
            if first_commits { one.commit().await } else { one.rollback().await }.unwrap();
        };
        let (second, ()) = tokio::join!(two.enqueue(run(1).key(key)), then);
        let second = second.unwrap();
        assert_eq!(second.is_new, !first_commits, "the second waited for what became of the first");
        assert_eq!(second.run == first.run, first_commits);
        two.commit().await.unwrap();
    }
    assert_eq!(there(&db).await, (2, 2, 0));

    // In opposite orders, each waits for the other, until the server ends one of them.
    one.begin(Isolation::ReadCommitted).await.unwrap();
    two.begin(Isolation::ReadCommitted).await.unwrap();
    one.enqueue(run(1).key("a")).await.unwrap();
    two.enqueue(run(1).key("b")).await.unwrap();
    let (end_one, end_two) = tokio::join!(
        async {
            let ended = one.enqueue(run(1).key("b")).await;
            if ended.is_ok() {
                one.commit().await.unwrap()
            } else {
                one.rollback().await.unwrap()
            }
            ended
        },
        async {
            let ended = two.enqueue(run(1).key("a")).await;
            if ended.is_ok() {
                two.commit().await.unwrap()
            } else {
                two.rollback().await.unwrap()
            }
            ended
        },
    );
    let (won, lost) = if end_one.is_ok() { (end_one, end_two) } else { (end_two, end_one) };
    assert!(won.unwrap().is_new);
    let lost = lost.unwrap_err();
    assert_eq!(lost.sqlstate(), Some("40P01"), "{lost}");
    assert!(lost.is_conflict());
    assert_eq!(there(&db).await, (4, 4, 0), "both runs of the one that won, none of the other");
}

pub(crate) async fn refusals<C: Caller>() {
    let db = set_up().await;
    let mut caller = C::connect(&db.url).await;
    let long = "x".repeat(64 * 1024);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep: Box<serde_json::value::RawValue> = serde_json::from_str(&deep).unwrap();
    let refused = [
        (run(1).key("nul \0"), Code::InvalidName),
        (run(1).key(&long), Code::InvalidName),
        (run(1).key(""), Code::InvalidName),
        (Enqueue::named(&long, &1), Code::InvalidName),
        (Enqueue::named("", &1), Code::InvalidName),
        (run(1).queue(&long), Code::UnknownQueue),
        (run(1).queue("no such queue"), Code::UnknownQueue),
        (Enqueue::named("fulfil", &"x".repeat(3 * 1024 * 1024)), Code::TooLarge),
        (Enqueue::named("fulfil", &deep), Code::NotEncodable),
        (run(1).priority(40_000), Code::InvalidOption),
        (run(1).schema("elsewhere"), Code::SchemaMismatch),
    ];
    for (n, (run, code)) in refused.into_iter().enumerate() {
        caller.begin(Isolation::ReadCommitted).await.unwrap();
        caller.execute("insert into orders values (1)").await.unwrap();
        let error: Error = caller.enqueue(run).await.unwrap_err();
        assert_eq!(error.code(), code, "refusal {n}: {error}");
        assert!(error.to_string().len() < 1000, "the text of an error is short: {error}");
        caller.rollback().await.unwrap();
    }
    assert_eq!(there(&db).await, (0, 0, 0));

    // A NUL within the input is a value like any other: the text of the JSON does not hold it.
    for key in ["once", "once"] {
        caller.enqueue(Enqueue::named("fulfil", &"nul \0").key(key)).await.unwrap();
    }
    let input = "select input::text from ambo.run";
    assert_eq!(db.sql.query_one(input, &[]).await.unwrap().get::<_, &str>(0), "\"nul \\u0000\"");
    // Nor is what PostgreSQL could not compare as a value: it is compared as it is written.
    for odd in [r#""\ud800""#, "1e1000000"] {
        let json: Box<serde_json::value::RawValue> = serde_json::from_str(odd).unwrap();
        let odd_run = || Enqueue::named("fulfil", &json).key(odd);
        let first = caller.enqueue(odd_run()).await.unwrap();
        assert_eq!(caller.enqueue(odd_run()).await.unwrap().run, first.run);
        assert_eq!(caller.enqueue(run(1).key(odd)).await.unwrap_err().code(), Code::KeyConflict);
    }
}

pub(crate) async fn many<C: Caller>() {
    let db = set_up().await;
    let mut caller = C::connect(&db.url).await;
    caller.begin(Isolation::ReadCommitted).await.unwrap();
    let first = caller.enqueue(run(1).key("order-1")).await.unwrap();
    let odd = Enqueue::named("it's \"odd\" {, }", &["a\nb", "\\", "ß", "nul \0"])
        .attributes(&serde_json::json!({"a": "'\"{},"}));
    let at = "2027-01-01T00:00:00Z".parse().unwrap();
    let runs =
        vec![run(1).key("order-1"), odd.priority(-3).at(at), run(3), run(4).key("order-4").attempts(7)];
    let all = caller.enqueue_all(runs).await.unwrap();
    assert_eq!(all.iter().map(|run| run.is_new).collect::<Vec<_>>(), [false, true, true, true]);
    assert_eq!(all[0].run, first.run);
    assert_eq!(there(&db).await, (0, 0, 0), "nothing is there before the commit");
    caller.commit().await.unwrap();
    let stored = "select json_agg(json_build_array(r.id, r.workflow, r.input, r.priority, r.key, r.attempts_max, r.attributes, t.due_at)
        order by r.id)::text from ambo.run r left join ambo.timer t on t.run_id = r.id";
    let stored: String = db.sql.query_one(stored, &[]).await.unwrap().get(0);
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    let id = |n: usize| all[n].run.to_string();
    let mut expected = vec![
        serde_json::json!([id(0), "fulfil", 1, 0, "order-1", 5, null, null]),
        serde_json::json!([id(1), "it's \"odd\" {, }", ["a\nb", "\\", "ß", "nul \0"], -3, null, 5, {"a": "'\"{},"}, "2027-01-01T00:00:00+00:00"]),
        serde_json::json!([id(2), "fulfil", 3, 0, null, 5, null, null]),
        serde_json::json!([id(3), "fulfil", 4, 0, "order-4", 7, null, null]),
    ];
    expected.sort_by_key(|row| row[0].as_str().unwrap().to_owned());
    assert_eq!(stored, serde_json::Value::from(expected));

    assert_eq!(caller.enqueue_all(Vec::new()).await.unwrap(), []);
    caller.begin(Isolation::ReadCommitted).await.unwrap();
    let refused = caller.enqueue_all(vec![run(5), run(6).queue("no such queue")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::UnknownQueue, "one refused run refuses all");
    caller.rollback().await.unwrap();
    assert_eq!(db.number("select count(*) from ambo.run").await, 4);
}

pub(crate) async fn round_trips<C: Caller>() {
    let db = set_up().await;
    let proxy = Proxy::before(&db.url).await;
    let mut caller = C::connect(&proxy.url).await;
    // A driver may prepare the statement once.
    caller.begin(Isolation::ReadCommitted).await.unwrap();
    caller.enqueue(run(0)).await.unwrap();
    let before = proxy.round_trips();
    for order in 1..=10 {
        caller.enqueue(run(order).key(format!("order-{order}"))).await.unwrap();
    }
    assert_eq!(proxy.round_trips() - before, 10, "an enqueue is one round trip");
    caller.commit().await.unwrap();
}

/// Transaction steps of a driver. `register` gives the worker a workflow `reserve` and what it needs to reach the
/// database at this address; its body inserts an effect, enqueues, and then does what its input says.
#[cfg(feature = "sqlx")]
pub(crate) async fn transaction_steps<F>(register: impl Fn(ambo::WorkerBuilder, String) -> F)
where
    F: Future<Output = ambo::WorkerBuilder>,
{
    use crate::proxy::Lose;

    for (how, lose, code) in [
        ("succeed", Lose::Nothing, None),
        ("succeed", Lose::Answer, None),
        ("succeed", Lose::Commit, None),
        ("succeed", Lose::Everything, None),
        ("conflict", Lose::Nothing, None),
        ("deadlock", Lose::Nothing, None),
        ("fail", Lose::Nothing, Some(Code::Application)),
        ("duplicate", Lose::Nothing, Some(Code::Database)),
        ("swallow", Lose::Nothing, Some(Code::Database)),
        ("commit", Lose::Nothing, Some(Code::CommittedByHand)),
    ] {
        for ends in ["", ENDS] {
            let scene = format!("{ends}{how}, {lose:?}");
            let stage = crate::stage::Stage::set().await;
            let proxy = Proxy::before(&stage.db.url).await;
            let _worker = register(stage.worker(), proxy.url.clone()).await.start().await.unwrap();
            proxy.lose(lose);
            let run =
                Enqueue::named("reserve", &format!("{ends}{how}")).on(&stage.db.client).await.unwrap().run;
            let ended = stage.end(run).await;
            assert_eq!(ended.as_ref().err().map(Error::code), code, "{scene}: {ended:?}");
            assert_eq!(proxy.lost(), u64::from(lose != Lose::Nothing), "{scene}");
            let effects = i64::from(code.is_none() || how == "commit");
            assert_eq!(stage.effects().await, effects, "{scene}");
            let children = "select count(*) from ambo.run where workflow = 'fulfil'";
            assert_eq!(
                stage.db.number(children).await,
                effects,
                "{scene}: what it enqueued is there with it"
            );
            let bodies = if ["conflict", "deadlock"].contains(&how)
                || [Lose::Commit, Lose::Everything].contains(&lose)
            {
                2
            } else {
                1
            };
            assert_eq!(stage.gate.bodies(), bodies, "{scene}: how often the body was run");
            if !ends.is_empty() && code.is_none() {
                assert_eq!(stage.checkpoints().await, 0, "{scene}: its end is its record");
                assert_eq!(stage.state(run).await, "succeeded", "{scene}");
            }
        }
    }
}

/// Before what a body is to do: its transaction ends the run.
const ENDS: &str = "end: ";

/// The step that the input asks for, and what its body is to do.
pub(crate) fn step_of<'a>(step: TransactionStep<'a>, how: &str) -> (TransactionStep<'a>, String) {
    match how.strip_prefix(ENDS) {
        Some(how) => (step.completing(), how.to_owned()),
        None => (step, how.to_owned()),
    }
}

/// What a body does at its end, by SQL; `None`: nothing of the kind.
pub(crate) fn last_words(how: &str, bodies: u32) -> Option<&'static str> {
    match (how, bodies) {
        ("conflict", 1) => {
            Some("do $$ begin raise 'could not serialize access' using errcode = '40001'; end $$")
        }
        ("deadlock", 1) => Some("do $$ begin raise 'deadlock detected' using errcode = '40P01'; end $$"),
        ("duplicate", _) => Some("insert into counter values (1, 1)"),
        ("swallow", _) => Some("select 1 / 0"),
        ("commit", _) => Some("commit"),
        _ => None,
    }
}

/// The suite for one driver.
macro_rules! conformance {
    ($caller:ty) => {
        #[tokio::test]
        async fn what_is_enqueued_is_there_if_and_only_if_the_transaction_commits() {
            crate::on_driver::commit_and_rollback::<$caller>().await;
        }

        #[tokio::test]
        async fn a_key_means_one_run_and_one_input() {
            crate::on_driver::keys::<$caller>().await;
        }

        #[tokio::test]
        async fn a_key_that_a_snapshot_does_not_show_is_a_conflict() {
            crate::on_driver::snapshots::<$caller>().await;
        }

        #[tokio::test]
        async fn of_two_transactions_with_one_key_the_second_waits_and_crossed_ones_deadlock() {
            crate::on_driver::two_transactions::<$caller>().await;
        }

        #[tokio::test]
        async fn what_cannot_be_enqueued_is_refused_with_a_code() {
            crate::on_driver::refusals::<$caller>().await;
        }

        #[tokio::test]
        async fn many_runs_are_enqueued_in_one_call_and_there_if_and_only_if_the_transaction_commits() {
            crate::on_driver::many::<$caller>().await;
        }

        #[tokio::test]
        async fn an_enqueue_is_one_round_trip() {
            crate::on_driver::round_trips::<$caller>().await;
        }
    };
}
pub(crate) use conformance;
