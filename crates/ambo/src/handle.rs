//! Handles: a run seen from outside, in this process or another.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::error::{ApplicationError, Code, Error, Failure, Result, to_failure};
use crate::id::RunId;
use crate::payload;
use crate::vault::place::Place;
use crate::workflow::Workflow;

/// A run seen from outside. Cheap; it does not keep the run alive, and dropping it does not end the run.
pub struct Handle<W> {
    client: Client,
    run: RunId,
    workflow: PhantomData<fn() -> W>,
}

impl<W> Handle<W> {
    pub(crate) fn new(client: Client, run: RunId) -> Self {
        Handle { client, run, workflow: PhantomData }
    }

    /// The id of the run.
    pub fn run_id(&self) -> RunId {
        self.run
    }

    /// Asks the run to end. See [`Client::cancel`].
    ///
    /// # Errors
    /// As [`Client::cancel`].
    pub async fn cancel(&self, cancel: impl Into<crate::Cancel>) -> Result<crate::Cancelled> {
        self.client.cancel(self.run, cancel).await
    }

    /// A signal to the run: send it with [`SendSignal::on`](crate::SendSignal::on).
    pub fn signal(&self, topic: impl Into<String>, payload: &impl serde::Serialize) -> crate::SendSignal {
        crate::SendSignal::new(self.run, topic, payload)
    }

    /// The signals that wait for the run. See [`Client::list_signals`].
    ///
    /// # Errors
    /// As [`Client::list_signals`].
    pub async fn list_signals(&self) -> Result<Vec<crate::admin::WaitingSignal>> {
        self.client.list_signals(self.run).await
    }

    /// Waits until the run has published something under a key, and gives the last value. See
    /// [`Client::next_events`] for all of them.
    ///
    /// # Errors
    /// `AMBO034` if the run has ended without it, `AMBO033` if there is no such run, `AMBO028` if the value is not a `T`.
    pub async fn event<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let last = self.client.next_events(self.run, key, 0).await?.pop();
        last.map(|(_, value)| value).ok_or_else(|| {
            Error::new(
                Code::WrongState,
                format!("run {} has ended and published nothing under {key:?}", self.run),
            )
        })
    }

    /// Waits for the end of the run and decodes the result as the types named.
    ///
    /// # Errors
    /// As [`result`](Handle::result).
    pub async fn result_as<O: DeserializeOwned, E: ApplicationError>(&self) -> Result<O, Failure<E>> {
        let outcome = self.client.outcome(self.run).await.map_err(Failure::Ambo)?;
        let (vault, id) = (self.client.vault(), self.run.as_uuid());
        if outcome.status == "succeeded" {
            let text = outcome.output.as_deref().unwrap_or("null");
            let text = vault.open(&Place::Output(id), text).await.map_err(Failure::Ambo)?;
            return payload::decode("the result of the run", &text).map_err(Failure::Ambo);
        }
        let error = outcome.error.as_deref().unwrap_or("{}");
        let error = vault.open(&Place::Error(id), error).await.map_err(Failure::Ambo)?;
        let error: Error = payload::decode("the error of the run", &error)
            .unwrap_or_else(|_| Error::new(Code::Application, format!("the run is {}", outcome.status)));
        Err(to_failure(error))
    }
}

impl<W: Workflow> Handle<W> {
    /// Waits for the end of the run, however long that takes, through restarts of workers and database.
    ///
    /// # Errors
    /// [`Failure::Application`] with the workflow's own error; `Failure::Ambo` when it was cancelled (`AMBO025`), is dead
    /// (`AMBO021`, `AMBO026`, ...), or when there is no such run (`AMBO033`).
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing; call it again.
    pub async fn result(&self) -> Result<W::Output, Failure<W::Error>> {
        self.result_as().await
    }

    /// Like [`result`](Handle::result), for at most `limit`.
    ///
    /// # Errors
    /// As `result`, and `AMBO042` when the time is over; the run goes on.
    pub async fn result_within(&self, limit: Duration) -> Result<W::Output, Failure<W::Error>> {
        tokio::time::timeout(limit, self.result()).await.unwrap_or_else(|_| {
            let text = format!("run {} had not ended after {limit:?}; it goes on", self.run);
            Err(Failure::Ambo(Error::new(Code::WaitTimeout, text)))
        })
    }
}

impl<W> Clone for Handle<W> {
    fn clone(&self) -> Self {
        Handle::new(self.client.clone(), self.run)
    }
}

impl<W> fmt::Debug for Handle<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("run", &self.run).finish_non_exhaustive()
    }
}
