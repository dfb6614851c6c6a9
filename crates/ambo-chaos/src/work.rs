//! The work that is done meanwhile, in worker processes: runs that move money in transaction steps, have effects outside,
//! sleep, signal each other and fan out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambo::{Client, Ctx, Error, Result, Retry, RunId, SendSignal, TokioPostgres, Worker};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::witness;

/// What a run is asked; `order.pgbench` writes the same.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) aid: i32,
    pub(crate) bid: i32,
    pub(crate) tid: i32,
    pub(crate) delta: i32,
    /// How many children it starts, each moving money too.
    pub(crate) legs: u32,
    /// How long it sleeps, in units of 200 ms.
    pub(crate) nap: u64,
    /// Whether it starts another run and exchanges signals with it.
    pub(crate) pair: bool,
}

/// How many attempts a run is given: the kills of a round are not its fault.
pub(crate) const ATTEMPTS: u32 = 1000;

/// What the workflows work with.
#[derive(Clone)]
struct Desk {
    pool: Arc<TokioPostgres>,
    witness: SocketAddr,
    process: String,
    /// Whether this is the newer version of the program.
    is_newer: bool,
}

/// Shows the witness that this attempt is at work, in each replay too: from now on no earlier one may record anything.
async fn arrive(cx: &Ctx<'_>) -> Result<()> {
    witness::arrive(cx.state::<Desk>()?.witness, format!("{} {}\n", cx.run_id(), cx.attempt())).await;
    Ok(())
}

/// An effect on the outside, in a step.
async fn effect(cx: &mut Ctx<'_>, name: &'static str) -> Result<()> {
    let desk = cx.state::<Desk>()?;
    let (desk, run, attempt) = (&desk, cx.run_id(), cx.attempt());
    cx.step_with(name, |step| async move {
        let (key, number) = (step.idempotency_key(), step.number());
        let position = key.rsplit('/').next().unwrap_or_default();
        let line = format!("{run} {attempt} {position} {number} {}\n", desk.process);
        witness::tell(desk.witness, line).await
    })
    .retry(Retry::fixed(Duration::from_millis(20)).max_attempts(5))
    .await?;
    Ok(())
}

/// pgbench's transaction, in a transaction step.
async fn post(cx: &mut Ctx<'_>, order: Order) -> Result<()> {
    let (pool, run) = (cx.state::<Desk>()?.pool.clone(), cx.run_id());
    let Order { aid, bid, tid, delta, .. } = order;
    // One text: a pooler need not carry a prepared statement anywhere.
    let sql = format!(
        "update pgbench_accounts set abalance = abalance + ({delta}) where aid = {aid};
         update pgbench_tellers set tbalance = tbalance + ({delta}) where tid = {tid};
         update pgbench_branches set bbalance = bbalance + ({delta}) where bid = {bid};
         insert into pgbench_history (tid, bid, aid, delta, mtime) values ({tid}, {bid}, {aid}, {delta}, now());
         insert into posting (run, step, delta) values ('{run}', 'post', {delta})"
    );
    cx.transaction("post").run(&pool, async |tx| tx.batch_execute(&sql).await.map_err(Error::from)).await?;
    Ok(())
}

/// Sends a signal in a transaction step: once.
async fn send(cx: &mut Ctx<'_>, to: RunId, topic: &'static str) -> Result<()> {
    let (pool, run) = (cx.state::<Desk>()?.pool.clone(), cx.run_id());
    let note = format!("insert into posting (run, step, delta) values ('{run}', '{topic}', 0)");
    cx.transaction(topic)
        .run(&pool, async |tx| {
            tx.batch_execute(&note).await?;
            SendSignal::new(to, topic, &run).on(&*tx).await?;
            Ok::<_, Error>(())
        })
        .await?;
    Ok(())
}

/// What was enqueued. Returns what its legs have moved.
#[ambo::workflow]
pub(crate) async fn settle(cx: Ctx, order: Order) -> Result<i64> {
    let is_newer = cx.state::<Desk>()?.is_newer;
    arrive(&cx).await?;
    effect(&mut cx, "notify").await?;
    post(&mut cx, order).await?;
    if order.nap > 0 {
        cx.sleep(Duration::from_millis(order.nap * 200)).await?;
    }
    let mut legs = Vec::new();
    for leg in 0..order.legs {
        let part = Order { delta: leg as i32 + 1, aid: order.aid + leg as i32 * 7, ..order };
        legs.push(cx.child::<leg>(part).with(|run| run.attempts(ATTEMPTS)).start()?);
    }
    if order.pair {
        let this = cx.run_id();
        let partner = cx.child::<partner>(this).with(|run| run.attempts(ATTEMPTS)).start()?;
        let from: RunId = cx.signal("hello").await?;
        if from != partner.run_id() {
            return Err(Error::message("the hello came from somebody else"));
        }
        send(&mut cx, from, "go").await?;
        cx.result_of(partner).await?;
    }
    // A change of the code under runs that are under way. The older version must not meet it: its runs are pinned.
    if is_newer && cx.patched("a second look")? {
        effect(&mut cx, "look again").await?;
    }
    let mut moved = 0;
    for leg in legs {
        moved += cx.result_of(leg).await?;
    }
    effect(&mut cx, "receipt").await?;
    Ok(moved)
}

#[ambo::workflow]
async fn leg(cx: Ctx, order: Order) -> Result<i64> {
    arrive(&cx).await?;
    post(&mut cx, Order { aid: order.aid.rem_euclid(100_000) + 1, ..order }).await?;
    effect(&mut cx, "leg").await?;
    Ok(i64::from(order.delta))
}

#[ambo::workflow]
async fn partner(cx: Ctx, parent: RunId) -> Result<()> {
    arrive(&cx).await?;
    send(&mut cx, parent, "hello").await?;
    let _: RunId = cx.signal("go").await?;
    effect(&mut cx, "went").await
}

/// Where a worker process works, and as what.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Post {
    pub(crate) url: String,
    pub(crate) witness: SocketAddr,
    pub(crate) process: String,
    /// The version of the program.
    pub(crate) version: u32,
}

/// Works until SIGTERM, until it is killed, or until its parent is gone.
pub(crate) async fn work(post: Post) -> anyhow::Result<()> {
    let client = until_reachable(|| Client::connect(&post.url)).await?;
    let url = post.url.clone();
    let mut pool = TokioPostgres::new(move || {
        let url = url.clone();
        async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        }
    })
    .max_connections(6);
    if client.is_pooled() {
        pool = pool.unprepared();
    }
    let is_newer = post.version > 1;
    let desk = Desk { pool: Arc::new(pool), witness: post.witness, process: post.process, is_newer };
    let start = || {
        Worker::builder(&client)
            .workflow::<settle>()
            .workflow::<leg>()
            .workflow::<partner>()
            .version(post.version.to_string())
            .pinned()
            .max_in_flight(40)
            .park_after(Duration::from_millis(150))
            .name("chaos")
            .state(desk.clone())
            .start()
    };
    until_reachable(start).await?.run_until_signal().await?;
    Ok(())
}

/// The database may be down just now, or its disk full.
async fn until_reachable<T, F: Future<Output = Result<T>>>(act: impl Fn() -> F) -> anyhow::Result<T> {
    loop {
        match act().await {
            Ok(done) => return Ok(done),
            Err(error)
                if error.is_unavailable()
                    || error.sqlstate().is_some_and(|state| state.starts_with("53")) =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error).context("the worker cannot begin"),
        }
    }
}
