//! The caller's own connection or transaction, whatever driver it belongs to.
//!
//! All that Ambo does there is one call of a SQL function at a time, text in and text out, so an adapter is a few
//! lines and driver types appear nowhere else.

#[cfg(feature = "diesel-async")]
mod diesel_async;
#[cfg(feature = "sea-orm")]
mod sea_orm;
#[cfg(any(feature = "sqlx", feature = "sea-orm"))]
mod sqlx;
mod tokio_postgres;

pub use self::tokio_postgres::{CachingClient, TokioPostgres};

use std::future::Future;

use crate::error::{Code, Error, Result};

/// Where an enqueue goes: a connection or an open transaction of the caller's, or the [`Client`](crate::Client).
///
/// Implemented for `&mut sqlx::PgConnection`, `&mut sqlx::Transaction<Postgres>`, `&sqlx::PgPool`,
/// `&tokio_postgres::{Client, Transaction}`, `&mut diesel_async::AsyncPgConnection` and
/// `&sea_orm::{DatabaseConnection, DatabaseTransaction}`, each behind the feature named after the driver. Sealed.
#[diagnostic::on_unimplemented(
    message = "Ambo cannot enqueue on `{Self}`",
    note = "pass the caller's transaction or connection (`&mut *tx` with sqlx, `&tx` with tokio-postgres or SeaORM, \
            `&mut conn` with diesel-async, with the feature of that name), or `&client`"
)]
pub trait On: sealed::Enqueue + Send {}
impl<C: sealed::Enqueue + Send> On for C {}

/// A database in which transaction steps run: opens a transaction and commits it. Sealed; implemented for the
/// pools of the drivers named at [`On`].
#[diagnostic::on_unimplemented(
    message = "Ambo cannot run a transaction step in `{Self}`",
    note = "pass the pool of the driver, with the feature of its name: `sqlx::PgPool`, `sea_orm::DatabaseConnection`, \
            `diesel_async::pooled_connection::deadpool::Pool`, or `std::sync::Arc<ambo::TokioPostgres>`"
)]
pub trait Database: Clone + Send + Sync + 'static {
    /// What the body of the step works with.
    type Connection: std::ops::DerefMut + Send + 'static;

    #[doc(hidden)]
    fn begin(
        &self,
        isolation: Isolation,
        _: sealed::Token,
    ) -> impl Future<Output = Result<Self::Connection>> + Send;

    #[doc(hidden)]
    fn call(
        connection: &mut Self::Connection,
        sql: &str,
        args: &[Option<String>],
        _: sealed::Token,
    ) -> impl Future<Output = Result<Row>> + Send;

    #[doc(hidden)]
    fn commit(connection: Self::Connection, _: sealed::Token) -> impl Future<Output = Result<()>> + Send;

    #[doc(hidden)]
    fn rollback(connection: Self::Connection, _: sealed::Token) -> impl Future<Output = ()> + Send;

    /// [`begin`](Database::begin) and the first call, in one round trip where the driver can. If the call fails the
    /// transaction is still open.
    #[doc(hidden)]
    fn begin_with(
        &self,
        isolation: Isolation,
        sql: &str,
        args: &[Option<String>],
        token: sealed::Token,
    ) -> impl Future<Output = Result<(Self::Connection, Result<Row>)>> + Send {
        async move {
            let mut connection = self.begin(isolation, token).await?;
            let row = Self::call(&mut connection, sql, args, token).await;
            Ok((connection, row))
        }
    }

    /// The last call and [`commit`](Database::commit), in one round trip where the driver can. If the call fails the
    /// transaction is rolled back.
    #[doc(hidden)]
    fn commit_with(
        mut connection: Self::Connection,
        sql: &str,
        args: &[Option<String>],
        token: sealed::Token,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            match Self::call(&mut connection, sql, args, token).await {
                Ok(_) => Self::commit(connection, token).await,
                Err(error) => {
                    Self::rollback(connection, token).await;
                    Err(error)
                }
            }
        }
    }
}

