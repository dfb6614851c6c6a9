//! What was enqueued: by a transaction that is still open, or by all that committed.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Testbed;
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::on::On;
use crate::on::sealed::Enqueue as _;
use crate::payload;
use crate::store::Schema;
use crate::workflow::Workflow;

/// A run as it was enqueued.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnqueuedRun {
    /// Its id.
    pub run: RunId,
    /// The name of its workflow.
    pub workflow: String,
    /// Its queue.
    pub queue: String,
    /// Its idempotency key.
    pub key: Option<String>,
    /// Its priority.
    pub priority: i16,
    /// Its attributes, if it was given any.
    pub attributes: Option<serde_json::Value>,
    /// Its input.
    pub input: serde_json::Value,
    /// The run that started it.
    pub parent: Option<RunId>,
    /// When it may begin, if it is delayed and that is to come.
    pub due_at: Option<Timestamp>,
}

impl EnqueuedRun {
    /// Whether it is a run of this workflow.
    pub fn is<W: Workflow>(&self) -> bool {
        self.workflow == W::NAME
    }

    /// Its input.
    ///
    /// # Errors
    /// `AMBO028` if it is not a `T`.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T> {
        payload::decode("the input of the run", &self.input.to_string())
    }
}

/// The runs that the caller's open transaction has enqueued so far, in their order, before anybody else can see them. Only in the
/// database of a [`Testbed`].
///
/// # Example
/// ```no_run
/// use ambo::testing::{Testbed, enqueued_in};
/// # #[ambo::workflow] async fn fulfil(_cx: ambo::Ctx, order: u64) -> ambo::Result<()> { let _ = order; Ok(()) }
/// # async fn example(bed: &Testbed, mut shop: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let tx = shop.transaction().await?;
/// fulfil::enqueue(1001).on(&tx).await?; // the code under test
/// let enqueued = enqueued_in(&tx).await?;
/// assert!(enqueued.len() == 1 && enqueued[0].is::<fulfil>());
/// assert_eq!(enqueued[0].input::<u64>()?, 1001);
/// tx.rollback().await?;
/// assert!(bed.enqueued::<fulfil>().await?.is_empty());
/// # Ok(()) }
/// ```
///
/// # Errors
/// `AMBO010` in another database; else what the database says.
pub async fn enqueued_in(transaction: impl On) -> Result<Vec<EnqueuedRun>> {
    let schema = Schema::default();
    let row = transaction.ask(&schema, "select ambo.enqueued_runs(null, true)::text", &[]).await?;
    read(&row)
}

fn read(row: &[Option<String>]) -> Result<Vec<EnqueuedRun>> {
    let json = row.first().and_then(Option::as_deref).unwrap_or("[]");
    serde_json::from_str(json).map_err(Error::from)
}

impl Testbed {
    /// The runs of a workflow that were enqueued so far, by transactions that committed, in their order.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn enqueued<W: Workflow>(&self) -> Result<Vec<EnqueuedRun>> {
        let name = Some(W::NAME.to_owned());
        let sql = "select ambo.enqueued_runs($1::text, false)::text";
        read(&self.client().ask(&Schema::default(), sql, &[name]).await?)
    }
}
