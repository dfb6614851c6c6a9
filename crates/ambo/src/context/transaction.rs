//! Transaction steps: the user's SQL and its record in one commit, fenced, exactly once.
//!
//! This file owns what a step is and when an attempt is repeated; one attempt is `attempt.rs`, where it is recorded
//! `place.rs`.

mod attempt;
mod place;
mod tx;

use std::borrow::Cow;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use super::step::{is_permanent, replay, scripted};
use crate::engine::run::Run;
use crate::engine::wait::Work;
use crate::engine::{clock, executor};
use crate::error::{ApplicationError, Code, Error, Failure, Result, to_error, to_failure};
use crate::on::{Database, Isolation};
use crate::payload::{self, Json};
use crate::retry::Retry;
use crate::vault;
use attempt::{Attempt, Ended};
use place::{Place, Record};
pub use tx::Tx;

/// How often in a row the connection may be lost while the body runs. More says that it is the body's doing: it is
/// idle for longer than a lease, or waits for a second connection of a pool that has no more.
const CUTS_MAX: u32 = 10;

/// A transaction step that was built: configure it, then [`run`](TransactionStep::run) it.
///
/// # Example: sqlx
/// ```no_run
/// # #[cfg(feature = "sqlx")] mod example {
/// # use ambo::{Ctx, Result};
/// async fn reserve(mut cx: Ctx<'_>, item: i32) -> Result<i32> {
///     let pool = cx.state::<sqlx::PgPool>()?;
///     let left = cx.transaction("reserve").run(&*pool, async |mut tx| {
///         let sql = "update stock set n = n - 1 where item = $1 returning n";
///         let left: i32 = sqlx::query_scalar(sql).bind(item).fetch_one(&mut *tx).await?;
///         Ok::<_, ambo::Error>(left)
///     });
///     Ok(left.await?)
/// }
/// # }
/// ```
#[must_use = "a transaction step does nothing until it is run"]
#[derive(Debug)]
pub struct TransactionStep<'a> {
    run: &'a Arc<Run>,
    position: Arc<str>,
    name: Cow<'static, str>,
    isolation: Isolation,
    retry: Retry,
    timeout: Option<Duration>,
    record: Record,
    /// It is to complete the run in a database other than the one that the run lives in.
    is_torn: bool,
    cancel_at_once: bool,
}

