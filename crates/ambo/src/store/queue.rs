//! Queues and their groups.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::admin::{all, json, raw};
use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::JsonText;
use crate::admin::{GroupSummary, Purge, QueueSummary};
use crate::error::{Code, Error, Result};
use crate::payload;
use crate::queue::{BlockedGroup, QueueSettings};

pub(crate) async fn create_queue(session: &Session, schema: &Schema, name: &str) -> Result<bool> {
    let row = session.query_one(&schema.sql("select ambo.create_queue($1)"), &[(&name, Type::TEXT)]).await?;
    row.try_get(0).map_err(from_driver)
}

pub(crate) async fn pause_queue(session: &Session, schema: &Schema, name: &str, paused: bool) -> Result<()> {
    let sql = schema.sql("select ambo.pause_queue($1, $2)::text");
    session.query(&sql, &[(&name, Type::TEXT), (&paused, Type::BOOL)]).await.map(drop)
}

pub(crate) async fn drain_queue(
    session: &Session,
    schema: &Schema,
    name: &str,
    group: Option<&str>,
    draining: bool,
) -> Result<()> {
    let sql = schema.sql("select ambo.drain_queue($1, $2, $3)::text");
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&name, Type::TEXT), (&draining, Type::BOOL), (&group, Type::TEXT)];
    session.query(&sql, &params).await.map(drop)
}

/// One batch of a purge: how many runs it ended or counted, and where to go on.
pub(crate) async fn purge_queue(
    session: &Session,
    schema: &Schema,
    purge: &Purge,
    after: Option<&str>,
) -> Result<(i32, Option<String>)> {
    let row = session
        .query_one(
            &schema.sql(
                "select purged, last from ambo.purge_queue($1, $2, $3, $4, p_after => $5, p_group => $6)",
            ),
            &[
                (&purge.queue, Type::TEXT),
                (&purge.workflow, Type::TEXT),
                (&purge.until, Type::TIMESTAMPTZ),
                (&purge.dry_run, Type::BOOL),
                (&after, Type::TEXT),
                (&purge.group, Type::TEXT),
            ],
        )
        .await?;
    Ok((row.try_get(0).map_err(from_driver)?, row.try_get(1).map_err(from_driver)?))
}

pub(crate) async fn set_queue(
    session: &Session,
    schema: &Schema,
    name: &str,
    settings: &QueueSettings,
) -> Result<()> {
    let settings = JsonText(payload::encode("the settings of a queue", settings)?);
    let sql = schema.sql("select ambo.set_queue($1, $2)::text");
    session.query(&sql, &[(&name, Type::TEXT), (&settings, Type::JSONB)]).await.map(drop)
}

pub(crate) async fn set_group(
    session: &Session,
    schema: &Schema,
    queue: &str,
    group: &str,
    paused: Option<bool>,
    share: Option<u32>,
) -> Result<()> {
    let share = share.map(i32::try_from).transpose().map_err(|_| {
        let text = format!("share is from 1 to 100, not {}", share.unwrap_or_default());
        Error::new(Code::InvalidOption, text)
    })?;
    let sql = schema.sql("select ambo.set_group($1, $2, $3, $4)::text");
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] =
        [(&queue, Type::TEXT), (&group, Type::TEXT), (&paused, Type::BOOL), (&share, Type::INT4)];
    session.query(&sql, &params).await.map(drop)
}

pub(crate) async fn list_groups(
    session: &Session,
    schema: &Schema,
    queue: Option<&str>,
) -> Result<Vec<GroupSummary>> {
    let sql = schema.sql("select * from ambo.list_groups($1)");
    let rows = session.query(&sql, &[(&queue, Type::TEXT)]).await?;
    all(&rows, |row| {
        Ok(GroupSummary {
            queue: row.try_get(0)?,
            group: row.try_get(1)?,
            paused: row.try_get(2)?,
            draining: row.try_get(3)?,
            share: row.try_get(4)?,
            blocked_by: row.try_get::<_, Option<Uuid>>(5)?.map(Into::into),
        })
    })
}

pub(crate) async fn blocked_groups(
    session: &Session,
    schema: &Schema,
    queue: Option<&str>,
) -> Result<Vec<BlockedGroup>> {
    let sql = schema.sql("select * from ambo.blocked_groups($1)");
    let rows = session.query(&sql, &[(&queue, Type::TEXT)]).await?;
    all(&rows, |row| {
        Ok(BlockedGroup {
            queue: row.try_get(0)?,
            group: row.try_get(1)?,
            run: row.try_get::<_, Uuid>(2)?.into(),
            since: row.try_get(3)?,
            error: raw(json(row, 4)?),
        })
    })
}

pub(crate) async fn unblock_group(
    session: &Session,
    schema: &Schema,
    queue: &str,
    group: &str,
) -> Result<bool> {
    let sql = schema.sql("select ambo.unblock_group($1, $2)");
    let row = session.query_one(&sql, &[(&queue, Type::TEXT), (&group, Type::TEXT)]).await?;
    row.try_get(0).map_err(from_driver)
}

pub(crate) async fn list_queues(session: &Session, schema: &Schema) -> Result<Vec<QueueSummary>> {
    let rows = session.query(&schema.sql("select * from ambo.list_queues()"), &[]).await?;
    all(&rows, |row| {
        Ok(QueueSummary {
            name: row.try_get(0)?,
            paused: row.try_get(1)?,
            ready: row.try_get(2)?,
            ready_is_capped: row.try_get(3)?,
            oldest_ready_at: row.try_get(4)?,
            settings: raw(json(row, 5)?),
            draining: row.try_get(6)?,
        })
    })
}
