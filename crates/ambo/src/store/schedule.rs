//! Schedules: set, listed, ticked.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::enqueue::NewRun;
use super::schema::Schema;
use super::types::{Interval, JsonText};
use crate::error::Result;
use crate::schedule::{ScheduleSummary, Timing};

/// A schedule to be set.
#[derive(Debug)]
pub(crate) struct NewSchedule {
    pub(crate) name: String,
    pub(crate) run: NewRun,
    pub(crate) cron: Option<String>,
    pub(crate) timezone: Option<String>,
    pub(crate) every: Option<Duration>,
    pub(crate) overlap: &'static str,
    pub(crate) jitter: Duration,
    pub(crate) catch_up: Duration,
    pub(crate) next: Timestamp,
}

pub(crate) async fn set(session: &Session, schema: &Schema, new: &NewSchedule) -> Result<bool> {
    let run = &new.run;
    let attributes = run.attributes.as_deref().map(JsonText);
    let sql = schema
        .sql("select ambo.set_schedule($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)");
    let row = session
        .query_one(
            &sql,
            &[
                (&new.name, Type::TEXT),
                (&run.workflow, Type::TEXT),
                (&JsonText(&*run.input), Type::JSON),
                (&run.queue, Type::TEXT),
                (&run.priority, Type::INT4),
                (&attributes, Type::JSONB),
                (&run.timeout.map(Interval), Type::INTERVAL),
                (&run.attempts, Type::INT4),
                (&new.cron, Type::TEXT),
                (&new.timezone, Type::TEXT),
                (&new.every.map(Interval), Type::INTERVAL),
                (&new.overlap, Type::TEXT),
                (&Interval(new.jitter), Type::INTERVAL),
                (&Interval(new.catch_up), Type::INTERVAL),
                (&new.next, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

/// A schedule whose time has come.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) name: String,
    /// What cannot be read any more, because another version wrote it, is an error of this schedule alone.
    pub(crate) timing: Result<Timing>,
    pub(crate) tick: Timestamp,
    /// Ticks before this are not made up for.
    pub(crate) horizon: Timestamp,
}

fn read_timing(cron: Option<String>, timezone: Option<String>, every_us: Option<i64>) -> Result<Timing> {
    let every = every_us.map(|us| Duration::from_micros(us.unsigned_abs()));
    Timing::new(cron.as_deref(), timezone.as_deref(), every)
}

pub(crate) async fn due(session: &Session, schema: &Schema) -> Result<Vec<Due>> {
    let rows = session.query(&schema.sql("select * from ambo.due_schedules()"), &[]).await?;
    let read = |row: &tokio_postgres::Row| -> Result<Due, tokio_postgres::Error> {
        let timing = read_timing(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok(Due { name: row.try_get(0)?, timing, tick: row.try_get(4)?, horizon: row.try_get(5)? })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(from_driver)
}

/// One tick and the move to the next one; says what became of it.
pub(crate) async fn tick(
    session: &Session,
    schema: &Schema,
    name: &str,
    tick: Timestamp,
    next: Timestamp,
) -> Result<String> {
    let row = session
        .query_one(
            &schema.sql("select ambo.tick_schedule($1, $2, $3)"),
            &[(&name, Type::TEXT), (&tick, Type::TIMESTAMPTZ), (&next, Type::TIMESTAMPTZ)],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

/// Stops a schedule that has no next tick, and keeps the reason with it.
pub(crate) async fn stop(
    session: &Session,
    schema: &Schema,
    name: &str,
    tick: Timestamp,
    reason: &str,
) -> Result<()> {
    let sql = schema.sql("select ambo.stop_schedule($1, $2, $3)::text");
    session
        .query(&sql, &[(&name, Type::TEXT), (&tick, Type::TIMESTAMPTZ), (&reason, Type::TEXT)])
        .await
        .map(drop)
}

/// When a schedule comes, and one of its ticks; `None`: there is no such schedule.
pub(crate) async fn timing(
    session: &Session,
    schema: &Schema,
    name: &str,
) -> Result<Option<(Timing, Timestamp)>> {
    let sql = schema.sql(
        "select s.cron, s.timezone, (extract(epoch from s.every) * 1000000)::bigint, s.next_at
         from ambo.list_schedules() s where s.name = $1",
    );
    let rows = session.query(&sql, &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let read = || -> Result<_, tokio_postgres::Error> {
        Ok((read_timing(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), row.try_get(3)?))
    };
    let (timing, tick) = read().map_err(from_driver)?;
    Ok(Some((timing?, tick)))
}

pub(crate) async fn list(session: &Session, schema: &Schema) -> Result<Vec<ScheduleSummary>> {
    let sql = schema.sql(
        "select s.name, s.workflow, s.queue, s.cron, s.timezone, s.overlap, s.paused, s.next_at, s.last_at, s.last_run,
                s.skipped, s.error, (extract(epoch from s.every) * 1000000)::bigint
         from ambo.list_schedules() s",
    );
    let read = |row: &tokio_postgres::Row| -> Result<ScheduleSummary, tokio_postgres::Error> {
        // What no keeper could read is known before there is one.
        let timing = read_timing(row.try_get(3)?, row.try_get(4)?, row.try_get(12)?);
        let tick = row.try_get(7)?;
        let fault = Timing::fault(&timing, tick, tick);
        Ok(ScheduleSummary {
            name: row.try_get(0)?,
            workflow: row.try_get(1)?,
            queue: row.try_get(2)?,
            times: match row.try_get::<_, Option<i64>>(12)? {
                Some(every) => format!("every {:#}", jiff::SignedDuration::from_micros(every)),
                None => row.try_get(3)?,
            },
            timezone: row.try_get(4)?,
            overlap: row.try_get(5)?,
            paused: row.try_get(6)?,
            next_at: tick,
            last_at: row.try_get(8)?,
            last_run: row.try_get::<_, Option<Uuid>>(9)?.map(Into::into),
            skipped: row.try_get(10)?,
            error: fault.or(row.try_get(11)?),
        })
    };
    let rows = session.query(&sql, &[]).await?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(from_driver)
}

pub(crate) async fn pause(session: &Session, schema: &Schema, name: &str, paused: bool) -> Result<()> {
    let sql = schema.sql("select ambo.pause_schedule($1, $2)::text");
    session.query(&sql, &[(&name, Type::TEXT), (&paused, Type::BOOL)]).await.map(drop)
}

pub(crate) async fn trigger(session: &Session, schema: &Schema, name: &str) -> Result<Uuid> {
    let sql = schema.sql("select ambo.trigger_schedule($1)");
    session.query_one(&sql, &[(&name, Type::TEXT)]).await?.try_get(0).map_err(from_driver)
}

pub(crate) async fn backfill(
    session: &Session,
    schema: &Schema,
    name: &str,
    ticks: &[Timestamp],
) -> Result<Vec<Uuid>> {
    let sql = schema.sql("select ambo.backfill_schedule($1, $2)");
    let row = session.query_one(&sql, &[(&name, Type::TEXT), (&ticks, Type::TIMESTAMPTZ_ARRAY)]).await?;
    row.try_get(0).map_err(from_driver)
}

pub(crate) async fn delete(session: &Session, schema: &Schema, name: &str) -> Result<()> {
    session
        .query(&schema.sql("select ambo.delete_schedule($1)::text"), &[(&name, Type::TEXT)])
        .await
        .map(drop)
}
