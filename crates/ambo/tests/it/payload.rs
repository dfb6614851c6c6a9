//! Payloads that are encrypted, stored apart, or both: the same to Rust, an envelope to SQL, gone with the retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::{
    Client, Code, Ctx, Enqueue, Error, Failure, FanIn, Keyring, QueueSettings, Result, RunId, SendSignal,
    Untyped, Vault, Worker, enqueue_all,
};
use futures_util::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::harness::{Database, database};

/// What must not be found in the clear.
const SECRET: &str = "marker-of-a-secret-4711";

fn large(n: usize) -> String {
    format!("{SECRET} {}", "x".repeat(n))
}

fn keys() -> Keyring {
    Keyring::new("old", [3; 32])
}

async fn objects(store: &dyn ObjectStore) -> Vec<String> {
    let all: Vec<_> = store.list(None).try_collect().await.unwrap();
    all.into_iter().map(|object| object.location.to_string()).collect()
}

/// Every kind of payload, large, and every way to read one.
async fn everything(mut cx: Ctx<'_>, input: String) -> Result<String> {
    let step = cx.step("step", || async { Ok::<_, Error>(large(9_000)) }).await?;
    cx.publish("event", &step)?;
    let child = cx.child::<small>(input.clone()).start()?;
    let from_child: String = cx.result_of(child).await?;
    let signal: String = cx.signal("signal").await?;
    let of = cx.run_id();
    let event: String = cx.event(of, "event").await?;
    let refused =
        cx.step("refused", || async { Err::<(), _>(Error::application(&large(9_000), large(9_000))) });
    let Err(Failure::Application(error)) = refused.await else { panic!("it was not refused") };
    assert_eq!(error.details::<String>(), Some(large(9_000)));
    if cx.history_len() < 1000 && input.len() < 20_000 {
        // Parked in between, so that all of it is replayed from the records.
        cx.sleep(Duration::from_millis(1500)).await?;
    }
    assert_eq!([&from_child, &signal, &event], [&input, &step, &step]);
    Ok(format!("{input}{signal}"))
}

#[ambo::workflow]
async fn small(_cx: Ctx, input: String) -> Result<String> {
    Ok(input)
}

async fn run_everything(client: &Client) -> RunId {
    let worker = Worker::builder(client)
        .workflow_fn("everything", everything)
        .workflow::<small>()
        .park_after(Duration::from_millis(50))
        .start()
        .await
        .unwrap();
    let run = Enqueue::named("everything", &large(9_000)).on(client).await.unwrap().run;
    SendSignal::new(run, "signal", &large(9_000)).on(client).await.unwrap();
    let result: Result<String, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    assert_eq!(result.unwrap(), large(9_000).repeat(2));
    let published: Vec<(u32, String)> = client.events(run, "event", 0).await.unwrap();
    assert_eq!(published, [(1, large(9_000))]);
    let shown = client.show_run(run).await.unwrap();
    assert!(shown.input.unwrap().get().contains(SECRET) && shown.output.unwrap().get().contains(SECRET));
    assert!(
        shown
            .steps
            .iter()
            .any(|step| step.name == "refused" && step.error.as_ref().unwrap().get().contains(SECRET))
    );
    worker.drain(Duration::from_secs(5)).await;
    run
}

