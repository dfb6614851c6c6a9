//! The workflows of the tests with processes, and the ledger of what they did to the world outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ambo::{Ctx, Error, Result, Retry, TokioPostgres, WorkerBuilder, Workflow};
use futures_util::future::BoxFuture;

use crate::harness::{Database, connect};

/// Tells the parent process something.
pub(crate) fn say(line: &str) {
    println!("@ {line}");
}

/// What steps did, on a connection of its own: an effect stands whatever becomes of the run.
pub(crate) struct Ledger {
    sql: tokio_postgres::Client,
    url: String,
    pub(crate) database: Arc<TokioPostgres>,
}

impl Ledger {
    pub(crate) async fn open(url: &str) -> Arc<Ledger> {
        let target = url.to_owned();
        let database = TokioPostgres::new(move || {
            let target = target.clone();
            async move {
                let (client, connection) = tokio_postgres::connect(&target, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        });
        Arc::new(Ledger { sql: connect(url).await, url: url.to_owned(), database: Arc::new(database) })
    }

    /// The tables that the workflows here write to.
    pub(crate) async fn prepare(db: &Database) {
        let tables = "create table effect (n bigserial primary key, at timestamptz default clock_timestamp(), run text, step text,
                key text, pid int);
            create table counted (n bigserial primary key, run text);
            create table counter (value int); insert into counter values (0);
            create table orders (id int primary key);";
        db.sql.batch_execute(tables).await.expect(tables);
    }

    /// An effect on the world: a row that nothing takes back.
    pub(crate) async fn effect(&self, run: &str, step: &str, key: &str) -> Result<u32> {
        let pid = std::process::id() as i32;
        let insert = "insert into effect (run, step, key, pid) values ($1, $2, $3, $4)";
        self.sql.execute(insert, &[&run, &step, &key, &pid]).await.map_err(Error::other)?;
        Ok(1)
    }
}

/// All workflows, and what they need.
pub(crate) fn register(builder: WorkerBuilder, ledger: Arc<Ledger>) -> WorkerBuilder {
    builder
        .workflow::<Charge>()
        .workflow_fn("short", short)
        .workflow_fn("poison", poison)
        .workflow_fn("creep", creep)
        .workflow_fn("gated", gated)
        .workflow_fn("stuck", stuck)
        .workflow_fn("pauses", pauses)
        .workflow_fn("gated transaction", gated_transaction)
        .state(ledger)
}

/// One step with an effect.
async fn step(cx: &mut Ctx<'_>, name: &'static str) -> Result<u32> {
    let (ledger, run) = (cx.state::<Arc<Ledger>>()?, cx.run_id().to_string());
    let step = cx.step_with(name, |attempt| {
        let (ledger, run) = (&ledger, &run);
        async move { ledger.effect(run, name, &attempt.idempotency_key()).await }
    });
    Ok(step.await?)
}

/// Three steps and a transaction step between them.
pub(crate) struct Charge;

impl Workflow for Charge {
    type Input = i32;
    type Output = u32;
    type Error = Error;
    const NAME: &'static str = "charge";

    fn run<'run>(mut cx: Ctx<'run>, _: i32) -> BoxFuture<'run, Result<u32>> {
        Box::pin(async move {
            let mut sum = step(&mut cx, "one").await?;
            sum += step(&mut cx, "two").await?;
            sum += count(&mut cx).await?;
            sum += step(&mut cx, "three").await?;
            Ok(sum)
        })
    }
}

/// A transaction step that counts up, and notes for which run.
async fn count(cx: &mut Ctx<'_>) -> Result<u32> {
    let (ledger, run) = (cx.state::<Arc<Ledger>>()?, cx.run_id().to_string());
    let counted = cx.transaction("count").run(&ledger.database, async |tx| {
        tx.execute("update counter set value = value + 1", &[]).await.map_err(Error::other)?;
        tx.execute("insert into counted (run) values ($1)", &[&run]).await.map_err(Error::other)?;
        Ok::<u32, Error>(1)
    });
    Ok(counted.await?)
}

async fn short(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<u32> {
    step(&mut cx, "only").await
}

/// Takes its worker down, always.
async fn poison(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<()> {
    Ok(cx.step("abort", async || -> Result<()> { std::process::abort() }).await?)
}

/// Takes its worker down too, but does one step more each time before.
async fn creep(mut cx: Ctx<'_>, steps: u32) -> Result<u32> {
    let done = AtomicU32::new(0);
    for _ in 0..steps {
        cx.step("inch", async || {
            if done.fetch_add(1, Ordering::SeqCst) > 0 {
                std::process::abort();
            }
            Ok::<_, Error>(())
        })
        .await?;
    }
    Ok(steps)
}

/// The gate: an advisory lock that a test holds exclusively for as long as the workflows are to wait.
const GATE: i64 = 77;

/// Closes the gate, on the test's own connection.
pub(crate) async fn close_gate(db: &Database) {
    db.sql.execute("select pg_advisory_lock($1)", &[&GATE]).await.expect("close the gate");
}

pub(crate) async fn open_gate(db: &Database) {
    db.sql.execute("select pg_advisory_unlock($1)", &[&GATE]).await.expect("open the gate");
}

impl Ledger {
    /// Waits at the gate, on a connection of its own. A gate that the server closes by itself is open.
    async fn gate(&self) {
        let sql = connect(&self.url).await;
        let _ = sql.execute("select pg_advisory_lock_shared($1)", &[&GATE]).await;
    }
}

/// A step before the gate, one that waits at it, and one after it.
async fn gated(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<u32> {
    let (ledger, run) = (cx.state::<Arc<Ledger>>()?, cx.run_id());
    step(&mut cx, "before").await?;
    cx.step("gate", async || {
        say(&format!("gate {run}"));
        ledger.gate().await;
        Ok::<_, Error>(())
    })
    .await?;
    step(&mut cx, "after").await
}

/// Keeps its thread, for ever as far as a test can tell.
async fn stuck(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<()> {
    let step = cx.step("stuck", async || {
        say("stuck");
        std::thread::sleep(Duration::from_secs(3600));
        Ok::<_, Error>(())
    });
    Ok(step.await?)
}

/// Fails at once, and is tried again in an hour.
async fn pauses(mut cx: Ctx<'_>, _: serde_json::Value) -> Result<()> {
    let run = cx.run_id();
    let step = cx.step("fails", || async move {
        say(&format!("tried {run}"));
        Err::<(), _>(Error::message("not yet"))
    });
    Ok(step.retry(Retry::fixed(Duration::from_secs(3600))).await?)
}

/// Waits at the gate within a transaction; told to hide, where the keeper cannot find it by its name.
async fn gated_transaction(mut cx: Ctx<'_>, hide: bool) -> Result<u32> {
    let (ledger, run) = (cx.state::<Arc<Ledger>>()?, cx.run_id());
    let counted = cx.transaction("count").run(&ledger.database, async |tx| {
        if hide {
            let hide =
                "set local application_name = 'hidden'; set local idle_in_transaction_session_timeout = 0";
            tx.batch_execute(hide).await.map_err(Error::other)?;
        }
        tx.execute("insert into counted (run) values ($1)", &[&run.to_string()])
            .await
            .map_err(Error::other)?;
        say(&format!("gate {run}"));
        ledger.gate().await;
        Ok::<u32, Error>(1)
    });
    Ok(counted.await?)
}
