//! Why a run is not running.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::admin::all;
use super::connect::Session;
use super::schema::Schema;
use crate::admin::Reason;
use crate::error::Result;

pub(crate) async fn why_run(session: &Session, schema: &Schema, run: Uuid) -> Result<Vec<Reason>> {
    let rows = session.query(&schema.sql("select * from ambo.why_run($1)"), &[(&run, Type::UUID)]).await?;
    all(&rows, |row| {
        Ok(Reason {
            reason: row.try_get(0)?,
            explanation: row.try_get(1)?,
            run: row.try_get::<_, Option<Uuid>>(2)?.map(Into::into),
            until: row.try_get(3)?,
        })
    })
}
