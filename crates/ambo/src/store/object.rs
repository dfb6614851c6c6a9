//! Objects that payloads lie in: which of them are still referred to.

use jiff::Timestamp;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use crate::error::Result;

/// What was written before is referred to only by what [`kept`] says; `None`: there is no history yet.
pub(crate) async fn horizon(session: &Session, schema: &Schema) -> Result<Option<Timestamp>> {
    let row = session.query_one(&schema.sql("select ambo.object_horizon()"), &[]).await?;
    row.try_get(0).map_err(from_driver)
}

/// The paths that runs of before the horizon refer to.
pub(crate) async fn kept(session: &Session, schema: &Schema) -> Result<Vec<String>> {
    let rows = session.query(&schema.sql("select * from ambo.kept_objects()"), &[]).await?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, tokio_postgres::Error>>().map_err(from_driver)
}
