//! SeaORM: connections and transactions. Its driver is sqlx.

use std::ops::{Deref, DerefMut};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, IsolationLevel, QueryResult,
    RuntimeErr, Statement, TransactionTrait,
};

use super::{Call, Database, Isolation, Row, Token};
use crate::error::{Code, Error, Result};

async fn call(connection: &impl ConnectionTrait, sql: &str, args: &[Option<String>]) -> Result<Row> {
    if connection.get_database_backend() != DbBackend::Postgres {
        return Err(Error::new(Code::Configuration, "Ambo needs a connection to PostgreSQL"));
    }
    let values = args.iter().map(|arg| arg.clone().into());
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    let row = connection.query_one_raw(statement).await.map_err(Error::from)?;
    row.as_ref().map(texts).transpose().map(Option::unwrap_or_default)
}

fn texts(row: &QueryResult) -> Result<Row> {
    let columns = row.column_names().len();
    (0..columns).map(|column| row.try_get_by_index(column).map_err(Error::from)).collect()
}

impl Call for &DatabaseConnection {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

impl Call for &DatabaseTransaction {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

/// An open transaction, for `&*tx` in the body of a transaction step.
#[derive(Debug)]
pub struct Opened(DatabaseTransaction);

impl Deref for Opened {
    type Target = DatabaseTransaction;

    fn deref(&self) -> &DatabaseTransaction {
        &self.0
    }
}

impl DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut DatabaseTransaction {
        &mut self.0
    }
}

impl Database for DatabaseConnection {
    type Connection = Opened;

    async fn begin(&self, isolation: Isolation, _: Token) -> Result<Opened> {
        let level = match isolation {
            Isolation::ReadCommitted => IsolationLevel::ReadCommitted,
            Isolation::RepeatableRead => IsolationLevel::RepeatableRead,
            Isolation::Serializable => IsolationLevel::Serializable,
        };
        let begun = self.begin_with_config(Some(level), None).await;
        begun.map(Opened).map_err(Error::from)
    }

    async fn call(opened: &mut Opened, sql: &str, args: &[Option<String>], _: Token) -> Result<Row> {
        call(&opened.0, sql, args).await
    }

    async fn commit(opened: Opened, _: Token) -> Result<()> {
        opened.0.commit().await.map_err(Error::from)
    }

    async fn rollback(opened: Opened, _: Token) {
        // If it cannot be rolled back the connection is gone, and the transaction with it.
        let _ = opened.0.rollback().await;
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let converted = match &error {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => super::sqlx::convert(error),
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Error::new(Code::Unavailable, error.to_string()),
            _ => Error::new(Code::Database, error.to_string()),
        };
        converted.with_source(error)
    }
}
