//! Where a transaction step is recorded: as a checkpoint or as the outcome of the run, in Ambo's own database, or as a witness
//! in another one.
//!
//! Each is a set of SQL functions with the same parts: open, close, what became of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::run::Run;
use crate::error::{Code, Error, Result};
use crate::on::{Database, Isolation, Row, Token, is_missing};
use crate::payload::Json;
use crate::store;

/// Between two questions for the fate of a transaction.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long one such question may take: the connection it is asked on may be cut as well.
const ANSWER: Duration = Duration::from_secs(10);

/// A position of a run, and the kind of its record. Owns what it needs: a commit outlives a step that is dropped.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) run: Arc<Run>,
    pub(super) position: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) record: Record,
}

/// What is written with the effect of a transaction step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// A checkpoint of the run.
    Checkpoint,
    /// The outcome of the run, which ends by it.
    Outcome,
    /// A witness, in another database.
    Witness,
}

/// The transaction of one attempt, as the server knows it.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    backend: String,
    xid: String,
}

/// What an attempt finds.
#[derive(Debug)]
pub(super) enum Opening {
    /// The step is to be run.
    Open(Opened),
    /// The step took effect in an earlier attempt, with this output.
    Done(Json),
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    Aborted,
    /// The body committed part of it.
    ByHand,
}

impl Place {
    fn run_and_position(&self) -> [Option<String>; 2] {
        [Some(self.run.id.to_string()), Some(self.position.to_string())]
    }

    async fn call<D: Database>(
        &self,
        connection: &mut D::Connection,
        sql: &str,
        args: &[Option<String>],
    ) -> Result<Row> {
        D::call(connection, &self.sql(sql), args, Token(())).await.map_err(|error| self.explain(error))
    }

