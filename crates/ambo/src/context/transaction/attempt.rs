//! One attempt of a transaction step: begin, body, record, commit, and what the end of it was.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Serialize;

use super::place::{Fate, Opened, Opening, Place, Record};
use super::tx::{Tx, lend};
use crate::engine::run::{Run, Stop};
use crate::engine::{executor, failpoint};
use crate::error::{ApplicationError, Code, Error, Failure, Result};
use crate::on::{Database, Isolation, Token};
use crate::payload::Json;
use crate::vault::place::Place as Sealed;

/// How long the answer to a commit is waited for before it counts as lost; then the server is asked, on another
/// connection. Long, because a commit may wait for a replica.
const COMMIT_ANSWER: Duration = Duration::from_secs(30);
/// How long a rollback may take before its backend is ended: a body that ran into its time limit may have left a
/// statement behind.
const ROLLBACK_ANSWER: Duration = Duration::from_secs(2);

/// How one attempt ended.
#[derive(Debug)]
pub(super) enum Ended<T, E> {
    /// It took effect, with this result.
    Committed(T, Json),
    /// An earlier attempt had taken effect, with this result.
    Found(Json),
    /// It had no effect, and the failure is to be recorded.
    Failed(Failure<E>),
    /// It had no effect, for a reason that passes: conflict, or the database away.
    Again(Error),
    /// It had no effect, and its connection was lost while the body ran.
    Cut(Error),
    /// The run is not ours any more, or must not go on.
    Stopped(Stop),
}

/// One attempt.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) place: &'a Place,
    pub(super) isolation: Isolation,
    pub(super) timeout: Option<Duration>,
    pub(super) cancel_at_once: bool,
    pub(super) started: Instant,
}

