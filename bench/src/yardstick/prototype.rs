//! `runs`: the least code that moves one-step runs through PostgreSQL by group commit.
//!
//! Enqueue, claim, and checkpoint with outcome, all by arrays, on tables that are inserted into and deleted
//! from. No replay, no leases, no errors, no parking: what an engine that carries those has to stay near.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::database::{Database, connect};
use crate::load::sum;

const SCHEMA: &str = r#"
create sequence p_seq;
create table p_run (id uuid primary key, workflow text not null, queue text not null, input jsonb,
  enqueued_at timestamptz not null default now()) partition by range (id);
create table p_run_default partition of p_run default;
create table p_ready (queue text, priority int, seq bigint default nextval('p_seq'), id uuid,
  primary key (queue, priority, seq));
create table p_claim (id uuid primary key, worker bigint not null, attempt int not null,
  claimed_at timestamptz default now());
create table p_checkpoint (id uuid, position int, name text, output jsonb,
  recorded_at timestamptz default now(), primary key (id, position)) partition by range (id);
create table p_checkpoint_default partition of p_checkpoint default;
create table p_outcome (id uuid primary key, status smallint not null, output jsonb,
  ended_at timestamptz default now()) partition by range (id);
create table p_outcome_default partition of p_outcome default;

create function p_enqueue(ids uuid[]) returns void language sql as $$
  with new_run as (
    insert into p_run (id, workflow, queue, input)
    select id, 'fulfil', 'default', '{"order": 1001}' from unnest(ids) id)
  insert into p_ready (queue, priority, id) select 'default', 0, id from unnest(ids) id
$$;

create function p_claim_up_to(n int, worker bigint, low bigint)
returns table (id uuid, input jsonb, seq bigint) language sql as $$
  with locked as (
    select ctid, seq, id from p_ready
    where queue = 'default' and priority = 0 and seq > low
    order by queue, priority, seq limit n for update skip locked),
  taken as (delete from p_ready r using locked l where r.ctid = l.ctid returning l.id, l.seq),
  claimed as (insert into p_claim (id, worker, attempt) select t.id, worker, 1 from taken t)
  select t.id, r.input, t.seq from taken t join p_run r on r.id = t.id
$$;

create function p_record(ids uuid[], me bigint) returns bigint language sql as $$
  with ended as (
    delete from p_claim c using unnest(ids) i where c.id = i and c.worker = me returning c.id),
  checkpointed as (
    insert into p_checkpoint (id, position, name, output) select id, 1, 'charge', '{"ok": true}' from ended),
  outcome as (
    insert into p_outcome (id, status, output) select id, 1, '{"ok": true}' from ended returning 1)
  select count(*) from outcome
$$;
"#;

struct Enqueue {
    id: Uuid,
    durable: oneshot::Sender<()>,
}

/// Takes the first waiting item and all that gathered behind it: a batch without a timer.
async fn gather<T>(rx: &flume::Receiver<T>) -> Option<Vec<T>> {
    let mut batch = vec![rx.recv_async().await.ok()?];
    while batch.len() < 1000 {
        match rx.try_recv() {
            Ok(item) => batch.push(item),
            Err(_) => break,
        }
    }
    Some(batch)
}

/// Producers enqueue for a while; gives the runs a second, from the first enqueue to the last outcome.
pub async fn runs_for(database: &Database, producers: i64, time: Duration) -> Result<f64> {
    connect(&database.url).await?.batch_execute(SCHEMA).await?;
    let ended = Arc::new(AtomicI64::new(0));
    let mut background: JoinSet<Result<()>> = JoinSet::new();
    let (enqueue_tx, enqueue_rx) = flume::unbounded();
    let (record_tx, record_rx) = flume::unbounded();
    for _ in 0..2 {
        background.spawn(enqueue(database.url.clone(), enqueue_rx.clone()));
        background.spawn(record(database.url.clone(), record_rx.clone(), ended.clone()));
    }
    background.spawn(claim(database.url.clone(), record_tx));
    tokio::time::sleep(Duration::from_millis(300)).await;

    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..producers {
        let enqueue_tx = enqueue_tx.clone();
        tasks.spawn(async move {
            let mut runs = 0;
            while runs == 0 || start.elapsed() < time {
                let (durable, wait) = oneshot::channel();
                enqueue_tx.send(Enqueue { id: Uuid::now_v7(), durable })?;
                wait.await.context("the enqueue failed")?;
                runs += 1;
            }
            Ok(runs)
        });
    }
    let runs = sum(tasks).await?;
    while ended.load(Ordering::Relaxed) < runs {
        ensure!(start.elapsed() < time + Duration::from_secs(60), "the prototype stands still");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    background.shutdown().await;
    let stored = database.count("select count(*) from p_outcome where status = 1").await?;
    ensure!(stored == runs, "{stored} outcomes for {runs} runs");
    Ok(runs as f64 / seconds)
}

async fn enqueue(url: String, rx: flume::Receiver<Enqueue>) -> Result<()> {
    let client = connect(&url).await?;
    let statement = client.prepare("select p_enqueue($1)").await?;
    while let Some(batch) = gather(&rx).await {
        let ids: Vec<Uuid> = batch.iter().map(|e| e.id).collect();
        client.execute(&statement, &[&ids]).await?;
        for enqueue in batch {
            let _ = enqueue.durable.send(());
        }
    }
    Ok(())
}

async fn record(url: String, rx: flume::Receiver<Uuid>, ended: Arc<AtomicI64>) -> Result<()> {
    let client = connect(&url).await?;
    let statement = client.prepare("select p_record($1, 7)").await?;
    while let Some(ids) = gather(&rx).await {
        let recorded: i64 = client.query_one(&statement, &[&ids]).await?.try_get(0)?;
        ended.fetch_add(recorded, Ordering::Relaxed);
    }
    Ok(())
}

async fn claim(url: String, record: flume::Sender<Uuid>) -> Result<()> {
    let client = connect(&url).await?;
    let statement = client.prepare("select * from p_claim_up_to(500, 7, $1)").await?;
    let (mut low, mut round) = (-1_i64, 0_u64);
    loop {
        round += 1;
        // A little below the mark for late commits; everything, once in a while.
        let from = if round.is_multiple_of(50) { -1 } else { low - 2000 };
        let rows = client.query(&statement, &[&from]).await?;
        if rows.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for row in rows {
            low = low.max(row.try_get(2)?);
            let (id, record) = (row.try_get::<_, Uuid>(0)?, record.clone());
            tokio::spawn(async move { record.send(id) });
        }
    }
}
