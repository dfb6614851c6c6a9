//! What workers say of their workflows.

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::JsonText;
use crate::admin::WorkflowSummary;
use crate::error::Result;
use crate::graph::Shape;
use crate::workflow::Registry;

/// A workflow as it is declared.
#[derive(Serialize)]
struct Declaration<'a> {
    name: &'a str,
    input: &'a str,
    output: &'a str,
    tries: i64,
    graph: Option<&'a Shape>,
}

/// Says what a worker knows.
pub(crate) async fn declare(
    session: &Session,
    schema: &Schema,
    version: &str,
    registry: &Registry,
) -> Result<()> {
    let declared: Vec<Declaration<'_>> = registry
        .all()
        .map(|(name, known)| Declaration {
            name,
            input: &known.about.input,
            output: &known.about.output,
            tries: known.retry.attempts_max().into(),
            graph: known.about.shape.as_ref(),
        })
        .collect();
    let declared = JsonText(serde_json::to_string(&declared)?);
    let sql = schema.sql("select ambo.declare_workflows($1, $2)::text");
    session.query(&sql, &[(&version, Type::TEXT), (&declared, Type::JSON)]).await.map(drop)
}

/// The workflows that are known, or the one of this name.
pub(crate) async fn list(
    session: &Session,
    schema: &Schema,
    name: Option<&str>,
) -> Result<Vec<WorkflowSummary>> {
    let sql = schema.sql("select * from ambo.list_workflows($1)");
    let rows = session.query(&sql, &[(&name, Type::TEXT)]).await?;
    rows.iter().map(read).collect::<Result<_, tokio_postgres::Error>>().map_err(from_driver)
}

fn read(row: &Row) -> Result<WorkflowSummary, tokio_postgres::Error> {
    let graph: Option<JsonText<Box<str>>> = row.try_get(6)?;
    Ok(WorkflowSummary {
        name: row.try_get(0)?,
        declared_at: row.try_get(1)?,
        version: row.try_get(2)?,
        input: row.try_get(3)?,
        output: row.try_get(4)?,
        tries: row.try_get(5)?,
        // One of a newer version that this one cannot read is not shown.
        graph: graph.and_then(|graph| serde_json::from_str(&graph.0).ok()),
        workers: row.try_get(7)?,
        versions: row.try_get(8)?,
    })
}
