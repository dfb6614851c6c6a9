//! Transaction steps: the user's SQL and the checkpoint in one commit, fenced, exactly once.

use std::any::Any;
use std::borrow::Cow;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use super::step::replay;
use crate::engine::run::{Run, Stop};
use crate::engine::{clock, executor, failpoint};
use crate::error::{ApplicationError, Code, Error, Failure, Result, to_error, to_failure};
use crate::on::{Database, Isolation, Token};
use crate::payload::{self, Json};
use crate::retry::Retry;
use crate::store::connect::from_driver;

/// A transaction step that was built: configure it, then [`run`](TransactionStep::run) it.
#[must_use = "a transaction step does nothing until it is run"]
#[derive(Debug)]
pub struct TransactionStep<'a> {
    run: &'a Arc<Run>,
    position: Arc<str>,
    name: Cow<'static, str>,
    isolation: Isolation,
    retry: Retry,
    timeout: Option<Duration>,
}

/// The open transaction, as the body of a transaction step has it: `&mut *tx` is the driver's own connection.
///
/// It must not be committed or rolled back by hand: that is found out, and stops the run (`AMBO031`).
#[derive(Debug)]
pub struct Tx<C: Send> {
    connection: Option<C>,
    home: Arc<Mutex<Option<C>>>,
}

/// How one attempt ended.
enum Ended<T, E> {
    /// For good: with the result, recorded by the commit, or with a failure, still to be recorded.
    Committed(T),
    Failed(Failure<E>),
    /// Nothing took effect, for a reason that passes: conflict, or the database away.
    Again(Error),
    /// The run is not ours any more, or must not go on.
    Stopped(Stop),
}

