//! tokio-postgres: clients and transactions.

use std::future::Future;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, Row, Transaction};

use super::{Call, Database, Isolation, Token};
use crate::error::{Error, Result};
use crate::store::connect::from_driver;

async fn call(
    client: &impl GenericClient,
    sql: &str,
    args: &[Option<String>],
) -> Result<Vec<Option<String>>> {
    let params: Vec<(&(dyn ToSql + Sync), Type)> =
        args.iter().map(|arg| (arg as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = client.query_typed(sql, &params).await.map_err(from_driver)?;
    rows.first().map(texts).transpose().map(Option::unwrap_or_default)
}

fn texts(row: &Row) -> Result<Vec<Option<String>>> {
    (0..row.len()).map(|column| row.try_get(column).map_err(from_driver)).collect()
}

impl Call for &Client {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Vec<Option<String>>> {
        call(self, sql, args).await
    }
}

impl Call for &Transaction<'_> {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Vec<Option<String>>> {
        call(self, sql, args).await
    }
}

/// A source of tokio-postgres connections for transaction steps: opens one by a function of yours, keeps those that
/// were given back, up to `idle` of them.
pub struct TokioPostgres {
    open: Opener,
    idle: std::sync::Mutex<Vec<Client>>,
    idle_max: usize,
}

type Opener = Box<
    dyn Fn() -> futures_util::future::BoxFuture<'static, Result<Client, tokio_postgres::Error>> + Send + Sync,
>;

impl TokioPostgres {
    /// Connections come from `open`, which also spawns their driving tasks. Up to 8 idle ones are kept.
    pub fn new<F, Fut>(open: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Client, tokio_postgres::Error>> + Send + 'static,
    {
        let open: Opener = Box::new(move || Box::pin(open()));
        TokioPostgres { open, idle: std::sync::Mutex::default(), idle_max: 8 }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl std::fmt::Debug for TokioPostgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokioPostgres").field("idle_max", &self.idle_max).finish_non_exhaustive()
    }
}

/// A client with a transaction open, which goes back to where it came from.
#[derive(Debug)]
pub struct Opened {
    client: Client,
    home: std::sync::Arc<TokioPostgres>,
}

impl std::ops::Deref for Opened {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Opened {
    async fn end(self, verb: &str) -> Result<()> {
        self.client.batch_execute(verb).await.map_err(from_driver)?;
        let mut idle = self.home.idle();
        if idle.len() < self.home.idle_max {
            idle.push(self.client);
        }
        Ok(())
    }
}

impl Database for std::sync::Arc<TokioPostgres> {
    type Connection = Opened;

    async fn begin(&self, isolation: Isolation, _: Token) -> Result<Opened> {
        let kept = self.idle().pop().filter(|client| !client.is_closed());
        let client = match kept {
            Some(client) => client,
            None => (self.open)().await.map_err(from_driver)?,
        };
        client.batch_execute(isolation.begin()).await.map_err(from_driver)?;
        Ok(Opened { client, home: self.clone() })
    }

    async fn call(
        opened: &mut Opened,
        sql: &str,
        args: &[Option<String>],
        _: Token,
    ) -> Result<Vec<Option<String>>> {
        call(&opened.client, sql, args).await
    }

    async fn commit(opened: Opened, _: Token) -> Result<()> {
        opened.end("commit").await
    }

    async fn rollback(opened: Opened, _: Token) {
        // If it cannot be rolled back the connection is gone, and the transaction with it.
        let _ = opened.end("rollback").await;
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        from_driver(error)
    }
}
