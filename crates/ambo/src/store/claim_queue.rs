//! The claim of a managed queue: what a worker knows of it goes in, what it is given comes out.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::claim::{ClaimedRun, add_history, left};
use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::JsonText;
use crate::error::Result;

/// A lane that is to be tried.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) lane: String,
    pub(crate) priority: i16,
    /// The number of its unit among those that are tried, and of the class of that; lanes that need no turn have a number of their own.
    pub(crate) turn: i32,
    pub(crate) class: i32,
    pub(crate) low: i64,
    /// How many of its runs are taken in a turn.
    pub(crate) share: i16,
    /// The weight of its group that is in execution in this worker.
    pub(crate) mine: i32,
}

/// What the worker knows.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) worker: i64,
    pub(crate) queue: &'a str,
    pub(crate) limit: i32,
    /// The snapshot of the last call; none: all lanes are to be named.
    pub(crate) since: Option<&'a str>,
    pub(crate) choices: &'a [Choice],
    /// The weight in execution in this worker that it counts, and all that is in execution in it.
    pub(crate) mine: i32,
    pub(crate) here: i32,
    pub(crate) others: &'a [i64],
    pub(crate) seen: i64,
}

/// A run that was given, with what it takes of the limits.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) run: Uuid,
    /// The index of its lane among the choices.
    pub(crate) lane: usize,
    pub(crate) weight: i32,
    pub(crate) attempt: i32,
    pub(crate) losses: i16,
    pub(crate) time_left: Option<Duration>,
}

/// What a call answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) given: Vec<Given>,
    pub(crate) nudged: Vec<Uuid>,
    /// The marks of the choices; none: nothing is left in the lane.
    pub(crate) lows: Vec<Option<i64>>,
    /// The indexes of the choices that had no turn, for want of room.
    pub(crate) passed: Vec<usize>,
    pub(crate) upto: String,
    /// Lanes in which something has come to be visible, with the mark below it.
    pub(crate) arrivals: Vec<(String, i16, i64)>,
    /// Whether the queue has a limit. Where it has none the worker does not count what it was given: the next limit finds it.
    pub(crate) limited: bool,
    pub(crate) others: Vec<i64>,
    pub(crate) seen: i64,
    /// Until the rate allows another run.
    pub(crate) wait: Option<Duration>,
    pub(crate) ordered: Option<String>,
    pub(crate) ageing: Option<Duration>,
    pub(crate) group_limit: Option<i32>,
    /// Groups whose share is not 1.
    pub(crate) shares: Vec<(String, i16)>,
}

