//! How long what has ended is kept.

use tokio_postgres::types::Type;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::JsonText;
use crate::admin::RetentionSummary;
use crate::error::Result;
use crate::payload;
use crate::retention::Retention;

pub(crate) async fn retention(session: &Session, schema: &Schema) -> Result<RetentionSummary> {
    let row = session.query_one(&schema.sql("select history, dead, keys from ambo.retention()"), &[]).await?;
    let read =
        || Ok(RetentionSummary { history: row.try_get(0)?, dead: row.try_get(1)?, keys: row.try_get(2)? });
    read().map_err(from_driver)
}

pub(crate) async fn set_retention(session: &Session, schema: &Schema, retention: &Retention) -> Result<()> {
    let settings = JsonText(payload::encode("the retention", retention)?);
    let sql = schema.sql("select ambo.set_retention($1)::text");
    session.query(&sql, &[(&settings, Type::JSONB)]).await.map(drop)
}
