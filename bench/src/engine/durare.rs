//! The crate `durare` 0.5.0.
//!
//! It has transaction steps, and cannot enqueue in the caller's transaction.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use durare::{
    Client, DurableContext, DurableEngine, PgDataSource, PostgresProvider, StateProvider, WorkflowHandle,
    WorkflowOptions, WorkflowQueue,
};
use sqlx08::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx08::{PgConnection, PgPool, query, query_scalar};

use super::{CONNECTIONS, Engine, Producer, QUEUE, Setting, Transfer, Workflow, count_ended};
use crate::scenario::pinned::note_start;
use crate::yardstick::pgbench::TPC_B;

/// An engine with its worker.
#[derive(Clone)]
pub struct Durare {
    engine: Arc<DurableEngine>,
    pool: PgPool,
}

async fn one_step(ctx: DurableContext, input: i64) -> durare::Result<i64> {
    note_start(input);
    let one: i64 = ctx.step("step", || async { Ok(1) }).await?;
    count_ended();
    Ok(input + one)
}

async fn noop(_: DurableContext, input: i64) -> durare::Result<i64> {
    count_ended();
    Ok(input)
}

async fn ten_steps(ctx: DurableContext, input: i64) -> durare::Result<i64> {
    let mut sum = input;
    for n in 0..10 {
        sum += ctx.step("step", move || async move { Ok(n) }).await?;
    }
    Ok(sum)
}

async fn transfer(ctx: DurableContext, source: PgDataSource, transfer: Transfer) -> durare::Result<i32> {
    let body = async move |tx: &mut PgConnection| tpc_b(tx, transfer).await;
    ctx.transaction_on(&source, "transfer", body).await
}

async fn tpc_b(tx: &mut PgConnection, transfer: Transfer) -> durare::Result<i32> {
    let Transfer { aid, bid, tid, delta } = transfer;
    let [accounts, balance, tellers, branches, history] = TPC_B;
    query(accounts).bind(delta).bind(aid).execute(&mut *tx).await?;
    let balance: i32 = query_scalar(balance).bind(aid).fetch_one(&mut *tx).await?;
    query(tellers).bind(delta).bind(tid).execute(&mut *tx).await?;
    query(branches).bind(delta).bind(bid).execute(&mut *tx).await?;
    query(history).bind(tid).bind(bid).bind(aid).bind(delta).execute(&mut *tx).await?;
    Ok(balance)
}

/// Its provider over a pool of our choice; its own `connect` opens 8 connections.
async fn provider(url: &str, setting: Setting) -> Result<PostgresProvider> {
    if setting == Setting::Default {
        return Ok(PostgresProvider::connect(url).await?);
    }
    let options = PgConnectOptions::from_str(url)?.options([("search_path", "dbos")]);
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .test_before_acquire(false)
        .connect_with(options)
        .await?;
    Ok(PostgresProvider::from_pool_with_schema(pool, "dbos")?)
}

impl Engine for Durare {
    const NAME: &'static str = "durare";
    const SUCCEEDED: &'static str = "select count(*) from dbos.workflow_status where status = 'SUCCESS'";
    type Producer = DurareProducer;

    async fn launch(url: &str, setting: Setting) -> Result<Durare> {
        let provider = provider(url, setting).await?;
        let (pool, source) = (provider.pool().clone(), provider.system_datasource());
        let mut queue = WorkflowQueue::new(QUEUE);
        if setting == Setting::Fastest {
            queue = queue.max_tasks_per_iteration(1000).base_polling_interval(Duration::from_millis(10));
        }
        let mut builder = DurableEngine::builder(Arc::new(provider));
        builder
            .app_version("1")
            .executor_id("bench")
            .register("one_step", one_step)
            .register("ten_steps", ten_steps)
            .register("noop", noop)
            .register("transfer", move |ctx, input| transfer(ctx, source.clone(), input))
            .register_queue(queue);
        let engine = builder.build().await?;
        engine.launch().await?;
        Ok(Durare { engine: Arc::new(engine), pool })
    }

    async fn call(&self, workflow: Workflow, input: i64) -> Result<i64> {
        let options = WorkflowOptions::default();
        Ok(self.engine.start::<_, i64>(workflow.name(), input, options).await?.await?)
    }

    async fn transfer(&self, transfer: Transfer) -> Result<()> {
        let options = WorkflowOptions::default();
        let _balance: i32 = self.engine.start("transfer", transfer, options).await?.await?;
        Ok(())
    }

    async fn wait(&self, id: &str) -> Result<i64> {
        Ok(self.engine.retrieve_workflow(id).await?.await?)
    }

    async fn stop(self) -> Result<()> {
        self.engine.shutdown(Duration::from_secs(5)).await?;
        self.pool.close().await;
        Ok(())
    }
}

/// Its client for other processes.
#[derive(Clone)]
pub struct DurareProducer {
    client: Arc<Client>,
    pool: PgPool,
}

impl Producer for DurareProducer {
    async fn connect(url: &str) -> Result<DurareProducer> {
        let provider = provider(url, Setting::Fastest).await?;
        let pool = provider.pool().clone();
        let provider: Arc<dyn StateProvider> = Arc::new(provider);
        let client = Client::new(provider).with_app_version("1");
        Ok(DurareProducer { client: Arc::new(client), pool })
    }

    async fn enqueue(&self, workflow: Workflow, input: i64) -> Result<String> {
        let (name, options) = (workflow.name(), WorkflowOptions::default());
        let handle: WorkflowHandle<i64> = self.client.enqueue(QUEUE, name, input, options).await?;
        Ok(handle.id().to_owned())
    }

    async fn close(self) {
        self.pool.close().await;
    }
}