impl Attempt<'_> {
    pub(super) async fn run<D, T, E, F, Fut>(&self, database: &D, body: &mut F) -> Ended<T, E>
    where
        D: Database,
        T: Serialize,
        E: ApplicationError,
        F: FnMut(Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let (connection, opening) = match self.place.open(database, self.isolation).await {
            Ok(open) => open,
            Err(error) => return trouble(error),
        };
        let opened = match opening {
            Ok(Opening::Open(opened)) => opened,
            Ok(Opening::Done(output)) => {
                D::rollback(connection, Token(())).await;
                return Ended::Found(output);
            }
            Err(error) => {
                let _ = tokio::time::timeout(ROLLBACK_ANSWER, D::rollback(connection, Token(()))).await;
                return trouble(error);
            }
        };
        failpoint::reach("transaction-begun");
        let (tx, home) = lend(connection);
        let ended = self.body(body, tx).await;
        let Some(connection) = home.take() else {
            return Ended::Stopped(Stop::Dead(self.by_hand("kept its transaction beyond its end")));
        };
        let encoded = match ended {
            Ok(value) => self.seal(&value).await.map(|json| (value, json)).map_err(Failure::Ambo),
            Err(failure) => Err(failure),
        };
        let (value, json) = match encoded {
            Ok(encoded) => encoded,
            Err(Failure::Ambo(error)) if error.is_unavailable() => {
                D::rollback(connection, Token(())).await;
                return Ended::Again(error);
            }
            Err(failure) => return self.undo(database, connection, &opened, failure).await,
        };
        let finish =
            finish(self.place.clone(), database.clone(), connection, opened, json.clone(), self.started);
        // From here on it is finished, whatever it allows.
        let mut finish = Undropped::new(&self.place.run, finish);
        match self.place.run.finish(false, Pin::new(&mut finish)).await {
            Ok(()) => Ended::Committed(value, json),
            // Perhaps by a limit that the body has set: not for ever.
            Err(error) if error.sqlstate() == Some("57014") => Ended::Cut(error),
            Err(error) => trouble(error),
        }
    }

    /// What is recorded of a result: in the object store, if it belongs there, before its transaction commits.
    async fn seal<T: Serialize>(&self, value: &T) -> Result<Json> {
        let vault = &self.place.run.vault;
        let json = vault.encode("the result of the step", value)?;
        let sealed_as = match self.place.record {
            Record::Outcome => Sealed::Output(self.place.run.id),
            Record::Checkpoint | Record::Witness => Sealed::Step(&self.place.position),
        };
        vault.seal(&sealed_as, &json).await
    }

    /// The body, with its time limit; a panic is a failure of the attempt.
    async fn body<C, T, E, F, Fut>(&self, body: &mut F, tx: Tx<C>) -> Result<T, Failure<E>>
    where
        C: Send,
        F: FnMut(Tx<C>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let call = AssertUnwindSafe(async { body(tx).await }).catch_unwind();
        let limited = async {
            match self.timeout {
                Some(limit) => tokio::time::timeout(limit, call).await.map_err(|_| {
                    let text = format!("the transaction took longer than {limit:?}");
                    Failure::Ambo(Error::new(Code::StepTimeout, text))
                }),
                None => Ok(call.await),
            }
        };
        let ended = tokio::select! {
            biased;
            ended = limited => ended?,
            why = self.place.run.dropped(self.cancel_at_once) => return Err(Failure::Ambo(why)),
        };
        match ended {
            Ok(result) => result.map_err(Failure::Application),
            Err(panic) => Err(Failure::Ambo(executor::panicked("the transaction step", &*panic))),
        }
    }

    /// After a body that failed: rolls back, and makes sure that there was nothing left to roll back by hand.
    async fn undo<D, T, E>(
        &self,
        database: &D,
        connection: D::Connection,
        opened: &Opened,
        failure: Failure<E>,
    ) -> Ended<T, E>
    where
        D: Database,
        E: ApplicationError,
    {
        let undone = tokio::time::timeout(ROLLBACK_ANSWER, self.roll_back::<D>(connection)).await;
        let (by_hand, cut) = match undone {
            Ok(Ok(by_hand)) => (by_hand, None),
            // The connection is cut: whoever tries again finds the marker. The body may have made of it what it likes.
            Ok(Err(error)) if error.is_unavailable() => (false, Some(error)),
            // It is still busy with a statement of the body, or does not speak: its backend is ended.
            _ => (self.place.fate(database, opened).await == Fate::ByHand, None),
        };
        if by_hand {
            return Ended::Stopped(Stop::Dead(self.by_hand("ended its transaction by hand")));
        }
        match (&failure, cut) {
            (Failure::Application(error), _) if is_conflict(error) => {
                Ended::Again(Error::new(Code::Database, error.to_string()))
            }
            (Failure::Application(_), Some(error)) => Ended::Cut(error),
            (Failure::Application(error), None) if is_unavailable(error) => {
                Ended::Cut(Error::new(Code::Unavailable, error.to_string()))
            }
            _ => Ended::Failed(failure),
        }
    }

    /// Rolls back and answers whether the body had ended the transaction by hand.
    async fn roll_back<D: Database>(&self, mut connection: D::Connection) -> Result<bool> {
        if let Ok(open) = self.place.is_open::<D>(&mut connection).await {
            D::rollback(connection, Token(())).await;
            return Ok(!open);
        }
        // Aborted by an error, so it cannot be asked; after it, the marker of an earlier commit can be seen.
        D::call(&mut connection, "rollback", &[], Token(())).await?;
        let marked = self.place.is_marked::<D>(&mut connection).await?;
        D::rollback(connection, Token(())).await;
        Ok(marked)
    }

    fn by_hand(&self, what: &str) -> Error {
        let Place { run, position, .. } = self.place;
        let text =
            format!("the body of the transaction step at position {position} of run {} {what}", run.id);
        Error::new(Code::CommittedByHand, text)
    }
}