/// The isolation of a transaction step. Conflicts that it causes are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Each statement sees what was committed before it: the default.
    #[default]
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if transactions ran one after the other.
    Serializable,
}

impl Isolation {
    /// The statement that opens a transaction so.
    pub(crate) const fn begin(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        }
    }
}

pub(crate) use sealed::{Call, Row, Token};

/// Whether there is no such schema, function or table.
pub(crate) fn is_missing(error: &Error) -> bool {
    matches!(error.sqlstate(), Some("3F000" | "42883" | "42P01" | "42703"))
}

/// In a statement of ours only what is ours can be missing, whatever the schema is called.
fn missing(error: Error) -> Error {
    if !is_missing(&error) || error.code() == Code::SchemaMismatch {
        return error;
    }
    let text = "the database holds no schema of Ambo that fits, by that name; run: ambo migrate";
    let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
    Error::new(Code::SchemaMismatch, text).with_sqlstate(&sqlstate).with_source(error)
}

/// What a server refused, as a user's driver reports it; `table`: see [`classify`](crate::store::connect::classify).
#[cfg(any(feature = "sqlx", feature = "sea-orm", feature = "diesel-async"))]
fn refused(sqlstate: &str, message: &str, hint: Option<&str>, table: Option<&str>) -> Error {
    let code = crate::store::connect::classify(sqlstate, message, table);
    let text = match (code, hint) {
        (Code::SchemaMismatch, _) => {
            "the database holds no schema of Ambo that fits; run: ambo migrate".to_owned()
        }
        (_, Some(hint)) => format!("{message} ({hint})"),
        (_, None) => message.to_owned(),
    };
    Error::new(code, text).with_sqlstate(sqlstate)
}

pub(crate) mod sealed {
    //! What only Ambo implements and calls.

    use super::{Future, Result, missing};
    use crate::enqueue::Enqueued;
    use crate::store::Schema;
    use crate::store::enqueue::NewRun;
    use crate::vault::Vault;

    /// The columns of a row as text.
    pub(crate) type Row = Vec<Option<String>>;

    /// Shows that a caller is Ambo itself.
    #[derive(Debug, Clone, Copy)]
    pub struct Token(pub(crate) ());

    /// One call of a SQL function: text parameters, the columns of the first row as text.
    pub trait Call {
        /// Calls.
        fn call(self, sql: &str, args: &[Option<String>]) -> impl Future<Output = Result<Row>> + Send;
    }

    /// What can enqueue: whatever can call, and the client.
    pub trait Enqueue {
        /// Calls a function of Ambo's.
        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        fn ask(
            self,
            schema: &Schema,
            sql: &str,
            args: &[Option<String>],
        ) -> impl Future<Output = Result<Row>> + Send;

        /// What becomes of payloads that go there.
        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        fn vault(&self) -> Vault {
            Vault::of_process()
        }

        /// Enqueues one run.
        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        fn enqueue(self, run: NewRun) -> impl Future<Output = Result<Enqueued>> + Send;

        /// Enqueues many runs, at least one, in one call.
        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        fn enqueue_many(self, runs: Vec<NewRun>) -> impl Future<Output = Result<Vec<Enqueued>>> + Send;
    }

    impl<C: Call + Send> Enqueue for C {
        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        async fn ask(self, schema: &Schema, sql: &str, args: &[Option<String>]) -> Result<Row> {
            self.call(&schema.sql(sql), args).await.map_err(missing)
        }

        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        async fn enqueue(self, run: NewRun) -> Result<Enqueued> {
            let (sql, args) = run.call();
            let row = self.call(&run.schema.sql(sql), &args).await.map_err(missing)?;
            Enqueued::read(&row)
        }

        #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
        async fn enqueue_many(self, runs: Vec<NewRun>) -> Result<Vec<Enqueued>> {
            let (sql, args) = NewRun::call_many(&runs);
            let row = self.call(&runs[0].schema.sql(sql), &args).await.map_err(missing)?;
            Enqueued::read_many(&row)
        }
    }
}