impl<'a> TransactionStep<'a> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, name: Cow<'static, str>) -> Self {
        let isolation = Isolation::default();
        TransactionStep {
            run,
            position,
            name,
            isolation,
            retry: Retry::none(),
            timeout: None,
            record: Record::Checkpoint,
            is_torn: false,
            cancel_at_once: false,
        }
    }

    /// The isolation of the transaction. Default: read committed.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// How an attempt that failed is tried again; default: not at all. Conflicts and outages are tried again in any
    /// case, for as long as they last; an error that is [permanent](Error::permanent) is not.
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

    /// A cancel of the run does not wait for the body: it is dropped and rolled back as soon as the worker learns of the cancel, and
    /// nothing is recorded. One that commits already is finished. Default: the body is finished too.
    pub fn cancel_at_once(mut self) -> Self {
        self.cancel_at_once = true;
        self
    }

    /// Runs the step in a database other than the one that Ambo lives in, exactly once there too: the body's writes and
    /// a row that witnesses them commit together, and the checkpoint follows. Install its table first, with
    /// [`install_witness`](crate::install_witness). A run that fails or is cancelled may have to wait for that
    /// database before it goes on, to make sure that no worker thought dead can still commit there. Not beside
    /// [`completing`](TransactionStep::completing).
    pub fn witnessed(mut self) -> Self {
        self.is_torn |= self.record == Record::Outcome;
        self.record = Record::Witness;
        self
    }

    /// The run ends with this transaction: what the body returns is the result of the run, and its effect and the end of the
    /// run commit together, exactly once. There is no checkpoint. When it has committed [`run`](TransactionStep::run) does not
    /// return, and calls of other branches that are under way are dropped. Where the body fails, the step fails, as any does,
    /// and the run goes on. Not beside [`witnessed`](TransactionStep::witnessed): a run ends in its own database only.
    pub fn completing(mut self) -> Self {
        self.is_torn |= self.record == Record::Witness;
        self.record = Record::Outcome;
        self
    }

    /// Runs `body` in a transaction of `database` and records its result in the same commit. That is the database
    /// that Ambo lives in, unless the step is [`witnessed`](TransactionStep::witnessed). The body may be run several times;
    /// only one run of it takes effect.
    ///
    /// A body that fails with [`Error`] because of a conflict (serialization failure, deadlock) is run again: `?` on an
    /// error of each driver keeps the SQLSTATE. An error type of the application's own counts too where it holds
    /// an [`Error`].
    ///
    /// # Errors
    /// [`Failure::Application`] with the body's error, after a rollback. `Failure::Ambo` for a time limit (`AMBO023`), a
    /// panic (`AMBO022`), a step that is witnessed and completing (`AMBO005`), a result that cannot be recorded (`AMBO004`, `AMBO007`), a database without Ambo or
    /// witnesses (`AMBO010`) or with another run's Ambo (`AMBO041`), a transaction that the database refused to commit or
    /// that the body left aborted (`AMBO050`), a connection that is lost whenever the body runs (`AMBO040`), or a
    /// cancelled run (`AMBO025`). A body that commits by hand stops the run for good (`AMBO031`).
    ///
    /// # Cancel safety
    /// Dropped while the body runs, it is rolled back. Dropped while it commits, the commit goes on by itself to a known
    /// end, and neither the next effect nor the end of the run comes before it.
    pub async fn run<D, T, E, F, Fut>(self, database: &D, mut body: F) -> Result<T, Failure<E>>
    where
        D: Database,
        T: Serialize + DeserializeOwned,
        E: ApplicationError,
        F: FnMut(Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        super::check_name(&self.name).map_err(Failure::Ambo)?;
        if self.is_torn {
            return Err(Failure::Ambo(Error::new(
                Code::InvalidOption,
                "a transaction step is witnessed or completing, not both: a run is ended in its own database only; \
                 return the result of a witnessed step from the workflow",
            )));
        }
        let at_work = self.run.waits.work();
        let span =
            tracing::info_span!("transaction", position = &*self.position, name = %self.name, attempt = 1);
        let place = Place {
            run: self.run.clone(),
            position: self.position.clone(),
            name: self.name.as_ref().into(),
            record: self.record,
        };
        let passed_over = self.run.refusal().is_some() && !self.run.history.has(&self.position);
        if self.record == Record::Outcome && !self.run.history.has(&self.position) {
            self.run.history.complete();
        }
        if let Some(answer) = replay(self.run, &self.position, &self.name).await {
            if passed_over && let Some(output) = self.lay_to_rest(&place, database).await {
                return self.found(output).await;
            }
            return answer;
        }
        self.perform(&at_work, &place, database, &mut body).instrument(span).await
    }

    async fn perform<D, T, E, F, Fut>(
        self,
        at_work: &Work,
        place: &Place,
        database: &D,
        body: &mut F,
    ) -> Result<T, Failure<E>>
    where
        D: Database,
        T: Serialize + DeserializeOwned,
        E: ApplicationError,
        F: FnMut(Tx<D::Connection>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let started = Instant::now();
        let (isolation, timeout, cancel_at_once) = (self.isolation, self.timeout, self.cancel_at_once);
        let attempt = Attempt { place, isolation, timeout, cancel_at_once, started };
        let (mut tried, mut troubled, mut cuts) = (1, 0u32, 0u32);
        let failure = loop {
            let ended = {
                let this = pin!(async {
                    self.run.barrier().await;
                    match scripted::<serde_json::Value, E>(self.run, &self.position, &self.name) {
                        Some(Ok(value)) => Ended::Found(value.to_string().into()),
                        Some(Err(failure)) => Ended::Failed(failure),
                        None => attempt.run(database, body).await,
                    }
                });
                self.run.finish(cancel_at_once, this).await
            };
            match ended {
                Ended::Committed(..) if self.run.rig.loses(self.run.worker, &self.position, &self.name) => {
                    std::future::pending().await
                }
                Ended::Committed(value, json) => {
                    self.run.meters.step_ended(true, started.elapsed());
                    match self.record {
                        Record::Checkpoint => {}
                        Record::Witness => {
                            self.run.record(self.position, self.name, Ok(json), started.elapsed());
                        }
                        Record::Outcome => self.run.complete(json).await,
                    }
                    return Ok(value);
                }
                Ended::Found(output) => return self.found(output).await,
                Ended::Stopped(reason) => {
                    self.run.stop(reason);
                    std::future::pending::<()>().await;
                }
                Ended::Cut(error) if cuts >= CUTS_MAX => break Failure::Ambo(error),
                Ended::Cut(error) => {
                    cuts += 1;
                    self.pause(&mut troubled, &error).await;
                }
                Ended::Again(error) => {
                    cuts = 0;
                    self.pause(&mut troubled, &error).await;
                }
                Ended::Failed(failure) => match self.retry.pause_after(tried, clock::jitter()) {
                    Some(pause) if worth_another(&failure) => {
                        tried += 1;
                        tracing::Span::current().record("attempt", tried);
                        self.run.meters.step_retried();
                        tracing::debug!(attempt = tried, ?pause, "the transaction failed; trying again");
                        let _pauses = at_work.pause();
                        tokio::select! {
                            _ = self.run.refused() => {}
                            () = self.run.clock.sleep(pause) => {}
                        }
                    }
                    _ => break failure,
                },
            }
            if let Some(why) = self.run.refusal() {
                break Failure::Ambo(why);
            }
        };
        if let Some(output) = self.lay_to_rest(place, database).await {
            return self.found(output).await;
        }
        // Told to end, it has not failed: nothing is recorded.
        if matches!(&failure, Failure::Ambo(why) if matches!(why.code(), Code::Cancelled | Code::RunTimeout))
        {
            let _ = self.run.refusal_at_rest().await;
            return Err(failure);
        }
        self.run.meters.step_ended(false, started.elapsed());
        let error = match failure {
            Failure::Application(error) => to_error(error),
            Failure::Ambo(error) => error,
        };
        self.run.record(self.position, self.name, Err(executor::encode_error(&error)), started.elapsed());
        Err(to_failure(error))
    }

    /// After an attempt that had no effect for a reason that passes: 1 ms doubled up to 1 s, jittered.
    async fn pause(&self, troubled: &mut u32, error: &Error) {
        self.run.meters.step_retried();
        // About twice a minute.
        if error.is_conflict() || !(*troubled).is_multiple_of(40) {
            tracing::debug!(%error, "the transaction had no effect; trying again");
        } else {
            tracing::warn!(run = %self.run.id, %error, "the transaction had no effect; trying again until it has");
        }
        let full = Duration::from_millis((1u64 << (*troubled).min(10)).min(1000));
        *troubled = troubled.saturating_add(1);
        tokio::time::sleep(full.mul_f64(0.5 + 0.5 * clock::jitter())).await;
    }

    /// The step took effect in an earlier attempt, whose checkpoint is missing.
    async fn found<T, E>(self, output: Json) -> Result<T, Failure<E>>
    where
        T: DeserializeOwned,
        E: ApplicationError,
    {
        let _reading = self.run.reading();
        let what = format!("the witnessed result of {:?} at position {}", self.name, self.position);
        let opened = self.run.open(&vault::place::Place::Step(&self.position), &output).await;
        match opened.and_then(|opened| payload::decode(&what, &opened)) {
            Ok(value) => {
                self.run.record(self.position, self.name, Ok(output), Duration::ZERO);
                Ok(value)
            }
            Err(error) => self.run.die(error).await,
        }
    }

    /// Before the run goes past a witnessed step that did not take effect: makes sure that it never will, for as long
    /// as that takes. Only an earlier attempt could still do it. Answers its output if it was faster.
    async fn lay_to_rest<D: Database>(&self, place: &Place, database: &D) -> Option<Json> {
        if self.record != Record::Witness || self.run.attempt == 1 {
            return None;
        }
        let mut troubled = 0;
        loop {
            self.run.barrier().await;
            match place.void(database).await {
                Ok(output) => return output,
                Err(error) if error.code() == Code::CommittedByHand => return self.run.die(error).await,
                // Without a table of witnesses no attempt of this step can have had an effect.
                Err(error) if error.code() == Code::SchemaMismatch => return None,
                Err(error) => self.pause(&mut troubled, &error).await,
            }
        }
    }
}

/// Whether the retry policy is asked: not where the same would happen again.
fn worth_another<E: ApplicationError>(failure: &Failure<E>) -> bool {
    match failure {
        Failure::Application(error) => !is_permanent(error),
        Failure::Ambo(error) => matches!(error.code(), Code::StepTimeout | Code::Panicked | Code::Database),
    }
}