/// All that the database holds, as text.
async fn dump(db: &Database) -> String {
    let mut all = String::new();
    for table in ["run", "checkpoint", "outcome", "event", "signal", "schedule", "run_key"] {
        let rows = db.sql.query(&format!("select t::text from ambo.{table} t"), &[]).await.unwrap();
        all.extend(rows.iter().map(|row| row.get::<_, String>(0) + "\n"));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_lie_in_the_object_store_and_are_the_same_to_rust() {
    let db = database().await;
    let store = Arc::new(InMemory::new());
    let client = db.client.clone().with_vault(Vault::new().objects(store.clone(), 4096));
    run_everything(&client).await;
    let all = dump(&db).await;
    assert!(!all.contains(SECRET), "a large payload is in the database");
    let paths = db.sql.query(
        "select input #>> '{ambo:object,path}', (input #>> '{ambo:object,bytes}')::int from ambo.run",
        &[],
    );
    for row in paths.await.unwrap() {
        let (path, bytes): (String, i32) = (row.get(0), row.get(1));
        assert_eq!(bytes as usize, large(9_000).len() + 2);
        assert!(store.get(&Path::from(path)).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_encrypted_in_the_database_and_in_the_object_store() {
    let db = database().await;
    run_everything(&db.client.clone().with_vault(Vault::new().keyring(keys()))).await;
    assert!(!dump(&db).await.contains(SECRET), "a payload is in the clear");
    assert_eq!(
        db.number("select count(*) from ambo.run where input #>> '{ambo:sealed,key}' = 'old'").await,
        2
    );

    let store = Arc::new(InMemory::new());
    run_everything(&db.client.clone().with_vault(Vault::new().keyring(keys()).objects(store.clone(), 4096)))
        .await;
    assert!(!dump(&db).await.contains(SECRET), "a payload is in the clear");
    let all = objects(&*store).await;
    assert!(all.len() >= 7, "{all:?}");
    for path in all {
        let content = store.get(&Path::from(path)).await.unwrap().bytes().await.unwrap();
        assert!(
            !content.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()),
            "an object is in the clear"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_before_a_rotation_are_read_with_the_old_key_and_new_ones_use_the_new_key() {
    let db = database().await;
    let before = db.client.clone().with_vault(Vault::new().keyring(keys()));
    let old = Enqueue::named("small", &large(10)).key("k").on(&before).await.unwrap().run;
    let both = Keyring::new("new", [9; 32]).older("old", [3; 32]);
    let after = db.client.clone().with_vault(Vault::new().keyring(both));
    let _worker = Worker::builder(&after).workflow::<small>().start().await.unwrap();
    assert_eq!(after.handle::<small>(old).result().await.unwrap(), large(10));

    // The same key and input are the same run, whichever key it was encrypted with.
    assert_eq!(Enqueue::named("small", &large(10)).key("k").on(&after).await.unwrap().run, old);
    let other = Enqueue::named("small", &large(11)).key("k").on(&after).await.unwrap_err();
    assert_eq!(other.code(), Code::KeyConflict);

    let new = Enqueue::named("small", &large(10)).on(&after).await.unwrap().run;
    assert_eq!(after.handle::<small>(new).result().await.unwrap(), large(10));
    let key = "select input #>> '{ambo:sealed,key}' from ambo.run where id = $1";
    let used: String = db.sql.query_one(key, &[&new.as_uuid()]).await.unwrap().get(0);
    assert_eq!(used, "new");

    // Without the old key what it encrypted cannot be read; what the new one did can.
    let only_new = db.client.clone().with_vault(Vault::new().keyring(Keyring::new("new", [9; 32])));
    assert_eq!(only_new.handle::<small>(new).result().await.unwrap(), large(10));
    let shown = only_new.show_run(old).await.unwrap().input.unwrap();
    assert!(shown.get().starts_with("{\"ambo:sealed\":{\"key\":\"old\""), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_are_sealed_whichever_way_they_come_and_whatever_limits_their_queue() {
    let db = database().await;
    let vault = Vault::new().keyring(keys());
    let sealing = db.client.clone().with_vault(vault.clone());
    sealing.set_queue("narrow", &QueueSettings::default().concurrency(1).group_concurrency(1)).await.unwrap();
    let run = |n| Enqueue::<small>::new(large(n)).queue("narrow").group(format!("tenant {n}"));
    let mut runs = vec![run(0).on(&sealing).await.unwrap()];
    runs.extend(enqueue_all(&sealing, (1..4).map(run)).await.unwrap());
    // A vault of the run's own, on a client and in a fan-in that have none.
    runs.extend(enqueue_all(&db.client, (4..6).map(|n| run(n).vault(&vault))).await.unwrap());
    let family = FanIn::of([run(6).vault(&vault)]).then(run(7).vault(&vault)).on(&db.client).await.unwrap();
    runs.extend(family.members);
    runs.push(family.then);
    assert!(!dump(&db).await.contains(SECRET), "a payload is in the clear");

    let _worker = Worker::builder(&sealing).queue("narrow").workflow::<small>().start().await.unwrap();
    for (n, run) in (0..).zip(runs) {
        assert_eq!(sealing.handle::<small>(run.run).result().await.unwrap(), large(n));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_payloads_under_one_key_are_equal_whatever_their_nonces() {
    let db = database().await;
    let store = Arc::new(InMemory::new());
    let vaults = [
        Vault::new().keyring(keys()),
        Vault::new().objects(store.clone(), 128),
        Vault::new().keyring(keys()).objects(store, 128),
    ];
    for (n, vault) in vaults.into_iter().enumerate() {
        let client = db.client.clone().with_vault(vault);
        let input = |text| serde_json::json!({"b": large(200), "a": text});
        let key = format!("key {n}");
        let run = Enqueue::named("nobody", &input("one")).key(&key).on(&client).await.unwrap();
        let again = Enqueue::named("nobody", &input("one")).key(&key).on(&client).await.unwrap();
        assert!(again.run == run.run && !again.is_new);
        let other = Enqueue::named("nobody", &input("two")).key(&key).on(&client).await.unwrap_err();
        assert_eq!(other.code(), Code::KeyConflict);
        let signal = |text| SendSignal::new(run.run, "topic", &input(text)).key("signal").on(&client);
        assert!(signal("one").await.unwrap());
        assert!(!signal("one").await.unwrap());
        assert_eq!(signal("two").await.unwrap_err().code(), Code::KeyConflict);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_the_key_or_the_store_is_told_so() {
    let db = database().await;
    let store = Arc::new(InMemory::new());
    let run = |vault: Vault| {
        let client = db.client.clone().with_vault(vault);
        async move { Enqueue::named("small", &large(300)).on(&client).await.unwrap().run }
    };
    let sealed = run(Vault::new().keyring(keys())).await;
    let apart = run(Vault::new().objects(store.clone(), 128)).await;
    let lost = run(Vault::new().objects(store.clone(), 128)).await;
    let path = "select input #>> '{ambo:object,path}' from ambo.run where id = $1";
    let path: String = db.sql.query_one(path, &[&lost.as_uuid()]).await.unwrap().get(0);
    store.delete(&Path::from(path)).await.unwrap();

    let end = async |vault: Vault, run: RunId| {
        let client = db.client.clone().with_vault(vault);
        let worker = Worker::builder(&client).workflow::<small>().start().await.unwrap();
        let result = client.handle::<small>(run).result().await;
        worker.drain(Duration::from_secs(5)).await;
        let error = Error::from(result.err()?);
        assert!(!format!("{error} {error:?}").contains(SECRET));
        Some(error.code())
    };
    assert_eq!(end(Vault::new(), sealed).await, Some(Code::NoVault));
    assert_eq!(end(Vault::new(), apart).await, Some(Code::NoVault));
    let wrong = Vault::new().keyring(Keyring::new("old", [4; 32]));
    for run in [sealed, apart] {
        db.client.retry(run).await.unwrap();
    }
    assert_eq!(end(wrong, sealed).await, Some(Code::Undecipherable));
    // They waited among the dead for a program that can read them.
    for run in [sealed, apart, lost] {
        db.client.retry(run).await.ok();
    }
    let right = Vault::new().keyring(keys()).objects(store, 128);
    assert_eq!(end(right.clone(), sealed).await, None);
    assert_eq!(end(right.clone(), apart).await, None);
    assert_eq!(end(right, lost).await, Some(Code::ObjectMissing));
}

#[cfg(feature = "sqlx")]
async fn goes_on(mut cx: Ctx<'_>, rounds: String) -> Result<String> {
    let pool = cx.state::<sqlx::PgPool>()?;
    let body = async |mut tx: ambo::Tx<_>| {
        let n: i32 = sqlx::query_scalar("select 1").fetch_one(&mut *tx).await?;
        Ok::<_, Error>(large(n as usize * 1000))
    };
    let written = cx.transaction("write").run(&*pool, body).await?;
    let read = cx.signal::<String>("go").await?;
    assert_eq!(read, written);
    if rounds.len() < 2000 { cx.continue_as_new(&(rounds + &written)).await } else { Ok(rounds) }
}

#[cfg(feature = "sqlx")]
async fn completes(mut cx: Ctx<'_>, _: ()) -> Result<String> {
    let pool = cx.state::<sqlx::PgPool>()?;
    let done = cx.complete_in(&*pool, async |_tx| Ok::<_, Error>(large(1000)));
    Ok(done.await?)
}

#[cfg(feature = "sqlx")]
#[tokio::test(flavor = "multi_thread")]
async fn transaction_steps_new_histories_forks_and_schedules_have_their_payloads_sealed() {
    let db = database().await;
    let vault = Vault::new().keyring(keys()).objects(Arc::new(InMemory::new()), 512);
    let client = db.client.clone().with_vault(vault.clone());
    let pool = crate::stage::pool(&db.url).await;
    let builder = || {
        let builder = Worker::builder(&client)
            .state(pool.clone())
            .workflow_fn("goes on", goes_on)
            .workflow_fn("completes", completes);
        builder.workflow::<small>().park_after(Duration::from_millis(20))
    };
    let worker = builder().start().await.unwrap();
    // In a transaction of the program's own, which knows no client.
    let mut tx = pool.begin().await.unwrap();
    let run = Enqueue::named("goes on", &String::new()).vault(&vault).on(&mut *tx).await.unwrap().run;
    tx.commit().await.unwrap();
    for _ in 0..3 {
        SendSignal::new(run, "go", &large(1000)).on(&client).await.unwrap();
    }
    let result: Result<String, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    assert_eq!(result.unwrap(), large(1000).repeat(2));
    let completed = Enqueue::named("completes", &()).on(&client).await.unwrap().run;
    let result: Result<String, Failure<Error>> = client.handle::<Untyped>(completed).result_as().await;
    assert_eq!(result.unwrap(), large(1000));
    // Also within the records of Ambo's own.
    let shown = client.show_run(run).await.unwrap();
    let record = |name: &str| {
        let step = shown.steps.iter().find(|step| step.name == name).expect(name);
        serde_json::from_str::<serde_json::Value>(step.output.as_deref().unwrap().get()).unwrap()
    };
    assert_eq!(record("ambo:signal go")["payload"], large(1000));
    assert_eq!(record("ambo:continued")["input"], large(1000).repeat(2));
    let fork = client.fork(run, None).await.unwrap();
    let again: Result<String, Failure<Error>> = client.handle::<Untyped>(fork).result_as().await;
    assert_eq!(again.unwrap(), large(1000).repeat(2));

    ambo::Schedule::every("often", Duration::from_secs(3600), Enqueue::<small>::new(large(600)))
        .set(&client)
        .await
        .unwrap();
    let ticked = client.trigger_schedule("often").await.unwrap();
    assert_eq!(client.handle::<small>(ticked).result().await.unwrap(), large(600));
    let object = "select count(*) from ambo.schedule where input::text like '%ambo:object%'";
    assert_eq!(db.number(object).await, 0, "a schedule outlives every retention");
    assert!(!dump(&db).await.contains(SECRET));

    worker.drain(Duration::from_secs(5)).await;
    let filter = ambo::admin::Filter { workflow: Some("goes on".into()), ..Default::default() };
    let histories = async || client.histories(&filter).await.unwrap();
    assert_eq!(histories().await.len(), 2);
    assert_eq!(builder().replay_check(histories().await).await.unwrap(), []);
    let keyless = Worker::builder(&db.client).state(pool.clone()).workflow_fn("goes on", goes_on);
    for unread in keyless.replay_check(histories().await).await.unwrap() {
        assert!(unread.is_unread && unread.text.starts_with("AMBO060"), "{unread:?}");
    }
}

/// A store that can be told to take nothing.
#[derive(Debug)]
struct Moody {
    inner: InMemory,
    refusals: AtomicU32,
}

mod moody;

#[tokio::test(flavor = "multi_thread")]
async fn no_fact_refers_to_an_object_before_it_is_there() {
    let db = database().await;
    let store = Arc::new(Moody { inner: InMemory::new(), refusals: AtomicU32::new(0) });
    let client = db.client.clone().with_vault(Vault::new().objects(store.clone(), 128));
    async fn two(mut cx: Ctx<'_>, _: ()) -> Result<usize> {
        let store = cx.state::<Arc<Moody>>()?;
        let one = cx.step("large", || {
            store.refusals.store(5, Ordering::SeqCst);
            async { Ok::<_, Error>(large(1_000)) }
        });
        let one = one.await?;
        let left =
            cx.step("after", || async { Ok::<_, Error>(store.refusals.load(Ordering::SeqCst)) }).await?;
        assert_eq!(left, 0, "an effect came before the record of the one before it");
        Ok(one.len())
    }
    let _worker =
        Worker::builder(&client).state(store.clone()).workflow_fn("two", two).start().await.unwrap();
    let run = Enqueue::named("two", &()).on(&client).await.unwrap().run;
    let result: Result<usize, Failure<Error>> = client.handle::<Untyped>(run).result_as().await;
    assert_eq!(result.unwrap(), large(1_000).len());
    assert_eq!(objects(&store.inner).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_leave_with_the_retention_but_not_those_of_runs_carried_over_or_forked() {
    let db = database().await;
    db.sql.batch_execute(crate::partition::OLD_PARTITION).await.unwrap();
    let folder = std::env::temp_dir().join(format!("ambo-objects-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let local = Arc::new(object_store::local::LocalFileSystem::new_with_prefix(&folder).unwrap());
    // Written long ago: by the running one, the one that had ended, and nobody.
    let name = |digit: char| format!("2020-01-02/{}", digit.to_string().repeat(32));
    for digit in ['a', 'b', 'c', 'd'] {
        let path = folder.join(name(digit));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("\"{digit}\"")).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_577_900_000)).unwrap();
    }
    // In a folder of long ago by a wrong clock, and just written.
    std::fs::write(folder.join(name('e')), "\"e\"").unwrap();
    let refer = |digit| format!("{{\"ambo:object\":{{\"path\":\"{}\",\"bytes\":3}}}}", name(digit));
    for (state, digit) in [("not exists", 'a'), ("exists", 'b')] {
        let set = format!(
            "update ambo.checkpoint c set output = $1::text::json where {state} (select from ambo.outcome o where o.run_id = c.run_id)"
        );
        assert_eq!(db.sql.execute(&set, &[&refer(digit)]).await.unwrap(), 1);
    }
    let forked = Enqueue::named("nobody", &1).on(&db.client).await.unwrap().run;
    db.sql
        .execute(
            "update ambo.run set input = $2::text::json where id = $1",
            &[&forked.as_uuid(), &refer('d')],
        )
        .await
        .unwrap();
    db.client.fork(forked, None).await.unwrap();
    db.until("select ambo.drop_partition()").await;

    let client = db.client.clone().with_vault(Vault::new().objects(local.clone(), 4096));
    let _worker = Worker::builder(&client).queue("none").workflow::<small>().start().await.unwrap();
    for _ in 0..1000 {
        if objects(&*local).await.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut left = objects(&*local).await;
    left.sort();
    assert_eq!(left, [name('a'), name('d'), name('e')]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_an_envelope_is_refused_as_a_payload() {
    let db = database().await;
    let forged = serde_json::json!({"ambo:object": {"path": "2020-01-02/../../etc/passwd", "bytes": 1}});
    let refused = Enqueue::named("small", &forged).on(&db.client).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotEncodable);
    // From SQL it comes through, and leads nowhere.
    let sql = "select ambo.enqueue_workflow('small', $1::text::json)";
    let run: uuid::Uuid = db.sql.query_one(sql, &[&forged.to_string()]).await.unwrap().get(0);
    let client = db.client.clone().with_vault(Vault::new().objects(Arc::new(InMemory::new()), 128));
    let _worker = Worker::builder(&client).workflow::<small>().start().await.unwrap();
    let failure = client.handle::<small>(run.into()).result().await.unwrap_err();
    assert_eq!(Error::from(failure).code(), Code::ObjectMissing);
}
