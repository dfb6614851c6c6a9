//! Flush: one batch of the journal, and the reading back of one whose answer was lost.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::JsonText;
use crate::error::Result;
use crate::payload::Json;

/// A checkpoint to be recorded: output or error.
#[derive(Debug)]
pub(crate) struct NewCheckpoint {
    pub(crate) run: Uuid,
    pub(crate) attempt: i32,
    pub(crate) position: std::sync::Arc<str>,
    pub(crate) name: std::borrow::Cow<'static, str>,
    pub(crate) output: Option<Json>,
    pub(crate) error: Option<Json>,
    pub(crate) elapsed_ms: i32,
}

/// An outcome to be recorded.
#[derive(Debug)]
pub(crate) struct NewOutcome {
    pub(crate) run: Uuid,
    pub(crate) attempt: i32,
    pub(crate) status: &'static str,
    pub(crate) output: Option<Json>,
    pub(crate) error: Option<Json>,
}

/// Records a batch; returns the runs whose claim this worker no longer holds.
pub(crate) async fn flush(
    session: &Session,
    schema: &Schema,
    worker: i64,
    checkpoints: &[&NewCheckpoint],
    outcomes: &[&NewOutcome],
) -> Result<Vec<Uuid>> {
    let runs: Vec<Uuid> = checkpoints.iter().map(|c| c.run).collect();
    let attempts: Vec<i32> = checkpoints.iter().map(|c| c.attempt).collect();
    let positions: Vec<&str> = checkpoints.iter().map(|c| &*c.position).collect();
    let names: Vec<&str> = checkpoints.iter().map(|c| &*c.name).collect();
    let outputs: Vec<Option<JsonText<&str>>> =
        checkpoints.iter().map(|c| c.output.as_deref().map(JsonText)).collect();
    let errors: Vec<Option<JsonText<&str>>> =
        checkpoints.iter().map(|c| c.error.as_deref().map(JsonText)).collect();
    let elapsed: Vec<i32> = checkpoints.iter().map(|c| c.elapsed_ms).collect();
    let ended: Vec<Uuid> = outcomes.iter().map(|o| o.run).collect();
    let ended_attempts: Vec<i32> = outcomes.iter().map(|o| o.attempt).collect();
    let statuses: Vec<&str> = outcomes.iter().map(|o| o.status).collect();
    let ended_outputs: Vec<Option<JsonText<&str>>> =
        outcomes.iter().map(|o| o.output.as_deref().map(JsonText)).collect();
    let ended_errors: Vec<Option<JsonText<&str>>> =
        outcomes.iter().map(|o| o.error.as_deref().map(JsonText)).collect();
    let row = session
        .query_one(
            &schema.sql("select ambo.flush($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"),
            &[
                (&worker, Type::INT8),
                (&runs, Type::UUID_ARRAY),
                (&attempts, Type::INT4_ARRAY),
                (&positions, Type::TEXT_ARRAY),
                (&names, Type::TEXT_ARRAY),
                (&outputs, Type::JSON_ARRAY),
                (&errors, Type::JSON_ARRAY),
                (&elapsed, Type::INT4_ARRAY),
                (&ended, Type::UUID_ARRAY),
                (&ended_attempts, Type::INT4_ARRAY),
                (&statuses, Type::TEXT_ARRAY),
                (&ended_outputs, Type::JSON_ARRAY),
                (&ended_errors, Type::JSON_ARRAY),
            ],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

/// Which facts of these runs the database holds: position (`None` for an outcome) and attempt.
pub(crate) async fn recorded(
    session: &Session,
    schema: &Schema,
    runs: &[Uuid],
) -> Result<Vec<(Uuid, Option<String>, i32)>> {
    let rows =
        session.query(&schema.sql("select * from ambo.recorded($1)"), &[(&runs, Type::UUID_ARRAY)]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)
}
