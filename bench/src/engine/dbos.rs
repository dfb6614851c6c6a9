//! The official Rust crate `dbos` 0.5.0.
//!
//! It has no transaction step and cannot enqueue in the caller's transaction.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use dbos::{
    Client, ClientConfig, Config, DBOS, Enqueue, QueueConflict, QueueOptions, WorkflowHandle, WorkflowRef,
};

use super::{CONNECTIONS, Engine, Producer, QUEUE, Setting, Transfer, Workflow, count_ended};

use crate::scenario::pinned::note_start;

type Registered = WorkflowRef<i64, i64, dbos::EngineOnly>;

/// An application with its worker.
#[derive(Clone)]
pub struct Dbos {
    dbos: DBOS,
    one_step: Arc<Registered>,
    ten_steps: Arc<Registered>,
    noop: Arc<Registered>,
}

async fn one_step(input: i64) -> dbos::Result<i64> {
    note_start(input);
    let one: i64 = dbos::step("step", || async { dbos::Result::Ok(1) }).await?;
    count_ended();
    Ok(input + one)
}

async fn noop(input: i64) -> dbos::Result<i64> {
    count_ended();
    Ok(input)
}

async fn ten_steps(input: i64) -> dbos::Result<i64> {
    let mut sum = input;
    for n in 0..10 {
        sum += dbos::step("step", move || async move { dbos::Result::Ok(n) }).await?;
    }
    Ok(sum)
}

impl Engine for Dbos {
    const NAME: &'static str = "dbos";
    const SUCCEEDED: &'static str = "select count(*) from dbos.workflow_status where status = 'SUCCESS'";
    type Producer = DbosProducer;

    async fn launch(url: &str, setting: Setting) -> Result<Dbos> {
        let mut config = Config { app_version: Some("1".into()), ..Config::new("ambo-bench", url) };
        let mut queue = QueueOptions::default();
        if setting == Setting::Fastest {
            config.max_connections = CONNECTIONS;
            config.outcome_poll_interval = Some(Duration::from_millis(10));
            queue.polling_interval = Duration::from_millis(10);
        }
        let dbos = DBOS::new(config);
        let one_step = Arc::new(dbos.register_workflow("one_step", one_step)?);
        let ten_steps = Arc::new(dbos.register_workflow("ten_steps", ten_steps)?);
        let noop = Arc::new(dbos.register_workflow("noop", noop)?);
        dbos.launch().await?;
        dbos.register_queue(QUEUE, queue, QueueConflict::AlwaysUpdate).await?;
        Ok(Dbos { dbos, one_step, ten_steps, noop })
    }

    /// Its supervisor finds a new queue within a second; the queue's poller starts at one poll a second and
    /// comes down to the interval that is set by a tenth each time, 10 s in all.
    async fn settle(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
    }

    async fn call(&self, workflow: Workflow, input: i64) -> Result<i64> {
        let registered = match workflow {
            Workflow::OneStep => &self.one_step,
            Workflow::TenSteps => &self.ten_steps,
            Workflow::Noop => &self.noop,
        };
        Ok(registered.run(input).await?)
    }

    async fn transfer(&self, _: Transfer) -> Result<()> {
        bail!("dbos 0.5.0 has no transaction step")
    }

    async fn wait(&self, id: &str) -> Result<i64> {
        let handle: WorkflowHandle<i64> = self.dbos.retrieve_workflow(id)?;
        Ok(handle.result().await?)
    }

    async fn stop(self) -> Result<()> {
        self.dbos.shutdown().await;
        Ok(())
    }
}

/// Its client for other processes.
#[derive(Clone)]
pub struct DbosProducer(Arc<Client>);

impl Producer for DbosProducer {
    async fn connect(url: &str) -> Result<DbosProducer> {
        let config = ClientConfig {
            app_name: Some("ambo-bench".into()),
            max_connections: CONNECTIONS,
            ..ClientConfig::new(url)
        };
        Ok(DbosProducer(Arc::new(Client::connect(config).await?)))
    }

    async fn enqueue(&self, workflow: Workflow, input: i64) -> Result<String> {
        let options = dbos::EnqueueOptions::on(Enqueue::new(QUEUE));
        let handle: WorkflowHandle<i64> = self.0.enqueue_with(workflow.name(), input, options).await?;
        Ok(handle.workflow_id().to_owned())
    }

    async fn close(self) {
        self.0.close().await;
    }
}
