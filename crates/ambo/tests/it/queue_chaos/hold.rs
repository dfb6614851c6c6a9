//! What the workers of this test run: it writes down when it was in execution, by the database's clock.

use std::sync::Arc;
use std::time::Duration;

use ambo::{Client, Ctx, Error, Result, Worker};
use serde::{Deserialize, Serialize};

use crate::harness::{Database, connect};
use crate::workflows::say;

/// The table of what was in execution, when, where, and in which place of the queue.
pub(crate) const TABLE: &str = "create table span (n bigserial primary key, run uuid, number int, lane text, \"group\" text, pid int,
        worker bigint, attempt int, claimed_at timestamptz, slot bigint, weight int,
        begun timestamptz default clock_timestamp(), ended timestamptz);
    create table gone (pid int, at timestamptz default clock_timestamp());
    create table released (run uuid, attempt int, at timestamptz default clock_timestamp());
    create function note() returns trigger language plpgsql as $$
        begin insert into public.released (run, attempt) values (old.run_id, old.attempt); return null; end $$;
    create trigger note after delete on ambo.claim for each row execute function note();
    create table place (seq bigint, at timestamptz default clock_timestamp());
    create function note_place() returns trigger language plpgsql as $$
        begin insert into public.place (seq) values (new.slot); return null; end $$;
    create trigger note_place after insert on ambo.claim for each row when (new.slot is not null) execute function note_place()";

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) number: i32,
    pub(crate) group: Option<String>,
    pub(crate) priority: i32,
    pub(crate) ms: u64,
    pub(crate) fails: bool,
    pub(crate) kills: bool,
}

type Sql = Arc<tokio_postgres::Client>;

/// Holds its place for a while, and says so.
async fn hold(cx: Ctx<'_>, held: Held) -> Result<()> {
    let sql = cx.state::<Sql>()?;
    let lane = format!("{:?} {}", held.group, held.priority);
    let begin =
        "insert into span (run, number, lane, \"group\", pid, worker, attempt, claimed_at, slot, weight)
        select c.run_id, $2, $3, $4, $5, c.worker_id, c.attempt, c.claimed_at, c.slot, c.weight
        from ambo.claim c where c.run_id = $1 returning n";
    let pid = std::process::id() as i32;
    let run = cx.run_id().as_uuid();
    let begun = sql.query_opt(begin, &[&run, &held.number, &lane, &held.group, &pid]).await;
    let begun = begun.map_err(Error::other)?.ok_or_else(|| Error::message("it is not ours any more"))?;
    if held.kills {
        std::process::abort();
    }
    tokio::time::sleep(Duration::from_millis(held.ms)).await;
    let end = "update span set ended = clock_timestamp() where n = $1";
    sql.execute(end, &[&begun.get::<_, i64>(0)]).await.map_err(Error::other)?;
    if held.fails { Err(Error::application(&0, "as it was told").permanent()) } else { Ok(()) }
}

/// A worker process: until it is killed, or told to leave.
pub(crate) async fn work(url: &str) {
    let client = Client::connect(url).await.expect("connect");
    let sql: Sql = Arc::new(connect(url).await);
    let builder = Worker::builder(&client).queue("q").workflow_fn("hold", hold).state(sql).max_in_flight(30);
    let worker = builder.start().await.expect("worker");
    say("working");
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    terminated.recv().await;
    worker.drain(Duration::from_secs(20)).await;
}

/// Something that was in execution: from, to, and what it took.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) number: i32,
    pub(crate) lane: String,
    pub(crate) group: Option<String>,
    pub(crate) worker: i64,
    pub(crate) attempt: i32,
    /// In seconds, like those that follow.
    pub(crate) claimed: f64,
    /// When its place was taken: before its claim, if it kept it from an earlier one.
    pub(crate) placed: f64,
    pub(crate) begun: f64,
    pub(crate) ended: f64,
    /// Its place and its weight, where it was counted.
    pub(crate) slot: Option<(i64, i32)>,
}

/// All that was in execution, in the order in which it began. What died with its process ended when that was gone; what a worker
/// that left dropped and gave back, before it was given back.
pub(crate) async fn spans(db: &Database) -> Vec<Span> {
    let sql =
        "select s.number, s.lane, s.\"group\", s.worker, s.attempt, extract(epoch from s.claimed_at)::float8,
               extract(epoch from s.begun)::float8,
               extract(epoch from coalesce(s.ended, least(
                   (select g.at from gone g where g.pid = s.pid),
                   (select r.at from released r where r.run = s.run and r.attempt = s.attempt))))::float8,
               s.slot, s.weight, extract(epoch from coalesce((select p.at from place p where p.seq = s.slot), s.claimed_at))::float8
        from span s order by s.begun";
    let rows = db.sql.query(sql, &[]).await.expect(sql);
    let span = |row: &tokio_postgres::Row| Span {
        number: row.get(0),
        lane: row.get(1),
        group: row.get(2),
        worker: row.get(3),
        attempt: row.get(4),
        claimed: row.get(5),
        begun: row.get(6),
        ended: row.get(7),
        slot: row.get::<_, Option<i64>>(8).zip(row.get(9)),
        placed: row.get(10),
    };
    rows.iter().map(span).collect()
}
