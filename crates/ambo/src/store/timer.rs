//! What becomes ready when its time comes.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use crate::error::Result;

/// What a look for due timers did, and where the next one goes on.
#[derive(Debug)]
pub(crate) struct Fired {
    pub(crate) count: i32,
    /// For the next look: what it holds is the affair of the SQL.
    pub(crate) mark: String,
    /// Until the next one is due; zero where there are more, none where it is not soon.
    pub(crate) wait: Option<Duration>,
}

/// Makes due timers ready, up to `limit`. After a look whose answer was lost, the mark before it will do.
pub(crate) async fn fire(
    session: &Session,
    schema: &Schema,
    limit: i32,
    mark: Option<&str>,
) -> Result<Fired> {
    let sql = schema.sql("select fired, mark::text, wait_ms from ambo.fire_timers($1, $2::text::json)");
    let row = session.query_one(&sql, &[(&limit, Type::INT4), (&mark, Type::TEXT)]).await?;
    let read = || -> Result<_, tokio_postgres::Error> {
        let wait = row.try_get::<_, Option<i64>>(2)?.map(|ms| Duration::from_millis(ms.unsigned_abs()));
        Ok(Fired { count: row.try_get(0)?, mark: row.try_get(1)?, wait })
    };
    read().map_err(from_driver)
}
