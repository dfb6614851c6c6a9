//! tokio-postgres: clients and transactions.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, Row, Transaction};

use super::{Call, Database, Isolation, Token};
use crate::error::{Code, Error, Result};
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

/// A source of tokio-postgres connections for transaction steps: opens them by a function of yours, and keeps those
/// whose transaction has ended. Cheap to clone within its `Arc`.
///
/// # Example
/// ```no_run
/// # use std::sync::Arc;
/// let database = Arc::new(ambo::TokioPostgres::new(|| async {
///     let (client, connection) = tokio_postgres::connect("host=localhost", tokio_postgres::NoTls).await?;
///     tokio::spawn(connection);
///     Ok(client)
/// }));
/// ```
pub struct TokioPostgres {
    open: Opener,
    /// A std mutex: never held across an await.
    idle: std::sync::Mutex<Vec<Client>>,
    room: Arc<Semaphore>,
}

type Opener = Box<
    dyn Fn() -> futures_util::future::BoxFuture<'static, Result<Client, tokio_postgres::Error>> + Send + Sync,
>;

/// Connections at once, unless said otherwise.
const CONNECTIONS: usize = 16;

impl TokioPostgres {
    /// Connections come from `open`, which also spawns their driving tasks. There are 16 of them at most.
    pub fn new<F, Fut>(open: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Client, tokio_postgres::Error>> + Send + 'static,
    {
        let open: Opener = Box::new(move || Box::pin(open()));
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        TokioPostgres { open, idle: std::sync::Mutex::default(), room }
    }

    /// How many connections there are at most, at least 1; a step that finds none waits. Default: 16.
    pub fn max_connections(mut self, limit: usize) -> Self {
        self.room = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        self
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl std::fmt::Debug for TokioPostgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokioPostgres").field("idle", &self.idle().len()).finish_non_exhaustive()
    }
}

/// A client with a transaction open. Dropped, it is closed: only a client whose transaction is known to have ended goes
/// back to where it came from.
#[derive(Debug)]
pub struct Opened {
    client: Client,
    home: Arc<TokioPostgres>,
    room: OwnedSemaphorePermit,
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
        self.home.idle().push(self.client);
        drop(self.room);
        Ok(())
    }
}

impl Database for Arc<TokioPostgres> {
    type Connection = Opened;

    async fn begin(&self, isolation: Isolation, _: Token) -> Result<Opened> {
        let room = self.room.clone().acquire_owned().await;
        let room =
            room.map_err(|_| Error::new(Code::Configuration, "the source of connections is closed"))?;
        // Of those that were cut while they were idle, none is used.
        let kept = {
            let mut idle = self.idle();
            idle.retain(|client| !client.is_closed());
            idle.pop()
        };
        let client = match kept {
            Some(client) => client,
            None => (self.open)().await.map_err(from_driver)?,
        };
        client.batch_execute(isolation.begin()).await.map_err(from_driver)?;
        Ok(Opened { client, home: self.clone(), room })
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