impl<'a> TransactionStep<'a> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, name: Cow<'static, str>) -> Self {
        let isolation = Isolation::default();
        TransactionStep { run, position, name, isolation, retry: Retry::none(), timeout: None }
    }

    /// The isolation of the transaction. Default: read committed.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// How an attempt that the application failed is tried again; default: not at all. Conflicts and outages are
    /// tried again in any case, for as long as they last.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// How long the body may take in one attempt; it is rolled back then. Default: no limit, but a transaction that
    /// is idle for a lease is ended by the server.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Runs `body` in a transaction of `database`, which is the database that Ambo lives in, and records its result
    /// in the same commit. The body may be run several times; only one run of it takes effect.
    ///
    /// # Errors
    /// [`Failure::Application`] with the body's error, after a rollback; `Failure::Ambo` for a time limit, a panic,
    /// a result that cannot be recorded, or a cancelled run.
    pub async fn run<D, T, E, F, Fut>(self, database: &D, mut body: F) -> Result<T, Failure<E>>
    where
        D: Database,
        T: Serialize + DeserializeOwned,
        E: ApplicationError,
        F: FnMut(Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(answer) = replay(self.run, &self.position, &self.name).await {
            return answer;
        }
        let span = tracing::info_span!("transaction", position = &*self.position, name = %self.name);
        self.perform(database, &mut body).instrument(span).await
    }

    async fn perform<D, T, E, F, Fut>(self, database: &D, body: &mut F) -> Result<T, Failure<E>>
    where
        D: Database,
        T: Serialize + DeserializeOwned,
        E: ApplicationError,
        F: FnMut(Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let started = Instant::now();
        let (mut tried, mut troubled) = (1, 0u32);
        let failure = loop {
            self.run.barrier().await;
            match self.attempt(database, body, started).await {
                Ended::Committed(value) => {
                    self.run.meters.step_ended(true, started.elapsed());
                    return Ok(value);
                }
                Ended::Stopped(reason) => {
                    self.run.stop(reason);
                    std::future::pending::<()>().await;
                }
                Ended::Again(error) => {
                    self.run.meters.step_retried();
                    tracing::debug!(%error, "the transaction had no effect; trying again");
                    let full = Duration::from_millis(1u64 << troubled.min(10));
                    troubled += 1;
                    tokio::time::sleep(full.mul_f64(0.5 + 0.5 * clock::jitter())).await;
                }
                Ended::Failed(failure) => match self.retry.pause_after(tried, clock::jitter()) {
                    Some(pause) if matches!(failure, Failure::Application(_)) => {
                        tried += 1;
                        tokio::time::sleep(pause).await;
                    }
                    _ => break failure,
                },
            }
            if self.run.is_cancelled() {
                break Failure::Ambo(Error::new(
                    Code::Cancelled,
                    "the run was cancelled between two attempts",
                ));
            }
        };
        self.run.meters.step_ended(false, started.elapsed());
        let error = match failure {
            Failure::Application(error) => to_error(error),
            Failure::Ambo(error) => error,
        };
        self.run.record(self.position, self.name, Err(executor::encode_error(&error)), started.elapsed());
        Err(to_failure(error))
    }

    async fn attempt<D, T, E, F, Fut>(&self, database: &D, body: &mut F, started: Instant) -> Ended<T, E>
    where
        D: Database,
        T: Serialize,
        E: ApplicationError,
        F: FnMut(Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let token = Token(());
        let mut connection = match database.begin(self.isolation, token).await {
            Ok(connection) => connection,
            Err(error) => return self.trouble(error),
        };
        let (backend, xid) = match self.begin::<D>(&mut connection).await {
            Ok(begun) => begun,
            Err(error) => {
                D::rollback(connection, token).await;
                return self.trouble(error);
            }
        };
        failpoint::reach("transaction-begun");
        let home = Arc::new(Mutex::new(None));
        let tx = Tx { connection: Some(connection), home: home.clone() };
        let ended = self.body(body, tx).await;
        let returned = home.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut connection) = returned else {
            return Ended::Failed(Failure::Ambo(Error::new(
                Code::CommittedByHand,
                "the body of the transaction step kept its transaction; it must not outlive the body",
            )));
        };
        let recorded = ended.and_then(|value| {
            payload::encode("the result of the step", &value).map(|json| (value, json)).map_err(Failure::Ambo)
        });
        let (value, json) = match recorded {
            Ok(recorded) => recorded,
            Err(failure) => return self.undo::<D, T, E>(connection, failure).await,
        };
        if let Err(error) = self.finish::<D>(&mut connection, json, started).await {
            D::rollback(connection, token).await;
            return self.trouble(error);
        }
        failpoint::reach("transaction-before-commit");
        match D::commit(connection, token).await {
            Ok(()) => {}
            Err(error) if error.sqlstate().is_some() && !error.is_unavailable() => {
                return self.trouble(error);
            }
            Err(error) => match self.fate(&backend, &xid).await {
                true => {}
                false => return Ended::Again(error),
            },
        }
        failpoint::reach("transaction-committed");
        Ended::Committed(value)
    }

    /// The body, with its time limit; a panic is a failure of the attempt.
    async fn body<C, T, E, F, Fut>(&self, body: &mut F, tx: Tx<C>) -> Result<T, Failure<E>>
    where
        C: Send,
        F: FnMut(Tx<C>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let call = AssertUnwindSafe(async { body(tx).await }).catch_unwind();
        let ended = match self.timeout {
            Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| {
                Failure::Ambo(Error::new(
                    Code::StepTimeout,
                    format!("the transaction took longer than {limit:?}"),
                ))
            })?,
            None => call.await,
        };
        match ended {
            Ok(result) => result.map_err(Failure::Application),
            Err(panic) => Err(Failure::Ambo(executor::panicked("the transaction step", &*panic))),
        }
    }

    async fn begin<D: Database>(&self, connection: &mut D::Connection) -> Result<(String, String)> {
        let sql = "select backend::text, xid::text from ambo.begin_step($1::text::int8, $2::text::uuid, $3::text::int4, $4::text)";
        let args = [
            Some(self.run.worker.to_string()),
            Some(self.run.id.to_string()),
            Some(self.run.attempt.to_string()),
            Some(self.position.to_string()),
        ];
        let mut row =
            D::call(connection, &self.run.target.schema.sql(sql), &args, Token(())).await?.into_iter();
        let mut next =
            || row.next().flatten().ok_or_else(|| Error::new(Code::Database, "begin_step gave no answer"));
        Ok((next()?, next()?))
    }

    async fn finish<D: Database>(
        &self,
        connection: &mut D::Connection,
        output: Json,
        started: Instant,
    ) -> Result<()> {
        let sql = "select ambo.finish_step($1::text::int8, $2::text::uuid, $3::text::int4, $4::text, $5::text, \
                   $6::text::json, null, $7::text::int4)::text";
        let args = [
            Some(self.run.worker.to_string()),
            Some(self.run.id.to_string()),
            Some(self.run.attempt.to_string()),
            Some(self.position.to_string()),
            Some(self.name.to_string()),
            Some(output.into()),
            Some(i32::try_from(started.elapsed().as_millis()).unwrap_or(i32::MAX).to_string()),
        ];
        D::call(connection, &self.run.target.schema.sql(sql), &args, Token(())).await.map(drop)
    }

    /// After a body that failed: rolls back, and makes sure that there was nothing left to roll back by hand.
    async fn undo<D, T, E>(&self, mut connection: D::Connection, failure: Failure<E>) -> Ended<T, E>
    where
        D: Database,
        E: ApplicationError,
    {
        let sql = "select ambo.step_is_open($1::text::uuid, $2::text)::text";
        let args = [Some(self.run.id.to_string()), Some(self.position.to_string())];
        let open = D::call(&mut connection, &self.run.target.schema.sql(sql), &args, Token(())).await;
        D::rollback(connection, Token(())).await;
        if let Ok(answer) = &open
            && answer.first() == Some(&Some("false".to_owned()))
        {
            return Ended::Stopped(Stop::Dead(Error::new(
                Code::CommittedByHand,
                format!(
                    "the body of the transaction step at position {} of run {} ended its transaction by hand",
                    self.position, self.run.id
                ),
            )));
        }
        match &failure {
            Failure::Application(error) if passes(error) => {
                Ended::Again(Error::new(Code::Database, error.to_string()))
            }
            // The connection was cut under the body, whatever it made of that.
            Failure::Application(_) if open.as_ref().is_err_and(Error::is_unavailable) => {
                Ended::Again(Error::new(Code::Unavailable, "the connection was lost within the transaction"))
            }
            _ => Ended::Failed(failure),
        }
    }

    /// What an error of the database, outside the body, means for the step.
    fn trouble<T, E>(&self, error: Error) -> Ended<T, E> {
        match error.code() {
            Code::Fenced => Ended::Stopped(Stop::Fenced),
            Code::CommittedByHand => Ended::Stopped(Stop::Dead(error)),
            _ if error.is_conflict() || error.is_unavailable() => Ended::Again(error),
            _ => Ended::Failed(Failure::Ambo(error)),
        }
    }

    /// A commit whose answer was lost: asks, on a connection of ours, until the transaction is decided.
    async fn fate(&self, backend: &str, xid: &str) -> bool {
        let target = &self.run.target;
        let sql = target.schema.sql("select ambo.step_fate($1::text::int4, $2::text::xid8)").into_owned();
        loop {
            let asked = async {
                let session = target.open("ambo step fate", None).await?;
                let row = session
                    .query_one(
                        &sql,
                        &[
                            (&backend, tokio_postgres::types::Type::TEXT),
                            (&xid, tokio_postgres::types::Type::TEXT),
                        ],
                    )
                    .await?;
                row.try_get::<_, String>(0).map_err(from_driver)
            };
            match asked.await.as_deref() {
                Ok("committed") => return true,
                Ok("aborted") => return false,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "asking for the fate of a commit failed; trying again"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Whether the error of a body says that the same body may succeed: a conflict, or the database away.
fn passes<E: ApplicationError>(error: &E) -> bool {
    (error as &dyn Any)
        .downcast_ref::<Error>()
        .is_some_and(|error| error.is_conflict() || error.is_unavailable())
}

impl<C: Deref + Send> Deref for Tx<C> {
    type Target = C::Target;

    fn deref(&self) -> &C::Target {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("the connection is there until the drop"))
    }
}

impl<C: DerefMut + Send> DerefMut for Tx<C> {
    fn deref_mut(&mut self) -> &mut C::Target {
        self.connection.as_mut().unwrap_or_else(|| unreachable!("the connection is there until the drop"))
    }
}

impl<C: Send> Drop for Tx<C> {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.connection.take();
    }
}
