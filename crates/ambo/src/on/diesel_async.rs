//! diesel-async: connections, and the pool of deadpool.
//!
//! Diesel keeps the kind of an error and not its SQLSTATE. Where the kind says nothing, the SQLSTATE is taken from the
//! message: Ambo's own begin with their code, and those of conflicts are known in English only (`lc_messages`).

use std::num::NonZeroU32;

use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel::row::NamedRow;
use diesel::sql_types::{Nullable, Text, Untyped};
use diesel_async::pooled_connection::deadpool::{Object, Pool, PoolError};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};

use super::{Call, Database, Isolation, Row, Token, refused};
use crate::error::{Code, Error, Result};

/// A statement with its parameters. Unlike `diesel::sql_query` it may be kept prepared: one round trip.
struct Statement<'a> {
    sql: &'a str,
    args: &'a [Option<String>],
}

impl QueryFragment<Pg> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> diesel::QueryResult<()> {
        // Diesel writes the placeholders itself: ours stand in their order, each once.
        let mut rest = self.sql;
        for (n, arg) in self.args.iter().enumerate() {
            let placeholder = format!("${}", n + 1);
            let Some((before, after)) = rest.split_once(&placeholder) else {
                return Err(DieselError::QueryBuilderError(format!("{placeholder} is not there").into()));
            };
            out.push_sql(before);
            out.push_bind_param::<Nullable<Text>, _>(arg)?;
            rest = after;
        }
        out.push_sql(rest);
        Ok(())
    }
}

impl QueryId for Statement<'_> {
    type QueryId = ();

    // Kept by its text, then.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

/// The columns of a row, as text.
struct Texts(Vec<Option<String>>);

impl QueryableByName<Pg> for Texts {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let columns = 0..row.field_count();
        columns
            .map(|column| row.get_value::<Nullable<Text>, _, _>(column))
            .collect::<Result<_, _>>()
            .map(Texts)
    }
}

async fn call(connection: &mut AsyncPgConnection, sql: &str, args: &[Option<String>]) -> Result<Row> {
    let rows: Vec<Texts> = Statement { sql, args }.load(connection).await.map_err(Error::from)?;
    Ok(rows.into_iter().next().map(|row| row.0).unwrap_or_default())
}

impl Call for &mut AsyncPgConnection {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

impl Call for &mut Object<AsyncPgConnection> {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

impl Database for Pool<AsyncPgConnection> {
    type Connection = Object<AsyncPgConnection>;

    async fn begin(&self, isolation: Isolation, _: Token) -> Result<Self::Connection> {
        let mut connection = self.get().await.map_err(Error::from)?;
        AnsiTransactionManager::begin_transaction_sql(&mut *connection, isolation.begin())
            .await
            .map_err(Error::from)?;
        Ok(connection)
    }

    async fn call(
        connection: &mut Self::Connection,
        sql: &str,
        args: &[Option<String>],
        _: Token,
    ) -> Result<Row> {
        call(connection, sql, args).await
    }

    async fn commit(mut connection: Self::Connection, _: Token) -> Result<()> {
        // Diesel commits the innermost: savepoints that the body left open come first.
        while depth(&mut connection)?.is_some() {
            AnsiTransactionManager::commit_transaction(&mut *connection).await.map_err(Error::from)?;
        }
        Ok(())
    }

    async fn rollback(mut connection: Self::Connection, _: Token) {
        // A connection that cannot be rolled back is broken for its pool, which drops it, and the transaction with it.
        while let Ok(Some(_)) = depth(&mut connection) {
            if AnsiTransactionManager::rollback_transaction(&mut *connection).await.is_err() {
                return;
            }
        }
    }
}

/// How deep in savepoints the connection is; 1 is the transaction itself.
fn depth(connection: &mut AsyncPgConnection) -> Result<Option<NonZeroU32>> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(connection);
    status.transaction_depth().map_err(Error::from)
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        let converted = match &error {
            DieselError::DatabaseError(
                DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection,
                info,
            ) => Error::new(Code::Unavailable, info.message()),
            DieselError::DatabaseError(kind, info) => match sqlstate(kind, info.message()) {
                Some(sqlstate) => {
                    let table = info.table_name().filter(|_| info.constraint_name().is_none());
                    refused(sqlstate, info.message(), info.hint(), table)
                }
                None => Error::new(Code::Database, info.message()),
            },
            // The connection was lost, or its transaction, while it had one.
            DieselError::BrokenTransactionManager => Error::new(Code::Unavailable, error.to_string()),
            _ => Error::new(Code::Database, error.to_string()),
        };
        converted.with_source(error)
    }
}

fn sqlstate(kind: &DatabaseErrorKind, message: &str) -> Option<&'static str> {
    Some(match kind {
        DatabaseErrorKind::UniqueViolation => "23505",
        DatabaseErrorKind::ForeignKeyViolation => "23503",
        DatabaseErrorKind::RestrictViolation => "23001",
        DatabaseErrorKind::ExclusionViolation => "23P01",
        DatabaseErrorKind::NotNullViolation => "23502",
        DatabaseErrorKind::CheckViolation => "23514",
        DatabaseErrorKind::SerializationFailure => "40001",
        DatabaseErrorKind::ReadOnlyTransaction => "25006",
        _ => {
            if let Some(code) = message.split(':').next().and_then(Code::parse) {
                return Some(code.sqlstate());
            }
            let known = [
                ("deadlock detected", "40P01"),
                ("stack depth limit exceeded", "54001"),
                ("current transaction is aborted", "25P02"),
                ("terminating connection due to", "57P01"),
                ("canceling statement due to lock timeout", "55P03"),
                ("canceling statement due to", "57014"),
                ("schema \"", "3F000"),
                ("function ", "42883"),
                ("relation \"", "42P01"),
            ];
            return known.into_iter().find(|(begin, _)| message.starts_with(begin)).map(|(_, state)| state);
        }
    })
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        let text = error.to_string();
        Error::new(Code::Unavailable, text).with_source(error)
    }
}
