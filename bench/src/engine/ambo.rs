//! Ambo, with the settings that its users have: it needs no tuning.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ambo::{Client, Ctx, Enqueue, TokioPostgres, Untyped, Worker};
use anyhow::{Context, Result, bail};
use tokio::sync::Mutex;

use super::{CONNECTIONS, Engine, Producer, QUEUE, Setting, Transfer, Workflow, count_ended};
use crate::database::connect;
use crate::scenario::pinned::note_start;
use crate::yardstick::pgbench::TPC_B;

/// Enqueues in the user's transaction, as SQL does it; takes the input.
pub const ENQUEUE: &str =
    "select ambo.enqueue_workflow('one_step', to_json($1::bigint), queue => 'bench')::text";

/// What a workflow's body is.
pub type Body<'run, O> = Pin<Box<dyn Future<Output = ambo::Result<O>> + Send + 'run>>;

/// One no-op step.
pub struct OneStep;

impl ambo::Workflow for OneStep {
    type Input = i64;
    type Output = i64;
    type Error = ambo::Error;
    const NAME: &'static str = "one_step";

    fn run<'run>(mut cx: Ctx<'run>, input: i64) -> Body<'run, i64> {
        Box::pin(async move {
            note_start(input);
            let one: i64 = cx.step("step", || async { Ok::<_, ambo::Error>(1) }).await?;
            count_ended();
            Ok(input + one)
        })
    }
}

struct TenSteps;

impl ambo::Workflow for TenSteps {
    type Input = i64;
    type Output = i64;
    type Error = ambo::Error;
    const NAME: &'static str = "ten_steps";

    fn run<'run>(mut cx: Ctx<'run>, input: i64) -> Body<'run, i64> {
        Box::pin(async move {
            let mut sum = input;
            for n in 0..10 {
                sum += cx.step("step", move || async move { Ok::<_, ambo::Error>(n) }).await?;
            }
            Ok(sum)
        })
    }
}

struct Pay;

impl ambo::Workflow for Pay {
    type Input = Transfer;
    type Output = i32;
    type Error = ambo::Error;
    const NAME: &'static str = "transfer";

    fn run<'run>(mut cx: Ctx<'run>, transfer: Transfer) -> Body<'run, i32> {
        Box::pin(async move {
            let database = cx.state::<Arc<TokioPostgres>>()?;
            let balance = cx
                .transaction("transfer")
                .run(&*database, |tx| async move {
                    let Transfer { aid, bid, tid, delta } = transfer;
                    let [accounts, balance, tellers, branches, history] = TPC_B;
                    tx.execute(&tx.prepare_cached(accounts).await?, &[&delta, &aid]).await?;
                    let balance: i32 =
                        tx.query_one(&tx.prepare_cached(balance).await?, &[&aid]).await?.try_get(0)?;
                    tx.execute(&tx.prepare_cached(tellers).await?, &[&delta, &tid]).await?;
                    tx.execute(&tx.prepare_cached(branches).await?, &[&delta, &bid]).await?;
                    let history = tx.prepare_cached(history).await?;
                    tx.execute(&history, &[&tid, &bid, &aid, &delta]).await?;
                    Ok::<_, ambo::Error>(balance)
                })
                .await?;
            Ok(balance)
        })
    }
}

/// Installs the schema and the queue.
pub async fn install(url: &str) -> Result<()> {
    let client = Client::connect_unchecked(url, "ambo").await?;
    client.migrate().await?;
    client.create_queue(QUEUE).await?;
    Ok(())
}

/// A worker.
#[derive(Clone)]
pub struct Ambo {
    worker: Arc<Worker>,
}

impl Engine for Ambo {
    const NAME: &'static str = "ambo";
    const SUCCEEDED: &'static str = "select count(*) from ambo.outcome where status = 'succeeded'";
    type Producer = AmboProducer;

    async fn launch(url: &str, _: Setting) -> Result<Ambo> {
        install(url).await?;
        let client = Client::connect(url).await?;
        // The user's own connections, for transaction steps.
        let at = url.to_owned();
        let database = TokioPostgres::new(move || {
            let at = at.clone();
            async move {
                let (client, connection) = tokio_postgres::connect(&at, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            }
        });
        let database = Arc::new(database.max_connections(CONNECTIONS as usize));
        let worker = Worker::builder(&client)
            .workflow::<OneStep>()
            .workflow::<TenSteps>()
            .workflow::<Pay>()
            .state(database)
            .queue(QUEUE)
            .start()
            .await?;
        Ok(Ambo { worker: Arc::new(worker) })
    }

    async fn call(&self, workflow: Workflow, input: i64) -> Result<i64> {
        Ok(match workflow {
            Workflow::OneStep => Enqueue::<OneStep>::new(input).start(&self.worker).await?.result().await?,
            Workflow::TenSteps => Enqueue::<TenSteps>::new(input).start(&self.worker).await?.result().await?,
            Workflow::Noop => bail!("jobs are enqueued"),
        })
    }

    async fn transfer(&self, transfer: Transfer) -> Result<()> {
        Enqueue::<Pay>::new(transfer).start(&self.worker).await?.result().await?;
        Ok(())
    }

    async fn wait(&self, id: &str) -> Result<i64> {
        let handle = self.worker.client().handle::<OneStep>(id.parse()?);
        Ok(handle.result().await?)
    }

    async fn stop(self) -> Result<()> {
        let Some(worker) = Arc::into_inner(self.worker) else { bail!("the worker is still in use") };
        worker.drain(Duration::from_secs(5)).await;
        Ok(())
    }
}

/// A client, and a connection as a user has one.
#[derive(Clone)]
pub struct AmboProducer {
    client: Client,
    connection: Arc<Mutex<tokio_postgres::Client>>,
}

impl Producer for AmboProducer {
    async fn connect(url: &str) -> Result<AmboProducer> {
        let client = Client::connect(url).await?;
        Ok(AmboProducer { client, connection: Arc::new(Mutex::new(connect(url).await?)) })
    }

    async fn enqueue(&self, workflow: Workflow, input: i64) -> Result<String> {
        let enqueued =
            Enqueue::<Untyped>::named(workflow.name(), &input).queue(QUEUE).on(&self.client).await?;
        Ok(enqueued.run.to_string())
    }

    async fn enqueue_in_transaction(&self, input: i64) -> Result<String> {
        let mut connection = self.connection.lock().await;
        let transaction = connection.transaction().await?;
        let id = transaction.query_one(ENQUEUE, &[&input]).await?.try_get(0)?;
        transaction.commit().await.context("commit")?;
        Ok(id)
    }

    async fn close(self) {}
}