pub(crate) async fn claim_queue(
    session: &Session,
    schema: &Schema,
    question: &Question<'_>,
) -> Result<Answer> {
    let choices = question.choices;
    let lanes: Vec<&str> = choices.iter().map(|choice| choice.lane.as_str()).collect();
    let priorities: Vec<i16> = choices.iter().map(|choice| choice.priority).collect();
    let turns: Vec<i32> = choices.iter().map(|choice| choice.turn).collect();
    let classes: Vec<i32> = choices.iter().map(|choice| choice.class).collect();
    let lows: Vec<i64> = choices.iter().map(|choice| choice.low).collect();
    let shares: Vec<i16> = choices.iter().map(|choice| choice.share).collect();
    let mine: Vec<i32> = choices.iter().map(|choice| choice.mine).collect();
    let row = session
        .query_one(
            &schema.sql(
                "select * from ambo.claim_queue($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            ),
            &[
                (&question.worker, Type::INT8),
                (&question.queue, Type::TEXT),
                (&question.limit, Type::INT4),
                (&question.since, Type::TEXT),
                (&lanes, Type::TEXT_ARRAY),
                (&priorities, Type::INT2_ARRAY),
                (&turns, Type::INT4_ARRAY),
                (&classes, Type::INT4_ARRAY),
                (&lows, Type::INT8_ARRAY),
                (&shares, Type::INT2_ARRAY),
                (&mine, Type::INT4_ARRAY),
                (&question.mine, Type::INT4),
                (&question.here, Type::INT4),
                (&question.others, Type::INT8_ARRAY),
                (&question.seen, Type::INT8),
            ],
        )
        .await?;
    read(&row, choices).map_err(from_driver)
}

/// What SQL counts from 1.
fn index(number: i32) -> usize {
    usize::try_from(number - 1).unwrap_or(usize::MAX)
}

fn read(row: &Row, choices: &[Choice]) -> Result<Answer, tokio_postgres::Error> {
    let milliseconds = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    let given = given(row)?;
    let gave: HashSet<usize> = given.iter().map(|given| given.lane).collect();
    let open = list::<i32>(row, "open")?.into_iter().map(index);
    let new_lanes: Vec<String> = list(row, "new_lanes")?;
    let new_priorities: Vec<i16> = list(row, "new_priorities")?;
    let new_lows: Vec<i64> = list(row, "new_lows")?;
    let arrivals = new_lanes.into_iter().zip(new_priorities).zip(new_lows);
    let group_keys: Vec<String> = list(row, "group_keys")?;
    Ok(Answer {
        nudged: list(row, "nudged")?,
        lows: lows(row, choices)?,
        passed: open.filter(|lane| !gave.contains(lane)).collect(),
        given,
        upto: row.try_get("upto")?,
        arrivals: arrivals.map(|((lane, priority), low)| (lane, priority, low)).collect(),
        limited: row.try_get("limited")?,
        others: list(row, "others")?,
        seen: row.try_get("seen")?,
        wait: row.try_get::<_, Option<i32>>("wait_ms")?.map(|ms| milliseconds(ms.into())),
        ordered: row.try_get("ordered")?,
        ageing: row.try_get::<_, Option<i64>>("ageing_ms")?.map(milliseconds),
        group_limit: row.try_get("group_limit")?,
        shares: group_keys.into_iter().zip(list::<i16>(row, "shares")?).collect(),
    })
}

fn given(row: &Row) -> Result<Vec<Given>, tokio_postgres::Error> {
    let lanes: Vec<i32> = list(row, "run_lanes")?;
    let weights: Vec<i16> = list(row, "weights")?;
    let attempts: Vec<i32> = list(row, "attempts")?;
    let losses: Vec<i16> = list(row, "losses")?;
    let times_left: Vec<Option<i64>> = list(row, "left_ms")?;
    let runs = list(row, "runs")?.into_iter().enumerate();
    let given = runs.map(|(n, run)| Given {
        run,
        lane: index(lanes[n]),
        weight: weights[n].into(),
        attempt: attempts[n],
        losses: losses[n],
        time_left: times_left[n].map(left),
    });
    Ok(given.collect())
}

/// The marks of the lanes after the call: of those that were tried below what stands there still, of the others as they were.
fn lows(row: &Row, choices: &[Choice]) -> Result<Vec<Option<i64>>, tokio_postgres::Error> {
    let mut lows: Vec<Option<i64>> = choices.iter().map(|choice| Some(choice.low)).collect();
    for lane in list::<i32>(row, "tried")? {
        lows[index(lane)] = None;
    }
    let left = list::<i32>(row, "left_lanes")?.into_iter().zip(list::<i64>(row, "left_seqs")?);
    for (lane, seq) in left {
        let low = &mut lows[index(lane)];
        *low = Some(low.map_or(seq - 1, |low| low.min(seq - 1)));
    }
    Ok(lows)
}

fn list<'a, T>(row: &'a Row, column: &str) -> Result<Vec<T>, tokio_postgres::Error>
where
    Vec<T>: tokio_postgres::types::FromSql<'a>,
{
    Ok(row.try_get::<_, Option<Vec<T>>>(column)?.unwrap_or_default())
}

/// What is needed, besides, to execute runs that were given; each with its place among those.
pub(crate) async fn claimed_runs(
    session: &Session,
    schema: &Schema,
    given: &[Given],
) -> Result<Vec<(usize, ClaimedRun)>> {
    let ids: Vec<Uuid> = given.iter().map(|given| given.run).collect();
    let rows = session
        .query(&schema.sql("select * from ambo.claimed_runs($1)"), &[(&ids, Type::UUID_ARRAY)])
        .await?;
    let by_run: HashMap<Uuid, usize> = given.iter().map(|given| given.run).zip(0..).collect();
    let (places, mut runs): (Vec<usize>, Vec<ClaimedRun>) = rows
        .iter()
        .map(|row| {
            let id: Uuid = row.try_get(0)?;
            let place = by_run[&id];
            let given = &given[place];
            let run = ClaimedRun {
                id,
                workflow: row.try_get(1)?,
                queue: row.try_get(2)?,
                input: row.try_get::<_, JsonText<Box<str>>>(3)?.0,
                attempt: given.attempt,
                losses: given.losses,
                key: row.try_get(4)?,
                attempts_max: row.try_get(5)?,
                time_left: given.time_left,
                cancelled: row.try_get(6)?,
                parent: row.try_get(7)?,
                too_late: given.attempt == 1 && row.try_get(8)?,
                undo_left: row.try_get::<_, Option<i64>>(9)?.map(left),
                slot: None,
                history: Vec::new(),
            };
            Ok((place, run))
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)?;
    add_history(session, schema, &mut runs).await?;
    Ok(places.into_iter().zip(runs).collect())
}

/// All lanes of a queue that hold something, each with the mark below it.
pub(crate) async fn all_lanes(
    session: &Session,
    schema: &Schema,
    queue: &str,
) -> Result<Vec<(String, i16, i64)>> {
    let sql = schema.sql("select lanes, priorities, lows from ambo.arrivals($1, null)");
    let row = session.query_one(&sql, &[(&queue, Type::TEXT)]).await?;
    let read = || -> Result<_, tokio_postgres::Error> {
        let (lanes, lows) = (list::<String>(&row, "lanes")?, list::<i64>(&row, "lows")?);
        let named = lanes.into_iter().zip(list::<i16>(&row, "priorities")?).zip(lows);
        Ok(named.map(|((lane, priority), low)| (lane, priority, low)).collect())
    };
    read().map_err(from_driver)
}