/// From the end of the body to the known end of the transaction. `Ok`: it took effect. `Err`: it did not.
async fn finish<D: Database>(
    place: Place,
    database: D,
    connection: D::Connection,
    opened: Opened,
    json: Json,
    started: Instant,
) -> Result<()> {
    failpoint::reach("transaction-before-commit");
    let closed = tokio::time::timeout(COMMIT_ANSWER, place.close::<D>(connection, &json, started));
    let error = match closed.await {
        Ok(Ok(())) => {
            failpoint::reach("transaction-committed");
            return Ok(());
        }
        // The server says no. Only where it says nothing, or that it goes down, is the end unknown.
        Ok(Err(error)) if error.sqlstate().is_some() && !error.is_unavailable() => return Err(error),
        Ok(Err(error)) => error,
        Err(_) => Error::new(Code::Unavailable, "the commit was not answered in time"),
    };
    tracing::debug!(run = %place.run.id, position = &*place.position, %error, "the answer to a commit was lost");
    match place.fate(&database, &opened).await {
        Fate::Committed => Ok(()),
        Fate::Aborted | Fate::ByHand => Err(error),
    }
}

/// A commit on its way is not dropped with its step: it goes on by itself, and the run waits for its end.
struct Undropped {
    run: Arc<Run>,
    future: Option<BoxFuture<'static, Result<()>>>,
}

impl Undropped {
    fn new(run: &Arc<Run>, future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Undropped { run: run.clone(), future: Some(Box::pin(future)) }
    }
}

impl Future for Undropped {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let ended = future.as_mut().poll(cx);
        if ended.is_ready() {
            self.future = None;
        }
        ended
    }
}

impl Drop for Undropped {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        // Without a runtime the process ends, and the server rolls back what was not committed.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let hold = self.run.hold();
            runtime.spawn(async move {
                let ended = future.await;
                tracing::debug!(committed = ended.is_ok(), "a commit whose step was dropped is decided");
                drop(hold);
            });
        }
    }
}

/// What an error of the database, outside the body, means for the step.
pub(super) fn trouble<T, E>(error: Error) -> Ended<T, E> {
    match error.code() {
        Code::Fenced => Ended::Stopped(Stop::Fenced),
        Code::CommittedByHand => Ended::Stopped(Stop::Dead(error)),
        _ if passes(&error) => Ended::Again(error),
        _ => Ended::Failed(Failure::Ambo(error)),
    }
}

/// Whether statements of ours may succeed later: what is refused then had no effect.
pub(super) fn passes(error: &Error) -> bool {
    error.is_conflict()
        || error.is_unavailable()
        || error.code() == Code::NoPartition
        // A lock not to be had, a statement that took too long; no room, no memory, no disk.
        || matches!(error.sqlstate(), Some("55P03" | "57014"))
        || error.sqlstate().is_some_and(|state| state.starts_with("53") || state.starts_with("58"))
}

/// Whether the error of a body says that the same body may succeed. An error type of the application's own counts
/// if an [`Error`] is in it, wherever.
fn is_conflict<E: ApplicationError>(error: &E) -> bool {
    find(error, &|error| error.is_conflict(), &|json| {
        matches!(json.get("sqlstate").and_then(|state| state.as_str()), Some("40001" | "40P01"))
    })
}

/// Whether the error of a body says that the database was away.
fn is_unavailable<E: ApplicationError>(error: &E) -> bool {
    find(error, &|error| error.is_unavailable(), &|json| {
        json.get("code").and_then(|code| code.as_str()) == Some(Code::Unavailable.as_str())
    })
}

type Fields = serde_json::Map<String, serde_json::Value>;

fn find<E: ApplicationError>(
    error: &E,
    plain: &dyn Fn(&Error) -> bool,
    recorded: &dyn Fn(&Fields) -> bool,
) -> bool {
    if let Some(error) = (error as &dyn Any).downcast_ref::<Error>() {
        return plain(error);
    }
    fn within(value: &serde_json::Value, recorded: &dyn Fn(&Fields) -> bool) -> bool {
        match value {
            serde_json::Value::Object(fields) => {
                // The recorded form of an `Error` has these two.
                let is_error = fields.contains_key("code") && fields.contains_key("message");
                (is_error && recorded(fields)) || fields.values().any(|value| within(value, recorded))
            }
            serde_json::Value::Array(values) => values.iter().any(|value| within(value, recorded)),
            _ => false,
        }
    }
    serde_json::to_value(error).is_ok_and(|value| within(&value, recorded))
}
