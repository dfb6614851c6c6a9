//! sqlx: connections, transactions, pools.

use sqlx::postgres::{PgConnection, PgPool, PgRow};
use sqlx::{Executor, Postgres, Row as _, Transaction};

use super::{Call, Database, Isolation, Token};
use crate::error::{Code, Error, Result};
use crate::store::connect::classify;

async fn call<'c>(
    executor: impl Executor<'c, Database = Postgres>,
    sql: &str,
    args: &[Option<String>],
) -> Result<Vec<Option<String>>> {
    // The SQL is a constant of ours with the schema name put in; values are bound.
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for arg in args {
        query = query.bind(arg.as_deref());
    }
    let row = query.fetch_optional(executor).await.map_err(Error::from)?;
    row.as_ref().map(texts).transpose().map(Option::unwrap_or_default)
}

fn texts(row: &PgRow) -> Result<Vec<Option<String>>> {
    (0..row.len()).map(|column| row.try_get(column).map_err(Error::from)).collect()
}

impl Call for &mut PgConnection {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Vec<Option<String>>> {
        call(self, sql, args).await
    }
}

impl Call for &mut Transaction<'_, Postgres> {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Vec<Option<String>>> {
        call(&mut **self, sql, args).await
    }
}

impl Call for &PgPool {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Vec<Option<String>>> {
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
    ) -> Result<Vec<Option<String>>> {
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
        let (code, sqlstate) = match &error {
            sqlx::Error::Database(db) => {
                let sqlstate = db.code().map(|code| code.into_owned());
                (classify(sqlstate.as_deref().unwrap_or(""), db.message()), sqlstate)
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Tls(_) => (Code::Unavailable, None),
            _ => (Code::Database, None),
        };
        let text = match &error {
            sqlx::Error::Database(db) => db.message().to_owned(),
            other => other.to_string(),
        };
        let mut converted = Error::new(code, text).with_source(error);
        if let Some(sqlstate) = sqlstate {
            converted = converted.with_sqlstate(&sqlstate);
        }
        converted
    }
}