    /// The witness has a schema of its own, which is never renamed.
    fn sql<'s>(&self, sql: &'s str) -> std::borrow::Cow<'s, str> {
        if self.record == Record::Witness { sql.into() } else { self.run.target.schema.sql(sql) }
    }

    /// Begins the step's transaction, its first statement included. If that fails the transaction is still open.
    pub(super) async fn open<D: Database>(
        &self,
        database: &D,
        isolation: Isolation,
    ) -> Result<(D::Connection, Result<Opening>)> {
        let [run, position] = self.run_and_position();
        let (attempt, worker) = (Some(self.run.attempt.to_string()), Some(self.run.worker.to_string()));
        let idle = Some(self.run.lease_ms.load(Ordering::Relaxed).to_string());
        let (sql, args) = if self.record == Record::Witness {
            let sql = "select state, backend::text, xid::text, output::text from ambo_witness.open_step(\
                       $1::text::uuid, $2::text, $3::text::int4, $4::text::int8, $5::text::int4)";
            (sql, vec![run, position, attempt, worker, idle])
        } else {
            let sql = "select 'open', backend::text, xid::text, null::text from ambo.begin_step(\
                       $1::text::int8, $2::text::uuid, $3::text::int4, $4::text, $5::text::int4)";
            (sql, vec![worker, run, attempt, position, idle])
        };
        let (connection, row) = database.begin_with(isolation, &self.sql(sql), &args, Token(())).await?;
        let opening = match row.map(<[_; 4]>::try_from) {
            Ok(Ok([Some(state), Some(backend), Some(xid), _])) if state == "open" => {
                Ok(Opening::Open(Opened { backend, xid }))
            }
            Ok(Ok([Some(state), _, _, output])) if state == "done" => {
                Ok(Opening::Done(output.unwrap_or_else(|| "null".to_owned()).into()))
            }
            Ok(_) => Err(Error::new(Code::Database, "the beginning of a transaction step gave no answer")),
            Err(error) => Err(self.explain(error)),
        };
        Ok((connection, opening))
    }

    /// Records the step as the last statement of its transaction, and commits.
    pub(super) async fn close<D: Database>(
        &self,
        connection: D::Connection,
        output: &str,
        started: Instant,
    ) -> Result<()> {
        let [run, position] = self.run_and_position();
        let output = Some(output.to_owned());
        let (sql, args) = if self.record == Record::Witness {
            let sql = "select ambo_witness.close_step($1::text::uuid, $2::text, $3::text::json)::text";
            (sql, vec![run, position, output])
        } else if self.record == Record::Outcome {
            let sql = "select ambo.complete_run($1::text::int8, $2::text::uuid, $3::text::int4, $4::text, \
                       $5::text::json, $6::text::uuid)::text";
            let attempt = Some(self.run.attempt.to_string());
            let parent = self.run.parent.map(|parent| parent.to_string());
            (sql, vec![Some(self.run.worker.to_string()), run, attempt, position, output, parent])
        } else {
            let sql = "select ambo.finish_step($1::text::int8, $2::text::uuid, $3::text::int4, $4::text, $5::text, \
                       $6::text::json, null, $7::text::int4)::text";
            let elapsed = i32::try_from(started.elapsed().as_millis()).unwrap_or(i32::MAX);
            let args = vec![
                Some(self.run.worker.to_string()),
                run,
                Some(self.run.attempt.to_string()),
                position,
                Some(self.name.to_string()),
                output,
                Some(elapsed.to_string()),
            ];
            (sql, args)
        };
        let closed = D::commit_with(connection, &self.sql(sql), &args, Token(())).await;
        closed.map_err(|error| match error.sqlstate() {
            // No standby: this transaction has written before.
            Some("25006") => {
                let text = "the body has made its transaction read-only; its step cannot be recorded in it";
                Error::new(Code::Database, text).with_sqlstate("25006").with_source(error)
            }
            _ => self.explain(error),
        })
    }

    /// Whether the transaction is still the one that [`open`](Place::open) began. An error where it is aborted.
    pub(super) async fn is_open<D: Database>(&self, connection: &mut D::Connection) -> Result<bool> {
        let sql = match self.record {
            Record::Witness => "select ambo_witness.step_is_open($1::text::uuid, $2::text)::text",
            _ => "select ambo.step_is_open($1::text::uuid, $2::text)::text",
        };
        self.call::<D>(connection, sql, &self.run_and_position()).await.map(|row| is_true(&row))
    }

    /// Whether the body committed by hand: outside of the transaction.
    pub(super) async fn is_marked<D: Database>(&self, connection: &mut D::Connection) -> Result<bool> {
        let sql = match self.record {
            Record::Witness => "select ambo_witness.step_is_marked($1::text::uuid, $2::text)::text",
            _ => "select ambo.step_is_marked($1::text::uuid, $2::text)::text",
        };
        self.call::<D>(connection, sql, &self.run_and_position()).await.map(|row| is_true(&row))
    }

    /// A tombstone, in a transaction of its own: no earlier attempt can take effect any more. Answers the output of
    /// one that did.
    pub(super) async fn void<D: Database>(&self, database: &D) -> Result<Option<Json>> {
        let mut connection = database.begin(Isolation::ReadCommitted, Token(())).await?;
        let sql = "select state, output::text from ambo_witness.void_step($1::text::uuid, $2::text, $3::text::int4)";
        let [run, position] = self.run_and_position();
        let row = self
            .call::<D>(&mut connection, sql, &[run, position, Some(self.run.attempt.to_string())])
            .await?;
        D::commit(connection, Token(())).await?;
        match <[_; 2]>::try_from(row) {
            Ok([Some(state), output]) if state == "done" => {
                Ok(Some(output.unwrap_or_else(|| "null".to_owned()).into()))
            }
            Ok([Some(state), _]) if state == "void" => Ok(None),
            _ => Err(Error::new(Code::Database, "the tombstone of a transaction step gave no answer")),
        }
    }

    /// What became of a transaction whose end is unknown: asks until it is decided. For a checkpoint on a connection
    /// of ours; for a witness on another one of the user's.
    pub(super) async fn fate<D: Database>(&self, database: &D, opened: &Opened) -> Fate {
        let mut told = false;
        loop {
            let asked = match tokio::time::timeout(ANSWER, self.ask(database, opened)).await {
                Ok(asked) => asked,
                Err(_) => Err(Error::new(Code::Unavailable, "the database did not answer in time")),
            };
            match asked.as_deref() {
                Ok("committed") => return Fate::Committed,
                Ok("aborted") => return Fate::Aborted,
                Ok("by hand") => return Fate::ByHand,
                Ok(_) => {}
                Err(error) if !told => {
                    tracing::warn!(
                        run = %self.run.id, position = &*self.position, %error,
                        "cannot learn what became of a commit; the run waits until the database tells"
                    );
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn ask<D: Database>(&self, database: &D, opened: &Opened) -> Result<String> {
        let (backend, xid) = (&opened.backend, &opened.xid);
        let [run, position] = self.run_and_position();
        if self.record == Record::Witness {
            let mut connection = database.begin(Isolation::ReadCommitted, Token(())).await?;
            let sql =
                "select ambo_witness.step_fate($1::text::int4, $2::text::xid8, $3::text::uuid, $4::text)";
            let args = [Some(backend.clone()), Some(xid.clone()), run, position];
            let row = self.call::<D>(&mut connection, sql, &args).await?;
            D::rollback(connection, Token(())).await;
            return row.into_iter().next().flatten().ok_or_else(|| Error::new(Code::Database, "no answer"));
        }
        let target = &self.run.target;
        let session = target.open("ambo step fate", None).await?;
        let place = (self.run.id, &*self.position);
        let ends = (self.record == Record::Outcome).then_some(self.run.attempt);
        store::transaction::step_fate(&session, &target.schema, (backend, xid), place, ends).await
    }

    /// An error that says what to do about it.
    fn explain(&self, error: Error) -> Error {
        let (code, text) = match error.sqlstate() {
            _ if is_missing(&error) && self.record == Record::Witness => (
                Code::SchemaMismatch,
                "the database of this transaction step has no table of witnesses; \
                 run ambo::install_witness on it, or the SQL of ambo::WITNESS_SQL",
            ),
            _ if is_missing(&error) => (
                Code::SchemaMismatch,
                "the database of this transaction step holds no schema of Ambo that fits; a transaction step \
                 runs in the database that its run lives in, for another one add .witnessed()",
            ),
            Some("25P02") => (
                Code::Database,
                "the transaction was aborted: its body went on after an error of the database, and did not return it",
            ),
            _ => return error,
        };
        let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
        Error::new(code, text).with_sqlstate(&sqlstate).with_source(error)
    }
}

fn is_true(row: &Row) -> bool {
    row.first() == Some(&Some("true".to_owned()))
}
