//! Start: run, key and claim in one call, for runs that begin at once in this worker.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::Session;
use super::enqueue::{NewRun, optional, read_ids};
use super::schema::Schema;
use super::types::{Interval, JsonText};
use crate::error::Result;

/// Answers in the order given: the id, and whether the run is new and this worker's.
pub(crate) async fn start(
    session: &Session,
    schema: &Schema,
    worker: i64,
    runs: &[&NewRun],
) -> Result<Vec<(Uuid, bool)>> {
    let workflows: Vec<&str> = runs.iter().map(|run| run.workflow.as_str()).collect();
    let inputs: Vec<JsonText<&str>> = runs.iter().map(|run| JsonText(&*run.input)).collect();
    let queues: Vec<&str> = runs.iter().map(|run| run.queue.as_str()).collect();
    let keys = optional(runs, |run| run.key.as_deref());
    let priorities: Vec<i32> = runs.iter().map(|run| run.priority).collect();
    let attributes = optional(runs, |run| run.attributes.as_deref().map(JsonText));
    let timeouts = optional(runs, |run| run.timeout.map(Interval));
    let attempts: Vec<i32> = runs.iter().map(|run| run.attempts).collect();
    let key_lifetimes = optional(runs, |run| run.key_lifetime.map(Interval));
    let groups = optional(runs, |run| run.terms.group.as_deref());
    let weights = optional(runs, |run| run.terms.weight);
    let rows = session
        .query(
            &schema.sql("select * from ambo.start($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"),
            &[
                (&worker, Type::INT8),
                (&workflows, Type::TEXT_ARRAY),
                (&inputs, Type::JSON_ARRAY),
                (&queues, Type::TEXT_ARRAY),
                (&keys, Type::TEXT_ARRAY),
                (&priorities, Type::INT4_ARRAY),
                (&attributes, Type::JSONB_ARRAY),
                (&timeouts, Type::INTERVAL_ARRAY),
                (&attempts, Type::INT4_ARRAY),
                (&key_lifetimes, Type::INTERVAL_ARRAY),
                (&groups, Type::TEXT_ARRAY),
                (&weights, Type::INT4_ARRAY),
            ],
        )
        .await?;
    read_ids(&rows)
}
