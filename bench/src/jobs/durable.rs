//! Engines for workflows as job queues: a workflow without steps. Neither has a bulk interface.

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;

use super::JobQueue;
use crate::engine::{Engine, Producer, Setting, Workflow};

/// An engine and its producer.
pub struct Durable<E: Engine> {
    engine: E,
    producer: E::Producer,
}

impl<E: Engine> Durable<E> {
    /// See [`Engine::settle`].
    pub async fn settle(&self, patience: std::time::Duration) {
        self.engine.settle(patience).await;
    }
}

impl<E: Engine> JobQueue for Durable<E> {
    const OPEN: &'static str =
        "select count(*) from dbos.workflow_status where status in ('ENQUEUED', 'PENDING')";
    const SUCCEEDED: Option<&'static str> = Some(E::SUCCEEDED);

    async fn launch(url: &str) -> Result<Self> {
        let engine = E::launch(url, Setting::Fastest).await?;
        Ok(Durable { engine, producer: E::Producer::connect(url).await? })
    }

    async fn enqueue(&self, count: i64) -> Result<()> {
        let ids =
            try_join_all((0..count).map(|number| self.producer.enqueue(Workflow::Noop, number))).await?;
        ensure!(ids.len() as i64 == count, "{} of {count} jobs were enqueued", ids.len());
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        self.producer.close().await;
        self.engine.stop().await
    }
}
