//! tokio-postgres: clients and transactions.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, GenericClient, Statement, Transaction};

use super::{Call, Database, Isolation, Row, Token};
use crate::error::{Code, Error, Result};
use crate::store::connect::from_driver;

async fn call(client: &impl GenericClient, sql: &str, args: &[Option<String>]) -> Result<Row> {
    let params: Vec<(&(dyn ToSql + Sync), Type)> =
        args.iter().map(|arg| (arg as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = client.query_typed(sql, &params).await.map_err(from_driver)?;
    rows.first().map(texts).transpose().map(Option::unwrap_or_default)
}

fn texts(row: &tokio_postgres::Row) -> Result<Row> {
    (0..row.len()).map(|column| row.try_get(column).map_err(from_driver)).collect()
}

impl Call for &Client {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(self, sql, args).await
    }
}

impl Call for &CachingClient {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
        call(&self.client, sql, args).await
    }
}

impl Call for &Transaction<'_> {
    async fn call(self, sql: &str, args: &[Option<String>]) -> Result<Row> {
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
    idle: std::sync::Mutex<Vec<CachingClient>>,
    room: Arc<Semaphore>,
    prepares: bool,
}

/// A `tokio_postgres::Client` that knows what is prepared on it: what the body of a transaction step works with.
#[derive(Debug)]
pub struct CachingClient {
    client: Client,
    /// A std mutex: never held across an await.
    statements: std::sync::Mutex<HashMap<String, Statement>>,
}

impl CachingClient {
    fn statements(&self) -> std::sync::MutexGuard<'_, HashMap<String, Statement>> {
        self.statements.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Prepares a statement once a connection. For constants: what is prepared stays for as long as the connection.
    ///
    /// # Errors
    /// Those of `tokio_postgres::Client::prepare`.
    pub async fn prepare_cached(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let known = self.statements().get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.statements().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl std::ops::Deref for CachingClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for CachingClient {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
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
        TokioPostgres { open, idle: std::sync::Mutex::default(), room, prepares: true }
    }

    /// How many connections there are at most, at least 1; a step that finds none waits. Default: 16.
    pub fn max_connections(mut self, limit: usize) -> Self {
        self.room = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        self
    }

    /// Ambo's own statements on these connections are not prepared: for a pooler that does not carry prepared statements
    /// from one transaction to the next. Default: they are prepared, once a connection.
    pub fn unprepared(mut self) -> Self {
        self.prepares = false;
        self
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<CachingClient>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn take(self: &Arc<Self>) -> Result<Opened> {
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
            None => {
                let client = (self.open)().await.map_err(from_driver)?;
                CachingClient { client, statements: std::sync::Mutex::default() }
            }
        };
        Ok(Opened { client, home: self.clone(), room })
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
    client: CachingClient,
    home: Arc<TokioPostgres>,
    room: OwnedSemaphorePermit,
}

impl std::ops::Deref for Opened {
    type Target = CachingClient;

    fn deref(&self) -> &CachingClient {
        &self.client
    }
}

impl std::ops::DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut CachingClient {
        &mut self.client
    }
}

impl Opened {
    async fn end(self, verb: &str) -> Result<()> {
        self.client.batch_execute(verb).await.map_err(from_driver)?;
        self.put_back();
        Ok(())
    }

    fn put_back(self) {
        self.home.idle().push(self.client);
        drop(self.room);
    }

    /// A statement of ours; `None` where they are not to be prepared.
    async fn prepare(&self, sql: &str) -> Result<Option<Statement>> {
        if !self.home.prepares {
            return Ok(None);
        }
        self.client.prepare_cached(sql).await.map(Some).map_err(from_driver)
    }

    async fn query(&self, statement: Option<&Statement>, sql: &str, args: &[Option<String>]) -> Result<Row> {
        let Some(statement) = statement else { return call(&*self.client, sql, args).await };
        let params: Vec<&(dyn ToSql + Sync)> = args.iter().map(|arg| arg as _).collect();
        let rows = self.client.query(statement, &params).await.map_err(from_driver)?;
        rows.first().map(texts).transpose().map(Option::unwrap_or_default)
    }
}

impl Database for Arc<TokioPostgres> {
    type Connection = Opened;

    async fn begin(&self, isolation: Isolation, _: Token) -> Result<Opened> {
        let opened = self.take().await?;
        opened.batch_execute(isolation.begin()).await.map_err(from_driver)?;
        Ok(opened)
    }

    async fn call(opened: &mut Opened, sql: &str, args: &[Option<String>], _: Token) -> Result<Row> {
        call(&*opened.client, sql, args).await
    }

    async fn commit(opened: Opened, _: Token) -> Result<()> {
        opened.end("commit").await
    }

    async fn rollback(opened: Opened, _: Token) {
        // If it cannot be rolled back the connection is gone, and the transaction with it.
        let _ = opened.end("rollback").await;
    }

    async fn begin_with(
        &self,
        isolation: Isolation,
        sql: &str,
        args: &[Option<String>],
        _: Token,
    ) -> Result<(Opened, Result<Row>)> {
        let opened = self.take().await?;
        let statement = opened.prepare(sql).await?;
        // Sent in this order, answered in this order: one round trip.
        let begin = opened.batch_execute(isolation.begin());
        let (begun, row) = tokio::join!(biased; begin, opened.query(statement.as_ref(), sql, args));
        begun.map_err(from_driver)?;
        Ok((opened, row))
    }

    async fn commit_with(opened: Opened, sql: &str, args: &[Option<String>], _: Token) -> Result<()> {
        // A body that left its transaction aborted is found out here.
        let statement = match opened.prepare(sql).await {
            Ok(statement) => statement,
            Err(error) => {
                let _ = opened.end("rollback").await;
                return Err(error);
            }
        };
        // The commit of a transaction in which the call failed is a rollback.
        let last = opened.query(statement.as_ref(), sql, args);
        let (row, ended) = tokio::join!(biased; last, opened.batch_execute("commit"));
        if ended.is_ok() {
            opened.put_back();
        }
        row?;
        ended.map_err(from_driver)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        from_driver(error)
    }
}
