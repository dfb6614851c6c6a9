//! What operators and handles ask of the database.

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::{Interval, JsonText};
use crate::admin::{
    Act, Acted, Cancel, DeadError, DeadLetter, Filter, RunDetail, RunSummary, StepSummary, VitalSign,
    WorkerSummary,
};
use crate::error::Result;
use crate::payload::Json;

pub(super) type DriverResult<T> = Result<T, tokio_postgres::Error>;

pub(super) fn all<T>(rows: &[Row], read: impl Fn(&Row) -> DriverResult<T>) -> Result<Vec<T>> {
    rows.iter().map(read).collect::<DriverResult<_>>().map_err(from_driver)
}

pub(super) fn json(row: &Row, column: usize) -> DriverResult<Option<Json>> {
    Ok(row.try_get::<_, Option<JsonText<Box<str>>>>(column)?.map(|json| json.0))
}

/// How a run ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) status: String,
    pub(crate) output: Option<Json>,
    pub(crate) error: Option<Json>,
}

/// The outcomes, so far, of some runs; for those of `new` that do not exist, `None`.
pub(crate) async fn outcomes(
    session: &Session,
    schema: &Schema,
    runs: &[Uuid],
    new: &[Uuid],
) -> Result<Vec<(Uuid, Option<Outcome>)>> {
    let rows = session
        .query(
            &schema.sql("select * from ambo.outcomes($1, $2)"),
            &[(&runs, Type::UUID_ARRAY), (&new, Type::UUID_ARRAY)],
        )
        .await?;
    all(&rows, |row| {
        let status: String = row.try_get(1)?;
        let outcome = match status.as_str() {
            "unknown" => None,
            _ => Some(Outcome { status, output: json(row, 2)?, error: json(row, 3)? }),
        };
        Ok((row.try_get(0)?, outcome))
    })
}

pub(crate) async fn list_runs(
    session: &Session,
    schema: &Schema,
    filter: &Filter,
) -> Result<Vec<RunSummary>> {
    let before = filter.before.map(crate::RunId::as_uuid);
    let parent = filter.parent.map(crate::RunId::as_uuid);
    let attributes = filter.attributes.as_ref().map(|attributes| JsonText(attributes.to_string()));
    let limit = i32::try_from(filter.limit).unwrap_or(i32::MAX);
    let rows = session
        .query(
            &schema.sql("select * from ambo.list_runs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"),
            &[
                (&filter.workflow, Type::TEXT),
                (&filter.queue, Type::TEXT),
                (&filter.state, Type::TEXT),
                (&before, Type::UUID),
                (&limit, Type::INT4),
                (&filter.since, Type::TIMESTAMPTZ),
                (&filter.until, Type::TIMESTAMPTZ),
                (&attributes, Type::JSONB),
                (&parent, Type::UUID),
                (&filter.text, Type::TEXT),
                (&filter.group, Type::TEXT),
            ],
        )
        .await?;
    all(&rows, read_summary)
}

fn read_summary(row: &Row) -> DriverResult<RunSummary> {
    Ok(RunSummary {
        id: row.try_get::<_, Uuid>(0)?.into(),
        workflow: row.try_get(1)?,
        queue: row.try_get(2)?,
        state: row.try_get(3)?,
        attempt: row.try_get(4)?,
        key: row.try_get(5)?,
        priority: row.try_get(6)?,
        enqueued_at: row.try_get(7)?,
        ended_at: row.try_get(8)?,
        worker: row.try_get(9)?,
        error: raw(json(row, 10)?),
        parent: row.try_get::<_, Option<Uuid>>(11)?.map(Into::into),
        attributes: raw(json(row, 12)?),
        group: row.try_get(13)?,
    })
}

pub(super) fn raw(json: Option<Json>) -> Option<Box<serde_json::value::RawValue>> {
    json.and_then(|text| serde_json::value::RawValue::from_string(text.into()).ok())
}

