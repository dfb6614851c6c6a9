//! Claim: batches of runs out of lanes, and back.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::{JsonText, Xid8};
use crate::engine::slots::Slot;
use crate::error::Result;
use crate::payload::Json;
use crate::workflow::{GOES_ON, PIN};

/// Where runs of one queue, workflow and priority wait, with the claimer's low-water mark: no row at or below
/// `low` is waiting, except those of transactions that were in progress at the last claim, and those that are `held`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) queue: String,
    pub(crate) workflow: String,
    pub(crate) priority: i16,
    pub(crate) low: i64,
    /// Rows that somebody had locked for so long that the mark has passed them.
    pub(crate) held: Vec<i64>,
    /// Up to where the sweep has come, and when.
    pub(crate) swept: (i64, Option<Instant>),
}

impl Lane {
    pub(crate) fn new(queue: String, workflow: String, priority: i16) -> Lane {
        Lane { queue, workflow, priority, low: 0, held: Vec::new(), swept: (0, None) }
    }

    /// Whether what stands there goes on, and does not begin.
    pub(crate) fn goes_on(&self) -> bool {
        self.workflow.splitn(4, PIN).nth(3).is_some_and(|mark| mark.starts_with(GOES_ON))
    }
}

/// A run as the claim hands it over.
#[derive(Debug)]
pub(crate) struct ClaimedRun {
    pub(crate) id: Uuid,
    pub(crate) workflow: String,
    pub(crate) queue: String,
    pub(crate) input: Json,
    /// The number of this claim of the run, from 1.
    pub(crate) attempt: i32,
    /// How many workers died with it since it last made progress.
    pub(crate) losses: i16,
    pub(crate) attempts_max: i16,
    pub(crate) key: Option<String>,
    pub(crate) time_left: Option<Duration>,
    pub(crate) cancelled: bool,
    /// How long until it has to have ended for that.
    pub(crate) undo_left: Option<Duration>,
    /// The time by which it had to be claimed is over: it is not to be run.
    pub(crate) too_late: bool,
    pub(crate) parent: Option<Uuid>,
    /// What it takes of the limits of its queue.
    pub(crate) slot: Option<Slot>,
    pub(crate) history: Vec<Checkpoint>,
}

impl ClaimedRun {
    /// The last chance before it is declared poison: alone, so that no innocent neighbour dies with it.
    pub(crate) fn is_suspect(&self) -> bool {
        self.losses > 0 && self.losses + 1 >= self.attempts_max
    }

    /// Of its input and records, as they came.
    pub(crate) fn bytes(&self) -> usize {
        let records = self.history.iter().flat_map(|call| [&call.output, &call.error]).flatten();
        self.input.len() + records.map(|json| json.len()).sum::<usize>()
    }
}

/// A recorded call of a run.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) position: String,
    pub(crate) name: String,
    pub(crate) output: Option<Json>,
    pub(crate) error: Option<Json>,
}

/// What a claim found: runs, and the transactions to look for next time. The marks are in the lanes.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) runs: Vec<ClaimedRun>,
    pub(crate) late: Vec<Xid8>,
    /// Runs in the memory of this worker for which something came.
    pub(crate) nudged: Vec<Uuid>,
    /// All that was taken were rows that wake, and nobody of this worker was woken: where somebody has locked the run that is to be, such
    /// a row goes back, and is there again at the next claim.
    pub(crate) in_vain: bool,
}

