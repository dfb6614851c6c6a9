//! One run without a worker: its body against its history, and nothing behind it.

use std::future::Future as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::history::{History as Recorded, UNDO};
use super::run::{Identity, Run, Stop};
use super::{Engine, Life, executor};
use crate::context::Ctx;
use crate::error::{Code, Error, Result};
use crate::payload::Json;
use crate::replay_check::{Difference, History};
use crate::vault::place::Place;
use crate::worker::WorkerBuilder;

/// How long a body may do nothing once it has come to a call that is not recorded.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long before: it waits for something that is no durable call.
const PATIENCE_BEFORE: Duration = Duration::from_secs(2);
/// How long it may take at all.
const LIMIT: Duration = Duration::from_secs(30);

/// A worker that never claims.
pub(crate) struct Stage {
    engine: Engine,
    life: Arc<Life>,
}

/// How a rehearsal came to rest.
enum Rest {
    /// The body returned.
    Ended(Result<Json>),
    /// It continued as new.
    Continued,
    /// It waits.
    Waits,
}

impl Stage {
    pub(crate) async fn set(builder: WorkerBuilder) -> Result<Self> {
        let (client, engine) = builder.engine()?;
        engine.clock.set(client.now().await?.as_microsecond());
        let life = Arc::new(Life::of_nobody(client.waiter().clone()));
        Ok(Stage { engine, life })
    }

    /// The first difference between what was recorded and what the code does.
    pub(crate) async fn rehearse(&self, history: &History) -> Option<Difference> {
        let is_unread = false;
        let differ = |(position, text)| {
            Some(Difference {
                run: history.id,
                workflow: history.workflow.clone(),
                position,
                text,
                is_unread,
            })
        };
        let unread = |error: &Error| {
            differ((None, error.to_string())).map(|difference| Difference { is_unread: true, ..difference })
        };
        let Some(workflow) = self.engine.registry.get(&history.workflow) else {
            return differ((None, "no workflow of this name is registered".into()));
        };
        let identity = Identity {
            id: history.id.as_uuid(),
            attempt: 2,
            workflow: history.workflow.clone(),
            queue: history.queue.clone(),
            key: history.key.clone(),
            parent: history.parent.map(|parent| parent.as_uuid()),
            deadline: None,
            too_late: false,
            slot: None,
            bytes: 0,
        };
        let mut run = Run::new(identity, history.checkpoints(), false, &self.life, &self.engine);
        run.history.rehearse();
        let run = Arc::new(run);
        let input = history.input.as_ref().map_or("null", |input| input.get()).to_owned();
        let input = run.history.continued.as_ref().map_or(&*input, |continued| continued.input.get());
        let input = match run.vault.open(&Place::Input { keyed: false }, input).await {
            Ok(input) => input,
            Err(error) => return unread(&error),
        };
        let body = workflow.body.run(Ctx::new(&run), &input);
        let rest = tokio::select! {
            biased;
            reason = run.stopped() => match reason {
                Stop::Dead(error) if is_unreadable(error) => return unread(error),
                Stop::Dead(error) => return died(history, error).and_then(differ),
                _ => Rest::Continued,
            },
            rest = settle(body, &run.history) => rest,
        };
        // Stopped by its last poll.
        if let Some(Stop::Dead(error)) = run.reason() {
            return if is_unreadable(error) { unread(error) } else { died(history, error).and_then(differ) };
        }
        let output = history.output.as_ref().map_or("null", |output| output.get());
        let output = match run.vault.open(&Place::Output(run.id), output).await {
            Ok(output) => output,
            Err(error) => return unread(&error),
        };
        compare(history, &output, &run, rest).and_then(differ)
    }
}

/// Whether a recorded payload could not be opened.
fn is_unreadable(error: &Error) -> bool {
    matches!(error.code(), Code::NoVault | Code::Undecipherable | Code::ObjectMissing)
        || error.is_unavailable()
}

/// A name that makes no sense ends the run as it did when it was recorded; any other such end is the difference.
fn died(history: &History, error: &Error) -> Found {
    let as_before = error.code() == Code::InvalidName
        && history.state == "dead"
        && code(history) == Some(Code::InvalidName);
    (!as_before).then(|| (position(error), error.text().to_owned()))
}

