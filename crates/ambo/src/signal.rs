//! Signals as they are sent: in the caller's transaction, or on the client.

use std::fmt;

use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::id::RunId;
use crate::on::On;
use crate::payload::{self, Json};
use crate::store::Schema;
use crate::vault::Vault;
use crate::vault::place::Place;

/// The statement that sends one signal on a connection of the user's: text in, text out (see `on`).
const SEND: &str = "select ambo.send_signal($1::text::uuid, $2::text, $3::text::json, $4::text)::text";

/// A signal to be: a message to a run, sent with [`on`](SendSignal::on).
///
/// # Example: both or neither
/// ```no_run
/// # async fn example(mut client: tokio_postgres::Client, run: ambo::RunId) -> Result<(), Box<dyn std::error::Error>> {
/// let tx = client.transaction().await?;
/// tx.execute("update orders set approved = true where id = 1001", &[]).await?;
/// ambo::SendSignal::new(run, "approval", &true).key("approval-1001").on(&tx).await?;
/// tx.commit().await?;                      // both: the order is approved, and its run learns it
/// # Ok(()) }
/// ```
#[must_use = "nothing is sent until `.on(...)` is awaited"]
pub struct SendSignal {
    run: RunId,
    topic: String,
    payload: Result<Json>,
    key: Option<String>,
    schema: Result<Schema>,
    vault: Option<Vault>,
}

impl SendSignal {
    /// A signal to a run, under a topic of 1 to 200 bytes that do not begin with `ambo:`.
    pub fn new(run: RunId, topic: impl Into<String>, payload: &impl Serialize) -> Self {
        let payload = payload::encode("the payload", payload);
        SendSignal {
            run,
            topic: topic.into(),
            payload,
            key: None,
            schema: Ok(Schema::default()),
            vault: None,
        }
    }

    /// An idempotency key, 1 to 512 bytes: for this run it means one signal.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The schema in which Ambo is installed, for a transaction of the caller's. Default: `ambo`. The client knows its
    /// own.
    pub fn schema(mut self, name: &str) -> Self {
        self.schema = Schema::new(name);
        self
    }

    /// What becomes of the payload before it is recorded, in a transaction of the caller's. Default: the
    /// [default of the program](Vault::make_default). The client knows its own.
    pub fn vault(mut self, vault: &Vault) -> Self {
        self.vault = Some(vault.clone());
        self
    }

    /// Sends on a connection or transaction of the caller's, or on the client. Says whether the signal was new: not if
    /// its key had been used for it before.
    ///
    /// # Errors
    /// `AMBO033` if there is no such run, `AMBO034` if it has ended, `AMBO001` topic or key, `AMBO003` a key of another
    /// signal, `AMBO004` or `AMBO007` the payload, `AMBO040` if the database is away.
    ///
    /// # Cancel safety
    /// If the future is dropped the signal may have been sent; with a key, sending again is right.
    pub async fn on(self, connection: impl On) -> Result<bool> {
        if self.topic.contains('\0') || self.key.as_ref().is_some_and(|key| key.contains('\0')) {
            return Err(Error::new(Code::InvalidName, "the topic or key holds a NUL byte"));
        }
        let (vault, payload) = (self.vault.unwrap_or_else(|| connection.vault()), self.payload?);
        vault.check("the payload", &payload)?;
        let place = Place::Signal { topic: &self.topic, keyed: self.key.is_some() };
        let payload = vault.seal(&place, &payload).await?;
        let args = [Some(self.run.to_string()), Some(self.topic), Some(payload.into()), self.key];
        let row = connection.ask(&self.schema?, SEND, &args).await?;
        Ok(row.first() == Some(&Some("true".to_owned())))
    }
}

impl fmt::Debug for SendSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendSignal")
            .field("run", &self.run)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}