pub(crate) async fn claim(
    session: &Session,
    schema: &Schema,
    worker: i64,
    limit: i32,
    lanes: &mut [Lane],
    late: &[Xid8],
) -> Result<Claimed> {
    let queues: Vec<&str> = lanes.iter().map(|lane| lane.queue.as_str()).collect();
    let workflows: Vec<&str> = lanes.iter().map(|lane| lane.workflow.as_str()).collect();
    let priorities: Vec<i16> = lanes.iter().map(|lane| lane.priority).collect();
    let lows: Vec<i64> = lanes.iter().map(|lane| lane.low).collect();
    let held = (1i32..).zip(lanes.iter()).flat_map(|(n, lane)| lane.held.iter().map(move |seq| (n, *seq)));
    let (held_lanes, held): (Vec<i32>, Vec<i64>) = held.unzip();
    let rows = session
        .query(
            &schema.sql("select * from ambo.claim($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
            &[
                (&worker, Type::INT8),
                (&limit, Type::INT4),
                (&queues, Type::TEXT_ARRAY),
                (&workflows, Type::TEXT_ARRAY),
                (&priorities, Type::INT2_ARRAY),
                (&lows, Type::INT8_ARRAY),
                (&late, Type::XID8_ARRAY),
                (&held_lanes, Type::INT4_ARRAY),
                (&held, Type::INT8_ARRAY),
            ],
        )
        .await?;
    let mut claimed = Claimed { runs: Vec::with_capacity(rows.len()), ..Claimed::default() };
    for row in rows {
        let Some(id) = row.try_get::<_, Option<Uuid>>(0).map_err(from_driver)? else {
            read_marks(&row, lanes).map_err(from_driver)?;
            claimed.late = row.try_get(13).map_err(from_driver)?;
            let nudged: Option<Vec<Uuid>> = row.try_get(15).map_err(from_driver)?;
            claimed.in_vain = nudged.as_ref().is_some_and(Vec::is_empty);
            claimed.nudged = nudged.unwrap_or_default();
            continue;
        };
        claimed.runs.push(read_run(&row, id).map_err(from_driver)?);
    }
    claimed.in_vain &= claimed.runs.is_empty();
    add_history(session, schema, &mut claimed.runs).await?;
    Ok(claimed)
}

/// The new marks of lanes, in their order, and the rows that these passed.
fn read_marks(row: &tokio_postgres::Row, lanes: &mut [Lane]) -> Result<(), tokio_postgres::Error> {
    let lows: Vec<i64> = row.try_get::<_, Option<_>>(12)?.unwrap_or_default();
    for (lane, low) in lanes.iter_mut().zip(lows) {
        lane.low = low;
        lane.held.clear();
    }
    let of: Vec<i32> = row.try_get::<_, Option<_>>(18)?.unwrap_or_default();
    let held: Vec<i64> = row.try_get::<_, Option<_>>(19)?.unwrap_or_default();
    for (n, seq) in of.into_iter().zip(held) {
        if let Some(lane) = usize::try_from(n - 1).ok().and_then(|at| lanes.get_mut(at)) {
            lane.held.push(seq);
        }
    }
    Ok(())
}

fn read_run(row: &tokio_postgres::Row, id: Uuid) -> Result<ClaimedRun, tokio_postgres::Error> {
    Ok(ClaimedRun {
        id,
        workflow: row.try_get(1)?,
        queue: row.try_get(2)?,
        input: row.try_get::<_, JsonText<Box<str>>>(3)?.0,
        attempt: row.try_get(4)?,
        losses: row.try_get(5)?,
        key: row.try_get(7)?,
        attempts_max: row.try_get(8)?,
        time_left: row.try_get::<_, Option<i64>>(9)?.map(left),
        cancelled: row.try_get(10)?,
        undo_left: row.try_get::<_, Option<i64>>(17)?.map(left),
        parent: row.try_get(14)?,
        too_late: row.try_get::<_, Option<_>>(16)?.unwrap_or_default(),
        slot: None,
        history: Vec::new(),
    })
}

/// What is left of a time; nothing, if it is past.
pub(crate) fn left(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Adds to runs that were claimed before what they have recorded.
pub(crate) async fn add_history(session: &Session, schema: &Schema, runs: &mut [ClaimedRun]) -> Result<()> {
    let ids: Vec<Uuid> = runs.iter().filter(|run| run.attempt > 1).map(|run| run.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let rows =
        session.query(&schema.sql("select * from ambo.history($1)"), &[(&ids, Type::UUID_ARRAY)]).await?;
    let mut by_run: std::collections::HashMap<Uuid, Vec<Checkpoint>> = std::collections::HashMap::new();
    for row in rows {
        let checkpoint = Checkpoint {
            position: row.try_get(1).map_err(from_driver)?,
            name: row.try_get(2).map_err(from_driver)?,
            output: row.try_get::<_, Option<JsonText<Box<str>>>>(3).map_err(from_driver)?.map(|json| json.0),
            error: row.try_get::<_, Option<JsonText<Box<str>>>>(4).map_err(from_driver)?.map(|json| json.0),
        };
        by_run.entry(row.try_get(0).map_err(from_driver)?).or_default().push(checkpoint);
    }
    for run in runs {
        run.history = by_run.remove(&run.id).unwrap_or_default();
    }
    Ok(())
}

/// Lanes with waiting runs that are not in `known`.
pub(crate) async fn find_lanes(
    session: &Session,
    schema: &Schema,
    queues: &[String],
    workflows: &[String],
    known: &[Lane],
) -> Result<Vec<Lane>> {
    let known_queues: Vec<&str> = known.iter().map(|lane| lane.queue.as_str()).collect();
    let known_workflows: Vec<&str> = known.iter().map(|lane| lane.workflow.as_str()).collect();
    let known_priorities: Vec<i16> = known.iter().map(|lane| lane.priority).collect();
    let rows = session
        .query(
            &schema.sql("select * from ambo.find_lanes($1, $2, $3, $4, $5)"),
            &[
                (&queues, Type::TEXT_ARRAY),
                (&workflows, Type::TEXT_ARRAY),
                (&known_queues, Type::TEXT_ARRAY),
                (&known_workflows, Type::TEXT_ARRAY),
                (&known_priorities, Type::INT2_ARRAY),
            ],
        )
        .await?;
    rows.iter()
        .map(|row| Ok(Lane::new(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)
}

/// The lowest waiting run of a lane in `(above, upto]` that is neither held nor of a `late` transaction: what the marks should never
/// have left behind.
pub(crate) async fn sweep(
    session: &Session,
    schema: &Schema,
    lane: &Lane,
    above: i64,
    upto: i64,
    late: &[Xid8],
) -> Result<Option<i64>> {
    let row = session
        .query_one(
            &schema.sql("select ambo.sweep($1, $2, $3, $4, $5, $6, $7)"),
            &[
                (&lane.queue, Type::TEXT),
                (&lane.workflow, Type::TEXT),
                (&lane.priority, Type::INT2),
                (&above, Type::INT8),
                (&upto, Type::INT8),
                (&late, Type::XID8_ARRAY),
                (&lane.held, Type::INT8_ARRAY),
            ],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

/// Says that runs which workers died with are about to be executed.
pub(crate) async fn begin_runs(
    session: &Session,
    schema: &Schema,
    worker: i64,
    runs: &[Uuid],
    begun: bool,
) -> Result<()> {
    let sql = schema.sql("select ambo.begin_runs($1, $2, $3)");
    session
        .query_one(&sql, &[(&worker, Type::INT8), (&runs, Type::UUID_ARRAY), (&begun, Type::BOOL)])
        .await?;
    Ok(())
}

/// Gives runs back unfinished; no loss is counted. Returns how many were still this worker's.
pub(crate) async fn hand_back(
    session: &Session,
    schema: &Schema,
    worker: i64,
    runs: &[(Uuid, i32)],
) -> Result<i32> {
    let ids: Vec<Uuid> = runs.iter().map(|(id, _)| *id).collect();
    let attempts: Vec<i32> = runs.iter().map(|(_, attempt)| *attempt).collect();
    let row = session
        .query_one(
            &schema.sql("select ambo.hand_back($1, $2, $3)"),
            &[(&worker, Type::INT8), (&ids, Type::UUID_ARRAY), (&attempts, Type::INT4_ARRAY)],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

/// The claims that the database holds for a worker, from a page of their table on; and where to go on, if that was not all.
pub(crate) async fn claims_of(
    session: &Session,
    schema: &Schema,
    worker: i64,
    page: i64,
) -> Result<(Vec<(Uuid, i32)>, Option<i64>)> {
    let sql = schema.sql("select runs, attempts, next_page from ambo.claims_of($1, $2)");
    let row = session.query_one(&sql, &[(&worker, Type::INT8), (&page, Type::INT8)]).await?;
    let read = || -> Result<_, tokio_postgres::Error> {
        let (runs, attempts): (Vec<Uuid>, Vec<i32>) = (row.try_get(0)?, row.try_get(1)?);
        Ok((runs.into_iter().zip(attempts).collect(), row.try_get(2)?))
    };
    read().map_err(from_driver)
}
