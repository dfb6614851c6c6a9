//! Compensations: what undoes a step, registered next to it, run in reverse if the run fails or is cancelled.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::step::{Attempt, Step};
use crate::engine::run::Run;
use crate::error::{ApplicationError, Code, Error, Failure, Result, to_error};
use crate::retry::Retry;

/// What undoes a step: itself a step, at a position behind the call after which it was registered.
pub(crate) struct Compensation {
    pub(crate) position: Arc<str>,
    name: Cow<'static, str>,
    /// Until it has begun.
    undo: Option<Undo>,
}

type Undo = Box<dyn for<'r> FnOnce(&'r Arc<Run>) -> BoxFuture<'r, Result<(), Error>> + Send>;

impl fmt::Debug for Compensation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compensation").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Compensation {
    pub(crate) fn new<E, F, Fut>(position: Arc<str>, name: Cow<'static, str>, retry: Retry, body: F) -> Self
    where
        F: FnMut(Attempt) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: ApplicationError,
    {
        let (step, at) = (name.clone(), position.clone());
        let undo: Undo = Box::new(move |run| {
            let undone = Step::new(run, position, step, body).retry(retry);
            Box::pin(async move {
                undone.await.map_err(|failure| match failure {
                    Failure::Application(error) => to_error(error),
                    Failure::Ambo(error) => error,
                })
            })
        });
        Compensation { position: at, name, undo: Some(undo) }
    }
}

/// Undoes what was done, the last thing first. An error: one could not be undone, the earlier ones were not tried.
pub(crate) async fn undo(run: &Arc<Run>) -> Result<()> {
    run.begin_undoing();
    loop {
        // It stays among what is left until it is done.
        let next =
            run.compensations().last_mut().and_then(|last| Some((last.name.clone(), last.undo.take()?)));
        let Some((name, undo)) = next else { return Ok(()) };
        if let Err(error) = undo(run).await {
            let text = format!("{name:?} could not be compensated: {}", error.text());
            return Err(Error::new(Code::NotCompensated, text).with_source(error));
        }
        run.compensations().pop();
    }
}

/// The names of what is still to be undone, in the order in which it will be.
pub(crate) fn left(run: &Run) -> String {
    let names: Vec<String> =
        run.compensations().iter().rev().map(|left| format!("{:?}", left.name)).collect();
    names.join(", ")
}
