//! What only the databases of `ambo::testing` can be asked: see `sql/testing.sql`.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Session, from_driver};
use super::types::Interval;
use crate::error::Result;

/// Moves the clock. Keys whose lifetime is over then are free at once: a keeper in production may take a minute.
pub(crate) async fn skip_time(session: &Session, span: Duration) -> Result<()> {
    let span = Interval(span);
    session.query("select ambo.skip_time($1)::text", &[(&span, Type::INTERVAL)]).await?;
    session.query("select ambo.expire_keys(100000)", &[]).await.map(drop)
}

/// Lets another worker bury this one at once.
pub(crate) async fn disown_worker(session: &Session, worker: i64) -> Result<()> {
    session.query("select ambo.disown_worker($1)::text", &[(&worker, Type::INT8)]).await.map(drop)
}

/// What is at work, if something is; and how long it is until something is due by itself, if something will be.
pub(crate) async fn at_work(session: &Session) -> Result<(Option<String>, Option<Duration>)> {
    let row = session.query_one("select ambo.run_at_work(), ambo.next_due_us()", &[]).await?;
    let us: Option<i64> = row.try_get(1).map_err(from_driver)?;
    Ok((row.try_get(0).map_err(from_driver)?, us.map(|us| Duration::from_micros(us.unsigned_abs()))))
}
