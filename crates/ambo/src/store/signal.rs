//! Signals and events: sent, looked for, read.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::admin::{all, json, raw};
use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::JsonText;
use crate::admin::WaitingSignal;
use crate::context::update;
use crate::error::Result;
use crate::payload::Json;

/// What a look for a signal found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Something had come for the run since the last look.
    pub(crate) again: bool,
    pub(crate) signal: Option<Sent>,
}

/// A signal as it is recorded.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) seq: i64,
    pub(crate) key: Option<String>,
    pub(crate) payload: Json,
}

/// The next signal of a topic that is not among the consumed.
pub(crate) async fn next(
    session: &Session,
    schema: &Schema,
    run: Uuid,
    topic: &str,
    consumed: &[i64],
) -> Result<Found> {
    let row = session
        .query_one(
            &schema.sql("select again, seq, key, payload from ambo.next_signal($1, $2, $3)"),
            &[(&run, Type::UUID), (&topic, Type::TEXT), (&consumed, Type::INT8_ARRAY)],
        )
        .await?;
    let read = || -> Result<Found, tokio_postgres::Error> {
        let (seq, key) = (row.try_get::<_, Option<i64>>(1)?, row.try_get(2)?);
        let signal = seq.zip(json(&row, 3)?).map(|(seq, payload)| Sent { seq, key, payload });
        Ok(Found { again: row.try_get(0)?, signal })
    };
    read().map_err(from_driver)
}

/// Why somebody asked a run to end, if they said.
pub(crate) async fn cancel_reason(session: &Session, schema: &Schema, run: Uuid) -> Result<Option<String>> {
    let row = session.query_one(&schema.sql("select ambo.cancel_reason($1)"), &[(&run, Type::UUID)]).await?;
    row.try_get(0).map_err(from_driver)
}

/// Asks the children of a failed run to end that it did not detach.
pub(crate) async fn end_children(session: &Session, schema: &Schema, run: Uuid) -> Result<()> {
    session.query_one(&schema.sql("select ambo.end_children($1)::text"), &[(&run, Type::UUID)]).await?;
    Ok(())
}

/// The values that a run published under a key after a number, in order.
pub(crate) async fn events(
    session: &Session,
    schema: &Schema,
    run: Uuid,
    key: &str,
    after: i32,
) -> Result<Vec<(i32, Box<str>)>> {
    let rows = session
        .query(
            &schema.sql("select number, value from ambo.read_events($1, $2, $3)"),
            &[(&run, Type::UUID), (&key, Type::TEXT), (&after, Type::INT4)],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get::<_, JsonText<Box<str>>>(1)?.0)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)
}

/// The keys under which a run has published, each with the number of its last value.
pub(crate) async fn event_keys(session: &Session, schema: &Schema, run: Uuid) -> Result<Vec<(String, i32)>> {
    let sql = schema.sql("select key, number from ambo.list_events($1)");
    let rows = session.query(&sql, &[(&run, Type::UUID)]).await?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    rows.iter().map(read).collect::<Result<_, tokio_postgres::Error>>().map_err(from_driver)
}

/// The last value that a run published under a key, if there is one, and whether it has ended.
pub(crate) async fn present_event(
    session: &Session,
    schema: &Schema,
    run: Uuid,
    key: &str,
) -> Result<(Option<Json>, bool)> {
    let sql = schema.sql("select value, ended from ambo.present_event($1, $2)");
    let row = session.query_one(&sql, &[(&run, Type::UUID), (&key, Type::TEXT)]).await?;
    json(&row, 0).and_then(|value| Ok((value, row.try_get(1)?))).map_err(from_driver)
}

/// Whether a run has ended; `None`: there is no such run.
pub(crate) async fn has_ended(session: &Session, schema: &Schema, run: Uuid) -> Result<Option<bool>> {
    let sql =
        schema.sql("select state in ('succeeded', 'failed', 'cancelled', 'dead') from ambo.run_result($1)");
    let rows = session.query(&sql, &[(&run, Type::UUID)]).await?;
    rows.first().map(|row| row.try_get(0).map_err(from_driver)).transpose()
}

/// The signals that wait for a run, as they are recorded.
pub(crate) async fn list(session: &Session, schema: &Schema, run: Uuid) -> Result<Vec<WaitingSignal>> {
    let sql = schema.sql("select seq, topic, key, sent_at, payload from ambo.list_signals($1)");
    let rows = session.query(&sql, &[(&run, Type::UUID)]).await?;
    all(&rows, |row| {
        let key: Option<String> = row.try_get(2)?;
        let request = key.as_deref().and_then(update::key_in);
        Ok(WaitingSignal {
            number: row.try_get(0)?,
            topic: row.try_get(1)?,
            is_update: request.is_some(),
            key: request.map(str::to_owned).or(key),
            sent_at: row.try_get(3)?,
            payload: raw(json(row, 4)?),
        })
    })
}

/// Takes a signal back; says whether there was one.
pub(crate) async fn drop_signal(session: &Session, schema: &Schema, run: Uuid, seq: i64) -> Result<bool> {
    let sql = schema.sql("select ambo.drop_signal($1, $2)");
    let row = session.query_one(&sql, &[(&run, Type::UUID), (&seq, Type::INT8)]).await?;
    row.try_get(0).map_err(from_driver)
}
