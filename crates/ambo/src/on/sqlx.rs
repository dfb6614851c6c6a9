//! sqlx: connections, transactions, pools.

use sqlx::postgres::{PgConnection, PgDatabaseError, PgPool, PgRow};
use sqlx::{Executor, Postgres, Row as _, Transaction};

use super::{Call, Database, Isolation, Row, Token, refused};
use crate::error::{Code, Error, Result};

async fn call<'c>(
    executor: impl Executor<'c, Database = Postgres>,
    sql: &str,
    args: &[Option<String>],
) -> Result<Row> {
    // The SQL is a constant of ours with the schema name put in; values are bound.
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for arg in args {
        query = query.bind(arg.as_deref());
    }
    let row = query.fetch_optional(executor).await.map_err(Error::from)?;
    row.as_ref().map(texts).transpose().map(Option::unwrap_or_default)
}

fn texts(row: &PgRow) -> Result<Row> {
    (0..row.len()).map(|column| row.try_get(column).map_err(Error::from)).collect()
}

impl Call for &mut PgConnection {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

impl Call for &mut Transaction<'_, Postgres> {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(&mut **self, sql, args).await
    }
}

impl Call for &PgPool {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

impl Database for PgPool {
    type Connection = Transaction<'static, Postgres>;

    async fn begin(&self, isolation: Isolation, _: Token) -> Result<Self::Connection> {
        self.begin_with(isolation.begin()).await.map_err(Error::from)
    }

    async fn call(
        connection: &mut Self::Connection,
        sql: &str,
        args: &[Option<String>],
        _: Token,
    ) -> Result<Row> {
        call(&mut **connection, sql, args).await
    }

    async fn commit(connection: Self::Connection, _: Token) -> Result<()> {
        connection.commit().await.map_err(Error::from)
    }

    async fn rollback(connection: Self::Connection, _: Token) {
        // If it cannot be rolled back the connection is gone, and the transaction with it.
        let _ = connection.rollback().await;
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let converted = convert(&error);
        converted.with_source(error)
    }
}

/// Classifies what the driver reports. The message of the server is kept, its detail (which may quote rows) not.
pub(super) fn convert(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(db) => {
            let sqlstate = db.code().unwrap_or_default();
            let hint = db.try_downcast_ref::<PgDatabaseError>().and_then(|db| db.hint());
            refused(&sqlstate, db.message(), hint, db.table().filter(|_| db.constraint().is_none()))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Tls(_) => Error::new(Code::Unavailable, error.to_string()),
        _ => Error::new(Code::Database, error.to_string()),
    }
}