pub(crate) async fn show_run(session: &Session, schema: &Schema, run: Uuid) -> Result<Option<RunDetail>> {
    let rows = session.query(&schema.sql("select * from ambo.show_run($1)"), &[(&run, Type::UUID)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let steps =
        session.query(&schema.sql("select * from ambo.show_steps($1)"), &[(&run, Type::UUID)]).await?;
    let steps = all(&steps, |row| {
        Ok(StepSummary {
            position: row.try_get(0)?,
            name: row.try_get(1)?,
            attempt: row.try_get(2)?,
            recorded_at: row.try_get(3)?,
            elapsed_ms: row.try_get(4)?,
            output: raw(json(row, 5)?),
            error: raw(json(row, 6)?),
        })
    })?;
    let detail = || -> DriverResult<RunDetail> {
        Ok(RunDetail {
            summary: read_summary(row)?,
            input: raw(json(row, 14)?),
            output: raw(json(row, 15)?),
            cancel_requested: row.try_get(16)?,
            undo_by: row.try_get(17)?,
            signals: json(row, 18)?.and_then(|topics| serde_json::from_str(&topics).ok()).unwrap_or_default(),
            steps,
        })
    };
    detail().map(Some).map_err(from_driver)
}

pub(crate) async fn cancel_run(
    session: &Session,
    schema: &Schema,
    run: Uuid,
    cancel: &Cancel,
) -> Result<String> {
    let (reason, grace) = (&cancel.reason, cancel.grace.map(Interval));
    let row = session
        .query_one(
            &schema.sql("select ambo.cancel_run($1, $2, $3)"),
            &[(&run, Type::UUID), (reason, Type::TEXT), (&grace, Type::INTERVAL)],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

pub(crate) async fn retry_run(session: &Session, schema: &Schema, run: Uuid) -> Result<()> {
    session.query(&schema.sql("select ambo.retry_run($1)::text"), &[(&run, Type::UUID)]).await.map(drop)
}

pub(crate) async fn rewind_run(session: &Session, schema: &Schema, run: Uuid, position: &str) -> Result<()> {
    let sql = schema.sql("select ambo.rewind_run($1, $2)::text");
    session.query(&sql, &[(&run, Type::UUID), (&position, Type::TEXT)]).await.map(drop)
}

pub(crate) async fn fork_run(
    session: &Session,
    schema: &Schema,
    run: Uuid,
    position: Option<&str>,
) -> Result<Uuid> {
    let sql = schema.sql("select ambo.fork_run($1, $2)");
    let row = session.query_one(&sql, &[(&run, Type::UUID), (&position, Type::TEXT)]).await?;
    row.try_get(0).map_err(from_driver)
}

pub(crate) async fn act_on_runs(
    session: &Session,
    schema: &Schema,
    act: &Act,
    runs: &[Uuid],
    done: usize,
) -> Result<Vec<Acted>> {
    let (name, position, cancel) = match act {
        Act::Redrive { queue, per_second } => {
            let done = i32::try_from(done).unwrap_or(i32::MAX);
            let sql = schema.sql("select run_id, answer, code from ambo.redrive_dead($1, $2, $3, $4)");
            let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
                (&runs, Type::UUID_ARRAY),
                (queue, Type::TEXT),
                (per_second, Type::FLOAT8),
                (&done, Type::INT4),
            ];
            return all(&session.query(&sql, &params).await?, read_acted);
        }
        Act::PurgeDead => {
            let sql = schema.sql("select run_id, answer, code from ambo.purge_dead($1)");
            return all(&session.query(&sql, &[(&runs, Type::UUID_ARRAY)]).await?, read_acted);
        }
        Act::Cancel(cancel) => ("cancel", None, Some(cancel)),
        Act::Retry => ("retry", None, None),
        Act::Rewind(position) => ("rewind", Some(position), None),
        Act::Fork(position) => ("fork", position.as_ref(), None),
    };
    let reason = cancel.map(|cancel| &cancel.reason);
    let grace = cancel.and_then(|cancel| cancel.grace).map(Interval);
    let rows = session
        .query(
            &schema.sql("select run_id, answer, code from ambo.act_on_runs($1, $2, $3, $4, $5)"),
            &[
                (&name, Type::TEXT),
                (&runs, Type::UUID_ARRAY),
                (&position, Type::TEXT),
                (&reason, Type::TEXT),
                (&grace, Type::INTERVAL),
            ],
        )
        .await?;
    all(&rows, read_acted)
}

fn read_acted(row: &Row) -> DriverResult<Acted> {
    let id: Uuid = row.try_get(0)?;
    Ok(Acted { id: id.into(), answer: row.try_get(1)?, refused: row.try_get(2)? })
}

pub(crate) async fn dead_letters(
    session: &Session,
    schema: &Schema,
    filter: &Filter,
) -> Result<Vec<DeadLetter>> {
    let before = filter.before.map(crate::RunId::as_uuid);
    let parent = filter.parent.map(crate::RunId::as_uuid);
    let attributes = filter.attributes.as_ref().map(|attributes| JsonText(attributes.to_string()));
    let limit = i32::try_from(filter.limit).unwrap_or(i32::MAX);
    let rows = session
        .query(
            &schema.sql("select * from ambo.dead_letters($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"),
            &[
                (&filter.workflow, Type::TEXT),
                (&filter.queue, Type::TEXT),
                (&before, Type::UUID),
                (&limit, Type::INT4),
                (&filter.since, Type::TIMESTAMPTZ),
                (&filter.until, Type::TIMESTAMPTZ),
                (&attributes, Type::JSONB),
                (&parent, Type::UUID),
                (&filter.text, Type::TEXT),
                (&filter.group, Type::TEXT),
            ],
        )
        .await?;
    all(&rows, |row| {
        Ok(DeadLetter {
            id: row.try_get::<_, Uuid>(0)?.into(),
            workflow: row.try_get(1)?,
            queue: row.try_get(2)?,
            enqueued_at: row.try_get(3)?,
            died_at: row.try_get(4)?,
            attempts: row.try_get(5)?,
            tries: row.try_get(6)?,
            code: row.try_get(7)?,
            message: row.try_get(8)?,
            error: raw(json(row, 9)?),
            group: row.try_get(10)?,
        })
    })
}

pub(crate) async fn dead_errors(
    session: &Session,
    schema: &Schema,
    filter: &Filter,
) -> Result<Vec<DeadError>> {
    let before = filter.before.map(crate::RunId::as_uuid);
    let parent = filter.parent.map(crate::RunId::as_uuid);
    let attributes = filter.attributes.as_ref().map(|attributes| JsonText(attributes.to_string()));
    let rows = session
        .query(
            &schema.sql("select * from ambo.dead_errors($1, $2, $3, $4, $5, $6, $7, $8, $9)"),
            &[
                (&filter.workflow, Type::TEXT),
                (&filter.queue, Type::TEXT),
                (&filter.since, Type::TIMESTAMPTZ),
                (&filter.until, Type::TIMESTAMPTZ),
                (&before, Type::UUID),
                (&attributes, Type::JSONB),
                (&parent, Type::UUID),
                (&filter.text, Type::TEXT),
                (&filter.group, Type::TEXT),
            ],
        )
        .await?;
    all(&rows, |row| {
        Ok(DeadError {
            workflow: row.try_get(0)?,
            queue: row.try_get(1)?,
            code: row.try_get(2)?,
            message: row.try_get(3)?,
            runs: row.try_get(4)?,
            first_at: row.try_get(5)?,
            last_at: row.try_get(6)?,
            newest: row.try_get::<_, Uuid>(7)?.into(),
            is_capped: row.try_get(8)?,
        })
    })
}

pub(crate) async fn list_workers(session: &Session, schema: &Schema) -> Result<Vec<WorkerSummary>> {
    let rows = session.query(&schema.sql("select * from ambo.list_workers()"), &[]).await?;
    all(&rows, |row| {
        Ok(WorkerSummary {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            version: row.try_get(2)?,
            pid: row.try_get(3)?,
            started_at: row.try_get(4)?,
            silent_ms: row.try_get(5)?,
            in_flight: row.try_get(6)?,
            draining: row.try_get(7)?,
            is_keeper: row.try_get(8)?,
            queues: row.try_get(9)?,
            workflows: row.try_get(10)?,
        })
    })
}

pub(crate) async fn vital_signs(session: &Session, schema: &Schema) -> Result<Vec<VitalSign>> {
    let rows = session.query(&schema.sql("select * from ambo.vital_signs()"), &[]).await?;
    all(&rows, |row| Ok(VitalSign { name: row.try_get(0)?, value: row.try_get(1)? }))
}

pub(crate) async fn adopt(session: &Session, schema: &Schema) -> Result<()> {
    session.query(&schema.sql("select ambo.adopt()::text"), &[]).await.map(drop)
}

/// The database's clock.
pub(crate) async fn now(session: &Session, schema: &Schema) -> Result<jiff::Timestamp> {
    let row = session.query_one(&schema.sql("select ambo.database_time()"), &[]).await?;
    row.try_get(0).map_err(from_driver)
}