/// Polls a body until it has ended, or waits for what does not come.
async fn settle(body: BoxFuture<'_, Result<Json>>, history: &Recorded) -> Rest {
    let mut body = AssertUnwindSafe(body).catch_unwind();
    let limit = Instant::now() + LIMIT;
    let rest = tokio::time::sleep(PATIENCE_BEFORE);
    tokio::pin!(rest);
    std::future::poll_fn(|cx| {
        match body.poll_unpin(cx) {
            Poll::Ready(Ok(ended)) => return Poll::Ready(Rest::Ended(ended)),
            Poll::Ready(Err(panic)) => {
                let error = executor::panicked("the workflow", &*panic);
                return Poll::Ready(Rest::Ended(Err(error)));
            }
            Poll::Pending if rest.is_elapsed() => return Poll::Ready(Rest::Waits),
            Poll::Pending => {}
        }
        // Each time that the body is woken it is given time anew.
        let patience = if history.is_beyond() { PATIENCE } else { PATIENCE_BEFORE };
        rest.as_mut().reset((Instant::now() + patience).min(limit));
        rest.as_mut().poll(cx).map(|()| Rest::Waits)
    })
    .await
}

type Found = Option<(Option<String>, String)>;

fn compare(history: &History, output: &str, run: &Run, rest: Rest) -> Found {
    let beyond = run.history.beyond();
    let has_ended = match history.state.as_str() {
        "succeeded" => true,
        // A time limit or an operator ended it, not its code.
        "failed" | "dead" => !matches!(
            code(history),
            Some(
                Code::RunTimeout
                    | Code::Cancelled
                    | Code::Poisoned
                    | Code::HistoryLimit
                    | Code::NotCompensated
                    | Code::GraceOver
                    | Code::Expired
                    | Code::CommittedByHand
            )
        ),
        _ => false,
    };
    // A transaction that ends the run leaves no record but the end.
    let completes = history.state == "succeeded" && run.history.would_complete();
    if has_ended
        && !completes
        && let Some((position, name)) = beyond.first()
    {
        let text = format!(
            "the code calls {name:?} at position {position}, where nothing is recorded and the run had ended"
        );
        return Some((Some(position.clone()), text));
    }
    // What the losers of a race had recorded is never asked for.
    let mut left = if run.history.raced() { Vec::new() } else { run.history.left() };
    // What undid the run comes after its body.
    if run.history.has(UNDO) {
        let undo = run.compensations();
        left.retain(|(position, _)| undo.iter().all(|undo| *undo.position != **position));
    }
    let waits_there = |position: &str| {
        beyond.iter().any(|(at, _)| {
            position == at || position.strip_prefix(&**at).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    if !matches!(rest, Rest::Continued)
        && let Some((position, name)) = left.into_iter().find(|(position, _)| !waits_there(position))
    {
        let text = format!("{name:?} is recorded at position {position}, and the code does not call it");
        return Some((Some(position), text));
    }
    match rest {
        Rest::Ended(ended) if has_ended => compare_ends(history, output, ended).map(|text| (None, text)),
        Rest::Continued if has_ended => {
            Some((None, "the run had ended, and the code continues as new".into()))
        }
        Rest::Waits if has_ended && !completes => {
            Some((None, "the run had ended, and the code waits".into()))
        }
        _ => None,
    }
}

/// Compares how the run ended with how the code ends.
fn compare_ends(history: &History, recorded: &str, ended: Result<Json>) -> Option<String> {
    let succeeded = history.state == "succeeded";
    match ended {
        Ok(_) if !succeeded => Some("the run had failed, and the code succeeds".into()),
        Err(error) if succeeded => {
            Some(format!("the run had succeeded, and the code fails: {}", error.code()))
        }
        Err(error)
            if code(history).is_some_and(|code| code != error.code() && code != Code::NotCompensated) =>
        {
            let recorded = code(history).map(Code::as_str).unwrap_or_default();
            Some(format!("the run had failed with {recorded}, and the code fails with {}", error.code()))
        }
        Ok(output) => {
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
            (value(recorded) != value(&output))
                .then(|| "the code returns another result than the run did".into())
        }
        Err(_) => None,
    }
}

fn code(history: &History) -> Option<Code> {
    serde_json::from_str::<Error>(history.error.as_ref()?.get()).ok().map(|error| error.code())
}

/// The position that the text of a mismatch names.
fn position(error: &Error) -> Option<String> {
    let rest = error.text().strip_prefix("position ")?;
    rest.split(' ').next().map(ToOwned::to_owned)
}
