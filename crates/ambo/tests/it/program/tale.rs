//! Runs of one kind each, that random programs start: what fails for good and is undone, what is tried again, what begins anew,
//! what publishes for another run.

use std::sync::Arc;
use std::time::Duration;

use ambo::{Ctx, Error, Result, Retry, Workflow};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::workflows::Ledger;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Tale {
    /// So many steps, each undone.
    Undone(usize),
    /// Fails so often.
    Retried(u32),
    /// Continues as new so often.
    Continued(usize),
    /// Publishes.
    Watched,
}

pub(super) struct Teller;

impl Workflow for Teller {
    type Input = Tale;
    type Output = String;
    type Error = Error;
    const NAME: &'static str = "tale";

    fn retry() -> Retry {
        Retry::fixed(Duration::from_millis(20)).max_attempts(10)
    }

    fn run<'run>(mut cx: Ctx<'run>, tale: Tale) -> BoxFuture<'run, Result<String>> {
        Box::pin(async move { tell(&mut cx, tale).await })
    }
}

async fn tell(cx: &mut Ctx<'_>, tale: Tale) -> Result<String> {
    let (ledger, run) = (cx.state::<Arc<Ledger>>()?, cx.run_id().to_string());
    let effect = |attempt: ambo::Attempt| {
        let (ledger, run) = (Arc::clone(&ledger), run.clone());
        async move { ledger.effect(&run, "tale", &attempt.idempotency_key()).await }
    };
    match tale {
        Tale::Undone(steps) => {
            for _ in 0..steps {
                cx.step_with("do", effect).await?;
                let (ledger, run) = (Arc::clone(&ledger), run.clone());
                cx.compensate("undo", move |attempt| {
                    let (ledger, run) = (Arc::clone(&ledger), run.clone());
                    async move { ledger.effect(&run, "undo", &attempt.idempotency_key()).await.map(|_| ()) }
                });
            }
            Err(Error::message("on purpose").permanent())
        }
        Tale::Retried(times) => {
            cx.step_with("once", effect).await?;
            let retries = cx.retries();
            let tried =
                cx.step(
                    "tries",
                    async || {
                        if retries < times { Err(Error::message("not yet")) } else { Ok(retries) }
                    },
                );
            Ok(tried.await?.to_string())
        }
        Tale::Continued(times) => {
            cx.step_with("round", effect).await?;
            match times.checked_sub(1) {
                Some(left) => cx.continue_as_new(&Tale::Continued(left)).await,
                None => Ok("round and round".to_owned()),
            }
        }
        Tale::Watched => {
            cx.publish("told", &"a tale")?;
            cx.step_with("tell", effect).await?;
            Ok("told".to_owned())
        }
    }
}

impl Tale {
    /// What the run that starts it says of it, if nothing ever goes wrong.
    pub(super) fn model(self) -> String {
        match self {
            Tale::Undone(_) => "undone".to_owned(),
            Tale::Retried(times) => times.to_string(),
            Tale::Continued(_) => "round and round".to_owned(),
            Tale::Watched => "a tale told".to_owned(),
        }
    }

    /// The keys of its effects.
    pub(super) fn effects(self) -> usize {
        match self {
            Tale::Undone(steps) => 2 * steps,
            Tale::Continued(times) => times + 1,
            Tale::Retried(_) | Tale::Watched => 1,
        }
    }
}
