//! Transaction steps, as far as our own connections have a part in them: what became of one whose end is unknown. The
//! rest is said on the user's connection.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use crate::error::Result;

/// What became of the transaction that a step began: `in progress`, `committed`, `by hand` or `aborted`.
/// `ends_attempt`: the attempt of the run that it was to end, if it was.
pub(crate) async fn step_fate(
    session: &Session,
    schema: &Schema,
    (backend, xid): (&str, &str),
    (run, position): (Uuid, &str),
    ends_attempt: Option<i32>,
) -> Result<String> {
    let sql = schema.sql("select ambo.step_fate($1::text::int4, $2::text::xid8, $3, $4, $5)");
    let params = [
        (&backend as _, Type::TEXT),
        (&xid as _, Type::TEXT),
        (&run as _, Type::UUID),
        (&position as _, Type::TEXT),
        (&ends_attempt as _, Type::INT4),
    ];
    session.query_one(&sql, &params).await?.try_get(0).map_err(from_driver)
}
